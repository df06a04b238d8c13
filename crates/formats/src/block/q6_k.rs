//! Q6_K: 256 weights in 16 groups as d·s·(c - 32), c of 6 bits, s a signed byte.
//!
//! A block: low four bits (128 bytes), high two bits (64 bytes), s (16 bytes), d (f16). Each half of the
//! block has its own 64 + 32 bytes, over four rows of 32 weights: the low bits of rows 0 and 2 share bytes,
//! so do those of rows 1 and 3; the high bits of all four share one byte.

use super::k_scales::{Block, lanes_of_columns};
use super::lanes::{Lanes, MOST_IN_STEP, array, codes_for_scale, transpose_into};
use super::rounding::nearest;
use super::rows::{BatchColumns, k_batches};
use super::search::{ZERO_GROUP, largest_scale, symmetric};
use super::{K_BLOCK, float16};

pub(super) const BYTES: usize = 210;
const GROUPS: usize = 16;
const HALF: i8 = 32;
pub(super) const LOW: std::ops::Range<usize> = 0..128;
pub(super) const HIGH: std::ops::Range<usize> = 128..192;
pub(super) const SCALES: std::ops::Range<usize> = 192..208;

#[inline(always)]
pub(super) fn encode<V: Lanes>(weights: &[f32], imatrix: Option<&[f32]>, out: &mut [u8]) {
    let mut work = Work::<V::InStep>::new();
    for (x, columns, blocks) in k_batches::<BYTES>(weights, imatrix, out, V::InStep::N / GROUPS) {
        encode_batch::<V>(x, columns, blocks, &mut work);
    }
}

/// What a batch is searched in: memory that one after another uses.
struct Work<V> {
    /// Weights, what each counts, and the product of both.
    x: [V; 16],
    counts: [V; 16],
    counted: [V; 16],
}

impl<V: Lanes> Work<V> {
    #[inline(always)]
    fn new() -> Self {
        let zeros = [V::splat(0.0); 16];
        Self { x: zeros, counts: zeros, counted: zeros }
    }
}

#[inline(always)]
fn encode_batch<V: Lanes>(
    x: &[Block],
    columns: Option<BatchColumns<'_>>,
    blocks: &mut [[u8; BYTES]],
    work: &mut Work<V::InStep>,
) {
    let groups = x.as_flattened().as_flattened().as_chunks::<16>().0;
    transpose_into(groups, &mut work.x);
    match columns {
        None => {
            for (count, x) in work.counts.iter_mut().zip(&work.x) {
                *count = *x * *x;
            }
        }
        Some(columns) => lanes_of_columns(x.len(), columns, &mut work.counts),
    }
    let found = symmetric(&work.x, &work.counts, &mut work.counted, HALF);
    let scales: [f32; MOST_IN_STEP] = array(found.scale);
    let (scales, groups) = (scales.as_chunks::<GROUPS>().0, groups.as_chunks::<GROUPS>().0);
    let mut searched = None;
    for (i, (block, (scales, groups))) in blocks.iter_mut().zip(scales.iter().zip(groups)).enumerate() {
        let largest = largest_scale(scales);
        if largest.abs() < ZERO_GROUP {
            block.fill(0);
            continue;
        }
        let factor = -128.0 / largest;
        let (mut six_bit, mut codes) = ([0; GROUPS], [[0; 16]; GROUPS]);
        for (six_bit, scale) in six_bit.iter_mut().zip(scales) {
            *six_bit = nearest(factor * scale).min(127) as u8;
        }
        let d = float16::rounded(1.0 / factor);
        for j in 0..GROUPS {
            let scale = d * f32::from(six_bit[j].cast_signed());
            if scale != 0.0 {
                codes_for_scale::<V>(&groups[j], (0.0, scale), (-32, 31), 32, &mut codes[j]);
                continue;
            }
            let searched = searched.get_or_insert_with(|| {
                let mut codes = [[0; 16]; MOST_IN_STEP];
                found.codes(&work.x, HALF, &mut codes[..V::InStep::N]);
                codes
            });
            codes[j] = searched[GROUPS * i + j];
        }
        block[SCALES].copy_from_slice(&six_bit);
        block[SCALES.end..].copy_from_slice(&float16::to_bytes(1.0 / factor));
        store_codes(codes.as_flattened().as_chunks().0, block);
    }
}

/// `codes`: eight rows of 32, four for each half of the block.
#[inline(always)]
fn store_codes(codes: &[[u8; 32]], block: &mut [u8; BYTES]) {
    for (half, rows) in codes.as_chunks::<4>().0.iter().enumerate() {
        let low = &mut block[LOW][64 * half..][..64];
        for i in 0..32 {
            low[i] = (rows[0][i] & 15) | (rows[2][i] & 15) << 4;
            low[i + 32] = (rows[1][i] & 15) | (rows[3][i] & 15) << 4;
        }
        let high = &mut block[HIGH][32 * half..][..32];
        for (i, byte) in high.iter_mut().enumerate() {
            *byte = (0..4).fold(0, |bits, row| bits | (rows[row][i] >> 4) << (2 * row));
        }
    }
}

#[inline(always)]
pub(super) fn decode(blocks: &[u8], out: &mut [f32]) {
    for (block, x) in blocks.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<K_BLOCK>().0) {
        let d = float16::from_bytes([block[208], block[209]]);
        for (row, x) in x.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (half, row) = (row / 4, row % 4);
            let low = &block[LOW][64 * half + 32 * (row % 2)..][..32];
            let high = &block[HIGH][32 * half..][..32];
            let scales = &block[SCALES][8 * half + 2 * row..][..2];
            for i in 0..32 {
                let code = (low[i] >> (4 * (row / 2)) & 15) | (high[i] >> (2 * row) & 3) << 4;
                let scale = d * f32::from(scales[i / 16].cast_signed());
                x[i] = scale * (f32::from(code) - f32::from(HALF));
            }
        }
    }
}
