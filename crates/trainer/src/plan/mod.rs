//! The plan: how large a micro-batch may be, what memory and disk the run takes, and whether that fits.

mod shapes;

use std::path::Path;

use formats::disk::free_bytes;
use model::Cpu;
use model::arena::Arena;
use model::base::Residence;
use model::memory::MemoryRow;
use model::preference::Preference;
use model::step::StepPlan;

use crate::data::batches::Batches;
use crate::data::dataset::Dataset;
use crate::error::{Error, Result};
use crate::event::{PlanTable, Unit};
use crate::memory_use::Growth;
use crate::options::{Init, Options};
use crate::record::Chosen;
use crate::reference;
use crate::run_dir::RunDir;
pub use shapes::Shapes;

/// Sizes of a run, fixed before anything is allocated.
pub struct Plan {
    /// The table as the user sees it.
    pub table: PlanTable,
    /// Sizes of the step's workspace.
    pub step: StepPlan,
    /// Which of the base's weights stay in memory.
    pub residence: Residence,
    /// What a resumed run must take over.
    pub chosen: Chosen,
    device_bytes: u64,
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

        let (step, residence) = match chosen {
            Some(Chosen { micro_batch_tokens, layer_inputs, .. }) => {
                let step = StepPlan { layer_inputs, ..StepPlan::new(shapes.config, micro_batch_tokens) };
                (step, shapes.residence(&step, limit)?)
            }
            None => shapes.largest_that_fits(longest, whole, limit)?,
        };
        let tokens = step.max_tokens;
        if !shapes.fits(&step, residence, limit)? {
            return Err(shapes.too_small(tokens, budget.unwrap_or(0), beside_bytes)?);
        }
        let residence = shapes.with_resident_layers(&step, residence, limit)?;
        let step = shapes.with_kept_layers(step, residence, limit)?;
        let device = shapes.table(&step, residence)?;
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
            passing: shapes.passing(residence),
            trained_parameters,
            disk_bytes: disk_bytes(trained_parameters, shapes.moments_bytes(), options)
                + reference.map_or(0, |_| reference::bytes_on_disk(dataset)),
        };
        let (layer_inputs, precision) = (step.layer_inputs, shapes.precision);
        let chosen = Chosen { micro_batch_tokens: tokens, layer_inputs, precision, host_bytes };
        Ok(Self { table, step, residence, chosen, device_bytes })
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
