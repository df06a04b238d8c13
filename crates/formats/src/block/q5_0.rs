//! Q5_0: 32 weights as d·(c - 16), c of 5 bits.
//!
//! A block: d (f16), fifth bits (4 bytes), low bits (16 bytes).

use super::rows::{for_each_batch, for_each_block};
use super::search::{plain_symmetric, symmetric};
use super::{float16, nibbles};

pub(super) const BYTES: usize = 22;
const HALF: i8 = 16;

#[inline(always)]
pub(super) fn encode<const L: usize>(weights: &[f32], imatrix: Option<&[f32]>, out: &mut [u8]) {
    match imatrix {
        None => for_each_block(weights, out, |x, block| {
            let (scale, codes) = plain_symmetric(x, HALF);
            store(scale, &codes, block);
        }),
        Some(columns) => for_each_batch::<_, L>(weights, columns, out, |x, counts, blocks| {
            let (scales, codes) = symmetric(x, counts, HALF);
            for ((block, scale), codes) in blocks.iter_mut().zip(scales).zip(&codes) {
                store(scale, codes, block);
            }
        }),
    }
}

#[inline(always)]
fn store(scale: f32, codes: &[u8; 32], block: &mut [u8; BYTES]) {
    block[..2].copy_from_slice(&float16::to_bytes(scale));
    block[2..6].copy_from_slice(&nibbles::pack_fifth(codes));
    block[6..].copy_from_slice(&nibbles::pack(codes));
}

#[inline(always)]
pub(super) fn decode(blocks: &[u8], out: &mut [f32]) {
    for (block, x) in blocks.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<32>().0) {
        let [d0, d1, h0, h1, h2, h3, codes @ ..] = block;
        let scale = float16::from_bytes([*d0, *d1]);
        let codes = nibbles::unpack_with_fifth(codes, [*h0, *h1, *h2, *h3]);
        *x = codes.map(|code| (f32::from(code) - f32::from(HALF)) * scale);
    }
}
