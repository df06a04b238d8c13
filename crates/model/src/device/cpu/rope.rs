//! Rotary position embedding, in place; backward is the rotation by the opposite angle.

#![allow(unsafe_code)] // the instruction-set dispatch of `multiversion!`

use rayon::prelude::*;

use super::isa::multiversion;
use super::rows::task_rows;

/// x (n, n_heads·head_dim), cos and sin (positions, head_dim / 2); `sign` is -1 for the backward rotation.
pub(super) fn rotate(
    x: &mut [f32],
    width: usize,
    head_dim: usize,
    positions: &[u32],
    table: Table<'_>,
    sign: f32,
) {
    let task = task_rows(width);
    x.par_chunks_mut(task * width)
        .zip(positions.par_chunks(task))
        .for_each(|(x, positions)| rotate_rows(x, width, head_dim, positions, table, sign));
}

/// Cosines and sines of every position.
#[derive(Clone, Copy)]
pub(super) struct Table<'a> {
    pub(super) cos: &'a [f32],
    pub(super) sin: &'a [f32],
}

multiversion! {
    fn rotate_rows(x: &mut [f32], width: usize, head_dim: usize, positions: &[u32], table: Table<'_>, sign: f32) {
        let half = head_dim / 2;
        for (x, &position) in x.chunks_exact_mut(width).zip(positions) {
            let start = position as usize * half;
            let (cos, sin) = (&table.cos[start..start + half], &table.sin[start..start + half]);
            for head in x.chunks_exact_mut(head_dim) {
                let (low, high) = head.split_at_mut(half);
                for i in 0..half {
                    let (a, b, s) = (low[i], high[i], sign * sin[i]);
                    low[i] = a * cos[i] - b * s;
                    high[i] = b * cos[i] + a * s;
                }
            }
        }
    }
}
