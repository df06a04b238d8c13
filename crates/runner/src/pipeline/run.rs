//! Running a pipeline: stage by stage over the items, each result on disk before the next begins.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::time::Instant;

use formats::{Observer, hash};
use minijinja::value::{Serde, Value};
use serde_json::json;
use text::Message;

use super::check::{Check, Generate, Items, Pipeline, Source, Step, Work, root};
use super::event::{Event, ItemResult};
use super::journal::{Begun, Ended, Record};
use super::rules;
use super::spec::OnFail;
use super::template::Template;
use crate::engine::{Finish, Form, Generated, Loaded, Progress, Prompt, Request};
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
        Some(run) => Record::resume(&options.runs, run, &begun),
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
    /// Outputs of the steps done, by item.
    outputs: Vec<Vec<String>>,
    /// Lines of the steps that split.
    items: BTreeMap<usize, Vec<String>>,
}

impl Run<'_> {
    /// One step over all its items, its expert loaded at most once.
    fn stage(&mut self, index: usize, residency: &mut Residency) -> Result<Vec<ItemResult>> {
        let pipeline = self.pipeline;
        let step = &pipeline.steps[index];
        let n_items = self.split(index, step)?;
        let expert = match &step.work {
            Work::Generate(generate) => Some(generate.expert.clone()),
            Work::Check(_) => None,
        };
        self.observer.observe(Event::StepStarted { step: step.name.clone(), expert, n_items });
        let mut busy_ms = 0.0;
        let mut results = Vec::with_capacity(n_items);
        for item in 0..n_items {
            if (self.cancelled)() {
                return Err(Error::Cancelled);
            }
            let result = match self.record.committed(&step.name, item) {
                Some(found) => found.clone(),
                None => self.compute(index, item, residency, &mut busy_ms)?,
            };
            self.observer.observe(Event::ItemFinished(result.clone()));
            stop_if_objected(step, &result)?;
            results.push(result);
        }
        self.outputs.push(results.iter().map(|result| result.output.clone()).collect());
        self.observer.observe(Event::StepFinished {
            step: step.name.clone(),
            n_computed: results.iter().filter(|result| !result.resumed).count(),
            n_objected: results.iter().filter(|result| !result.objections.is_empty()).count(),
            ms: busy_ms,
        });
        Ok(results)
    }

    /// How many items a step has; a step that splits has its lines kept.
    fn split(&mut self, index: usize, step: &Step) -> Result<usize> {
        match step.items {
            Items::One => Ok(1),
            Items::Of(root) => Ok(self.items[&root].len()),
            Items::Lines(source) => {
                let text = self.text(source, index, 0).to_owned();
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

    fn compute(
        &mut self,
        index: usize,
        item: usize,
        residency: &mut Residency,
        busy_ms: &mut f64,
    ) -> Result<ItemResult> {
        let pipeline = self.pipeline;
        let step = &pipeline.steps[index];
        let mut result = match &step.work {
            Work::Check(check) => {
                let begun = Instant::now();
                let result = self.judge(index, item, check);
                *busy_ms += milliseconds(begun);
                result
            }
            Work::Generate(generate) => {
                let card = &pipeline.experts[&generate.expert];
                let observer = &mut *self.observer;
                let fallback = pipeline.fallback(&generate.expert);
                let (expert, _) = residency.get_or_name(card, fallback, self.cancelled, &mut |event| {
                    observer.observe(Event::Residency(event));
                })?;
                let begun = Instant::now();
                let result = self.ask(index, item, generate, expert)?;
                *busy_ms += milliseconds(begun);
                result
            }
        };
        self.record.commit(&mut result)?;
        Ok(result)
    }

    fn judge(&self, index: usize, item: usize, check: &Check) -> ItemResult {
        let judged = self.text(Source::Step(check.of), index, item);
        let source = check.values_in.map(|source| self.text(source, index, item));
        let objections = rules::objections(judged, check.schema.as_ref(), source);
        let output = json!({"ok": objections.is_empty(), "objections": objections}).to_string();
        ItemResult {
            step: self.pipeline.steps[index].name.clone(),
            item,
            output,
            attempts: 1,
            objections,
            ..ItemResult::default()
        }
    }

    /// Asks an expert, and again with the objections while the answer does not satisfy the schema.
    fn ask(
        &mut self,
        index: usize,
        item: usize,
        work: &Generate,
        expert: &mut dyn Loaded,
    ) -> Result<ItemResult> {
        let step = &self.pipeline.steps[index];
        let failed = |reason: String| Error::Step { step: step.name.clone(), item, reason };
        let mut messages = Vec::new();
        if let Some(system) = &work.system {
            messages.push(Message::new("system", self.render(system, index, item).map_err(failed)?));
        }
        messages.push(Message::new("user", self.render(&work.prompt, index, item).map_err(failed)?));
        let mut result = ItemResult { step: step.name.clone(), item, ..ItemResult::default() };
        for attempt in 1..=work.repairs + 1 {
            let answer = self.generate(index, item, work, expert, &messages)?;
            result.attempts = attempt;
            result.finish = Some(answer.finish);
            result.prompt_tokens += answer.prompt_tokens;
            result.output_tokens += answer.output_tokens;
            result.prompt_ms += answer.prompt_ns as f64 / 1e6;
            result.decode_ms += answer.decode_ns as f64 / 1e6;
            let objections = objections_to(&answer, work);
            if objections.is_empty() {
                result.output = answer.text;
                return Ok(result);
            }
            if attempt > work.repairs {
                return Err(failed(format!(
                    "the answer does not satisfy the schema after {attempt} attempts: {}; it was: {}",
                    objections.join("; "),
                    answer.text
                )));
            }
            messages.push(Message::new("assistant", answer.text));
            messages.push(Message::new("user", again(&objections)));
            let (step, attempt) = (step.name.clone(), attempt + 1);
            self.observer.observe(Event::Repair { step, item, attempt, objections });
        }
        Err(failed("no attempt was made".to_owned()))
    }

    fn generate(
        &mut self,
        index: usize,
        item: usize,
        work: &Generate,
        expert: &mut dyn Loaded,
        messages: &[Message],
    ) -> Result<Generated> {
        let step = &self.pipeline.steps[index].name;
        let request = Request {
            prompt: Prompt::Chat(messages.to_vec()),
            sampling: work.sampling.clone(),
            stop: work.stop.clone(),
            form: work.schema.as_ref().map_or(Form::Text, |schema| Form::Schema(schema.value.clone())),
        };
        let answer = expert.generate(&request, &mut |progress| {
            let step = step.clone();
            match progress {
                Progress::Prompt { done: done_tokens, total: total_tokens } => {
                    self.observer.observe(Event::Prompt { step, item, done_tokens, total_tokens });
                }
                Progress::Text("") => {}
                Progress::Text(text) => {
                    self.observer.observe(Event::Text { step, item, text: text.to_owned() })
                }
            }
            if (self.cancelled)() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        match answer {
            Ok(answer) if answer.finish == Finish::Cancelled => Err(Error::Cancelled),
            Ok(answer) => Ok(answer),
            Err(error) => Err(Error::Step { step: step.clone(), item, reason: error.to_string() }),
        }
    }

    /// The text of a source for an item of a step.
    fn text(&self, source: Source, index: usize, item: usize) -> &str {
        match source {
            Source::Input => self.input,
            Source::Item => self.line(index, item).unwrap_or_default(),
            // A step without items gives its one output to all.
            Source::Step(of) => {
                self.outputs[of].get(item).or(self.outputs[of].first()).map_or("", String::as_str)
            }
        }
    }

    fn line(&self, index: usize, item: usize) -> Option<&str> {
        let root = root(&self.pipeline.steps, index)?;
        self.items.get(&root)?.get(item).map(String::as_str)
    }

    fn render(&self, template: &Template, index: usize, item: usize) -> std::result::Result<String, String> {
        let references = &template.references;
        let position = |name: &str| self.pipeline.steps.iter().position(|step| step.name == name);
        let mut steps = serde_json::Map::new();
        for name in references.outputs_of_item.iter().chain(&references.outputs_of_all) {
            let Some(of) = position(name) else { continue };
            let output = self.text(Source::Step(of), index, item);
            steps.insert(name.clone(), json!({"output": output, "outputs": self.outputs[of]}));
        }
        let mut context = json!({"input": self.input, "params": self.params, "steps": steps});
        if let Some(line) = self.line(index, item) {
            context["item"] = line.into();
        }
        template.render(Value::from(Serde(&context)))
    }
}

fn stop_if_objected(step: &Step, result: &ItemResult) -> Result<()> {
    match &step.work {
        Work::Check(check) if check.on_fail == OnFail::Stop && !result.objections.is_empty() => {
            Err(Error::Step {
                step: step.name.clone(),
                item: result.item,
                reason: result.objections.join("; "),
            })
        }
        _ => Ok(()),
    }
}

fn objections_to(answer: &Generated, work: &Generate) -> Vec<String> {
    let Some(schema) = &work.schema else { return Vec::new() };
    let mut objections = rules::objections(&answer.text, Some(schema), None);
    if answer.finish == Finish::Length && !objections.is_empty() {
        objections.push(format!("the answer was cut after {} tokens", answer.output_tokens));
    }
    objections
}

fn again(objections: &[String]) -> String {
    format!("That answer is not valid.\n- {}\nAnswer again, with valid JSON alone.", objections.join("\n- "))
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
