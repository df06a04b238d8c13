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
    /// Whole numbers of thirteen bits in vectors, AVX-512 VNNI.
    Avx512Int16,
    /// Whole numbers of eight bits in vectors, AVX-512 VNNI.
    Avx512Int8,
    /// Whole numbers of thirteen bits in vectors of eight words, AVX-VNNI.
    AvxVnniInt16,
    /// The same by two instructions, AVX2.
    Avx2Int16,
    /// Whole numbers of eight bits in vectors of eight words, AVX-VNNI.
    AvxVnniInt8,
    /// f32 on any processor: weights are unpacked to a dense tile, which the `gemm` crate multiplies.
    Portable,
}

impl ProductKernel {
    /// All of them, the fastest of a precision first.
    pub const ALL: [ProductKernel; 10] = [
        Self::AmxBf16,
        Self::Avx512Bf16,
        Self::Avx512F32,
        Self::Avx2F32,
        Self::Avx512Int16,
        Self::AvxVnniInt16,
        Self::Avx2Int16,
        Self::Avx512Int8,
        Self::AvxVnniInt8,
        Self::Portable,
    ];

    /// Bits of the factors.
    pub fn precision(self) -> Precision {
        match self {
            Self::AmxBf16 | Self::Avx512Bf16 => Precision::BF16,
            Self::Avx512Int16 | Self::AvxVnniInt16 | Self::Avx2Int16 => Precision::Int16,
            Self::Avx512Int8 | Self::AvxVnniInt8 => Precision::Int8,
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

    /// The fastest of those that multiply floats, on this processor.
    pub fn fastest_of_floats() -> Self {
        match has_slow_bf16() {
            true => first_possible([Self::AmxBf16, Self::Avx512F32, Self::Avx512Bf16, Self::Avx2F32]),
            false => first_possible([Self::AmxBf16, Self::Avx512Bf16, Self::Avx512F32, Self::Avx2F32]),
        }
    }

    /// What multiplies dense matrices where frozen weights are multiplied by this.
    pub fn of_dense(self) -> Self {
        match self {
            Self::Avx512Int16 => Self::Avx512F32,
            Self::AvxVnniInt16 | Self::Avx2Int16 | Self::AvxVnniInt8 => Self::Avx2F32,
            Self::Avx512Int8 => Self::fastest_of_floats(),
            floats => floats,
        }
    }

    /// What multiplies attention's matrices: as many bits as bf16 has at the least.
    pub fn of_attention(self) -> Self {
        match self {
            Self::Avx512Int8 => match Self::fastest_of_floats() {
                slow if slow.precision() == Precision::F32 => Self::Avx512Int16,
                fast => fast,
            },
            Self::AvxVnniInt8 => Self::AvxVnniInt16,
            other => other,
        }
    }
}

fn first_possible<const N: usize>(kernels: [ProductKernel; N]) -> ProductKernel {
    kernels.into_iter().find(|kernel| kernel.is_possible()).unwrap_or(ProductKernel::Portable)
}

/// Whether bf16 in vectors is slower than f32: Intel's processors with AMX keep the instruction for old programs, at 0.6 of
/// the speed of fused multiply-add (measured), and virtual machines may have no AMX.
#[cfg(target_arch = "x86_64")]
fn has_slow_bf16() -> bool {
    let vendor = std::arch::x86_64::__cpuid(0);
    [vendor.ebx, vendor.edx, vendor.ecx].map(u32::to_le_bytes).as_flattened() == b"GenuineIntel"
}

#[cfg(not(target_arch = "x86_64"))]
fn has_slow_bf16() -> bool {
    false
}
