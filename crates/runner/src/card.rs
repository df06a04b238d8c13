//! An expert's card: the model file and everything that must not drift from one call to the next.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Everything that names an expert and decides how it is loaded and sampled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpertCard {
    /// What requests and pipelines call it; see [`check_name`].
    pub name: String,
    /// The GGUF file.
    pub file: PathBuf,
    /// BLAKE3 of the file, hex.
    pub blake3: String,
    /// SHA-256 of the file, hex, as Ollama names blobs; absent for an expert used straight from a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Length of the file.
    pub file_bytes: u64,
    /// Last change of the file, seconds since 1970: a file unchanged in both need not be hashed again.
    pub file_modified: u64,
    /// `general.architecture`.
    pub architecture: String,
    /// Weights of all tensors.
    pub n_parameters: u64,
    /// The type most weights have, as in `Q4_K`.
    pub weight_type: String,
    /// BLAKE3 of the chat template, hex; absent when the file has none and only raw prompts work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template_blake3: Option<String>,
    /// A system message put before the first message of a chat that has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// Texts at which generation stops, besides the end-of-turn tokens.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// What a change of forces a reload.
    #[serde(default)]
    pub load: LoadOptions,
    /// What a request may override.
    #[serde(default)]
    pub sampling: Sampling,
    /// Where the file comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provenance: Option<Provenance>,
}

/// What is fixed when an expert is loaded; requests can't change it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LoadOptions {
    /// Tokens of context, prompt and answer together; 0: the smaller of 4096 and what the model was trained on.
    pub num_ctx: u32,
    /// Tokens decoded at once while a prompt is read.
    pub num_batch: u32,
    /// Threads; 0: one a processor.
    pub num_thread: u32,
    /// Layers on the graphics card; absent: all, where the engine was built for one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_gpu: Option<u32>,
    /// Type of the cached keys.
    pub kv_type_k: KvType,
    /// Type of the cached values; a quantised one needs flash attention, which is then on.
    pub kv_type_v: KvType,
}

impl Default for LoadOptions {
    fn default() -> Self {
        Self {
            num_ctx: 0,
            num_batch: 512,
            num_thread: 0,
            num_gpu: None,
            kv_type_k: KvType::F16,
            kv_type_v: KvType::F16,
        }
    }
}

/// Types a key-value cache can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum KvType {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// bfloat16.
    Bf16,
    /// 8.5 bits a value.
    #[serde(rename = "q8_0")]
    Q8_0,
    /// 4.5 bits a value.
    #[serde(rename = "q4_0")]
    Q4_0,
}

impl KvType {
    /// Bytes of `n` values, `n` a multiple of 32 for the quantised types.
    pub fn bytes(self, n: u64) -> u64 {
        match self {
            Self::F32 => n * 4,
            Self::F16 | Self::Bf16 => n * 2,
            Self::Q8_0 => n / 32 * 34,
            Self::Q4_0 => n / 32 * 18,
        }
    }

    /// Whether it needs flash attention for the values.
    pub fn is_quantised(self) -> bool {
        matches!(self, Self::Q8_0 | Self::Q4_0)
    }
}

/// How the next token is chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sampling {
    /// 0: always the most likely token, so that a run can be repeated.
    pub temperature: f32,
    /// Only the most likely `top_k` tokens; 0: all.
    pub top_k: u32,
    /// Only the most likely tokens that hold this much probability together; 1: all.
    pub top_p: f32,
    /// Only tokens at least this likely, relative to the most likely; 0: all.
    pub min_p: f32,
    /// Above 1: tokens of the last `repeat_last_n` become less likely.
    pub repeat_penalty: f32,
    /// How far back `repeat_penalty` looks.
    pub repeat_last_n: u32,
    /// Seed of the draw; the same seed gives the same text.
    pub seed: u32,
    /// Most tokens of an answer; absent: to the end of the context.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.0,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            seed: 0,
            max_tokens: None,
        }
    }
}

impl Sampling {
    /// Refuses what no sampler can do.
    ///
    /// # Errors
    /// The key and the value, as text.
    pub fn check(&self) -> std::result::Result<(), String> {
        let within = |key: &str, value: f32, low: f32, high: f32| {
            if value.is_finite() && (low..=high).contains(&value) {
                return Ok(());
            }
            Err(format!("`{key}` is {value}, allowed is {low} to {high}"))
        };
        within("temperature", self.temperature, 0.0, 10.0)?;
        within("top_p", self.top_p, 0.0, 1.0)?;
        within("min_p", self.min_p, 0.0, 1.0)?;
        within("repeat_penalty", self.repeat_penalty, 0.1, 10.0)
    }
}

/// Hashes of what an expert was made from, taken from the export's receipt beside the file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Provenance {
    /// The receipt's path.
    pub receipt: PathBuf,
    /// Base model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_blake3: Option<String>,
    /// Adapter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter_blake3: Option<String>,
    /// Recipe.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recipe_blake3: Option<String>,
}

/// What a caller decides about an expert; the rest of the card is read from the file.
#[derive(Debug, Clone, Default)]
pub struct CardOptions {
    /// System message.
    pub system: Option<String>,
    /// Stop texts.
    pub stop: Vec<String>,
    /// What a change of forces a reload.
    pub load: LoadOptions,
    /// Sampling defaults.
    pub sampling: Sampling,
}

/// How thoroughly a file is hashed for its card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Digests {
    /// BLAKE3 alone: enough to know a file again.
    Blake3,
    /// Both, for the registry and servers that name models by SHA-256.
    Blake3AndSha256,
}

impl ExpertCard {
    /// Makes the card of a GGUF file, after checking that an engine can use it: it opens, its architecture is
    /// known, its tokenizer is complete, its template renders and ends a turn.
    ///
    /// # Errors
    /// [`Error::Format`], [`Error::Text`] or [`Error::Card`].
    pub fn from_file(name: &str, file: &Path, options: &CardOptions, digests: Digests) -> Result<Self> {
        let _ = (name, file, options, digests);
        todo!()
    }
}

/// Checks a name: 1 to 64 of `a-z A-Z 0-9 . _ -`, beginning with a letter or digit.
///
/// # Errors
/// [`Error::Card`].
pub fn check_name(name: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let begins_well = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if begins_well && name.len() <= 64 && name.chars().all(allowed) {
        return Ok(());
    }
    Err(Error::Card {
        expert: name.to_owned(),
        reason: "a name has 1 to 64 of the characters a-z A-Z 0-9 . _ - and begins with a letter or digit"
            .to_owned(),
    })
}
