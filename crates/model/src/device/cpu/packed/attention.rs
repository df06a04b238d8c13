//! Blockwise causal attention of packed operands: queries, keys, values and probabilities are what a kernel multiplies,
//! scores and sums are in f32.
//!
//! The blocks, what a query sees and the softmax are those of [`super::super::attention`], which also is the oracle.
//! Keys and values of a block are packed once for all heads that read them.

use rayon::prelude::*;

use super::super::attention::{
    Gradients, Inputs, Outputs, clear, dot, key_blocks, rescale, score_gradient_row, softmax_row, visible,
    within,
};
use super::super::product::Shared;
use super::super::products::ProductKernel;
use super::{
    AmxBf16, Avx2F32, Avx512Bf16, Avx512F32, Kernel, Out, Panels, Rows, products, room, with_kernel,
};
use crate::device::{Heads, Segment};

/// Most queries of a block.
const MOST_QUERIES: usize = 64;
/// Keys of a block: whole panels of every kernel.
const KEYS: usize = 128;

/// Queries of a block: whole tiles.
const fn queries<K: Kernel>() -> usize {
    MOST_QUERIES / K::TILE * K::TILE
}

/// Words of a left side.
fn tile_words<K: Kernel>(rows: usize, terms: usize) -> usize {
    rows.next_multiple_of(K::TILE) * K::words(terms)
}

/// Words of a right side.
fn panel_words<K: Kernel>(terms: usize, cols: usize) -> usize {
    cols.next_multiple_of(K::PANEL) * K::words(terms)
}

/// Words of packed operands that a block takes.
fn needed<K: Kernel>(heads: Heads) -> usize {
    let (d, e, group) = (heads.head_dim, heads.value_dim, heads.n_heads / heads.n_kv_heads);
    let (queries, keys_by) = (queries::<K>(), |dim| panel_words::<K>(dim, KEYS));
    let lines = |dim, terms| panel_words::<K>(terms, dim);
    let forward =
        keys_by(d) + lines(e, KEYS) + tile_words::<K>(queries, KEYS) + group * tile_words::<K>(queries, d);
    let backward = keys_by(d)
        + lines(d, KEYS)
        + keys_by(e)
        + tile_words::<K>(queries, d)
        + tile_words::<K>(queries, e)
        + lines(d, queries)
        + lines(e, queries)
        + tile_words::<K>(queries, KEYS)
        + tile_words::<K>(KEYS, queries);
    forward.max(backward)
}

/// Whether an attention is made here: of more than a few queries, within the room that threads have.
pub(in super::super) fn suits(panels: &Panels, heads: Heads, segments: &[Segment]) -> bool {
    let has_queries = segments.iter().any(|segment| segment.n_queries > 8);
    has_queries && with_kernel!(panels, needed(heads)) <= room::PANEL_WORDS
}

/// Takes the next words of a scratch.
fn take<'a>(rest: &mut &'a mut [u32], words: usize) -> &'a mut [u32] {
    let (taken, left) = std::mem::take(rest).split_at_mut(words);
    *rest = left;
    taken
}

/// Rows of one head of a matrix (·, width).
fn of_head(data: &[f32], width: usize, dim: usize, head: usize, (first, n): (usize, usize)) -> Rows<'_, f32> {
    Rows::new(&data[first * width + head * dim..], width, n, dim)
}

/// out = softmax(causal scores) · v and the log-sum-exp of each row
pub(in super::super) fn forward(
    panels: &Panels,
    inputs: Inputs<'_>,
    segments: &[Segment],
    out: &mut [f32],
    lse: &mut [f32],
) {
    with_kernel!(panels, forward_with(panels, inputs, segments, out, lse))
}

fn forward_with<K: Kernel>(
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
            (0..segment.n_queries.div_ceil(queries::<K>())).into_par_iter().for_each(|index| {
                let first = index * queries::<K>();
                let queries = (first, queries::<K>().min(segment.n_queries - first));
                forward_block::<K>(panels, inputs, segment, kv_head, queries, (out, lse));
            });
        });
    });
}

/// One block of queries, of all heads that read a kv head: the task owns these rows of their columns.
fn forward_block<K: Kernel>(
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
    let (mut rest, scores) = scratch.panels_and_rows::<f32>();
    let keys = take(&mut rest, panel_words::<K>(d, KEYS));
    let values = take(&mut rest, panel_words::<K>(KEYS, e));
    let weights = take(&mut rest, tile_words::<K>(n, KEYS));
    let of_head_words = tile_words::<K>(n, d);
    let queries = take(&mut rest, group * of_head_words);
    for (index, tiles) in queries.chunks_exact_mut(of_head_words).enumerate() {
        let q = of_head(inputs.q, inputs.q_width(), d, kv_head * group + index, (row, n));
        // SAFETY: `Panels` are made only where the kernel is possible.
        unsafe { K::tiles(q, tiles) };
    }
    let mut states = vec![[(f32::NEG_INFINITY, 0.0f32); MOST_QUERIES]; group];
    let blocks = key_blocks(segment, (first, n), window, KEYS);
    for (block, (first_key, n_keys)) in blocks.enumerate() {
        let key_rows = (segment.first_key + first_key, n_keys);
        // SAFETY: as above.
        unsafe {
            K::columns(of_head(inputs.k, inputs.k_width(), d, kv_head, key_rows), 0, keys);
            K::lines(of_head(inputs.v, inputs.v_width(), e, kv_head, key_rows), 0, n_keys, values);
        }
        for (index, tiles) in queries.chunks_exact(of_head_words).enumerate() {
            let head = kv_head * group + index;
            // SAFETY: scores have KEYS columns for each query.
            unsafe { products::<K>(tiles, keys, d, (n, n_keys), set(scores, KEYS)) };
            for (i, (max, sum)) in states[index][..n].iter_mut().enumerate() {
                let seen = within(visible(segment, first + i, window), first_key, n_keys);
                let scores = &mut scores[i * KEYS..][..n_keys];
                rescale(scores, scale);
                let correction = softmax_row(scores, seen, max, sum);
                // SAFETY: this task alone touches these rows of this head's columns.
                let out = unsafe { out.row(row + i, head * e, e) };
                rescale(out, if block == 0 { 0.0 } else { correction });
            }
            // SAFETY: as above; the rows borrowed in the loop are gone.
            unsafe {
                K::tiles(Rows::new(scores, KEYS, n, n_keys), weights);
                let start = out.row(row, head * e, e).as_mut_ptr();
                let to = Out { start, stride: inputs.out_width(), adds: true };
                products::<K>(weights, values, n_keys, (n, e), to);
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

/// Scores, to be set.
fn set(scores: &mut [f32], stride: usize) -> Out {
    Out { start: scores.as_mut_ptr(), stride, adds: false }
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
    with_kernel!(panels, backward_with(panels, inputs, segments, outputs, gradients))
}

fn backward_with<K: Kernel>(
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
fn backward_kv_head<K: Kernel>(
    panels: &Panels,
    inputs: Inputs<'_>,
    segment: &Segment,
    kv_head: usize,
    outputs: Outputs<'_>,
    gradients: Gradients<'_>,
) {
    let Heads { head_dim: d, value_dim: e, window, .. } = inputs.heads;
    let (group, scratch) = (inputs.group(), &mut *panels.scratch());
    let (mut rest, scores) = scratch.panels_and_rows::<f32>();
    let queries = queries::<K>();
    let keys = KeyPanels {
        columns: take(&mut rest, panel_words::<K>(d, KEYS)),
        lines: take(&mut rest, panel_words::<K>(KEYS, d)),
        values: take(&mut rest, panel_words::<K>(e, KEYS)),
    };
    let mut packed = QueryPanels {
        tiles: take(&mut rest, tile_words::<K>(queries, d)),
        lines: take(&mut rest, panel_words::<K>(queries, d)),
        d_out_tiles: take(&mut rest, tile_words::<K>(queries, e)),
        d_out_lines: take(&mut rest, panel_words::<K>(queries, e)),
        across: take(&mut rest, tile_words::<K>(queries, KEYS)),
        down: take(&mut rest, tile_words::<K>(KEYS, queries)),
    };
    clear(gradients.d_k, segment.first_key, segment.n_keys, kv_head, d);
    clear(gradients.d_v, segment.first_key, segment.n_keys, kv_head, e);
    for head in kv_head * group..(kv_head + 1) * group {
        clear(gradients.d_q, segment.first_query, segment.n_queries, head, d);
    }
    for first_key in (0..segment.n_keys).step_by(KEYS) {
        let n_keys = KEYS.min(segment.n_keys - first_key);
        let key_rows = (segment.first_key + first_key, n_keys);
        let k = of_head(inputs.k, inputs.k_width(), d, kv_head, key_rows);
        // SAFETY: `Panels` are made only where the kernel is possible.
        unsafe {
            K::columns(k, 0, keys.columns);
            K::lines(k, 0, n_keys, keys.lines);
            K::columns(of_head(inputs.v, inputs.v_width(), e, kv_head, key_rows), 0, keys.values);
        }
        for head in kv_head * group..(kv_head + 1) * group {
            for first in (0..segment.n_queries).step_by(queries) {
                let n = queries.min(segment.n_queries - first);
                let start = visible(segment, first, window).start;
                let end = visible(segment, first + n - 1, window).end;
                if first_key >= end || first_key + n_keys <= start {
                    continue;
                }
                let block = Block { segment, head, first, n, first_key, n_keys };
                backward_block::<K>(inputs, &block, outputs, gradients, &keys, &mut packed, scores);
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
fn backward_block<K: Kernel>(
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
    let q = of_head(inputs.q, inputs.q_width(), d, head, (row, n));
    let d_out = of_head(outputs.d_out, inputs.out_width(), e, head, (row, n));
    let out = of_head(outputs.out, inputs.out_width(), e, head, (row, n));
    let (p, d_s) = scores.split_at_mut(MOST_QUERIES * KEYS);
    // SAFETY: `Panels` are made only where the kernel is possible; p and d_s have KEYS columns for each query.
    unsafe {
        K::tiles(q, packed.tiles);
        K::lines(q, 0, n, packed.lines);
        K::tiles(d_out, packed.d_out_tiles);
        K::lines(d_out, 0, n, packed.d_out_lines);
        products::<K>(packed.tiles, keys.columns, d, (n, n_keys), set(p, KEYS));
        products::<K>(packed.d_out_tiles, keys.values, e, (n, n_keys), set(d_s, KEYS));
    }
    for i in 0..n {
        let seen = within(visible(segment, first + i, window), first_key, n_keys);
        let (p, d_s) = (&mut p[i * KEYS..][..n_keys], &mut d_s[i * KEYS..][..n_keys]);
        rescale(p, scale);
        let delta = dot(out.row(i), d_out.row(i));
        score_gradient_row(p, d_s, seen, outputs.lse[(row + i) * n_heads + head], delta, scale);
    }
    let add = |start, stride| Out { start, stride, adds: true };
    // SAFETY: the task owns these rows of these heads' columns; the three blocks lie in three matrices.
    unsafe {
        let to = add(gradients.d_v.row(key_row, kv_head * e, e).as_mut_ptr(), inputs.v_width());
        K::tiles_down(Rows::new(p, KEYS, n, n_keys), packed.down);
        products::<K>(packed.down, packed.d_out_lines, n, (n_keys, e), to);
        let to = add(gradients.d_q.row(row, head * d, d).as_mut_ptr(), inputs.q_width());
        K::tiles(Rows::new(d_s, KEYS, n, n_keys), packed.across);
        products::<K>(packed.across, keys.lines, n_keys, (n, d), to);
        let to = add(gradients.d_k.row(key_row, kv_head * d, d).as_mut_ptr(), inputs.k_width());
        K::tiles_down(Rows::new(d_s, KEYS, n, n_keys), packed.down);
        products::<K>(packed.down, packed.lines, n, (n_keys, d), to);
    }
}
