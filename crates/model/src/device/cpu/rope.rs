//! Rotary position embedding, in place; backward is the rotation by the opposite angle.

#![allow(unsafe_code)] // the instruction-set dispatch of `multiversion!`

use rayon::prelude::*;

use super::isa::multiversion;
use super::rows::task_rows;

/// Columns of a matrix of heads, and of each head the dimensions that turn.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    /// Columns: heads times D.
    pub(super) width: usize,
    /// D
    pub(super) head_dim: usize,
    /// The first dimensions of each head, an even number.
    pub(super) rotary_dim: usize,
}

/// x (n, width), cos and sin (positions, rotary_dim / 2); `sign` is -1 for the backward rotation.
pub(super) fn rotate(x: &mut [f32], shape: Shape, positions: &[u32], table: Table<'_>, sign: f32) {
    let task = task_rows(shape.width);
    x.par_chunks_mut(task * shape.width)
        .zip(positions.par_chunks(task))
        .for_each(|(x, positions)| rotate_rows(x, shape, positions, table, sign));
}

/// Cosines and sines of every position.
#[derive(Clone, Copy)]
pub(super) struct Table<'a> {
    pub(super) cos: &'a [f32],
    pub(super) sin: &'a [f32],
}

multiversion! {
    fn rotate_rows(x: &mut [f32], shape: Shape, positions: &[u32], table: Table<'_>, sign: f32) {
        let half = shape.rotary_dim / 2;
        for (x, &position) in x.chunks_exact_mut(shape.width).zip(positions) {
            let start = position as usize * half;
            let (cos, sin) = (&table.cos[start..start + half], &table.sin[start..start + half]);
            for head in x.chunks_exact_mut(shape.head_dim) {
                let (low, high) = head[..shape.rotary_dim].split_at_mut(half);
                for i in 0..half {
                    let (a, b, s) = (low[i], high[i], sign * sin[i]);
                    low[i] = a * cos[i] - b * s;
                    high[i] = b * cos[i] + a * s;
                }
            }
        }
    }
}
