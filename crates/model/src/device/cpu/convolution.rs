//! The causal convolution of each column, with its activation, over packed sequences, forward and backward.
//!
//! Tasks take blocks of columns: time runs inside of a task, so that the rows a kernel sees are in its cache.
//!
//! `unsafe` because tasks write disjoint columns of shared outputs.

#![allow(unsafe_code)]

use rayon::prelude::*;

use super::isa::{exp, multiversion};
use super::memory::slice;
use super::product::Shared;
use super::{Floats, check, shape};
use crate::Result;
use crate::device::{Span, StateSpace};

/// Columns of a task: with a kernel of 4 its rows and weights take 8 KiB.
const BLOCK: usize = 256;

/// One number for each column of a block.
type Row = [f32; BLOCK];

/// What a convolution reads: x (N, W), kernel (W, k), bias (W).
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub(super) mixer: StateSpace,
    pub(super) x: &'a [f32],
    pub(super) kernel: &'a [f32],
    pub(super) bias: &'a [f32],
}

impl<'a> Inputs<'a> {
    /// The inputs, if their sizes agree.
    pub(super) fn new(
        op: &'static str,
        mixer: StateSpace,
        x: Floats<'a>,
        kernel: Floats<'a>,
        bias: Floats<'a>,
    ) -> Result<Self> {
        let (width, k) = (mixer.mixed(), mixer.kernel);
        if !(2..=StateSpace::MAX_KERNEL).contains(&k) {
            return Err(shape(op, "kernel's tokens", k, StateSpace::MAX_KERNEL));
        }
        check(op, [("kernel", kernel.len(), width * k), ("bias", bias.len(), width)])?;
        check(op, [("x", x.len(), x.len() / width * width)])?;
        Ok(Inputs { mixer, x: slice(x), kernel: slice(kernel), bias: slice(bias) })
    }

    pub(super) fn n_rows(&self) -> usize {
        self.x.len() / self.mixer.mixed()
    }
}

/// Some columns, with their weights turned so that those of one tap are adjacent.
struct Block<'a> {
    inputs: Inputs<'a>,
    first: usize,
    cols: usize,
    taps: [Row; StateSpace::MAX_KERNEL],
}

impl<'a> Block<'a> {
    fn new(inputs: Inputs<'a>, first: usize) -> Self {
        let (width, k) = (inputs.mixer.mixed(), inputs.mixer.kernel);
        let cols = BLOCK.min(width - first);
        let mut taps = [[0.0; BLOCK]; StateSpace::MAX_KERNEL];
        for (tap, weights) in taps.iter_mut().enumerate().take(k) {
            for (col, weight) in weights.iter_mut().enumerate().take(cols) {
                *weight = inputs.kernel[(first + col) * k + tap];
            }
        }
        Block { inputs, first, cols, taps }
    }

    fn row(&self, row: usize) -> &'a [f32] {
        &self.inputs.x[row * self.inputs.mixer.mixed() + self.first..][..self.cols]
    }

    fn bias(&self) -> &'a [f32] {
        &self.inputs.bias[self.first..][..self.cols]
    }
}

/// The first columns of all tasks.
fn blocks(mixer: &StateSpace) -> impl IndexedParallelIterator<Item = usize> + use<> {
    (0..mixer.mixed().div_ceil(BLOCK)).into_par_iter().map(|block| block * BLOCK)
}

/// out = silu(bias + Σ_j kernel_j · x_(t - k + 1 + j)), and the window moved on      out (N, W), window (·, k - 1, W)
pub(super) fn forward(inputs: Inputs<'_>, spans: &[Span], window: &mut [f32], out: &mut [f32]) {
    let width = inputs.mixer.mixed();
    let (window, out) = (Shared::new(window, width), Shared::new(out, width));
    blocks(&inputs.mixer).for_each(|first| {
        let block = Block::new(inputs, first);
        spans.iter().for_each(|span| block.forward(span, window, out));
    });
}

impl Block<'_> {
    fn forward(&self, span: &Span, window: Shared<'_>, out: Shared<'_>) {
        let kept = self.inputs.mixer.kernel - 1;
        // SAFETY: this task alone touches these columns, one span after another, and no row is held while it changes.
        let kept_row = |i: usize| unsafe { window.row(span.place * kept + i, self.first, self.cols) };
        if span.begins {
            (0..kept).for_each(|i| kept_row(i).fill(0.0));
        }
        for t in 0..span.n {
            // SAFETY: as above.
            let out = unsafe { out.row(span.first + t, self.first, self.cols) };
            out.copy_from_slice(self.bias());
            for (tap, weights) in self.taps.iter().enumerate().take(kept + 1) {
                match (t + tap).checked_sub(kept) {
                    Some(seen) => add_product(weights, self.row(span.first + seen), out),
                    None => add_product(weights, kept_row(t + tap), out),
                }
            }
            silu(out);
        }
        for i in 0..kept {
            match (span.n + i).checked_sub(kept) {
                Some(seen) => kept_row(i).copy_from_slice(self.row(span.first + seen)),
                None => kept_row(i).copy_from_slice(kept_row(i + span.n)),
            }
        }
    }

    /// Backward of a span that begins: what stood before it is zero.
    fn backward(&self, span: &Span, d_out: &[f32], d_x: Shared<'_>) {
        let (k, width) = (self.inputs.mixer.kernel, self.inputs.mixer.mixed());
        let kept = k - 1;
        // Gradients before the activation, of the row at hand and the k - 1 after it.
        let mut inner = [[0.0; BLOCK]; StateSpace::MAX_KERNEL];
        for t in (0..span.n).rev() {
            let d_z = &mut inner[t % k][..self.cols];
            d_z.copy_from_slice(self.bias());
            for tap in kept.saturating_sub(t)..k {
                add_product(&self.taps[tap], self.row(span.first + t + tap - kept), d_z);
            }
            silu_backward(&d_out[(span.first + t) * width + self.first..][..self.cols], d_z);
            // SAFETY: this task alone touches these columns.
            let d_x = unsafe { d_x.row(span.first + t, self.first, self.cols) };
            d_x.fill(0.0);
            for after in 0..k.min(span.n - t) {
                add_product(&self.taps[kept - after], &inner[(t + after) % k], d_x);
            }
        }
    }
}

/// d_x from d_out; writes the rows that the spans name.
pub(super) fn backward(inputs: Inputs<'_>, spans: &[Span], d_out: &[f32], d_x: &mut [f32]) {
    let d_x = Shared::new(d_x, inputs.mixer.mixed());
    blocks(&inputs.mixer).for_each(|first| {
        let block = Block::new(inputs, first);
        spans.iter().for_each(|span| block.backward(span, d_out, d_x));
    });
}

multiversion! {
    fn add_product(a: &[f32], b: &[f32], to: &mut [f32]) {
        for ((to, a), b) in to.iter_mut().zip(a).zip(b) {
            *to += a * b;
        }
    }
}

multiversion! {
    fn silu(z: &mut [f32]) {
        for z in z.iter_mut() {
            *z /= 1.0 + exp(-*z);
        }
    }
}

multiversion! {
    /// z = d · silu'(z)
    fn silu_backward(d: &[f32], z: &mut [f32]) {
        for (z, d) in z.iter_mut().zip(d) {
            let sigmoid = 1.0 / (1.0 + exp(-*z));
            *z = d * sigmoid * (1.0 + *z * (1.0 - sigmoid));
        }
    }
}
