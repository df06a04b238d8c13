//! What a pipeline file says, as written; [`super::Pipeline`] is what it means once checked.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::step::StepSpec;
use crate::card::{FlashAttention, KvType};

/// A pipeline file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PipelineSpec {
    /// Its name; a caller gives one (the file's stem) where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// One line for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// An input to show as an example.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub example: Option<String>,
    /// Whether everything stays on this machine: an expert that is elsewhere is refused.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub local: bool,
    /// Values for `{{ params.x }}`; a run may override those named here and no other.
    #[serde(default, skip_serializing_if = "serde_json::Map::is_empty")]
    pub params: serde_json::Map<String, serde_json::Value>,
    /// The experts.
    #[serde(default)]
    pub experts: BTreeMap<String, ExpertSpec>,
    /// The steps, in order.
    #[serde(default)]
    pub steps: Vec<StepSpec>,
}

/// One expert of a pipeline: a file, a registered one, or a server's, and what differs from its card.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpertSpec {
    /// A GGUF file; like every path here relative to the folder that [`PipelineSpec::check`] is given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// LoRA adapter (GGUF) to set over `file`: experts of one file share what is loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<PathBuf>,
    /// What the adapter's update is multiplied with; absent: 1, as it was trained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter_scale: Option<f32>,
    /// A registered expert.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expert: Option<String>,
    /// A model that an Ollama server holds, as in `qwen3:4b`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ollama: Option<String>,
    /// The Ollama server, as `OLLAMA_HOST` has it; this machine's where it is absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<String>,
    /// A model behind an OpenAI-compatible server.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub openai: Option<String>,
    /// That server, up to its version, as in `https://api.example.com/v1`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The environment variable that holds that server's key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_env: Option<String>,
    /// System message for its steps.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// Tokens of context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_ctx: Option<u32>,
    /// Tokens decoded at once while a prompt is read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_batch: Option<u32>,
    /// Threads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_thread: Option<u32>,
    /// Layers on the graphics card.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_gpu: Option<u32>,
    /// Type of the key-value cache.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_type: Option<KvType>,
    /// Flash attention: `auto`, `on`, `off`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub flash_attention: Option<FlashAttention>,
    /// The expert of this pipeline to take where this one does not fit: it is named when it would.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<String>,
    /// Temperature.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f32>,
}
