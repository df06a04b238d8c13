//! The way of the 32-weight formats over rows: blocks one by one, or in batches when there is an
//! importance matrix, whose weights for the search depend on the whole row.

use super::importance;
use super::lanes::{Lane, padded, transpose};

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
