//! The optimiser's update and the norm of the gradients.

#![allow(unsafe_code)] // the instruction-set dispatch of `multiversion!`

use rayon::prelude::*;

use super::isa::{LANES, multiversion};
use super::rows::TASK_FLOATS;
use crate::device::AdamWUpdate;

/// One AdamW update of `weights` and both moments.
pub(super) fn update(
    update: &AdamWUpdate,
    gradient: &[f32],
    weights: &mut [f32],
    m: &mut [f32],
    v: &mut [f32],
) {
    weights
        .par_chunks_mut(TASK_FLOATS)
        .zip(m.par_chunks_mut(TASK_FLOATS))
        .zip(v.par_chunks_mut(TASK_FLOATS))
        .zip(gradient.par_chunks(TASK_FLOATS))
        .for_each(|(((weights, m), v), gradient)| update_part(update, gradient, weights, m, v));
}

multiversion! {
    fn update_part(update: &AdamWUpdate, gradient: &[f32], weights: &mut [f32], m: &mut [f32], v: &mut [f32]) {
        let u = *update;
        let decay = 1.0 - u.learning_rate * u.weight_decay;
        for (((w, m), v), &g) in weights.iter_mut().zip(m.iter_mut()).zip(v.iter_mut()).zip(gradient) {
            let g = g * u.gradient_scale;
            *m = u.beta1 * *m + (1.0 - u.beta1) * g;
            *v = u.beta2 * *v + (1.0 - u.beta2) * g * g;
            let step = (*m / u.correction1) / ((*v / u.correction2).sqrt() + u.epsilon);
            *w = *w * decay - u.learning_rate * step;
        }
    }
}

multiversion! {
    /// Σ x² in f64, in lanes on one thread: the order never changes.
    pub(super) fn sum_of_squares(x: &[f32]) -> f64 {
        let mut lanes = [0.0f64; LANES];
        let mut chunks = x.chunks_exact(LANES);
        for chunk in &mut chunks {
            for lane in 0..LANES {
                lanes[lane] += f64::from(chunk[lane]) * f64::from(chunk[lane]);
            }
        }
        for (lane, &x) in lanes.iter_mut().zip(chunks.remainder()) {
            *lane += f64::from(x) * f64::from(x);
        }
        lanes.iter().sum()
    }
}
