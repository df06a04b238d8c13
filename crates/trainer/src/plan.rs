//! The plan: how large a micro-batch may be, what memory and disk the run takes, and whether that fits.

use std::path::Path;

use formats::disk::free_bytes;
use model::arena::Arena;
use model::device::Precision;
use model::generate::Capacity;
use model::lora::Layout;
use model::memory::{MemoryRow, MemoryTable, Residents, plan_bytes};
use model::optimizer::{MomentForm, moments_bytes};
use model::preference::Preference;
use model::step::{LayerInputs, StepPlan};
use model::{Cpu, LoraOptions, ModelConfig};

use crate::data::batches::Batches;
use crate::data::dataset::Dataset;
use crate::error::{Error, Result};
use crate::event::{PlanTable, Unit};
use crate::memory_use::Growth;
use crate::options::{Init, Options};
use crate::record::Chosen;
use crate::reference;
use crate::run_dir::RunDir;

/// Sizes of a run, fixed before anything is allocated.
pub struct Plan {
    /// The table as the user sees it.
    pub table: PlanTable,
    /// Sizes of the step's workspace.
    pub step: StepPlan,
    /// What a resumed run must take over.
    pub chosen: Chosen,
    device_bytes: u64,
}

/// What the plan is made for.
pub struct Shapes<'a> {
    /// The base.
    pub config: &'a ModelConfig,
    /// Of products with its weights.
    pub precision: Precision,
    /// Bytes of its weights in memory.
    pub weights_bytes: u64,
    /// The adapter.
    pub lora: &'a LoraOptions,
    /// How its moments are held.
    pub moments: MomentForm,
    /// What decodes side by side in the evaluation.
    pub answers: Option<Capacity>,
    /// What decodes side by side at each evaluation, while the memory of training stays drawn.
    pub samples: Option<Capacity>,
}

impl Plan {
    /// Chooses the largest micro-batch that fits, unless a resumed run has `chosen` before.
    ///
    /// Data and tokenizer are in memory by now, so that what they take is measured rather than guessed.
    ///
    /// # Errors
    /// [`Error::BudgetTooSmall`] when not even one row at a time fits.
    pub fn new(
        options: &Options,
        shapes: &Shapes<'_>,
        dataset: &Dataset,
        growth: &Growth,
        chosen: Option<Chosen>,
    ) -> Result<Self> {
        let mut batches = Batches::new(&dataset.corpus, &dataset.train_rows, options);
        let total_steps = batches.total_steps(options.train.length);
        let longest = dataset.longest_example();
        let whole = batches.largest_micro_batch(total_steps, &dataset.corpus).max(longest);
        let host_bytes = chosen.map_or_else(|| growth.sample().unwrap_or(0), |chosen| chosen.host_bytes);
        let mut host = host_rows(host_bytes, shapes.trained_parameters(), options.adapter.init);
        let reference = options.train.preference().filter(Preference::has_reference);
        if reference.is_some() {
            let bytes = reference::bytes_in_memory(dataset);
            host.push(MemoryRow { name: "likelihoods of the pairs", bytes });
        }
        let beside_bytes: u64 = host.iter().map(|row| row.bytes).sum();
        let budget =
            options.budget.memory_bytes.map(|bytes| bytes.saturating_sub(options.budget.reserve_bytes));
        let limit = budget.map(|bytes| bytes.saturating_sub(beside_bytes));

        let step = match chosen {
            Some(Chosen { micro_batch_tokens, layer_inputs, .. }) => {
                StepPlan { layer_inputs, ..StepPlan::new(shapes.config, micro_batch_tokens) }
            }
            None => shapes.largest_that_fits(longest, whole, limit)?,
        };
        let tokens = step.max_tokens;
        if !shapes.fits(&step, limit)? {
            return Err(shapes.too_small(tokens, budget.unwrap_or(0), beside_bytes)?);
        }
        let step = shapes.with_kept_layers(step, limit)?;
        let device = shapes.table(&step)?;
        let device_bytes = device.total_bytes();
        batches.limit_tokens(tokens);
        let trained_parameters = shapes.trained_parameters();
        let table = PlanTable {
            rows: device.rows.iter().chain(&host).map(|row| (row.name.to_owned(), row.bytes)).collect(),
            total_bytes: device_bytes + beside_bytes,
            budget_bytes: budget,
            micro_batch_tokens: tokens,
            rows_per_step: batches.rows_per_step(),
            unit: match options.data.packing {
                true => Unit::Packs,
                false if dataset.corpus.rows_per_example() > 1 => Unit::Pairs,
                false => Unit::Rows,
            },
            steps_per_epoch: batches.steps_per_epoch(),
            total_steps,
            layer_inputs: step.layer_inputs,
            precision: shapes.precision,
            kept_layers: step.kept_layers,
            trained_parameters,
            disk_bytes: disk_bytes(trained_parameters, shapes.moments_bytes(), options)
                + reference.map_or(0, |_| reference::bytes_on_disk(dataset)),
        };
        let (layer_inputs, precision) = (step.layer_inputs, shapes.precision);
        let chosen = Chosen { micro_batch_tokens: tokens, layer_inputs, precision, host_bytes };
        Ok(Self { table, step, chosen, device_bytes })
    }

    /// The device, capped by what the plan gives it.
    ///
    /// # Errors
    /// What the device meets.
    pub fn device(&self) -> Result<Cpu> {
        Ok(Cpu::with_precision(Arena::new(self.device_bytes), self.chosen.precision)?)
    }

    /// Refuses to start what could not be saved.
    ///
    /// # Errors
    /// [`Error::DiskTooFull`].
    pub fn check_disk(&self, run_dir: &RunDir) -> Result<()> {
        check_free(run_dir.path(), self.table.disk_bytes)
    }
}

fn check_free(path: &Path, need_bytes: u64) -> Result<()> {
    let have_bytes = free_bytes(path)?;
    if need_bytes <= have_bytes {
        return Ok(());
    }
    Err(Error::DiskTooFull { path: path.into(), need_bytes, have_bytes })
}

impl Shapes<'_> {
    /// Training and answering take turns, so the larger of both counts; samples come in between and count beside training.
    fn table(&self, step: &StepPlan) -> Result<MemoryTable> {
        let Shapes { config, precision, weights_bytes, moments, .. } = *self;
        let lora = Some(self.lora);
        let mut table = plan_bytes(&Residents {
            config,
            precision,
            weights_bytes,
            lora,
            moments,
            step: Some(step),
            answers: self.samples,
        })?;
        let answering = plan_bytes(&Residents {
            config,
            precision,
            weights_bytes,
            lora,
            moments,
            step: None,
            answers: self.answers,
        })?;
        let more = answering.total_bytes().saturating_sub(table.total_bytes());
        if more > 0 {
            table.rows.push(MemoryRow { name: "evaluation beyond training", bytes: more });
        }
        Ok(table)
    }

    fn fits(&self, step: &StepPlan, limit: Option<u64>) -> Result<bool> {
        Ok(match limit {
            Some(bytes) => self.table(step)?.total_bytes() <= bytes,
            None => true,
        })
    }

    /// As many tokens as fit, from one row to a whole micro-batch; layer inputs in 16 bits where one row does not fit
    /// otherwise.
    fn largest_that_fits(&self, smallest: usize, whole: usize, limit: Option<u64>) -> Result<StepPlan> {
        let one_row = StepPlan::new(self.config, smallest);
        let layer_inputs = if self.fits(&one_row, limit)? { LayerInputs::F32 } else { LayerInputs::BF16 };
        let plan = |tokens| StepPlan { layer_inputs, ..StepPlan::new(self.config, tokens) };
        if self.fits(&plan(whole), limit)? {
            return Ok(plan(whole));
        }
        // Bisected: the table grows with the tokens. When not even one row fits, the caller finds that out with the
        // figures for its message.
        let (mut largest, mut too_large) = (smallest, whole);
        while too_large - largest > 1 {
            let middle = largest + (too_large - largest) / 2;
            if self.fits(&plan(middle), limit)? { largest = middle } else { too_large = middle }
        }
        Ok(plan(largest))
    }

    /// Spends what is left of the budget on layers that need not run again; the sums stay the same to the bit.
    fn with_kept_layers(&self, mut step: StepPlan, limit: Option<u64>) -> Result<StepPlan> {
        for kept_layers in 1..=self.config.n_layers {
            let more = StepPlan { kept_layers, ..step };
            if !self.fits(&more, limit)? {
                break;
            }
            step = more;
        }
        Ok(step)
    }

    fn too_small(&self, tokens: usize, have_bytes: u64, beside_bytes: u64) -> Result<Error> {
        let need = |tokens| {
            let step = StepPlan { layer_inputs: LayerInputs::BF16, ..StepPlan::new(self.config, tokens) };
            let device = self.table(&step)?;
            Ok::<u64, Error>(device.total_bytes() + beside_bytes)
        };
        let need_bytes = need(tokens)?;
        let mut shorter = tokens / 2;
        while shorter >= SHORTEST_ADVICE && need(shorter)? > have_bytes {
            shorter /= 2;
        }
        let would_fit = match shorter >= SHORTEST_ADVICE {
            true => format!("rows of at most {shorter} tokens would fit: set `data.max_seq_len` to that"),
            false => {
                let need = need_bytes.div_ceil(1 << 20);
                format!("set `budget.memory` to at least {need}MB more than `budget.reserve`")
            }
        };
        Ok(Error::BudgetTooSmall { need_bytes, have_bytes, would_fit })
    }

    fn trained_parameters(&self) -> u64 {
        Layout::new(self.config, self.lora).len() as u64
    }

    fn moments_bytes(&self) -> u64 {
        moments_bytes(&Layout::new(self.config, self.lora), self.moments)
    }
}

/// What the process takes beside the device's allocator.
fn host_rows(host_bytes: u64, trained_parameters: u64, init: Init) -> Vec<MemoryRow> {
    // Where A and B began and what the base is held without stay in memory, and the result is of twice the rank.
    let beginning = if init == Init::Default { 0 } else { 16 * trained_parameters };
    vec![
        MemoryRow { name: "data, tokenizer, program", bytes: host_bytes },
        // The adapter or one moment, copied while a checkpoint is written or read.
        MemoryRow { name: "copies for a checkpoint", bytes: 4 * trained_parameters + beginning },
        MemoryRow { name: "scratch of the threads", bytes: SCRATCH_BYTES },
    ]
}

/// Packed panels of the matrix products, stacks, what the allocator keeps back: 9 MiB measured on two threads.
const SCRATCH_BYTES: u64 = 16 << 20;

/// No one trains on shorter rows.
const SHORTEST_ADVICE: usize = 64;

/// Kept checkpoints and one more while the newest is written: adapter and two moments each; result and best.
fn disk_bytes(trained_parameters: u64, moments_bytes: u64, options: &Options) -> u64 {
    let keep = options.train.keep;
    let has_beginning = options.adapter.init != Init::Default;
    let adapter = 4 * trained_parameters * if has_beginning { 2 } else { 1 } + SMALL_FILES_BYTES;
    let beginning = if has_beginning { adapter } else { 0 };
    let checkpoint = 4 * trained_parameters + moments_bytes + SMALL_FILES_BYTES;
    // While `best` or the result is replaced, old and new stand side by side.
    checkpoint * (keep as u64 + 1) + 3 * adapter + beginning
}

/// State, manifest, configuration and headers beside the weights.
const SMALL_FILES_BYTES: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layer_inputs_are_rounded_only_where_one_row_does_not_fit_otherwise() {
        let config = ModelConfig {
            vocab_size: 1000,
            hidden: 256,
            intermediate: 512,
            n_layers: 24,
            n_heads: 4,
            n_kv_heads: 2,
            max_positions: 4096,
            ..ModelConfig::plain(model::Family::Llama, 64)
        };
        let lora = LoraOptions::default();
        let shapes = Shapes {
            config: &config,
            precision: Precision::F32,
            weights_bytes: 1 << 20,
            lora: &lora,
            moments: MomentForm::F32,
            answers: None,
            samples: None,
        };
        let need = |layer_inputs, tokens| {
            let step = StepPlan { layer_inputs, ..StepPlan::new(&config, tokens) };
            shapes.table(&step).unwrap().total_bytes()
        };
        let chosen = |limit| {
            let step = shapes.largest_that_fits(512, 2048, Some(limit)).unwrap();
            (step.layer_inputs, step.max_tokens)
        };
        let (full, half) = (LayerInputs::F32, LayerInputs::BF16);
        assert!(need(half, 512) < need(full, 512));
        assert_eq!(chosen(need(full, 2048)), (full, 2048));
        assert_eq!(chosen(need(full, 1000)), (full, 1000));
        assert_eq!(chosen(need(full, 512)), (full, 512));
        assert_eq!(chosen(need(half, 512)), (half, 512));
        assert_eq!(chosen(need(full, 512) - 1).0, half);
    }

    #[test]
    fn a_disk_that_is_too_full_is_named_with_need_and_have() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = dir.path().join("runs/x");
        check_free(&run_dir, 1).unwrap();
        let error = check_free(&run_dir, u64::MAX).unwrap_err();
        assert!(matches!(error, Error::DiskTooFull { need_bytes: u64::MAX, .. }), "{error}");
        assert_eq!(error.hint().unwrap(), "free some space, or lower `train.keep`");
        assert!(!run_dir.exists());
    }
}
