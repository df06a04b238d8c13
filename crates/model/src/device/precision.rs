//! In how many bits products with frozen weights are made.

use std::fmt;

use serde::{Deserialize, Serialize};

/// In how many bits the factors of products with frozen weights are; sums are always in 32.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// 32-bit floats.
    #[default]
    F32,
    /// Weights and activations rounded to bf16, as QLoRA computes: twice as fast or more where a processor has
    /// instructions for it. A factor is off by at most 2^-9 of itself.
    BF16,
    /// Weights and activations rounded to whole numbers of thirteen bits, 64 neighbours along a sum with a common scale:
    /// where a processor has no bf16, or a slow one; with AVX2 alone a quarter faster than f32. A factor is off by at most 1/8190 of the largest of its 64. The
    /// adapter's own products are in f32.
    Int16,
    /// Weights and activations rounded to whole numbers of eight bits, 64 neighbours along a sum with a common scale:
    /// twice as fast as bf16 or more, and two and a half times as fast as f32 on processors with AVX-VNNI and no AVX-512.
    /// A factor is off by at most 1/254 of the largest of its 64. The adapter's own
    /// products are of floats, attention is in bf16 or as with [`Precision::Int16`].
    Int8,
}

impl Precision {
    /// Processors' instructions for it.
    pub fn instructions(self) -> &'static str {
        match self {
            Self::F32 => "any",
            Self::BF16 => "AMX or AVX-512 BF16",
            Self::Int16 => "AVX2",
            Self::Int8 => "AVX-512 VNNI or AVX-VNNI",
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::BF16 => "bf16",
            Self::Int16 => "int16",
            Self::Int8 => "int8",
        })
    }
}
