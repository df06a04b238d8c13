//! Decoder families: which tensors a model has, their names in both worlds, and their shapes.
//!
//! In memory everything is in Hugging Face's layout: rotary pairs are (i, i + D/2), so that one attention serves all
//! families. A GGUF of the Llama kind pairs (2i, 2i + 1) instead; [`TensorSpec::permute`] says which rows move. Each family has a
//! file with its one table.

mod gemma3;
mod llama;
mod mamba2;
mod phi3;
mod qwen2;
mod qwen3;
mod starcoder2;
mod table;

use formats::TensorSource;
use formats::config::HfConfig;

use crate::config::{GgufKeys, GgufValues, ModelConfig};
use crate::{Error, Result};
use table::{Row, Table};

/// A decoder family: what its layers compute and what its tensors are called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// Llama 2 and 3, Mistral: grouped queries, no norms on queries and keys.
    Llama,
    /// Qwen2 and Qwen2.5: biases on queries, keys and values.
    Qwen2,
    /// Qwen3 (dense): RMS norms on each query and key head.
    Qwen3,
    /// Phi-3, Phi-3.5, Phi-4-mini: fused projections, partial rotation, longrope.
    Phi3,
    /// Gemma 3, text: norms around each half, local and global layers.
    Gemma3,
    /// StarCoder2: LayerNorm, biases, no gate.
    StarCoder2,
    /// Mamba-2, Mamba-Codestral: state-space mixers, no attention.
    Mamba2,
}

/// What a tensor does in the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Token embedding (V, C), also the head where the model is tied.
    Embedding,
    /// Norm before attention, or before a layer's mixer (C).
    AttnNorm,
    /// Query projection (H·D, C).
    Q,
    /// Key projection (K·D, C).
    K,
    /// Value projection (K·D, C).
    V,
    /// Query, key and value projection in one matrix (H·D + 2·K·D, C).
    Qkv,
    /// Output projection of the attention (C, H·D).
    O,
    /// Norm of each query head (D).
    QNorm,
    /// Norm of each key head (D).
    KNorm,
    /// Norm of the attention's output, before it joins the stream (C).
    PostAttnNorm,
    /// Norm before the MLP (C).
    FfnNorm,
    /// Gate projection (F, C).
    Gate,
    /// Up projection (F, C).
    Up,
    /// Gate and up projection in one matrix (2·F, C).
    GateUp,
    /// Down projection (C, F).
    Down,
    /// Norm of the MLP's output, before it joins the stream (C).
    PostFfnNorm,
    /// Last norm (C).
    OutputNorm,
    /// Head (V, C) of a model that is not tied.
    Output,
    /// Bias of the norm before attention (C).
    AttnNormBias,
    /// Bias of the queries (H·D).
    QBias,
    /// Bias of the keys (K·D).
    KBias,
    /// Bias of the values (K·D).
    VBias,
    /// Bias of the attention's output projection (C).
    OBias,
    /// Bias of the norm before the MLP (C).
    FfnNormBias,
    /// Bias of the up projection (F).
    UpBias,
    /// Bias of the down projection (C).
    DownBias,
    /// Bias of the last norm (C).
    OutputNormBias,
    /// Input projection of a state-space mixer: gate, convolved inputs, step sizes (I + W + H, C).
    ///
    /// Letters as in [`crate::device::StateSpace`].
    SsmIn,
    /// Those of its rows that make the gate (I, C).
    SsmGate,
    /// Those that make what is convolved: inputs, B and C (W, C).
    SsmMixed,
    /// Those that make the step sizes (H, C).
    SsmStep,
    /// Kernels of the causal convolution (W, k).
    SsmConv,
    /// Its bias (W).
    SsmConvBias,
    /// Bias of the step sizes (H).
    SsmStepBias,
    /// A, the decay of each head's state (H, 1): -exp of what a checkpoint holds.
    SsmDecay,
    /// D, how much of each head's input goes past its state (H, 1).
    SsmSkip,
    /// Norm of the gated output, group by group (G, I / G).
    SsmNorm,
    /// Output projection of a state-space mixer (C, I). Not among [`LINEAR_ROLES`]: PEFT refuses to adapt it, since
    /// the mixer's fused kernels read its weights past an adapter, and an adapter is to load there.
    SsmOut,
}

/// The linear layers that decoder layers have in one family or another, in the order of the forward pass.
pub const LINEAR_ROLES: [Role; 10] = [
    Role::Q,
    Role::K,
    Role::V,
    Role::Qkv,
    Role::O,
    Role::Gate,
    Role::Up,
    Role::GateUp,
    Role::Down,
    Role::SsmIn,
];

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

impl Family {
    /// All families, for messages and tests.
    pub const ALL: [Family; 7] = [
        Family::Llama,
        Family::Qwen2,
        Family::Qwen3,
        Family::Phi3,
        Family::Gemma3,
        Family::StarCoder2,
        Family::Mamba2,
    ];

    fn table(self) -> &'static Table {
        match self {
            Family::Llama => &llama::TABLE,
            Family::Qwen2 => &qwen2::TABLE,
            Family::Qwen3 => &qwen3::TABLE,
            Family::Phi3 => &phi3::TABLE,
            Family::Gemma3 => &gemma3::TABLE,
            Family::StarCoder2 => &starcoder2::TABLE,
            Family::Mamba2 => &mamba2::TABLE,
        }
    }

    /// The family of a checkpoint whose `config.json` names a class, or only a `model_type`.
    pub fn of_checkpoint(hf: &HfConfig) -> Option<Family> {
        let knows = |family: &Family| match hf.architectures.first() {
            Some(class) => family.table().hf_architectures.contains(&class.as_str()),
            None => family.table().model_types.contains(&hf.model_type.as_str()),
        };
        Family::ALL.into_iter().find(knows)
    }

    /// The classes of transformers whose checkpoints the family reads, the best known first.
    pub fn hf_architectures(self) -> &'static [&'static str] {
        self.table().hf_architectures
    }

    /// `general.architecture` of the family's GGUFs.
    pub fn gguf_architecture(self) -> &'static str {
        self.table().gguf_architecture
    }

    /// Whether a layer has a tensor of this role.
    pub fn has(self, role: Role) -> bool {
        self.table().layer.iter().any(|row| row.role == role)
    }

    /// The linear layers that an adapter may widen, with the names that PEFT's `target_modules` gives them: `q_proj`.
    pub fn targets(self) -> impl Iterator<Item = (Role, &'static str)> {
        let linears = self.table().layer.iter().filter(|row| row.role.is_linear());
        linears.map(|row| (row.role, row.hf.rsplit('.').next().unwrap_or(row.hf)))
    }

    pub(crate) fn read_hf(self, hf: &HfConfig, config: &mut ModelConfig) -> Result<()> {
        (self.table().read_hf)(hf, config)
    }

    pub(crate) fn read_gguf(self, keys: &GgufKeys<'_>, config: &mut ModelConfig) -> Result<()> {
        (self.table().read_gguf)(keys, config)
    }

    pub(crate) fn write_gguf(self, config: &ModelConfig, values: &mut GgufValues) {
        (self.table().write_gguf)(config, values);
    }
}

/// Refuses a key of `config.json` that asks for what the family does not compute.
fn refuse<T>(hf: &HfConfig, key: &str, found: impl ToString, supported: &str) -> Result<T> {
    Err(Error::UnsupportedFeature {
        origin: hf.path.display().to_string(),
        key: key.to_owned(),
        found: found.to_string(),
        supported: supported.to_owned(),
    })
}

fn refuse_biases(hf: &HfConfig) -> Result<()> {
    for (key, flag) in [("attention_bias", hf.attention_bias), ("mlp_bias", hf.mlp_bias)] {
        if flag == Some(true) {
            return refuse(hf, key, true, "false");
        }
    }
    Ok(())
}

/// Qwen's files state a window that is not used.
fn refuse_window(hf: &HfConfig) -> Result<()> {
    match hf.sliding_window.filter(|_| hf.use_sliding_window == Some(true)) {
        Some(window) => refuse(hf, "sliding_window", window, "none (`use_sliding_window` false)"),
        None => Ok(()),
    }
}

impl Role {
    /// Whether this is a linear layer that an adapter may widen.
    pub fn is_linear(self) -> bool {
        LINEAR_ROLES.contains(&self)
    }

    /// Whether this is a gain, a bias or the like: small, held in 32 bits, never quantised.
    pub fn is_vector(self) -> bool {
        !self.is_linear() && !matches!(self, Role::Embedding | Role::Output | Role::SsmOut)
    }

    fn is_bias(self) -> bool {
        use Role::{AttnNormBias, DownBias, FfnNormBias, KBias, OBias, OutputNormBias, QBias, UpBias, VBias};
        use Role::{SsmConvBias, SsmStepBias};
        matches!(
            self,
            AttnNormBias | QBias | KBias | VBias | OBias | FfnNormBias | UpBias | DownBias | OutputNormBias
        ) || matches!(self, SsmConvBias | SsmStepBias)
    }

    /// The bias that belongs to a linear layer or a norm, in families that have one.
    pub(crate) fn bias(self) -> Option<Role> {
        Some(match self {
            Role::AttnNorm => Role::AttnNormBias,
            Role::Q => Role::QBias,
            Role::K => Role::KBias,
            Role::V => Role::VBias,
            Role::O => Role::OBias,
            Role::FfnNorm => Role::FfnNormBias,
            Role::Up => Role::UpBias,
            Role::Down => Role::DownBias,
            Role::OutputNorm => Role::OutputNormBias,
            _ => return None,
        })
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

    fn new(config: &ModelConfig, row: &Row, layer: Option<usize>) -> TensorSpec {
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

    fn embedding(config: &ModelConfig) -> TensorSpec {
        let row = table::row(Role::Embedding, config.family.table().embedding, "token_embd");
        TensorSpec::new(config, &row, None)
    }
}

const HEAD: Row = table::row(Role::Output, "lm_head", "output");

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
        expected.push(TensorSpec::new(config, &HEAD, None));
    }
    check_shapes(&expected, source, naming)?;
    check_surplus(config, &expected, source, naming)
}

/// Checks that every weight of a checkpoint is of a type that can be read, without reading any.
///
/// # Errors
/// [`formats::Error::UnknownType`], for 8-bit floats say.
pub fn check_types(config: &ModelConfig, source: &dyn TensorSource) -> Result<()> {
    for spec in tensors(config) {
        source.read_rows(&spec.hf, 0..0, &mut Vec::new())?;
    }
    Ok(())
}

/// Checks that the head which a tied model's checkpoint ships nevertheless is its embedding.
///
/// transformers takes such a head where it differs, llama.cpp the embedding: there is no one right model then.
///
/// # Errors
/// [`Error::TiedHead`], and what reading meets.
pub fn check_tied_head(config: &ModelConfig, source: &dyn TensorSource) -> Result<()> {
    let (head, embedding) = (TensorSpec::new(config, &HEAD, None), TensorSpec::embedding(config));
    if !config.tied || source.shape(&head.hf).is_none() {
        return Ok(());
    }
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for first in (0..head.rows).step_by(COMPARED_ROWS) {
        let rows = first..(first + COMPARED_ROWS).min(head.rows);
        source.read_rows(&embedding.hf, rows.clone(), &mut ours)?;
        source.read_rows(&head.hf, rows, &mut theirs)?;
        let differs = |(a, b): (&f32, &f32)| a.to_bits() != b.to_bits();
        if let Some(at) = ours.iter().zip(&theirs).position(differs) {
            let row = first + at / head.cols;
            return Err(Error::TiedHead { head: head.hf, embedding: embedding.hf, row });
        }
    }
    Ok(())
}

/// Rows that are compared at once.
const COMPARED_ROWS: usize = 1024;

fn check_shapes(expected: &[TensorSpec], source: &dyn TensorSource, naming: Naming) -> Result<()> {
    for spec in expected {
        let name = spec.name(naming);
        match source.shape(name) {
            // A file that no quantiser has written may hold a matrix of one row where others hold a vector.
            Some(found)
                if naming == Naming::Gguf && found.strip_prefix(&[1]) == Some(&spec.shape(naming)) => {}
            Some(found) if found != spec.shape(naming) => {
                return Err(Error::TensorShape {
                    name: name.to_owned(),
                    found,
                    expected: spec.shape(naming),
                });
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
    let is_surplus = |name: &String| {
        !known.contains(name.as_str()) && !is_rotary_table(name) && !is_of_another_medium(config, name)
    };
    let mut surplus: Vec<String> = source.tensor_names().into_iter().filter(is_surplus).collect();
    surplus.sort();
    match surplus.first() {
        None => Ok(()),
        Some(name) => Err(Error::SurplusTensor {
            name: name.clone(),
            family: config.family.hf_architectures()[0],
            n_surplus: surplus.len(),
        }),
    }
}

/// Tables that old checkpoints and GGUFs carry and that follow from the configuration.
fn is_rotary_table(name: &str) -> bool {
    let computed = ["rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"];
    name.ends_with(".rotary_emb.inv_freq") || computed.contains(&name)
}

/// Tensors of a vision tower beside the language model, which is read alone.
fn is_of_another_medium(config: &ModelConfig, name: &str) -> bool {
    !config.text_prefix.is_empty() && !name.starts_with(config.text_prefix)
}
