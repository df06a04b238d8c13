//! Moving and adding rows, and keeping values in 16 bits.

use rayon::prelude::*;

use super::memory::HostBlocks;
use crate::Result;
use crate::device::{BlockMatrix, Write};

/// Floats that one task moves or computes: enough to be worth a task, few enough to share out.
pub(super) const TASK_FLOATS: usize = 16 * 1024;

/// Rows of `cols` columns that make up one task.
pub(super) fn task_rows(cols: usize) -> usize {
    (TASK_FLOATS / cols).max(1)
}

/// out_i = W[ids_i]
pub(super) fn embed(weights: &HostBlocks, ids: &[u32], out: &mut [f32]) -> Result<()> {
    let cols = weights.cols();
    out.par_chunks_mut(cols).zip(ids).with_min_len(task_rows(cols)).try_for_each(|(row, &id)| {
        let id = id as usize;
        weights.decode(id..id + 1, row)
    })
}

/// out_i = x[rows_i]
pub(super) fn gather(x: &[f32], cols: usize, rows: &[u32], out: &mut [f32]) {
    for (out, &row) in out.chunks_exact_mut(cols).zip(rows) {
        out.copy_from_slice(&x[row as usize * cols..][..cols]);
    }
}

/// out[rows_i] = x_i
pub(super) fn scatter(x: &[f32], cols: usize, rows: &[u32], out: &mut [f32]) {
    for (x, &row) in x.chunks_exact(cols).zip(rows) {
        out[row as usize * cols..][..cols].copy_from_slice(x);
    }
}

/// y (=|+=) the first `cols` of each row      x and y with the length of their rows
pub(super) fn copy_columns(
    (x, x_stride): (&[f32], usize),
    write: Write,
    (y, y_stride): (&mut [f32], usize),
    cols: usize,
) {
    for (x, y) in x.chunks(x_stride).zip(y.chunks_mut(y_stride)) {
        let (x, y) = (&x[..cols], &mut y[..cols]);
        match write {
            Write::Set => y.copy_from_slice(x),
            Write::Add => y.iter_mut().zip(x).for_each(|(y, x)| *y += x),
        }
    }
}

/// y += x
pub(super) fn add(x: &[f32], y: &mut [f32]) {
    y.par_chunks_mut(TASK_FLOATS).zip(x.par_chunks(TASK_FLOATS)).for_each(|(y, x)| {
        for (y, x) in y.iter_mut().zip(x) {
            *y += x;
        }
    });
}

/// y_i = factors_i · y_i
pub(super) fn scale_rows(factors: &[f32], y: &mut [f32]) {
    if let Some(cols) = y.len().checked_div(factors.len()).filter(|&cols| cols > 0) {
        y.par_chunks_exact_mut(cols).zip(factors).for_each(|(y, factor)| {
            y.iter_mut().for_each(|y| *y *= factor);
        });
    }
}

/// y_i += factors_i · x_i
pub(super) fn add_scaled_rows(factors: &[f32], x: &[f32], y: &mut [f32]) {
    if let Some(cols) = y.len().checked_div(factors.len()).filter(|&cols| cols > 0) {
        let rows = y.par_chunks_exact_mut(cols).zip(x.par_chunks_exact(cols));
        rows.zip(factors).for_each(|((y, x), factor)| {
            y.iter_mut().zip(x).for_each(|(y, x)| *y += factor * x);
        });
    }
}

/// y_i += row
pub(super) fn add_row(row: &[f32], y: &mut [f32]) {
    let cols = row.len();
    y.par_chunks_mut(task_rows(cols) * cols).for_each(|rows| {
        for y in rows.chunks_exact_mut(cols) {
            for (y, x) in y.iter_mut().zip(row) {
                *y += x;
            }
        }
    });
}

/// y = factor · y
pub(super) fn scale(factor: f32, y: &mut [f32]) {
    y.par_chunks_mut(TASK_FLOATS).for_each(|y| {
        for y in y {
            *y *= factor;
        }
    });
}

/// x = x rounded to bf16; to = the same, two values a word, the first in the lower half
pub(super) fn round_to_bf16(x: &mut [f32], to: &mut [u32]) {
    x.par_chunks_mut(TASK_FLOATS).zip(to.par_chunks_mut(TASK_FLOATS / 2)).for_each(|(x, to)| {
        for (pair, word) in x.chunks_mut(2).zip(to) {
            *word = 0;
            for (half, x) in pair.iter_mut().enumerate() {
                let rounded = half::bf16::from_f32(*x);
                *x = rounded.to_f32();
                *word |= u32::from(rounded.to_bits()) << (16 * half);
            }
        }
    });
}

/// x = what [`round_to_bf16`] left
pub(super) fn widen_bf16(from: &[u32], x: &mut [f32]) {
    x.par_chunks_mut(TASK_FLOATS).zip(from.par_chunks(TASK_FLOATS / 2)).for_each(|(x, from)| {
        for (pair, word) in x.chunks_mut(2).zip(from) {
            for (half, x) in pair.iter_mut().enumerate() {
                *x = f32::from_bits(word >> (16 * half) << 16);
            }
        }
    });
}
