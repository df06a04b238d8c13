//! LoRA adapters: the only weights that are trained.
//!
//! y = x·Wᵀ + s·(x·Aᵀ)·Bᵀ with A (R, C_in), B (C_out, R), s = alpha / R, or alpha / sqrt(R) when rank-stabilised.
//! All factors lie in one flat f32 buffer, as do their gradients and the optimiser's moments.
//! Sources: Hu et al. 2021, arXiv:2106.09685; Kalajdzievski 2023, arXiv:2312.03732 (rsLoRA).

mod init;
mod layout;
mod linear;
mod tensors;

pub use layout::{Group, Layout, Member, Stack};

use crate::config::ModelConfig;
use crate::device::{Buffer, Device};
use crate::family::{LINEAR_ROLES, Role};
use crate::{Error, Result};

/// What an adapter looks like.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraOptions {
    /// R
    pub rank: usize,
    /// Numerator of the scale.
    pub alpha: f32,
    /// Whether the scale is alpha / sqrt(R) instead of alpha / R.
    pub rank_stabilised: bool,
    /// The linear layers that get one, in any order.
    pub targets: Vec<Role>,
}

impl Default for LoraOptions {
    fn default() -> Self {
        Self { rank: 16, alpha: 32.0, rank_stabilised: false, targets: LINEAR_ROLES.to_vec() }
    }
}

impl LoraOptions {
    /// s, the factor on the low-rank update.
    pub fn scale(&self) -> f32 {
        let rank = self.rank as f32;
        self.alpha / if self.rank_stabilised { rank.sqrt() } else { rank }
    }

    /// Checks that the options describe an adapter.
    ///
    /// # Errors
    /// [`Error::InvalidAdapter`].
    pub fn check(&self) -> Result<()> {
        if self.rank == 0 || self.rank > MAX_RANK {
            return Err(invalid("rank", self.rank, &format!("1 to {MAX_RANK}")));
        }
        if !(self.alpha.is_finite() && self.alpha > 0.0) {
            return Err(invalid("alpha", self.alpha, "a positive number"));
        }
        match self.targets.iter().find(|role| !role.is_linear()) {
            Some(role) => Err(invalid("target", format!("{role:?}"), "a linear layer")),
            None if self.targets.is_empty() => {
                Err(invalid("target list", "empty", "at least one linear layer"))
            }
            None => Ok(()),
        }
    }
}

/// Keeps rank times width far from overflow; no one trains more.
const MAX_RANK: usize = 4096;

fn invalid(what: &str, found: impl ToString, expected: &str) -> Error {
    Error::InvalidAdapter { what: what.to_owned(), found: found.to_string(), expected: expected.to_owned() }
}

/// The low-rank factors of a model.
pub struct Adapter<D: Device> {
    device: D,
    options: LoraOptions,
    layout: Layout,
    weights: D::Buffer,
}

impl<D: Device> Adapter<D> {
    /// A fresh adapter: A uniform in ±1/sqrt(C_in), B zero, so that it changes nothing yet.
    ///
    /// The same seed gives the same bits everywhere.
    ///
    /// # Errors
    /// [`Error::InvalidAdapter`], [`Error::OutOfMemory`].
    pub fn new(device: &D, config: &ModelConfig, options: &LoraOptions, seed: u64) -> Result<Self> {
        let mut adapter = Self::zeros(device, config, options)?;
        adapter.set_weights(&init::kaiming_uniform(&adapter.layout, seed))?;
        Ok(adapter)
    }

    /// An adapter of zeros, to be filled from a file.
    ///
    /// # Errors
    /// As [`Adapter::new`].
    pub fn zeros(device: &D, config: &ModelConfig, options: &LoraOptions) -> Result<Self> {
        options.check()?;
        let layout = Layout::new(config, options.rank, &options.targets);
        let weights = device.alloc("adapter", layout.len())?;
        Ok(Self { device: device.clone(), options: options.clone(), layout, weights })
    }

    /// What it looks like.
    pub fn options(&self) -> &LoraOptions {
        &self.options
    }

    /// Where each factor lies.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Weights in all.
    pub fn n_weights(&self) -> usize {
        self.layout.len()
    }

    /// All weights on the device, in the layout's order.
    pub fn flat(&self) -> &D::Buffer {
        &self.weights
    }

    /// All weights on the device, for writing.
    pub fn flat_mut(&mut self) -> &mut D::Buffer {
        &mut self.weights
    }

    /// Copies all weights to the host, in the layout's order: what a checkpoint holds.
    ///
    /// # Errors
    /// What the device meets.
    pub fn weights(&self) -> Result<Vec<f32>> {
        let mut weights = vec![0.0; self.n_weights()];
        self.device.download(self.weights.all(), &mut weights)?;
        Ok(weights)
    }

    /// Sets all weights from the host.
    ///
    /// # Errors
    /// [`Error::Shape`] for another number of weights.
    pub fn set_weights(&mut self, weights: &[f32]) -> Result<()> {
        let (found, expected) = (weights.len(), self.n_weights());
        if found != expected {
            return Err(Error::Shape { op: "Adapter::set_weights", what: "weights", found, expected });
        }
        self.device.upload(weights, self.weights.all_mut())
    }
}

/// The gradients of an [`Adapter`], in the same flat order.
pub struct Gradients<D: Device> {
    device: D,
    flat: D::Buffer,
}

impl<D: Device> Gradients<D> {
    /// Zero gradients for an adapter.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn new(adapter: &Adapter<D>) -> Result<Self> {
        let flat = adapter.device.alloc("adapter gradients", adapter.n_weights())?;
        Ok(Self { device: adapter.device.clone(), flat })
    }

    /// Sets them to zero: call before the first micro-step of an update.
    ///
    /// # Errors
    /// What the device meets.
    pub fn zero(&mut self) -> Result<()> {
        self.device.fill(0.0, self.flat.all_mut())
    }

    /// The global norm, sqrt(Σ g²).
    ///
    /// # Errors
    /// What the device meets.
    pub fn norm(&self) -> Result<f64> {
        Ok(self.device.sum_of_squares(self.flat.all())?.sqrt())
    }

    /// All gradients on the device.
    pub fn flat(&self) -> &D::Buffer {
        &self.flat
    }

    /// All gradients on the device, for writing.
    pub fn flat_mut(&mut self) -> &mut D::Buffer {
        &mut self.flat
    }

    /// Copies them to the host.
    ///
    /// # Errors
    /// What the device meets.
    pub fn download(&self) -> Result<Vec<f32>> {
        let mut gradients = vec![0.0; self.flat.len()];
        self.device.download(self.flat.all(), &mut gradients)?;
        Ok(gradients)
    }
}
