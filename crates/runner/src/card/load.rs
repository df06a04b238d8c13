//! What is fixed when an expert is loaded: a change of any of it is another load.

use std::fmt;

use serde::{Deserialize, Serialize};

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
    /// Type of the cached values; a quantised one needs flash attention.
    pub kv_type_v: KvType,
    /// Whether attention is computed without a row of scores for each token and head.
    pub flash_attention: FlashAttention,
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
            flash_attention: FlashAttention::Auto,
        }
    }
}

impl LoadOptions {
    /// Refuses what no engine can do.
    ///
    /// # Errors
    /// The keys and their values, as text.
    pub fn check(&self) -> Result<(), String> {
        if self.num_batch == 0 {
            return Err("`num_batch` is 0, at least 1 token is read at once".to_owned());
        }
        if self.kv_type_v.is_quantised() && self.flash_attention == FlashAttention::Off {
            return Err(format!("values of type {} need flash attention, which is off", self.kv_type_v));
        }
        Ok(())
    }
}

/// Whether flash attention is used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FlashAttention {
    /// Where the device has it for the model.
    #[default]
    Auto,
    /// Yes; a load on a device that has it not is refused.
    On,
    /// No: the compute buffer then holds the scores of all heads of a piece.
    Off,
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
            Self::F32 => n.saturating_mul(4),
            Self::F16 | Self::Bf16 => n.saturating_mul(2),
            Self::Q8_0 => (n / 32).saturating_mul(34),
            Self::Q4_0 => (n / 32).saturating_mul(18),
        }
    }

    /// Whether it needs flash attention for the values.
    pub fn is_quantised(self) -> bool {
        matches!(self, Self::Q8_0 | Self::Q4_0)
    }
}

impl fmt::Display for KvType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::Q8_0 => "q8_0",
            Self::Q4_0 => "q4_0",
        })
    }
}
