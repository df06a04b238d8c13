//! A pipeline file made sure of before anything runs: experts found, templates compiled, references and
//! schemas checked, items followed from step to step.

mod keys;
mod kinds;
mod steps;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use formats::hash;
use serde_json::json;

use super::expert::{Lookup, Trouble};
use super::program::Program;
use super::retrieve::Corpus;
use super::route::Rule;
use super::rules::Rules;
use super::schema::Schema;
use super::spec::{ExpertSpec, PipelineSpec};
use super::step::{By, ContextRule, OnError, OnFail, StepKind};
use super::template::Template;
use crate::card::{ExpertCard, Sampling, check_name};
use crate::{Error, Registry, Result};

pub(super) use self::steps::root;

/// A pipeline that can run.
#[derive(Debug, Clone)]
pub struct Pipeline {
    name: String,
    spec: PipelineSpec,
    hash: String,
    pub(super) experts: BTreeMap<String, ExpertCard>,
    pub(super) fallbacks: BTreeMap<String, ExpertCard>,
    pub(super) steps: Vec<Step>,
}

/// A step made ready.
#[derive(Debug, Clone)]
pub(super) struct Step {
    pub name: String,
    pub kind: StepKind,
    pub items: Items,
    /// Routes for which alone it runs; all must hold.
    pub when: Vec<When>,
    /// Earlier steps whose output of the same item it takes.
    pub needs: Vec<usize>,
    /// Whether it can do without the output of a step that was skipped, if another of them ran.
    pub merges: bool,
    /// Whether an item of it may be skipped: it stands in a branch, or follows from steps that do.
    pub may_skip: bool,
    pub on_error: OnError,
    pub work: Work,
}

/// What a router must have said.
#[derive(Debug, Clone)]
pub(super) struct When {
    pub router: usize,
    pub routes: Vec<String>,
}

/// What items a step has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Items {
    /// One.
    One,
    /// The lines of a text: this step splits it.
    Lines(Source),
    /// Those of the step with that index, which splits.
    Of(usize),
}

/// A text a step takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// The run's input.
    Input,
    /// The line of this item.
    Item,
    /// The output of the step with that index: of the same item where it has items.
    Step(usize),
}

/// What a step does.
#[derive(Debug, Clone)]
pub(super) enum Work {
    Generate(Box<Generate>),
    Check(Check),
    Program(Program),
    Route(Box<Route>),
    Retrieve(Box<Retrieve>),
}

/// A question to an expert.
#[derive(Debug, Clone)]
pub(super) struct Ask {
    pub expert: String,
    pub prompt: Template,
    pub system: Option<Template>,
    pub sampling: Sampling,
    pub stop: Vec<String>,
    pub timeout: Option<Duration>,
    pub gate: Gate,
}

/// What becomes of a prompt that does not fit.
#[derive(Debug, Clone)]
pub(super) enum Gate {
    Refuse,
    /// A part is cut.
    Cut(ContextRule, Source),
    /// An expert shortens a part.
    Compress(String, Source),
}

/// An expert's answer.
#[derive(Debug, Clone)]
pub(super) struct Generate {
    pub ask: Ask,
    pub schema: Option<Schema>,
    pub repairs: u32,
    pub verify: Option<Verify>,
}

/// How answers are verified.
#[derive(Debug, Clone)]
pub(super) struct Verify {
    pub rules: Rules,
    pub judge: Option<Judge>,
    pub retries: u32,
    pub escalate: Option<String>,
    pub on_fail: OnFail,
}

/// An expert that judges answers.
#[derive(Debug, Clone)]
pub(super) struct Judge {
    pub expert: String,
    pub prompt: Template,
    pub sampling: Sampling,
}

/// A judgement by rules.
#[derive(Debug, Clone)]
pub(super) struct Check {
    pub of: usize,
    pub rules: Rules,
    pub on_fail: OnFail,
}

/// A choice among routes.
#[derive(Debug, Clone)]
pub(super) struct Route {
    pub chooser: Chooser,
    /// All names, the default among them.
    pub routes: Vec<String>,
    pub default: String,
}

/// Who chooses.
#[derive(Debug, Clone)]
pub(super) enum Chooser {
    Expert(Box<Ask>),
    Rules(Source, Vec<Rule>),
}

/// A search in files.
#[derive(Debug, Clone)]
pub(super) struct Retrieve {
    pub query: Template,
    pub by: By,
    pub expert: Option<String>,
    pub corpus: Arc<Corpus>,
    pub top: usize,
}

impl PipelineSpec {
    /// Checks everything that can be checked without loading a model: `directory` is what paths are relative to,
    /// `name` is used where the file gives none.
    ///
    /// # Errors
    /// [`Error::Pipeline`] with step and key; whatever makes an expert's card fail.
    pub fn check(self, name: &str, directory: &Path, registry: &Registry) -> Result<Pipeline> {
        let name = self.name.clone().unwrap_or_else(|| name.to_owned());
        check_name(&name)?;
        let checker = Checker { pipeline: &name, directory, registry, spec: &self };
        if self.steps.is_empty() {
            return Err(checker.wrong("steps", "there are none"));
        }
        let mut experts = BTreeMap::new();
        for (expert, spec) in &self.experts {
            experts.insert(expert.clone(), checker.expert(expert, spec)?);
        }
        let mut fallbacks = BTreeMap::new();
        for (name, card) in &experts {
            if let Some(fallback) = checker.fallback(card, &experts)? {
                fallbacks.insert(name.clone(), fallback);
            }
        }
        let mut steps: Vec<Step> = Vec::new();
        for spec in &self.steps {
            let step = checker.step(spec, &steps, &experts)?;
            steps.push(step);
        }
        checker.every_expert_is_used(&steps)?;
        let hash = hash_of(&self, &experts, &steps);
        Ok(Pipeline { name, spec: self, hash, experts, fallbacks, steps })
    }
}

impl Pipeline {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What its file says.
    pub fn spec(&self) -> &PipelineSpec {
        &self.spec
    }

    /// The cards of its experts, by the names it gives them.
    pub fn experts(&self) -> &BTreeMap<String, ExpertCard> {
        &self.experts
    }

    /// The expert that an expert's card names in its stead, where it names one.
    pub fn fallback(&self, expert: &str) -> Option<&ExpertCard> {
        self.fallbacks.get(expert)
    }

    /// Its steps in order, each with the experts that it asks, in the order in which it first asks them.
    pub fn steps(&self) -> impl Iterator<Item = (&str, Vec<&str>)> {
        self.steps.iter().map(|step| (step.name.as_str(), step.work.experts()))
    }

    /// The expert that it asks first, if it asks any.
    pub fn first_expert(&self) -> Option<&str> {
        self.steps().find_map(|(_, experts)| experts.first().copied())
    }

    /// The last step that writes, if one does, and whether what it writes is sure as it comes: neither a verifier nor its
    /// schema can have it written anew.
    pub fn answering(&self) -> Option<(&str, bool)> {
        self.steps.iter().rev().find_map(|step| match &step.work {
            Work::Generate(work) => Some((step.name.as_str(), work.verify.is_none() && work.repairs == 0)),
            _ => None,
        })
    }

    /// The step that runs a program of this machine, if one does.
    pub fn program(&self) -> Option<(&str, &[String])> {
        self.steps.iter().find_map(|step| match &step.work {
            Work::Program(program) => Some((step.name.as_str(), program.command.as_slice())),
            _ => None,
        })
    }

    /// The experts that are asked from a step on, in that order.
    pub(super) fn experts_from(&self, index: usize) -> Vec<ExpertCard> {
        let names = self.steps().skip(index).flat_map(|(_, experts)| experts);
        names.filter_map(|name| self.experts.get(name).cloned()).collect()
    }

    /// BLAKE3 of everything its outputs depend on but the input: steps, schemas, experts' files and settings.
    pub fn hash(&self) -> &str {
        &self.hash
    }
}

fn hash_of(spec: &PipelineSpec, experts: &BTreeMap<String, ExpertCard>, steps: &[Step]) -> String {
    let experts: Vec<_> = experts
        .iter()
        .map(|(name, card)| {
            json!([name, card.model.identity(), card.load, card.sampling, card.system, card.stop])
        })
        .collect();
    let schemas: Vec<_> = steps.iter().map(|step| step.schema().map(|schema| schema.value.clone())).collect();
    let corpora: Vec<_> = steps
        .iter()
        .map(|step| match &step.work {
            Work::Retrieve(retrieve) => Some(retrieve.corpus.blake3.clone()),
            _ => None,
        })
        .collect();
    hash::blake3_bytes(json!([spec, experts, schemas, corpora]).to_string().as_bytes())
}

impl Step {
    fn schema(&self) -> Option<&Schema> {
        match &self.work {
            Work::Generate(generate) => generate.schema.as_ref(),
            Work::Check(check) => check.rules.schema.as_ref(),
            _ => None,
        }
    }
}

impl Work {
    /// The experts that it asks, in the order in which it first asks them.
    pub(super) fn experts(&self) -> Vec<&str> {
        let all: Vec<Option<&String>> = match self {
            Self::Generate(generate) => {
                let verify = generate.verify.as_ref();
                let judge = verify.and_then(|verify| verify.judge.as_ref()).map(|judge| &judge.expert);
                let escalate = verify.and_then(|verify| verify.escalate.as_ref());
                vec![Some(&generate.ask.expert), generate.ask.gate.compressor(), judge, escalate]
            }
            Self::Route(route) => match &route.chooser {
                Chooser::Expert(ask) => vec![Some(&ask.expert), ask.gate.compressor()],
                Chooser::Rules(..) => Vec::new(),
            },
            Self::Retrieve(retrieve) => vec![retrieve.expert.as_ref()],
            Self::Check(_) | Self::Program(_) => Vec::new(),
        };
        let mut names: Vec<&str> = Vec::new();
        for name in all.into_iter().flatten() {
            if !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
        names
    }
}

impl Gate {
    fn compressor(&self) -> Option<&String> {
        match self {
            Self::Compress(expert, _) => Some(expert),
            _ => None,
        }
    }
}

struct Checker<'a> {
    pipeline: &'a str,
    directory: &'a Path,
    registry: &'a Registry,
    spec: &'a PipelineSpec,
}

impl Checker<'_> {
    fn wrong(&self, place: impl Into<String>, reason: impl Into<String>) -> Error {
        Error::Pipeline { pipeline: self.pipeline.to_owned(), place: place.into(), reason: reason.into() }
    }

    fn lookup(&self) -> Lookup<'_> {
        Lookup { directory: self.directory, registry: self.registry, local: self.spec.local }
    }

    fn trouble(&self, expert: &str, trouble: Trouble) -> Error {
        match trouble {
            Trouble::Key(key, reason) => self.wrong(format!("experts.{expert}{key}"), reason),
            Trouble::Error(error) => error,
        }
    }

    fn expert(&self, name: &str, spec: &ExpertSpec) -> Result<ExpertCard> {
        check_name(name)?;
        let place = |key: &str| format!("experts.{name}{key}");
        let mut card = self.lookup().card(name, spec).map_err(|trouble| self.trouble(name, trouble))?;
        name.clone_into(&mut card.name);
        let load = &mut card.load;
        load.num_ctx = spec.num_ctx.unwrap_or(load.num_ctx);
        load.num_batch = spec.num_batch.unwrap_or(load.num_batch);
        load.num_thread = spec.num_thread.unwrap_or(load.num_thread);
        load.num_gpu = spec.num_gpu.or(load.num_gpu);
        load.kv_type_k = spec.kv_type.unwrap_or(load.kv_type_k);
        load.kv_type_v = spec.kv_type.unwrap_or(load.kv_type_v);
        load.flash_attention = spec.flash_attention.unwrap_or(load.flash_attention);
        load.check().map_err(|reason| self.wrong(place(""), reason))?;
        card.fallback = spec.fallback.clone().or(card.fallback);
        card.sampling.temperature = spec.temperature.unwrap_or(card.sampling.temperature);
        card.sampling.check().map_err(|reason| self.wrong(place(""), reason))?;
        card.system = spec.system.clone().or(card.system);
        let trained = card.trained_context_tokens()?.unwrap_or(u32::MAX);
        if card.load.num_ctx > trained {
            let asked = card.load.num_ctx;
            return Err(self.wrong(
                place(".num_ctx"),
                format!("{asked} is more than the {trained} the model was trained on"),
            ));
        }
        Ok(card)
    }

    /// The expert that another's card names in its stead: one of the pipeline, or a registered one.
    fn fallback(
        &self,
        card: &ExpertCard,
        experts: &BTreeMap<String, ExpertCard>,
    ) -> Result<Option<ExpertCard>> {
        let Some(fallback) = &card.fallback else { return Ok(None) };
        let wrong = |reason: String| self.wrong(format!("experts.{}.fallback", card.name), reason);
        if *fallback == card.name {
            return Err(wrong("an expert can't stand in for itself".to_owned()));
        }
        if let Some(card) = experts.get(fallback) {
            return Ok(Some(card.clone()));
        }
        let known: Vec<&str> = experts.keys().map(String::as_str).collect();
        let other = self.registry.card(fallback).map_err(|error| {
            wrong(format!("it is not among the experts of the pipeline ({}), and {error}", known.join(", ")))
        })?;
        self.lookup().check_local(&other).map_err(|trouble| self.trouble(&card.name, trouble))?;
        other.check_file()?;
        Ok(Some(other))
    }

    fn every_expert_is_used(&self, steps: &[Step]) -> Result<()> {
        let answers = |name: &String| steps.iter().any(|step| step.work.experts().contains(&name.as_str()));
        let stands_in =
            |name: &String| self.spec.experts.values().any(|expert| expert.fallback.as_ref() == Some(name));
        let used = |name: &String| answers(name) || stands_in(name);
        match self.spec.experts.keys().find(|name| !used(name)) {
            Some(name) => Err(self.wrong(format!("experts.{name}"), "no step uses it")),
            None => Ok(()),
        }
    }
}
