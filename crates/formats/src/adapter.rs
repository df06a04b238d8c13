//! The PEFT adapter directory: `adapter_config.json`, `adapter_model.safetensors`, and our `tune.json` beside.
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::Result;

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
    /// Last names of the adapted linears, such as `q_proj`.
    pub target_modules: Vec<String>,
    /// Scale is alpha / sqrt(r) instead of alpha / r.
    #[serde(default)]
    pub use_rslora: bool,
    /// `none`: biases are not trained.
    #[serde(default)]
    pub bias: String,
    /// Every other field.
    #[serde(flatten)]
    pub extra: serde_json::Map<String, serde_json::Value>,
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
    pub extra: serde_json::Map<String, serde_json::Value>,
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
    /// The pairs, sorted by layer and name.
    pub tensors: Vec<AdapterTensor>,
}

/// Reads an adapter directory.
///
/// # Errors
/// [`crate::Error`] naming file and tensor.
pub fn read_adapter(dir: &Path) -> Result<AdapterFiles> {
    let _ = dir;
    todo!()
}

/// Writes an adapter directory, whole or not at all.
///
/// # Errors
/// [`crate::Error`] naming the file.
pub fn write_adapter(dir: &Path, files: &AdapterFiles) -> Result<()> {
    let _ = (dir, files);
    todo!()
}
