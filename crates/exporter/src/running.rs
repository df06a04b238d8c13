//! The merged model, run layer by layer.

use formats::TensorSource;
use model::arena::Arena;
use model::device::cpu::best_precision;
use model::step::Streamed;
use model::{Cpu, ModelConfig, Quant};

use crate::Result;
use crate::sequences::LONGEST_PIECE;

/// A model run in 16 bits, of which one layer is in memory at a time.
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
