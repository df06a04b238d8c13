//! The tensors of a model: names and shapes in both worlds, and what moves between them.

use formats::source::Naming;

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
    /// Name of the module that holds it, as PEFT writes it.
    module: String,
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
    /// How its rows are found in a checkpoint.
    pub taken: Taken,
    /// What memory and GGUF hold of the checkpoint's values.
    pub held: Held,
}

/// How the rows of a tensor are found in a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// They are those of one tensor.
    Whole,
    /// They are those of so many tensors, one after the other, whose numbers stand where the name has a `*`.
    Stacked(usize),
    /// Each head's keys in a [`Role::KvB`], transposed.
    Keys(KvSplit),
    /// Each head's values in a [`Role::KvB`].
    Values(KvSplit),
}

/// How the rows of a [`Role::KvB`] are shared out within each head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvSplit {
    /// H
    pub n_heads: usize,
    /// Rows of the keys, which come first.
    pub keys: usize,
    /// Rows of the values.
    pub values: usize,
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

impl KvSplit {
    /// Rows of the module.
    fn rows(&self) -> usize {
        self.n_heads * self.of_head()
    }

    /// Rows of one head.
    pub(super) fn of_head(&self) -> usize {
        self.keys + self.values
    }
}

impl TensorSpec {
    /// Number of weights.
    pub fn n_weights(&self) -> usize {
        self.rows * self.cols
    }

    /// The module's name as PEFT writes it: `model.layers.0.self_attn.q_proj`.
    pub fn module(&self) -> &str {
        &self.module
    }

    /// The name in one of the two worlds.
    pub fn name(&self, naming: Naming) -> &str {
        match naming {
            Naming::Hf => &self.hf,
            Naming::Gguf => &self.gguf,
        }
    }

    /// The shape in PyTorch's order; in a checkpoint, of each of the tensors that it is made of.
    pub fn shape(&self, naming: Naming) -> Vec<usize> {
        match (self.taken, naming) {
            (Taken::Stacked(n), Naming::Hf) => return vec![self.rows / n, self.cols],
            (Taken::Stacked(n), Naming::Gguf) => return vec![n, self.rows / n, self.cols],
            (Taken::Keys(split), Naming::Hf) => return vec![split.rows(), self.rows / split.n_heads],
            (Taken::Values(split), Naming::Hf) => return vec![split.rows(), self.cols],
            (Taken::Keys(split) | Taken::Values(split), Naming::Gguf) => {
                return vec![split.n_heads, self.rows / split.n_heads, self.cols];
            }
            (Taken::Whole, _) => {}
        }
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

    /// Matrices that stand stacked under its name in a GGUF.
    pub fn n_stacked(&self) -> usize {
        match self.shape(Naming::Gguf)[..] {
            [n, _, _] => n,
            _ => 1,
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

    /// The row of a GGUF at which a row of the Hugging Face layout stands.
    pub fn gguf_row(&self, hf_row: usize) -> usize {
        let Some(n_heads) = self.permute else { return hf_row };
        let head_dim = self.rows / n_heads;
        let (head, within) = (hf_row / head_dim, hf_row % head_dim);
        head * head_dim + 2 * (within % (head_dim / 2)) + within / (head_dim / 2)
    }

    pub(super) fn new(config: &ModelConfig, row: &Row, layer: Option<usize>) -> TensorSpec {
        let Row { role, hf, gguf, is_whole, .. } = *row;
        let (rows, cols) = config.shape(role, layer);
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
        let hf = config.text_part.tensor(&hf);
        let module = config.text_part.module(&hf);
        TensorSpec { hf, gguf, module, rows, cols, role, layer, permute, taken: taken(config, role), held }
    }

    pub(super) fn embedding(config: &ModelConfig) -> TensorSpec {
        let row = table::row(Role::Embedding, config.family.table().embedding, "token_embd");
        TensorSpec::new(config, &row, None)
    }
}

fn taken(config: &ModelConfig, role: Role) -> Taken {
    let split = config.latent.map(|latent| KvSplit {
        n_heads: config.n_heads,
        keys: config.head_dim - config.rope.dim,
        values: latent.value_dim,
    });
    match (role, split, config.experts) {
        (Role::LatentKeys, Some(split), _) => Taken::Keys(split),
        (Role::LatentValues, Some(split), _) => Taken::Values(split),
        (Role::ExpertGate | Role::ExpertUp | Role::ExpertDown, _, Some(experts)) => {
            Taken::Stacked(experts.routing.n_experts)
        }
        _ => Taken::Whole,
    }
}

pub(super) const HEAD: Row = table::row(Role::Output, "lm_head", "output");

/// All tensors of a model in the order of the forward pass; no head where the model is tied.
pub fn tensors(config: &ModelConfig) -> Vec<TensorSpec> {
    let table = config.family.table();
    let mut specs = vec![TensorSpec::embedding(config)];
    for layer in 0..config.n_layers {
        let rows = table.layer.iter().filter(|row| row.is_in(config, layer));
        specs.extend(rows.map(|row| TensorSpec::new(config, row, Some(layer))));
    }
    specs.extend(table.last.iter().map(|row| TensorSpec::new(config, row, None)));
    if !config.tied {
        specs.push(TensorSpec::new(config, &HEAD, None));
    }
    specs
}

/// A linear layer of a checkpoint, as PEFT sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Linear {
    /// The module's name: `model.layers.0.self_attn.q_proj`.
    pub module: String,
    /// Index of its layer.
    pub layer: usize,
    /// What it does.
    pub role: Role,
    /// Output features.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
}

/// All linear layers that an adapter may widen, in the order of the forward pass.
pub fn linears(config: &ModelConfig) -> Vec<Linear> {
    let mut linears: Vec<Linear> = Vec::new();
    for spec in tensors(config) {
        let (Some(layer), role) = (spec.layer, spec.role.of_module()) else { continue };
        let is_another_part = linears.last().is_some_and(|last| last.module == spec.module());
        if role.is_linear() && !is_another_part {
            let ((rows, cols), module) = (config.shape(role, spec.layer), spec.module().to_owned());
            linears.push(Linear { module, layer, role, rows, cols });
        }
    }
    linears
}

/// Sorts into the order of llama.cpp's quantiser: tensors outside the layers first, then by layer, then by name.
pub fn sort_for_gguf(specs: &mut [TensorSpec]) {
    specs.sort_by(|a, b| a.layer.cmp(&b.layer).then_with(|| a.gguf.as_bytes().cmp(b.gguf.as_bytes())));
}
