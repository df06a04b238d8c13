//! Running a pipeline: stage by stage over the items, each result on disk before the next begins.

mod answer;
mod branch;
mod find;
mod gate;
mod rounds;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

use formats::{Observer, hash};
use minijinja::value::{Serde, Value};
use serde_json::json;

use self::branch::Given;
use super::check::{Check, Chooser, Items, Pipeline, Source, Step, Work, root};
use super::event::{Event, ItemResult, State};
use super::journal::{Begun, Ended, Load, Record, Switch};
use super::program::{Program, Programs};
use super::route;
use super::step::{OnError, OnFail};
use super::template::Template;
use crate::engine::Loaded;
use crate::residency::ResidencyEvent;
use crate::{Error, Residency, Result, clock};

/// How a pipeline is run.
#[derive(Debug, Clone, Default)]
pub struct RunOptions {
    /// Where runs are kept: a directory a run.
    pub runs: PathBuf,
    /// Goes on with this run instead of beginning one.
    pub resume: Option<String>,
    /// Overrides of the pipeline's params.
    pub params: serde_json::Map<String, serde_json::Value>,
    /// What becomes of the last expert.
    pub afterwards: Afterwards,
    /// Whether the programs that the pipeline lists may be run.
    pub programs: Programs,
}

/// What becomes of the expert that is resident when a run is done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Afterwards {
    /// It is unloaded.
    #[default]
    Unload,
    /// It stays, for who asks next.
    Keep,
}

/// What a run gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The run's id.
    pub run: String,
    /// Its directory.
    pub directory: PathBuf,
    /// Every item of every step, steps in order.
    pub results: Vec<ItemResult>,
    /// Loads of an expert.
    pub n_loads: u64,
    /// Items a check objected to.
    pub n_objected: usize,
}

/// Runs a pipeline on an input.
///
/// # Errors
/// [`Error::Step`] names step and item; [`Error::Cancelled`] once `cancelled` says so. What was committed stays,
/// and the run can be resumed.
pub fn run(
    pipeline: &Pipeline,
    input: &str,
    options: &RunOptions,
    residency: &mut Residency,
    cancelled: &dyn Fn() -> bool,
    observer: &mut dyn Observer<Event>,
) -> Result<Outcome> {
    let begun = Instant::now();
    let params = merged(pipeline, &options.params)?;
    check_programs(pipeline, &options.programs)?;
    let record = open(pipeline, input, &params, options)?;
    observer.observe(Event::RunStarted {
        run: record.run.clone(),
        pipeline: pipeline.name().to_owned(),
        steps: pipeline.steps.iter().map(|step| step.name.clone()).collect(),
        n_committed: record.n_committed(),
    });
    let n_loads_before = residency.n_loads();
    let mut run = Run {
        pipeline,
        input,
        params,
        record,
        cancelled,
        observer,
        programs: &options.programs,
        index_folder: options.runs.join("index"),
        outputs: Vec::new(),
        items: BTreeMap::new(),
    };
    let mut results = Vec::new();
    for index in 0..pipeline.steps.len() {
        residency.foresee(pipeline.experts_from(index));
        let stage = run.stage(index, residency);
        // Nothing is read ahead for a run that has ended.
        results.extend(stage.inspect_err(|_| residency.foresee(Vec::new()))?);
    }
    residency.foresee(Vec::new());
    if options.afterwards == Afterwards::Unload {
        residency.clear(&mut |event| run.observer.observe(Event::Residency(event)))?;
    }
    let n_loads = residency.n_loads() - n_loads_before;
    let n_objected = results.iter().filter(|result| !result.objections.is_empty()).count();
    let ms = milliseconds(begun);
    run.record.end(Ended { at: clock::now().as_secs(), ms, n_loads, n_objected })?;
    let (run_id, directory) = (run.record.run.clone(), run.record.directory.clone());
    let memory = residency.engine().memory();
    observer.observe(Event::RunFinished { run: run_id.clone(), ms, n_loads, n_objected, memory });
    Ok(Outcome { run: run_id, directory, results, n_loads, n_objected })
}

fn merged(
    pipeline: &Pipeline,
    given: &serde_json::Map<String, serde_json::Value>,
) -> Result<serde_json::Map<String, serde_json::Value>> {
    let mut params = pipeline.spec().params.clone();
    for (key, value) in given {
        let slot = params.get_mut(key).ok_or_else(|| Error::Pipeline {
            pipeline: pipeline.name().to_owned(),
            place: format!("params.{key}"),
            reason: "the pipeline has no such param".to_owned(),
        })?;
        slot.clone_from(value);
    }
    Ok(params)
}

/// A pipeline that lists a program is refused before anything runs, where it may not run it.
fn check_programs(pipeline: &Pipeline, programs: &Programs) -> Result<()> {
    match (pipeline.program(), programs) {
        (Some((step, command)), Programs::Refused) => {
            Err(Error::ProgramRefused { step: step.to_owned(), program: command.join(" ") })
        }
        _ => Ok(()),
    }
}

fn open(
    pipeline: &Pipeline,
    input: &str,
    params: &serde_json::Map<String, serde_json::Value>,
    options: &RunOptions,
) -> Result<Record> {
    let begun = Begun {
        pipeline: pipeline.name().to_owned(),
        pipeline_blake3: pipeline.hash().to_owned(),
        input: hash::blake3_bytes(input.as_bytes()),
        params: params.clone(),
        steps: pipeline.steps.iter().map(|step| step.name.clone()).collect(),
        at: clock::now().as_secs(),
    };
    match &options.resume {
        Some(run) => Record::resume(&options.runs, run, &begun, input),
        None => Record::begin(&options.runs, &begun, input),
    }
}

struct Run<'a> {
    pipeline: &'a Pipeline,
    input: &'a str,
    params: serde_json::Map<String, serde_json::Value>,
    record: Record,
    cancelled: &'a dyn Fn() -> bool,
    observer: &'a mut dyn Observer<Event>,
    programs: &'a Programs,
    /// Where vectors of files are kept.
    index_folder: PathBuf,
    /// What the steps done gave, by item.
    outputs: Vec<Vec<Given>>,
    /// Lines of the steps that split.
    items: BTreeMap<usize, Vec<String>>,
}

/// A step on its way over its items.
struct Stage<'p> {
    index: usize,
    step: &'p Step,
    results: Vec<Option<ItemResult>>,
    /// Time spent on items, loading excluded.
    busy_ms: f64,
}

impl Stage<'_> {
    /// A result of this step, with nothing in it yet.
    fn result(&self, item: usize) -> ItemResult {
        ItemResult { step: self.step.name.clone(), item, kind: self.step.kind, ..ItemResult::default() }
    }

    fn failed(&self, item: usize, reason: impl Into<String>) -> Error {
        Error::Step { step: self.step.name.clone(), item, reason: reason.into() }
    }
}

impl Run<'_> {
    /// One step over all its items.
    fn stage(&mut self, index: usize, residency: &mut Residency) -> Result<Vec<ItemResult>> {
        let pipeline = self.pipeline;
        let step = &pipeline.steps[index];
        let n_items = self.split(index, step)?;
        let experts = step.work.experts().into_iter().map(str::to_owned).collect();
        let (name, kind) = (step.name.clone(), step.kind);
        self.observer.observe(Event::StepStarted { step: name, kind, experts, n_items });
        let mut stage = Stage { index, step, results: vec![None; n_items], busy_ms: 0.0 };
        let pending = self.pending(&mut stage)?;
        match &step.work {
            Work::Generate(work) => match &work.verify {
                Some(verify) => self.verified(&mut stage, work, verify, pending, residency)?,
                None => self.answers(&mut stage, work, pending, residency)?,
            },
            Work::Route(work) => match &work.chooser {
                Chooser::Expert(ask) => self.routes(&mut stage, work, ask, pending, residency)?,
                Chooser::Rules(of, rules) => self.each(&mut stage, pending, |run, stage, item| {
                    let found = route::by_rules(rules, run.text(*of, stage.index, item));
                    let output = found.unwrap_or(&work.default).to_owned();
                    Ok(ItemResult { output, attempts: 1, ..stage.result(item) })
                })?,
            },
            Work::Check(work) => {
                self.each(&mut stage, pending, |run, stage, item| Ok(run.judge(stage, item, work)))?;
            }
            Work::Program(work) => {
                self.each(&mut stage, pending, |run, stage, item| run.judge_by_program(stage, item, work))?;
            }
            Work::Retrieve(work) => self.finds(&mut stage, work, pending, residency)?,
        }
        self.close(stage)
    }

    /// Takes the results that are there, skips what the step does not run for, and gives the rest.
    fn pending(&mut self, stage: &mut Stage<'_>) -> Result<Vec<usize>> {
        let mut pending = Vec::new();
        for item in 0..stage.results.len() {
            if let Some(found) = self.record.committed(&stage.step.name, item).cloned() {
                self.keep(stage, found)?;
            } else if let Some(note) = self.absent(stage.index, item) {
                let skipped = ItemResult { state: State::Skipped, note: Some(note), ..stage.result(item) };
                self.finish(stage, skipped)?;
            } else {
                pending.push(item);
            }
        }
        Ok(pending)
    }

    /// Does the same for every item that is left.
    fn each(
        &mut self,
        stage: &mut Stage<'_>,
        pending: Vec<usize>,
        mut work: impl FnMut(&mut Self, &Stage<'_>, usize) -> Result<ItemResult>,
    ) -> Result<()> {
        for item in pending {
            self.stop_if_cancelled()?;
            let begun = Instant::now();
            let result = work(self, stage, item);
            stage.busy_ms += milliseconds(begun);
            self.settle(stage, item, result)?;
        }
        Ok(())
    }

    /// Makes an item's result durable, or its failure where the step lets the run go on.
    fn settle(&mut self, stage: &mut Stage<'_>, item: usize, result: Result<ItemResult>) -> Result<()> {
        match result {
            Ok(result) => self.finish(stage, result),
            Err(Error::Step { reason, .. }) if stage.step.on_error == OnError::Record => {
                let failed = ItemResult { state: State::Failed, note: Some(reason), ..stage.result(item) };
                self.finish(stage, failed)
            }
            Err(error) => Err(error),
        }
    }

    fn finish(&mut self, stage: &mut Stage<'_>, mut result: ItemResult) -> Result<()> {
        self.record.commit(&mut result)?;
        self.keep(stage, result)
    }

    fn keep(&mut self, stage: &mut Stage<'_>, result: ItemResult) -> Result<()> {
        self.observer.observe(Event::ItemFinished(result.clone()));
        stop_if_objected(stage.step, &result)?;
        let item = result.item;
        if let Some(slot) = stage.results.get_mut(item) {
            *slot = Some(result);
        }
        Ok(())
    }

    fn close(&mut self, stage: Stage<'_>) -> Result<Vec<ItemResult>> {
        let results: Option<Vec<ItemResult>> = stage.results.into_iter().collect();
        let name = &stage.step.name;
        let results = results.ok_or_else(|| Error::Step {
            step: name.clone(),
            item: 0,
            reason: "an item was left without a result: this is a bug".to_owned(),
        })?;
        self.outputs.push(results.iter().map(Given::of).collect());
        let count = |test: &dyn Fn(&ItemResult) -> bool| results.iter().filter(|result| test(result)).count();
        self.observer.observe(Event::StepFinished {
            step: name.clone(),
            n_computed: count(&|result| !result.resumed),
            n_objected: count(&|result| !result.objections.is_empty()),
            n_skipped: count(&|result| result.state == State::Skipped),
            n_failed: count(&|result| result.state == State::Failed),
            ms: stage.busy_ms,
        });
        Ok(results)
    }

    fn stop_if_cancelled(&self) -> Result<()> {
        if (self.cancelled)() { Err(Error::Cancelled) } else { Ok(()) }
    }

    /// How many items a step has; a step that splits has its lines kept.
    fn split(&mut self, index: usize, step: &Step) -> Result<usize> {
        match step.items {
            Items::One => Ok(1),
            Items::Of(root) => Ok(self.items.get(&root).map_or(0, Vec::len)),
            Items::Lines(source) => {
                // What a step splits that does not run, or of a step that did not run, is nothing.
                let over = match source {
                    Source::Step(of) => self.given(of, 0).is_there(),
                    Source::Input | Source::Item => true,
                };
                if !over || self.absent(index, 0).is_some() {
                    self.items.insert(index, Vec::new());
                    return Ok(0);
                }
                let text = self.text(source, index, 0);
                let lines: Vec<String> =
                    text.lines().filter(|line| !line.trim().is_empty()).map(str::to_owned).collect();
                if lines.is_empty() {
                    let reason = "there is no line to map over: the text is empty".to_owned();
                    return Err(Error::Step { step: step.name.clone(), item: 0, reason });
                }
                let n = lines.len();
                self.items.insert(index, lines);
                Ok(n)
            }
        }
    }

    /// An expert, loaded; its load is noted in the journal.
    fn load<'r>(&mut self, name: &str, residency: &'r mut Residency) -> Result<&'r mut dyn Loaded> {
        let card = &self.pipeline.experts[name];
        let fallback = self.pipeline.fallback(name);
        let (mut loads, mut switches) = (Vec::new(), Vec::new());
        let observer = &mut *self.observer;
        let (expert, _) = residency.get_or_name(card, fallback, self.cancelled, &mut |event| {
            match &event {
                ResidencyEvent::Loaded { expert, load_ms, takes, memory } => {
                    let (expert, free_bytes) = (expert.clone(), memory.free_bytes);
                    loads.push(Load { expert, load_ms: *load_ms, takes: *takes, free_bytes });
                }
                ResidencyEvent::Switched { expert, from, switch_ms } => {
                    let (expert, from) = (expert.clone(), from.clone());
                    switches.push(Switch { expert, from, switch_ms: *switch_ms });
                }
                _ => {}
            }
            observer.observe(Event::Residency(event));
        })?;
        for load in loads {
            self.record.loaded(load)?;
        }
        for switch in switches {
            self.record.switched(switch)?;
        }
        Ok(expert)
    }

    fn judge(&self, stage: &Stage<'_>, item: usize, check: &Check) -> ItemResult {
        let judged = self.text(Source::Step(check.of), stage.index, item);
        let source = check.rules.values_in.map(|source| self.text(source, stage.index, item));
        verdict(stage.result(item), check.rules.objections(judged, source))
    }

    fn judge_by_program(&self, stage: &Stage<'_>, item: usize, program: &Program) -> Result<ItemResult> {
        let Programs::Allowed { path } = self.programs else {
            return Err(stage.failed(item, "programs are not allowed"));
        };
        let judged = self.text(Source::Step(program.of), stage.index, item);
        let objections = program.objections(judged, path, self.cancelled);
        let objections = objections.map_err(|reason| stage.failed(item, reason))?;
        Ok(verdict(stage.result(item), objections.ok_or(Error::Cancelled)?))
    }

    /// The text of a source for an item of a step; nothing where there is none.
    fn text(&self, source: Source, index: usize, item: usize) -> &str {
        match source {
            Source::Input => self.input,
            Source::Item => self.line(index, item).unwrap_or_default(),
            Source::Step(of) => self.given(of, item).text(),
        }
    }

    fn line(&self, index: usize, item: usize) -> Option<&str> {
        let root = root(&self.pipeline.steps, index)?;
        self.items.get(&root)?.get(item).map(String::as_str)
    }

    /// Renders a template; `instead` is a text to take for a source.
    fn render(
        &self,
        template: &Template,
        index: usize,
        item: usize,
        instead: Option<(Source, &str)>,
        more: &[(&str, &str)],
    ) -> std::result::Result<String, String> {
        let references = &template.references;
        let position = |name: &str| self.pipeline.steps.iter().position(|step| step.name == name);
        let text = |source: Source| match instead {
            Some((replaced, text)) if replaced == source => text,
            _ => self.text(source, index, item),
        };
        let mut steps = serde_json::Map::new();
        for name in references.outputs_of_item.iter().chain(&references.outputs_of_all) {
            let Some(of) = position(name) else { continue };
            let outputs: Vec<&str> =
                self.outputs[of].iter().filter(|given| given.is_there()).map(Given::text).collect();
            steps.insert(name.clone(), json!({"output": text(Source::Step(of)), "outputs": outputs}));
        }
        let mut context = json!({"input": text(Source::Input), "params": self.params, "steps": steps});
        if self.line(index, item).is_some() {
            context["item"] = text(Source::Item).into();
        }
        for (name, text) in more {
            context[*name] = (*text).into();
        }
        template.render(Value::from(Serde(&context)))
    }
}

/// A judgement as a check gives it.
fn verdict(result: ItemResult, objections: Vec<String>) -> ItemResult {
    let output = json!({"ok": objections.is_empty(), "objections": objections}).to_string();
    ItemResult { output, attempts: 1, objections, ..result }
}

fn stop_if_objected(step: &Step, result: &ItemResult) -> Result<()> {
    let on_fail = match &step.work {
        Work::Check(check) => check.on_fail,
        Work::Program(program) => program.on_fail,
        Work::Generate(generate) => generate.verify.as_ref().map_or(OnFail::Record, |verify| verify.on_fail),
        Work::Route(_) | Work::Retrieve(_) => OnFail::Record,
    };
    if on_fail == OnFail::Record || result.objections.is_empty() {
        return Ok(());
    }
    let reason = result.objections.join("; ");
    Err(Error::Step { step: step.name.clone(), item: result.item, reason })
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
