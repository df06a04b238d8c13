//! Blockwise causal attention of packed operands: queries, keys, values and probabilities are what a kernel multiplies,
//! scores and sums are in f32.
//!
//! The blocks, what a query sees and the softmax are those of [`super::super::attention`], which also is the oracle.
//! Keys and values of a block are packed once for all heads that read them.

mod backward;
mod forward;
mod softmax;

use std::ops::Range;

use super::super::attention::{visible, within};
use super::{
    AmxBf16, Avx2F32, Avx2Int16, Avx512Bf16, Avx512F32, Avx512Int16, AvxVnniInt16, Dense, DenseKernel, Out,
    Panels, Rows, Strips, parts, room, with_dense,
};
use crate::device::{Heads, Segment};

pub(in super::super) use backward::backward;
pub(in super::super) use forward::forward;
pub(super) use softmax::Rowwise;

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

/// Whether an attention is made here: of more than a few queries, within the room that threads have.
pub(in super::super) fn suits(panels: &Panels, heads: Heads, segments: &[Segment]) -> bool {
    let has_queries = segments.iter().any(|segment| segment.n_queries > 8);
    let needed = with_dense!(panels.attention, needed(heads));
    has_queries && needed <= room::PANEL_WORDS
}

/// Words of packed operands that a task takes at the least.
fn needed<K: DenseKernel>(heads: Heads) -> usize {
    forward::needed::<K>(heads).max(backward::needed::<K>(heads))
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

    /// Whether any query sees any key.
    fn sees_any(&self) -> bool {
        let of = |query: usize| visible(self.segment, self.first + query, self.window);
        self.first_key < of(self.n - 1).end && self.first_key + self.n_keys > of(0).start
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
