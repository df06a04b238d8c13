//! The backward of attention.
//!
//! A task owns the gradients of one kv head's keys and values and of all query heads that read it. Queries are packed for
//! as many blocks as there is room for; then each block of keys meets them.

use rayon::prelude::*;

use super::super::super::attention::{Gradients, Inputs, Outputs, clear, dot, score_gradient_row, visible};
use super::super::{
    AmxBf16, Avx2F32, Avx2Int16, Avx512Bf16, Avx512F32, Avx512Int16, AvxVnniInt16, Dense, DenseKernel, Out,
    Panels, Rows, clear_beside, with_dense,
};
use super::{
    KEYS, MOST_QUERIES, Seen, of_head, panel_words, queries, scores_of, set, sum_over_keys, sum_over_queries,
    take, tile_words,
};
use crate::device::{Heads, Segment};

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
        scores,
    };
    clear(gradients.d_k, segment.first_key, segment.n_keys, kv_head, d);
    clear(gradients.d_v, segment.first_key, segment.n_keys, kv_head, e);
    let of_block = QueryPanels::words::<K>(heads);
    let at_once = rest.len() / of_block * queries;
    let mut deltas = vec![0.0; at_once.min(segment.n_queries)];
    for head in kv_head * group..(kv_head + 1) * group {
        clear(gradients.d_q, segment.first_query, segment.n_queries, head, d);
        for first in (0..segment.n_queries).step_by(at_once) {
            let n = at_once.min(segment.n_queries - first);
            let rows = (segment.first_query + first, n);
            let out = of_head(outputs.out, inputs.out_width(), e, head, rows);
            let d_out = of_head(outputs.d_out, inputs.out_width(), e, head, rows);
            deltas
                .iter_mut()
                .enumerate()
                .take(n)
                .for_each(|(i, delta)| *delta = dot(out.row(i), d_out.row(i)));
            let blocks = (first..first + n)
                .step_by(queries)
                .map(|first| (first, queries.min(segment.n_queries - first)));
            for ((first, n), words) in blocks.clone().zip(rest.chunks_exact_mut(of_block)) {
                QueryPanels::split::<K>(heads, words).pack::<K>(
                    inputs,
                    outputs,
                    head,
                    (segment.first_query + first, n),
                );
            }
            for first_key in (0..segment.n_keys).step_by(KEYS) {
                let n_keys = KEYS.min(segment.n_keys - first_key);
                let key_rows = (segment.first_key + first_key, n_keys);
                let mut is_packed = false;
                for (index, (block_first, n)) in blocks.clone().enumerate() {
                    let start = visible(segment, block_first, heads.window).start;
                    let end = visible(segment, block_first + n - 1, heads.window).end;
                    if first_key >= end || first_key + n_keys <= start {
                        continue;
                    }
                    if !is_packed {
                        keys.pack::<K>(inputs, kv_head, key_rows);
                        is_packed = true;
                    }
                    let packed = QueryPanels::split::<K>(heads, &mut rest[index * of_block..][..of_block]);
                    let window = heads.window;
                    let seen = Seen { segment, window, first: block_first, n, first_key, n_keys };
                    let block = Block { seen, head, deltas: &deltas[block_first - first..][..n] };
                    block.backward::<K>(inputs, outputs, gradients, &mut keys, &packed);
                }
            }
        }
    }
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
    scores: &'a mut [f32],
}

impl KeyPanels<'_> {
    fn pack<K: DenseKernel>(&mut self, inputs: Inputs<'_>, kv_head: usize, rows: (usize, usize)) {
        let Heads { head_dim: d, value_dim: e, .. } = inputs.heads;
        let k = of_head(inputs.k, inputs.k_width(), d, kv_head, rows);
        clear_beside::<K>(rows.1, d, self.columns);
        clear_beside::<K>(rows.1, e, self.values);
        // SAFETY: `Panels` are made only where the kernel is possible.
        unsafe {
            K::columns(k, 0, self.columns);
            K::lines(k, 0, rows.1, self.lines);
            K::columns(of_head(inputs.v, inputs.v_width(), e, kv_head, rows), 0, self.values);
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

    fn pack<K: DenseKernel>(
        self,
        inputs: Inputs<'_>,
        outputs: Outputs<'_>,
        head: usize,
        rows: (usize, usize),
    ) {
        let Heads { head_dim: d, value_dim: e, .. } = inputs.heads;
        let q = of_head(inputs.q, inputs.q_width(), d, head, rows);
        let d_out = of_head(outputs.d_out, inputs.out_width(), e, head, rows);
        // SAFETY: `Panels` are made only where the kernel is possible.
        unsafe {
            K::tiles(q, self.tiles);
            K::lines(q, 0, rows.1, self.lines);
            K::tiles(d_out, self.d_out_tiles);
            K::lines(d_out, 0, rows.1, self.d_out_lines);
        }
    }
}

/// Some queries of a head and some keys.
struct Block<'a> {
    seen: Seen<'a>,
    head: usize,
    /// out · d_out of each query.
    deltas: &'a [f32],
}

impl Block<'_> {
    /// One block of queries against one block of keys.
    fn backward<K: DenseKernel>(
        &self,
        inputs: Inputs<'_>,
        outputs: Outputs<'_>,
        gradients: Gradients<'_>,
        keys: &mut KeyPanels<'_>,
        packed: &QueryPanels<'_>,
    ) {
        let Heads { head_dim: d, value_dim: e, scale, n_heads, .. } = inputs.heads;
        let &Self { seen, head, deltas } = self;
        let Seen { segment, first, n, first_key, n_keys, .. } = seen;
        let (kv_head, seen_keys) = (head / inputs.group(), seen.by_query(n - 1).end);
        let (row, key_row) = (segment.first_query + first, segment.first_key + first_key);
        let (p, d_s) = keys.scores.split_at_mut(MOST_QUERIES * KEYS);
        // SAFETY: `Panels` are made only where the kernel is possible; p and d_s have KEYS columns for each query.
        unsafe {
            scores_of::<K>(seen, packed.tiles, keys.columns, d, set(p, KEYS));
            scores_of::<K>(seen, packed.d_out_tiles, keys.values, e, set(d_s, KEYS));
        }
        for (i, delta) in deltas.iter().enumerate() {
            let (p, d_s) = (&mut p[i * KEYS..][..n_keys], &mut d_s[i * KEYS..][..n_keys]);
            let lse = outputs.lse[(row + i) * n_heads + head];
            score_gradient_row(p, d_s, seen.by_query(i), lse, *delta, scale);
        }
        let add = |start, stride| Out { start, stride, adds: true };
        // SAFETY: the task owns these rows of these heads' columns; the three blocks lie in three matrices.
        unsafe {
            let to = add(gradients.d_v.row(key_row, kv_head * e, e).as_mut_ptr(), inputs.v_width());
            K::tiles_down(Rows::new(p, KEYS, n, seen_keys), keys.down);
            sum_over_queries::<K>(seen, keys.down, packed.d_out_lines, e, to);
            let to = add(gradients.d_q.row(row, head * d, d).as_mut_ptr(), inputs.q_width());
            K::tiles(Rows::new(d_s, KEYS, n, n_keys), keys.across);
            sum_over_keys::<K>(seen, keys.across, keys.lines, d, to);
            let to = add(gradients.d_k.row(key_row, kv_head * d, d).as_mut_ptr(), inputs.k_width());
            K::tiles_down(Rows::new(d_s, KEYS, n, seen_keys), keys.down);
            sum_over_queries::<K>(seen, keys.down, packed.lines, d, to);
        }
    }
}
