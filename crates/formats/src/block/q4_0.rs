//! Q4_0: 32 weights as d·(c - 8), c of 4 bits.
//!
//! A block: d (f16), codes (16 bytes).

use super::search::{largest_magnitude, symmetric};
use super::{float16, importance, nibbles, rounding};

pub(super) const BYTES: usize = 18;
const HALF: i8 = 8;

pub(super) fn encode(weights: &[f32], cols: usize, imatrix: Option<&[f32]>, out: &mut [u8]) {
    let Some(columns) = imatrix else {
        for (x, block) in weights.as_chunks::<32>().0.iter().zip(out.as_chunks_mut().0) {
            let (scale, codes) = plain_codes(x);
            store(scale, &codes, block);
        }
        return;
    };
    let row_bytes = cols / 32 * BYTES;
    for (row, out) in weights.chunks_exact(cols).zip(out.chunks_exact_mut(row_bytes)) {
        let variance = importance::mean_square(row);
        let groups = row.as_chunks::<32>().0.iter().zip(columns.as_chunks().0);
        for ((x, columns), block) in groups.zip(out.as_chunks_mut().0) {
            let mut codes = [0; 32];
            let scale = symmetric(x, &importance::from_matrix(x, columns, variance), HALF, &mut codes);
            store(scale, &codes, block);
        }
    }
}

/// The weight of largest magnitude gets the most negative code.
fn plain_codes(x: &[f32; 32]) -> (f32, [u8; 32]) {
    let half = f32::from(HALF);
    let scale = largest_magnitude(x) / -half;
    let factor = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    (
        scale,
        x.map(|x| rounding::truncated_byte(x * factor + (half + 0.5)).cast_signed().min(15).cast_unsigned()),
    )
}

fn store(scale: f32, codes: &[u8; 32], block: &mut [u8; BYTES]) {
    block[..2].copy_from_slice(&float16::to_bytes(scale));
    block[2..].copy_from_slice(&nibbles::pack(codes));
}

pub(super) fn decode(blocks: &[u8], out: &mut [f32]) {
    for (block, x) in blocks.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<32>().0) {
        let [d0, d1, codes @ ..] = block;
        let scale = float16::from_bytes([*d0, *d1]);
        *x = nibbles::unpack(codes).map(|code| (f32::from(code) - f32::from(HALF)) * scale);
    }
}
