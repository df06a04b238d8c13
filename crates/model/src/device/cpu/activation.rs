//! Activations of the MLP, gated and not, forward and backward.

#![allow(unsafe_code)] // the instruction-set dispatch of `multiversion!`

use rayon::prelude::*;

use super::isa::{exp, multiversion};
use super::rows::TASK_FLOATS;
use crate::device::Activation;

/// out = act(gate) · up
pub(super) fn gated(activation: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
    let part = match activation {
        Activation::Silu => gated_silu,
        Activation::GeluTanh => gated_gelu,
    };
    out.par_chunks_mut(TASK_FLOATS)
        .zip(gate.par_chunks(TASK_FLOATS))
        .zip(up.par_chunks(TASK_FLOATS))
        .for_each(|((out, gate), up)| part(gate, up, out));
}

/// What the backward pass of a gated MLP reads.
#[derive(Clone, Copy)]
pub(super) struct Gated<'a> {
    pub(super) gate: &'a [f32],
    pub(super) up: &'a [f32],
    pub(super) d_out: &'a [f32],
}

/// d_gate = d_out · up · act'(gate), d_up = d_out · act(gate)
pub(super) fn gated_backward(
    activation: Activation,
    inputs: Gated<'_>,
    d_gate: &mut [f32],
    d_up: &mut [f32],
) {
    let part = match activation {
        Activation::Silu => gated_silu_backward,
        Activation::GeluTanh => gated_gelu_backward,
    };
    d_gate
        .par_chunks_mut(TASK_FLOATS)
        .zip(d_up.par_chunks_mut(TASK_FLOATS))
        .zip(inputs.gate.par_chunks(TASK_FLOATS))
        .zip(inputs.up.par_chunks(TASK_FLOATS))
        .zip(inputs.d_out.par_chunks(TASK_FLOATS))
        .for_each(|((((d_gate, d_up), gate), up), d_out)| part(Gated { gate, up, d_out }, d_gate, d_up));
}

/// out = act(x)
pub(super) fn plain(activation: Activation, x: &[f32], out: &mut [f32]) {
    let part = match activation {
        Activation::Silu => plain_silu,
        Activation::GeluTanh => plain_gelu,
    };
    out.par_chunks_mut(TASK_FLOATS).zip(x.par_chunks(TASK_FLOATS)).for_each(|(out, x)| part(x, out));
}

/// d_x = d_out · act'(x)
pub(super) fn plain_backward(activation: Activation, x: &[f32], d_out: &[f32], d_x: &mut [f32]) {
    let part = match activation {
        Activation::Silu => plain_silu_backward,
        Activation::GeluTanh => plain_gelu_backward,
    };
    d_x.par_chunks_mut(TASK_FLOATS)
        .zip(x.par_chunks(TASK_FLOATS))
        .zip(d_out.par_chunks(TASK_FLOATS))
        .for_each(|((d_x, x), d_out)| part(x, d_out, d_x));
}

/// The loops of one activation, given its value and derivative at a point.
macro_rules! loops {
    ($point:ident, $gated:ident, $gated_backward:ident, $plain:ident, $plain_backward:ident) => {
        multiversion! {
            fn $gated(gate: &[f32], up: &[f32], out: &mut [f32]) {
                for ((out, &gate), &up) in out.iter_mut().zip(gate).zip(up) {
                    *out = $point(gate).0 * up;
                }
            }
        }

        multiversion! {
            fn $gated_backward(inputs: Gated<'_>, d_gate: &mut [f32], d_up: &mut [f32]) {
                let Gated { gate, up, d_out } = inputs;
                let gradients = d_gate.iter_mut().zip(d_up.iter_mut());
                for (((d_gate, d_up), (&gate, &up)), &d_out) in gradients.zip(gate.iter().zip(up)).zip(d_out) {
                    let (value, slope) = $point(gate);
                    *d_gate = d_out * up * slope;
                    *d_up = d_out * value;
                }
            }
        }

        multiversion! {
            fn $plain(x: &[f32], out: &mut [f32]) {
                for (out, &x) in out.iter_mut().zip(x) {
                    *out = $point(x).0;
                }
            }
        }

        multiversion! {
            fn $plain_backward(x: &[f32], d_out: &[f32], d_x: &mut [f32]) {
                for ((d_x, &x), &d_out) in d_x.iter_mut().zip(x).zip(d_out) {
                    *d_x = d_out * $point(x).1;
                }
            }
        }
    };
}

loops!(silu, gated_silu, gated_silu_backward, plain_silu, plain_silu_backward);
loops!(gelu_tanh, gated_gelu, gated_gelu_backward, plain_gelu, plain_gelu_backward);

/// z · s and s · (1 + z · (1 - s)), s = sigmoid(z)
#[inline(always)]
fn silu(z: f32) -> (f32, f32) {
    let s = 1.0 / (1.0 + exp(-z));
    (z * s, s * (1.0 + z * (1.0 - s)))
}

/// sqrt(2 / π)
const GELU_SLOPE: f32 = 0.797_884_6;
const GELU_CUBIC: f32 = 0.044_715;

/// z · s and s + z · s · (1 - s) · 2u'(z), s = (1 + tanh u) / 2 = sigmoid(2u), u = sqrt(2/π) · (z + 0.044715 z³)
#[inline(always)]
fn gelu_tanh(z: f32) -> (f32, f32) {
    let twice_u = 2.0 * GELU_SLOPE * (z + GELU_CUBIC * z * z * z);
    let twice_slope = 2.0 * GELU_SLOPE * (1.0 + 3.0 * GELU_CUBIC * z * z);
    let s = 1.0 / (1.0 + exp(-twice_u));
    (z * s, s + z * s * (1.0 - s) * twice_slope)
}
