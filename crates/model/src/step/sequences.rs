//! Losses that are functions of whole sequences' likelihoods: of pairs of answers, one of which is preferred.
//!
//! The gradient of such a loss is that of each sequence's own loss times one number a sequence, which is known when all
//! of them are. So the head runs once, backward included, as if every number were 1; the rows of the stream's gradient
//! are multiplied before the layers' backward begins. Nothing is run twice, no logit is made twice.

use super::pass::rows_mut;
use super::workspace::Workspace;
use super::{Batch, LossSum, TrainStep};
use crate::Result;
use crate::device::Device;
use crate::lora::{Adapter, Dropout, Gradients};
use crate::loss::Loss;

impl<D: Device> TrainStep<D> {
    /// The loss of each sequence of a batch, with the adapter or without, nothing dropped.
    ///
    /// # Errors
    /// As [`TrainStep::forward_backward`].
    pub fn evaluate_sequences(
        &mut self,
        adapter: Option<&Adapter<D>>,
        batch: &Batch<'_>,
        sums: &mut Vec<LossSum>,
    ) -> Result<()> {
        self.evaluate(adapter, batch)?;
        self.loss_host.by_sequence(batch, sums);
        Ok(())
    }

    /// Σ factor · d(loss of the sequence)/d(adapter) over the sequences of a batch, added to `gradients`.
    ///
    /// `factors_of` is told the loss of each sequence, in order, and fills in their factors, which are 0 before: the
    /// derivative of what is minimised by each sequence's [`LossSum::sum_nll`].
    ///
    /// # Errors
    /// As [`TrainStep::forward_backward`].
    pub fn forward_backward_sequences(
        &mut self,
        adapter: &Adapter<D>,
        batch: &Batch<'_>,
        gradients: &mut Gradients<D>,
        factors_of: &mut dyn FnMut(&[LossSum], &mut [f32]),
    ) -> Result<()> {
        self.begin(Some(adapter), batch)?;
        let probability = adapter.options().dropout;
        let dropout = (probability > 0.0).then_some(Dropout { probability, seed: self.dropout_seed });
        self.forward(Some(adapter), dropout, None, batch)?;
        self.loss(batch, Some(1.0))?;
        let mut sums = std::mem::take(&mut self.sequence_sums);
        self.loss_host.by_sequence(batch, &mut sums);
        let mut factors = std::mem::take(&mut self.sequence_factors);
        factors.clear();
        factors.resize(sums.len(), 0.0);
        factors_of(&sums, &mut factors);
        let scaled = self.scale_sequences(batch, &factors);
        (self.sequence_sums, self.sequence_factors) = (sums, factors);
        scaled?;
        self.backward(adapter, dropout, batch, gradients)
    }

    /// Multiplies the stream's gradient by a factor for each sequence.
    fn scale_sequences(&mut self, batch: &Batch<'_>, factors: &[f32]) -> Result<()> {
        let (n, c) = (batch.tokens.len(), self.base.config.hidden);
        let Workspace { deltas, loss, .. } = &mut self.workspace;
        let loss = Loss { base: &self.base, tiles: loss, host: &mut self.loss_host };
        loss.scale_sequences(batch, factors, rows_mut(&mut deltas.stream, c, 0, n))
    }
}
