//! AdamW with decoupled weight decay, with its whole state open for checkpoints.
//!
//! The optimiser is ours because resuming needs every bit of it: both moments, in 32 bits or in eight, and the count of
//! updates. Source: Loshchilov & Hutter 2017, arXiv:1711.05101.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::device::{AdamWUpdate, Buffer, CODED_BLOCK, CODED_WORDS, CodedMut, Device};
use crate::lora::{Adapter, Gradients, Layout};
use crate::random::splitmix;
use crate::{Error, Result};

/// How the moments are held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MomentForm {
    /// 8 bytes a weight for both.
    #[default]
    F32,
    /// Blocks of eight bits: 2.03 bytes a weight for both. See [`CodedMut`].
    Int8,
}

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
    /// How the moments are held.
    pub moments: MomentForm,
    /// What the rounding of moments in eight bits follows from.
    pub rounding_seed: u64,
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
            moments: MomentForm::F32,
            rounding_seed: 0,
        }
    }
}

/// AdamW over an adapter's flat weights.
pub struct AdamW<D: Device> {
    device: D,
    options: AdamWOptions,
    updates: u64,
    moments: Moments<D>,
    parts: Vec<Part>,
}

enum Moments<D: Device> {
    F32([D::Buffer; 2]),
    Int8([Coded<D>; 2]),
}

/// A moment in eight bits.
struct Coded<D: Device> {
    codes: D::Indices,
    scales: D::Buffer,
}

/// Weights that share a rate, and whose moments share no block with others: A, or all that stands beside it.
struct Part {
    weights: Range<usize>,
    blocks: Range<usize>,
    is_a: bool,
}

/// One of the two moments of each weight.
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

/// A moment as it is held: what a checkpoint must hold, bit by bit.
#[derive(Debug, Clone, PartialEq)]
pub enum MomentValues {
    /// In the adapter's flat order.
    F32(Vec<f32>),
    /// Blocks of [`CODED_BLOCK`] codes, each with its scale.
    Int8 {
        /// One byte a value.
        codes: Vec<u8>,
        /// One a block.
        scales: Vec<f32>,
    },
}

impl MomentValues {
    /// Whether all values are finite.
    pub fn is_finite(&self) -> bool {
        let (Self::F32(values) | Self::Int8 { scales: values, .. }) = self;
        values.iter().all(|value| value.is_finite())
    }
}

/// Bytes of both moments of an adapter.
pub fn moments_bytes(layout: &Layout, form: MomentForm) -> u64 {
    match form {
        MomentForm::F32 => 8 * layout.len() as u64,
        MomentForm::Int8 => {
            let n_blocks = parts(layout).last().map_or(0, |part| part.blocks.end);
            2 * (n_blocks * (CODED_BLOCK + size_of::<f32>())) as u64
        }
    }
}

fn parts(layout: &Layout) -> Vec<Part> {
    let mut n_blocks = 0;
    let ranges = layout.stacks().flat_map(|stack| [(&stack.a, true), (&stack.rest, false)]);
    let part = |(weights, is_a): (&Range<usize>, bool)| {
        let blocks = n_blocks..n_blocks + weights.len().div_ceil(CODED_BLOCK);
        n_blocks = blocks.end;
        Part { weights: weights.clone(), blocks, is_a }
    };
    ranges.filter(|(weights, _)| !weights.is_empty()).map(part).collect()
}

impl<D: Device> Coded<D> {
    fn new(device: &D, what: &str, n_blocks: usize) -> Result<Self> {
        let codes = device.alloc_indices(what, n_blocks * CODED_WORDS)?;
        Ok(Self { codes, scales: device.alloc(what, n_blocks)? })
    }

    fn part(&mut self, blocks: &Range<usize>) -> CodedMut<'_, D::Indices, D::Buffer> {
        CodedMut {
            codes: self.codes.part_mut(blocks.start * CODED_WORDS..blocks.end * CODED_WORDS),
            scales: self.scales.part_mut(blocks.clone()),
        }
    }

    fn save(&self, device: &D) -> Result<MomentValues> {
        let (mut words, mut scales) = (vec![0; self.codes.len()], vec![0.0; self.scales.len()]);
        device.download_indices(self.codes.all(), &mut words)?;
        device.download(self.scales.all(), &mut scales)?;
        Ok(MomentValues::Int8 { codes: words.into_iter().flat_map(u32::to_le_bytes).collect(), scales })
    }

    fn restore(&mut self, device: &D, codes: &[u8], scales: &[f32]) -> Result<()> {
        same_len(codes.len(), 4 * self.codes.len())?;
        same_len(scales.len(), self.scales.len())?;
        let four = |four: &[u8]| four.iter().rev().fold(0, |word, &code| word << 8 | u32::from(code));
        let words: Vec<u32> = codes.chunks_exact(4).map(four).collect();
        device.upload_indices(&words, self.codes.all_mut())?;
        device.upload(scales, self.scales.all_mut())
    }
}

fn same_len(found: usize, expected: usize) -> Result<()> {
    if found == expected {
        return Ok(());
    }
    Err(Error::Shape { op: "AdamW::restore", what: "moment", found, expected })
}

impl<D: Device> AdamW<D> {
    /// Zero moments for the weights of an adapter: [`moments_bytes`].
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn new(adapter: &Adapter<D>, options: AdamWOptions) -> Result<Self> {
        const NAMES: [&str; 2] = ["AdamW first moment", "AdamW second moment"];
        let (device, n_weights) = (adapter.device().clone(), adapter.n_weights());
        let mut parts = parts(adapter.layout());
        let [first, second] = NAMES;
        let moments = match options.moments {
            MomentForm::F32 => {
                Moments::F32([device.alloc(first, n_weights)?, device.alloc(second, n_weights)?])
            }
            MomentForm::Int8 => {
                let n_blocks = parts.last().map_or(0, |part| part.blocks.end);
                let new = |what| Coded::new(&device, what, n_blocks);
                Moments::Int8([new(first)?, new(second)?])
            }
        };
        if options.moments == MomentForm::F32 && options.b_rate_ratio == 1.0 {
            // Nothing sets them apart.
            parts = vec![Part { weights: 0..n_weights, blocks: 0..0, is_a: true }];
        }
        Ok(Self { device, options, updates: 0, moments, parts })
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
        let norm = self.norm(adapter, gradients)?;
        if norm.is_finite() {
            self.apply(adapter, gradients, norm, learning_rate)?;
        }
        Ok(norm)
    }

    /// Completes the gradients of a step and returns their global norm; once a step, before [`AdamW::apply`].
    ///
    /// # Errors
    /// What the device meets.
    pub fn norm(&self, adapter: &Adapter<D>, gradients: &mut Gradients<D>) -> Result<f64> {
        adapter.gather_elastic(gradients)?;
        gradients.norm()
    }

    /// One update of the adapter by gradients of this global norm, which must be finite.
    ///
    /// # Errors
    /// [`Error::Shape`] when the adapter is another size.
    pub fn apply(
        &mut self,
        adapter: &mut Adapter<D>,
        gradients: &Gradients<D>,
        norm: f64,
        learning_rate: f32,
    ) -> Result<()> {
        self.updates += 1;
        let slower = self.constants(learning_rate, norm);
        let faster = self.constants(learning_rate * self.options.b_rate_ratio, norm);
        let seed = splitmix(self.options.rounding_seed, self.updates);
        for part in &self.parts {
            let update = if part.is_a { &slower } else { &faster };
            let gradient = gradients.flat().part(part.weights.clone());
            let weights = adapter.flat_mut().part_mut(part.weights.clone());
            match &mut self.moments {
                Moments::F32([first, second]) => {
                    let first = first.part_mut(part.weights.clone());
                    let second = second.part_mut(part.weights.clone());
                    self.device.adamw(update, gradient, weights, first, second)?;
                }
                Moments::Int8([first, second]) => {
                    let (first, second) = (first.part(&part.blocks), second.part(&part.blocks));
                    self.device.adamw_coded(update, seed, gradient, weights, first, second)?;
                }
            }
        }
        adapter.spread_elastic()
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

    /// Copies one of the moments to the host, as it is held.
    ///
    /// # Errors
    /// What the device meets.
    pub fn moment(&self, moment: Moment) -> Result<MomentValues> {
        match &self.moments {
            Moments::F32(moments) => {
                let buffer = &moments[moment as usize];
                let mut values = vec![0.0; buffer.len()];
                self.device.download(buffer.all(), &mut values)?;
                Ok(MomentValues::F32(values))
            }
            Moments::Int8(moments) => moments[moment as usize].save(&self.device),
        }
    }

    /// Continues after `updates` updates, with one of the saved moments; the other is to be restored too.
    ///
    /// # Errors
    /// [`Error::Shape`] when it is for another number of weights, or held in another form.
    pub fn restore(&mut self, updates: u64, moment: Moment, values: &MomentValues) -> Result<()> {
        match (&mut self.moments, values) {
            (Moments::F32(moments), MomentValues::F32(values)) => {
                let buffer = &mut moments[moment as usize];
                same_len(values.len(), buffer.len())?;
                self.device.upload(values, buffer.all_mut())?;
            }
            (Moments::Int8(moments), MomentValues::Int8 { codes, scales }) => {
                moments[moment as usize].restore(&self.device, codes, scales)?;
            }
            (_, MomentValues::F32(values)) => same_len(values.len(), 0)?,
            (_, MomentValues::Int8 { codes, .. }) => same_len(codes.len(), 0)?,
        }
        self.updates = updates;
        Ok(())
    }
}

/// The factor that brings gradients of global norm `norm` down to `max`; 1 below it.
fn clip_scale(norm: f64, max: f32) -> f32 {
    if norm > f64::from(max) { (f64::from(max) / norm) as f32 } else { 1.0 }
}
