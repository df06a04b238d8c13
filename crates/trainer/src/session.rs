//! The training loop: from a loaded base to the last checkpoint.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use formats::observe::Observer;
use model::lora::{Dropout, Gradients};
use model::optimizer::{AdamWOptions, Moment};
use model::preference::Preference;
use model::{AdamW, Adapter, Base, Device, LoraOptions, LossSum, TrainStep};

use crate::adapter_files::to_files;
use crate::base_files::BaseFiles;
use crate::beginning::Beginning;
use crate::checkpoint::{self, Contents, Saved, State};
use crate::data::batches::Batches;
use crate::data::dataset::Dataset;
use crate::data::epoch::Order;
use crate::data::packed::Packed;
use crate::error::{Error, Result};
use crate::evaluate::validation_loss;
use crate::event::{Event, PreferenceFigures, StepReport};
use crate::memory_use::Growth;
use crate::metrics::{Metric, MetricsLog};
use crate::options::Options;
use crate::plan::Plan;
use crate::preference::{self, Judging};
use crate::reference::{Measurement, Reference};
use crate::run_dir::RunDir;
use crate::schedule::Schedule;
use crate::speed::Speed;

/// Steps that may be skipped for a loss or gradient that is not finite; one more ends the run.
const MOST_SKIPPED_STEPS: u32 = 3;

/// What a session works on and never changes.
#[derive(Clone, Copy)]
pub struct Setting<'a> {
    /// What the run is asked to do.
    pub options: &'a Options,
    /// Its folder.
    pub run_dir: &'a RunDir,
    /// Configuration, tokenizer, hashes.
    pub base_files: &'a BaseFiles,
    /// All rows.
    pub dataset: &'a Dataset,
    /// Memory and batches.
    pub plan: &'a Plan,
    /// The memory that the run takes.
    pub growth: &'a Growth,
}

/// A run in memory: everything that changes from step to step.
pub struct Session<'a, D: Device> {
    setting: Setting<'a>,
    device: D,
    /// Where A and B began, where a method made them.
    beginning: Option<Beginning>,
    batches: Batches,
    /// The loss, where it is over pairs.
    preference: Option<Preference>,
    /// What the base thinks of the pairs, where the loss asks for it.
    reference: Reference,
    schedule: Schedule,
    step: TrainStep<D>,
    adapter: Adapter<D>,
    gradients: Gradients<D>,
    optimizer: AdamW<D>,
    packed: Packed,
    state: State,
    metrics: MetricsLog,
    speed: Speed,
    started: Instant,
    seconds_before: f64,
    /// Step of the newest checkpoint on disk.
    saved_step: Option<u64>,
}

/// Loss and norm of a step, and whether the adapter was changed by it.
struct Update {
    loss: f64,
    preference: Option<PreferenceFigures>,
    grad_norm: f64,
    tokens: u64,
    target_tokens: u64,
}

impl<'a, D: Device> Session<'a, D> {
    /// Draws all memory and takes up the adapter where `state` left it, or a fresh one.
    ///
    /// # Errors
    /// What the model meets; a saved adapter that does not fit.
    pub fn new(
        setting: Setting<'a>,
        base: &Arc<Base<D>>,
        lora: &LoraOptions,
        beginning: Option<Beginning>,
        begin: Begin,
    ) -> Result<Self> {
        let (options, config) = (setting.options, &base.config);
        let mut adapter = Adapter::new(&base.device, config, lora, options.train.seed)?;
        let clip = options.train.clip;
        let optimizer_options = AdamWOptions {
            weight_decay: options.train.weight_decay,
            b_rate_ratio: options.train.lora_plus_ratio,
            max_grad_norm: (clip > 0.0).then_some(clip),
            ..AdamWOptions::default()
        };
        let mut optimizer = AdamW::new(&base.device, adapter.n_weights(), optimizer_options)?;
        let (state, saved_step) = match begin {
            Begin::Fresh(state) => {
                match &beginning {
                    Some(beginning) => beginning.set(&mut adapter, config)?,
                    None => adapter.set_magnitudes(base)?,
                }
                (*state, None)
            }
            Begin::Resumed(mut saved) => {
                // Gone before a moment is read: one copy of one part is what the plan has room for.
                let tensors = std::mem::take(&mut saved.adapter.tensors);
                adapter.set_tensors(config, &tensors)?;
                drop(tensors);
                for moment in Moment::ALL {
                    optimizer.restore(saved.state.updates, moment, &saved.moment(moment)?)?;
                }
                let step = saved.state.step;
                (saved.state, Some(step))
            }
        };
        let mut batches = Batches::new(&setting.dataset.corpus, &setting.dataset.train_rows, options);
        batches.limit_tokens(setting.plan.chosen.micro_batch_tokens);
        let metrics = MetricsLog::open(&setting.run_dir.metrics(), saved_step)?;
        Ok(Self {
            beginning,
            batches,
            preference: options.train.preference(),
            reference: Reference::default(),
            schedule: Schedule::new(&options.train, state.total_steps),
            step: TrainStep::new(base.clone(), Some(lora), setting.plan.step)?,
            gradients: Gradients::new(&adapter)?,
            adapter,
            optimizer,
            packed: Packed::default(),
            metrics,
            speed: Speed::default(),
            started: Instant::now(),
            seconds_before: state.seconds,
            saved_step,
            state,
            device: base.device.clone(),
            setting,
        })
    }

    /// Trains up to the last step or until cancelled; either way a checkpoint of the last step done is on disk.
    ///
    /// # Errors
    /// [`Error::NotFinite`], [`Error::BrokenAdapter`], what model and files meet.
    pub fn run(&mut self, observer: &mut dyn Observer<Event>, cancel: &AtomicBool) -> Result<()> {
        if !self.measure_reference(observer, cancel)? {
            return Ok(());
        }
        if self.state.step == 0 {
            self.validate(observer)?;
        }
        while !self.is_complete() && !cancel.load(Ordering::Relaxed) {
            self.one_step(observer)?;
            if self.is_due(self.setting.options.train.eval_every) {
                self.validate(observer)?;
            }
            if self.is_due(self.setting.options.train.checkpoint_every) {
                self.save(observer)?;
            }
        }
        if self.saved_step != Some(self.state.step) && self.state.step > 0 {
            self.save(observer)?;
        }
        Ok(())
    }

    /// Has the base judge all pairs, where the loss asks for it and no earlier start has; false when cancelled.
    fn measure_reference(&mut self, observer: &mut dyn Observer<Event>, cancel: &AtomicBool) -> Result<bool> {
        if !self.preference.is_some_and(|preference| preference.has_reference()) {
            return Ok(true);
        }
        let Setting { run_dir, dataset, plan, .. } = self.setting;
        let (path, total_steps, max_tokens) =
            (run_dir.reference(), self.state.total_steps, plan.step.max_tokens);
        let measurement = Measurement::open(&path, dataset, &mut self.batches, total_steps, max_tokens)?;
        // A base that is held without what the adapter began with is itself only with that.
        let trained = match &self.beginning {
            Some(beginning) if !measurement.is_complete() && self.state.step > 0 => {
                let trained = self.adapter.weights()?;
                beginning.set(&mut self.adapter, &self.step.base().config)?;
                Some(trained)
            }
            _ => None,
        };
        let adapter = self.beginning.is_some().then_some(&self.adapter);
        let found = measurement.finish(&mut self.step, adapter, &mut self.packed, observer, cancel)?;
        if let Some(trained) = trained {
            self.adapter.set_weights(&trained)?;
        }
        let is_whole = found.is_some();
        self.reference = found.unwrap_or_default();
        Ok(is_whole)
    }

    /// Whether the last step is done.
    pub fn is_complete(&self) -> bool {
        self.state.step == self.state.total_steps
    }

    /// At every multiple of `every`, and after the last step.
    fn is_due(&self, every: u64) -> bool {
        self.is_complete() || (every > 0 && self.state.step.is_multiple_of(every))
    }

    fn one_step(&mut self, observer: &mut dyn Observer<Event>) -> Result<()> {
        let started = Instant::now();
        let step = self.state.step + 1;
        let learning_rate = self.schedule.rate(step);
        let update = self.update(step, learning_rate)?;
        self.state.step = step;
        self.state.updates = self.optimizer.updates();
        if let Some(what) = update.not_finite() {
            return self.skip(what, observer);
        }
        self.state.train_loss = Some(update.loss);
        self.speed.add(update.tokens, started.elapsed().as_secs_f64());
        let report = self.report(&update, learning_rate);
        self.metrics.append(&Metric::Step(report.clone()))?;
        observer.observe(Event::Step(report));
        Ok(())
    }

    /// Forward and backward of all micro-batches of a step, then one update.
    fn update(&mut self, step: u64, learning_rate: f64) -> Result<Update> {
        let units = self.batches.step(step).units;
        self.gradients.zero()?;
        let mut update = match self.preference {
            Some(preference) => self.pairs(preference, step, &units)?,
            None => self.tokens(step, &units)?,
        };
        if update.loss.is_finite() {
            update.grad_norm =
                self.optimizer.update(&mut self.adapter, &mut self.gradients, learning_rate as f32)?;
        }
        Ok(update)
    }

    /// Loss and gradient of a step over pairs.
    fn pairs(&mut self, preference: Preference, step: u64, units: &Order) -> Result<Update> {
        let Setting { dataset, options, .. } = self.setting;
        let (corpus, seed) = (&dataset.corpus, options.train.seed);
        let mut judging = Judging::of(preference, corpus, self.reference.training(), &units.rows);
        let mut tokens = 0;
        for (micro_step, micro_batch) in (0..).zip(self.batches.micro_batches(units, corpus)) {
            self.step.seed_dropout(Dropout::seed_of(seed, step, micro_step));
            let (adapter, gradients) = (&self.adapter, &mut self.gradients);
            let (step, packed) = (&mut self.step, &mut self.packed);
            tokens += judging.forward_backward(step, adapter, micro_batch, packed, gradients)? as u64;
        }
        let (loss, figures) = judging.result();
        let target_tokens = units.rows.iter().map(|&row| corpus.n_targets(row) as u64).sum();
        Ok(Update { loss, preference: Some(figures), grad_norm: f64::NAN, tokens, target_tokens })
    }

    /// Loss and gradient of a step over target tokens.
    fn tokens(&mut self, step: u64, units: &Order) -> Result<Update> {
        let corpus = &self.setting.dataset.corpus;
        let target_tokens: usize = units.rows.iter().map(|&row| corpus.n_targets(row)).sum();
        let target_weight: f64 = units.rows.iter().map(|&row| corpus.target_weight(row)).sum();
        let loss_scale = 1.0 / target_weight as f32;
        let (mut sum, mut tokens) = (LossSum::default(), 0);
        for (micro_step, micro_batch) in (0..).zip(self.batches.micro_batches(units, corpus)) {
            let seed = self.setting.options.train.seed;
            self.step.seed_dropout(Dropout::seed_of(seed, step, micro_step));
            self.packed.fill(micro_batch, corpus);
            tokens += self.packed.tokens.len() as u64;
            sum += self.step.forward_backward(
                &self.adapter,
                &self.packed.batch(),
                &mut self.gradients,
                loss_scale,
            )?;
        }
        let target_tokens = target_tokens as u64;
        Ok(Update { loss: sum.mean(), preference: None, grad_norm: f64::NAN, tokens, target_tokens })
    }

    fn skip(&mut self, what: &str, observer: &mut dyn Observer<Event>) -> Result<()> {
        self.state.skipped_steps += 1;
        let (step, count) = (self.state.step, self.state.skipped_steps);
        self.metrics.append(&Metric::Skipped { step, what: what.into() })?;
        observer.observe(Event::StepSkipped { step, count, what: what.into() });
        if count >= MOST_SKIPPED_STEPS { Err(Error::NotFinite { step, count }) } else { Ok(()) }
    }

    fn report(&mut self, update: &Update, learning_rate: f64) -> StepReport {
        let (step, total_steps) = (self.state.step, self.state.total_steps);
        StepReport {
            step,
            total_steps,
            epoch: step as f64 / self.batches.steps_per_epoch() as f64,
            loss: update.loss,
            preference: update.preference,
            validation_loss: self.state.validation_loss,
            learning_rate,
            grad_norm: update.grad_norm,
            tokens: update.tokens,
            target_tokens: update.target_tokens,
            tokens_per_second: self.speed.tokens_per_second(),
            memory_bytes: self.setting.growth.sample(),
            planned_bytes: self.setting.plan.table.total_bytes,
            eta_seconds: self.speed.seconds_per_step() * (total_steps - step) as f64,
        }
    }

    /// Measures the validation loss, and keeps the adapter if it is the best so far.
    fn validate(&mut self, observer: &mut dyn Observer<Event>) -> Result<()> {
        let dataset = self.setting.dataset;
        if dataset.validation_rows.is_empty() {
            return Ok(());
        }
        let step = self.state.step;
        // A base that is held without what the adapter began with is itself only with the adapter.
        let adapter = (step > 0 || self.beginning.is_some()).then_some(&self.adapter);
        let corpus = dataset.validation_corpus();
        let rows = corpus.rows_of(&dataset.validation_rows);
        let max_tokens = self.setting.plan.step.max_tokens;
        let (loss, preference) = match self.preference {
            Some(preference) => {
                let judging = Judging::of(preference, corpus, self.reference.validation(), &rows);
                let (step, packed) = (&mut self.step, &mut self.packed);
                let (loss, figures) =
                    preference::validation(judging, step, adapter, &rows, max_tokens, packed)?;
                (loss, Some(figures))
            }
            None => {
                let (step, packed) = (&mut self.step, &mut self.packed);
                (validation_loss(step, adapter, corpus, &rows, max_tokens, packed)?, None)
            }
        };
        let is_best = loss.is_finite() && self.state.best.is_none_or(|(best, _)| loss < best);
        self.state.validation_loss = Some(loss);
        if step == 0 {
            self.state.base_validation_loss = Some(loss);
        }
        if is_best {
            self.state.best = Some((loss, step));
            if step > 0 {
                formats::adapter::write_adapter(&self.setting.run_dir.best(), &self.result()?)?;
            }
        }
        self.metrics.append(&Metric::Validation { step, loss, preference })?;
        observer.observe(Event::Validation { step, loss, is_best, preference });
        Ok(())
    }

    fn save(&mut self, observer: &mut dyn Observer<Event>) -> Result<()> {
        self.state.seconds = self.seconds();
        self.state.cursor = self.cursor();
        self.metrics.sync()?;
        let keep = self.setting.options.train.keep;
        let (path, bytes) = checkpoint::save(self.setting.run_dir, &*self, keep)?;
        self.setting.growth.sample();
        self.saved_step = Some(self.state.step);
        observer.observe(Event::Checkpoint { step: self.state.step, path, bytes });
        Ok(())
    }

    /// Epoch of the next step, and rows of that epoch that are done.
    fn cursor(&mut self) -> (u64, u64) {
        let next = self.batches.step(self.state.step + 1);
        (next.epoch, next.cursor as u64)
    }

    fn adapter_files(&self) -> Result<formats::adapter::AdapterFiles> {
        let (options, config) = (self.setting.options, &self.setting.base_files.config);
        to_files(&self.adapter, config, options, &self.state.inputs, self.state.step)
    }

    /// The adapter for the base as it was published.
    fn result(&self) -> Result<formats::adapter::AdapterFiles> {
        let files = self.adapter_files()?;
        Ok(match &self.beginning {
            Some(beginning) => beginning.on_published_base(files),
            None => files,
        })
    }

    fn seconds(&self) -> f64 {
        self.seconds_before + self.started.elapsed().as_secs_f64()
    }

    /// Writes the result.
    ///
    /// # Errors
    /// What writing meets.
    pub fn write_adapter(&self) -> Result<()> {
        Ok(formats::adapter::write_adapter(&self.setting.run_dir.adapter(), &self.result()?)?)
    }

    /// Ends the session, giving back the memory of training.
    pub fn finish(mut self) -> Ended<D> {
        self.state.seconds = self.seconds();
        let dense = self.device.dense();
        let dense_bytes = (dense.peak_bytes(), dense.live_bytes());
        Ended { dense_bytes, state: self.state, adapter: self.adapter, metrics: self.metrics }
    }
}

impl<D: Device> Contents for Session<'_, D> {
    fn state(&self) -> &State {
        &self.state
    }

    fn adapter(&self) -> Result<formats::adapter::AdapterFiles> {
        self.adapter_files()
    }

    fn moment(&self, moment: Moment) -> Result<Vec<f32>> {
        Ok(self.optimizer.moment(moment)?)
    }

    fn n_weights(&self) -> usize {
        self.adapter.n_weights()
    }
}

/// Where a session begins.
pub enum Begin {
    /// At step 0.
    Fresh(Box<State>),
    /// At a checkpoint.
    Resumed(Box<Saved>),
}

/// What is left of a session.
pub struct Ended<D: Device> {
    /// Where it ended.
    pub state: State,
    /// The trained adapter.
    pub adapter: Adapter<D>,
    /// The run's metrics.
    pub metrics: MetricsLog,
    /// Dense copies of base weights: the most bytes alive at once, and those alive after the last step.
    pub dense_bytes: (u64, u64),
}

impl Update {
    fn not_finite(&self) -> Option<&'static str> {
        match (self.loss.is_finite(), self.grad_norm.is_finite()) {
            (false, _) => Some("loss"),
            (_, false) => Some("gradient"),
            _ => None,
        }
    }
}
