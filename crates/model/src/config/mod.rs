//! Hyper-parameters of a decoder, read from a Hugging Face `config.json` or from a GGUF's metadata.
//!
//! Letters elsewhere: V `vocab_size`, C `hidden`, F `intermediate`, H `n_heads`, K `n_kv_heads`, D `head_dim`.

mod gguf;
mod hf;
mod rope;

pub use gguf::gguf_metadata;
pub use rope::{Rope, RopeScaling};

use crate::family::{Family, Role};
use crate::{Error, Result};

/// Hyper-parameters of a decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// What the layers compute and what tensors are called.
    pub family: Family,
    /// Rows of the embedding, which may be more than the tokenizer has tokens (V).
    pub vocab_size: usize,
    /// Width of the residual stream (C).
    pub hidden: usize,
    /// Width of the gated MLP (F).
    pub intermediate: usize,
    /// Decoder layers.
    pub n_layers: usize,
    /// Query heads (H).
    pub n_heads: usize,
    /// Key and value heads (K), a divisor of H.
    pub n_kv_heads: usize,
    /// Width of a head (D), not always C / H.
    pub head_dim: usize,
    /// Whether `config.json` states the head width; llama.cpp's converter writes it only then.
    pub head_dim_is_stated: bool,
    /// Added to the mean square in every RMS norm.
    pub rms_eps: f32,
    /// Rotary positions.
    pub rope: Rope,
    /// Whether each query and key head passes an RMS norm.
    pub qk_norm: bool,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// Longest sequence the model was made for.
    pub max_positions: usize,
}

impl ModelConfig {
    /// Rows and columns of a tensor; a norm has one row.
    pub fn shape(&self, role: Role) -> (usize, usize) {
        let (c, f, d) = (self.hidden, self.intermediate, self.head_dim);
        match role {
            Role::Embedding | Role::Output => (self.vocab_size, c),
            Role::AttnNorm | Role::FfnNorm | Role::OutputNorm => (1, c),
            Role::QNorm | Role::KNorm => (1, d),
            Role::Q => (self.n_heads * d, c),
            Role::K | Role::V => (self.n_kv_heads * d, c),
            Role::O => (c, self.n_heads * d),
            Role::Gate | Role::Up => (f, c),
            Role::Down => (c, f),
        }
    }

    /// Number of weights, the embedding once where it is tied.
    pub fn n_weights(&self) -> usize {
        crate::family::tensors(self).iter().map(|spec| spec.n_weights()).sum()
    }

    /// Checks what every later size computation relies on: nothing zero, nothing absurd, heads that divide.
    fn validated(self, origin: &str) -> Result<ModelConfig> {
        let invalid = |key: &str, found: String, expected: &str| {
            let (key, expected) = (key.to_owned(), expected.to_owned());
            Err(Error::InvalidConfig { origin: origin.to_owned(), key, found, expected })
        };
        for (key, value, limit) in self.sizes() {
            if value == 0 || value > limit {
                return invalid(key, value.to_string(), &format!("1 to {limit}"));
            }
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            let expected = format!("a divisor of num_attention_heads {}", self.n_heads);
            return invalid("num_key_value_heads", self.n_kv_heads.to_string(), &expected);
        }
        if !self.head_dim.is_multiple_of(2) {
            return invalid("head_dim", self.head_dim.to_string(), "an even number");
        }
        if !(self.rms_eps.is_finite() && self.rms_eps > 0.0) {
            return invalid("rms_norm_eps", self.rms_eps.to_string(), "a positive number");
        }
        if !(self.rope.theta.is_finite() && self.rope.theta > 0.0) {
            return invalid("rope_theta", self.rope.theta.to_string(), "a positive number");
        }
        Ok(self)
    }

    /// Key, value and limit; the limits keep products of two sizes far from overflow.
    fn sizes(&self) -> [(&'static str, usize, usize); 8] {
        [
            ("vocab_size", self.vocab_size, 1 << 24),
            ("hidden_size", self.hidden, 1 << 20),
            ("intermediate_size", self.intermediate, 1 << 22),
            ("num_hidden_layers", self.n_layers, 1 << 12),
            ("num_attention_heads", self.n_heads, 1 << 14),
            ("num_key_value_heads", self.n_kv_heads, 1 << 14),
            ("head_dim", self.head_dim, 1 << 14),
            ("max_position_embeddings", self.max_positions, 1 << 30),
        ]
    }
}
