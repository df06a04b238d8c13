//! Reading the adapters of a merge: refuses what a plain sum of products cannot express, and another base.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use formats::adapter::{AdapterFiles, AdapterTensor, Provenance as Recorded};
use formats::hash;
use model::ModelConfig;
use model::family::{Linear, linears, newer_module};
use model::lora::Update;
use text::ChatTemplate;

use crate::base::Base;
use crate::{AdapterSource, Error, MergedAdapter, Result};

/// Where `tune.json` has the hash of the base's `config.json`, and that of its tokenizer's files.
const CONFIG_HASH: &str = "base_config_blake3";
const TOKENIZER_HASH: &str = "tokenizer_blake3";

/// Adapters that fit their base, as one.
#[derive(Default)]
pub(crate) struct Adapter {
    /// By module.
    pub(crate) updates: HashMap<String, Update>,
    /// What each is.
    pub(crate) parts: Vec<MergedAdapter>,
    /// The `tune.json` of each that has one.
    recorded: Vec<(PathBuf, Recorded)>,
}

/// Reads adapters and fits them to the linears of a base. Several are added up, each with its weight: W + Σ wᵢ·sᵢ·Bᵢ·Aᵢ.
///
/// Checks configuration, modules and shapes, and nothing that needs the base's weights.
///
/// # Errors
/// [`Error::Weight`] for a weight, or for lengths of DoRA, of which there is no sum.
pub(crate) fn read(sources: &[AdapterSource], base: &ModelConfig) -> Result<Adapter> {
    let linears = linears(base);
    let is_alone = sources.len() == 1;
    let mut read = Adapter::default();
    let mut summands: HashMap<String, Vec<Update>> = HashMap::new();
    for source in sources {
        let AdapterSource { dir, weight } = source;
        if !weight.is_finite() || *weight == 0.0 {
            return Err(weight_error(source, "a weight is a number other than 0"));
        }
        let (files, updates) = updates(dir, &linears)?;
        let has_lengths = updates.iter().any(|(_, update)| update.pair().magnitude.is_some());
        if has_lengths && !(is_alone && *weight == 1.0) {
            let reason = "with DoRA the lengths of its rows are trained, which have no sum and no share";
            return Err(weight_error(source, reason));
        }
        let recorded = files.tune;
        for (module, update) in updates {
            summands.entry(module).or_default().push(update.times(*weight));
        }
        read.parts.push(MergedAdapter {
            path: dir.clone(),
            weight: *weight,
            blake3: hash::blake3_file(&dir.join("adapter_model.safetensors"))?,
            base_checked: recorded.as_ref().is_some_and(|recorded| !recorded.base_blake3.is_empty()),
        });
        read.recorded.extend(recorded.map(|recorded| (dir.clone(), recorded)));
    }
    read.updates = summands.into_iter().map(|(module, updates)| (module, Update::sum(updates))).collect();
    Ok(read)
}

fn weight_error(source: &AdapterSource, reason: &'static str) -> Error {
    Error::Weight { adapter: source.dir.clone(), weight: source.weight, reason }
}

/// The updates of an adapter by module.
fn updates(dir: &Path, linears: &[Linear]) -> Result<(AdapterFiles, Vec<(String, Update)>)> {
    let mut files = formats::adapter::read_adapter(dir)?;
    let shapes = files.config.shapes(&dir.join("adapter_config.json"))?;
    let mut updates = Vec::with_capacity(files.tensors.len());
    for mut pair in std::mem::take(&mut files.tensors) {
        // Patterns are of the names in the file.
        let scale = shapes.scale(&pair.module) as f32;
        pair.module = newer_module(&pair.module).into_owned();
        check_pair(dir, &pair, linears)?;
        updates.push((pair.module.clone(), Update::new(pair, scale)));
    }
    Ok((files, updates))
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
    /// Whether each names the base it was trained on; `None` where there is none.
    pub(crate) fn names_base(&self) -> Option<bool> {
        (!self.parts.is_empty()).then(|| self.parts.iter().all(|part| part.base_checked))
    }

    /// Hash of the weights of the only one, or of what is listed of several; `None` where there is none.
    pub(crate) fn blake3(&self) -> Option<String> {
        match &self.parts[..] {
            [] => None,
            [only] if only.weight == 1.0 => Some(only.blake3.clone()),
            parts => {
                let lines = parts.iter().map(|part| format!("{} {}\n", part.weight, part.blake3));
                Some(hash::blake3_bytes(lines.collect::<String>().as_bytes()))
            }
        }
    }

    /// What the first that records anything says of its training.
    pub(crate) fn recorded(&self) -> Option<&Recorded> {
        self.recorded.first().map(|(_, recorded)| recorded)
    }

    /// Each that names a base was trained on this one.
    pub(crate) fn check_base(&self, base: &Base) -> Result<()> {
        self.recorded.iter().try_for_each(|(dir, recorded)| check_base(dir, recorded, base))
    }

    /// An adapter served with another tokenizer or template than it was trained with babbles and never stops.
    pub(crate) fn check_language(
        &self,
        base: &Base,
        tokenizer: &Path,
        template: Option<&ChatTemplate>,
    ) -> Result<()> {
        for (adapter, recorded) in &self.recorded {
            check_tokenizer(adapter, recorded, base, tokenizer)?;
            let actual = template.map(template_blake3).unwrap_or_default();
            if !recorded.template_blake3.is_empty() && recorded.template_blake3 != actual {
                let (adapter, expected) = (adapter.clone(), recorded.template_blake3.clone());
                return Err(Error::OtherTemplate { adapter, expected, actual });
            }
        }
        Ok(())
    }
}

pub(crate) fn template_blake3(template: &ChatTemplate) -> String {
    hash::blake3_bytes(template.source().as_bytes())
}

/// A same-shape wrong base would merge without complaint and give a model that is neither.
fn check_base(dir: &Path, recorded: &Recorded, base: &Base) -> Result<()> {
    let other = |base: PathBuf, expected: &str, actual: String| {
        Err(Error::OtherBase { adapter: dir.to_owned(), base, expected: expected.to_owned(), actual })
    };
    if let Some(expected) = recorded.extra.get(CONFIG_HASH).and_then(|hash| hash.as_str()) {
        let (config, actual) = base.config_blake3()?;
        if expected != actual {
            return other(config, expected, actual);
        }
    }
    if recorded.base_blake3.is_empty() {
        return Ok(());
    }
    let actual = base.source().content_hash()?;
    if recorded.base_blake3 == actual {
        return Ok(());
    }
    other(base.source().label(), &recorded.base_blake3, actual)
}

/// Refuses another tokenizer than the adapter was trained with, where it records one.
fn check_tokenizer(adapter: &Path, recorded: &Recorded, base: &Base, tokenizer: &Path) -> Result<()> {
    let expected = recorded.extra.get(TOKENIZER_HASH).and_then(|hash| hash.as_str());
    let Some(expected) = expected.filter(|expected| !expected.is_empty()) else { return Ok(()) };
    let actual = base.tokenizer_blake3(tokenizer)?;
    if expected == actual {
        return Ok(());
    }
    let (adapter, tokenizer, expected) = (adapter.to_owned(), tokenizer.to_owned(), expected.to_owned());
    Err(Error::OtherTokenizer { adapter, tokenizer, expected, actual })
}
