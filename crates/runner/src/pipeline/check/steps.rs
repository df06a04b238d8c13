//! A step of a file made sure of: its name, its items, its branch, and what it refers to.

use std::collections::BTreeMap;

use super::{Checker, ExpertCard, Items, Source, Step, When, Work};
use crate::pipeline::schema::Schema;
use crate::pipeline::step::{Map, StepKind, StepSpec};
use crate::pipeline::template::Template;
use crate::{Error, Result};

/// What a step has before it.
pub(super) struct Before<'a> {
    pub steps: &'a [Step],
    pub experts: &'a BTreeMap<String, ExpertCard>,
}

/// A step's work, and what it takes for an item.
pub(super) struct Made {
    pub work: Work,
    /// Steps whose output of the same item it takes.
    pub needs: Vec<usize>,
    /// Whether it takes the item itself.
    pub item: bool,
    /// See [`Step::merges`].
    pub merges: bool,
}

impl Checker<'_> {
    pub(super) fn step(
        &self,
        spec: &StepSpec,
        steps: &[Step],
        experts: &BTreeMap<String, ExpertCard>,
    ) -> Result<Step> {
        let before = Before { steps, experts };
        let name = spec.name.as_str();
        let identifier = name.starts_with(|c: char| c.is_ascii_alphabetic())
            && name.len() <= 64
            && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_');
        if !identifier {
            let reason = "a step's name has up to 64 letters, digits and `_` and begins with a letter";
            return Err(self.wrong(format!("step `{name}`: name"), reason));
        }
        if steps.iter().any(|step| step.name == name) {
            return Err(self.wrong(format!("step `{name}`: name"), "there is a step of that name before"));
        }
        self.keys(spec)?;
        let Made { work, mut needs, item, merges } = match spec.kind {
            StepKind::Generate => self.generate(spec, &before)?,
            StepKind::Check if spec.program.is_empty() => self.check(spec, &before)?,
            StepKind::Check => self.program(spec, &before)?,
            StepKind::Route => self.route(spec, &before)?,
            StepKind::Retrieve => self.retrieve(spec, &before)?,
        };
        needs.sort_unstable();
        needs.dedup();
        let when = self.when(spec, steps)?;
        let follows: Vec<usize> = needs.iter().copied().chain(when.iter().map(|when| when.router)).collect();
        let items = self.items(spec, steps, &follows, item)?;
        let may_skip = !when.is_empty() || needs.iter().any(|&i| steps[i].may_skip);
        let (kind, on_error) = (spec.kind, spec.on_error);
        Ok(Step { name: name.to_owned(), kind, items, when, needs, merges, may_skip, on_error, work })
    }

    fn when(&self, spec: &StepSpec, steps: &[Step]) -> Result<Vec<When>> {
        let mut all = Vec::new();
        for (name, routes) in &spec.when {
            let place = format!("step `{}`: when.{name}", spec.name);
            let router = self.earlier(&place, name, steps)?;
            let Work::Route(route) = &steps[router].work else {
                return Err(self.wrong(place, format!("step `{name}` is no router (kind = \"route\")")));
            };
            if routes.all().is_empty() {
                return Err(self.wrong(place, "no route is named, so the step would never run"));
            }
            if let Some(unknown) = routes.all().iter().find(|name| !route.routes.contains(name)) {
                let known = route.routes.join(", ");
                return Err(self.wrong(place, format!("`{unknown}` is none of its routes: {known}")));
            }
            all.push(When { router, routes: routes.all().to_vec() });
        }
        Ok(all)
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
            [] if item => {
                // The items of the one step that splits, where there is one: then no other can be meant.
                let mut splits = (0..before.len()).filter(|&i| matches!(before[i].items, Items::Lines(_)));
                match (splits.next(), splits.next()) {
                    (Some(root), None) => Ok(Items::Of(root)),
                    _ => Err(self.wrong(
                        format!("step `{}`", spec.name),
                        "it uses `item` but neither maps nor follows a step that does",
                    )),
                }
            }
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

    /// A template; `names` are those that it may use besides.
    pub(super) fn template(
        &self,
        place: &str,
        source: &str,
        names: &[&str],
        before: &[Step],
    ) -> Result<Template> {
        let template = Template::new(source, names).map_err(|reason| self.wrong(place, reason))?;
        let references = &template.references;
        for name in references.outputs_of_item.iter().chain(&references.outputs_of_all) {
            self.earlier(place, name, before)?;
        }
        if let Some(param) = references.params.iter().find(|param| !self.spec.params.contains_key(*param)) {
            return Err(self.wrong(place, format!("`params.{param}` has no value in `[params]`")));
        }
        Ok(template)
    }

    /// The steps whose output of the same item templates take, and whether one takes the item itself.
    pub(super) fn taken<'t>(
        &self,
        templates: impl IntoIterator<Item = &'t Template>,
        before: &[Step],
    ) -> (Vec<usize>, bool) {
        let (mut needs, mut item) = (Vec::new(), false);
        for Template { references, .. } in templates {
            item |= references.item;
            let position = |name: &String| before.iter().position(|step| step.name == *name);
            needs.extend(references.outputs_of_item.iter().filter_map(position));
        }
        (needs, item)
    }

    pub(super) fn schema(&self, spec: &StepSpec) -> Result<Option<Schema>> {
        let schema = spec.schema.as_ref().map(|schema| Schema::new(schema, self.directory)).transpose();
        schema.map_err(|reason| self.wrong(format!("step `{}`: schema", spec.name), reason))
    }

    /// `input`, `item` or an earlier step.
    pub(super) fn source(&self, place: &str, name: &str, before: &[Step]) -> Result<Source> {
        match name {
            "input" => Ok(Source::Input),
            "item" => Ok(Source::Item),
            name => Ok(Source::Step(self.earlier(place, name, before)?)),
        }
    }

    pub(super) fn earlier(&self, place: &str, name: &str, before: &[Step]) -> Result<usize> {
        before.iter().position(|step| step.name == name).ok_or_else(|| {
            let later = self.spec.steps.iter().any(|step| step.name == name);
            let known: Vec<&str> = before.iter().map(|step| step.name.as_str()).collect();
            let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
            let what = if later { "does not come before this one" } else { "does not exist" };
            self.wrong(place, format!("step `{name}` {what}; earlier steps: {known}"))
        })
    }

    /// The card of an expert that a step names.
    pub(super) fn expert_of<'b>(
        &self,
        place: &str,
        name: &str,
        before: &'b Before<'_>,
    ) -> Result<&'b ExpertCard> {
        before.experts.get(name).ok_or_else(|| -> Error {
            let known: Vec<&str> = before.experts.keys().map(String::as_str).collect();
            self.wrong(place, format!("`{name}` is not among the experts: {}", known.join(", ")))
        })
    }

    /// The same for one that answers in a chat.
    pub(super) fn answering<'b>(
        &self,
        place: &str,
        name: &str,
        before: &'b Before<'_>,
    ) -> Result<&'b ExpertCard> {
        let card = self.expert_of(place, name, before)?;
        if !card.has_template() {
            let place = format!("experts.{name}");
            return Err(self.wrong(place, "its file has no chat template, which a step needs"));
        }
        Ok(card)
    }
}

/// The step whose items a step has, if it has several.
pub(in crate::pipeline) fn root(steps: &[Step], i: usize) -> Option<usize> {
    match steps[i].items {
        Items::One => None,
        Items::Lines(_) => Some(i),
        Items::Of(root) => Some(root),
    }
}
