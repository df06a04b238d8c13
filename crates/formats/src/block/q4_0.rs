//! Q4_0: 32 weights as d·(c - 8), c of 4 bits.
//!
//! A block: d (f16), codes (16 bytes).

use super::lanes::Lanes;
use super::one_scale::{AroundZero, encode_around_zero};
use super::{float16, nibbles};

pub(super) const BYTES: usize = 18;

/// The format.
struct Q4_0;

impl AroundZero<BYTES> for Q4_0 {
    const HALF: i8 = 8;

    #[inline(always)]
    fn store(scale: f32, codes: &[u8; 32], block: &mut [u8; BYTES]) {
        block[..2].copy_from_slice(&float16::to_bytes(scale));
        block[2..].copy_from_slice(&nibbles::pack(codes));
    }
}

#[inline(always)]
pub(super) fn encode<V: Lanes>(weights: &[f32], imatrix: Option<&[f32]>, out: &mut [u8]) {
    encode_around_zero::<Q4_0, V, BYTES>(weights, imatrix, out);
}

#[inline(always)]
pub(super) fn decode(blocks: &[u8], out: &mut [f32]) {
    for (block, x) in blocks.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<32>().0) {
        let [d0, d1, codes @ ..] = block;
        let scale = float16::from_bytes([*d0, *d1]);
        *x = nibbles::unpack(codes).map(|code| (f32::from(code) - f32::from(Q4_0::HALF)) * scale);
    }
}
