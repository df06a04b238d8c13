//! `config.json` and `generation_config.json` of a Hugging Face model directory.
use std::path::{Path, PathBuf};

use crate::Result;

/// The fields of `config.json` that decide how a decoder model computes.
///
/// Fields which the file may leave out have the default of transformers, or are `None` where it differs by family.
#[derive(Debug, Clone, PartialEq)]
pub struct HfConfig {
    /// The file.
    pub path: PathBuf,
    /// `architectures`, such as `["Qwen3ForCausalLM"]`.
    pub architectures: Vec<String>,
    /// `model_type`, such as `qwen3`.
    pub model_type: String,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; as many as query heads when the file is silent.
    pub num_key_value_heads: usize,
    /// Width of a head; hidden size / heads when the file is silent.
    pub head_dim: usize,
    /// Epsilon of the RMS norms; 1e-6 when the file is silent.
    pub rms_norm_eps: f64,
    /// Base of the rotary embedding; 10000 when the file is silent.
    pub rope_theta: f64,
    /// `rope_scaling` (or `rope_parameters` of newer files) as it stands; `None` when absent, null, or plain.
    pub rope_scaling: Option<serde_json::Value>,
    /// Whether the output matrix is the embedding; `None` when the file is silent.
    pub tie_word_embeddings: Option<bool>,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Longest context the model was made for.
    pub max_position_embeddings: Option<usize>,
    /// Biases of q, k, v, o; `None` when the file is silent.
    pub attention_bias: Option<bool>,
    /// Biases of the MLP; `None` when the file is silent.
    pub mlp_bias: Option<bool>,
    /// Beginning of text.
    pub bos_token_id: Option<u32>,
    /// Ends of text; a single id in the file is a list of one.
    pub eos_token_ids: Vec<u32>,
    /// Window of the attention, when the file has one.
    pub sliding_window: Option<usize>,
    /// Whether the window is used; `None` when the file is silent.
    pub use_sliding_window: Option<bool>,
    /// Activation of the MLP, such as `silu`.
    pub hidden_act: Option<String>,
    /// `torch_dtype` (newer files: `dtype`), such as `bfloat16`.
    pub torch_dtype: Option<String>,
    /// Everything the file holds.
    pub raw: serde_json::Value,
}

impl HfConfig {
    /// Reads `config.json` of a model directory.
    ///
    /// # Errors
    /// [`crate::Error::MissingFile`], [`crate::Error::Json`], [`crate::Error::Key`], [`crate::Error::MissingKey`].
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let _ = dir;
        todo!()
    }
}

/// `generation_config.json`: when to stop and how to sample, as the model's makers advise.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GenerationConfig {
    /// Beginning of text.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a generation.
    pub eos_token_ids: Vec<u32>,
    /// Padding.
    pub pad_token_id: Option<u32>,
    /// Sampling temperature.
    pub temperature: Option<f32>,
    /// Sampling keeps this many tokens.
    pub top_k: Option<u32>,
    /// Sampling keeps this much probability.
    pub top_p: Option<f32>,
    /// Whether to sample at all.
    pub do_sample: Option<bool>,
}

impl GenerationConfig {
    /// Reads `generation_config.json`; `None` when the directory has none.
    ///
    /// # Errors
    /// [`crate::Error::Json`], [`crate::Error::Key`].
    pub fn from_dir(dir: &Path) -> Result<Option<Self>> {
        let _ = dir;
        todo!()
    }
}
