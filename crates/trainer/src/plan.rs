//! The plan: how large a micro-batch may be, what memory and disk the run takes, and whether that fits.

use formats::disk::free_bytes;
use model::arena::Arena;
use model::generate::Capacity;
use model::memory::{MemoryRow, MemoryTable, Residents, plan_bytes};
use model::step::StepPlan;
use model::{Cpu, LoraOptions, ModelConfig, Quant};

use crate::data::batches::Batches;
use crate::data::dataset::Dataset;
use crate::error::{Error, Result};
use crate::event::PlanTable;
use crate::options::Options;
use crate::run_dir::RunDir;

/// Sizes of a run, fixed before anything is allocated.
pub struct Plan {
    /// The table as the user sees it.
    pub table: PlanTable,
    /// Sizes of the step's workspace.
    pub step: StepPlan,
    /// Limit on the tokens of a micro-batch.
    pub micro_batch_tokens: usize,
}

/// What the plan is made for.
struct Shapes<'a> {
    config: &'a ModelConfig,
    quant: Quant,
    lora: &'a LoraOptions,
    answers: Option<Capacity>,
}

impl Plan {
    /// Chooses the largest micro-batch that fits; `kept_tokens` is the one that a resumed run must keep.
    ///
    /// # Errors
    /// [`Error::BudgetTooSmall`] when not even one row at a time fits.
    pub fn new(
        options: &Options,
        quant: Quant,
        lora: &LoraOptions,
        config: &ModelConfig,
        dataset: &Dataset,
        answers: Option<Capacity>,
        kept_tokens: Option<usize>,
    ) -> Result<Self> {
        let mut batches = Batches::new(dataset.train_rows.clone(), &options.train);
        let total_steps = batches.total_steps(options.train.length);
        let whole = batches.largest_micro_batch(total_steps, &dataset.corpus).max(dataset.longest_row());
        let shapes = Shapes { config, quant, lora, answers };
        let budget = options.budget.memory_bytes;
        let limit = budget.map(|bytes| bytes.saturating_sub(options.budget.reserve_bytes));
        let tokens = match kept_tokens {
            Some(tokens) => tokens,
            None => shapes.largest_that_fits(dataset.longest_row(), whole, limit)?,
        };
        let step = StepPlan::new(config, tokens);
        let is_small_enough = shapes.fits(&step, limit)?;
        if let Some(have_bytes) = limit.filter(|_| !is_small_enough) {
            return Err(shapes.too_small(tokens, have_bytes)?);
        }
        let step = shapes.with_kept_layers(step, limit)?;
        let memory = shapes.table(&step)?;
        batches.limit_tokens(tokens);
        let trained_parameters = trained_parameters(config, lora);
        let table = PlanTable {
            rows: memory.rows.iter().map(|row| (row.name.to_owned(), row.bytes)).collect(),
            total_bytes: memory.total_bytes(),
            budget_bytes: limit,
            micro_batch_tokens: tokens,
            rows_per_step: batches.rows_per_step(),
            steps_per_epoch: batches.steps_per_epoch(),
            total_steps,
            kept_layers: step.kept_layers,
            trained_parameters,
            disk_bytes: disk_bytes(trained_parameters, options.train.keep),
        };
        Ok(Self { table, step, micro_batch_tokens: tokens })
    }

    /// The device, capped by the plan's total.
    ///
    /// # Errors
    /// What the device meets.
    pub fn device(&self) -> Result<Cpu> {
        Ok(Cpu::new(Arena::new(self.table.total_bytes))?)
    }

    /// Refuses to start what could not be saved.
    ///
    /// # Errors
    /// [`Error::DiskTooFull`].
    pub fn check_disk(&self, run_dir: &RunDir) -> Result<()> {
        let (need_bytes, have_bytes) = (self.table.disk_bytes, free_bytes(run_dir.path())?);
        if need_bytes <= have_bytes {
            return Ok(());
        }
        Err(Error::DiskTooFull { path: run_dir.path().into(), need_bytes, have_bytes })
    }
}

impl Shapes<'_> {
    /// Training and answering take turns, so the larger of both counts.
    fn table(&self, step: &StepPlan) -> Result<MemoryTable> {
        let (config, quant, lora) = (self.config, self.quant, Some(self.lora));
        let mut table = plan_bytes(&Residents { config, quant, lora, step: Some(step), answers: None })?;
        let answering = plan_bytes(&Residents { config, quant, lora, step: None, answers: self.answers })?;
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

    /// Bisects between one row and a whole micro-batch; the table grows with the tokens.
    fn largest_that_fits(&self, smallest: usize, whole: usize, limit: Option<u64>) -> Result<usize> {
        let fits = |tokens| self.fits(&StepPlan::new(self.config, tokens), limit);
        if fits(whole)? {
            return Ok(whole);
        }
        // When not even one row fits, the caller finds that out with the figures for its message.
        let (mut largest, mut too_large) = (smallest, whole);
        while too_large - largest > 1 {
            let middle = largest + (too_large - largest) / 2;
            if fits(middle)? { largest = middle } else { too_large = middle }
        }
        Ok(largest)
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

    fn too_small(&self, tokens: usize, have_bytes: u64) -> Result<Error> {
        let need = |tokens| Ok::<u64, Error>(self.table(&StepPlan::new(self.config, tokens))?.total_bytes());
        let need_bytes = need(tokens)?;
        let mut shorter = tokens / 2;
        while shorter >= SHORTEST_ADVICE && need(shorter)? > have_bytes {
            shorter /= 2;
        }
        let would_fit = match shorter >= SHORTEST_ADVICE {
            true => format!("rows of at most {shorter} tokens would fit: set `data.max_seq_len` to that"),
            false => format!("set `budget.memory` to at least {need_bytes} bytes more than `budget.reserve`"),
        };
        Ok(Error::BudgetTooSmall { need_bytes, have_bytes, would_fit })
    }
}

/// No one trains on shorter rows.
const SHORTEST_ADVICE: usize = 64;

fn trained_parameters(config: &ModelConfig, lora: &LoraOptions) -> u64 {
    let per_layer: usize = lora
        .targets
        .iter()
        .map(|&role| {
            let (rows, cols) = config.shape(role);
            lora.rank * (rows + cols)
        })
        .sum();
    (per_layer * config.n_layers) as u64
}

/// Kept checkpoints and one more while the newest is written: adapter and two moments each; result and best.
fn disk_bytes(trained_parameters: u64, keep: usize) -> u64 {
    let adapter = 4 * trained_parameters + SMALL_FILES_BYTES;
    let checkpoint = 12 * trained_parameters + SMALL_FILES_BYTES;
    // While `best` or the result is replaced, old and new stand side by side.
    checkpoint * (keep as u64 + 1) + 3 * adapter
}

/// State, manifest, configuration and headers beside the weights.
const SMALL_FILES_BYTES: u64 = 1 << 20;
