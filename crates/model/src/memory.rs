//! How many bytes a run takes, from shapes alone: the plan that is printed, and the cap of the allocator.
//!
//! Nothing is estimated. Each row adds up the sizes that the part itself draws: the step counts its workspace with
//! the lines of code that allocate it, the generator sizes its buffers by the same function, weights are their
//! blocks. A test runs all of it under a cap of exactly the total.

use formats::BlockType;
use formats::gguf::Reader;

use crate::base::Residence;
use crate::config::ModelConfig;
use crate::device::Precision;
use crate::device::cpu::fixed_bytes;
use crate::family::{self, Role, TensorSpec};
use crate::generate::{Capacity, generator_bytes};
use crate::lora::{Layout, LoraOptions, row_norms_bytes};
use crate::optimizer::{MomentForm, moments_bytes};
use crate::policy::{self, Quant};
use crate::step::{StepPlan, one_layer_of, workspace_bytes};
use crate::{Error, Result};

/// One row of the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryRow {
    /// What the bytes are for.
    pub name: &'static str,
    /// Bytes.
    pub bytes: u64,
}

/// The plan: rows in the order in which they are printed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MemoryTable {
    /// The rows.
    pub rows: Vec<MemoryRow>,
}

/// What is in memory at once.
#[derive(Debug, Clone, Copy)]
pub struct Residents<'a> {
    /// The model.
    pub config: &'a ModelConfig,
    /// Of products with its weights.
    pub precision: Precision,
    /// Bytes of its weights that stay: [`weights_bytes`], [`gguf_weights_bytes`], or [`WeightSizes::staying_bytes`].
    pub weights_bytes: u64,
    /// Bytes of the window that the others pass through: [`WeightSizes::window_bytes`].
    pub window_bytes: u64,
    /// The adapter, its gradients and its optimiser; `None` to run the base alone.
    pub lora: Option<&'a LoraOptions>,
    /// How the optimiser holds its moments.
    pub moments: MomentForm,
    /// The training step.
    pub step: Option<&'a StepPlan>,
    /// The generator that evaluates by decoding.
    pub answers: Option<Capacity>,
}

impl MemoryTable {
    /// Bytes in all: the cap of the allocator.
    pub fn total_bytes(&self) -> u64 {
        self.rows.iter().map(|row| row.bytes).sum()
    }

    /// Bytes of the row of that name, 0 where there is none.
    pub fn bytes_of(&self, name: &str) -> u64 {
        self.rows.iter().filter(|row| row.name == name).map(|row| row.bytes).sum()
    }

    fn push(&mut self, name: &'static str, bytes: u64) {
        self.rows.push(MemoryRow { name, bytes });
    }
}

/// The plan of a run on the host.
///
/// # Errors
/// A block type that cannot hold a row, which the policy's fallbacks exclude.
pub fn plan_bytes(residents: &Residents<'_>) -> Result<MemoryTable> {
    let Residents { config, precision, weights_bytes, window_bytes, lora, moments, step, answers } =
        *residents;
    let mut table = MemoryTable::default();
    table.push("base weights", weights_bytes);
    if window_bytes > 0 {
        table.push("window of weights that pass", window_bytes);
    }
    for (name, bytes) in fixed_bytes(precision) {
        table.push(name, bytes);
    }
    if let Some(lora) = lora {
        let layout = Layout::new(config, lora);
        let adapter = 4 * layout.len() as u64;
        table.push("adapter", adapter);
        if step.is_some() {
            table.push("adapter gradients", adapter);
            table.push("AdamW moments", moments_bytes(&layout, moments));
            if lora.dora {
                table.push("row lengths of DoRA", row_norms_bytes(config, lora));
            }
        }
    }
    if let Some(step) = step {
        for (room, bytes) in workspace_bytes(config, lora, step)? {
            table.push(room.name(), bytes);
        }
    }
    if let Some(capacity) = answers {
        let (cache, workspace) = generator_bytes(config, lora, capacity);
        let is_of_mixers = config.mixer.is_some();
        table.push(if is_of_mixers { "states of mixers" } else { "key-value cache" }, cache);
        table.push("decoding workspace", workspace);
    }
    Ok(table)
}

/// Bytes of a model's blocks and norms, as [`crate::Base::load`] holds them.
///
/// # Errors
/// As [`plan_bytes`].
pub fn weights_bytes(config: &ModelConfig, quant: Quant) -> Result<u64> {
    Ok(weight_sizes(config, quant)?.total_bytes())
}

/// Bytes of a model's weights by the places of a pass.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightSizes {
    /// Gains and biases, which always stay.
    pub vectors: u64,
    /// The embedding.
    pub embedding: u64,
    /// The head, 0 where it is the embedding.
    pub head: u64,
    /// The matrices of each layer.
    pub layers: Vec<u64>,
}

impl WeightSizes {
    /// All of them.
    pub fn total_bytes(&self) -> u64 {
        self.vectors + self.embedding + self.head + self.layers.iter().sum::<u64>()
    }

    /// What stays in memory.
    pub fn staying_bytes(&self, residence: Residence) -> u64 {
        match residence {
            Residence::All => self.total_bytes(),
            Residence::Window { resident_layers } => {
                self.vectors + self.layers.iter().take(resident_layers).sum::<u64>()
            }
        }
    }

    /// Room for what passes: the largest two places that follow one another on the way of a pass.
    pub fn window_bytes(&self, residence: Residence) -> u64 {
        let Residence::Window { resident_layers } = residence else { return 0 };
        let layer = |(index, bytes): (usize, &u64)| if index < resident_layers { 0 } else { *bytes };
        let layers = self.layers.iter().enumerate().map(layer);
        let head = if self.head == 0 { self.embedding } else { self.head };
        let places: Vec<u64> = std::iter::once(self.embedding).chain(layers).chain([head]).collect();
        places.windows(2).map(|pair| pair[0] + pair[1]).max().unwrap_or(0)
    }

    /// What forward and backward of a micro-batch bring into memory of what passes: layers twice but for the last,
    /// where the pass turns; all of embedding and head, of which the former may be a few rows.
    pub fn passed_bytes(&self, residence: Residence) -> u64 {
        let Residence::Window { resident_layers } = residence else { return 0 };
        let passing = self.layers.get(resident_layers..).unwrap_or_default();
        let turn = passing.last().copied().unwrap_or(0);
        2 * passing.iter().sum::<u64>() - turn + self.embedding + self.head
    }
}

/// The sizes of what [`weights_bytes`] adds up.
///
/// # Errors
/// As [`plan_bytes`].
pub fn weight_sizes(config: &ModelConfig, quant: Quant) -> Result<WeightSizes> {
    sizes_of(config, |spec| Ok(policy::block_type(quant, config, spec)))
}

fn sizes_of(
    config: &ModelConfig,
    block_type: impl Fn(&TensorSpec) -> Result<BlockType>,
) -> Result<WeightSizes> {
    let mut sizes = WeightSizes { vectors: 0, embedding: 0, head: 0, layers: vec![0; config.n_layers] };
    for spec in family::tensors(config) {
        let ty = block_type(&spec)?;
        let place = match (spec.layer, spec.role) {
            (_, role) if role.is_vector() => &mut sizes.vectors,
            (Some(layer), _) => &mut sizes.layers[layer],
            (None, Role::Embedding) => &mut sizes.embedding,
            (None, _) => &mut sizes.head,
        };
        *place += spec.rows as u64 * ty.row_bytes(spec.cols)? as u64;
    }
    Ok(sizes)
}

/// What a forward pass over weights that come layer by layer takes ([`crate::step::Streamed`]): the largest layer, the head,
/// and the pass's buffers for up to `max_tokens` tokens.
///
/// # Errors
/// As [`plan_bytes`].
pub fn streamed_bytes(
    config: &ModelConfig,
    precision: Precision,
    quant: Quant,
    max_tokens: usize,
) -> Result<u64> {
    let (mut layers, mut outside, mut head) = (vec![0; config.n_layers], 0, 0);
    let held_by = if config.tied { Role::Embedding } else { Role::Output };
    for spec in family::tensors(config) {
        let ty = policy::block_type(quant, config, &spec);
        let bytes = spec.rows as u64 * ty.row_bytes(spec.cols)? as u64;
        match spec.layer {
            Some(layer) => layers[layer] += bytes,
            None if spec.role == held_by => head = bytes,
            None if spec.role.is_vector() => outside += bytes,
            None => {}
        }
    }
    let fixed: u64 = fixed_bytes(precision).iter().map(|(_, bytes)| bytes).sum();
    let (of_one_layer, plan) = (one_layer_of(config), StepPlan::new(config, max_tokens));
    let workspace: u64 = workspace_bytes(&of_one_layer, None, &plan)?.iter().map(|(_, bytes)| bytes).sum();
    Ok(layers.into_iter().max().unwrap_or(0) + outside + head + fixed + workspace)
}

/// Bytes of a GGUF's blocks, and of its vectors in 32 bits, as [`crate::Base::from_gguf`] holds them.
///
/// # Errors
/// A tensor that the file lacks.
pub fn gguf_weights_bytes(config: &ModelConfig, gguf: &Reader) -> Result<u64> {
    let sizes = sizes_of(config, |spec| match gguf.tensor(&spec.gguf) {
        _ if spec.role.is_vector() => Ok(BlockType::F32),
        Some(tensor) => Ok(tensor.ty),
        None => Err(Error::MissingTensor { name: spec.gguf.clone(), n_missing: 1, n_expected: 1 }),
    })?;
    Ok(sizes.total_bytes())
}
