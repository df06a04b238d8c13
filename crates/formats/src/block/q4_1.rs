//! Q4_1: 32 weights as d·c + m, c of 4 bits.
//!
//! A block: d (f16), m (f16), codes (16 bytes).

use super::lanes::{Lanes, MOST_LANES, array};
use super::rows::{Batch, batches, blocks};
use super::search::{ClampThenRound, WEIGHTED_TRIALS, affine, range};
use super::{float16, nibbles, rounding};

pub(super) const BYTES: usize = 20;
const LEVELS: u8 = 15;

#[inline(always)]
pub(super) fn encode<V: Lanes>(weights: &[f32], imatrix: Option<&[f32]>, out: &mut [u8]) {
    let Some(columns) = imatrix else {
        for (x, block) in blocks(weights, out) {
            encode_block(x, block);
        }
        return;
    };
    for (batch, blocks) in batches(weights, columns, out, V::N) {
        encode_batch::<V>(&batch, blocks);
    }
}

#[inline(always)]
fn encode_block(x: &[f32; 32], block: &mut [u8; BYTES]) {
    let (scale, min, codes) = plain_codes(x);
    store(scale, min, &codes, block);
}

#[inline(always)]
fn encode_batch<V: Lanes>(batch: &Batch<'_>, blocks: &mut [[u8; BYTES]]) {
    let (x, counts) = batch.counted::<V>();
    let found = affine::<ClampThenRound, V, 32>(&x, &counts, LEVELS, WEIGHTED_TRIALS);
    let (scales, mins, mut codes) = (array(found.scale), array(found.min), [[0; 32]; MOST_LANES]);
    found.codes::<ClampThenRound, 32>(&x, LEVELS, &mut codes[..blocks.len()]);
    for (k, block) in blocks.iter_mut().enumerate() {
        store(scales[k], -mins[k], &codes[k], block);
    }
}

/// The least weight gets code 0, the greatest the last one.
#[inline(always)]
fn plain_codes(x: &[f32; 32]) -> (f32, f32, [u8; 32]) {
    let (min, max) = range(x);
    let scale = (max - min) / f32::from(LEVELS);
    let factor = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let code = |x: f32| rounding::truncated_byte((x - min) * factor + 0.5).cast_signed().min(15);
    let mut codes = [0; 32];
    for (to, &x) in codes.iter_mut().zip(x) {
        *to = code(x).cast_unsigned();
    }
    (scale, min, codes)
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
