//! The backward of attention.
//!
//! A task owns the gradients of one kv head's keys and values and of all query heads that read it. Queries are packed for
//! as many blocks as there is room for; then each block of keys meets them.

use std::ops::Range;

use rayon::prelude::*;

use super::super::super::attention::{Gradients, Inputs, Outputs, clear, dot};
use super::super::{
    AmxBf16, Avx2F32, Avx2Int16, Avx512Bf16, Avx512F32, Avx512Int16, AvxVnniInt16, Dense, DenseKernel, Out,
    Panels, Rows, clear_beside, parts, with_dense,
};
use super::softmax::{Rowwise, Scores};
use super::{
    KEYS, MOST_QUERIES, Seen, of_head, panel_words, queries, scores_of, set, sum_over_keys, sum_over_queries,
    take, tile_words,
};
use crate::device::{Heads, Segment};

/// Rows that are asked for before the one that is read.
const AHEAD: usize = 4;

/// Words of packed operands that a task takes at the least.
pub(super) fn needed<K: DenseKernel>(heads: Heads) -> usize {
    key_words::<K>(heads) + QueryPanels::words::<K>(heads)
}

/// Words of the keys' panels and of the products with them.
fn key_words<K: DenseKernel>(heads: Heads) -> usize {
    let (d, e, queries) = (heads.head_dim, heads.value_dim, queries::<K>());
    panel_words::<K>(d, KEYS)
        + panel_words::<K>(KEYS, d)
        + panel_words::<K>(e, KEYS)
        + tile_words::<K>(queries, KEYS)
        + tile_words::<K>(KEYS, queries)
        + KEYS * (d + e)
}

/// d_q, d_k, d_v of the rows that the segments name
pub(in super::super::super) fn backward(
    panels: &Panels,
    inputs: Inputs<'_>,
    segments: &[Segment],
    outputs: Outputs<'_>,
    d_q: &mut [f32],
    d_k: &mut [f32],
    d_v: &mut [f32],
) {
    let gradients = Gradients::new(inputs, d_q, d_k, d_v);
    with_dense!(panels.attention, backward_with(panels, inputs, segments, outputs, gradients))
}

fn backward_with<K: DenseKernel>(
    panels: &Panels,
    inputs: Inputs<'_>,
    segments: &[Segment],
    outputs: Outputs<'_>,
    gradients: Gradients<'_>,
) {
    segments.par_iter().for_each(|segment| {
        (0..inputs.heads.n_kv_heads).into_par_iter().for_each(|kv_head| {
            backward_kv_head::<K>(panels, inputs, segment, kv_head, outputs, gradients);
        });
    });
}

/// One kv head of one segment with all query heads that read it: the task owns their columns of these rows.
fn backward_kv_head<K: DenseKernel>(
    panels: &Panels,
    inputs: Inputs<'_>,
    segment: &Segment,
    kv_head: usize,
    outputs: Outputs<'_>,
    gradients: Gradients<'_>,
) {
    let heads = inputs.heads;
    let (d, e, group, scratch) = (heads.head_dim, heads.value_dim, inputs.group(), &mut *panels.scratch());
    let (mut rest, scores) = scratch.panels_and_rows::<f32>();
    let queries = queries::<K>();
    let mut keys = KeyPanels {
        columns: take(&mut rest, panel_words::<K>(d, KEYS)),
        lines: take(&mut rest, panel_words::<K>(KEYS, d)),
        values: take(&mut rest, panel_words::<K>(e, KEYS)),
        across: take(&mut rest, tile_words::<K>(queries, KEYS)),
        down: take(&mut rest, tile_words::<K>(KEYS, queries)),
        d_k: bytemuck::cast_slice_mut(take(&mut rest, KEYS * d)),
        d_v: bytemuck::cast_slice_mut(take(&mut rest, KEYS * e)),
        scores,
    };
    clear(gradients.d_k, segment.first_key, segment.n_keys, kv_head, d);
    clear(gradients.d_v, segment.first_key, segment.n_keys, kv_head, e);
    let at_once = rest.len() / QueryPanels::words::<K>(heads) * queries;
    for head in kv_head * group..(kv_head + 1) * group {
        for of_part in parts(0..segment.n_queries, at_once) {
            let mut blocks = pack_queries::<K>(inputs, outputs, segment, head, of_part, rest);
            for of_block in parts(0..segment.n_keys, KEYS) {
                let (first_key, n_keys) = (of_block.start, of_block.len());
                let key_rows = (segment.first_key + first_key, n_keys);
                let mut is_packed = false;
                for block in &mut blocks {
                    let ((first, n), window) = (block.queries, heads.window);
                    let seen = Seen { segment, window, first, n, first_key, n_keys };
                    if !seen.sees_any() {
                        continue;
                    }
                    if !is_packed {
                        keys.pack::<K>(inputs, kv_head, key_rows);
                        is_packed = true;
                    }
                    block.backward::<K>(seen, inputs, outputs, gradients, &mut keys);
                }
                if is_packed {
                    keys.add_to(gradients, heads, kv_head, key_rows);
                }
            }
        }
    }
}

/// Packs as many blocks of queries of a head as there is room for.
fn pack_queries<'a, K: DenseKernel>(
    inputs: Inputs<'_>,
    outputs: Outputs<'_>,
    segment: &Segment,
    head: usize,
    queries_of_part: Range<usize>,
    mut room: &'a mut [u32],
) -> Vec<Block<'a>> {
    let (heads, mut blocks) = (inputs.heads, Vec::new());
    for of_block in parts(queries_of_part, queries::<K>()) {
        let (first, n) = (of_block.start, of_block.len());
        let rows = (segment.first_query + first, n);
        let out = of_head(outputs.out, inputs.out_width(), heads.value_dim, head, rows);
        let d_out = of_head(outputs.d_out, inputs.out_width(), heads.value_dim, head, rows);
        let mut deltas = [0.0; MOST_QUERIES];
        for (i, delta) in deltas.iter_mut().enumerate().take(n) {
            out.prefetch(i + AHEAD);
            d_out.prefetch(i + AHEAD);
            *delta = dot(out.row(i), d_out.row(i));
        }
        let mut panels = QueryPanels::split::<K>(heads, take(&mut room, QueryPanels::words::<K>(heads)));
        panels.pack::<K>(of_head(inputs.q, inputs.q_width(), heads.head_dim, head, rows), d_out);
        blocks.push(Block { head, queries: (first, n), deltas, panels, has_begun: false });
    }
    blocks
}

/// A block of keys, packed for all products, and room for its probabilities and their gradients.
struct KeyPanels<'a> {
    /// k, summed along the head.
    columns: &'a mut [u32],
    /// k, summed along the keys.
    lines: &'a mut [u32],
    /// v, summed along the head.
    values: &'a mut [u32],
    /// What is summed along the keys.
    across: &'a mut [u32],
    /// What is summed along the queries.
    down: &'a mut [u32],
    /// (keys, D), (keys, E): rows of the gradients lie far apart, those of these sums beside each other.
    d_k: &'a mut [f32],
    d_v: &'a mut [f32],
    scores: &'a mut [f32],
}

impl KeyPanels<'_> {
    fn pack<K: DenseKernel>(&mut self, inputs: Inputs<'_>, kv_head: usize, rows: (usize, usize)) {
        let Heads { head_dim: d, value_dim: e, .. } = inputs.heads;
        let k = of_head(inputs.k, inputs.k_width(), d, kv_head, rows);
        clear_beside::<K>(rows.1, d, self.columns);
        clear_beside::<K>(rows.1, e, self.values);
        self.d_k.fill(0.0);
        self.d_v.fill(0.0);
        // SAFETY: `Panels` are made only where the kernel is possible.
        unsafe {
            K::columns(k, 0, self.columns);
            K::lines(k, 0, rows.1, self.lines);
            K::columns(of_head(inputs.v, inputs.v_width(), e, kv_head, rows), 0, self.values);
        }
    }

    /// Adds what a head's queries gave to the gradients of keys and values.
    fn add_to(&self, gradients: Gradients<'_>, heads: Heads, kv_head: usize, (first, n): (usize, usize)) {
        for (to, sums, dim) in
            [(gradients.d_k, &*self.d_k, heads.head_dim), (gradients.d_v, &*self.d_v, heads.value_dim)]
        {
            for (i, sums) in sums.chunks_exact(dim).enumerate().take(n) {
                // SAFETY: the task owns these rows of these columns.
                let row = unsafe { to.row(first + i, kv_head * dim, dim) };
                row.iter_mut().zip(sums).for_each(|(to, sum)| *to += sum);
            }
        }
    }
}

/// A block of queries and of the gradients of their outputs, packed for all products.
struct QueryPanels<'a> {
    tiles: &'a mut [u32],
    lines: &'a mut [u32],
    d_out_tiles: &'a mut [u32],
    d_out_lines: &'a mut [u32],
}

impl<'a> QueryPanels<'a> {
    fn words<K: DenseKernel>(heads: Heads) -> usize {
        let (d, e, queries) = (heads.head_dim, heads.value_dim, queries::<K>());
        tile_words::<K>(queries, d)
            + panel_words::<K>(queries, d)
            + tile_words::<K>(queries, e)
            + panel_words::<K>(queries, e)
    }

    fn split<K: DenseKernel>(heads: Heads, mut words: &'a mut [u32]) -> Self {
        let (d, e, queries) = (heads.head_dim, heads.value_dim, queries::<K>());
        Self {
            tiles: take(&mut words, tile_words::<K>(queries, d)),
            lines: take(&mut words, panel_words::<K>(queries, d)),
            d_out_tiles: take(&mut words, tile_words::<K>(queries, e)),
            d_out_lines: take(&mut words, panel_words::<K>(queries, e)),
        }
    }

    fn pack<K: DenseKernel>(&mut self, q: Rows<'_, f32>, d_out: Rows<'_, f32>) {
        // SAFETY: `Panels` are made only where the kernel is possible.
        unsafe {
            K::tiles(q, self.tiles);
            K::lines(q, 0, q.rows, self.lines);
            K::tiles(d_out, self.d_out_tiles);
            K::lines(d_out, 0, d_out.rows, self.d_out_lines);
        }
    }
}

/// Some queries of a head.
struct Block<'a> {
    head: usize,
    /// The first query, and how many.
    queries: (usize, usize),
    deltas: [f32; MOST_QUERIES],
    panels: QueryPanels<'a>,
    /// Whether their gradients hold sums.
    has_begun: bool,
}

impl Block<'_> {
    /// Meets a block of keys that any of the queries sees.
    fn backward<K: DenseKernel>(
        &mut self,
        seen: Seen<'_>,
        inputs: Inputs<'_>,
        outputs: Outputs<'_>,
        gradients: Gradients<'_>,
        keys: &mut KeyPanels<'_>,
    ) {
        let Heads { head_dim: d, value_dim: e, scale, n_heads, .. } = inputs.heads;
        let Seen { segment, first, n, n_keys, .. } = seen;
        let (head, panels, seen_keys) = (self.head, &self.panels, seen.by_query(n - 1).end);
        let row = segment.first_query + first;
        let (p, d_s) = keys.scores.split_at_mut(MOST_QUERIES * KEYS);
        let of_rows = (0..n).map(|i| (outputs.lse[(row + i) * n_heads + head], self.deltas[i]));
        // SAFETY: `Panels` are made only where the kernel is possible; p and d_s have KEYS columns for each query.
        unsafe {
            scores_of::<K>(seen, panels.tiles, keys.columns, d, set(p, KEYS));
            scores_of::<K>(seen, panels.d_out_tiles, keys.values, e, set(d_s, KEYS));
            let scores = Scores { data: &mut *p, stride: KEYS, n_keys };
            K::Vectors::score_gradients(scores, d_s, |i| seen.by_query(i), scale, of_rows);
        }
        let sums = |sums: &mut [f32], stride| Out { start: sums.as_mut_ptr(), stride, adds: true };
        // SAFETY: the task owns these rows of these heads' columns; sums have a row for each key.
        unsafe {
            K::tiles_down(Rows::new(p, KEYS, n, seen_keys), keys.down);
            sum_over_queries::<K>(seen, keys.down, panels.d_out_lines, e, sums(keys.d_v, e));
            let start = gradients.d_q.row(row, head * d, d).as_mut_ptr();
            let to = Out { start, stride: inputs.q_width(), adds: self.has_begun };
            K::tiles(Rows::new(d_s, KEYS, n, n_keys), keys.across);
            sum_over_keys::<K>(seen, keys.across, keys.lines, d, to);
            K::tiles_down(Rows::new(d_s, KEYS, n, seen_keys), keys.down);
            sum_over_queries::<K>(seen, keys.down, panels.lines, d, sums(keys.d_k, d));
        }
        self.has_begun = true;
    }
}
