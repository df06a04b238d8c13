//! The way of the formats over rows. Blocks of 32 weights come one by one, or in batches when there is an importance
//! matrix, whose weights for the search depend on the whole row; those of 256 one by one or in batches that fill the lanes.
//!
//! What is done with each is a loop's body where the format stands, never a closure that is passed: one that the compiler
//! leaves a function of its own is compiled for the least of processors, wherever it is called from, and is eight times
//! slower. For the same reason the encoders map arrays in loops.

use super::k_scales::{Block, GROUPS};
use super::lanes::{Lanes, MOST_IN_STEP, transpose};
use super::{K_BLOCK, importance};

/// A block of 256 weights in groups of sixteen.
pub(super) type Sixteens = [[f32; 16]; 16];

/// The importance of the columns of each block of a batch.
pub(super) type BatchColumns<'a> = [&'a Block; MOST_IN_STEP / GROUPS];

/// Every block of 32 weights, and where it goes.
#[inline(always)]
pub(super) fn blocks<'a, const BYTES: usize>(
    weights: &'a [f32],
    out: &'a mut [u8],
) -> impl Iterator<Item = (&'a [f32; 32], &'a mut [u8; BYTES])> {
    weights.as_chunks().0.iter().zip(out.as_chunks_mut().0)
}

/// Some blocks of a row, as many as lanes at most, the importance of their columns, and the mean square of the row.
pub(super) struct Batch<'a> {
    x: &'a [[f32; 32]],
    columns: &'a [[f32; 32]],
    variance: f32,
}

impl Batch<'_> {
    /// The weights, and what each counts.
    #[inline(always)]
    pub(super) fn counted<V: Lanes>(&self) -> ([V; 32], [V; 32]) {
        let (x, columns) = (transpose(self.x), transpose(self.columns));
        (x, importance::from_matrix(&x, &columns, V::splat(self.variance)))
    }
}

/// Every batch of up to `most` blocks of 32 weights, and where it goes.
#[inline(always)]
pub(super) fn batches<'a, const BYTES: usize>(
    weights: &'a [f32],
    columns: &'a [f32],
    out: &'a mut [u8],
    most: usize,
) -> impl Iterator<Item = (Batch<'a>, &'a mut [[u8; BYTES]])> {
    let row_bytes = columns.len() / 32 * BYTES;
    let columns = columns.as_chunks::<32>().0;
    let rows = weights.chunks_exact(32 * columns.len()).zip(out.chunks_exact_mut(row_bytes));
    rows.flat_map(move |(row, out)| {
        let variance = importance::mean_square(row);
        let batches = row.as_chunks::<32>().0.chunks(most).zip(columns.chunks(most));
        let batches = batches.map(move |(x, columns)| Batch { x, columns, variance });
        batches.zip(out.as_chunks_mut().0.chunks_mut(most))
    })
}

/// Every block of 256 weights, with the importance of its columns where there is a matrix, and where it goes.
#[inline(always)]
pub(super) fn k_blocks<'a, const BYTES: usize>(
    weights: &'a [f32],
    imatrix: Option<&'a [f32]>,
    out: &'a mut [u8],
) -> impl Iterator<Item = (&'a [f32; K_BLOCK], Option<&'a [f32; K_BLOCK]>, &'a mut [u8; BYTES])> {
    let columns = imatrix.map(|columns| columns.as_chunks().0);
    let blocks = weights.as_chunks().0.iter().zip(out.as_chunks_mut().0).enumerate();
    blocks.map(move |(i, (x, block))| (x, columns.map(|columns| &columns[i % columns.len()]), block))
}

/// The same, in groups of sixteen.
#[inline(always)]
pub(super) fn in_sixteens<'a, const BYTES: usize>(
    weights: &'a [f32],
    imatrix: Option<&'a [f32]>,
    out: &'a mut [u8],
) -> impl Iterator<Item = (&'a Sixteens, Option<&'a Sixteens>, &'a mut [u8; BYTES])> {
    let blocks = k_blocks(weights, imatrix, out);
    blocks.map(|(x, columns, block)| (sixteens(x), columns.map(sixteens), block))
}

#[inline(always)]
fn sixteens(x: &[f32; K_BLOCK]) -> &Sixteens {
    x.as_chunks().0.first_chunk().expect("sixteen groups")
}

/// Every batch of up to `at_once` blocks of 256 weights, in groups of 32, and where it goes.
#[inline(always)]
pub(super) fn k_batches<'a, const BYTES: usize>(
    weights: &'a [f32],
    imatrix: Option<&'a [f32]>,
    out: &'a mut [u8],
    at_once: usize,
) -> impl Iterator<Item = (&'a [Block], Option<BatchColumns<'a>>, &'a mut [[u8; BYTES]])> {
    let columns = imatrix.map(k_groups);
    let batches = k_groups(weights).chunks(at_once).zip(out.as_chunks_mut().0.chunks_mut(at_once));
    batches.enumerate().map(move |(batch, (x, blocks))| {
        let of_block = |columns: &[Block], i: usize| (batch * at_once + i) % columns.len();
        let columns = columns.map(|columns| std::array::from_fn(|i| &columns[of_block(columns, i)]));
        (x, columns, blocks)
    })
}

/// Weights of the K formats as blocks of eight groups of 32.
fn k_groups(weights: &[f32]) -> &[Block] {
    weights.as_chunks::<32>().0.as_chunks::<8>().0
}
