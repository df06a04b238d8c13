//! Decoding with a key-value cache on the quantised base, with or without an adapter.

mod sampler;

pub use sampler::{Sampler, SamplerOptions};

use std::ops::ControlFlow;

use crate::base::Base;
use crate::device::Device;
use crate::lora::Adapter;
use crate::Result;

/// How much a [`Generator`] can hold at once; all of its memory follows from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Sequences that decode side by side.
    pub n_sequences: usize,
    /// Prompt and generated tokens of each.
    pub n_tokens: usize,
}

/// Why a sequence ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// A stop token was chosen; it is not part of the ids.
    Stop,
    /// As many tokens as asked for, or as the capacity allows.
    Length,
    /// The callback broke off.
    Cancelled,
}

/// A generated sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Generated {
    /// The new tokens, without the prompt and without the stop token.
    pub ids: Vec<u32>,
    /// Why it ended.
    pub reason: StopReason,
}

/// Decodes on a base, with memory drawn once.
pub struct Generator<'a, D: Device> {
    base: &'a Base<D>,
    capacity: Capacity,
}

impl<'a, D: Device> Generator<'a, D> {
    /// Draws cache and workspace.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`].
    pub fn new(base: &'a Base<D>, capacity: Capacity) -> Result<Self> {
        Ok(Self { base, capacity })
    }

    /// Continues one prompt; `on_token` sees each token as it is chosen and may break off.
    ///
    /// # Errors
    /// [`crate::Error::InvalidBatch`] for an empty or over-long prompt.
    pub fn generate(
        &mut self,
        adapter: Option<&Adapter<D>>,
        prompt: &[u32],
        stop: &[u32],
        sampler: &SamplerOptions,
        max_new_tokens: usize,
        on_token: &mut dyn FnMut(u32) -> ControlFlow<()>,
    ) -> Result<Generated> {
        todo!()
    }

    /// Continues several prompts side by side; as many as the capacity holds decode at once.
    ///
    /// # Errors
    /// As [`Generator::generate`].
    pub fn generate_batch(
        &mut self,
        adapter: Option<&Adapter<D>>,
        prompts: &[Vec<u32>],
        stop: &[u32],
        sampler: &SamplerOptions,
        max_new_tokens: usize,
    ) -> Result<Vec<Generated>> {
        todo!()
    }

    /// Σ -ln p(token | those before it) over a sequence, and over how many tokens.
    ///
    /// # Errors
    /// As [`Generator::generate`].
    pub fn score(&mut self, adapter: Option<&Adapter<D>>, tokens: &[u32]) -> Result<crate::step::LossSum> {
        todo!()
    }
}
