//! The gated MLP's product, forward and backward.

#![allow(unsafe_code)] // the instruction-set dispatch of `multiversion!`

use rayon::prelude::*;

use super::isa::{exp, multiversion};
use super::rows::TASK_FLOATS;

/// out = silu(gate) · up
pub(super) fn forward(gate: &[f32], up: &[f32], out: &mut [f32]) {
    out.par_chunks_mut(TASK_FLOATS)
        .zip(gate.par_chunks(TASK_FLOATS))
        .zip(up.par_chunks(TASK_FLOATS))
        .for_each(|((out, gate), up)| forward_part(gate, up, out));
}

/// d_gate = d_out · up · s · (1 + gate · (1 - s)), d_up = d_out · gate · s
pub(super) fn backward(gate: &[f32], up: &[f32], d_out: &[f32], d_gate: &mut [f32], d_up: &mut [f32]) {
    d_gate
        .par_chunks_mut(TASK_FLOATS)
        .zip(d_up.par_chunks_mut(TASK_FLOATS))
        .zip(gate.par_chunks(TASK_FLOATS))
        .zip(up.par_chunks(TASK_FLOATS))
        .zip(d_out.par_chunks(TASK_FLOATS))
        .for_each(|((((d_gate, d_up), gate), up), d_out)| backward_part(gate, up, d_out, d_gate, d_up));
}

multiversion! {
    fn forward_part(gate: &[f32], up: &[f32], out: &mut [f32]) {
        for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
            *out = gate * sigmoid(gate) * up;
        }
    }
}

multiversion! {
    fn backward_part(gate: &[f32], up: &[f32], d_out: &[f32], d_gate: &mut [f32], d_up: &mut [f32]) {
        let gradients = d_gate.iter_mut().zip(d_up.iter_mut());
        for (((d_gate, d_up), (&gate, &up)), &d_out) in gradients.zip(gate.iter().zip(up)).zip(d_out) {
            let s = sigmoid(gate);
            *d_gate = d_out * up * s * (1.0 + gate * (1.0 - s));
            *d_up = d_out * gate * s;
        }
    }
}

#[inline(always)]
fn sigmoid(z: f32) -> f32 {
    1.0 / (1.0 + exp(-z))
}
