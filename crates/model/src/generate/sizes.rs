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

    /// S
    pub fn n_sequences(&self) -> usize {
        self.cache_rows / self.positions
    }

    /// Bytes of the keys and values of all layers, or of the states of mixers.
    pub fn cache_bytes(&self, config: &ModelConfig) -> u64 {
        let of_layer = match &config.mixer {
            Some(mixer) => self.n_sequences() * (mixer.window_len() + mixer.state_len()),
            None => 2 * self.cache_rows * config.kv_width(),
        };
        4 * (config.n_layers * of_layer) as u64
    }

    /// Bytes of everything else.
    pub fn workspace_bytes(&self, config: &ModelConfig) -> u64 {
        let elements = Part::ALL.iter().map(|(part, n)| n * part.len(self, config));
        4 * elements.sum::<usize>() as u64
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
    /// Of a mixer: its gate, its scan's output, and that gated and normed.
    Inner,
    /// What a mixer convolves, and what comes of it.
    Mixed,
    /// Steps of a mixer's heads.
    Steps,
    Picked,
    Logits,
    Folds,
    Branch,
    Rotary,
    Indices,
}

impl Part {
    /// Each with how many buffers there are of it.
    #[rustfmt::skip]
    const ALL: [(Part, usize); 20] = [
        (Part::Stream, 1), (Part::Normed, 1), (Part::Queries, 1), (Part::Keys, 1), (Part::Values, 1),
        (Part::Attended, 1), (Part::LogSums, 1), (Part::Projected, 1), (Part::Gate, 1), (Part::Up, 1),
        (Part::Gated, 1), (Part::Inner, 4), (Part::Mixed, 2), (Part::Steps, 1), (Part::Picked, 1), (Part::Logits, 1),
        (Part::Folds, 1), (Part::Branch, 1), (Part::Rotary, 1), (Part::Indices, 1),
    ];

    /// Elements of the buffer.
    pub fn len(self, sizes: &Sizes, config: &ModelConfig) -> usize {
        let mixer = config.mixer.unwrap_or_default();
        let per_row = match self {
            Part::Stream | Part::Normed => config.hidden,
            Part::Queries | Part::Attended => config.q_width(),
            Part::Keys | Part::Values => config.kv_width(),
            Part::LogSums => config.n_heads,
            Part::Projected => sizes.lora_width,
            Part::Gate | Part::Up | Part::Gated => config.intermediate,
            Part::Inner => mixer.inner(),
            Part::Mixed => mixer.mixed(),
            Part::Steps => mixer.n_heads,
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
