//! One micro-step of training: forward and backward of a packed batch through frozen base and adapter.
//!
//! Forward keeps each layer's input; backward goes from the last layer to the first, runs a layer's forward again
//! from that input, and turns the gradient of its output into the gradient of its input, adding up the adapter's
//! gradients on the way. The last `kept_layers` keep their activations instead and are not run again.
//! All memory is drawn at construction; a step allocates nothing.

mod batch;
mod plan;

pub use batch::{Batch, IGNORE, LossSum};
pub use plan::StepPlan;

use std::sync::Arc;

use crate::Result;
use crate::base::Base;
use crate::device::Device;
use crate::lora::{Adapter, Gradients, LoraOptions};

/// The workspace of a micro-step over one base, reused for every batch.
pub struct TrainStep<D: Device> {
    base: Arc<Base<D>>,
}

impl<D: Device> TrainStep<D> {
    /// Draws all memory that a batch of up to `plan.max_tokens` needs.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`].
    pub fn new(base: Arc<Base<D>>, lora: &LoraOptions, plan: StepPlan) -> Result<Self> {
        let _ = (lora, plan);
        Ok(Self { base })
    }

    /// The loss of a batch, and loss_scale · d(sum of the loss)/d(adapter) added to `gradients`.
    ///
    /// With `loss_scale` = 1 / (target tokens of all micro-steps of an update) the accumulated gradient is that of
    /// the mean loss over the true number of target tokens.
    ///
    /// # Errors
    /// [`crate::Error::InvalidBatch`].
    pub fn forward_backward(
        &mut self,
        adapter: &Adapter<D>,
        batch: &Batch<'_>,
        gradients: &mut Gradients<D>,
        loss_scale: f32,
    ) -> Result<LossSum> {
        let _ = (adapter, batch, gradients, loss_scale, &self.base);
        todo!()
    }

    /// The loss of a batch alone, with the adapter or without.
    ///
    /// # Errors
    /// [`crate::Error::InvalidBatch`].
    pub fn evaluate(&mut self, adapter: Option<&Adapter<D>>, batch: &Batch<'_>) -> Result<LossSum> {
        let _ = (adapter, batch);
        todo!()
    }
}
