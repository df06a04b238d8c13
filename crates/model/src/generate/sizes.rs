//! How much memory decoding takes: every buffer's size in one place, for the plan and for the allocation.
//!
//! Letters: M rows of one forward pass (tokens of any of the sequences), S sequences, T tokens each may hold.

use super::Capacity;
use crate::config::ModelConfig;
use crate::family::Role;

/// Most rows of one forward pass: a prompt is read in chunks of this many tokens.
const CHUNK_TOKENS: usize = 256;
/// Rows of logits at the least, so that scoring reads the head for several tokens at once.
const LOGIT_ROWS: usize = 8;

/// What all buffers follow from.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    /// M
    pub rows: usize,
    /// Rows of logits in memory at once.
    pub logit_rows: usize,
    /// Columns of the widest x·Aᵀ.
    pub lora_width: usize,
    /// S·T
    pub cache_rows: usize,
    /// T
    pub positions: usize,
}

impl Sizes {
    /// Sizes for a capacity and an adapter whose widest x·Aᵀ has so many columns.
    pub fn new(capacity: Capacity, lora_width: usize) -> Sizes {
        let cache_rows = capacity.n_sequences * capacity.n_tokens;
        Sizes {
            rows: CHUNK_TOKENS.min(cache_rows).max(capacity.n_sequences),
            logit_rows: LOGIT_ROWS.max(capacity.n_sequences),
            lora_width,
            cache_rows,
            positions: capacity.n_tokens,
        }
    }

    /// Bytes of the keys and values of all layers.
    pub fn cache_bytes(&self, config: &ModelConfig) -> u64 {
        4 * (2 * config.n_layers * self.cache_rows * config.kv_width()) as u64
    }

    /// Bytes of everything else.
    pub fn workspace_bytes(&self, config: &ModelConfig) -> u64 {
        let elements: usize = Part::ALL.iter().map(|part| part.len(self, config)).sum();
        4 * elements as u64
    }
}

/// The buffers beside the cache.
#[derive(Debug, Clone, Copy)]
pub(super) enum Part {
    Stream,
    Normed,
    Queries,
    Keys,
    Values,
    Attended,
    LogSums,
    Projected,
    Gate,
    Up,
    Gated,
    Picked,
    Logits,
    Folds,
    Branch,
    Rotary,
    Indices,
}

impl Part {
    #[rustfmt::skip]
    const ALL: [Part; 17] = [
        Part::Stream, Part::Normed, Part::Queries, Part::Keys, Part::Values, Part::Attended, Part::LogSums,
        Part::Projected, Part::Gate, Part::Up, Part::Gated, Part::Picked, Part::Logits, Part::Folds, Part::Branch,
        Part::Rotary, Part::Indices,
    ];

    /// Elements of the buffer.
    pub fn len(self, sizes: &Sizes, config: &ModelConfig) -> usize {
        let per_row = match self {
            Part::Stream | Part::Normed => config.hidden,
            Part::Queries | Part::Attended => config.q_width(),
            Part::Keys | Part::Values => config.kv_width(),
            Part::LogSums => config.n_heads,
            Part::Projected => sizes.lora_width,
            Part::Gate | Part::Up | Part::Gated => config.intermediate,
            // Before and after the last norm.
            Part::Picked => return 2 * sizes.logit_rows * config.hidden,
            Part::Logits => return sizes.logit_rows * config.vocab_size,
            Part::Folds => return 3 * sizes.logit_rows,
            // A half's output after its norm, in families that have one.
            Part::Branch if config.family.has(Role::PostFfnNorm) => config.hidden,
            Part::Branch => 0,
            Part::Rotary => return 2 * config.rotary_lens(sizes.positions).into_iter().sum::<usize>(),
            // Tokens, positions, cache rows; rows with logits, targets.
            Part::Indices => return 3 * sizes.rows + 2 * sizes.logit_rows,
        };
        sizes.rows * per_row
    }
}
