//! LoRA adapters: the only weights that are trained.
//!
//! y = x·Wᵀ + s·(drop(x)·Aᵀ)·Bᵀ with A (R, C_in), B (C_out, R), s = alpha / R, or alpha / sqrt(R) when
//! rank-stabilised. With DoRA each row of the sum W + s·B·A has a trained length m (C_out).
//! All factors lie in one flat f32 buffer, as do their gradients and the optimiser's moments.
//! Sources: Hu et al. 2021, arXiv:2106.09685; Kalajdzievski 2023, arXiv:2312.03732 (rsLoRA); Liu et al. 2024,
//! arXiv:2402.09353 (DoRA).

mod add;
mod dropout;
mod elastic;
pub mod init;
mod layout;
mod linear;
mod row_norms;
mod tensors;
mod update;

pub use dropout::Dropout;
pub use layout::{Group, Layout, Member, Stack, Widths};
pub(crate) use linear::Factors;
pub use row_norms::{RowNorms, row_norms_bytes};
pub use update::Update;

use crate::base::Base;
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
    /// Probability that an input of the low-rank path is dropped in a training step, 0 to below 1.
    pub dropout: f32,
    /// Whether the rows of W + s·B·A get trained lengths.
    pub dora: bool,
    /// Whether A and B also pass on what they read: the elastic connection of IR-QLoRA.
    pub elastic: bool,
    /// The linear layers that get one, in any order.
    pub targets: Vec<Role>,
    /// Single linear layers that differ from all this.
    pub exceptions: Vec<Exception>,
}

/// A linear layer of one decoder layer whose factors differ from those of the other layers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Exception {
    /// Index of the decoder layer.
    pub layer: usize,
    /// Which linear layer.
    pub role: Role,
    /// Its R; 0 leaves it without an adapter.
    pub rank: usize,
    /// Numerator of its scale.
    pub alpha: f32,
}

impl Default for LoraOptions {
    fn default() -> Self {
        Self {
            rank: 16,
            alpha: 32.0,
            rank_stabilised: false,
            dropout: 0.0,
            dora: false,
            elastic: false,
            targets: LINEAR_ROLES.to_vec(),
            exceptions: Vec::new(),
        }
    }
}

impl LoraOptions {
    /// R and s of one linear layer, `None` when it has no adapter.
    pub fn shape(&self, layer: usize, role: Role) -> Option<(usize, f32)> {
        let exception = self.exceptions.iter().find(|found| (found.layer, found.role) == (layer, role));
        let (rank, alpha) = match exception {
            Some(exception) => (exception.rank, exception.alpha),
            None if self.targets.contains(&role) => (self.rank, self.alpha),
            None => return None,
        };
        (rank > 0).then(|| (rank, self.scale(rank, alpha)))
    }

    /// s, the factor on a low-rank update.
    fn scale(&self, rank: usize, alpha: f32) -> f32 {
        let rank = rank as f32;
        alpha / if self.rank_stabilised { rank.sqrt() } else { rank }
    }

    /// Checks that the options describe an adapter.
    ///
    /// # Errors
    /// [`Error::InvalidAdapter`].
    pub fn check(&self) -> Result<()> {
        let exceptions = self.exceptions.iter().filter(|exception| exception.rank > 0);
        for (rank, alpha) in exceptions.map(|e| (e.rank, e.alpha)).chain([(self.rank, self.alpha)]) {
            if rank == 0 || rank > MAX_RANK {
                return Err(invalid("rank", rank, &format!("1 to {MAX_RANK}")));
            }
            if !(alpha.is_finite() && alpha > 0.0) {
                return Err(invalid("alpha", alpha, "a positive number"));
            }
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(invalid("dropout", self.dropout, "0 to below 1"));
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
    /// The same seed gives the same bits everywhere. The lengths of DoRA are zero until
    /// [`Adapter::set_magnitudes`] takes them from a base.
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
        let layout = Layout::new(config, options);
        if options.dora && layout.members().any(|(_, _, member)| member.role == Role::KvB) {
            // The rows that DoRA measures are columns of one of the two matrices that it is held as.
            let expected = "no `kv_b_proj` among the targets";
            return Err(invalid("DoRA", "with keys and values from a latent", expected));
        }
        if options.elastic {
            layout.members().try_for_each(|(_, cols, member)| elastic::check(member, cols))?;
        }
        let weights = device.alloc("adapter", layout.len())?;
        Ok(Self { device: device.clone(), options: options.clone(), layout, weights })
    }

    /// Where it lies.
    pub fn device(&self) -> &D {
        &self.device
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

    /// Sets DoRA's lengths to those of the rows of W + s·B·A, so that they change nothing. Without DoRA does nothing.
    ///
    /// # Errors
    /// What the device meets.
    pub fn set_magnitudes(&mut self, base: &Base<D>) -> Result<()> {
        if !self.options.dora {
            return Ok(());
        }
        let mut norms = RowNorms::new(base, &self.options)?;
        norms.refresh(base, self)?;
        norms.lengths_into(self)
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
