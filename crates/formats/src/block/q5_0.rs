//! Q5_0: 32 weights as d·(c - 16), c of 5 bits.
//!
//! A block: d (f16), fifth bits (4 bytes), low bits (16 bytes).

use super::lanes::Lanes;
use super::one_scale::{AroundZero, encode_around_zero};
use super::{float16, nibbles};

pub(super) const BYTES: usize = 22;

/// The format.
struct Q5_0;

impl AroundZero<BYTES> for Q5_0 {
    const HALF: i8 = 16;

    #[inline(always)]
    fn store(scale: f32, codes: &[u8; 32], block: &mut [u8; BYTES]) {
        block[..2].copy_from_slice(&float16::to_bytes(scale));
        block[2..6].copy_from_slice(&nibbles::pack_fifth(codes));
        block[6..].copy_from_slice(&nibbles::pack(codes));
    }
}

#[inline(always)]
pub(super) fn encode<V: Lanes>(weights: &[f32], imatrix: Option<&[f32]>, out: &mut [u8]) {
    encode_around_zero::<Q5_0, V, BYTES>(weights, imatrix, out);
}

#[inline(always)]
pub(super) fn decode(blocks: &[u8], out: &mut [f32]) {
    for (block, x) in blocks.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<32>().0) {
        let [d0, d1, h0, h1, h2, h3, codes @ ..] = block;
        let scale = float16::from_bytes([*d0, *d1]);
        let codes = nibbles::unpack_with_fifth(codes, [*h0, *h1, *h2, *h3]);
        *x = codes.map(|code| (f32::from(code) - f32::from(Q5_0::HALF)) * scale);
    }
}
