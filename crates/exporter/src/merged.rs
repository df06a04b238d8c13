//! The base with the adapter in it, for what runs the model instead of writing it.

use formats::TensorSource;
use formats::checkpoint::Checkpoint;
use model::arena::Arena;
use model::device::cpu::best_precision;
use model::lora::init::Shifted;
use model::step::Streamed;
use model::{Cpu, ModelConfig, Quant};

use crate::Result;
use crate::plan::{Content, PlannedTensor};
use crate::sequences::LONGEST_PIECE;

/// The merged weights under the names of the base.
pub(crate) fn merged<'a>(base: &'a Checkpoint, tensors: &[PlannedTensor]) -> Shifted<'a> {
    let updates = tensors.iter().filter_map(|tensor| match &tensor.content {
        Content::Weight { spec, update: Some(update) } => Some((spec.hf.clone(), update.clone())),
        _ => None,
    });
    Shifted::by(base, updates.collect())
}

/// A model run layer by layer in 16 bits.
pub(crate) struct Running<'a> {
    pub(crate) device: Cpu,
    pub(crate) streamed: Streamed<'a, Cpu>,
    /// Tokens of a pass, in which short sequences run together.
    pub(crate) pass_tokens: usize,
}

impl<'a> Running<'a> {
    /// Draws the memory for sequences of these tokens.
    pub(crate) fn new(
        config: &ModelConfig,
        source: &'a dyn TensorSource,
        sequences: &[&[u32]],
    ) -> Result<Running<'a>> {
        let longest = sequences.iter().map(|ids| ids.len()).max().unwrap_or(0);
        let pass_tokens = longest.max(LONGEST_PIECE);
        let device = Cpu::with_precision(Arena::unlimited(), best_precision())?;
        let streamed = Streamed::new(&device, config, source, Quant::BF16, pass_tokens)?;
        Ok(Running { device, streamed, pass_tokens })
    }
}

/// Whether an adapter changes anything.
pub(crate) fn is_merged(tensors: &[PlannedTensor]) -> bool {
    tensors.iter().any(PlannedTensor::is_merged)
}
