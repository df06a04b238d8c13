//! How large a step's workspace is, tile by tile: the numbers that the memory table adds up and the step draws.

use serde::{Deserialize, Serialize};

use crate::config::ModelConfig;
use crate::{Error, Result};

/// How the stream before each layer is kept from the forward to the backward pass.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LayerInputs {
    /// As it is.
    #[default]
    F32,
    /// Rounded to 16 bits, half the memory. The forward pass goes on from the rounded stream, as training in bf16 does,
    /// so that the backward pass is that of what was computed.
    BF16,
}

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
    /// How the input of each layer is kept.
    pub layer_inputs: LayerInputs,
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
            layer_inputs: LayerInputs::F32,
            kept_layers: 0,
        }
    }

    /// Which set of activations a layer uses: its own if kept, else the one that the others share.
    pub(super) fn activation_set(&self, config: &ModelConfig, layer_index: usize) -> usize {
        let kept = self.kept_layers.min(config.n_layers);
        let first_kept = config.n_layers - kept;
        if layer_index >= first_kept { layer_index - first_kept } else { kept }
    }

    /// Refuses a plan in which nothing fits.
    pub(super) fn check(&self) -> Result<()> {
        let sizes = [self.max_tokens, self.mlp_tile_tokens, self.loss_tile_tokens, self.loss_tile_vocab];
        if sizes.contains(&0) {
            let (found, expected) = (format!("{self:?}"), "no size of 0".to_owned());
            return Err(Error::InvalidBatch { what: "plan", found, expected });
        }
        Ok(())
    }
}
