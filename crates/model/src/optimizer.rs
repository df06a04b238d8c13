//! AdamW with decoupled weight decay, in f32, with its whole state open for checkpoints.
//!
//! The optimiser is ours because resuming needs every bit of it: both moments and the count of updates.
//! Source: Loshchilov & Hutter 2017, arXiv:1711.05101.

use std::ops::Range;

use crate::device::{AdamWUpdate, Buffer, Device};
use crate::lora::{Adapter, Gradients};
use crate::{Error, Result};

/// Constants of AdamW.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWOptions {
    /// β₁, decay of the first moment.
    pub beta1: f32,
    /// β₂, decay of the second moment.
    pub beta2: f32,
    /// ε, added to the root of the second moment.
    pub epsilon: f32,
    /// λ, decoupled weight decay.
    pub weight_decay: f32,
    /// How many times the rate of A the rate of B and of DoRA's lengths is: 1 in LoRA, 16 say in LoRA+. Source: Hayou et
    /// al. 2024, arXiv:2402.12354.
    pub b_rate_ratio: f32,
    /// The global gradient norm above which gradients are scaled down; `None` never scales.
    pub max_grad_norm: Option<f32>,
}

impl Default for AdamWOptions {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.999,
            epsilon: 1e-8,
            weight_decay: 0.0,
            b_rate_ratio: 1.0,
            max_grad_norm: Some(1.0),
        }
    }
}

/// AdamW over an adapter's flat weights.
pub struct AdamW<D: Device> {
    device: D,
    options: AdamWOptions,
    updates: u64,
    first_moment: D::Buffer,
    second_moment: D::Buffer,
}

/// One of the two moments of each weight, in the adapter's flat order: what a checkpoint must hold, bit by bit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Of the gradient.
    First,
    /// Of its square.
    Second,
}

impl Moment {
    /// Both.
    pub const ALL: [Moment; 2] = [Moment::First, Moment::Second];
}

impl<D: Device> AdamW<D> {
    /// Zero moments for `n_weights` weights: 8 bytes a weight.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn new(device: &D, n_weights: usize, options: AdamWOptions) -> Result<Self> {
        let first_moment = device.alloc("AdamW first moment", n_weights)?;
        let second_moment = device.alloc("AdamW second moment", n_weights)?;
        Ok(Self { device: device.clone(), options, updates: 0, first_moment, second_moment })
    }

    /// One update of the adapter; returns the global norm of the gradients before clipping.
    ///
    /// When that norm is not finite nothing is changed: the caller reports it and decides.
    ///
    /// # Errors
    /// [`Error::Shape`] when the adapter is another size.
    pub fn update(
        &mut self,
        adapter: &mut Adapter<D>,
        gradients: &mut Gradients<D>,
        learning_rate: f32,
    ) -> Result<f64> {
        adapter.gather_elastic(gradients)?;
        let norm = gradients.norm()?;
        if !norm.is_finite() {
            return Ok(norm);
        }
        self.updates += 1;
        let update = self.constants(learning_rate, norm);
        if self.options.b_rate_ratio == 1.0 {
            self.update_range(&update, adapter, gradients, 0..adapter.n_weights())?;
            adapter.spread_elastic()?;
            return Ok(norm);
        }
        let faster = self.constants(learning_rate * self.options.b_rate_ratio, norm);
        let stacks: Vec<_> =
            adapter.layout().stacks().map(|stack| (stack.a.clone(), stack.rest.clone())).collect();
        for (a, rest) in stacks {
            self.update_range(&update, adapter, gradients, a)?;
            self.update_range(&faster, adapter, gradients, rest)?;
        }
        adapter.spread_elastic()?;
        Ok(norm)
    }

    fn update_range(
        &mut self,
        update: &AdamWUpdate,
        adapter: &mut Adapter<D>,
        gradients: &Gradients<D>,
        range: Range<usize>,
    ) -> Result<()> {
        let (first, second) =
            (self.first_moment.part_mut(range.clone()), self.second_moment.part_mut(range.clone()));
        let (gradient, weights) = (gradients.flat().part(range.clone()), adapter.flat_mut().part_mut(range));
        self.device.adamw(update, gradient, weights, first, second)
    }

    /// Bias corrections in f64: 1 - β₂ᵗ loses most digits of an f32 in the first updates.
    fn constants(&self, learning_rate: f32, norm: f64) -> AdamWUpdate {
        let options = &self.options;
        let correction = |beta: f32| (1.0 - f64::from(beta).powf(self.updates as f64)) as f32;
        AdamWUpdate {
            learning_rate,
            beta1: options.beta1,
            beta2: options.beta2,
            epsilon: options.epsilon,
            weight_decay: options.weight_decay,
            correction1: correction(options.beta1),
            correction2: correction(options.beta2),
            gradient_scale: options.max_grad_norm.map_or(1.0, |max| clip_scale(norm, max)),
        }
    }

    /// Updates made so far.
    pub fn updates(&self) -> u64 {
        self.updates
    }

    /// Copies one of the moments to the host.
    ///
    /// # Errors
    /// What the device meets.
    pub fn moment(&self, moment: Moment) -> Result<Vec<f32>> {
        let buffer = match moment {
            Moment::First => &self.first_moment,
            Moment::Second => &self.second_moment,
        };
        let mut values = vec![0.0; buffer.len()];
        self.device.download(buffer.all(), &mut values)?;
        Ok(values)
    }

    /// Continues after `updates` updates, with one of the saved moments; the other is to be restored too.
    ///
    /// # Errors
    /// [`Error::Shape`] when it is for another number of weights.
    pub fn restore(&mut self, updates: u64, moment: Moment, values: &[f32]) -> Result<()> {
        let buffer = match moment {
            Moment::First => &mut self.first_moment,
            Moment::Second => &mut self.second_moment,
        };
        let (found, expected) = (values.len(), buffer.len());
        if found != expected {
            return Err(Error::Shape { op: "AdamW::restore", what: "moment", found, expected });
        }
        self.updates = updates;
        self.device.upload(values, buffer.all_mut())
    }
}

/// The factor that brings gradients of global norm `norm` down to `max`; 1 below it.
fn clip_scale(norm: f64, max: f32) -> f32 {
    if norm > f64::from(max) { (f64::from(max) / norm) as f32 } else { 1.0 }
}
