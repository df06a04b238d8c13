//! Q8_0: 32 weights as d·c, c a signed byte.
//!
//! A block: d (f16), codes (32 bytes). Importance is not used.

use super::search::largest_magnitude;
use super::{float16, rounding};

pub(super) const BYTES: usize = 34;

#[inline(always)]
pub(super) fn encode(weights: &[f32], out: &mut [u8]) {
    for (x, block) in weights.as_chunks::<32>().0.iter().zip(out.as_chunks_mut::<BYTES>().0) {
        let largest = largest_magnitude(x).abs();
        let scale = largest / 127.0;
        let factor = if scale == 0.0 { 0.0 } else { 1.0 / scale };
        block[..2].copy_from_slice(&float16::to_bytes(scale));
        for (code, x) in block[2..].iter_mut().zip(x) {
            *code = rounding::rounded_byte(x * factor);
        }
    }
}

#[inline(always)]
pub(super) fn decode(blocks: &[u8], out: &mut [f32]) {
    for (block, x) in blocks.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<32>().0) {
        let [d0, d1, codes @ ..] = block;
        let scale = float16::from_bytes([*d0, *d1]);
        *x = codes.map(|code| f32::from(code.cast_signed()) * scale);
    }
}
