//! The PEFT adapter directory: `adapter_config.json`, `adapter_model.safetensors`, and our `tune.json` beside.
//!
//! Specification: PEFT 0.21, <https://huggingface.co/docs/peft/developer_guides/checkpoint>. Plain LoRA of
//! linears is read, with DoRA and with ranks and scales that differ from module to module; what would be applied
//! differently from how it was trained (trained biases, whole saved modules) is refused.

mod config;
mod pattern;

pub use config::{AdapterConfig, Shapes};
pub use pattern::ModulePattern;

use std::collections::BTreeMap;
use std::path::Path;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::safetensors::{Data, SafetensorsFile, write_safetensors};
use crate::{Error, Result, atomic, hash, json};

const CONFIG_FILE: &str = "adapter_config.json";
const TENSOR_FILE: &str = "adapter_model.safetensors";
const PROVENANCE_FILE: &str = "tune.json";
/// Before and after the module in a tensor's name.
const NAME_PREFIX: &str = "base_model.model.";
const A_SUFFIX: &str = ".lora_A.weight";
const B_SUFFIX: &str = ".lora_B.weight";
const MAGNITUDE_SUFFIX: &str = ".lora_magnitude_vector";

/// Where `tune.json` says what the files beside it hash to.
const OWN_HASHES: [(&str, &str); 2] =
    [("adapter_model_blake3", TENSOR_FILE), ("adapter_config_blake3", CONFIG_FILE)];

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

/// Reads an adapter directory, to be used on its base as published.
///
/// # Errors
/// As [`read_adapter_as_trained`]; [`Error::Key`] when training began by changing the base's weights.
pub fn read_adapter(dir: &Path) -> Result<AdapterFiles> {
    let files = read_adapter_as_trained(dir)?;
    config::check_start(&dir.join(CONFIG_FILE), &files.config)?;
    Ok(files)
}

/// Reads an adapter directory whose factors may belong to a base that an initialisation has changed: a checkpoint's.
///
/// # Errors
/// [`Error::MissingFile`]; [`Error::Json`] and [`Error::Key`] for the configuration; for the tensors
/// [`Error::NoSuchTensor`] when half of a pair is missing, [`Error::Shape`], [`Error::Malformed`] when one is
/// none of LoRA's, and as [`SafetensorsFile::open`].
pub fn read_adapter_as_trained(dir: &Path) -> Result<AdapterFiles> {
    let config_path = require(dir, CONFIG_FILE, "the configuration of a PEFT adapter")?;
    let config: AdapterConfig = json::read(&config_path)?;
    config::check_config(&config_path, &config)?;
    let shapes = config.shapes(&config_path)?;
    let file = SafetensorsFile::open(&require(dir, TENSOR_FILE, "the weights of a PEFT adapter")?)?;
    let tensors = read_pairs(&file, &config, &shapes)?;
    let provenance = dir.join(PROVENANCE_FILE);
    let mut tune: Option<Provenance> =
        if provenance.is_file() { Some(json::read(&provenance)?) } else { None };
    if let Some(tune) = &mut tune {
        check_own_hashes(dir, tune)?;
    }
    Ok(AdapterFiles { config, tune, tensors })
}

fn require(dir: &Path, name: &str, expected: &'static str) -> Result<std::path::PathBuf> {
    let path = dir.join(name);
    if path.is_file() { Ok(path) } else { Err(Error::MissingFile { path, expected }) }
}

fn read_pairs(file: &SafetensorsFile, config: &AdapterConfig, shapes: &Shapes) -> Result<Vec<AdapterTensor>> {
    let mut modules: BTreeMap<ModuleOrder, &str> = BTreeMap::new();
    for tensor in file.tensors() {
        let rest = tensor.name.strip_prefix(NAME_PREFIX);
        let suffixes = [Some(A_SUFFIX), Some(B_SUFFIX), config.use_dora.then_some(MAGNITUDE_SUFFIX)];
        let module =
            rest.and_then(|rest| suffixes.into_iter().flatten().find_map(|suffix| rest.strip_suffix(suffix)));
        let module = module.ok_or_else(|| Error::Malformed {
            path: file.path().to_owned(),
            place: "the name of a tensor".to_owned(),
            expected: format!("`{NAME_PREFIX}MODULE{A_SUFFIX}` or `…{B_SUFFIX}`"),
            actual: format!("`{}`", tensor.name),
        })?;
        modules.insert(ModuleOrder::of(module), module);
    }
    let read = |module: &&str| {
        let pair = read_pair(file, module, shapes.rank(module))?;
        let magnitude = config.use_dora.then(|| read_magnitude(file, &pair)).transpose()?;
        Ok(AdapterTensor { magnitude, ..pair })
    };
    // On all threads: new memory takes its time. Of several errors the first counts.
    let modules: Vec<&str> = modules.into_values().collect();
    let read: Vec<Result<AdapterTensor>> = modules.par_iter().map(read).collect();
    read.into_iter().collect()
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

/// DoRA's lengths of the rows of a pair's linear.
fn read_magnitude(file: &SafetensorsFile, pair: &AdapterTensor) -> Result<Vec<f32>> {
    let (path, tensor) = (file.path().to_owned(), format!("{NAME_PREFIX}{}{MAGNITUDE_SUFFIX}", pair.module));
    let expected = vec![pair.out_features];
    let mut magnitude = Vec::new();
    match file.tensor(&tensor).map(|found| found.shape) {
        None => return Err(Error::NoSuchTensor { path, tensor }),
        Some(actual) if actual != expected => return Err(Error::Shape { path, tensor, expected, actual }),
        // A vector is one row.
        Some(_) => file.read_rows(&tensor, 0..1, &mut magnitude)?,
    }
    Ok(magnitude)
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
        actual: tensor.shape,
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
            let mut provenance = provenance.clone();
            for (key, file) in OWN_HASHES {
                provenance.extra.insert(key.to_owned(), hash::blake3_file(&temp.join(file))?.into());
            }
            json::write(&temp.join(PROVENANCE_FILE), &provenance)?;
        }
        Ok(())
    })
}

/// Refuses files that are not those that were written; what is checked is taken out of the record.
fn check_own_hashes(dir: &Path, tune: &mut Provenance) -> Result<()> {
    for (key, file) in OWN_HASHES {
        let Some(recorded) = tune.extra.remove(key) else { continue };
        let (path, actual) = (dir.join(file), hash::blake3_file(&dir.join(file))?);
        if recorded != actual.as_str() {
            let recorded = recorded.as_str().unwrap_or("none");
            let expected = format!("{recorded}, as `{key}` of {PROVENANCE_FILE} has it");
            return Err(Error::Malformed { path, place: "its BLAKE3".to_owned(), expected, actual });
        }
    }
    Ok(())
}

fn stored_tensors(pairs: &[AdapterTensor]) -> Vec<(String, Vec<usize>, Data<'_>)> {
    let stored = pairs.iter().flat_map(|pair| {
        let name = |suffix: &str| format!("{NAME_PREFIX}{}{suffix}", pair.module);
        let factors = [
            (name(A_SUFFIX), vec![pair.r, pair.in_features], Data::F32(&pair.a)),
            (name(B_SUFFIX), vec![pair.out_features, pair.r], Data::F32(&pair.b)),
        ];
        let magnitude = pair.magnitude.as_deref();
        let magnitude = magnitude.map(|m| (name(MAGNITUDE_SUFFIX), vec![pair.out_features], Data::F32(m)));
        factors.into_iter().chain(magnitude)
    });
    stored.collect()
}
