//! Rotary position embedding, in place; backward is the rotation by the opposite angle.

#![allow(unsafe_code)] // the instruction-set dispatch of `multiversion!`

use rayon::prelude::*;

use super::isa::multiversion;
use super::rows::task_rows;
use crate::device::{Pairs, Rotated};

/// x (n, H·D), cos and sin (positions, P / 2); `sign` is -1 for the backward rotation.
pub(super) fn rotate(x: &mut [f32], rotated: Rotated, positions: &[u32], table: Table<'_>, sign: f32) {
    let width = rotated.n_heads * rotated.head_dim;
    let task = task_rows(width);
    x.par_chunks_mut(task * width)
        .zip(positions.par_chunks(task))
        .for_each(|(x, positions)| rotate_rows(x, rotated, positions, table, sign));
}

/// Cosines and sines of every position.
#[derive(Clone, Copy)]
pub(super) struct Table<'a> {
    pub(super) cos: &'a [f32],
    pub(super) sin: &'a [f32],
}

multiversion! {
    fn rotate_rows(x: &mut [f32], rotated: Rotated, positions: &[u32], table: Table<'_>, sign: f32) {
        let Rotated { n_heads, head_dim, first, dim, pairs } = rotated;
        let half = dim / 2;
        for (x, &position) in x.chunks_exact_mut(n_heads * head_dim).zip(positions) {
            let start = position as usize * half;
            let (cos, sin) = (&table.cos[start..start + half], &table.sin[start..start + half]);
            for head in x.chunks_exact_mut(head_dim) {
                let turned = &mut head[first..first + dim];
                match pairs {
                    Pairs::Halves => {
                        let (low, high) = turned.split_at_mut(half);
                        for i in 0..half {
                            let (a, b, s) = (low[i], high[i], sign * sin[i]);
                            low[i] = a * cos[i] - b * s;
                            high[i] = b * cos[i] + a * s;
                        }
                    }
                    Pairs::Adjacent => {
                        for (i, pair) in turned.chunks_exact_mut(2).enumerate() {
                            let (a, b, s) = (pair[0], pair[1], sign * sin[i]);
                            pair[0] = a * cos[i] - b * s;
                            pair[1] = b * cos[i] + a * s;
                        }
                    }
                }
            }
        }
    }
}
