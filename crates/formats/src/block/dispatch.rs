//! The codecs compiled for each width of vectors, chosen at run time. `unsafe` because a function compiled
//! for a processor's extension may be called only where that is present.
//!
//! There is one source, over vectors of eight lanes in plain arithmetic, eight with AVX2 and sixteen with AVX-512. None
//! allows fused multiply-add, so all give the same bytes.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
use crate::isa::Isa;

#[cfg(target_arch = "x86_64")]
use super::lanes::{Avx2, Avx512};
use super::lanes::{Lanes, Portable};
use super::{BlockType, iq, nf4, nf4_ic, plain, q2_k, q3_k, q4_0, q4_1, q4_k, q5_0, q5_1, q5_k, q6_k, q8_0};

/// Encodes whole rows whose lengths have been checked.
pub(super) fn encode(ty: BlockType, weights: &[f32], cols: usize, imatrix: Option<&[f32]>, out: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    match Isa::get() {
        // SAFETY: the processor has said that it has these extensions.
        Isa::Avx512 => return unsafe { encode_avx512(ty, weights, cols, imatrix, out) },
        // SAFETY: as above.
        Isa::Avx2 => return unsafe { encode_avx2(ty, weights, cols, imatrix, out) },
        Isa::Baseline => {}
    }
    encode_with::<Portable>(ty, weights, cols, imatrix, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
fn encode_avx512(ty: BlockType, weights: &[f32], cols: usize, imatrix: Option<&[f32]>, out: &mut [u8]) {
    encode_with::<Avx512>(ty, weights, cols, imatrix, out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn encode_avx2(ty: BlockType, weights: &[f32], cols: usize, imatrix: Option<&[f32]>, out: &mut [u8]) {
    encode_with::<Avx2>(ty, weights, cols, imatrix, out);
}

/// Inlined into each of the above, and thereby compiled for each.
#[inline(always)]
fn encode_with<V: Lanes>(
    ty: BlockType,
    weights: &[f32],
    cols: usize,
    imatrix: Option<&[f32]>,
    out: &mut [u8],
) {
    match ty {
        BlockType::F32 => plain::encode_f32(weights, out),
        BlockType::F16 => plain::encode_f16(weights, out),
        BlockType::BF16 => plain::encode_bf16(weights, out),
        BlockType::Q4_0 => q4_0::encode::<V>(weights, imatrix, out),
        BlockType::Q4_1 => q4_1::encode::<V>(weights, imatrix, out),
        BlockType::Q5_0 => q5_0::encode::<V>(weights, imatrix, out),
        BlockType::Q5_1 => q5_1::encode::<V>(weights, imatrix, out),
        BlockType::Q8_0 => q8_0::encode(weights, out),
        BlockType::Q2K => q2_k::encode::<V>(weights, imatrix, out),
        BlockType::Q3K => q3_k::encode::<V>(weights, imatrix, out),
        BlockType::Q4K => q4_k::encode::<V>(weights, imatrix, out),
        BlockType::Q5K => q5_k::encode::<V>(weights, imatrix, out),
        BlockType::Q6K => q6_k::encode::<V>(weights, imatrix, out),
        BlockType::IQ2XXS => iq::two::xxs::encode::<V>(weights, imatrix, out),
        BlockType::IQ2XS => iq::two::xs::encode::<V>(weights, imatrix, out),
        BlockType::IQ2S => iq::two::s::encode::<V>(weights, imatrix, out),
        BlockType::IQ3XXS => iq::three::xxs::encode::<V>(weights, imatrix, out),
        BlockType::IQ3S => iq::three::s::encode::<V>(weights, imatrix, out),
        BlockType::IQ4NL => iq::four::nl::encode::<V>(weights, cols, imatrix, out),
        BlockType::IQ4XS => iq::four::xs::encode::<V>(weights, imatrix, out),
        BlockType::Nf4 => nf4::encode(weights, cols, out),
        BlockType::Nf4Ic => nf4_ic::encode(weights, cols, out),
    }
}

/// The greatest magnitude as bits, which are ordered as magnitudes are; what is no number is above infinity.
pub(super) fn largest_magnitude_bits(weights: &[f32]) -> u32 {
    #[cfg(target_arch = "x86_64")]
    match Isa::get() {
        // SAFETY: the processor has said that it has these extensions.
        Isa::Avx512 => return unsafe { largest_magnitude_bits_avx512(weights) },
        // SAFETY: as above.
        Isa::Avx2 => return unsafe { largest_magnitude_bits_avx2(weights) },
        Isa::Baseline => {}
    }
    largest_magnitude_bits_portable(weights)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
fn largest_magnitude_bits_avx512(weights: &[f32]) -> u32 {
    largest_magnitude_bits_portable(weights)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn largest_magnitude_bits_avx2(weights: &[f32]) -> u32 {
    largest_magnitude_bits_portable(weights)
}

/// Inlined into each of the above.
#[inline(always)]
fn largest_magnitude_bits_portable(weights: &[f32]) -> u32 {
    let mut largest = 0;
    for weight in weights {
        largest = weight.abs().to_bits().max(largest);
    }
    largest
}

/// Decodes whole blocks whose lengths have been checked; of NF4 those from column `start` on of a row of `cols`.
pub(super) fn decode(ty: BlockType, blocks: &[u8], (cols, start): (usize, usize), out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    match Isa::get() {
        // SAFETY: the processor has said that it has these extensions.
        Isa::Avx512 => return unsafe { decode_avx512(ty, blocks, (cols, start), out) },
        // SAFETY: as above.
        Isa::Avx2 => return unsafe { decode_avx2(ty, blocks, (cols, start), out) },
        Isa::Baseline => {}
    }
    decode_portable(ty, blocks, (cols, start), out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
fn decode_avx512(ty: BlockType, blocks: &[u8], (cols, start): (usize, usize), out: &mut [f32]) {
    decode_portable(ty, blocks, (cols, start), out);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn decode_avx2(ty: BlockType, blocks: &[u8], (cols, start): (usize, usize), out: &mut [f32]) {
    decode_portable(ty, blocks, (cols, start), out);
}

/// Inlined into each of the above.
#[inline(always)]
fn decode_portable(ty: BlockType, blocks: &[u8], (cols, start): (usize, usize), out: &mut [f32]) {
    match ty {
        BlockType::F32 => plain::decode_f32(blocks, out),
        BlockType::F16 => plain::decode_f16(blocks, out),
        BlockType::BF16 => plain::decode_bf16(blocks, out),
        BlockType::Q4_0 => q4_0::decode(blocks, out),
        BlockType::Q4_1 => q4_1::decode(blocks, out),
        BlockType::Q5_0 => q5_0::decode(blocks, out),
        BlockType::Q5_1 => q5_1::decode(blocks, out),
        BlockType::Q8_0 => q8_0::decode(blocks, out),
        BlockType::Q2K => q2_k::decode(blocks, out),
        BlockType::Q3K => q3_k::decode(blocks, out),
        BlockType::Q4K => q4_k::decode(blocks, out),
        BlockType::Q5K => q5_k::decode(blocks, out),
        BlockType::Q6K => q6_k::decode(blocks, out),
        BlockType::IQ2XXS => iq::two::xxs::decode(blocks, out),
        BlockType::IQ2XS => iq::two::xs::decode(blocks, out),
        BlockType::IQ2S => iq::two::s::decode(blocks, out),
        BlockType::IQ3XXS => iq::three::xxs::decode(blocks, out),
        BlockType::IQ3S => iq::three::s::decode(blocks, out),
        BlockType::IQ4NL => iq::four::nl::decode(blocks, out),
        BlockType::IQ4XS => iq::four::xs::decode(blocks, out),
        BlockType::Nf4 => nf4::decode(blocks, cols, start, out),
        BlockType::Nf4Ic => nf4_ic::decode(blocks, cols, start, out),
    }
}
