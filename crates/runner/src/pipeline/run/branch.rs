//! Branches: for which items a step runs, and what a step that did not run gives to others.

use super::super::event::{ItemResult, State};
use super::Run;

/// What a step gave for an item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Given {
    Output(String),
    Skipped,
    Failed,
}

impl Given {
    pub(super) fn of(result: &ItemResult) -> Self {
        match result.state {
            State::Done => Self::Output(result.output.clone()),
            State::Skipped => Self::Skipped,
            State::Failed => Self::Failed,
        }
    }

    pub(super) fn is_there(&self) -> bool {
        matches!(self, Self::Output(_))
    }

    /// The output; empty where there is none, so that `{{ steps.a.output or steps.b.output }}` takes what ran.
    pub(super) fn text(&self) -> &str {
        match self {
            Self::Output(text) => text,
            Self::Skipped | Self::Failed => "",
        }
    }
}

impl Run<'_> {
    /// What a step that is done gave for an item; a step without items gives its one output to all.
    pub(super) fn given(&self, of: usize, item: usize) -> &Given {
        self.outputs[of].get(item).or(self.outputs[of].first()).unwrap_or(&Given::Skipped)
    }

    /// Why a step does not run for an item, if it does not.
    pub(super) fn absent(&self, index: usize, item: usize) -> Option<String> {
        let steps = &self.pipeline.steps;
        let step = &steps[index];
        for when in &step.when {
            let name = &steps[when.router].name;
            match self.given(when.router, item) {
                Given::Output(route) if when.routes.contains(route) => {}
                Given::Output(route) => return Some(format!("`{name}` says `{route}`")),
                Given::Skipped => return Some(format!("`{name}` was skipped")),
                Given::Failed => return Some(format!("`{name}` failed")),
            }
        }
        let given = |i: &&usize| self.given(**i, item);
        if let Some(&failed) = step.needs.iter().find(|i| *given(i) == Given::Failed) {
            return Some(format!("`{}` failed", steps[failed].name));
        }
        let skipped = step.needs.iter().find(|i| *given(i) == Given::Skipped);
        // A step that merges branches takes what there is of them.
        let others = step.needs.iter().any(|i| steps[*i].may_skip && self.given(*i, item).is_there());
        match skipped {
            Some(&i) if !(step.merges && others) => Some(format!("`{}` was skipped", steps[i].name)),
            _ => None,
        }
    }
}
