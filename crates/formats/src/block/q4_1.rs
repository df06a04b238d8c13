//! Q4_1: 32 weights as d·c + m, c of 4 bits.
//!
//! A block: d (f16), m (f16), codes (16 bytes).

use super::rows::{for_each_batch, for_each_block};
use super::search::{ClampThenRound, WEIGHTED_TRIALS, affine, range};
use super::{float16, nibbles, rounding};

pub(super) const BYTES: usize = 20;
const LEVELS: u8 = 15;

#[inline(always)]
pub(super) fn encode<const L: usize>(weights: &[f32], imatrix: Option<&[f32]>, out: &mut [u8]) {
    match imatrix {
        None => for_each_block(weights, out, |x, block| {
            let (scale, min, codes) = plain_codes(x);
            store(scale, min, &codes, block);
        }),
        Some(columns) => for_each_batch::<_, L>(weights, columns, out, |x, counts, blocks| {
            let (scales, mins, codes) = affine::<ClampThenRound, 32, L>(x, counts, LEVELS, WEIGHTED_TRIALS);
            for (k, block) in blocks.iter_mut().enumerate() {
                store(scales[k], -mins[k], &codes[k], block);
            }
        }),
    }
}

/// The least weight gets code 0, the greatest the last one.
#[inline(always)]
fn plain_codes(x: &[f32; 32]) -> (f32, f32, [u8; 32]) {
    let (min, max) = range(x);
    let scale = (max - min) / f32::from(LEVELS);
    let factor = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let code = |x: f32| rounding::truncated_byte((x - min) * factor + 0.5).cast_signed().min(15);
    (scale, min, x.map(|x| code(x).cast_unsigned()))
}

#[inline(always)]
fn store(scale: f32, min: f32, codes: &[u8; 32], block: &mut [u8; BYTES]) {
    block[..2].copy_from_slice(&float16::to_bytes(scale));
    block[2..4].copy_from_slice(&float16::to_bytes(min));
    block[4..].copy_from_slice(&nibbles::pack(codes));
}

#[inline(always)]
pub(super) fn decode(blocks: &[u8], out: &mut [f32]) {
    for (block, x) in blocks.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<32>().0) {
        let [d0, d1, m0, m1, codes @ ..] = block;
        let (scale, min) = (float16::from_bytes([*d0, *d1]), float16::from_bytes([*m0, *m1]));
        *x = nibbles::unpack(codes).map(|code| f32::from(code) * scale + min);
    }
}
