//! Reading an adapter for a merge: refuses what a plain sum of products cannot express, and another base.

use std::collections::HashMap;
use std::path::Path;

use formats::adapter::{AdapterFiles, AdapterTensor, Provenance as Recorded};
use formats::{TensorSource, hash};
use model::family::{Linear, newer_module};
use model::lora::Update;

use crate::{Error, Result};

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
pub(crate) fn read(dir: &Path, linears: &[Linear], base: &dyn TensorSource) -> Result<Adapter> {
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
fn check_base(dir: &Path, files: &AdapterFiles, base: &dyn TensorSource) -> Result<()> {
    let Some(recorded) = files.tune.as_ref().filter(|tune| !tune.base_blake3.is_empty()) else {
        return Ok(());
    };
    let actual = base.content_hash()?;
    if recorded.base_blake3 == actual {
        return Ok(());
    }
    Err(Error::OtherBase {
        adapter: dir.to_owned(),
        base: base.label(),
        expected: recorded.base_blake3.clone(),
        actual,
    })
}
