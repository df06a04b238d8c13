//! Blockwise causal attention in 16 bits: queries, keys, values and probabilities are rounded to bf16, scores and sums are
//! in f32.
//!
//! The blocks, what a query sees and the softmax are those of [`super::super::attention`], which also is the oracle.
//! Keys and values of a block are packed once for all heads that read them.

use rayon::prelude::*;

use super::super::attention::{
    Gradients, Inputs, Outputs, clear, dot, key_blocks, rescale, score_gradient_row, softmax_row, visible,
    within,
};
use super::super::product::Shared;
use super::{PANEL, Panels, TILE, pack, products};
use crate::device::{Heads, Segment};

/// Queries of a block: four tiles.
const QUERIES: usize = 4 * TILE;
/// Keys of a block: four panels.
const KEYS: usize = 4 * PANEL;
/// Tiles that the keys of a block fill.
const KEY_TILES: usize = KEYS.div_ceil(TILE);

/// Words of packed operands and floats of scores that a block takes.
fn needed(heads: Heads) -> (usize, usize) {
    let (d, e, group) = (heads.head_dim, heads.value_dim, heads.n_heads / heads.n_kv_heads);
    let forward = KEYS * (d + e) / 2 + group * QUERIES * d / 2 + QUERIES * KEYS / 2;
    let backward = KEYS * (2 * d + e) / 2 + QUERIES * (d + e) + (2 * KEY_TILES * TILE + KEYS) * QUERIES / 2;
    (forward.max(backward), 2 * QUERIES * KEYS)
}

/// Whether an attention is made here: of whole panels, of more than a few queries, within the room that threads have.
pub(in super::super) fn suits(heads: Heads, segments: &[Segment]) -> bool {
    let (words, floats) = needed(heads);
    let is_whole = heads.head_dim.is_multiple_of(PANEL) && heads.value_dim.is_multiple_of(PANEL);
    let has_queries = segments.iter().any(|segment| segment.n_queries >= TILE);
    is_whole && has_queries && words <= super::PANEL_WORDS && floats <= super::ROW_FLOATS
}

/// Takes the next words of a scratch.
fn take<'a>(rest: &mut &'a mut [u32], words: usize) -> &'a mut [u32] {
    let (taken, left) = std::mem::take(rest).split_at_mut(words);
    *rest = left;
    taken
}

/// Rows of one head of a matrix (·, width), as packing reads them.
#[derive(Clone, Copy)]
struct Rows<'a> {
    data: &'a [f32],
    width: usize,
    dim: usize,
    first: usize,
    n: usize,
}

impl<'a> Rows<'a> {
    fn new(data: &'a [f32], width: usize, dim: usize, head: usize, (first, n): (usize, usize)) -> Self {
        Self { data: &data[head * dim..], width, dim, first, n }
    }

    fn row(&self, i: usize) -> &'a [f32] {
        &self.data[(self.first + i) * self.width..][..self.dim]
    }

    /// As tiles of a product's left side, summed along the head.
    fn into_tiles(self, to: &mut [u32]) {
        // SAFETY: attention comes here only where `is_possible`.
        unsafe { pack::tiles(&self.data[self.first * self.width..], self.width, self.dim, self.n, to) };
    }

    /// As panels of its right side, summed along the head: a column for each row.
    fn into_columns(self, to: &mut [u32]) {
        let pairs = self.dim / 2;
        for first in (0..self.n).step_by(16) {
            let n = 16.min(self.n - first);
            let half = &mut to[first / PANEL * pairs * PANEL + first % PANEL..];
            let rows = &self.data[(self.first + first) * self.width..];
            // SAFETY: as above.
            unsafe { pack::rows_into_panel(rows, (self.width, self.dim), n, half) };
        }
    }

    /// As panels of its right side, summed along the rows.
    fn into_lines(self, to: &mut [u32]) {
        let pairs = self.n.div_ceil(2);
        let zeros = [0.0; PANEL];
        for p in 0..pairs {
            let upper = self.row(2 * p);
            let lower = (2 * p + 1 < self.n).then(|| self.row(2 * p + 1));
            for panel in 0..self.dim / PANEL {
                let part = panel * PANEL..(panel + 1) * PANEL;
                let line = &mut to[(panel * pairs + p) * PANEL..][..PANEL];
                let lower = lower.map_or(&zeros[..], |lower| &lower[part.clone()]);
                // SAFETY: as above.
                unsafe { pack::pair_of_rows(&upper[part], lower, line) };
            }
        }
    }
}

/// out = softmax(causal scores) · v and the log-sum-exp of each row
pub(in super::super) fn forward(
    panels: &Panels,
    inputs: Inputs<'_>,
    segments: &[Segment],
    out: &mut [f32],
    lse: &mut [f32],
) {
    let out = Shared::new(out, inputs.out_width());
    let lse = Shared::new(lse, inputs.heads.n_heads);
    segments.par_iter().for_each(|segment| {
        (0..inputs.heads.n_kv_heads).into_par_iter().for_each(|kv_head| {
            (0..segment.n_queries.div_ceil(QUERIES)).into_par_iter().for_each(|index| {
                let first = index * QUERIES;
                let queries = (first, QUERIES.min(segment.n_queries - first));
                forward_block(panels, inputs, segment, kv_head, queries, (out, lse));
            });
        });
    });
}

/// One block of queries, of all heads that read a kv head: the task owns these rows of their columns.
fn forward_block(
    panels: &Panels,
    inputs: Inputs<'_>,
    segment: &Segment,
    kv_head: usize,
    (first, n): (usize, usize),
    (out, lse): (Shared<'_>, Shared<'_>),
) {
    let Heads { head_dim: d, value_dim: e, scale, window, .. } = inputs.heads;
    let (group, row) = (inputs.group(), segment.first_query + first);
    let scratch = &mut *panels.scratch();
    let (mut rest, scores) = (&mut scratch.panels[..], &mut scratch.rows[..QUERIES * KEYS]);
    let keys = take(&mut rest, KEYS * d / 2);
    let values = take(&mut rest, KEYS * e / 2);
    let weights = take(&mut rest, QUERIES * KEYS / 2);
    let tile_words = QUERIES * d / 2;
    let queries = take(&mut rest, group * tile_words);
    for (index, tiles) in queries.chunks_exact_mut(tile_words).enumerate() {
        let head = kv_head * group + index;
        Rows::new(inputs.q, inputs.q_width(), d, head, (row, n)).into_tiles(tiles);
    }
    let mut states = vec![[(f32::NEG_INFINITY, 0.0f32); QUERIES]; group];
    let blocks = key_blocks(segment, (first, n), window, KEYS);
    for (block, (first_key, n_keys)) in blocks.enumerate() {
        let key_rows = (segment.first_key + first_key, n_keys);
        Rows::new(inputs.k, inputs.k_width(), d, kv_head, key_rows).into_columns(keys);
        Rows::new(inputs.v, inputs.v_width(), e, kv_head, key_rows).into_lines(values);
        for (index, tiles) in queries.chunks_exact(tile_words).enumerate() {
            let head = kv_head * group + index;
            // SAFETY: scores have KEYS columns for each of QUERIES rows.
            unsafe { products(tiles, keys, d, (n, n_keys), (scores.as_mut_ptr(), KEYS), false) };
            for (i, (max, sum)) in states[index][..n].iter_mut().enumerate() {
                let seen = within(visible(segment, first + i, window), first_key, n_keys);
                let scores = &mut scores[i * KEYS..][..n_keys];
                rescale(scores, scale);
                let correction = softmax_row(scores, seen, max, sum);
                // SAFETY: this task alone touches these rows of this head's columns.
                let out = unsafe { out.row(row + i, head * e, e) };
                rescale(out, if block == 0 { 0.0 } else { correction });
            }
            // SAFETY: see `Rows::into_tiles`.
            unsafe { pack::tiles(scores, KEYS, n_keys, n, weights) };
            // SAFETY: as above; the rows borrowed in the loop are gone.
            unsafe {
                let to = out.row(row, head * e, e).as_mut_ptr();
                products(weights, values, n_keys, (n, e), (to, inputs.out_width()), true);
            }
        }
    }
    for (index, states) in states.iter().enumerate() {
        let head = kv_head * group + index;
        for (i, (max, sum)) in states[..n].iter().enumerate() {
            // SAFETY: as above.
            let (out, lse) = unsafe { (out.row(row + i, head * e, e), lse.row(row + i, head, 1)) };
            rescale(out, 1.0 / sum);
            lse[0] = max + sum.ln();
        }
    }
}

/// d_q, d_k, d_v of the rows that the segments name
pub(in super::super) fn backward(
    panels: &Panels,
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
            backward_kv_head(panels, inputs, segment, kv_head, outputs, gradients);
        });
    });
}

/// One kv head of one segment with all query heads that read it: the task owns their columns of these rows.
fn backward_kv_head(
    panels: &Panels,
    inputs: Inputs<'_>,
    segment: &Segment,
    kv_head: usize,
    outputs: Outputs<'_>,
    gradients: Gradients<'_>,
) {
    let Heads { head_dim: d, value_dim: e, window, .. } = inputs.heads;
    let (group, scratch) = (inputs.group(), &mut *panels.scratch());
    let mut rest = &mut scratch.panels[..];
    let keys = KeyPanels {
        columns: take(&mut rest, KEYS * d / 2),
        lines: take(&mut rest, KEYS * d / 2),
        values: take(&mut rest, KEYS * e / 2),
    };
    let mut packed = QueryPanels {
        tiles: take(&mut rest, QUERIES * d / 2),
        lines: take(&mut rest, QUERIES * d / 2),
        d_out_tiles: take(&mut rest, QUERIES * e / 2),
        d_out_lines: take(&mut rest, QUERIES * e / 2),
        across: take(&mut rest, QUERIES * KEYS / 2),
        down: take(&mut rest, KEY_TILES * TILE * QUERIES / 2),
    };
    clear(gradients.d_k, segment.first_key, segment.n_keys, kv_head, d);
    clear(gradients.d_v, segment.first_key, segment.n_keys, kv_head, e);
    for head in kv_head * group..(kv_head + 1) * group {
        clear(gradients.d_q, segment.first_query, segment.n_queries, head, d);
    }
    for first_key in (0..segment.n_keys).step_by(KEYS) {
        let n_keys = KEYS.min(segment.n_keys - first_key);
        let key_rows = (segment.first_key + first_key, n_keys);
        let k = Rows::new(inputs.k, inputs.k_width(), d, kv_head, key_rows);
        k.into_columns(keys.columns);
        k.into_lines(keys.lines);
        Rows::new(inputs.v, inputs.v_width(), e, kv_head, key_rows).into_columns(keys.values);
        for head in kv_head * group..(kv_head + 1) * group {
            for first in (0..segment.n_queries).step_by(QUERIES) {
                let n = QUERIES.min(segment.n_queries - first);
                let start = visible(segment, first, window).start;
                let end = visible(segment, first + n - 1, window).end;
                if first_key >= end || first_key + n_keys <= start {
                    continue;
                }
                let block = Block { segment, head, first, n, first_key, n_keys };
                backward_block(inputs, &block, outputs, gradients, &keys, &mut packed, &mut scratch.rows);
            }
        }
    }
}

/// A block of keys, packed for all products.
struct KeyPanels<'a> {
    /// k, summed along the head.
    columns: &'a mut [u32],
    /// k, summed along the keys.
    lines: &'a mut [u32],
    /// v, summed along the head.
    values: &'a mut [u32],
}

/// A block of queries, packed for all products, and room for its probabilities and their gradients.
struct QueryPanels<'a> {
    tiles: &'a mut [u32],
    lines: &'a mut [u32],
    d_out_tiles: &'a mut [u32],
    d_out_lines: &'a mut [u32],
    /// Summed along the keys.
    across: &'a mut [u32],
    /// Summed along the queries.
    down: &'a mut [u32],
}

/// Some queries of a head and some keys.
struct Block<'a> {
    segment: &'a Segment,
    head: usize,
    first: usize,
    n: usize,
    first_key: usize,
    n_keys: usize,
}

/// One block of queries against one block of keys.
fn backward_block(
    inputs: Inputs<'_>,
    block: &Block<'_>,
    outputs: Outputs<'_>,
    gradients: Gradients<'_>,
    keys: &KeyPanels<'_>,
    packed: &mut QueryPanels<'_>,
    scores: &mut [f32],
) {
    let Heads { head_dim: d, value_dim: e, scale, window, n_heads, .. } = inputs.heads;
    let &Block { segment, head, first, n, first_key, n_keys } = block;
    let (kv_head, row, key_row) =
        (head / inputs.group(), segment.first_query + first, segment.first_key + first_key);
    let q = Rows::new(inputs.q, inputs.q_width(), d, head, (row, n));
    let d_out = Rows::new(outputs.d_out, inputs.out_width(), e, head, (row, n));
    let out = Rows::new(outputs.out, inputs.out_width(), e, head, (row, n));
    q.into_tiles(packed.tiles);
    q.into_lines(packed.lines);
    d_out.into_tiles(packed.d_out_tiles);
    d_out.into_lines(packed.d_out_lines);
    let (p, d_s) = scores.split_at_mut(QUERIES * KEYS);
    // SAFETY: p and d_s have KEYS columns for each of QUERIES rows.
    unsafe {
        products(packed.tiles, keys.columns, d, (n, n_keys), (p.as_mut_ptr(), KEYS), false);
        products(packed.d_out_tiles, keys.values, e, (n, n_keys), (d_s.as_mut_ptr(), KEYS), false);
    }
    for i in 0..n {
        let seen = within(visible(segment, first + i, window), first_key, n_keys);
        let (p, d_s) = (&mut p[i * KEYS..][..n_keys], &mut d_s[i * KEYS..][..n_keys]);
        rescale(p, scale);
        let delta = dot(out.row(i), d_out.row(i));
        score_gradient_row(p, d_s, seen, outputs.lse[(row + i) * n_heads + head], delta, scale);
    }
    // SAFETY: the task owns these rows of these heads' columns; the three blocks lie in three matrices.
    unsafe {
        let to = gradients.d_v.row(key_row, kv_head * e, e).as_mut_ptr();
        pack::tiles_down(p, (KEYS, n_keys), n, packed.down);
        products(packed.down, packed.d_out_lines, n, (n_keys, e), (to, inputs.v_width()), true);
        let to = gradients.d_q.row(row, head * d, d).as_mut_ptr();
        pack::tiles(d_s, KEYS, n_keys, n, packed.across);
        products(packed.across, keys.lines, n_keys, (n, d), (to, inputs.q_width()), true);
        let to = gradients.d_k.row(key_row, kv_head * d, d).as_mut_ptr();
        pack::tiles_down(d_s, (KEYS, n_keys), n, packed.down);
        products(packed.down, packed.lines, n, (n_keys, d), (to, inputs.k_width()), true);
    }
}
