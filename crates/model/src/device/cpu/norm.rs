//! RMS norm, forward and backward.

#![allow(unsafe_code)] // the instruction-set dispatch of `multiversion!`

use rayon::prelude::*;

use super::isa::{lane_sum, multiversion};
use super::rows::task_rows;
use crate::device::Write;

/// y = x · r · g, r = 1 / sqrt(mean(x²) + eps)
pub(super) fn forward(x: &[f32], gain: &[f32], eps: f32, y: &mut [f32]) {
    let task = task_rows(gain.len()) * gain.len();
    y.par_chunks_mut(task).zip(x.par_chunks(task)).for_each(|(y, x)| forward_rows(x, gain, eps, y));
}

/// dx (=|+=) r · (g·dy - x · r² · mean(g·dy·x))
pub(super) fn backward(x: &[f32], gain: &[f32], eps: f32, d_y: &[f32], write: Write, d_x: &mut [f32]) {
    let task = task_rows(gain.len()) * gain.len();
    d_x.par_chunks_mut(task)
        .zip(x.par_chunks(task))
        .zip(d_y.par_chunks(task))
        .for_each(|((d_x, x), d_y)| backward_rows(x, gain, eps, d_y, write, d_x));
}

/// The same for each of a row's groups, whose gains follow one another.
pub(super) fn forward_groups(n_groups: usize, x: &[f32], gain: &[f32], eps: f32, y: &mut [f32]) {
    let (cols, width) = (gain.len(), gain.len() / n_groups);
    let task = task_rows(cols) * cols;
    y.par_chunks_mut(task).zip(x.par_chunks(task)).for_each(|(y, x)| {
        let groups = x.chunks_exact(width).zip(y.chunks_exact_mut(width));
        for ((x, y), gain) in groups.zip(gain.chunks_exact(width).cycle()) {
            forward_rows(x, gain, eps, y);
        }
    });
}

/// The backward of [`forward_groups`].
pub(super) fn backward_groups(
    n_groups: usize,
    x: &[f32],
    gain: &[f32],
    eps: f32,
    d_y: &[f32],
    d_x: &mut [f32],
) {
    let (cols, width) = (gain.len(), gain.len() / n_groups);
    let task = task_rows(cols) * cols;
    d_x.par_chunks_mut(task).zip(x.par_chunks(task)).zip(d_y.par_chunks(task)).for_each(|((d_x, x), d_y)| {
        let groups = x.chunks_exact(width).zip(d_y.chunks_exact(width)).zip(d_x.chunks_exact_mut(width));
        for (((x, d_y), d_x), gain) in groups.zip(gain.chunks_exact(width).cycle()) {
            backward_rows(x, gain, eps, d_y, Write::Set, d_x);
        }
    });
}

multiversion! {
    fn forward_rows(x: &[f32], gain: &[f32], eps: f32, y: &mut [f32]) {
        let cols = gain.len();
        for (x, y) in x.chunks_exact(cols).zip(y.chunks_exact_mut(cols)) {
            let r = inverse_rms(x, eps);
            for i in 0..cols {
                y[i] = x[i] * r * gain[i];
            }
        }
    }
}

multiversion! {
    fn backward_rows(x: &[f32], gain: &[f32], eps: f32, d_y: &[f32], write: Write, d_x: &mut [f32]) {
        let cols = gain.len();
        let rows = x.chunks_exact(cols).zip(d_y.chunks_exact(cols)).zip(d_x.chunks_exact_mut(cols));
        for ((x, d_y), d_x) in rows {
            let r = inverse_rms(x, eps);
            let mean = lane_sum([gain, d_y, x], |[gain, d_y, x]| gain * d_y * x) / cols as f32;
            let pull = r * r * mean;
            let keep = if write == Write::Add { 1.0 } else { 0.0 };
            if write == Write::Set {
                d_x.fill(0.0);
            }
            for i in 0..cols {
                d_x[i] = keep * d_x[i] + r * (gain[i] * d_y[i] - x[i] * pull);
            }
        }
    }
}

#[inline(always)]
fn inverse_rms(x: &[f32], eps: f32) -> f32 {
    1.0 / (lane_sum([x], |[x]| x * x) / x.len() as f32 + eps).sqrt()
}
