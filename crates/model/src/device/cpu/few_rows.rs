//! Frozen linear layers for a few tokens, as in decoding: rows of W are unpacked four at a time into the first-level
//! cache and multiplied with all tokens while they are there.
//!
//! The trick against the general path: a product with few tokens is bound by what is done to each weight, and there
//! `gemm` packs the dense tile once more. On 5.2 M weights of Q4_K and Q6_K, one thread, this takes 0.9 ms a token
//! where the tile and `gemm` took 3.2 ms; with sixteen tokens 3.1 ms against 6.3 ms.
//!
//! `unsafe` because tasks write disjoint columns of one matrix. Each output is one sum in fixed lanes, so its bits
//! depend neither on how rows are shared out nor on how many tokens stand beside it.

#![allow(unsafe_code)]

use std::ops::Range;

use rayon::prelude::*;

use super::isa::{LANES, fold_lanes, multiversion};
use super::memory::{DenseTile, HostBlocks, TILE_FLOATS};
use super::product::Shared;
use crate::Result;
use crate::device::{BlockMatrix, Write};

/// Most tokens for which this is faster than unpacking a tile for `gemm`.
const MOST_TOKENS: usize = 32;

/// Rows of W that are dense at once in a task.
const GROUP: usize = 4;
/// Tokens that share each load of a weight.
const TOKENS: usize = 4;
/// Weights of a task: worth waking a thread for, about 30 microseconds.
const TASK_WEIGHTS: usize = 64 * 1024;
/// Tasks at the most: enough to share out evenly.
const MOST_TASKS: usize = 32;

/// Whether this path is the faster one, and rows are short enough for it.
pub(super) fn suits(n: usize, cols: usize) -> bool {
    n <= MOST_TOKENS && GROUP * cols <= TILE_FLOATS
}

/// y (=|+=) x · W[rows]ᵀ      x (n, cols), y (n, |rows|)
pub(super) fn forward(
    tile: &DenseTile,
    x: &[f32],
    weights: &HostBlocks,
    rows: Range<usize>,
    write: Write,
    y: &mut [f32],
) -> Result<()> {
    let (cols, width) = (weights.cols(), rows.len());
    let room = TILE_FLOATS / (GROUP * cols);
    let n_tasks = (width * cols / TASK_WEIGHTS).clamp(1, MOST_TASKS.min(room));
    let task_rows = width.div_ceil(n_tasks).next_multiple_of(GROUP);
    let mut dense = tile.lend(n_tasks * GROUP * cols);
    let product = Product { x, weights, first_row: rows.start, write, y: Shared::new(y, width) };
    let task = |(i, dense): (usize, &mut [f32])| {
        let columns = (i * task_rows).min(width)..((i + 1) * task_rows).min(width);
        product.columns(columns, dense)
    };
    let dense = dense.floats_mut();
    if n_tasks == 1 {
        return task((0, dense));
    }
    dense.par_chunks_exact_mut(GROUP * cols).enumerate().try_for_each(task)
}

/// What all tasks share.
struct Product<'a> {
    x: &'a [f32],
    weights: &'a HostBlocks,
    /// The row of W that makes column 0 of y.
    first_row: usize,
    write: Write,
    y: Shared<'a>,
}

impl Product<'_> {
    fn columns(&self, columns: Range<usize>, dense: &mut [f32]) -> Result<()> {
        for first in columns.clone().step_by(GROUP) {
            let group = first..(first + GROUP).min(columns.end);
            let rows = self.first_row + group.start..self.first_row + group.end;
            self.weights.decode(rows, &mut dense[..group.len() * self.weights.cols()])?;
            // Where fewer than four rows are left, the products with what stands behind them are not stored.
            self.group(group, dense);
        }
        Ok(())
    }

    fn group(&self, columns: Range<usize>, dense: &[f32]) {
        let cols = self.weights.cols();
        let fours = self.x.chunks_exact(TOKENS * cols);
        let (n_fours, rest) = (fours.len(), fours.remainder());
        for (i, x) in fours.enumerate() {
            let sums = products_of_four(dense, x, cols);
            (0..TOKENS).for_each(|t| self.store(TOKENS * i + t, &columns, sums.map(|sums| sums[t])));
        }
        for (t, x) in rest.chunks_exact(cols).enumerate() {
            let sums = products_of_one(dense, x, cols);
            self.store(TOKENS * n_fours + t, &columns, sums.map(|[sum]| sum));
        }
    }

    fn store(&self, token: usize, columns: &Range<usize>, sums: [f32; GROUP]) {
        // SAFETY: each task has columns of its own, and a task writes one row's part at a time.
        let y = unsafe { self.y.row(token, columns.start, columns.len()) };
        for (y, sum) in y.iter_mut().zip(sums) {
            *y = if self.write == Write::Set { sum } else { *y + sum };
        }
    }
}

multiversion! {
    fn products_of_four(w: &[f32], x: &[f32], cols: usize) -> [[f32; TOKENS]; GROUP] {
        products(w, x, cols)
    }
}

multiversion! {
    fn products_of_one(w: &[f32], x: &[f32], cols: usize) -> [[f32; 1]; GROUP] {
        products(w, x, cols)
    }
}

/// w · xᵀ      w (GROUP, cols), x (N, cols)
#[inline(always)]
fn products<const N: usize>(w: &[f32], x: &[f32], cols: usize) -> [[f32; N]; GROUP] {
    let whole = cols / LANES;
    let w: [_; GROUP] = std::array::from_fn(|r| w[r * cols..][..cols].as_chunks::<LANES>());
    let x: [_; N] = std::array::from_fn(|t| x[t * cols..][..cols].as_chunks::<LANES>());
    let mut sums = [[[0.0; LANES]; N]; GROUP];
    for i in 0..whole {
        for (sums, (w, _)) in sums.iter_mut().zip(w) {
            for (sums, (x, _)) in sums.iter_mut().zip(x) {
                (0..LANES).for_each(|lane| sums[lane] += w[i][lane] * x[i][lane]);
            }
        }
    }
    for (sums, (_, w)) in sums.iter_mut().zip(w) {
        for (sums, (_, x)) in sums.iter_mut().zip(x) {
            for (sum, (w, x)) in sums.iter_mut().zip(w.iter().zip(x)) {
                *sum += w * x;
            }
        }
    }
    sums.map(|sums| sums.map(fold_lanes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::Arena;
    use crate::device::cpu::linear;
    use formats::block;

    /// The general path sums with fused multiply-add in another order.
    const TOLERANCE: f32 = 1e-5;

    fn values(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    fn check(ty: block::BlockType, rows: usize, cols: usize, n: usize) {
        let arena = Arena::unlimited();
        let tile = DenseTile::new(&arena).unwrap();
        let mut weights = HostBlocks::new(&arena, "weights", ty, rows, cols).unwrap();
        block::encode(ty, &values(rows * cols, 1), cols, None, weights.rows_mut(0..rows)).unwrap();
        let x = values(n * cols, 2);
        let part = rows / 3..rows;
        for write in [Write::Set, Write::Add] {
            let start = values(n * part.len(), 3);
            let (mut few, mut general) = (start.clone(), start);
            forward(&tile, &x, &weights, part.clone(), write, &mut few).unwrap();
            linear::tiled_forward(&tile, &x, &weights, part.clone(), write, &mut general).unwrap();
            let scale = general.iter().fold(0.0f32, |a, b| a.max(b.abs()));
            for (few, general) in few.iter().zip(&general) {
                assert!(
                    (few - general).abs() <= TOLERANCE * scale,
                    "{ty} {rows} {cols} {n}: {few} {general}"
                );
            }
        }
        assert_eq!(tile.counter().live_bytes(), 0);
    }

    #[test]
    fn equals_the_general_path() {
        use block::BlockType::{F16, F32, Q4K, Q5_0, Q6K};
        for n in [1, 2, 3, 4, 5, 9, 32] {
            check(Q4K, 50, 256, n);
            check(F32, 7, 172, n);
        }
        check(Q6K, 700, 512, 6);
        check(Q5_0, 33, 64, 1);
        check(F16, 9, 60_000, 2);
    }

    #[test]
    fn a_token_gives_the_same_bits_whoever_stands_beside_it() {
        let arena = Arena::unlimited();
        let tile = DenseTile::new(&arena).unwrap();
        let (rows, cols) = (30, 256);
        let mut weights = HostBlocks::new(&arena, "weights", block::BlockType::Q4K, rows, cols).unwrap();
        let blocks = weights.rows_mut(0..rows);
        block::encode(block::BlockType::Q4K, &values(rows * cols, 1), cols, None, blocks).unwrap();
        let x = values(6 * cols, 2);
        let mut together = vec![0.0; 6 * rows];
        forward(&tile, &x, &weights, 0..rows, Write::Set, &mut together).unwrap();
        for (x, together) in x.chunks(cols).zip(together.chunks(rows)) {
            let mut alone = vec![0.0; rows];
            forward(&tile, x, &weights, 0..rows, Write::Set, &mut alone).unwrap();
            assert_eq!(alone, together);
        }
    }
}
