//! F32, F16 and BF16: one weight a block, no scale.

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::float16;

pub(super) fn encode_f32(weights: &[f32], out: &mut [u8]) {
    for (weight, bytes) in weights.iter().zip(out.as_chunks_mut::<4>().0) {
        *bytes = weight.to_le_bytes();
    }
}

#[inline(always)]
pub(super) fn decode_f32(blocks: &[u8], out: &mut [f32]) {
    for (bytes, weight) in blocks.as_chunks::<4>().0.iter().zip(out) {
        *weight = f32::from_le_bytes(*bytes);
    }
}

pub(super) fn encode_f16(weights: &[f32], out: &mut [u8]) {
    for (weight, bytes) in weights.iter().zip(out.as_chunks_mut::<2>().0) {
        *bytes = float16::to_bytes(*weight);
    }
}

/// Sixteen at a time: the conversion then picks its instruction once a group, not once a weight.
#[inline(always)]
pub(super) fn decode_f16(blocks: &[u8], out: &mut [f32]) {
    const GROUP: usize = 16;
    let mut group = [f16::ZERO; GROUP];
    for (bytes, weights) in blocks.chunks(2 * GROUP).zip(out.chunks_mut(GROUP)) {
        for (half, pair) in group.iter_mut().zip(bytes.as_chunks::<2>().0) {
            *half = f16::from_le_bytes(*pair);
        }
        group[..weights.len()].convert_to_f32_slice(weights);
    }
}

pub(super) fn encode_bf16(weights: &[f32], out: &mut [u8]) {
    for (weight, bytes) in weights.iter().zip(out.as_chunks_mut::<2>().0) {
        *bytes = bf16_bits(*weight).to_le_bytes();
    }
}

#[inline(always)]
pub(super) fn decode_bf16(blocks: &[u8], out: &mut [f32]) {
    for (pair, weight) in blocks.as_chunks::<2>().0.iter().zip(out) {
        *weight = f32::from_bits(u32::from(u16::from_le_bytes(*pair)) << 16);
    }
}

/// To nearest even; a NaN keeps its upper bits and becomes quiet.
#[allow(clippy::cast_possible_truncation, reason = "the upper half is what is kept")]
pub(super) fn bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    if value.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + (0x7fff + ((bits >> 16) & 1))) >> 16) as u16
}
