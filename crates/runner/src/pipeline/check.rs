//! A pipeline file made sure of before anything runs: experts found, templates compiled, references and
//! schemas checked, items followed from step to step.

use std::collections::BTreeMap;
use std::path::Path;

use formats::hash;
use serde_json::json;

use super::expert::{Lookup, Trouble};
use super::schema::Schema;
use super::spec::{ExpertSpec, Map, OnFail, PipelineSpec, StepKind, StepSpec};
use super::template::Template;
use crate::card::{ExpertCard, Sampling, check_name};
use crate::{Error, Registry, Result};

/// Repairs a step with a schema is allowed where it does not say.
const REPAIRS: u32 = 1;

/// Most repairs a step may ask for.
const REPAIRS_MAX: u32 = 10;

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
    pub items: Items,
    pub work: Work,
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
}

/// An expert's answer.
#[derive(Debug, Clone)]
pub(super) struct Generate {
    pub expert: String,
    pub prompt: Template,
    pub system: Option<Template>,
    pub sampling: Sampling,
    pub stop: Vec<String>,
    pub schema: Option<Schema>,
    pub repairs: u32,
}

/// A judgement by rules.
#[derive(Debug, Clone)]
pub(super) struct Check {
    pub of: usize,
    pub schema: Option<Schema>,
    pub values_in: Option<Source>,
    pub on_fail: OnFail,
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
        checker.every_expert_is_used()?;
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

    /// Its steps in order: each with the expert that it asks, if it asks one.
    pub fn steps(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        self.steps.iter().map(|step| match &step.work {
            Work::Generate(generate) => (step.name.as_str(), Some(generate.expert.as_str())),
            Work::Check(_) => (step.name.as_str(), None),
        })
    }

    /// The experts that are asked from a step on, in that order.
    pub(super) fn experts_from(&self, index: usize) -> Vec<ExpertCard> {
        let names = self.steps().skip(index).filter_map(|(_, expert)| expert);
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
    hash::blake3_bytes(json!([spec, experts, schemas]).to_string().as_bytes())
}

impl Step {
    fn schema(&self) -> Option<&Schema> {
        match &self.work {
            Work::Generate(generate) => generate.schema.as_ref(),
            Work::Check(check) => check.schema.as_ref(),
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
        if !card.has_template() {
            return Err(self.wrong(place(""), "its file has no chat template, which a step needs"));
        }
        Ok(card)
    }

    /// The adapter to set over an expert's file.
    fn step(&self, spec: &StepSpec, before: &[Step], experts: &BTreeMap<String, ExpertCard>) -> Result<Step> {
        let name = spec.name.as_str();
        let identifier = name.starts_with(|c: char| c.is_ascii_alphabetic())
            && name.len() <= 64
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !identifier {
            let reason = "a step's name has up to 64 letters, digits and `_` and begins with a letter";
            return Err(self.wrong(format!("step `{name}`: name"), reason));
        }
        if before.iter().any(|step| step.name == name) {
            return Err(self.wrong(format!("step `{name}`: name"), "there is a step of that name before"));
        }
        let (work, follows, item) = match spec.kind {
            StepKind::Generate => self.generate(spec, before, experts)?,
            StepKind::Check => self.check(spec, before)?,
        };
        let items = self.items(spec, before, &follows, item)?;
        Ok(Step { name: name.to_owned(), items, work })
    }

    /// The work, the steps whose output of the same item it takes, and whether it takes the item itself.
    fn generate(
        &self,
        spec: &StepSpec,
        before: &[Step],
        experts: &BTreeMap<String, ExpertCard>,
    ) -> Result<(Work, Vec<usize>, bool)> {
        let place = |key: &str| format!("step `{}`: {key}", spec.name);
        for (key, given) in [("of", spec.of.is_some()), ("values_in", spec.values_in.is_some())] {
            if given {
                return Err(self.wrong(place(key), "only a step of kind \"check\" has it"));
            }
        }
        let expert = spec
            .expert
            .as_ref()
            .ok_or_else(|| self.wrong(place("expert"), "a step that generates needs one"))?;
        let Some(card) = experts.get(expert) else {
            let known: Vec<&str> = experts.keys().map(String::as_str).collect();
            return Err(self.wrong(
                place("expert"),
                format!("`{expert}` is not among the experts: {}", known.join(", ")),
            ));
        };
        let prompt = spec
            .prompt
            .as_ref()
            .ok_or_else(|| self.wrong(place("prompt"), "a step that generates needs one"))?;
        let prompt = self.template(&place("prompt"), prompt, before)?;
        let system =
            spec.system.as_ref().map(|text| self.template(&place("system"), text, before)).transpose()?;
        let mut sampling = card.sampling.clone();
        sampling.temperature = spec.temperature.unwrap_or(sampling.temperature);
        sampling.seed = spec.seed.unwrap_or(sampling.seed);
        sampling.max_tokens = spec.max_tokens.or(sampling.max_tokens);
        sampling.check().map_err(|reason| self.wrong(format!("step `{}`", spec.name), reason))?;
        if sampling.max_tokens == Some(0) {
            return Err(self.wrong(place("max_tokens"), "0 leaves no room for an answer"));
        }
        let schema = self.schema(spec)?;
        if schema.is_none() && spec.repair.is_some() {
            return Err(self.wrong(place("repair"), "there is no schema to repair for"));
        }
        let repairs = spec.repair.unwrap_or(if schema.is_some() { REPAIRS } else { 0 });
        if repairs > REPAIRS_MAX {
            return Err(self.wrong(place("repair"), format!("{repairs} is more than {REPAIRS_MAX}")));
        }
        let of_item = |template: &Template| template.references.outputs_of_item.clone();
        let names = of_item(&prompt).into_iter().chain(system.as_ref().map(of_item).unwrap_or_default());
        let follows = names.filter_map(|name| before.iter().position(|step| step.name == name)).collect();
        let item = prompt.references.item || system.as_ref().is_some_and(|system| system.references.item);
        let (expert, stop) = (expert.clone(), spec.stop.clone());
        let work = Generate { expert, prompt, system, sampling, stop, schema, repairs };
        Ok((Work::Generate(Box::new(work)), follows, item))
    }

    fn check(&self, spec: &StepSpec, before: &[Step]) -> Result<(Work, Vec<usize>, bool)> {
        let place = |key: &str| format!("step `{}`: {key}", spec.name);
        let generates = [
            ("expert", spec.expert.is_some()),
            ("prompt", spec.prompt.is_some()),
            ("system", spec.system.is_some()),
            ("max_tokens", spec.max_tokens.is_some()),
            ("temperature", spec.temperature.is_some()),
            ("seed", spec.seed.is_some()),
            ("stop", !spec.stop.is_empty()),
            ("repair", spec.repair.is_some()),
        ];
        if let Some((key, _)) = generates.iter().find(|(_, given)| *given) {
            return Err(self.wrong(place(key), "a check uses no model"));
        }
        let of =
            spec.of.as_ref().ok_or_else(|| self.wrong(place("of"), "a check needs the step it judges"))?;
        let of = self.earlier(&place("of"), of, before)?;
        let schema = self.schema(spec)?.or_else(|| before[of].schema().cloned());
        let values_in = match spec.values_in.as_deref() {
            None => None,
            Some("input") => Some(Source::Input),
            Some("item") => Some(Source::Item),
            Some(name) => Some(Source::Step(self.earlier(&place("values_in"), name, before)?)),
        };
        if schema.is_none() && values_in.is_none() {
            return Err(self.wrong(
                format!("step `{}`", spec.name),
                "it has neither a schema nor `values_in` to judge by",
            ));
        }
        let mut follows = vec![of];
        follows
            .extend(values_in.and_then(|source| if let Source::Step(i) = source { Some(i) } else { None }));
        let item = values_in == Some(Source::Item);
        Ok((Work::Check(Check { of, schema, values_in, on_fail: spec.on_fail }), follows, item))
    }

    fn items(&self, spec: &StepSpec, before: &[Step], follows: &[usize], item: bool) -> Result<Items> {
        let place = |key: &str| format!("step `{}`: {key}", spec.name);
        let mut roots: Vec<usize> = follows.iter().filter_map(|&i| root(before, i)).collect();
        roots.sort_unstable();
        roots.dedup();
        if let Some(Map::Lines) = spec.map {
            if let Some(&root) = roots.first() {
                let other = &before[root].name;
                return Err(self.wrong(
                    place("map"),
                    format!("it takes outputs of `{other}`'s items and can't have items of its own"),
                ));
            }
            return Ok(Items::Lines(match spec.over.as_deref() {
                None | Some("input") => Source::Input,
                Some(name) => {
                    let i = self.earlier(&place("over"), name, before)?;
                    if root(before, i).is_some() {
                        return Err(self.wrong(place("over"), format!("`{name}` is itself mapped")));
                    }
                    Source::Step(i)
                }
            }));
        }
        if spec.over.is_some() {
            return Err(self.wrong(place("over"), "without `map` nothing is split"));
        }
        match roots.as_slice() {
            [] if item => Err(self.wrong(
                format!("step `{}`", spec.name),
                "it uses `item` but neither maps nor follows a step that does",
            )),
            [] => Ok(Items::One),
            [root] => Ok(Items::Of(*root)),
            [a, b, ..] => {
                let (a, b) = (&before[*a].name, &before[*b].name);
                Err(self.wrong(
                    format!("step `{}`", spec.name),
                    format!("it takes outputs of both `{a}`'s and `{b}`'s items"),
                ))
            }
        }
    }

    fn template(&self, place: &str, source: &str, before: &[Step]) -> Result<Template> {
        let template = Template::new(source).map_err(|reason| self.wrong(place, reason))?;
        let references = &template.references;
        for name in references.outputs_of_item.iter().chain(&references.outputs_of_all) {
            self.earlier(place, name, before)?;
        }
        if let Some(param) = references.params.iter().find(|param| !self.spec.params.contains_key(*param)) {
            return Err(self.wrong(place, format!("`params.{param}` has no value in `[params]`")));
        }
        Ok(template)
    }

    fn schema(&self, spec: &StepSpec) -> Result<Option<Schema>> {
        let schema = spec.schema.as_ref().map(|schema| Schema::new(schema, self.directory)).transpose();
        schema.map_err(|reason| self.wrong(format!("step `{}`: schema", spec.name), reason))
    }

    fn earlier(&self, place: &str, name: &str, before: &[Step]) -> Result<usize> {
        before.iter().position(|step| step.name == name).ok_or_else(|| {
            let later = self.spec.steps.iter().any(|step| step.name == name);
            let known: Vec<&str> = before.iter().map(|step| step.name.as_str()).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            let what = if later { "does not come before this one" } else { "does not exist" };
            self.wrong(place, format!("step `{name}` {what}; earlier steps: {known}"))
        })
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

    fn every_expert_is_used(&self) -> Result<()> {
        let answers = |name: &String| self.spec.steps.iter().any(|step| step.expert.as_ref() == Some(name));
        let stands_in =
            |name: &String| self.spec.experts.values().any(|expert| expert.fallback.as_ref() == Some(name));
        let used = |name: &String| answers(name) || stands_in(name);
        match self.spec.experts.keys().find(|name| !used(name)) {
            Some(name) => Err(self.wrong(format!("experts.{name}"), "no step uses it")),
            None => Ok(()),
        }
    }
}

/// The step whose items a step has, if it has several.
pub(super) fn root(steps: &[Step], i: usize) -> Option<usize> {
    match steps[i].items {
        Items::One => None,
        Items::Lines(_) => Some(i),
        Items::Of(root) => Some(root),
    }
}
