//! What adapters ask for beside products: dropout masks, and DoRA's row lengths.

use rayon::prelude::*;

use super::memory::{DenseTile, HostBlocks};
use super::rows::task_rows;
use crate::Result;
use crate::device::{BlockMatrix, Mask, Write};
use crate::random::splitmix;

/// y (=|+=) x ⊙ mask / (1 - p)
pub(super) fn dropout(mask: Mask, first_row: usize, cols: usize, x: &[f32], write: Write, y: &mut [f32]) {
    let rows = task_rows(cols);
    let kept = 1.0 / (1.0 - mask.probability);
    // 24 bits decide, as many as an f32 in 0..1 holds evenly.
    let threshold = (f64::from(mask.probability) * f64::from(1 << 24)) as u64;
    y.par_chunks_mut(rows * cols).zip(x.par_chunks(rows * cols)).enumerate().for_each(|(task, (y, x))| {
        let first = ((first_row + task * rows) * cols) as u64;
        for (place, (y, x)) in (first..).zip(y.iter_mut().zip(x)) {
            let factor = if splitmix(mask.seed, place) >> 40 >= threshold { kept } else { 0.0 };
            match write {
                Write::Set => *y = x * factor,
                Write::Add => *y += x * factor,
            }
        }
    });
}

/// y_ij *= factors_j
pub(super) fn scale_columns(factors: &[f32], y: &mut [f32]) {
    let cols = factors.len();
    y.par_chunks_mut(task_rows(cols) * cols).for_each(|rows| {
        for row in rows.chunks_exact_mut(cols) {
            row.iter_mut().zip(factors).for_each(|(y, factor)| *y *= factor);
        }
    });
}

/// Columns that one task adds up; a cache line of each row at the least.
const TASK_COLUMNS: usize = 64;

/// out_j += Σ_i a_ij · b_ij, each column from the first row to the last
pub(super) fn column_dots(a: &[f32], b: &[f32], out: &mut [f32]) {
    let cols = out.len();
    out.par_chunks_mut(TASK_COLUMNS).enumerate().for_each(|(task, out)| {
        let first = task * TASK_COLUMNS;
        for (a, b) in a.chunks_exact(cols).zip(b.chunks_exact(cols)) {
            for ((out, a), b) in out.iter_mut().zip(&a[first..]).zip(&b[first..]) {
                *out += a * b;
            }
        }
    });
}

/// out_j = |W_j|²
pub(super) fn row_squares(tile: &DenseTile, weights: &HostBlocks, out: &mut [f32]) -> Result<()> {
    let cols = weights.cols();
    let tile_rows = DenseTile::rows(cols);
    for (index, out) in out.chunks_mut(tile_rows).enumerate() {
        let first = index * tile_rows;
        let dense = tile.unpack(weights, first..first + out.len())?;
        let rows = dense.floats().par_chunks(cols);
        out.par_iter_mut().zip(rows).for_each(|(out, row)| {
            *out = row.iter().map(|&w| f64::from(w) * f64::from(w)).sum::<f64>() as f32;
        });
    }
    Ok(())
}

/// The slices of [`crate::device::RowSquares`].
pub(super) struct Parts<'a> {
    pub base: &'a [f32],
    pub b: &'a [f32],
    pub crossed: &'a [f32],
    pub spread: &'a [f32],
    pub scale: f32,
}

/// inverse_j = 1 / |W_j + s·(B·A)_j|
pub(super) fn inverse_lengths(parts: &Parts<'_>, inverse: &mut [f32]) {
    let rows = inverse.len();
    let rank = parts.b.len() / rows;
    let s = f64::from(parts.scale);
    inverse.par_iter_mut().enumerate().with_min_len(TASK_COLUMNS).for_each(|(j, inverse)| {
        let (b, spread) = (&parts.b[j * rank..][..rank], &parts.spread[j * rank..][..rank]);
        let crossed = (0..rank).map(|r| f64::from(parts.crossed[r * rows + j]));
        let added =
            b.iter().zip(spread).zip(crossed).map(|((&b, &spread), crossed)| {
                f64::from(b) * (2.0 * s * crossed + s * s * f64::from(spread))
            });
        let square = f64::from(parts.base[j]) + added.sum::<f64>();
        *inverse = if square > 0.0 { (1.0 / square.sqrt()) as f32 } else { 0.0 };
    });
}

/// Row and column of each element of a stretched diagonal.
pub(super) fn stretched_diagonal(rows: usize, cols: usize) -> impl Iterator<Item = (usize, usize)> {
    let n = rows.max(cols);
    (0..n).map(move |k| (k * rows / n, k * cols / n))
}
