//! Q5_1: 32 weights as d·c + m, c of 5 bits.
//!
//! A block: d (f16), m (f16), fifth bits (4 bytes), low bits (16 bytes).

use super::lanes::Lanes;
use super::one_scale::{FromMinimum, encode_from_minimum};
use super::{float16, nibbles, rounding};

pub(super) const BYTES: usize = 24;

/// The format.
struct Q5_1;

impl FromMinimum<BYTES> for Q5_1 {
    const LEVELS: u8 = 31;

    #[inline(always)]
    fn plain_code(scaled: f32) -> u8 {
        rounding::truncated_byte(scaled + 0.5)
    }

    #[inline(always)]
    fn store(scale: f32, min: f32, codes: &[u8; 32], block: &mut [u8; BYTES]) {
        block[..2].copy_from_slice(&float16::to_bytes(scale));
        block[2..4].copy_from_slice(&float16::to_bytes(min));
        block[4..8].copy_from_slice(&nibbles::pack_fifth(codes));
        block[8..].copy_from_slice(&nibbles::pack(codes));
    }
}

#[inline(always)]
pub(super) fn encode<V: Lanes>(weights: &[f32], imatrix: Option<&[f32]>, out: &mut [u8]) {
    encode_from_minimum::<Q5_1, V, BYTES>(weights, imatrix, out);
}

#[inline(always)]
pub(super) fn decode(blocks: &[u8], out: &mut [f32]) {
    for (block, x) in blocks.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<32>().0) {
        let [d0, d1, m0, m1, h0, h1, h2, h3, codes @ ..] = block;
        let (scale, min) = (float16::from_bytes([*d0, *d1]), float16::from_bytes([*m0, *m1]));
        let codes = nibbles::unpack_with_fifth(codes, [*h0, *h1, *h2, *h3]);
        *x = codes.map(|code| f32::from(code) * scale + min);
    }
}
