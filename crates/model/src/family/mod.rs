//! Decoder families: which tensors a model has, their names in both worlds, and their shapes.
//!
//! In memory everything is in Hugging Face's layout: rotary pairs are (i, i + D/2), so that one attention serves all
//! families. A GGUF of the Llama kind pairs (2i, 2i + 1) instead; [`TensorSpec::permute`] says which rows move. Each family has a
//! file with its one table.

mod check;
mod deepseek2;
mod gemma3;
mod llama;
mod mamba2;
mod phi3;
mod qwen2;
mod qwen3;
mod read;
mod role;
mod starcoder2;
mod table;
mod tensor;
mod text_part;

pub use check::{check, check_tied_head, check_types};
pub use formats::source::Naming;
pub use read::Change;
pub use role::{LINEAR_ROLES, Role};
pub use tensor::{Held, KvSplit, Linear, Taken, TensorSpec, linears, sort_for_gguf, tensors};
pub use text_part::{TextPart, newer_module};

use formats::config::HfConfig;

use crate::config::{GgufKeys, GgufValues, ModelConfig};
use crate::{Error, Result};
use table::Table;

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
    /// DeepSeek-V2-Lite, DeepSeek-Coder-V2-Lite: latent attention, routed experts.
    DeepSeek2,
}

impl Family {
    /// All families, for messages and tests.
    pub const ALL: [Family; 8] = [
        Family::Llama,
        Family::Qwen2,
        Family::Qwen3,
        Family::Phi3,
        Family::Gemma3,
        Family::StarCoder2,
        Family::Mamba2,
        Family::DeepSeek2,
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
            Family::DeepSeek2 => &deepseek2::TABLE,
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

    /// Whether a layer has a tensor of this role, or a module of which tensors are parts.
    pub fn has(self, role: Role) -> bool {
        self.table().layer.iter().any(|row| row.role == role || row.role.of_module() == role)
    }

    /// The linear layers that an adapter may widen, with the names that PEFT's `target_modules` gives them: `q_proj`.
    pub fn targets(self) -> impl Iterator<Item = (Role, &'static str)> {
        let mut targets: Vec<(Role, &'static str)> = Vec::new();
        for row in self.table().layer {
            let target = (row.role.of_module(), row.hf.rsplit('.').next().unwrap_or(row.hf));
            if target.0.is_linear() && !targets.contains(&target) {
                targets.push(target);
            }
        }
        targets.into_iter()
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
