//! Blockwise causal attention with grouped heads over packed sequences, forward and backward.
//!
//! Scores exist only as one block of [`BLOCK`] queries by [`BLOCK`] keys on a task's stack. The forward pass keeps the
//! log-sum-exp of each row of scores; the backward pass rebuilds probabilities from it.
//! Source: Dao et al. 2022, arXiv:2205.14135, algorithms 1 and 4.
//!
//! `unsafe` because tasks write disjoint heads (columns) and query blocks (rows) of shared outputs.

#![allow(unsafe_code)]

use std::ops::Range;

use rayon::prelude::*;

use super::isa::{exp, lane_max, lane_sum, multiversion};
use super::product::{Mat, MatMut, Shared, Threads, multiply};
use crate::device::{Heads, Segment, Write};

/// Queries and keys of a block: 64 x 64 scores are 16 KiB, half of a first-level cache.
const BLOCK: usize = 64;

/// A block of scores, or of their gradient.
type Block = [f32; BLOCK * BLOCK];

/// Inputs of an attention: q (·, H·D), k (·, K·D), v (·, K·E).
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub(super) heads: Heads,
    pub(super) q: &'a [f32],
    pub(super) k: &'a [f32],
    pub(super) v: &'a [f32],
}

impl<'a> Inputs<'a> {
    pub(super) fn q_width(&self) -> usize {
        self.heads.n_heads * self.heads.head_dim
    }

    pub(super) fn k_width(&self) -> usize {
        self.heads.n_kv_heads * self.heads.head_dim
    }

    pub(super) fn v_width(&self) -> usize {
        self.heads.n_kv_heads * self.heads.value_dim
    }

    pub(super) fn out_width(&self) -> usize {
        self.heads.n_heads * self.heads.value_dim
    }

    /// How many query heads read one kv head.
    pub(super) fn group(&self) -> usize {
        self.heads.n_heads / self.heads.n_kv_heads
    }

    /// Rows of one head of the queries.
    fn query_rows(&self, head: usize, first: usize, n: usize) -> Mat<'a> {
        rows_of_head(self.q, self.q_width(), self.heads.head_dim, head, first, n)
    }

    /// Rows of one kv head of the keys.
    fn key_rows(&self, kv_head: usize, first: usize, n: usize) -> Mat<'a> {
        rows_of_head(self.k, self.k_width(), self.heads.head_dim, kv_head, first, n)
    }

    /// Rows of one kv head of the values.
    fn value_rows(&self, kv_head: usize, first: usize, n: usize) -> Mat<'a> {
        rows_of_head(self.v, self.v_width(), self.heads.value_dim, kv_head, first, n)
    }

    /// Rows of one head of a matrix with the output's layout.
    fn out_rows(&self, data: &'a [f32], head: usize, first: usize, n: usize) -> Mat<'a> {
        rows_of_head(data, self.out_width(), self.heads.value_dim, head, first, n)
    }
}

fn rows_of_head(data: &[f32], width: usize, head_dim: usize, head: usize, first: usize, n: usize) -> Mat<'_> {
    Mat::new(&data[first * width + head * head_dim..], n, head_dim, width)
}

/// The blocks of `len` rows: first row and number of rows.
fn blocks(len: usize, size: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..len).step_by(size).map(move |start| (start, size.min(len - start)))
}

/// The keys that query `query` of a segment sees.
pub(super) fn visible(segment: &Segment, query: usize, window: Option<usize>) -> Range<usize> {
    let end = segment.n_keys - segment.n_queries + query + 1;
    window.map_or(0, |window| end.saturating_sub(window))..end
}

/// The blocks of keys that any of `n` queries from the `first` sees: first key and number of keys.
pub(super) fn key_blocks(
    segment: &Segment,
    (first, n): (usize, usize),
    window: Option<usize>,
    size: usize,
) -> impl Iterator<Item = (usize, usize)> {
    let start = visible(segment, first, window).start;
    let end = visible(segment, first + n - 1, window).end;
    blocks(end, size).filter(move |(first_key, n_keys)| first_key + n_keys > start)
}

/// A range of keys, counted from the first of a block.
pub(super) fn within(seen: Range<usize>, first_key: usize, n_keys: usize) -> Range<usize> {
    let end = seen.end.saturating_sub(first_key).min(n_keys);
    seen.start.saturating_sub(first_key).min(end)..end
}

/// out = softmax(causal scores) · v and the log-sum-exp of each row
pub(super) fn forward(inputs: Inputs<'_>, segments: &[Segment], out: &mut [f32], lse: &mut [f32]) {
    let out = Shared::new(out, inputs.out_width());
    let lse = Shared::new(lse, inputs.heads.n_heads);
    segments.par_iter().for_each(|segment| {
        (0..inputs.heads.n_heads).into_par_iter().for_each(|head| {
            (0..segment.n_queries.div_ceil(BLOCK)).into_par_iter().for_each(|index| {
                let first = index * BLOCK;
                let queries = (first, BLOCK.min(segment.n_queries - first));
                forward_block(inputs, segment, head, queries, out, lse);
            });
        });
    });
}

/// One block of queries of one head against all keys it sees; the task owns these rows of its head's columns.
fn forward_block(
    inputs: Inputs<'_>,
    segment: &Segment,
    head: usize,
    (first, n): (usize, usize),
    out: Shared<'_>,
    lse: Shared<'_>,
) {
    let e = inputs.heads.value_dim;
    let row = segment.first_query + first;
    let q = inputs.query_rows(head, row, n);
    let mut scores: Block = [0.0; BLOCK * BLOCK];
    let (mut max, mut sum) = ([f32::NEG_INFINITY; BLOCK], [0.0f32; BLOCK]);
    let window = inputs.heads.window;
    for (index, (first_key, n_keys)) in key_blocks(segment, (first, n), window, BLOCK).enumerate() {
        let (kv_head, key_row) = (head / inputs.group(), segment.first_key + first_key);
        let k = inputs.key_rows(kv_head, key_row, n_keys);
        let v = inputs.value_rows(kv_head, key_row, n_keys);
        multiply(1.0, q, k.t(), Write::Set, MatMut::new(&mut scores, n, n_keys, BLOCK), Threads::One);
        for i in 0..n {
            let seen = within(visible(segment, first + i, window), first_key, n_keys);
            let row_scores = &mut scores[i * BLOCK..][..n_keys];
            let correction = softmax_row(row_scores, seen, inputs.heads.scale, &mut max[i], &mut sum[i]);
            // SAFETY: this task alone touches these rows of this head's columns.
            let out = unsafe { out.row(row + i, head * e, e) };
            rescale(out, if index == 0 { 0.0 } else { correction });
        }
        let p = Mat::new(&scores, n, n_keys, BLOCK);
        // SAFETY: as above; the row borrowed in the loop is gone.
        let out = unsafe { out.block(row, n, head * e, e) };
        multiply(1.0, p, v, Write::Add, out, Threads::One);
    }
    for i in 0..n {
        // SAFETY: as above.
        let (out, lse) = unsafe { (out.row(row + i, head * e, e), lse.row(row + i, head, 1)) };
        rescale(out, 1.0 / sum[i]);
        lse[0] = max[i] + sum[i].ln();
    }
}

multiversion! {
    /// Turns a row of products into exp(scale · product - running maximum), 0 outside `seen`; returns what earlier sums
    /// shrink by. The scale is above 0.
    pub(super) fn softmax_row(scores: &mut [f32], seen: Range<usize>, scale: f32, max: &mut f32, sum: &mut f32) -> f32 {
        scores[..seen.start].fill(0.0);
        scores[seen.end..].fill(0.0);
        let seen_scores = &mut scores[seen];
        let new_max = (scale * lane_max(seen_scores)).max(*max);
        if new_max == f32::NEG_INFINITY {
            return 1.0;
        }
        for score in seen_scores.iter_mut() {
            *score = exp(scale * *score - new_max);
        }
        let correction = exp(*max - new_max);
        *sum = *sum * correction + lane_sum([seen_scores], |[score]| score);
        *max = new_max;
        correction
    }
}

multiversion! {
    pub(super) fn rescale(row: &mut [f32], factor: f32) {
        for value in row {
            // A factor of 0 clears rows that hold anything, infinities of an earlier batch included.
            *value = if factor == 0.0 { 0.0 } else { *value * factor };
        }
    }
}

/// What the forward pass left, and the gradient of its output.
#[derive(Clone, Copy)]
pub(super) struct Outputs<'a> {
    pub(super) out: &'a [f32],
    pub(super) lse: &'a [f32],
    pub(super) d_out: &'a [f32],
}

/// Pairs of a query and a key that it sees, of one head.
fn pairs(heads: Heads, segments: &[Segment]) -> usize {
    let of_segment = |segment: &Segment| {
        (0..segment.n_queries).map(|i| visible(segment, i, heads.window).len()).sum::<usize>()
    };
    segments.iter().map(of_segment).sum()
}

/// Floating-point operations of what is seen: scores and sums of values.
pub(super) fn flops(heads: Heads, segments: &[Segment]) -> usize {
    2 * pairs(heads, segments) * heads.n_heads * (heads.head_dim + heads.value_dim)
}

/// The same of the backward: scores again, d_q, d_k along the heads, d_p and d_v along the values.
pub(super) fn backward_flops(heads: Heads, segments: &[Segment]) -> usize {
    2 * pairs(heads, segments) * heads.n_heads * (3 * heads.head_dim + 2 * heads.value_dim)
}

/// Gradients of q, k, v in shared matrices.
#[derive(Clone, Copy)]
pub(super) struct Gradients<'a> {
    pub(super) d_q: Shared<'a>,
    pub(super) d_k: Shared<'a>,
    pub(super) d_v: Shared<'a>,
}

impl<'a> Gradients<'a> {
    /// Matrices of the widths of q, k and v.
    pub(super) fn new(
        inputs: Inputs<'_>,
        d_q: &'a mut [f32],
        d_k: &'a mut [f32],
        d_v: &'a mut [f32],
    ) -> Self {
        Self {
            d_q: Shared::new(d_q, inputs.q_width()),
            d_k: Shared::new(d_k, inputs.k_width()),
            d_v: Shared::new(d_v, inputs.v_width()),
        }
    }
}

/// d_q, d_k, d_v of the rows that the segments name
pub(super) fn backward(
    inputs: Inputs<'_>,
    segments: &[Segment],
    outputs: Outputs<'_>,
    d_q: &mut [f32],
    d_k: &mut [f32],
    d_v: &mut [f32],
) {
    let gradients = Gradients::new(inputs, d_q, d_k, d_v);
    segments.par_iter().for_each(|segment| {
        (0..inputs.heads.n_kv_heads).into_par_iter().for_each(|kv_head| {
            backward_kv_head(inputs, segment, kv_head, outputs, gradients);
        });
    });
}

/// One kv head of one segment with all query heads that read it: the task owns their columns of these rows.
fn backward_kv_head(
    inputs: Inputs<'_>,
    segment: &Segment,
    kv_head: usize,
    outputs: Outputs<'_>,
    gradients: Gradients<'_>,
) {
    let group = inputs.group();
    let heads = kv_head * group..(kv_head + 1) * group;
    clear(gradients.d_k, segment.first_key, segment.n_keys, kv_head, inputs.heads.head_dim);
    clear(gradients.d_v, segment.first_key, segment.n_keys, kv_head, inputs.heads.value_dim);
    for head in heads {
        clear(gradients.d_q, segment.first_query, segment.n_queries, head, inputs.heads.head_dim);
        for queries in blocks(segment.n_queries, BLOCK) {
            let mut delta = [0.0; BLOCK];
            row_deltas(inputs, segment, head, queries, outputs, &mut delta);
            for keys in key_blocks(segment, queries, inputs.heads.window, BLOCK) {
                backward_block(inputs, segment, head, queries, keys, &delta, outputs, gradients);
            }
        }
    }
}

/// Clears one head's columns of some rows.
pub(super) fn clear(matrix: Shared<'_>, first: usize, n: usize, head: usize, d: usize) {
    for row in first..first + n {
        // SAFETY: called by the task that owns these rows of this head's columns.
        unsafe { matrix.row(row, head * d, d) }.fill(0.0);
    }
}

/// δ_i = Σ d_out_i · out_i
fn row_deltas(
    inputs: Inputs<'_>,
    segment: &Segment,
    head: usize,
    (first, n): (usize, usize),
    outputs: Outputs<'_>,
    delta: &mut [f32; BLOCK],
) {
    let e = inputs.heads.value_dim;
    for (i, delta) in delta[..n].iter_mut().enumerate() {
        let start = (segment.first_query + first + i) * inputs.out_width() + head * e;
        *delta = dot(&outputs.out[start..start + e], &outputs.d_out[start..start + e]);
    }
}

multiversion! {
    pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
        lane_sum([a, b], |[a, b]| a * b)
    }
}

/// One block of queries against one block of keys.
#[allow(clippy::too_many_arguments)]
fn backward_block(
    inputs: Inputs<'_>,
    segment: &Segment,
    head: usize,
    (first, n): (usize, usize),
    (first_key, n_keys): (usize, usize),
    delta: &[f32; BLOCK],
    outputs: Outputs<'_>,
    gradients: Gradients<'_>,
) {
    let Heads { head_dim: d, value_dim: e, scale, .. } = inputs.heads;
    let kv_head = head / inputs.group();
    let (row, key_row) = (segment.first_query + first, segment.first_key + first_key);
    let (mut p, mut d_s): (Block, Block) = ([0.0; BLOCK * BLOCK], [0.0; BLOCK * BLOCK]);
    let q = inputs.query_rows(head, row, n);
    let d_out = inputs.out_rows(outputs.d_out, head, row, n);
    let k = inputs.key_rows(kv_head, key_row, n_keys);
    let v = inputs.value_rows(kv_head, key_row, n_keys);
    multiply(1.0, q, k.t(), Write::Set, MatMut::new(&mut p, n, n_keys, BLOCK), Threads::One);
    multiply(1.0, d_out, v.t(), Write::Set, MatMut::new(&mut d_s, n, n_keys, BLOCK), Threads::One);
    for i in 0..n {
        let seen = within(visible(segment, first + i, inputs.heads.window), first_key, n_keys);
        let lse = outputs.lse[(row + i) * inputs.heads.n_heads + head];
        let (p, d_s) = (&mut p[i * BLOCK..][..n_keys], &mut d_s[i * BLOCK..][..n_keys]);
        score_gradient_row(p, d_s, seen, lse, delta[i], scale);
    }
    let (p, d_s) = (Mat::new(&p, n, n_keys, BLOCK), Mat::new(&d_s, n, n_keys, BLOCK));
    // SAFETY: the task owns these rows of these heads' columns; the three blocks lie in three matrices.
    let (d_q, d_k, d_v) = unsafe {
        (
            gradients.d_q.block(row, n, head * d, d),
            gradients.d_k.block(key_row, n_keys, kv_head * d, d),
            gradients.d_v.block(key_row, n_keys, kv_head * e, e),
        )
    };
    multiply(1.0, p.t(), d_out, Write::Add, d_v, Threads::One);
    multiply(1.0, d_s, k, Write::Add, d_q, Threads::One);
    multiply(1.0, d_s.t(), q, Write::Add, d_k, Threads::One);
}

multiversion! {
    /// p = exp(scale · product - lse), d_s = scale · p · (dP - δ), both 0 outside `seen`.
    pub(super) fn score_gradient_row(p: &mut [f32], d_s: &mut [f32], seen: Range<usize>, lse: f32, delta: f32, scale: f32) {
        for row in [&mut *p, &mut *d_s] {
            row[..seen.start].fill(0.0);
            row[seen.end..].fill(0.0);
        }
        for i in seen {
            p[i] = exp(scale * p[i] - lse);
            d_s[i] = scale * p[i] * (d_s[i] - delta);
        }
    }
}
