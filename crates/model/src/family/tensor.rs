//! The tensors of a model: names and shapes in both worlds, and what moves between them.

use super::Role;
use super::table::{self, Row};
use crate::config::ModelConfig;

/// One tensor of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorSpec {
    /// Name in a Hugging Face checkpoint.
    pub hf: String,
    /// Name in a GGUF.
    pub gguf: String,
    /// Output features; 1 for a vector.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// What it does.
    pub role: Role,
    /// Index of its layer; `None` outside the layers.
    pub layer: Option<usize>,
    /// The number of heads whose rows are interleaved in a GGUF; `None` where both layouts agree.
    pub permute: Option<usize>,
    /// What memory and GGUF hold of the checkpoint's values.
    pub held: Held,
}

/// What memory and GGUF hold of a checkpoint's value v.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Held {
    /// v
    Itself,
    /// v + offset, with 1 for the gain of a norm that computes x · (1 + g).
    Plus(f32),
    /// -exp(v)
    NegatedExp,
}

impl Held {
    /// Turns a checkpoint's values into what is held.
    pub fn of(self, values: &mut [f32]) {
        match self {
            Held::Itself => {}
            Held::Plus(offset) => values.iter_mut().for_each(|value| *value += offset),
            Held::NegatedExp => values.iter_mut().for_each(|value| *value = -value.exp()),
        }
    }
}

/// Which names a source of tensors uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Naming {
    /// `model.layers.0.self_attn.q_proj.weight`
    Hf,
    /// `blk.0.attn_q.weight`
    Gguf,
}

impl TensorSpec {
    /// Number of weights.
    pub fn n_weights(&self) -> usize {
        self.rows * self.cols
    }

    /// The module's name as PEFT writes it: `model.layers.0.self_attn.q_proj`.
    pub fn module(&self) -> &str {
        self.hf.strip_suffix(".weight").unwrap_or(&self.hf)
    }

    /// The last part of the module's name, which PEFT's `target_modules` lists: `q_proj`.
    pub fn target_module(&self) -> &str {
        self.module().rsplit('.').next().unwrap_or(&self.hf)
    }

    /// The name in one of the two worlds.
    pub fn name(&self, naming: Naming) -> &str {
        match naming {
            Naming::Hf => &self.hf,
            Naming::Gguf => &self.gguf,
        }
    }

    /// The shape in PyTorch's order.
    pub fn shape(&self, naming: Naming) -> Vec<usize> {
        match (self.role, naming) {
            (Role::SsmConv, Naming::Hf) => vec![self.rows, 1, self.cols],
            (Role::SsmDecay | Role::SsmSkip | Role::SsmNorm, Naming::Hf) => vec![self.n_weights()],
            // ggml does not tell a matrix of one row from a vector, and its quantiser writes a vector.
            (Role::SsmNorm, Naming::Gguf) if self.rows == 1 => vec![self.cols],
            (Role::SsmConv | Role::SsmDecay | Role::SsmSkip | Role::SsmNorm, Naming::Gguf) => {
                vec![self.rows, self.cols]
            }
            (role, _) if role.is_vector() => vec![self.cols],
            _ => vec![self.rows, self.cols],
        }
    }

    /// The row of the Hugging Face layout that stands at `gguf_row` of a GGUF.
    ///
    /// Within a head of D rows, GGUF row 2 j + p is HF row p · D/2 + j.
    pub fn hf_row(&self, gguf_row: usize) -> usize {
        let Some(n_heads) = self.permute else { return gguf_row };
        let head_dim = self.rows / n_heads;
        let (head, within) = (gguf_row / head_dim, gguf_row % head_dim);
        head * head_dim + (within % 2) * (head_dim / 2) + within / 2
    }

    pub(super) fn new(config: &ModelConfig, row: &Row, layer: Option<usize>) -> TensorSpec {
        let Row { role, hf, gguf, is_whole } = *row;
        let (rows, cols) = config.shape(role);
        let table = config.family.table();
        let suffix = match is_whole {
            true => "",
            false if role.is_bias() => ".bias",
            false => ".weight",
        };
        let stem = table.stem;
        let (hf, gguf) = match layer {
            Some(i) => (format!("{stem}.layers.{i}.{hf}{suffix}"), format!("blk.{i}.{gguf}{suffix}")),
            None if role == Role::Output => (format!("{hf}{suffix}"), format!("{gguf}{suffix}")),
            None => (format!("{stem}.{hf}{suffix}"), format!("{gguf}{suffix}")),
        };
        let permute = match role {
            Role::Q if table.interleaved_rotation => Some(config.n_heads),
            Role::K if table.interleaved_rotation => Some(config.n_kv_heads),
            _ => None,
        };
        let held = match role {
            Role::SsmDecay => Held::NegatedExp,
            _ if role.is_vector() && !role.is_bias() && table.gain_offset != 0.0 => {
                Held::Plus(table.gain_offset)
            }
            _ => Held::Itself,
        };
        let hf = format!("{}{hf}", config.text_prefix);
        TensorSpec { hf, gguf, rows, cols, role, layer, permute, held }
    }

    pub(super) fn embedding(config: &ModelConfig) -> TensorSpec {
        let row = table::row(Role::Embedding, config.family.table().embedding, "token_embd");
        TensorSpec::new(config, &row, None)
    }
}

pub(super) const HEAD: Row = table::row(Role::Output, "lm_head", "output");

/// All tensors of a model in the order of the forward pass; no head where the model is tied.
pub fn tensors(config: &ModelConfig) -> Vec<TensorSpec> {
    let table = config.family.table();
    let mut specs = vec![TensorSpec::embedding(config)];
    for layer in 0..config.n_layers {
        specs.extend(table.layer.iter().map(|row| TensorSpec::new(config, row, Some(layer))));
    }
    specs.extend(table.last.iter().map(|row| TensorSpec::new(config, row, None)));
    if !config.tied {
        specs.push(TensorSpec::new(config, &HEAD, None));
    }
    specs
}

/// Sorts into the order of llama.cpp's quantiser: tensors outside the layers first, then by layer, then by name.
pub fn sort_for_gguf(specs: &mut [TensorSpec]) {
    specs.sort_by(|a, b| a.layer.cmp(&b.layer).then_with(|| a.gguf.as_bytes().cmp(b.gguf.as_bytes())));
}
