//! What recurrences require of the sequences of a batch.

use super::{check as check_sizes, shape};
use crate::Result;
use crate::device::Span;

/// Refuses spans whose rows overlap, or whose rows or places lie outside.
///
/// Places may be shared: spans are run one after another.
pub(super) fn check(op: &'static str, spans: &[Span], n_rows: usize, n_places: usize) -> Result<()> {
    if let Some(span) = spans.iter().find(|span| span.place >= n_places) {
        return Err(shape(op, "span's place", span.place, n_places));
    }
    check_rows(op, spans, n_rows)
}

/// Refuses the same, and spans that go on from what was before.
pub(super) fn check_beginnings(op: &'static str, spans: &[Span], n_rows: usize) -> Result<()> {
    let n_begun = spans.iter().filter(|span| span.begins).count();
    check_sizes(op, [("spans that begin", n_begun, spans.len())])?;
    check_rows(op, spans, n_rows)
}

fn check_rows(op: &'static str, spans: &[Span], n_rows: usize) -> Result<()> {
    let apart = spans.windows(2).all(|pair| pair[0].first + pair[0].n <= pair[1].first);
    let end = spans.last().map_or(0, |span| span.first + span.n);
    if apart && end <= n_rows { Ok(()) } else { Err(shape(op, "ordered disjoint spans", end, n_rows)) }
}
