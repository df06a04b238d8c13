//! Blockwise causal attention of packed operands: queries, keys, values and probabilities are what a kernel multiplies,
//! scores and sums are in f32.
//!
//! The blocks, what a query sees and the softmax are those of [`super::super::attention`], which also is the oracle.
//! Keys and values of a block are packed once for all heads that read them.

mod backward;

use std::ops::Range;

use rayon::prelude::*;

use super::super::attention::{Inputs, key_blocks, rescale, softmax_row, visible, within};
use super::super::product::Shared;
use super::{
    AmxBf16, Avx2F32, Avx2Int16, Avx512Bf16, Avx512F32, Avx512Int16, AvxVnniInt16, Dense, DenseKernel, Out,
    Panels, Rows, Strips, clear_beside, parts, room, with_dense,
};
use crate::device::{Heads, Segment};

pub(in super::super) use backward::backward;

/// Most queries of a block.
const MOST_QUERIES: usize = 128;
/// Keys of a block: whole panels of every kernel.
const KEYS: usize = 128;

/// Queries of a block: whole tiles.
const fn queries<K: DenseKernel>() -> usize {
    MOST_QUERIES / K::TILE * K::TILE
}

/// Words of a left side.
fn tile_words<K: DenseKernel>(rows: usize, terms: usize) -> usize {
    rows.next_multiple_of(K::TILE) * K::words(terms)
}

/// Words of a right side.
fn panel_words<K: DenseKernel>(terms: usize, cols: usize) -> usize {
    cols.next_multiple_of(K::PANEL) * K::words(terms)
}

/// Words of packed operands that a task takes at the least, floats aside.
fn needed<K: DenseKernel>(heads: Heads) -> usize {
    let (d, e, group) = (heads.head_dim, heads.value_dim, heads.n_heads / heads.n_kv_heads);
    let queries = queries::<K>();
    let forward = panel_words::<K>(d, KEYS)
        + panel_words::<K>(KEYS, e)
        + tile_words::<K>(queries, KEYS)
        + group * tile_words::<K>(queries, d);
    forward.max(backward::needed::<K>(heads))
}

/// Whether an attention is made here: of more than a few queries, within the room that threads have.
pub(in super::super) fn suits(panels: &Panels, heads: Heads, segments: &[Segment]) -> bool {
    let has_queries = segments.iter().any(|segment| segment.n_queries > 8);
    has_queries && with_dense!(panels.attention, needed(heads)) <= room::PANEL_WORDS
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
    with_dense!(panels.attention, forward_with(panels, inputs, segments, out, lse))
}

fn forward_with<K: DenseKernel>(
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
fn forward_block<K: DenseKernel>(
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
        let seen = Seen { segment, window, first, n, first_key, n_keys };
        clear_beside::<K>(n_keys, d, keys);
        // SAFETY: as above.
        unsafe {
            K::columns(of_head(inputs.k, inputs.k_width(), d, kv_head, key_rows), 0, keys);
            K::lines(of_head(inputs.v, inputs.v_width(), e, kv_head, key_rows), 0, n_keys, values);
        }
        for (index, tiles) in queries.chunks_exact(of_head_words).enumerate() {
            let head = kv_head * group + index;
            // SAFETY: scores have KEYS columns for each query.
            unsafe { scores_of::<K>(seen, tiles, keys, d, set(scores, KEYS)) };
            for (i, (max, sum)) in states[index][..n].iter_mut().enumerate() {
                let scores = &mut scores[i * KEYS..][..n_keys];
                let correction = softmax_row(scores, seen.by_query(i), scale, max, sum);
                if block > 0 && correction != 1.0 {
                    // SAFETY: this task alone touches these rows of this head's columns.
                    rescale(unsafe { out.row(row + i, head * e, e) }, correction);
                }
            }
            // SAFETY: as above; the rows borrowed in the loop are gone.
            unsafe {
                K::tiles(Rows::new(scores, KEYS, n, n_keys), weights);
                let start = out.row(row, head * e, e).as_mut_ptr();
                let to = Out { start, stride: inputs.out_width(), adds: block > 0 };
                sum_over_keys::<K>(seen, weights, values, e, to);
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

/// Some queries of a segment and some of its keys: which of these each of them sees.
#[derive(Clone, Copy)]
struct Seen<'a> {
    segment: &'a Segment,
    window: Option<usize>,
    first: usize,
    n: usize,
    first_key: usize,
    n_keys: usize,
}

impl Seen<'_> {
    /// The keys that a query sees.
    fn by_query(&self, query: usize) -> Range<usize> {
        within(visible(self.segment, self.first + query, self.window), self.first_key, self.n_keys)
    }

    /// The first query that sees a key or one after it.
    fn first_query(&self, key: usize) -> usize {
        (self.first_key + key + 1)
            .saturating_sub(visible(self.segment, self.first, self.window).end)
            .min(self.n)
    }

    /// Whether all queries see all keys, up to a window's beginning.
    fn see_all(&self) -> bool {
        self.by_query(0).end == self.n_keys
    }

    /// The queries of each tile, and the end of the keys that they see: one for all of them where they see all.
    fn tiles<K: DenseKernel>(self) -> impl Iterator<Item = (Range<usize>, usize)> {
        let size = if self.see_all() { self.n } else { K::TILE };
        parts(0..self.n, size).map(move |rows| (rows.clone(), self.by_query(rows.end - 1).end))
    }
}

/// The rows of a result from one on.
///
/// # Safety
/// `out` has the row.
unsafe fn rows_from(out: Out, row: usize) -> Out {
    // SAFETY: inside by the caller's promise.
    Out { start: unsafe { out.start.add(row * out.stride) }, ..out }
}

/// out = a · b where a key is seen      a: tiles of (queries, terms), b: panels of (terms, keys)
///
/// # Safety
/// The processor has the instructions; `out` has the queries and keys and is the caller's alone.
unsafe fn scores_of<K: DenseKernel>(seen: Seen<'_>, a: &[u32], b: &[u32], terms: usize, out: Out) {
    let words = K::words(terms);
    let b = Strips { words: b, stride: words * K::PANEL };
    for (rows, end) in seen.tiles::<K>() {
        let a = Strips { words: &a[rows.start * words..], stride: words * K::TILE };
        // SAFETY: the caller's promises are the callee's.
        unsafe { K::multiply(words, a, b, (rows.len(), end), rows_from(out, rows.start)) };
    }
}

/// out (=|+=) a · b, summed over the keys that are seen      a: tiles of (queries, keys), b: panels of (keys, cols)
///
/// # Safety
/// As [`scores_of`], of queries and columns; all queries see one of the keys where `out` is set.
unsafe fn sum_over_keys<K: DenseKernel>(seen: Seen<'_>, a: &[u32], b: &[u32], cols: usize, out: Out) {
    let words = K::words(seen.n_keys);
    let b = Strips { words: b, stride: words * K::PANEL };
    for (rows, end) in seen.tiles::<K>().filter(|(_, end)| *end > 0) {
        let a = Strips { words: &a[rows.start * words..], stride: words * K::TILE };
        // SAFETY: as above.
        unsafe { K::multiply(K::words(end), a, b, (rows.len(), cols), rows_from(out, rows.start)) };
    }
}

/// out += a · b, summed over the queries that see a key      a: tiles of (keys, queries), b: panels of (queries, cols)
///
/// # Safety
/// As [`scores_of`], of the keys that any query sees, and columns.
unsafe fn sum_over_queries<K: DenseKernel>(seen: Seen<'_>, a: &[u32], b: &[u32], cols: usize, out: Out) {
    let words = K::words(seen.n);
    let n_keys = seen.by_query(seen.n - 1).end;
    for rows in parts(0..n_keys, if seen.see_all() { n_keys } else { K::TILE }) {
        let left_out = K::words(seen.first_query(rows.start) / K::GRAIN * K::GRAIN);
        let a = Strips { words: &a[rows.start * words + left_out * K::TILE..], stride: words * K::TILE };
        let b = Strips { words: &b[left_out * K::PANEL..], stride: words * K::PANEL };
        // SAFETY: as above.
        unsafe { K::multiply(words - left_out, a, b, (rows.len(), cols), rows_from(out, rows.start)) };
    }
}
