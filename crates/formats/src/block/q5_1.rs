//! Q5_1: 32 weights as d·c + m, c of 5 bits.
//!
//! A block: d (f16), m (f16), fifth bits (4 bytes), low bits (16 bytes).

use super::search::{ClampThenRound, Trials, affine, range};
use super::{float16, importance, nibbles, rounding};

pub(super) const BYTES: usize = 24;
const LEVELS: u8 = 31;
const TRIALS: Trials = Trials { first: -0.9, delta: 0.05, last: 36 };

pub(super) fn encode(weights: &[f32], cols: usize, imatrix: Option<&[f32]>, out: &mut [u8]) {
    let Some(columns) = imatrix else {
        for (x, block) in weights.as_chunks::<32>().0.iter().zip(out.as_chunks_mut().0) {
            let (scale, min, codes) = plain_codes(x);
            store(scale, min, &codes, block);
        }
        return;
    };
    let row_bytes = cols / 32 * BYTES;
    for (row, out) in weights.chunks_exact(cols).zip(out.chunks_exact_mut(row_bytes)) {
        let variance = importance::mean_square(row);
        let groups = row.as_chunks::<32>().0.iter().zip(columns.as_chunks().0);
        for ((x, columns), block) in groups.zip(out.as_chunks_mut().0) {
            let mut codes = [0; 32];
            let counts = importance::from_matrix(x, columns, variance);
            let (scale, min) = affine::<ClampThenRound, 32>(x, &counts, LEVELS, TRIALS, &mut codes);
            store(scale, -min, &codes, block);
        }
    }
}

/// The least weight gets code 0, the greatest code 31.
fn plain_codes(x: &[f32; 32]) -> (f32, f32, [u8; 32]) {
    let (min, max) = range(x);
    let scale = (max - min) / f32::from(LEVELS);
    let factor = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let codes = x.map(|x| rounding::truncated_byte((x - min) * factor + 0.5));
    (scale, min, codes)
}

fn store(scale: f32, min: f32, codes: &[u8; 32], block: &mut [u8; BYTES]) {
    block[..2].copy_from_slice(&float16::to_bytes(scale));
    block[2..4].copy_from_slice(&float16::to_bytes(min));
    block[4..8].copy_from_slice(&nibbles::pack_fifth(codes));
    block[8..].copy_from_slice(&nibbles::pack(codes));
}

pub(super) fn decode(blocks: &[u8], out: &mut [f32]) {
    for (block, x) in blocks.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<32>().0) {
        let [d0, d1, m0, m1, h0, h1, h2, h3, codes @ ..] = block;
        let (scale, min) = (float16::from_bytes([*d0, *d1]), float16::from_bytes([*m0, *m1]));
        let codes = nibbles::unpack_with_fifth(codes, [*h0, *h1, *h2, *h3]);
        *x = codes.map(|code| f32::from(code) * scale + min);
    }
}
