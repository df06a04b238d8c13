//! Frozen linear layers for a few tokens, as in decoding: rows of W are unpacked four at a time into the first-level
//! cache and multiplied with all tokens while they are there.
//!
//! The trick against the general path: a product with few tokens is bound by what is done to each weight, and there
//! `gemm` packs the dense tile once more. On 5.2 M weights of Q4_K and Q6_K, one thread of a busy machine, medians of
//! four alternating runs of `examples/decode_speed`: 500 tokens/s for one text where tile and `gemm` made 260. With
//! sixteen texts side by side both made about 1,050, so the tile takes over in between.
//!
//! `unsafe` because tasks write disjoint columns of one matrix. Each output is one sum in fixed lanes, so its bits
//! depend neither on how rows are shared out nor on which tokens stand beside it.

#![allow(unsafe_code)]

use std::ops::Range;

use rayon::prelude::*;

use super::isa::{LANES, fold_lanes, multiversion};
use super::memory::{DenseTile, HostBlocks, TILE_FLOATS};
use super::product::Shared;
use crate::Result;
use crate::device::{BlockMatrix, Write};

/// Most tokens for which this is faster than unpacking a tile for `gemm`.
const MOST_TOKENS: usize = 8;

/// Rows of W that are dense at once in a task.
const GROUP: usize = 4;
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
        for (token, x) in self.x.chunks_exact(cols).enumerate() {
            self.store(token, &columns, products(dense, x));
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
    /// w · x      w (GROUP, cols), x (cols)
    ///
    /// Four sums at once hide the latency of an addition; more tokens at once would not help, multiplications and
    /// additions being the limit. Spelled out, because sums in an array of arrays are not kept in registers.
    fn products(w: &[f32], x: &[f32]) -> [f32; GROUP] {
        let cols = x.len();
        let (x, x_rest) = x.as_chunks::<LANES>();
        let (w0, w0_rest) = row(w, 0, cols);
        let (w1, w1_rest) = row(w, 1, cols);
        let (w2, w2_rest) = row(w, 2, cols);
        let (w3, w3_rest) = row(w, 3, cols);
        let (mut sum0, mut sum1, mut sum2, mut sum3) = ([0.0; LANES], [0.0; LANES], [0.0; LANES], [0.0; LANES]);
        for ((((x, w0), w1), w2), w3) in x.iter().zip(w0).zip(w1).zip(w2).zip(w3) {
            add_products(&mut sum0, w0, x);
            add_products(&mut sum1, w1, x);
            add_products(&mut sum2, w2, x);
            add_products(&mut sum3, w3, x);
        }
        for i in 0..x_rest.len() {
            sum0[i] += w0_rest[i] * x_rest[i];
            sum1[i] += w1_rest[i] * x_rest[i];
            sum2[i] += w2_rest[i] * x_rest[i];
            sum3[i] += w3_rest[i] * x_rest[i];
        }
        [fold_lanes(sum0), fold_lanes(sum1), fold_lanes(sum2), fold_lanes(sum3)]
    }
}

#[inline(always)]
fn row(w: &[f32], index: usize, cols: usize) -> (&[[f32; LANES]], &[f32]) {
    w[index * cols..][..cols].as_chunks()
}

#[inline(always)]
fn add_products(sums: &mut [f32; LANES], w: &[f32; LANES], x: &[f32; LANES]) {
    for lane in 0..LANES {
        sums[lane] += w[lane] * x[lane];
    }
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
        block::encode(ty, &values(rows * cols, 1), cols, None, weights.rows_mut(0..rows).unwrap()).unwrap();
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
        for n in [1, 2, 3, 8] {
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
        let blocks = weights.rows_mut(0..rows).unwrap();
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
