//! One training run from options to adapter: checks, plan, base, loop, evaluation, result.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use formats::observe::Observer;
use model::{Adapter, Base, Device, LoraOptions};

use crate::adapter_files::lora_options;
use crate::base_cache::BaseCache;
use crate::base_files::BaseFiles;
use crate::beginning::{self, Beginning};
use crate::checkpoint::{self, State};
use crate::data::dataset::Dataset;
use crate::error::{Error, Result};
use crate::evaluate::Examination;
use crate::event::{End, Event, ExactMatch, Outcome, Weights, keeping_samples};
use crate::lock::RunLock;
use crate::memory_use::Growth;
use crate::metrics::Metric;
use crate::options::{Options, Start};
use crate::plan::{Plan, Shapes};
use crate::preference::check_kind;
use crate::record::{Inputs, LAYOUT_VERSION, RunRecord, option_changes, recipe_blake3};
use crate::report::Reporter;
use crate::run_dir::RunDir;
use crate::session::{Begin, Ended, Session, Setting, Written};
use crate::tensorboard::wall_time;

/// Runs or resumes a training run.
///
/// Setting `cancel` ends it after the current step with a checkpoint; the outcome then says that it is not finished.
///
/// # Errors
/// Everything of [`crate::Error`]; nothing is written before options, data and plan are found sound.
pub fn train(options: &Options, observer: &mut dyn Observer<Event>, cancel: &AtomicBool) -> Result<Outcome> {
    let growth = Growth::start();
    options.validate()?;
    let run_dir = RunDir::new(&options.run_dir);
    let (lock, record) = open_run(options, &run_dir)?;
    if let Some(outcome) = finished_before(record.as_ref(), &run_dir) {
        observer.observe(Event::AlreadyFinished(outcome.clone()));
        return Ok(outcome);
    }

    let began_at = record.as_ref().and_then(|record| record.started_at).unwrap_or(wall_time() as u64);
    let mut base_files = BaseFiles::open(&options.model, &options.data)?;
    base_files.set_now(began_at);
    let lora = lora_options(&options.adapter, &base_files.config)?;
    beginning::check(options, &base_files)?;
    let dataset = Dataset::read(options, &base_files)?;
    check_kind(options.train.method, &dataset)?;
    let summary = dataset.summary();
    observer.observe(Event::Data(summary.clone()));
    dataset.warnings().for_each(|message| observer.observe(Event::Warning { message: message.to_owned() }));
    let inputs = hash_inputs(options, &base_files, &dataset)?;
    if let Some(record) = &record {
        record.check_unchanged(options, &inputs)?;
    }
    let examination = examination(options, &base_files, &dataset, &growth);
    let chosen = record.as_ref().map(|record| record.chosen);
    let shapes = Shapes::of(options, &base_files, &lora, &examination, chosen)?;
    let plan = Plan::new(options, &shapes, &dataset, &growth, chosen)?;
    plan.check_disk(&run_dir)?;
    observer.observe(Event::Plan(plan.table.clone()));
    if base_files.weights.are_rounded_on_disk() {
        observer.observe(Event::Warning { message: ROUNDED_BASE.to_owned() });
    }

    let _lock = match lock {
        Some(lock) => lock,
        None => create_run(&run_dir)?,
    };
    let mut record = record.unwrap_or_else(|| new_record(options, &inputs, &plan, began_at));
    (record.data, record.plan) = (Some(summary), Some(plan.table.clone()));
    record.write(&run_dir)?;
    if let Some(template) = base_files.template.as_ref().filter(|_| base_files.has_own_template) {
        formats::atomic::write_bytes(&run_dir.chat_template(), template.source().as_bytes())?;
    }
    let setting = Setting {
        options,
        run_dir: &run_dir,
        base_files: &base_files,
        dataset: &dataset,
        plan: &plan,
        growth: &growth,
        examination: &examination,
    };
    let run = Run { setting, lora, inputs, record, observer, cancel };
    run.run()
}

/// Said before a night is spent, not after it.
const ROUNDED_BASE: &str = "the base is a GGUF of fewer than 16 bits: merging the adapter into it rounds its weights once \
                            more, which `tune export` does with --allow-requantize alone; `--as adapter` loses nothing";

/// Takes up an existing run, or checks that there is none.
fn open_run(options: &Options, run_dir: &RunDir) -> Result<(Option<RunLock>, Option<RunRecord>)> {
    if options.start == Start::Fresh {
        check_unused(run_dir)?;
        return Ok((None, None));
    }
    if !run_dir.path().is_dir() {
        return Err(Error::NothingToResume { run_dir: run_dir.path().into() });
    }
    let lock = RunLock::take(run_dir)?;
    let record = RunRecord::read(run_dir)?;
    if let Some(record) = &record {
        let changes = option_changes(&record.options, options);
        if !changes.is_empty() {
            return Err(Error::RunChanged { changes });
        }
    }
    Ok((Some(lock), record))
}

fn check_unused(run_dir: &RunDir) -> Result<()> {
    let has_run =
        [run_dir.run_json(), run_dir.checkpoints(), run_dir.adapter()].iter().any(|path| path.exists());
    if !has_run {
        return Ok(());
    }
    // A run that is going on is the more useful news.
    let _lock = RunLock::take(run_dir)?;
    Err(Error::RunExists { run_dir: run_dir.path().into() })
}

fn create_run(run_dir: &RunDir) -> Result<RunLock> {
    let path = run_dir.path();
    std::fs::create_dir_all(path).map_err(|source| Error::Io { path: path.into(), source })?;
    let lock = RunLock::take(run_dir)?;
    if run_dir.run_json().exists() {
        // Another process began this run between the check and the lock, and has ended since.
        return Err(Error::RunExists { run_dir: path.into() });
    }
    Ok(lock)
}

fn finished_before(record: Option<&RunRecord>, run_dir: &RunDir) -> Option<Outcome> {
    let outcome = &record?.outcome;
    (outcome.is_finished && run_dir.adapter().is_dir()).then(|| outcome.clone())
}

fn hash_inputs(options: &Options, base_files: &BaseFiles, dataset: &Dataset) -> Result<Inputs> {
    let mut index = BaseCache::new(&options.cache).hash_index();
    let mut inputs = base_files.hashes(index.as_mut())?;
    // An index that cannot be written costs the next start some seconds, no more.
    let _ = index.map(|mut index| index.save());
    inputs.recipe = recipe_blake3(options);
    dataset.hash_into(&mut inputs, options)?;
    Ok(inputs)
}

/// What is asked of base and adapter.
pub fn examination<'a>(
    options: &Options,
    base_files: &'a BaseFiles,
    dataset: &'a Dataset,
    growth: &'a Growth,
) -> Examination<'a> {
    Examination {
        questions: &dataset.questions,
        n_exact_match: dataset.n_exact_match,
        n_samples: options.eval.samples.max(options.eval.samples_each),
        n_samples_each: options.eval.samples_each,
        stop: &base_files.stop,
        max_new_tokens: options.eval.max_new_tokens,
        max_positions: base_files.config.max_positions,
        tokenizer: &base_files.tokenizer,
        growth,
    }
}

fn new_record(options: &Options, inputs: &Inputs, plan: &Plan, began_at: u64) -> RunRecord {
    RunRecord {
        version: LAYOUT_VERSION,
        options: options.clone(),
        inputs: inputs.clone(),
        chosen: plan.chosen,
        outcome: Outcome {
            total_steps: plan.table.total_steps,
            planned_bytes: plan.table.total_bytes,
            ..Outcome::default()
        },
        started_at: Some(began_at),
        program: Some(env!("CARGO_PKG_VERSION").to_owned()),
        ..RunRecord::default()
    }
}

/// A run whose preparations are done.
struct Run<'a> {
    setting: Setting<'a>,
    lora: LoraOptions,
    inputs: Inputs,
    record: RunRecord,
    observer: &'a mut dyn Observer<Event>,
    cancel: &'a AtomicBool,
}

impl Run<'_> {
    fn run(mut self) -> Result<Outcome> {
        let begin = self.find_beginning()?;
        let Setting { options, base_files, run_dir, .. } = self.setting;
        let beginning = beginning::prepare(options, base_files, &self.lora, run_dir, &begin, self.observer)?;
        let base = Arc::new(self.load_base(beginning.as_ref())?);
        let begin = match begin {
            Begin::Fresh(state) => match self.examine_base(&base, beginning.as_ref(), state)? {
                Some(state) => Begin::Fresh(state),
                None => return Ok(self.record.outcome),
            },
            resumed => resumed,
        };
        let mut session = Session::new(self.setting, &base, &self.lora, beginning, begin)?;
        if let Err(error) = session.run(self.observer, self.cancel) {
            // What the figures were until then is what the user will ask for.
            Reporter::default().write(self.setting.run_dir, self.observer);
            return Err(error);
        }
        let written = match session.is_complete() {
            true => Some(session.write_adapter(self.observer)?),
            false => None,
        };
        let ended = session.finish();
        match written {
            Some(written) => self.conclude(&base, ended, written),
            None => self.interrupt(ended),
        }
    }

    /// The newest sound checkpoint, or step 0.
    fn find_beginning(&mut self) -> Result<Begin> {
        let run_dir = self.setting.run_dir;
        checkpoint::sweep(run_dir)?;
        let found = checkpoint::newest_sound(run_dir)?;
        for (path, reason) in found.damaged {
            self.observer.observe(Event::CheckpointDamaged { path, reason });
        }
        let total_steps = self.setting.plan.table.total_steps;
        let Some(saved) = found.saved else {
            return Ok(Begin::Fresh(Box::new(State {
                version: LAYOUT_VERSION,
                total_steps,
                seed: self.setting.options.train.seed,
                base_exact_match: self.record.outcome.base_exact_match,
                inputs: self.inputs.clone(),
                ..State::default()
            })));
        };
        if saved.state.inputs != self.inputs || saved.state.total_steps != total_steps {
            let reason = "the checkpoint belongs to another run".into();
            return Err(Error::CheckpointDamaged { path: run_dir.checkpoint(saved.state.step), reason });
        }
        self.observer.observe(Event::Resumed { step: saved.state.step, total_steps });
        Ok(Begin::Resumed(Box::new(saved)))
    }

    fn load_base(&mut self, beginning: Option<&Beginning>) -> Result<Base<model::Cpu>> {
        let device = self.setting.plan.device()?;
        let Setting { options, base_files: files, growth, .. } = self.setting;
        let cache = (&BaseCache::new(&options.cache), growth);
        let beginning = beginning.map(|beginning| (beginning, &self.lora));
        let residence = self.setting.plan.residence;
        files.weights.load(&device, (&files.config, residence), cache, beginning, self.observer)
    }

    /// Exact match of the base, once a run; `None` when cancelled.
    fn examine_base<D: Device>(
        &mut self,
        base: &Arc<Base<D>>,
        beginning: Option<&Beginning>,
        mut state: Box<State>,
    ) -> Result<Option<Box<State>>> {
        if state.base_exact_match.is_none() {
            let start = beginning.map(|beginning| self.adapter_of(base, beginning)).transpose()?;
            let mut samples = Vec::new();
            state.base_exact_match = self.setting.examination.ask(
                base,
                (Weights::Base, 0),
                start.as_ref(),
                &mut keeping_samples(&mut samples, self.observer),
                self.cancel,
            )?;
            if self.cancel.load(Ordering::Relaxed) {
                return Ok(None);
            }
            if let Some(figures) = state.base_exact_match {
                self.observer.observe(Event::ExactMatch(figures));
                self.record.outcome.base_exact_match = Some(figures);
            }
            self.record.base_samples = samples;
            self.record.write(self.setting.run_dir)?;
        }
        Ok(Some(state))
    }

    /// Base and beginning together are the published base.
    fn adapter_of<D: Device>(&self, base: &Base<D>, beginning: &Beginning) -> Result<Adapter<D>> {
        let mut adapter = Adapter::zeros(&base.device, &base.config, &self.lora)?;
        beginning.set(&mut adapter, &base.config)?;
        Ok(adapter)
    }

    fn interrupt<D: Device>(mut self, mut ended: Ended<D>) -> Result<Outcome> {
        self.record.outcome = self.outcome(&ended, None);
        self.record.write(self.setting.run_dir)?;
        self.report(&mut ended.reporter);
        Ok(self.record.outcome)
    }

    fn report(&mut self, reporter: &mut Reporter) {
        if let Some(path) = reporter.write(self.setting.run_dir, self.observer) {
            self.observer.observe(Event::Report { path });
        }
    }

    /// Exact match with the adapter, then the figures of the run; with these it counts as finished.
    fn conclude<D: Device>(
        mut self,
        base: &Arc<Base<D>>,
        mut ended: Ended<D>,
        written: Written,
    ) -> Result<Outcome> {
        let mut samples = Vec::new();
        let figures = self.setting.examination.ask(
            base,
            (Weights::Adapter, ended.state.step),
            Some(&ended.adapter),
            &mut keeping_samples(&mut samples, self.observer),
            self.cancel,
        )?;
        if self.cancel.load(Ordering::Relaxed) {
            return self.interrupt(ended);
        }
        let metrics = &mut ended.metrics;
        for sample in samples {
            metrics.append(&Metric::Sample { step: ended.state.step, sample })?;
        }
        if let Some(exact_match) = figures {
            if let Some(base) = ended.state.base_exact_match {
                metrics.append(&Metric::ExactMatch { step: 0, exact_match: base })?;
            }
            metrics.append(&Metric::ExactMatch { step: ended.state.step, exact_match })?;
            self.observer.observe(Event::ExactMatch(exact_match));
        }
        self.setting.growth.sample();
        let adapter_dir = self.setting.run_dir.adapter();
        let outcome = Outcome {
            is_finished: true,
            adapter_bytes: folder_bytes(&adapter_dir)?,
            adapter_dir: Some(adapter_dir),
            end: Some(if ended.state.is_stopped_early { End::EarlyStopping } else { End::AllSteps }),
            result: Some(written.which),
            result_step: Some(written.step),
            validation_loss: written.validation_loss,
            ..self.outcome(&ended, figures)
        };
        self.record.outcome = outcome;
        self.record.write(self.setting.run_dir)?;
        self.report(&mut ended.reporter);
        self.observer.observe(Event::Finished(self.record.outcome.clone()));
        Ok(self.record.outcome)
    }

    fn outcome<D: Device>(&self, ended: &Ended<D>, adapter_exact_match: Option<ExactMatch>) -> Outcome {
        let state = &ended.state;
        Outcome {
            is_finished: false,
            steps: state.step,
            total_steps: state.total_steps,
            adapter_dir: None,
            adapter_bytes: 0,
            train_loss: state.train_loss,
            base_validation_loss: state.base_validation_loss,
            validation_loss: state.validation_loss,
            best_validation_loss: state.best,
            end: None,
            result: None,
            result_step: None,
            base_exact_match: state.base_exact_match,
            adapter_exact_match,
            skipped_steps: state.skipped_steps,
            skipped_spikes: state.skipped_spikes,
            seconds: state.seconds,
            planned_bytes: self.setting.plan.table.total_bytes,
            // The most of all sittings.
            memory_bytes: self.record.outcome.memory_bytes.max(self.setting.growth.peak_bytes()),
            dense_peak_bytes: ended.dense_bytes.0,
            dense_live_bytes: ended.dense_bytes.1,
        }
    }
}

fn folder_bytes(dir: &Path) -> Result<u64> {
    let failed = |source| Error::Io { path: dir.into(), source };
    let mut bytes = 0;
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        bytes += entry.and_then(|entry| entry.metadata()).map_err(failed)?.len();
    }
    Ok(bytes)
}
