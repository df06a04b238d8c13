//! How long a run will take, from a few seconds of it: its own rows through its own step, with nothing kept.

use std::sync::Arc;
use std::time::{Duration, Instant};

use formats::observe::Observer;
use model::lora::Gradients;
use model::preference::Preference;
use model::step::StepPlan;
use model::{Adapter, Device, LoraOptions, TrainStep};
use serde::{Deserialize, Serialize};

use crate::base_cache::BaseCache;
use crate::base_files::BaseFiles;
use crate::data::batches::{Batches, cut};
use crate::data::corpus::Corpus;
use crate::data::dataset::Dataset;
use crate::data::order::{Random, shuffle};
use crate::data::packed::Packed;
use crate::error::Result;
use crate::event::Event;
use crate::memory_use::Growth;
use crate::options::Options;
use crate::plan::Plan;

/// Tokens that are run at once: as many give the speed of a whole micro-batch within a few percent, and take seconds on a
/// processor even of the largest bases.
const PROBE_TOKENS: usize = 1024;

/// What is measured after the first time, which fetches what is read for the first time.
const LEAST_TIME: Duration = Duration::from_secs(8);

/// How long a run will take.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// Tokens a second, forward and backward.
    pub training_tokens_per_second: f64,
    /// Tokens a second, forward alone.
    pub forward_tokens_per_second: f64,
    /// Tokens that all steps have together.
    pub training_tokens: u64,
    /// Tokens of all measurements of the validation loss, and of DPO's reference.
    pub forward_tokens: u64,
    /// Tokens that were measured.
    pub measured_tokens: u64,
    /// Seconds of the steps.
    pub training_seconds: f64,
    /// Seconds of validation and reference; answers that are generated come on top.
    pub forward_seconds: f64,
}

/// What a probe is made of.
pub struct Probe<'a> {
    /// The run.
    pub options: &'a Options,
    /// Its base.
    pub base_files: &'a BaseFiles,
    /// Its rows.
    pub dataset: &'a Dataset,
    /// Its plan.
    pub plan: &'a Plan,
    /// Its adapter.
    pub lora: &'a LoraOptions,
    /// What it measures memory with.
    pub growth: &'a Growth,
}

impl Probe<'_> {
    /// Loads the base and runs rows of the first epoch for some seconds.
    ///
    /// # Errors
    /// What loading and the model meet.
    pub fn run(&self, observer: &mut dyn Observer<Event>) -> Result<Estimate> {
        let Self { options, base_files: files, dataset, plan, lora, growth } = *self;
        let device = plan.device()?;
        let cache = (&BaseCache::new(&options.cache), growth);
        let base =
            Arc::new(files.weights.load(&device, (&files.config, plan.residence), cache, None, observer)?);
        let mut adapter = Adapter::new(&base.device, &base.config, lora, options.train.seed)?;
        adapter.set_magnitudes(&base)?;
        let mut gradients = Gradients::new(&adapter)?;
        let tokens = plan.step.max_tokens.min(PROBE_TOKENS.max(dataset.longest_example()));
        let mut step = TrainStep::new(base, Some(lora), StepPlan { max_tokens: tokens, ..plan.step })?;

        // In random order, so that the rows are as long as the run's.
        let corpus = &dataset.corpus;
        let mut examples = dataset.train_rows.clone();
        shuffle(&mut examples, &mut Random::new(options.train.seed, "probe", 0));
        let rows = corpus.rows_of(&examples);
        let together = corpus.rows_per_example();
        let groups = cut(&rows, together, tokens, corpus);
        let mut packed = Packed::default();
        let mut backward = |group: &[usize]| -> Result<u64> {
            packed.fill(group, corpus);
            train(&mut step, &adapter, &packed, &mut gradients, together)?;
            Ok(packed.tokens.len() as u64)
        };
        let (n_trained, training_speed) = speed(&groups, &mut backward)?;
        let mut packed = Packed::default();
        let mut forward = |group: &[usize]| -> Result<u64> {
            packed.fill(group, corpus);
            step.evaluate(Some(&adapter), &packed.batch())?;
            Ok(packed.tokens.len() as u64)
        };
        let (n_evaluated, forward_speed) = speed(&groups, &mut forward)?;
        let (training_tokens, forward_tokens) = self.tokens();
        Ok(Estimate {
            training_tokens_per_second: training_speed,
            forward_tokens_per_second: forward_speed,
            training_tokens,
            forward_tokens,
            measured_tokens: n_trained + n_evaluated,
            training_seconds: training_tokens as f64 / training_speed,
            forward_seconds: forward_tokens as f64 / forward_speed,
        })
    }

    /// Tokens of all steps, and of what is only run forward.
    fn tokens(&self) -> (u64, u64) {
        let Self { options, dataset, plan, .. } = *self;
        let mut batches = Batches::new(&dataset.corpus, &dataset.train_rows, options);
        let total_steps = plan.table.total_steps;
        let of_rows = |corpus: &Corpus, rows: &[usize]| -> u64 {
            rows.iter().map(|&row| corpus.n_inputs(row) as u64).sum()
        };
        let training =
            (1..=total_steps).map(|step| of_rows(&dataset.corpus, &batches.step(step).units.rows)).sum();
        let validation = dataset.validation_corpus();
        let validation = of_rows(validation, &validation.rows_of(&dataset.validation_rows));
        // Before the first step, at every multiple, and after the last.
        let every = options.train.eval_every;
        let measurements = 2 + total_steps.saturating_sub(1).checked_div(every).unwrap_or(0);
        let reference = match options.train.preference().filter(Preference::has_reference) {
            Some(_) => of_rows(&dataset.corpus, &dataset.corpus.rows_of(&dataset.train_rows)) + validation,
            None => 0,
        };
        (training, measurements * validation + reference)
    }
}

/// One micro-batch as training runs it; the loss is of no interest.
fn train<D: Device>(
    step: &mut TrainStep<D>,
    adapter: &Adapter<D>,
    packed: &Packed,
    gradients: &mut Gradients<D>,
    rows_per_example: usize,
) -> Result<()> {
    const SCALE: f32 = 1e-3;
    if rows_per_example == 1 {
        step.forward_backward(adapter, &packed.batch(), gradients, SCALE)?;
    } else {
        step.forward_backward_sequences(adapter, &packed.batch(), gradients, &mut |_, factors| {
            factors.fill(SCALE);
        })?;
    }
    Ok(())
}

/// Tokens that were run, and how many a second; groups are run over again where they are few.
fn speed(groups: &[&[usize]], run: &mut dyn FnMut(&[usize]) -> Result<u64>) -> Result<(u64, f64)> {
    run(groups[0])?;
    let begun = Instant::now();
    let mut tokens = 0;
    for group in groups.iter().cycle().skip(1) {
        tokens += run(group)?;
        if begun.elapsed() >= LEAST_TIME {
            break;
        }
    }
    Ok((tokens, tokens as f64 / begun.elapsed().as_secs_f64()))
}
