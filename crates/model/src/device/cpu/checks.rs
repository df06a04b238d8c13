//! What ops check of their arguments before they write.

use std::ops::Range;

use super::{Floats, HostBlocks};
use crate::device::{BlockMatrix, Heads, Routing, Segment};
use crate::{Error, Result};

pub(super) fn shape(op: &'static str, what: &'static str, found: usize, expected: usize) -> Error {
    Error::Shape { op, what, found, expected }
}

/// Compares each named size with what the others imply.
pub(super) fn check<const M: usize>(
    op: &'static str,
    sizes: [(&'static str, usize, usize); M],
) -> Result<()> {
    match sizes.into_iter().find(|(_, found, expected)| found != expected) {
        Some((what, found, expected)) => Err(shape(op, what, found, expected)),
        None => Ok(()),
    }
}

pub(super) fn check_rows(op: &'static str, rows: &Range<usize>, weights: &HostBlocks) -> Result<()> {
    if rows.start > rows.end || rows.end > weights.rows() {
        return Err(shape(op, "row range", rows.end, weights.rows()));
    }
    Ok(())
}

/// Refuses an index that is not below `limit`.
pub(super) fn check_ids(op: &'static str, what: &'static str, ids: &[u32], limit: usize) -> Result<()> {
    match ids.iter().find(|&&id| id as usize >= limit) {
        Some(&id) => Err(Error::Index { op, what, found: id as usize, limit }),
        None => Ok(()),
    }
}

/// Which rows of a batch the tasks of an op write, and so must not share.
#[derive(PartialEq, Eq)]
pub(super) enum Written {
    Queries,
    QueriesAndKeys,
}

pub(super) fn check_segments(
    op: &'static str,
    segments: &[Segment],
    n_queries: usize,
    n_keys: usize,
    written: Written,
) -> Result<()> {
    for segment in segments {
        if segment.first_query + segment.n_queries > n_queries {
            return Err(shape(op, "segment's queries", segment.first_query + segment.n_queries, n_queries));
        }
        if segment.first_key + segment.n_keys > n_keys || segment.n_queries > segment.n_keys {
            return Err(shape(op, "segment's keys", segment.first_key + segment.n_keys, n_keys));
        }
    }
    let apart = segments.windows(2).all(|pair| {
        pair[0].first_query + pair[0].n_queries <= pair[1].first_query
            && (written == Written::Queries || pair[0].first_key + pair[0].n_keys <= pair[1].first_key)
    });
    if apart { Ok(()) } else { Err(shape(op, "ordered disjoint segments", 0, segments.len())) }
}

/// Tokens of a router's `n_picks`.
pub(super) fn check_routing(op: &'static str, routing: Routing, n_picks: usize) -> Result<usize> {
    let Routing { n_experts, n_used, .. } = routing;
    check(op, [("experts of a token", n_used, n_used.clamp(1, n_experts.max(1)))])?;
    check(op, [("picks", n_picks, n_picks / n_used * n_used)])?;
    Ok(n_picks / n_used)
}

/// Query rows and key rows of an attention whose widths fit its heads.
pub(super) fn attention_rows(
    op: &'static str,
    heads: Heads,
    q: Floats<'_>,
    k: Floats<'_>,
    v: Floats<'_>,
) -> Result<(usize, usize)> {
    let (q_width, kv_width) = (heads.n_heads * heads.head_dim, heads.n_kv_heads * heads.head_dim);
    let (n, n_keys) = (q.len() / q_width, k.len() / kv_width);
    let v_len = n_keys * heads.n_kv_heads * heads.value_dim;
    check(op, [("q", q.len(), n * q_width), ("k", k.len(), n_keys * kv_width), ("v", v.len(), v_len)])?;
    check(op, [("heads", heads.n_heads % heads.n_kv_heads, 0)])?;
    Ok((n, n_keys))
}
