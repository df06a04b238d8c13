//! One table a family: every tensor of a layer, what it is called in both worlds, and what the converter does to it.

use formats::config::HfConfig;

use super::Role;
use crate::Result;
use crate::config::{GgufKeys, GgufValues, ModelConfig};

/// A tensor of a decoder layer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row {
    pub role: Role,
    /// Its module inside the layer of a Hugging Face checkpoint: `self_attn.q_proj`.
    pub hf: &'static str,
    /// Its stem in a GGUF: `attn_q`.
    pub gguf: &'static str,
    /// Whether both names are whole: no `.weight` or `.bias` follows.
    pub is_whole: bool,
    /// The layers that have it.
    pub layers: Layers,
}

/// Which layers of a model have a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layers {
    /// Every one.
    All,
    /// Those without routed experts.
    Dense,
    /// Those with routed experts.
    Routed,
}

pub(super) const fn row(role: Role, hf: &'static str, gguf: &'static str) -> Row {
    Row { role, hf, gguf, is_whole: false, layers: Layers::All }
}

/// A tensor that is no `weight` or `bias` of a module.
pub(super) const fn whole(role: Role, hf: &'static str, gguf: &'static str) -> Row {
    Row { is_whole: true, ..row(role, hf, gguf) }
}

/// A tensor of the layers without routed experts.
pub(super) const fn dense(role: Role, hf: &'static str, gguf: &'static str) -> Row {
    Row { layers: Layers::Dense, ..row(role, hf, gguf) }
}

/// A tensor of the layers with routed experts; `*` in its name stands for the number of each.
pub(super) const fn routed(role: Role, hf: &'static str, gguf: &'static str) -> Row {
    Row { layers: Layers::Routed, ..row(role, hf, gguf) }
}

impl Row {
    /// Whether a layer of the model has it.
    pub(super) fn is_in(&self, config: &ModelConfig, layer: usize) -> bool {
        match self.layers {
            Layers::All => true,
            Layers::Dense => !config.is_routed(layer),
            Layers::Routed => config.is_routed(layer),
        }
    }
}

/// Everything that sets a family apart.
pub(super) struct Table {
    /// The classes of transformers whose checkpoints it reads; the first is the one that messages name.
    pub hf_architectures: &'static [&'static str],
    /// `model_type` of a `config.json` that names no class.
    pub model_types: &'static [&'static str],
    /// `general.architecture` of its GGUFs.
    pub gguf_architecture: &'static str,
    /// What the names of a checkpoint's tensors begin with, the head's apart: `model`.
    pub stem: &'static str,
    /// Its embedding's module after that: `embed_tokens`.
    pub embedding: &'static str,
    /// A layer's tensors in the order of the forward pass.
    pub layer: &'static [Row],
    /// Those after the last layer, without the head.
    pub last: &'static [Row],
    /// Whether a GGUF interleaves the rows of rotated heads: pairs (2i, 2i + 1) instead of (i, i + D/2).
    pub interleaved_rotation: bool,
    /// What memory and GGUF add to the gain of a checkpoint's norms: 1 where the model computes x · (1 + g).
    pub gain_offset: f32,
    /// Sets what the family's `config.json` says beyond the keys that all have, or refuses it.
    pub read_hf: fn(&HfConfig, &mut ModelConfig) -> Result<()>,
    /// The same from a GGUF's metadata.
    pub read_gguf: fn(&GgufKeys<'_>, &mut ModelConfig) -> Result<()>,
    /// The keys that the family's GGUFs have beyond those that all have.
    pub write_gguf: fn(&ModelConfig, &mut GgufValues),
}

/// The last norm of most families.
pub(super) const OUTPUT_NORM: &[Row] = &[row(Role::OutputNorm, "norm", "output_norm")];
