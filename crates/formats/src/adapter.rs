//! The PEFT adapter directory: `adapter_config.json`, `adapter_model.safetensors`, and our `tune.json` beside.
//!
//! Specification: PEFT 0.21, <https://huggingface.co/docs/peft/developer_guides/checkpoint>. Plain LoRA of
//! linears is read; what would be applied differently from how it was trained (DoRA, trained biases, whole
//! saved modules, other scales for some modules) is refused.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use crate::safetensors::{Data, SafetensorsFile, write_safetensors};
use crate::{Error, Result, atomic, json};

const CONFIG_FILE: &str = "adapter_config.json";
const TENSOR_FILE: &str = "adapter_model.safetensors";
const PROVENANCE_FILE: &str = "tune.json";
/// Before and after the module in a tensor's name.
const NAME_PREFIX: &str = "base_model.model.";
const A_SUFFIX: &str = ".lora_A.weight";
const B_SUFFIX: &str = ".lora_B.weight";

/// `adapter_config.json`. Fields of PEFT that are not listed are kept in `extra`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdapterConfig {
    /// `LORA`.
    pub peft_type: String,
    /// `CAUSAL_LM`.
    #[serde(default)]
    pub task_type: Option<String>,
    /// Where the base was.
    #[serde(default)]
    pub base_model_name_or_path: Option<String>,
    /// Rank.
    pub r: usize,
    /// Numerator of the scale.
    pub lora_alpha: f64,
    /// Dropout of the adapter's input in training.
    #[serde(default)]
    pub lora_dropout: f64,
    /// Last names of the adapted linears, such as `q_proj`; one pattern in the file is a list of one.
    #[serde(deserialize_with = "one_or_many")]
    pub target_modules: Vec<String>,
    /// Scale is alpha / sqrt(r) instead of alpha / r.
    #[serde(default)]
    pub use_rslora: bool,
    /// `none`: biases are not trained.
    #[serde(default = "no_bias")]
    pub bias: String,
    /// Every other field.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl AdapterConfig {
    /// The configuration of a plain LoRA adapter, as PEFT would write it.
    #[must_use]
    pub fn lora(r: usize, lora_alpha: f64, target_modules: Vec<String>) -> Self {
        let extra = [("inference_mode", Value::Bool(true)), ("fan_in_fan_out", Value::Bool(false))];
        Self {
            peft_type: "LORA".to_owned(),
            task_type: Some("CAUSAL_LM".to_owned()),
            base_model_name_or_path: None,
            r,
            lora_alpha,
            lora_dropout: 0.0,
            target_modules,
            use_rslora: false,
            bias: no_bias(),
            extra: extra.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
        }
    }

    /// What B·A is multiplied with: alpha / r, or alpha / √r for rsLoRA.
    #[must_use]
    pub fn scale(&self) -> f64 {
        let r = self.r as f64;
        self.lora_alpha / if self.use_rslora { r.sqrt() } else { r }
    }
}

fn no_bias() -> String {
    "none".to_owned()
}

fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Modules {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Modules::deserialize(deserializer)? {
        Modules::One(module) => vec![module],
        Modules::Many(modules) => modules,
    })
}

/// `tune.json`: what an adapter was made from, so that it cannot be used on another base.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Provenance {
    /// Hash of the base's weights ([`crate::TensorSource::content_hash`]).
    pub base_blake3: String,
    /// Where the base was.
    pub base_path: String,
    /// Hash of the recipe.
    #[serde(default)]
    pub recipe_blake3: String,
    /// Hash of the dataset.
    #[serde(default)]
    pub dataset_blake3: String,
    /// Hash of the chat template.
    #[serde(default)]
    pub template_blake3: String,
    /// Optimiser steps taken.
    #[serde(default)]
    pub steps: u64,
    /// Everything else a stage wants to leave.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// The low-rank pair of one linear.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterTensor {
    /// The linear, such as `model.layers.0.self_attn.q_proj`.
    pub module: String,
    /// (r, `in_features`).
    pub a: Vec<f32>,
    /// (`out_features`, r).
    pub b: Vec<f32>,
    /// With DoRA, the trained length of each row (`out_features`).
    pub magnitude: Option<Vec<f32>>,
    /// Rank of this pair.
    pub r: usize,
    /// Columns of A.
    pub in_features: usize,
    /// Rows of B.
    pub out_features: usize,
}

/// A whole adapter directory.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterFiles {
    /// `adapter_config.json`.
    pub config: AdapterConfig,
    /// `tune.json`, when the adapter is ours.
    pub tune: Option<Provenance>,
    /// The pairs, in the order of the model: by layer number, then by name.
    pub tensors: Vec<AdapterTensor>,
}

/// Reads an adapter directory.
///
/// # Errors
/// [`Error::MissingFile`]; [`Error::Json`] and [`Error::Key`] for the configuration; for the tensors
/// [`Error::NoSuchTensor`] when half of a pair is missing, [`Error::Shape`], [`Error::Malformed`] when one is
/// none of LoRA's, and as [`SafetensorsFile::open`].
pub fn read_adapter(dir: &Path) -> Result<AdapterFiles> {
    let config_path = require(dir, CONFIG_FILE, "the configuration of a PEFT adapter")?;
    let config: AdapterConfig = json::read(&config_path)?;
    check_config(&config_path, &config)?;
    let file = SafetensorsFile::open(&require(dir, TENSOR_FILE, "the weights of a PEFT adapter")?)?;
    let tensors = read_pairs(&file, config.r)?;
    let provenance = dir.join(PROVENANCE_FILE);
    let tune = if provenance.is_file() { Some(json::read(&provenance)?) } else { None };
    Ok(AdapterFiles { config, tune, tensors })
}

fn require(dir: &Path, name: &str, expected: &'static str) -> Result<std::path::PathBuf> {
    let path = dir.join(name);
    if path.is_file() { Ok(path) } else { Err(Error::MissingFile { path, expected }) }
}

/// Refuses what this program would apply differently from how it was trained.
fn check_config(path: &Path, config: &AdapterConfig) -> Result<()> {
    let refused = |key: &str, expected: &str, actual: String| {
        let (key, expected) = (key.to_owned(), expected.to_owned());
        Err(Error::Key { path: path.to_owned(), key, expected, actual })
    };
    if config.peft_type != "LORA" {
        return refused("peft_type", "`LORA`", format!("`{}`", config.peft_type));
    }
    if config.r == 0 {
        return refused("r", "1 or more", "0".to_owned());
    }
    if !config.lora_alpha.is_finite() {
        return refused("lora_alpha", "a finite number", config.lora_alpha.to_string());
    }
    if config.bias != "none" {
        return refused("bias", "`none`", format!("`{}`", config.bias));
    }
    const UNSUPPORTED: [&str; 14] = [
        "use_dora",
        "use_bdlora",
        "use_qalora",
        "alora_invocation_tokens",
        "arrow_config",
        "kasa_config",
        "lora_bias",
        "modules_to_save",
        "rank_pattern",
        "alpha_pattern",
        "fan_in_fan_out",
        "layer_replication",
        "trainable_token_indices",
        "target_parameters",
    ];
    for key in UNSUPPORTED {
        match config.extra.get(key) {
            None | Some(Value::Null | Value::Bool(false)) => {}
            Some(Value::Array(list)) if list.is_empty() => {}
            Some(Value::Object(map)) if map.is_empty() => {}
            Some(other) => return refused(key, "absent or empty (it is not supported)", other.to_string()),
        }
    }
    // These have changed the base's weights too: on the published base the adapter is another one.
    const CHANGES_BASE: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];
    match config.extra.get("init_lora_weights").and_then(Value::as_str) {
        Some(init) if CHANGES_BASE.iter().any(|name| init.starts_with(name)) => {
            refused("init_lora_weights", "one that leaves the base as it is", format!("`{init}`"))
        }
        _ => Ok(()),
    }
}

fn read_pairs(file: &SafetensorsFile, r: usize) -> Result<Vec<AdapterTensor>> {
    let mut modules: BTreeMap<ModuleOrder, &str> = BTreeMap::new();
    for tensor in file.tensors() {
        let rest = tensor.name.strip_prefix(NAME_PREFIX);
        let module =
            rest.and_then(|rest| rest.strip_suffix(A_SUFFIX).or_else(|| rest.strip_suffix(B_SUFFIX)));
        let module = module.ok_or_else(|| Error::Malformed {
            path: file.path().to_owned(),
            place: "the name of a tensor".to_owned(),
            expected: format!("`{NAME_PREFIX}MODULE{A_SUFFIX}` or `…{B_SUFFIX}`"),
            actual: format!("`{}`", tensor.name),
        })?;
        modules.insert(ModuleOrder::of(module), module);
    }
    modules.values().map(|module| read_pair(file, module, r)).collect()
}

fn read_pair(file: &SafetensorsFile, module: &str, r: usize) -> Result<AdapterTensor> {
    let (a_name, b_name) =
        (format!("{NAME_PREFIX}{module}{A_SUFFIX}"), format!("{NAME_PREFIX}{module}{B_SUFFIX}"));
    let in_features = matrix_shape(
        file,
        &a_name,
        |[rows, cols]| (rows == r).then_some(cols),
        |shape| vec![r, shape.last().copied().unwrap_or(0)],
    )?;
    let out_features = matrix_shape(
        file,
        &b_name,
        |[rows, cols]| (cols == r).then_some(rows),
        |shape| vec![shape.first().copied().unwrap_or(0), r],
    )?;
    let (mut a, mut b) = (Vec::new(), Vec::new());
    file.read_rows(&a_name, 0..r, &mut a)?;
    file.read_rows(&b_name, 0..out_features, &mut b)?;
    Ok(AdapterTensor { module: module.to_owned(), a, b, magnitude: None, r, in_features, out_features })
}

/// The free dimension of a matrix, once the other is the rank.
fn matrix_shape(
    file: &SafetensorsFile,
    name: &str,
    accept: impl Fn([usize; 2]) -> Option<usize>,
    expected: impl Fn(&[usize]) -> Vec<usize>,
) -> Result<usize> {
    let path = file.path().to_owned();
    let Some(tensor) = file.tensor(name) else {
        return Err(Error::NoSuchTensor { path, tensor: name.to_owned() });
    };
    let free = <[usize; 2]>::try_from(tensor.shape.as_slice()).ok().and_then(accept);
    free.filter(|&free| free > 0).ok_or_else(|| Error::Shape {
        path,
        tensor: name.to_owned(),
        expected: expected(&tensor.shape),
        actual: tensor.shape.clone(),
    })
}

/// Sorts modules as the model has them: numbers by value, so that layer 10 follows layer 9.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct ModuleOrder(Vec<(u64, String)>);

impl ModuleOrder {
    fn of(module: &str) -> Self {
        Self(module.split('.').map(|part| (part.parse().unwrap_or(u64::MAX), part.to_owned())).collect())
    }
}

/// Writes an adapter directory, whole or not at all, in f32.
///
/// # Errors
/// [`Error::Plan`] when a pair's values do not have its shape; as [`atomic::write_dir`].
pub fn write_adapter(dir: &Path, files: &AdapterFiles) -> Result<()> {
    atomic::write_dir(dir, |temp| {
        write_safetensors(&temp.join(TENSOR_FILE), &stored_tensors(&files.tensors))?;
        json::write(&temp.join(CONFIG_FILE), &files.config)?;
        if let Some(provenance) = &files.tune {
            json::write(&temp.join(PROVENANCE_FILE), provenance)?;
        }
        Ok(())
    })
}

fn stored_tensors(pairs: &[AdapterTensor]) -> Vec<(String, Vec<usize>, Data<'_>)> {
    let stored = pairs.iter().flat_map(|pair| {
        let name = |suffix: &str| format!("{NAME_PREFIX}{}{suffix}", pair.module);
        [
            (name(A_SUFFIX), vec![pair.r, pair.in_features], Data::F32(&pair.a)),
            (name(B_SUFFIX), vec![pair.out_features, pair.r], Data::F32(&pair.b)),
        ]
    });
    stored.collect()
}
