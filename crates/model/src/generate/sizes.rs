//! How much memory decoding takes: every buffer's size in one place, for the plan and for the allocation.
//!
//! Letters: M rows of one forward pass (tokens of any of the sequences), S sequences, T tokens each may hold.

use super::Capacity;
use crate::base::ExpertLens;
use crate::config::{LatentHeads, ModelConfig};
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
            None => self.cache_rows * cached_widths(config).into_iter().sum::<usize>(),
        };
        4 * (config.n_layers * of_layer) as u64
    }

    /// Bytes of everything else.
    pub fn workspace_bytes(&self, config: &ModelConfig) -> u64 {
        let elements = Part::ALL.iter().map(|(part, n)| n * part.len(self, config));
        4 * elements.sum::<usize>() as u64
    }
}

/// Columns of the keys and of the values that the cache holds of a token.
pub(super) fn cached_widths(config: &ModelConfig) -> [usize; 2] {
    let heads = config.cached_heads(0);
    [heads.n_kv_heads * heads.head_dim, heads.n_kv_heads * heads.value_dim]
}

/// The buffers beside the cache.
#[derive(Debug, Clone, Copy)]
pub(super) enum Part {
    Stream,
    Normed,
    Queries,
    /// What goes into the cache: of latent attention the latent and the rotated part beside it.
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
    /// See [`super::latent::LatentRoom`].
    LatentWide,
    LatentRotated,
    LatentQueries,
    LatentAttended,
    LatentNarrow,
    LatentLowRank,
    /// Of routed experts.
    Experts,
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
    const ALL: [(Part, usize); 27] = [
        (Part::Stream, 1), (Part::Normed, 1), (Part::Queries, 1), (Part::Keys, 1), (Part::Values, 1),
        (Part::Attended, 1), (Part::LogSums, 1), (Part::Projected, 1), (Part::Gate, 1), (Part::Up, 1),
        (Part::Gated, 1), (Part::Inner, 4), (Part::Mixed, 2), (Part::Steps, 1), (Part::LatentWide, 1), (Part::LatentRotated, 1),
        (Part::LatentQueries, 1), (Part::LatentAttended, 1), (Part::LatentNarrow, 1), (Part::LatentLowRank, 1),
        (Part::Experts, 1), (Part::Picked, 1), (Part::Logits, 1),
        (Part::Folds, 1), (Part::Branch, 1), (Part::Rotary, 1), (Part::Indices, 1),
    ];

    /// Elements of the buffer.
    pub fn len(self, sizes: &Sizes, config: &ModelConfig) -> usize {
        let mixer = config.mixer.unwrap_or_default();
        let latent = config.latent.map(|_| config.latent_heads());
        let of_latent = |width: fn(LatentHeads) -> usize| latent.map_or(0, width);
        let [keys, values] = cached_widths(config);
        let per_row = match self {
            Part::Stream | Part::Normed => config.hidden,
            // The un-normed heads pass through the buffer that attention fills later.
            Part::Queries => config.q_width(),
            Part::Attended => config.q_width().max(config.attended_width()),
            Part::Keys => keys,
            Part::Values => values,
            Part::LogSums => config.n_heads,
            Part::Projected => sizes.lora_width,
            Part::Gate | Part::Up | Part::Gated => config.widest_mlp(),
            Part::LatentWide => of_latent(|heads| heads.rank),
            Part::LatentRotated => of_latent(|heads| heads.rotated),
            Part::LatentQueries => of_latent(|heads| heads.n_heads * (heads.rank + heads.rotated)),
            Part::LatentAttended => of_latent(|heads| heads.n_heads * heads.rank),
            Part::LatentNarrow => of_latent(|heads| heads.unrotated.max(heads.value)),
            Part::LatentLowRank if latent.is_some() => sizes.lora_width,
            Part::LatentLowRank => 0,
            Part::Experts => {
                let lens = ExpertLens::new(config, sizes.rows, sizes.rows);
                return lens.floats.into_iter().chain(lens.indices).sum();
            }
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
