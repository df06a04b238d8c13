//! The way of the formats over rows. Blocks of 32 weights come one by one, or in batches when there is an importance
//! matrix, whose weights for the search depend on the whole row; those of 256 one by one or in batches that fill the lanes.

use super::k_scales::{Block, GROUPS};
use super::lanes::{Lane, MOST_LANES, padded, transpose};
use super::{K_BLOCK, importance};

/// A block of 256 weights in groups of sixteen.
pub(super) type Sixteens = [[f32; 16]; 16];

/// The importance of the columns of each block of a batch.
pub(super) type BatchColumns<'a> = [&'a Block; MOST_LANES / GROUPS];

/// Calls `encode` for every block of 32 weights.
#[inline(always)]
pub(super) fn for_each_block<const BYTES: usize>(
    weights: &[f32],
    out: &mut [u8],
    mut encode: impl FnMut(&[f32; 32], &mut [u8; BYTES]),
) {
    for (x, block) in weights.as_chunks().0.iter().zip(out.as_chunks_mut().0) {
        encode(x, block);
    }
}

/// Calls `encode` for every batch of up to L blocks of a row, with what each weight counts.
#[inline(always)]
pub(super) fn for_each_batch<const BYTES: usize, const L: usize>(
    weights: &[f32],
    columns: &[f32],
    out: &mut [u8],
    mut encode: impl FnMut(&[Lane<L>; 32], &[Lane<L>; 32], &mut [[u8; BYTES]]),
) {
    let row_bytes = columns.len() / 32 * BYTES;
    let columns = columns.as_chunks::<32>().0;
    for (row, out) in weights.chunks_exact(32 * columns.len()).zip(out.chunks_exact_mut(row_bytes)) {
        let variance = importance::mean_square(row);
        let batches = row.as_chunks::<32>().0.chunks(L).zip(columns.chunks(L));
        for ((x, columns), blocks) in batches.zip(out.as_chunks_mut().0.chunks_mut(L)) {
            let x = transpose(&padded(x));
            let counts = importance::from_matrix(&x, &transpose(&padded(columns)), &[variance; L]);
            encode(&x, &counts, blocks);
        }
    }
}

/// Calls `encode` for every block of 256 weights, with the importance of its columns where there is a matrix.
#[inline(always)]
pub(super) fn for_each_k_block<const BYTES: usize>(
    weights: &[f32],
    imatrix: Option<&[f32]>,
    out: &mut [u8],
    mut encode: impl FnMut(&[f32; K_BLOCK], Option<&[f32; K_BLOCK]>, &mut [u8; BYTES]),
) {
    let columns = imatrix.map(|columns| columns.as_chunks().0);
    for (i, (x, block)) in weights.as_chunks().0.iter().zip(out.as_chunks_mut().0).enumerate() {
        encode(x, columns.map(|columns| &columns[i % columns.len()]), block);
    }
}

/// The same, in groups of sixteen.
#[inline(always)]
pub(super) fn for_each_in_sixteens<const BYTES: usize>(
    weights: &[f32],
    imatrix: Option<&[f32]>,
    out: &mut [u8],
    mut encode: impl FnMut(&Sixteens, Option<&Sixteens>, &mut [u8; BYTES]),
) {
    for_each_k_block(weights, imatrix, out, |x, columns, block| {
        encode(sixteens(x), columns.map(sixteens), block);
    });
}

#[inline(always)]
fn sixteens(x: &[f32; K_BLOCK]) -> &Sixteens {
    x.as_chunks().0.first_chunk().expect("sixteen groups")
}

/// Calls `encode` for every batch of up to L / 8 blocks of 256 weights, in groups of 32.
#[inline(always)]
pub(super) fn for_each_k_batch<const BYTES: usize, const L: usize>(
    weights: &[f32],
    imatrix: Option<&[f32]>,
    out: &mut [u8],
    mut encode: impl FnMut(&[Block], Option<BatchColumns<'_>>, &mut [[u8; BYTES]]),
) {
    let (at_once, columns) = (L / GROUPS, imatrix.map(k_groups));
    let batches = k_groups(weights).chunks(at_once).zip(out.as_chunks_mut().0.chunks_mut(at_once));
    for (batch, (x, blocks)) in batches.enumerate() {
        let of_block = |columns: &[Block], i: usize| (batch * at_once + i) % columns.len();
        let columns = columns.map(|columns| std::array::from_fn(|i| &columns[of_block(columns, i)]));
        encode(x, columns, blocks);
    }
}

/// Weights of the K formats as blocks of eight groups of 32.
fn k_groups(weights: &[f32]) -> &[Block] {
    weights.as_chunks::<32>().0.as_chunks::<8>().0
}
