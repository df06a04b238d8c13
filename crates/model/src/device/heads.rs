//! The shapes of an attention: its heads, and the sequences of a packed batch.

use std::ops::Range;

use super::Span;

/// Head counts of an attention, their width, and what a query sees of the keys before it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Heads {
    /// H, query heads; query head h reads kv head h / (H / K).
    pub n_heads: usize,
    /// K, key and value heads; divides H.
    pub n_kv_heads: usize,
    /// D, width of a query and of a key.
    pub head_dim: usize,
    /// E, width of a value and of what a head gives; D in most models.
    pub value_dim: usize,
    /// Factor on every score, 1 / sqrt(D) in most models.
    pub scale: f32,
    /// How many keys a query sees at most, its own included; `None`: all before it.
    pub window: Option<usize>,
}

impl Heads {
    /// Heads that see everything before them, values as wide as keys, scores scaled by 1 / sqrt(D).
    pub fn new(n_heads: usize, n_kv_heads: usize, head_dim: usize) -> Self {
        let scale = 1.0 / (head_dim as f32).sqrt();
        Self { n_heads, n_kv_heads, head_dim, value_dim: head_dim, scale, window: None }
    }
}

/// Which dimensions of each head turn, and with which partner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rotated {
    /// Heads of a row.
    pub n_heads: usize,
    /// D, width of a head.
    pub head_dim: usize,
    /// The first dimension that turns.
    pub first: usize,
    /// P, how many turn; an even number.
    pub dim: usize,
    /// How they are paired.
    pub pairs: Pairs,
}

/// Which two of P dimensions turn together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pairs {
    /// i and i + P/2 ("neox"), as most Hugging Face layouts have it.
    Halves,
    /// 2i and 2i + 1, as DeepSeek-V2's has it.
    Adjacent,
}

/// One sequence of a packed batch, as attention sees it.
///
/// Query i of `n_queries` sees keys 0 ..= n_keys - n_queries + i of the segment. In training both ranges are the same
/// rows; in decoding the keys are the cache's and the queries its newest rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// First query row.
    pub first_query: usize,
    /// Query rows.
    pub n_queries: usize,
    /// First key (and value) row.
    pub first_key: usize,
    /// Key rows, at least `n_queries`.
    pub n_keys: usize,
}

impl Segment {
    /// A training sequence: queries and keys are the same rows.
    pub fn causal(rows: Range<usize>) -> Self {
        let n = rows.len();
        Self { first_query: rows.start, n_queries: n, first_key: rows.start, n_keys: n }
    }

    /// A training sequence as a recurrence sees it: all begin, and leave no state behind.
    pub fn alone(&self) -> Span {
        Span { first: self.first_query, n: self.n_queries, place: 0, begins: true }
    }
}
