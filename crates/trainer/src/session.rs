//! The training loop: from a loaded base to the last checkpoint.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use formats::observe::Observer;
use model::lora::{Dropout, Gradients};
use model::optimizer::{AdamWOptions, Moment, MomentForm, MomentValues};
use model::preference::Preference;
use model::{AdamW, Adapter, Base, Device, LoraOptions, LossSum, TrainStep};

use crate::adapter_files::to_files;
use crate::base_files::BaseFiles;
use crate::beginning::{self, Beginning};
use crate::checkpoint::{self, Contents, Saved, State};
use crate::data::batches::Batches;
use crate::data::dataset::Dataset;
use crate::data::epoch::Order;
use crate::data::packed::Packed;
use crate::error::{Error, Result};
use crate::evaluate::{Examination, validation_loss};
use crate::event::{Event, PreferenceFigures, StepReport, keeping_samples};
use crate::memory_use::Growth;
use crate::metrics::{Metric, MetricsLog};
use crate::options::{Options, ResultAdapter};
use crate::plan::Plan;
use crate::preference::{self, Judging};
use crate::reference::{Measurement, Reference};
use crate::report::Reporter;
use crate::run_dir::RunDir;
use crate::schedule::Schedule;
use crate::speed::Speed;
use crate::spikes::Spike;
use crate::tensorboard::{EventLog, wall_time};

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
    /// What is asked.
    pub examination: &'a Examination<'a>,
}

/// A run in memory: everything that changes from step to step.
pub struct Session<'a, D: Device> {
    setting: Setting<'a>,
    device: D,
    base: Arc<Base<D>>,
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
    reporter: Reporter,
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
    skipped: Option<Skipped>,
}

impl Update {
    /// What forward and backward tell; norm and verdict come after them.
    fn new(loss: f64, tokens: u64) -> Self {
        Self { loss, preference: None, grad_norm: f64::NAN, tokens, target_tokens: 0, skipped: None }
    }
}

/// Why a step left everything as it was.
#[derive(Clone, Copy)]
enum Skipped {
    NotFinite(&'static str),
    Spike(Spike),
}

/// An adapter that was written as the result of a run.
#[derive(Debug, Clone, Copy)]
pub struct Written {
    /// Which one.
    pub which: ResultAdapter,
    /// Its step.
    pub step: u64,
    /// Its validation loss.
    pub validation_loss: Option<f64>,
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
            moments: options.train.moments,
            rounding_seed: options.train.seed,
            ..AdamWOptions::default()
        };
        let mut optimizer = AdamW::new(&adapter, optimizer_options)?;
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
        let metrics = open_metrics(setting, saved_step, &state)?;
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
            reporter: Reporter::default(),
            speed: Speed::default(),
            started: Instant::now(),
            seconds_before: state.seconds,
            saved_step,
            state,
            device: base.device.clone(),
            base: base.clone(),
            setting,
        })
    }

    /// Trains up to the last step, until it is stopped early or cancelled; either way a checkpoint of the last step done is on disk.
    ///
    /// # Errors
    /// [`Error::NotFinite`], [`Error::BrokenAdapter`], what model and files meet.
    pub fn run(&mut self, observer: &mut dyn Observer<Event>, cancel: &AtomicBool) -> Result<()> {
        if !self.measure_reference(observer, cancel)? {
            return Ok(());
        }
        if self.state.step == 0 {
            self.validate(observer, cancel)?;
        }
        while !self.is_complete() && !cancel.load(Ordering::Relaxed) {
            self.one_step(observer)?;
            let validation_is_due = self.is_due(self.setting.options.train.eval_every);
            if validation_is_due {
                self.validate(observer, cancel)?;
            }
            // The validation may have ended the run, after which a checkpoint is due.
            let checkpoint_is_due = self.is_due(self.setting.options.train.checkpoint_every);
            if checkpoint_is_due {
                self.save(observer)?;
            }
            if validation_is_due || checkpoint_is_due {
                self.reporter.write_if_due(self.setting.run_dir, observer);
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

    /// Whether the last step is done, or the run was stopped before it.
    pub fn is_complete(&self) -> bool {
        self.state.step == self.state.total_steps || self.state.is_stopped_early
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
        match update.skipped {
            Some(Skipped::NotFinite(what)) => return self.skip(what, observer),
            Some(Skipped::Spike(spike)) => return self.skip_spike(spike, observer),
            None => {}
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
            update.grad_norm = self.optimizer.norm(&self.adapter, &mut self.gradients)?;
        }
        update.skipped = self.judge(update.loss, update.grad_norm);
        if update.skipped.is_none() {
            let (norm, rate) = (update.grad_norm, learning_rate as f32);
            self.optimizer.apply(&mut self.adapter, &self.gradients, norm, rate)?;
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
        Ok(Update { preference: Some(figures), target_tokens, ..Update::new(loss, tokens) })
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
        Ok(Update { target_tokens, ..Update::new(sum.mean(), tokens) })
    }

    /// Whether a step is to be skipped.
    fn judge(&mut self, loss: f64, grad_norm: f64) -> Option<Skipped> {
        match (loss.is_finite(), grad_norm.is_finite()) {
            (false, _) => return Some(Skipped::NotFinite("loss")),
            (_, false) => return Some(Skipped::NotFinite("gradient")),
            _ => {}
        }
        let max_spike = f64::from(self.setting.options.train.max_spike);
        if max_spike == 0.0 {
            return None;
        }
        self.state.usual.take(loss, grad_norm, max_spike).map(Skipped::Spike)
    }

    fn skip(&mut self, what: &str, observer: &mut dyn Observer<Event>) -> Result<()> {
        self.state.skipped_steps += 1;
        let (step, count) = (self.state.step, self.state.skipped_steps);
        self.metrics.append(&Metric::Skipped { step, what: what.into() })?;
        observer.observe(Event::StepSkipped { step, count, what: what.into() });
        if count >= MOST_SKIPPED_STEPS { Err(Error::NotFinite { step, count }) } else { Ok(()) }
    }

    fn skip_spike(&mut self, spike: Spike, observer: &mut dyn Observer<Event>) -> Result<()> {
        self.state.skipped_spikes += 1;
        let (step, count, what) = (self.state.step, self.state.skipped_spikes, spike.what.to_owned());
        let Spike { value, median, .. } = spike;
        self.metrics.append(&Metric::Spike { step, what: what.clone(), value, median })?;
        observer.observe(Event::SpikeSkipped { step, count, what, value, median });
        Ok(())
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

    /// Measures the validation loss, keeps the adapter if it is the best so far, and shows samples.
    fn validate(&mut self, observer: &mut dyn Observer<Event>, cancel: &AtomicBool) -> Result<()> {
        if !self.setting.dataset.validation_rows.is_empty() {
            self.measure_validation(observer)?;
        }
        // Before the first step and after the last one the whole examination shows samples.
        if self.state.step > 0 && !self.is_complete() {
            let Setting { examination, .. } = self.setting;
            let (step, mut samples) = (self.state.step, Vec::new());
            examination.show(
                &self.base,
                step,
                &self.adapter,
                &mut keeping_samples(&mut samples, observer),
                cancel,
            )?;
            for sample in samples {
                self.metrics.append(&Metric::Sample { step, sample })?;
            }
        }
        Ok(())
    }

    fn measure_validation(&mut self, observer: &mut dyn Observer<Event>) -> Result<()> {
        let dataset = self.setting.dataset;
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
        self.state.validation_loss = loss.is_finite().then_some(loss);
        // What is best is told of adapters alone: a run that does not reach its base has a best one too.
        let is_best = step > 0 && loss.is_finite() && self.state.best.is_none_or(|(best, _)| loss < best);
        match (step, is_best) {
            (0, _) => self.state.base_validation_loss = self.state.validation_loss,
            (_, true) => self.keep_best(loss)?,
            (_, false) => self.state.evaluations_since_best += 1,
        }
        if loss.is_finite() {
            self.metrics.append(&Metric::Validation { step, loss, preference })?;
            observer.observe(Event::Validation { step, loss, is_best, preference });
        } else {
            self.metrics.append(&Metric::Skipped { step, what: "validation loss".into() })?;
            let message = format!("the validation loss after step {step} is not finite");
            observer.observe(Event::Warning { message });
        }
        self.stop_early(observer);
        Ok(())
    }

    fn keep_best(&mut self, loss: f64) -> Result<()> {
        self.state.best = Some((loss, self.state.step));
        self.state.evaluations_since_best = 0;
        let dir = self.setting.run_dir.best();
        formats::adapter::write_adapter(&dir, &self.result()?)?;
        self.state.best_blake3 = Some(hash_of(&dir)?);
        Ok(())
    }

    fn stop_early(&mut self, observer: &mut dyn Observer<Event>) {
        let (patience, evaluations) =
            (self.setting.options.train.early_stopping, self.state.evaluations_since_best);
        if patience == 0 || evaluations < patience || self.is_complete() {
            return;
        }
        self.state.is_stopped_early = true;
        let (step, total_steps) = (self.state.step, self.state.total_steps);
        observer.observe(Event::StoppedEarly { step, total_steps, evaluations });
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

    /// Writes the result, and takes it up where it is not the last adapter.
    ///
    /// # Errors
    /// What writing meets.
    pub fn write_adapter(&mut self, observer: &mut dyn Observer<Event>) -> Result<Written> {
        let (state, dir) = (&self.state, self.setting.run_dir.adapter());
        let otherwise = if state.is_stopped_early { ResultAdapter::Best } else { ResultAdapter::Last };
        let wanted = self.setting.options.train.result.unwrap_or(otherwise);
        let last = Written { which: wanted, step: state.step, validation_loss: state.validation_loss };
        let better = state.best.filter(|&(_, step)| wanted == ResultAdapter::Best && step != state.step);
        if let Some((loss, step)) = better {
            match self.read_best() {
                Ok(best) => {
                    formats::adapter::write_adapter(&dir, &best)?;
                    self.take_up(best)?;
                    return Ok(Written { step, validation_loss: Some(loss), ..last });
                }
                Err(error) => {
                    let message =
                        format!("the result is the last adapter, since the best cannot be read: {error}");
                    observer.observe(Event::Warning { message });
                }
            }
        }
        formats::adapter::write_adapter(&dir, &self.result()?)?;
        // Where the two are the same, or the best is lost, or there never was one.
        let is_best = state_is_best(&self.state) && wanted == ResultAdapter::Best;
        Ok(Written { which: if is_best { ResultAdapter::Best } else { ResultAdapter::Last }, ..last })
    }

    /// The adapter in the folder of the best, if it is the one that the state tells of.
    fn read_best(&self) -> Result<formats::adapter::AdapterFiles> {
        let dir = self.setting.run_dir.best();
        if self.state.best_blake3.as_ref() != Some(&hash_of(&dir)?) {
            let reason = "the adapter is not the one that was written".into();
            return Err(Error::CheckpointDamaged { path: dir, reason });
        }
        Ok(formats::adapter::read_adapter_as_trained(&dir)?)
    }

    fn take_up(&mut self, files: formats::adapter::AdapterFiles) -> Result<()> {
        let mut tensors = files.tensors;
        if self.beginning.is_some() {
            beginning::as_trained(&mut tensors);
        }
        Ok(self.adapter.set_tensors(&self.setting.base_files.config, &tensors)?)
    }

    /// Ends the session, giving back the memory of training.
    pub fn finish(mut self) -> Ended<D> {
        self.state.seconds = self.seconds();
        let dense = self.device.dense();
        let dense_bytes = (dense.peak_bytes(), dense.live_bytes());
        let (adapter, metrics, reporter) = (self.adapter, self.metrics, self.reporter);
        Ended { dense_bytes, state: self.state, adapter, metrics, reporter }
    }
}

/// The metrics of a run that begins or goes on, and what is known of it before its next step.
fn open_metrics(setting: Setting<'_>, saved_step: Option<u64>, state: &State) -> Result<MetricsLog> {
    let path = setting.run_dir.metrics();
    let mut metrics = MetricsLog::open(&path, saved_step)?;
    if setting.options.train.tensorboard {
        metrics.also_to(EventLog::open(&setting.run_dir.tensorboard(), saved_step, &path)?);
    }
    if let Some(step) = saved_step {
        metrics.append(&Metric::Resumed { step, at: wall_time() as u64 })?;
    } else if let Some(exact_match) = state.base_exact_match {
        metrics.append(&Metric::ExactMatch { step: 0, exact_match })?;
    }
    Ok(metrics)
}

impl<D: Device> Contents for Session<'_, D> {
    fn state(&self) -> &State {
        &self.state
    }

    fn adapter(&self) -> Result<formats::adapter::AdapterFiles> {
        self.adapter_files()
    }

    fn moment_form(&self) -> MomentForm {
        self.setting.options.train.moments
    }

    fn moment(&self, moment: Moment) -> Result<MomentValues> {
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
    /// Writes the run's report.
    pub reporter: Reporter,
    /// Dense copies of base weights: the most bytes alive at once, and those alive after the last step.
    pub dense_bytes: (u64, u64),
}

fn state_is_best(state: &State) -> bool {
    state.best.is_some_and(|(_, step)| step == state.step)
}

/// Hash of the weights in an adapter's folder.
fn hash_of(dir: &Path) -> Result<String> {
    Ok(formats::hash::blake3_file(&dir.join("adapter_model.safetensors"))?)
}
