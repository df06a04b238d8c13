//! Attention itself.
//!
//! A task owns some blocks of queries of some heads that read one kv head: each block of keys and values is packed once for
//! all of them.

use std::ops::Range;

use rayon::prelude::*;

use super::super::super::attention::{Inputs, key_blocks, rescale};
use super::super::super::product::Shared;
use super::super::{
    AmxBf16, Avx2F32, Avx2Int16, Avx512Bf16, Avx512F32, Avx512Int16, AvxVnniInt16, Dense, DenseKernel, Out,
    Panels, Rows, clear_beside, parts, with_dense,
};
use super::softmax::{Rowwise, Scores, State};
use super::{
    KEYS, MOST_QUERIES, Seen, of_head, panel_words, queries, room, scores_of, set, sum_over_keys, take,
    tile_words,
};
use crate::device::{Heads, Segment};

/// Tasks for each thread at the least, where there are as many blocks: they differ in what they see.
const TASKS: usize = 4;

/// Words of packed operands that a task takes at the least.
pub(super) fn needed<K: DenseKernel>(heads: Heads) -> usize {
    key_words::<K>(heads) + part_words::<K>(heads)
}

/// Words of a block of keys and values, and of probabilities.
fn key_words<K: DenseKernel>(heads: Heads) -> usize {
    panel_words::<K>(heads.head_dim, KEYS)
        + panel_words::<K>(KEYS, heads.value_dim)
        + tile_words::<K>(queries::<K>(), KEYS)
}

/// Words of a block of queries of one head and their sums.
fn part_words<K: DenseKernel>(heads: Heads) -> usize {
    tile_words::<K>(queries::<K>(), heads.head_dim) + queries::<K>() * heads.value_dim
}

/// out = softmax(causal scores) · v and the log-sum-exp of each row
pub(in super::super::super) fn forward(
    panels: &Panels,
    inputs: Inputs<'_>,
    segments: &[Segment],
    out: &mut [f32],
    lse: &mut [f32],
) {
    with_dense!(panels.attention, forward_with(panels, inputs, segments, out, lse))
}

fn forward_with<K: DenseKernel>(
    panels: &Panels,
    inputs: Inputs<'_>,
    segments: &[Segment],
    out: &mut [f32],
    lse: &mut [f32],
) {
    let (group, n_kv_heads) = (inputs.group(), inputs.heads.n_kv_heads);
    let out = Shared::new(out, inputs.out_width());
    let lse = Shared::new(lse, inputs.heads.n_heads);
    let fitting = (room::PANEL_WORDS - key_words::<K>(inputs.heads)) / part_words::<K>(inputs.heads);
    let n_blocks: usize = segments.iter().map(|segment| segment.n_queries.div_ceil(queries::<K>())).sum();
    let most = n_blocks * n_kv_heads / (TASKS * rayon::current_num_threads());
    let at_once = (fitting / group).min(most).max(1) * queries::<K>();
    segments.par_iter().for_each(|segment| {
        (0..n_kv_heads).into_par_iter().for_each(|kv_head| {
            (0..segment.n_queries.div_ceil(at_once)).into_par_iter().for_each(|index| {
                let of_task = index * at_once..((index + 1) * at_once).min(segment.n_queries);
                for heads in parts(kv_head * group..(kv_head + 1) * group, fitting) {
                    forward_part::<K>(panels, inputs, segment, (kv_head, heads), &of_task, (out, lse));
                }
            });
        });
    });
}

/// A block of queries of one head, packed, and what they have seen so far.
struct Part<'a> {
    head: usize,
    /// The first query, and how many.
    queries: (usize, usize),
    tiles: &'a mut [u32],
    /// (queries, E): rows of the result lie far apart, these beside each other.
    sums: &'a mut [f32],
    has_begun: bool,
    states: [State; MOST_QUERIES],
}

/// Some queries, of some heads that read a kv head: the task owns these rows of their columns.
fn forward_part<K: DenseKernel>(
    panels: &Panels,
    inputs: Inputs<'_>,
    segment: &Segment,
    (kv_head, heads): (usize, Range<usize>),
    of_task: &Range<usize>,
    (out, lse): (Shared<'_>, Shared<'_>),
) {
    let Heads { head_dim: d, value_dim: e, scale, window, .. } = inputs.heads;
    let scratch = &mut *panels.scratch();
    let (mut rest, scores) = scratch.panels_and_rows::<f32>();
    let keys = take(&mut rest, panel_words::<K>(d, KEYS));
    let values = take(&mut rest, panel_words::<K>(KEYS, e));
    let weights = take(&mut rest, tile_words::<K>(queries::<K>(), KEYS));
    let mut of_heads = Vec::new();
    for queries in parts(of_task.clone(), queries::<K>()) {
        let (first, n) = (queries.start, queries.len());
        for head in heads.clone() {
            let tiles = take(&mut rest, tile_words::<K>(n, d));
            let sums = bytemuck::cast_slice_mut(take(&mut rest, n * e));
            let q = of_head(inputs.q, inputs.q_width(), d, head, (segment.first_query + first, n));
            // SAFETY: `Panels` are made only where the kernel is possible.
            unsafe { K::tiles(q, tiles) };
            let states = [(f32::NEG_INFINITY, 0.0); MOST_QUERIES];
            of_heads.push(Part { head, queries: (first, n), tiles, sums, has_begun: false, states });
        }
    }
    for (first_key, n_keys) in key_blocks(segment, (of_task.start, of_task.len()), window, KEYS) {
        let key_rows = (segment.first_key + first_key, n_keys);
        clear_beside::<K>(n_keys, d, keys);
        // SAFETY: as above.
        unsafe {
            K::columns(of_head(inputs.k, inputs.k_width(), d, kv_head, key_rows), 0, keys);
            K::lines(of_head(inputs.v, inputs.v_width(), e, kv_head, key_rows), 0, n_keys, values);
        }
        for part in &mut of_heads {
            let (first, n) = part.queries;
            let seen = Seen { segment, window, first, n, first_key, n_keys };
            if !seen.sees_any() {
                continue;
            }
            let mut corrections = [1.0; MOST_QUERIES];
            // SAFETY: scores have KEYS columns for each query, sums a row; see above.
            unsafe {
                scores_of::<K>(seen, part.tiles, keys, d, set(scores, KEYS));
                let rows = Scores { data: &mut scores[..n * KEYS], stride: KEYS, n_keys };
                let by_query = |i| seen.by_query(i);
                K::Vectors::softmax(rows, by_query, scale, &mut part.states[..n], &mut corrections[..n]);
                if part.has_begun {
                    let rows = part.sums.chunks_exact_mut(e).zip(corrections);
                    rows.filter(|(_, by)| *by != 1.0).for_each(|(row, by)| rescale(row, by));
                }
                K::tiles(Rows::new(scores, KEYS, n, n_keys), weights);
                let to = Out { start: part.sums.as_mut_ptr(), stride: e, adds: part.has_begun };
                sum_over_keys::<K>(seen, weights, values, e, to);
                part.has_begun = true;
            }
        }
    }
    for Part { head, queries: (first, n), sums, states, .. } in of_heads {
        for (i, ((max, sum), sums)) in states.iter().zip(sums.chunks_exact(e)).enumerate().take(n) {
            let row = segment.first_query + first + i;
            // SAFETY: this task alone touches these rows of this head's columns.
            let (out, lse) = unsafe { (out.row(row, head * e, e), lse.row(row, head, 1)) };
            out.copy_from_slice(sums);
            rescale(out, 1.0 / sum);
            lse[0] = max + sum.ln();
        }
    }
}
