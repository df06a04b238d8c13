//! The residual stream before each layer and after the last: as it is, or rounded with two in full that take turns.

use super::plan::{LayerInputs, StepPlan};
use super::workspace::{Allocate, Room};
use crate::Result;
use crate::config::ModelConfig;
use crate::device::{Buffer, Device};

/// All of them (T, C).
pub(super) struct Streams<B, I> {
    /// Every one, or two.
    full: Vec<B>,
    /// Every one in 16 bits, two values a word; none where all are kept in full.
    rounded: Vec<I>,
}

impl<B, I> Streams<B, I> {
    pub fn build(
        config: &ModelConfig,
        plan: &StepPlan,
        allocator: &mut dyn Allocate<Floats = B, Indices = I>,
    ) -> Result<Self> {
        let (len, n) = (plan.max_tokens * config.hidden, config.n_layers + 1);
        let (n_full, n_rounded) = match plan.layer_inputs {
            LayerInputs::F32 => (n, 0),
            LayerInputs::BF16 => (2, n),
        };
        let mut full = Vec::with_capacity(n_full);
        for _ in 0..n_full {
            full.push(allocator.floats(Room::LayerInputs, len)?);
        }
        let mut rounded = Vec::with_capacity(n_rounded);
        for _ in 0..n_rounded {
            rounded.push(allocator.indices(Room::LayerInputs, len.div_ceil(2))?);
        }
        Ok(Self { full, rounded })
    }

    fn place(&self, index: usize) -> usize {
        if self.rounded.is_empty() { index } else { index % 2 }
    }

    /// The stream before layer `index`, while it is the newest or the one before.
    pub fn at(&self, index: usize) -> &B {
        &self.full[self.place(index)]
    }

    /// The same for writing.
    pub fn at_mut(&mut self, index: usize) -> &mut B {
        let place = self.place(index);
        &mut self.full[place]
    }

    /// The streams before and after a layer.
    pub fn around(&mut self, index: usize) -> (&mut B, &mut B) {
        let (before, after) = (self.place(index), self.place(index + 1));
        let (low, high) = self.full.split_at_mut(before.max(after));
        if before < after { (&mut low[before], &mut high[0]) } else { (&mut high[0], &mut low[after]) }
    }
}

impl<B: Buffer, I: Buffer> Streams<B, I> {
    /// Keeps the first `len` values of the newest stream, which are what is kept from then on.
    pub fn keep<D: Device<Buffer = B, Indices = I>>(
        &mut self,
        device: &D,
        index: usize,
        len: usize,
    ) -> Result<()> {
        let place = self.place(index);
        match self.rounded.get_mut(index) {
            Some(kept) => {
                device.round_to_bf16(self.full[place].first_mut(len), kept.first_mut(len.div_ceil(2)))
            }
            None => Ok(()),
        }
    }

    /// The stream before layer `index` as it was kept.
    pub fn recall<D: Device<Buffer = B, Indices = I>>(
        &mut self,
        device: &D,
        index: usize,
        len: usize,
    ) -> Result<&B> {
        if let Some(kept) = self.rounded.get(index) {
            device.widen_bf16(kept.first(len.div_ceil(2)), self.full[0].first_mut(len))?;
            return Ok(&self.full[0]);
        }
        Ok(&self.full[index])
    }
}
