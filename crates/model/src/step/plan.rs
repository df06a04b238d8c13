//! How large a step's workspace is, tile by tile: the numbers that the memory table adds up and the step draws.

use crate::config::ModelConfig;

/// Sizes of a step's workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepPlan {
    /// Rows of the largest batch, which also bounds positions.
    pub max_tokens: usize,
    /// Rows of the MLP that are in memory at once.
    pub mlp_tile_tokens: usize,
    /// Rows of logits that are in memory at once.
    pub loss_tile_tokens: usize,
    /// Vocabulary entries of logits that are in memory at once.
    pub loss_tile_vocab: usize,
    /// Layers, counted from the last, that keep their activations instead of running again in the backward pass.
    pub kept_layers: usize,
}

impl StepPlan {
    /// The plan that trades no memory for speed: every layer runs again.
    pub fn new(config: &ModelConfig, max_tokens: usize) -> Self {
        Self {
            max_tokens,
            mlp_tile_tokens: max_tokens.min(512),
            loss_tile_tokens: max_tokens.min(256),
            loss_tile_vocab: config.vocab_size.min(4096),
            kept_layers: 0,
        }
    }
}
