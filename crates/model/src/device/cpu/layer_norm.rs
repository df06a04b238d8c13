//! LayerNorm, forward and backward.

#![allow(unsafe_code)] // the instruction-set dispatch of `multiversion!`

use rayon::prelude::*;

use super::isa::{lane_sum, multiversion};
use super::rows::task_rows;
use crate::device::Write;

/// y = (x - mean(x)) · r · g + b, r = 1 / sqrt(var(x) + eps)
pub(super) fn forward(x: &[f32], gain: &[f32], bias: &[f32], eps: f32, y: &mut [f32]) {
    let task = task_rows(gain.len()) * gain.len();
    y.par_chunks_mut(task).zip(x.par_chunks(task)).for_each(|(y, x)| forward_rows(x, gain, bias, eps, y));
}

/// dx (=|+=) r · (z - mean(z) - n · mean(z·n)), z = g·dy, n = (x - mean(x)) · r
pub(super) fn backward(x: &[f32], gain: &[f32], eps: f32, d_y: &[f32], write: Write, d_x: &mut [f32]) {
    let task = task_rows(gain.len()) * gain.len();
    d_x.par_chunks_mut(task)
        .zip(x.par_chunks(task))
        .zip(d_y.par_chunks(task))
        .for_each(|((d_x, x), d_y)| backward_rows(x, gain, eps, d_y, write, d_x));
}

multiversion! {
    fn forward_rows(x: &[f32], gain: &[f32], bias: &[f32], eps: f32, y: &mut [f32]) {
        let cols = gain.len();
        for (x, y) in x.chunks_exact(cols).zip(y.chunks_exact_mut(cols)) {
            let (mean, r) = moments(x, eps);
            for i in 0..cols {
                y[i] = (x[i] - mean) * r * gain[i] + bias[i];
            }
        }
    }
}

multiversion! {
    fn backward_rows(x: &[f32], gain: &[f32], eps: f32, d_y: &[f32], write: Write, d_x: &mut [f32]) {
        let cols = gain.len();
        let rows = x.chunks_exact(cols).zip(d_y.chunks_exact(cols)).zip(d_x.chunks_exact_mut(cols));
        for ((x, d_y), d_x) in rows {
            let (mean, r) = moments(x, eps);
            let mean_z = lane_sum([gain, d_y], |[gain, d_y]| gain * d_y) / cols as f32;
            let mean_zn = lane_sum([gain, d_y, x], |[gain, d_y, x]| gain * d_y * (x - mean) * r) / cols as f32;
            if write == Write::Set {
                d_x.fill(0.0);
            }
            for i in 0..cols {
                d_x[i] += r * (gain[i] * d_y[i] - mean_z - (x[i] - mean) * r * mean_zn);
            }
        }
    }
}

/// Mean, and the inverse of the standard deviation, of a row.
#[inline(always)]
fn moments(x: &[f32], eps: f32) -> (f32, f32) {
    let mean = lane_sum([x], |[x]| x) / x.len() as f32;
    let variance = lane_sum([x], |[x]| (x - mean) * (x - mean)) / x.len() as f32;
    (mean, 1.0 / (variance + eps).sqrt())
}
