//! Models that a server holds: how each is named there, and what the server told of it.

use serde::{Deserialize, Serialize};

/// A model that an Ollama server holds. The name can come to mean another model; the digest can't.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OllamaModel {
    /// The server, as in `http://127.0.0.1:11434`.
    pub url: String,
    /// The model's name there, with its tag.
    pub name: String,
    /// Its digest in `/api/tags`, hex.
    pub digest: String,
    /// What it takes on the server's disk.
    pub size_bytes: u64,
    /// Its architecture, as in `qwen3`.
    pub family: String,
    /// Its size as the server writes it, as in `4.0B`.
    pub parameter_size: String,
    /// The type most weights have, as in `Q4_K_M`.
    pub weight_type: String,
    /// The context that its parameters fix; absent: the server's own default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_ctx: Option<u32>,
    /// Layers on the graphics card that its parameters fix; absent: as many as fit, and fewer without a word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_gpu: Option<u32>,
    /// Texts that its parameters stop at.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// Tokens of context it was trained on, if the server says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trained_context_tokens: Option<u32>,
    /// What the server says that it can do: `completion`, `thinking`, `embedding`, `tools`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<String>,
}

impl OllamaModel {
    /// Whether the server says that it can do this.
    pub fn can(&self, capability: &str) -> bool {
        self.capabilities.iter().any(|known| known == capability)
    }
}

/// A model behind an OpenAI-compatible server: vLLM, llama-server, a cloud.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OpenAiModel {
    /// The server up to its version, as in `https://api.example.com/v1`.
    pub url: String,
    /// What the server calls the model.
    pub model: String,
    /// The environment variable that holds the key; absent: the server wants none. The key itself is written nowhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_env: Option<String>,
}
