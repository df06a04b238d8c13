//! Reading an adapter for a merge: refuses what a plain sum of products cannot express, and another base.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use formats::adapter::{AdapterFiles, AdapterTensor, Provenance as Recorded};
use formats::checkpoint::Checkpoint;
use formats::{TensorSource, hash};
use model::family::{Linear, newer_module};
use model::lora::Update;

use crate::{Error, Result};

/// Where `tune.json` has the hash of the base's `config.json`, and that of its tokenizer's files.
const CONFIG_HASH: &str = "base_config_blake3";
const TOKENIZER_HASH: &str = "tokenizer_blake3";

/// An adapter that fits its base.
pub(crate) struct Adapter {
    /// By module.
    pub(crate) updates: HashMap<String, Update>,
    /// Its `tune.json`, where it has one; the base that it names is this one.
    pub(crate) recorded: Option<Recorded>,
    /// Of its weights.
    pub(crate) blake3: String,
}

/// Reads an adapter and fits it to the linears of a base.
///
/// Cheap checks come first: configuration, modules, shapes; the base is hashed last.
pub(crate) fn read(dir: &Path, linears: &[Linear], base: &Checkpoint) -> Result<Adapter> {
    let mut files = formats::adapter::read_adapter(dir)?;
    let shapes = files.config.shapes(&dir.join("adapter_config.json"))?;
    // Patterns are of the names in the file.
    let scales: Vec<f64> = files.tensors.iter().map(|pair| shapes.scale(&pair.module)).collect();
    for pair in &mut files.tensors {
        pair.module = newer_module(&pair.module).into_owned();
    }
    for pair in &files.tensors {
        check_pair(dir, pair, linears)?;
    }
    check_base(dir, &files, base)?;
    let updates = files.tensors.into_iter().zip(scales);
    let updates = updates.map(|(pair, scale)| (pair.module.clone(), Update::new(pair, scale as f32)));
    let blake3 = hash::blake3_file(&dir.join("adapter_model.safetensors"))?;
    Ok(Adapter { updates: updates.collect(), recorded: files.tune, blake3 })
}

fn check_pair(dir: &Path, pair: &AdapterTensor, linears: &[Linear]) -> Result<()> {
    let Some(linear) = linears.iter().find(|linear| linear.module == pair.module) else {
        return Err(Error::NoSuchModule { path: dir.to_owned(), module: pair.module.clone() });
    };
    let shapes = [
        ("lora_A", vec![pair.r, pair.in_features], vec![pair.r, linear.cols]),
        ("lora_B", vec![pair.out_features, pair.r], vec![linear.rows, pair.r]),
    ];
    for (part, actual, expected) in shapes {
        if actual != expected {
            let tensor = format!("base_model.model.{}.{part}.weight", pair.module);
            return Err(Error::Shape { path: dir.to_owned(), tensor, expected, actual });
        }
    }
    Ok(())
}

impl Adapter {
    /// Whether the adapter names the base it was trained on.
    pub(crate) fn names_base(&self) -> bool {
        self.recorded.as_ref().is_some_and(|recorded| !recorded.base_blake3.is_empty())
    }
}

/// A same-shape wrong base would merge without complaint and give a model that is neither.
fn check_base(dir: &Path, files: &AdapterFiles, base: &Checkpoint) -> Result<()> {
    let Some(recorded) = &files.tune else { return Ok(()) };
    let other = |base: PathBuf, expected: &str, actual: String| {
        Err(Error::OtherBase { adapter: dir.to_owned(), base, expected: expected.to_owned(), actual })
    };
    let config = base.dir().join("config.json");
    if let Some(expected) = recorded.extra.get(CONFIG_HASH).and_then(|hash| hash.as_str()) {
        let actual = hash::blake3_file(&config)?;
        if expected != actual {
            return other(config, expected, actual);
        }
    }
    if recorded.base_blake3.is_empty() {
        return Ok(());
    }
    let actual = base.content_hash()?;
    if recorded.base_blake3 == actual {
        return Ok(());
    }
    other(base.label(), &recorded.base_blake3, actual)
}

/// Refuses another tokenizer than the adapter was trained with, where it records one.
pub(crate) fn check_tokenizer(adapter: &Path, recorded: &Recorded, tokenizer: &Path) -> Result<()> {
    let expected = recorded.extra.get(TOKENIZER_HASH).and_then(|hash| hash.as_str());
    let Some(expected) = expected.filter(|expected| !expected.is_empty()) else { return Ok(()) };
    let actual = text::files_blake3(tokenizer)?;
    if expected == actual {
        return Ok(());
    }
    let (adapter, tokenizer, expected) = (adapter.to_owned(), tokenizer.to_owned(), expected.to_owned());
    Err(Error::OtherTokenizer { adapter, tokenizer, expected, actual })
}
