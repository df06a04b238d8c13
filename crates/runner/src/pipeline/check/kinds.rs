//! What each kind of step does, made ready.

use std::sync::Arc;
use std::time::Duration;

use super::steps::{Before, Made};
use super::{Ask, Check, Checker, Chooser, Gate, Generate, Judge, Retrieve, Route, Source, Verify, Work};
use crate::Result;
use crate::card::Sampling;
use crate::pipeline::program::Program;
use crate::pipeline::retrieve::{Corpus, TOP, TOP_MAX};
use crate::pipeline::route::{self, Rule};
use crate::pipeline::rules::{Rules, pattern};
use crate::pipeline::step::{By, ContextRule, StepSpec, VerifySpec};

/// Repairs a step with a schema is allowed where it does not say.
const REPAIRS: u32 = 1;

/// Most repairs or retries a step may ask for.
const REPAIRS_MAX: u32 = 10;

/// Retries of a step that is verified, where it does not say.
const RETRIES: u32 = 1;

/// Tokens of a verdict, where the step does not say: a handful of objections.
const VERDICT_TOKENS: u32 = 256;

/// Tokens of a route's name.
const ROUTE_TOKENS: u32 = 64;

/// Most seconds that a step may allow: a day.
const TIMEOUT_SECONDS: f64 = 86_400.0;

/// What a verifier is asked, where the step does not say.
const VERDICT_PROMPT: &str = "A task was given, and somebody answered.\n\nTask:\n{{ task }}\n\nAnswer:\n{{ draft }}\n\nDoes the answer do what the task asks, with nothing wrong and nothing missing? Reply in JSON: {\"ok\": true, \"objections\": []}, or {\"ok\": false, \"objections\": [each thing that is wrong]}.";

impl Checker<'_> {
    pub(super) fn generate(&self, spec: &StepSpec, before: &Before<'_>) -> Result<Made> {
        let place = |key: &str| format!("step `{}`: {key}", spec.name);
        let ask = self.ask(spec, before)?;
        let schema = self.schema(spec)?;
        if schema.is_none() && spec.repair.is_some() {
            return Err(self.wrong(place("repair"), "there is no schema to repair for"));
        }
        if spec.verify.is_some() && spec.repair.is_some() {
            let reason = "`verify.retries` says how often an answer is asked for again, for its schema too";
            return Err(self.wrong(place("repair"), reason));
        }
        let repairs = match schema.is_some() && spec.verify.is_none() {
            true => spec.repair.unwrap_or(REPAIRS),
            false => 0,
        };
        if repairs > REPAIRS_MAX {
            return Err(self.wrong(place("repair"), format!("{repairs} is more than {REPAIRS_MAX}")));
        }
        let verify = spec.verify.as_ref().map(|verify| self.verify(spec, verify, before)).transpose()?;
        let judge = verify.as_ref().and_then(|verify| verify.judge.as_ref()).map(|judge| &judge.prompt);
        let templates = [Some(&ask.prompt), ask.system.as_ref(), judge].into_iter().flatten();
        let (mut needs, mut item) = self.taken(templates, before.steps);
        match verify.as_ref().and_then(|verify| verify.rules.values_in) {
            Some(Source::Step(i)) => needs.push(i),
            Some(Source::Item) => item = true,
            Some(Source::Input) | None => {}
        }
        let work = Work::Generate(Box::new(Generate { ask, schema, repairs, verify }));
        Ok(Made { work, needs, item, merges: true })
    }

    fn ask(&self, spec: &StepSpec, before: &Before<'_>) -> Result<Ask> {
        let place = |key: &str| format!("step `{}`: {key}", spec.name);
        let needed = || "a step that generates needs one";
        let expert = spec.expert.as_ref().ok_or_else(|| self.wrong(place("expert"), needed()))?;
        let card = self.answering(&place("expert"), expert, before)?;
        let prompt = spec.prompt.as_ref().ok_or_else(|| self.wrong(place("prompt"), needed()))?;
        let prompt = self.template(&place("prompt"), prompt, &[], before.steps)?;
        let system = spec
            .system
            .as_ref()
            .map(|text| self.template(&place("system"), text, &[], before.steps))
            .transpose()?;
        let sampling = self.sampling(spec, &card.sampling)?;
        let gate = self.gate(spec, &prompt.references, before)?;
        let (expert, stop, timeout) = (expert.clone(), spec.stop.clone(), self.timeout(spec)?);
        Ok(Ask { expert, prompt, system, sampling, stop, timeout, gate })
    }

    fn sampling(&self, spec: &StepSpec, of_expert: &Sampling) -> Result<Sampling> {
        let sampling = Sampling {
            temperature: spec.temperature.unwrap_or(of_expert.temperature),
            top_p: spec.top_p.unwrap_or(of_expert.top_p),
            top_k: spec.top_k.unwrap_or(of_expert.top_k),
            min_p: spec.min_p.unwrap_or(of_expert.min_p),
            repeat_penalty: spec.repeat_penalty.unwrap_or(of_expert.repeat_penalty),
            seed: spec.seed.unwrap_or(of_expert.seed),
            max_tokens: spec.max_tokens.or(of_expert.max_tokens),
            repeat_last_n: of_expert.repeat_last_n,
        };
        sampling.check().map_err(|reason| self.wrong(format!("step `{}`", spec.name), reason))?;
        if sampling.max_tokens == Some(0) {
            let place = format!("step `{}`: max_tokens", spec.name);
            return Err(self.wrong(place, "0 leaves no room for an answer"));
        }
        let drawn = [
            ("top_p", spec.top_p.is_some()),
            ("top_k", spec.top_k.is_some()),
            ("min_p", spec.min_p.is_some()),
        ];
        if sampling.temperature == 0.0
            && let Some((key, _)) = drawn.iter().find(|(_, given)| *given)
        {
            let reason =
                "with temperature 0 the likeliest token is taken, and nothing is drawn: give a temperature";
            return Err(self.wrong(format!("step `{}`: {key}", spec.name), reason));
        }
        Ok(sampling)
    }

    fn timeout(&self, spec: &StepSpec) -> Result<Option<Duration>> {
        let Some(seconds) = spec.timeout else { return Ok(None) };
        if seconds > 0.0 && seconds <= TIMEOUT_SECONDS {
            return Ok(Some(Duration::from_secs_f64(seconds)));
        }
        let place = format!("step `{}`: timeout", spec.name);
        Err(self.wrong(place, format!("{seconds} is not within 0 and {TIMEOUT_SECONDS} seconds")))
    }

    /// The part that is cut is data: the prompt itself, the author's instructions, always stays whole.
    fn gate(
        &self,
        spec: &StepSpec,
        references: &crate::pipeline::template::References,
        before: &Before<'_>,
    ) -> Result<Gate> {
        let place = |key: &str| format!("step `{}`: {key}", spec.name);
        let cuts = spec.context != ContextRule::Refuse;
        if !cuts && spec.cut.is_some() {
            return Err(self.wrong(place("cut"), "without a rule in `context` nothing is cut"));
        }
        if spec.context != ContextRule::Compress && spec.compress_with.is_some() {
            return Err(
                self.wrong(place("compress_with"), "only `context = \"compress\"` has an expert compress")
            );
        }
        if !cuts {
            return Ok(Gate::Refuse);
        }
        let input = references.input.then_some("input");
        let item = references.item.then_some("item");
        let parts: Vec<&str> = input
            .into_iter()
            .chain(item)
            .chain(references.outputs_of_item.iter().map(String::as_str))
            .collect();
        let part = match (spec.cut.as_deref(), parts.as_slice()) {
            (Some(part), _) if parts.contains(&part) => part,
            (Some(part), _) => {
                let reason = format!("the prompt has no part `{part}`; it has: {}", parts.join(", "));
                return Err(self.wrong(place("cut"), reason));
            }
            (None, [part]) => part,
            (None, []) => {
                return Err(self.wrong(place("context"), "the prompt has no part that could be cut"));
            }
            (None, parts) => {
                let reason = format!("say which part of the prompt is cut: {}", parts.join(", "));
                return Err(self.wrong(place("cut"), reason));
            }
        };
        let part = self.source(&place("cut"), part, before.steps)?;
        if spec.context != ContextRule::Compress {
            return Ok(Gate::Cut(spec.context, part));
        }
        let expert = spec
            .compress_with
            .as_ref()
            .ok_or_else(|| self.wrong(place("compress_with"), "name the expert that compresses"))?;
        self.answering(&place("compress_with"), expert, before)?;
        Ok(Gate::Compress(expert.clone(), part))
    }

    fn verify(&self, spec: &StepSpec, verify: &VerifySpec, before: &Before<'_>) -> Result<Verify> {
        let place = |key: &str| format!("step `{}`: verify.{key}", spec.name);
        let rules = Rules {
            schema: None,
            values_in: verify
                .values_in
                .as_deref()
                .map(|name| self.source(&place("values_in"), name, before.steps))
                .transpose()?,
            matches: self.pattern(&place("matches"), verify.matches.as_deref())?,
            forbids: self.pattern(&place("forbids"), verify.forbids.as_deref())?,
            min_chars: verify.min_chars,
            max_chars: verify.max_chars,
        };
        let judge = match (&verify.expert, &verify.prompt, verify.max_tokens) {
            (None, None, None) => None,
            (None, ..) => return Err(self.wrong(place("expert"), "name the expert that is asked")),
            (Some(expert), prompt, max_tokens) => {
                let card = self.answering(&place("expert"), expert, before)?;
                let prompt = prompt.as_deref().unwrap_or(VERDICT_PROMPT);
                let prompt = self.template(&place("prompt"), prompt, &["task", "draft"], before.steps)?;
                if !prompt.references.more.contains("draft") {
                    return Err(self.wrong(place("prompt"), "it does not show the answer: `{{ draft }}`"));
                }
                let max_tokens = max_tokens.unwrap_or(VERDICT_TOKENS);
                if max_tokens == 0 {
                    return Err(self.wrong(place("max_tokens"), "0 leaves no room for a verdict"));
                }
                // A verdict that is drawn would not be the same twice.
                let sampling =
                    Sampling { temperature: 0.0, max_tokens: Some(max_tokens), ..card.sampling.clone() };
                Some(Judge { expert: expert.clone(), prompt, sampling })
            }
        };
        if judge.is_none() && rules.is_empty() && spec.schema.is_none() {
            let reason = "there is nothing to verify by: an expert, a schema of the step, values_in, matches, forbids, min_chars or max_chars";
            return Err(self.wrong(format!("step `{}`: verify", spec.name), reason));
        }
        if let Some(expert) = &verify.escalate {
            self.answering(&place("escalate"), expert, before)?;
            if Some(expert) == spec.expert.as_ref() {
                return Err(self.wrong(
                    place("escalate"),
                    "that is the expert that failed: name another, or give more `retries`",
                ));
            }
        }
        let retries = verify.retries.unwrap_or(RETRIES);
        if retries > REPAIRS_MAX {
            return Err(self.wrong(place("retries"), format!("{retries} is more than {REPAIRS_MAX}")));
        }
        Ok(Verify { rules, judge, retries, escalate: verify.escalate.clone(), on_fail: verify.on_fail })
    }

    fn pattern(&self, place: &str, source: Option<&str>) -> Result<Option<regex::Regex>> {
        source.map(pattern).transpose().map_err(|reason| self.wrong(place, reason))
    }

    pub(super) fn check(&self, spec: &StepSpec, before: &Before<'_>) -> Result<Made> {
        let place = |key: &str| format!("step `{}`: {key}", spec.name);
        let of = self.judged(spec, before)?;
        let rules = Rules {
            schema: self.schema(spec)?.or_else(|| before.steps[of].schema().cloned()),
            values_in: spec
                .values_in
                .as_deref()
                .map(|name| self.source(&place("values_in"), name, before.steps))
                .transpose()?,
            matches: self.pattern(&place("matches"), spec.matches.as_deref())?,
            forbids: self.pattern(&place("forbids"), spec.forbids.as_deref())?,
            min_chars: spec.min_chars,
            max_chars: spec.max_chars,
        };
        if rules.is_empty() {
            let reason = "there is nothing to judge by: a schema, `values_in`, `matches`, `forbids`, `min_chars`, `max_chars` or a `program`";
            return Err(self.wrong(format!("step `{}`", spec.name), reason));
        }
        if spec.timeout.is_some() {
            return Err(self.wrong(place("timeout"), "rules take no time: only a `program` has it"));
        }
        let (mut needs, mut item) = (vec![of], false);
        match rules.values_in {
            Some(Source::Step(i)) => needs.push(i),
            Some(Source::Item) => item = true,
            Some(Source::Input) | None => {}
        }
        Ok(Made { work: Work::Check(Check { of, rules, on_fail: spec.on_fail }), needs, item, merges: false })
    }

    pub(super) fn program(&self, spec: &StepSpec, before: &Before<'_>) -> Result<Made> {
        let place = |key: &str| format!("step `{}`: {key}", spec.name);
        let of = self.judged(spec, before)?;
        let rules = [
            ("schema", spec.schema.is_some()),
            ("values_in", spec.values_in.is_some()),
            ("matches", spec.matches.is_some()),
            ("forbids", spec.forbids.is_some()),
            ("min_chars", spec.min_chars.is_some()),
            ("max_chars", spec.max_chars.is_some()),
        ];
        if let Some((key, _)) = rules.iter().find(|(_, given)| *given) {
            return Err(self.wrong(place(key), "a program judges alone: give the rules a step of their own"));
        }
        let timeout = self.timeout(spec)?;
        let made = Program::new(spec.program.clone(), self.directory, of, timeout, spec.on_fail);
        let program = made.map_err(|reason| self.wrong(place("program"), reason))?;
        Ok(Made { work: Work::Program(program), needs: vec![of], item: false, merges: false })
    }

    fn judged(&self, spec: &StepSpec, before: &Before<'_>) -> Result<usize> {
        let place = format!("step `{}`: of", spec.name);
        let of = spec.of.as_ref().ok_or_else(|| self.wrong(&place, "a check needs the step it judges"))?;
        self.earlier(&place, of, before.steps)
    }

    pub(super) fn route(&self, spec: &StepSpec, before: &Before<'_>) -> Result<Made> {
        let place = |key: &str| format!("step `{}`: {key}", spec.name);
        let default = spec.default.clone().ok_or_else(|| {
            self.wrong(place("default"), "a router needs the route of what fits none: default = \"…\"")
        })?;
        let by_rules = !spec.rules.is_empty();
        if by_rules == spec.expert.is_some() {
            let reason = "either an `expert` chooses among `routes`, or `rules` do";
            return Err(self.wrong(format!("step `{}`", spec.name), reason));
        }
        let named = if by_rules {
            spec.rules.iter().map(|rule| rule.route.clone()).collect()
        } else {
            spec.routes.clone()
        };
        let mut routes: Vec<String> = Vec::new();
        for route in named.into_iter().chain([default.clone()]) {
            route::check_name(&route).map_err(|reason| self.wrong(place("routes"), reason))?;
            if !routes.contains(&route) {
                routes.push(route);
            }
        }
        if routes.len() < 2 {
            return Err(self.wrong(place("routes"), "there is only one way to go: name more routes"));
        }
        let (chooser, needs, item) = if by_rules {
            self.route_by_rules(spec, before)?
        } else {
            if spec.of.is_some() {
                return Err(self.wrong(place("of"), "an expert sees its prompt: `of` is for `rules`"));
            }
            let mut ask = self.ask(spec, before)?;
            ask.sampling.max_tokens = spec.max_tokens.or(Some(ROUTE_TOKENS));
            let (needs, item) =
                self.taken([Some(&ask.prompt), ask.system.as_ref()].into_iter().flatten(), before.steps);
            (Chooser::Expert(Box::new(ask)), needs, item)
        };
        let merges = !by_rules;
        Ok(Made { work: Work::Route(Box::new(Route { chooser, routes, default })), needs, item, merges })
    }

    fn route_by_rules(&self, spec: &StepSpec, before: &Before<'_>) -> Result<(Chooser, Vec<usize>, bool)> {
        let place = |key: &str| format!("step `{}`: {key}", spec.name);
        let model = [
            ("prompt", spec.prompt.is_some()),
            ("system", spec.system.is_some()),
            ("routes", !spec.routes.is_empty()),
            ("max_tokens", spec.max_tokens.is_some()),
            ("temperature", spec.temperature.is_some()),
            ("top_p", spec.top_p.is_some()),
            ("top_k", spec.top_k.is_some()),
            ("min_p", spec.min_p.is_some()),
            ("repeat_penalty", spec.repeat_penalty.is_some()),
            ("seed", spec.seed.is_some()),
            ("timeout", spec.timeout.is_some()),
            ("context", spec.context != ContextRule::Refuse),
            ("cut", spec.cut.is_some()),
            ("compress_with", spec.compress_with.is_some()),
        ];
        if let Some((key, _)) = model.iter().find(|(_, given)| *given) {
            return Err(self.wrong(
                place(key),
                "leave it out: where `rules` choose, the routes are theirs and no model is asked",
            ));
        }
        let of = match spec.of.as_deref() {
            Some(name) => self.source(&place("of"), name, before.steps)?,
            None if spec.map.is_some() => Source::Item,
            None => return Err(self.wrong(place("of"), "say what the rules look at: input, item or a step")),
        };
        let rules = spec.rules.iter().enumerate().map(|(i, rule)| {
            Rule::new(rule).map_err(|reason| self.wrong(place(&format!("rules[{i}]")), reason))
        });
        let rules = rules.collect::<Result<Vec<Rule>>>()?;
        let needs = if let Source::Step(i) = of { vec![i] } else { Vec::new() };
        Ok((Chooser::Rules(of, rules), needs, of == Source::Item))
    }

    pub(super) fn retrieve(&self, spec: &StepSpec, before: &Before<'_>) -> Result<Made> {
        let place = |key: &str| format!("step `{}`: {key}", spec.name);
        let query =
            spec.query.as_ref().ok_or_else(|| self.wrong(place("query"), "say what is looked for"))?;
        let query = self.template(&place("query"), query, &[], before.steps)?;
        match (spec.by, &spec.expert) {
            (By::Words, Some(_)) => {
                return Err(self.wrong(place("expert"), "words need no expert: by = \"meaning\" does"));
            }
            (By::Meaning, None) => {
                return Err(self.wrong(place("expert"), "name the expert that gives vectors"));
            }
            (By::Meaning, Some(expert)) => drop(self.expert_of(&place("expert"), expert, before)?),
            (By::Words, None) => {}
        }
        let top = spec.top.unwrap_or(TOP);
        if top == 0 || top > TOP_MAX {
            return Err(self.wrong(place("top"), format!("{top} is not within 1 and {TOP_MAX}")));
        }
        let corpus = Corpus::read(self.directory, &spec.files, spec.passage_words);
        let corpus = Arc::new(corpus.map_err(|reason| self.wrong(place("files"), reason))?);
        let (needs, item) = self.taken([&query], before.steps);
        let retrieve = Retrieve { query, by: spec.by, expert: spec.expert.clone(), corpus, top };
        Ok(Made { work: Work::Retrieve(Box::new(retrieve)), needs, item, merges: true })
    }
}
