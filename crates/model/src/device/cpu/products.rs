//! By which instructions products with frozen weights and attention are made.

#[cfg(target_arch = "x86_64")]
use super::packed;
use crate::device::Precision;

/// A way to multiply, each for one kind of processor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProductKernel {
    /// bf16 in tile registers, AMX.
    AmxBf16,
    /// bf16 in vectors, AVX-512 BF16.
    Avx512Bf16,
    /// f32 in vectors of sixteen, AVX-512.
    Avx512F32,
    /// f32 in vectors of eight, AVX2 and FMA.
    Avx2F32,
    /// f32 on any processor: weights are unpacked to a dense tile, which the `gemm` crate multiplies.
    Portable,
}

impl ProductKernel {
    /// All of them, the fastest of a precision first.
    pub const ALL: [ProductKernel; 5] =
        [Self::AmxBf16, Self::Avx512Bf16, Self::Avx512F32, Self::Avx2F32, Self::Portable];

    /// Bits of the factors.
    pub fn precision(self) -> Precision {
        match self {
            Self::AmxBf16 | Self::Avx512Bf16 => Precision::BF16,
            Self::Avx512F32 | Self::Avx2F32 | Self::Portable => Precision::F32,
        }
    }

    /// Whether this processor has the instructions.
    pub fn is_possible(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        if packed::is_possible(self) {
            return true;
        }
        self == Self::Portable
    }

    /// The fastest of a precision on this processor.
    pub fn best(precision: Precision) -> Option<Self> {
        Self::ALL.into_iter().find(|kernel| kernel.precision() == precision && kernel.is_possible())
    }
}
