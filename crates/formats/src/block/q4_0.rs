//! Q4_0: 32 weights as d·(c - 8), c of 4 bits.
//!
//! A block: d (f16), codes (16 bytes).

use super::lanes::{Lanes, MOST_LANES, array};
use super::rows::{Batch, batches, blocks};
use super::search::{plain_symmetric, symmetric};
use super::{float16, nibbles};

pub(super) const BYTES: usize = 18;
const HALF: i8 = 8;

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
    let (scale, codes) = plain_symmetric(x, HALF);
    store(scale, &codes, block);
}

#[inline(always)]
fn encode_batch<V: Lanes>(batch: &Batch<'_>, blocks: &mut [[u8; BYTES]]) {
    let (x, counts) = batch.counted::<V>();
    let found = symmetric(&x, &counts, HALF);
    let (scales, mut codes) = (array(found.scale), [[0; 32]; MOST_LANES]);
    found.codes(&x, HALF, &mut codes[..blocks.len()]);
    for ((block, scale), codes) in blocks.iter_mut().zip(scales).zip(&codes) {
        store(scale, codes, block);
    }
}

#[inline(always)]
fn store(scale: f32, codes: &[u8; 32], block: &mut [u8; BYTES]) {
    block[..2].copy_from_slice(&float16::to_bytes(scale));
    block[2..].copy_from_slice(&nibbles::pack(codes));
}

#[inline(always)]
pub(super) fn decode(blocks: &[u8], out: &mut [f32]) {
    for (block, x) in blocks.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<32>().0) {
        let [d0, d1, codes @ ..] = block;
        let scale = float16::from_bytes([*d0, *d1]);
        *x = nibbles::unpack(codes).map(|code| (f32::from(code) - f32::from(HALF)) * scale);
    }
}
