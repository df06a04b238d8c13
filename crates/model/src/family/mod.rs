//! Decoder families: which tensors a model has, their names in both worlds, and their shapes.
//!
//! In memory everything is in Hugging Face's layout: rotary pairs are (i, i + D/2), so that one attention serves all
//! families. A GGUF of the Llama kind pairs (2i, 2i + 1) instead; [`TensorSpec::permute`] says which rows move.

mod llama;
mod qwen3;

use formats::TensorSource;

use crate::config::ModelConfig;
use crate::{Error, Result};

/// A decoder family: what its layers compute and what its tensors are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// Llama 2 and 3: grouped queries, no norms on queries and keys.
    Llama,
    /// Qwen3 (dense): RMS norms on each query and key head.
    Qwen3,
}

/// What a tensor does in the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Token embedding (V, C), also the head where the model is tied.
    Embedding,
    /// Norm before attention (C).
    AttnNorm,
    /// Query projection (H·D, C).
    Q,
    /// Key projection (K·D, C).
    K,
    /// Value projection (K·D, C).
    V,
    /// Output projection of the attention (C, H·D).
    O,
    /// Norm of each query head (D).
    QNorm,
    /// Norm of each key head (D).
    KNorm,
    /// Norm before the gated MLP (C).
    FfnNorm,
    /// Gate projection (F, C).
    Gate,
    /// Up projection (F, C).
    Up,
    /// Down projection (C, F).
    Down,
    /// Last norm (C).
    OutputNorm,
    /// Head (V, C) of a model that is not tied.
    Output,
}

/// The seven linear layers of a decoder layer, in the order of the forward pass.
pub const LINEAR_ROLES: [Role; 7] = [Role::Q, Role::K, Role::V, Role::O, Role::Gate, Role::Up, Role::Down];

/// One tensor of a model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    /// Name in a Hugging Face checkpoint.
    pub hf: String,
    /// Name in a GGUF.
    pub gguf: String,
    /// Output features; 1 for a norm.
    pub rows: usize,
    /// Input features.
    pub cols: usize,
    /// What it does.
    pub role: Role,
    /// Index of its layer; `None` outside the layers.
    pub layer: Option<usize>,
    /// The number of heads whose rows are interleaved in a GGUF; `None` where both layouts agree.
    pub permute: Option<usize>,
}

/// Which names a source of tensors uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Naming {
    /// `model.layers.0.self_attn.q_proj.weight`
    Hf,
    /// `blk.0.attn_q.weight`
    Gguf,
}

impl Family {
    /// All families, for messages and tests.
    pub const ALL: [Family; 2] = [Family::Llama, Family::Qwen3];

    /// `architectures[0]` of the family's `config.json`.
    pub fn hf_architecture(self) -> &'static str {
        match self {
            Family::Llama => llama::HF_ARCHITECTURE,
            Family::Qwen3 => qwen3::HF_ARCHITECTURE,
        }
    }

    /// `general.architecture` of the family's GGUFs.
    pub fn gguf_architecture(self) -> &'static str {
        match self {
            Family::Llama => llama::GGUF_ARCHITECTURE,
            Family::Qwen3 => qwen3::GGUF_ARCHITECTURE,
        }
    }

    /// Whether each query and key head passes an RMS norm before the rotation.
    pub fn has_qk_norm(self) -> bool {
        self == Family::Qwen3
    }
}

impl Role {
    /// Whether this is one of the seven linear layers that an adapter may widen.
    pub fn is_linear(self) -> bool {
        LINEAR_ROLES.contains(&self)
    }

    /// Whether this is a norm's vector: 1-D, never quantised.
    pub fn is_norm(self) -> bool {
        matches!(self, Role::AttnNorm | Role::QNorm | Role::KNorm | Role::FfnNorm | Role::OutputNorm)
    }

    /// The module's name inside its layer in a Hugging Face checkpoint, as in `self_attn.q_proj`.
    fn hf_module(self) -> &'static str {
        match self {
            Role::Embedding => "embed_tokens",
            Role::AttnNorm => "input_layernorm",
            Role::Q => "self_attn.q_proj",
            Role::K => "self_attn.k_proj",
            Role::V => "self_attn.v_proj",
            Role::O => "self_attn.o_proj",
            Role::QNorm => "self_attn.q_norm",
            Role::KNorm => "self_attn.k_norm",
            Role::FfnNorm => "post_attention_layernorm",
            Role::Gate => "mlp.gate_proj",
            Role::Up => "mlp.up_proj",
            Role::Down => "mlp.down_proj",
            Role::OutputNorm => "norm",
            Role::Output => "lm_head",
        }
    }

    /// The tensor's stem in a GGUF, as in `attn_q`.
    fn gguf_stem(self) -> &'static str {
        match self {
            Role::Embedding => "token_embd",
            Role::AttnNorm => "attn_norm",
            Role::Q => "attn_q",
            Role::K => "attn_k",
            Role::V => "attn_v",
            Role::O => "attn_output",
            Role::QNorm => "attn_q_norm",
            Role::KNorm => "attn_k_norm",
            Role::FfnNorm => "ffn_norm",
            Role::Gate => "ffn_gate",
            Role::Up => "ffn_up",
            Role::Down => "ffn_down",
            Role::OutputNorm => "output_norm",
            Role::Output => "output",
        }
    }

    /// The last part of the module's name, which PEFT's `target_modules` lists: `q_proj`.
    pub fn target_module(self) -> &'static str {
        let module = self.hf_module();
        module.rsplit('.').next().unwrap_or(module)
    }
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

    /// The name in one of the two worlds.
    pub fn name(&self, naming: Naming) -> &str {
        match naming {
            Naming::Hf => &self.hf,
            Naming::Gguf => &self.gguf,
        }
    }

    /// The shape in PyTorch's order.
    pub fn shape(&self) -> Vec<usize> {
        if self.role.is_norm() { vec![self.cols] } else { vec![self.rows, self.cols] }
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

    fn new(config: &ModelConfig, role: Role, layer: Option<usize>) -> TensorSpec {
        let (rows, cols) = config.shape(role);
        let (hf, gguf) = match layer {
            Some(i) => (
                format!("model.layers.{i}.{}.weight", role.hf_module()),
                format!("blk.{i}.{}.weight", role.gguf_stem()),
            ),
            None if role == Role::Output => ("lm_head.weight".to_owned(), "output.weight".to_owned()),
            None => (format!("model.{}.weight", role.hf_module()), format!("{}.weight", role.gguf_stem())),
        };
        let permute = match (config.family, role) {
            (Family::Llama, Role::Q) => Some(config.n_heads),
            (Family::Llama, Role::K) => Some(config.n_kv_heads),
            _ => None,
        };
        TensorSpec { hf, gguf, rows, cols, role, layer, permute }
    }
}

/// All tensors of a model in the order of the forward pass; no head where the model is tied.
pub fn tensors(config: &ModelConfig) -> Vec<TensorSpec> {
    let layer_roles: &[Role] = match config.family {
        Family::Llama => &llama::LAYER_ROLES,
        Family::Qwen3 => &qwen3::LAYER_ROLES,
    };
    let mut specs = vec![TensorSpec::new(config, Role::Embedding, None)];
    for layer in 0..config.n_layers {
        specs.extend(layer_roles.iter().map(|&role| TensorSpec::new(config, role, Some(layer))));
    }
    specs.push(TensorSpec::new(config, Role::OutputNorm, None));
    if !config.tied {
        specs.push(TensorSpec::new(config, Role::Output, None));
    }
    specs
}

/// Sorts into the order of llama.cpp's quantiser: tensors outside the layers first, then by layer, then by name.
pub fn sort_for_gguf(specs: &mut [TensorSpec]) {
    specs.sort_by(|a, b| a.layer.cmp(&b.layer).then_with(|| a.gguf.as_bytes().cmp(b.gguf.as_bytes())));
}

/// Checks that a source holds exactly the tensors of `config`, each in its shape.
///
/// Two surplus tensors are known and accepted: the head that Qwen3-0.6B ships although it is tied (transformers and
/// llama.cpp use the embedding), and rotary tables, which are computed here.
///
/// # Errors
/// [`Error::MissingTensor`], [`Error::SurplusTensor`], [`Error::TensorShape`].
pub fn check(config: &ModelConfig, source: &dyn TensorSource, naming: Naming) -> Result<()> {
    let mut expected = tensors(config);
    let missing: Vec<&str> =
        expected.iter().map(|spec| spec.name(naming)).filter(|name| source.shape(name).is_none()).collect();
    if let Some(name) = missing.first() {
        let (n_missing, n_expected) = (missing.len(), expected.len());
        return Err(Error::MissingTensor { name: (*name).to_owned(), n_missing, n_expected });
    }
    if config.tied {
        expected.push(TensorSpec::new(config, Role::Output, None));
    }
    check_shapes(&expected, source, naming)?;
    check_surplus(config, &expected, source, naming)
}

fn check_shapes(expected: &[TensorSpec], source: &dyn TensorSource, naming: Naming) -> Result<()> {
    for spec in expected {
        let name = spec.name(naming);
        match source.shape(name) {
            Some(found) if found != spec.shape() => {
                return Err(Error::TensorShape { name: name.to_owned(), found, expected: spec.shape() });
            }
            _ => {}
        }
    }
    Ok(())
}

fn check_surplus(
    config: &ModelConfig,
    expected: &[TensorSpec],
    source: &dyn TensorSource,
    naming: Naming,
) -> Result<()> {
    let known: std::collections::HashSet<&str> = expected.iter().map(|spec| spec.name(naming)).collect();
    let is_surplus = |name: &String| !known.contains(name.as_str()) && !is_rotary_table(name);
    let mut surplus: Vec<String> = source.tensor_names().into_iter().filter(is_surplus).collect();
    surplus.sort();
    match surplus.first() {
        None => Ok(()),
        Some(name) => Err(Error::SurplusTensor {
            name: name.clone(),
            family: config.family.hf_architecture(),
            n_surplus: surplus.len(),
        }),
    }
}

/// Tables that old checkpoints and GGUFs carry and that follow from the configuration.
fn is_rotary_table(name: &str) -> bool {
    name.ends_with(".rotary_emb.inv_freq") || name == "rope_freqs.weight"
}
