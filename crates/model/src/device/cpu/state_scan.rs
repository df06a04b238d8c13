//! The selective scan of state-space mixers over packed sequences, forward and backward.
//!
//! Tasks take heads, time runs inside of them. Backward keeps no state: the gradients of C come from running the
//! states forward again, those of x, B and the step from running the gradient of the state backward, and the decay's
//! share from a sum that needs no state (see [`Reverse`]). What heads of a group share, B and C, is added up from
//! tiles of [`StateSpace::TILE_TOKENS`] tokens in the order of the heads.
//! Source: Dao & Gu 2024, arXiv:2405.21060, section 3 (the recurrence) and 4.1 (its decay as a running sum).
//!
//! `unsafe` because tasks write disjoint heads (columns) of shared outputs.

#![allow(unsafe_code)]

use std::ops::Range;

use rayon::prelude::*;

use super::isa::{LANES, fold_lanes, multiversion};
use super::memory::{HostBuffer, slice};
use super::product::Shared;
use super::{Floats, check};
use crate::Result;
use crate::device::{ScanWeights, Span, StateSpace};

/// What a scan reads: mixed (N, W), steps (N, H) and their bias, decay and skip (H).
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub(super) mixer: StateSpace,
    pub(super) mixed: &'a [f32],
    pub(super) steps: &'a [f32],
    pub(super) step_bias: &'a [f32],
    pub(super) decay: &'a [f32],
    pub(super) skip: &'a [f32],
}

/// What one head reads of one token.
struct Token<'a> {
    /// softplus(step + bias)
    step: f32,
    /// The derivative of the step for its projection.
    slope: f32,
    /// exp(step · A)
    kept: f32,
    x: &'a [f32],
    b: &'a [f32],
    c: &'a [f32],
}

impl<'a> Inputs<'a> {
    /// The inputs, if their sizes agree.
    pub(super) fn new(
        op: &'static str,
        mixer: StateSpace,
        weights: ScanWeights<'a, HostBuffer<f32>>,
        mixed: Floats<'a>,
        steps: Floats<'a>,
    ) -> Result<Self> {
        let (n, h) = (steps.len() / mixer.n_heads, mixer.n_heads);
        let ScanWeights { step_bias, decay, skip } = weights;
        check(op, [("steps", steps.len(), n * h), ("mixed", mixed.len(), n * mixer.mixed())])?;
        check(op, [("step bias", step_bias.len(), h), ("decay", decay.len(), h), ("skip", skip.len(), h)])?;
        check(op, [("heads of a group", h % mixer.n_groups, 0)])?;
        let (mixed, steps, step_bias) = (slice(mixed), slice(steps), slice(step_bias));
        Ok(Inputs { mixer, mixed, steps, step_bias, decay: slice(decay), skip: slice(skip) })
    }

    pub(super) fn n_rows(&self) -> usize {
        self.steps.len() / self.mixer.n_heads
    }

    fn token(&self, row: usize, head: usize) -> Token<'a> {
        let StateSpace { n_heads, head_dim, state, .. } = self.mixer;
        let mixed = &self.mixed[row * self.mixer.mixed()..][..self.mixer.mixed()];
        let raw = self.steps[row * n_heads + head] + self.step_bias[head];
        // As transformers and ggml: past 20 both are the identity in f32.
        let is_linear = raw > 20.0;
        let step = if is_linear { raw } else { raw.exp().ln_1p() };
        let slope = if is_linear { 1.0 } else { 1.0 / (1.0 + (-raw).exp()) };
        Token {
            step,
            slope,
            kept: (step * self.decay[head]).exp(),
            x: &mixed[head * head_dim..][..head_dim],
            b: &mixed[self.b_column(head)..][..state],
            c: &mixed[self.c_column(head)..][..state],
        }
    }

    fn b_column(&self, head: usize) -> usize {
        let StateSpace { n_heads, n_groups, state, .. } = self.mixer;
        self.mixer.inner() + head / (n_heads / n_groups) * state
    }

    fn c_column(&self, head: usize) -> usize {
        self.b_column(head) + self.mixer.n_groups * self.mixer.state
    }

    /// The columns of a head in a matrix of width I.
    fn of_head<'b>(&self, matrix: &'b [f32], row: usize, head: usize) -> &'b [f32] {
        let p = self.mixer.head_dim;
        &matrix[row * self.mixer.inner() + head * p..][..p]
    }
}

/// out = C·state + D·x for each token, the states moved on      state (·, H, P, S), out (N, I)
pub(super) fn forward(inputs: Inputs<'_>, spans: &[Span], state: &mut [f32], out: &mut [f32]) {
    let StateSpace { n_heads, head_dim: p, state: s, .. } = inputs.mixer;
    let (state, out) = (Shared::new(state, p * s), Shared::new(out, inputs.mixer.inner()));
    (0..n_heads).into_par_iter().for_each(|head| {
        for span in spans {
            // SAFETY: this task alone touches this head, one span after another.
            let state = unsafe { state.row(span.place * n_heads + head, 0, p * s) };
            if span.begins {
                state.fill(0.0);
            }
            for row in span.first..span.first + span.n {
                // SAFETY: as above.
                let out = unsafe { out.row(row, head * p, p) };
                let Token { step, kept, x, b, c, .. } = inputs.token(row, head);
                advance(kept, step, x, b, c, state, out);
                out.iter_mut().zip(x).for_each(|(out, x)| *out += inputs.skip[head] * x);
            }
        }
    });
}

multiversion! {
    /// state_p = kept · state_p + step · x_p · b, out_p = state_p · c
    fn advance(kept: f32, step: f32, x: &[f32], b: &[f32], c: &[f32], state: &mut [f32], out: &mut [f32]) {
        for ((state, out), x) in state.chunks_exact_mut(b.len()).zip(out).zip(x) {
            *out = update_and_dot(state, kept, step * x, b, c);
        }
    }
}

/// state = kept · state + factor · added, and then state · with
#[inline(always)]
fn update_and_dot(state: &mut [f32], kept: f32, factor: f32, added: &[f32], with: &[f32]) -> f32 {
    let mut lanes = [0.0f32; LANES];
    let mut update = |state: &mut [f32], added: &[f32], with: &[f32]| {
        for (((state, added), with), lane) in state.iter_mut().zip(added).zip(with).zip(&mut lanes) {
            *state = kept * *state + factor * added;
            *lane += *state * with;
        }
    };
    let whole = state.len() - state.len() % LANES;
    for at in (0..whole).step_by(LANES) {
        update(&mut state[at..at + LANES], &added[at..at + LANES], &with[at..at + LANES]);
    }
    update(&mut state[whole..], &added[whole..], &with[whole..]);
    fold_lanes(lanes)
}

/// What a backward reads beside the inputs of the forward pass.
#[derive(Clone, Copy)]
pub(super) struct Outputs<'a> {
    /// out of the forward pass (N, I).
    pub(super) out: &'a [f32],
    /// Its gradient.
    pub(super) d_out: &'a [f32],
}

/// Room of a backward, cut from one buffer of [`StateSpace::scratch_len`].
struct Scratch<'a> {
    /// A state, or its gradient, for each head (H, P·S).
    states: &'a mut [f32],
    /// Of each head, the gradients of B or C for the tokens of a tile (H, tile·S).
    partial: &'a mut [f32],
    /// Of each head, what [`Reverse`] carries from a tile to the one before.
    carried: &'a mut [f32],
}

impl<'a> Scratch<'a> {
    fn new(mixer: &StateSpace, scratch: &'a mut [f32]) -> Self {
        let (states, rest) = scratch.split_at_mut(mixer.state_len());
        let (partial, carried) = rest.split_at_mut(mixer.n_heads * StateSpace::TILE_TOKENS * mixer.state);
        Scratch { states, partial, carried }
    }
}

/// d_mixed (N, W) and d_steps (N, H) from d_out; writes the rows that the spans name.
pub(super) fn backward(
    inputs: Inputs<'_>,
    spans: &[Span],
    outputs: Outputs<'_>,
    scratch: &mut [f32],
    d_mixed: &mut [f32],
    d_steps: &mut [f32],
) {
    let mut scratch = Scratch::new(&inputs.mixer, scratch);
    let d_mixed = Shared::new(d_mixed, inputs.mixer.mixed());
    let d_steps = Shared::new(d_steps, inputs.mixer.n_heads);
    for span in spans {
        let rows = span.first..span.first + span.n;
        states_again(inputs, rows.clone(), outputs, &mut scratch, d_mixed);
        gradients_back(inputs, rows, outputs, &mut scratch, d_mixed, d_steps);
    }
}

/// Tiles of a span's rows, first to last.
fn tiles(rows: Range<usize>) -> impl DoubleEndedIterator<Item = Range<usize>> {
    let n = rows.len().div_ceil(StateSpace::TILE_TOKENS);
    (0..n).map(move |tile| {
        let first = rows.start + tile * StateSpace::TILE_TOKENS;
        first..(first + StateSpace::TILE_TOKENS).min(rows.end)
    })
}

/// d_C_t = Σ_p state_t,p · d_out_t,p
fn states_again(
    inputs: Inputs<'_>,
    rows: Range<usize>,
    outputs: Outputs<'_>,
    scratch: &mut Scratch<'_>,
    d_mixed: Shared<'_>,
) {
    let StateSpace { head_dim: p, state: s, .. } = inputs.mixer;
    scratch.states.fill(0.0);
    for tile in tiles(rows) {
        let states = scratch.states.par_chunks_mut(p * s);
        let partial = scratch.partial.par_chunks_mut(StateSpace::TILE_TOKENS * s);
        states.zip(partial).enumerate().for_each(|(head, (state, d_c))| {
            for (row, d_c) in tile.clone().zip(d_c.chunks_exact_mut(s)) {
                let Token { step, kept, x, b, .. } = inputs.token(row, head);
                weigh_states(kept, step, x, b, inputs.of_head(outputs.d_out, row, head), state, d_c);
            }
        });
        add_up(inputs.mixer, &tile, scratch.partial, |head| inputs.c_column(head), d_mixed);
    }
}

multiversion! {
    /// state_p = kept · state_p + step · x_p · b, d_c = Σ_p d_p · state_p
    fn weigh_states(kept: f32, step: f32, x: &[f32], b: &[f32], d: &[f32], state: &mut [f32], d_c: &mut [f32]) {
        d_c.fill(0.0);
        for ((state, x), d) in state.chunks_exact_mut(b.len()).zip(x).zip(d) {
            let factor = step * x;
            for ((state, b), d_c) in state.iter_mut().zip(b).zip(&mut *d_c) {
                *state = kept * *state + factor * b;
                *d_c += d * *state;
            }
        }
    }
}

/// Adds up, token by token of a tile, what the heads of a group hold for the columns that they share.
fn add_up(
    mixer: StateSpace,
    tile: &Range<usize>,
    partial: &[f32],
    column: impl Fn(usize) -> usize + Sync,
    d_mixed: Shared<'_>,
) {
    let (s, per_group) = (mixer.state, mixer.n_heads / mixer.n_groups);
    tile.clone().into_par_iter().for_each(|row| {
        for group in 0..mixer.n_groups {
            let heads = group * per_group..(group + 1) * per_group;
            // SAFETY: this task alone touches this row, and nothing else runs now.
            let sum = unsafe { d_mixed.row(row, column(heads.start), s) };
            sum.fill(0.0);
            for head in heads {
                let at = (head * StateSpace::TILE_TOKENS + row - tile.start) * s;
                sum.iter_mut().zip(&partial[at..at + s]).for_each(|(sum, x)| *sum += x);
            }
        }
    });
}

/// What running the gradient of the state backward gives of x, B and the step.
fn gradients_back(
    inputs: Inputs<'_>,
    rows: Range<usize>,
    outputs: Outputs<'_>,
    scratch: &mut Scratch<'_>,
    d_mixed: Shared<'_>,
    d_steps: Shared<'_>,
) {
    let StateSpace { head_dim: p, state: s, .. } = inputs.mixer;
    scratch.states.fill(0.0);
    scratch.carried.fill(0.0);
    for tile in tiles(rows.clone()).rev() {
        let states = scratch.states.par_chunks_mut(p * s);
        let partial = scratch.partial.par_chunks_mut(StateSpace::TILE_TOKENS * s);
        let heads = states.zip(partial).zip(&mut *scratch.carried).enumerate();
        heads.for_each(|(head, ((d_state, d_b), carried))| {
            let mut reverse = Reverse { inputs, outputs, head, d_state, carried };
            for (row, d_b) in tile.clone().zip(d_b.chunks_exact_mut(s)).rev() {
                // The state of the last token goes nowhere.
                let kept_after = if row + 1 < rows.end { inputs.token(row + 1, head).kept } else { 0.0 };
                // SAFETY: this task alone touches this head's columns.
                let (d_x, d_step) = unsafe { (d_mixed.row(row, head * p, p), d_steps.row(row, head, 1)) };
                d_step[0] = reverse.token(row, kept_after, d_x, d_b);
            }
        });
        add_up(inputs.mixer, &tile, scratch.partial, |head| inputs.b_column(head), d_mixed);
    }
}

/// One head, run from the last token to the first. With G_t the gradient of the state after token t:
///
/// G_t = kept_(t+1) · G_(t+1) + d_out_t ⊗ C_t,  d_x_t = D · d_out_t + step_t · G_t·B_t,  d_B_t = step_t · G_tᵀ·x_t,
/// d_step_t = x_t·G_t·B_t + A · r_t,  r_t = kept_t · ⟨G_t, state_(t-1)⟩
///
/// and without any state, ⟨G_t, state_t⟩ being r_t + step_t · x_t·G_t·B_t as well as r_(t+1) + d_out_t · state_t·C_t:
/// r_t = r_(t+1) + d_out_t · (out_t - D · x_t) - step_t · x_t·G_t·B_t
struct Reverse<'a> {
    inputs: Inputs<'a>,
    outputs: Outputs<'a>,
    head: usize,
    /// G (P, S)
    d_state: &'a mut [f32],
    /// r
    carried: &'a mut f32,
}

impl Reverse<'_> {
    /// One token; returns the gradient of its step's projection.
    fn token(&mut self, row: usize, kept_after: f32, d_x: &mut [f32], d_b: &mut [f32]) -> f32 {
        let (inputs, head) = (self.inputs, self.head);
        let token = inputs.token(row, head);
        let Token { step, slope, x, .. } = token;
        let (out, d_out) =
            (inputs.of_head(self.outputs.out, row, head), inputs.of_head(self.outputs.d_out, row, head));
        pull_state(kept_after, d_out, &token, self.d_state, d_x, d_b);
        d_b.iter_mut().for_each(|d_b| *d_b *= step);
        let (skip, mut through, mut weight) = (inputs.skip[head], 0.0f64, 0.0f64);
        for (((d_x, x), out), d_out) in d_x.iter_mut().zip(x).zip(out).zip(d_out) {
            through += f64::from(*x) * f64::from(*d_x);
            weight += f64::from(*d_out) * (f64::from(*out) - f64::from(skip) * f64::from(*x));
            *d_x = skip * d_out + step * *d_x;
        }
        let r = f64::from(*self.carried) + weight - f64::from(step) * through;
        *self.carried = r as f32;
        slope * (through + f64::from(inputs.decay[head]) * r) as f32
    }
}

multiversion! {
    /// state_p = kept · state_p + d_p · c, to_p = state_p · b, d_b = Σ_p x_p · state_p
    fn pull_state(kept: f32, d: &[f32], token: &Token<'_>, state: &mut [f32], to: &mut [f32], d_b: &mut [f32]) {
        let Token { x, b, c, .. } = *token;
        d_b.fill(0.0);
        for (((state, d), x), to) in state.chunks_exact_mut(c.len()).zip(d).zip(x).zip(to) {
            *to = update_and_dot(state, kept, *d, c, b);
            for (d_b, state) in d_b.iter_mut().zip(&*state) {
                *d_b += x * state;
            }
        }
    }
}
