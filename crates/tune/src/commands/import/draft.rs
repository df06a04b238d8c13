//! A recipe while it is made from another tool's settings, and the record of what became of each of them.

use super::source::{Setting, Source};
use super::yaml::{self, Node};
use crate::recipe_text::{RecipeText, Value};
use serde::Serialize;
use std::collections::BTreeSet;

/// What became of a setting that is not simply carried over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Fate {
    /// Carried over as something else than it was.
    Changed,
    /// Something that must be done before training.
    ToDo,
    /// There is nothing here that does this.
    Left,
    /// Another way of doing the same, or no part of what is trained.
    Idle,
    /// Not known.
    Unknown,
}

/// A setting, what became of it, and what that means.
#[derive(Debug, Clone, Serialize)]
pub struct Note {
    pub fate: Fate,
    pub key: String,
    /// 0 where the file does not have the key, and the tool's default counts.
    pub line: usize,
    pub value: String,
    pub meaning: String,
}

/// Keys of a tool that need none here, each group with the reason.
pub type Idle = &'static [(&'static [&'static str], &'static str)];

/// The recipe, and the settings that are still to be looked at.
pub struct Draft {
    pub tool: &'static str,
    pub recipe: RecipeText,
    pub source: Source,
    pub notes: Vec<Note>,
    pub n_carried: usize,
    /// Keys that the recipe or a note names.
    named: BTreeSet<String>,
}

impl Draft {
    pub fn new(tool: &'static str, source: Source, head: Vec<String>) -> Draft {
        Draft {
            tool,
            recipe: RecipeText::new(head),
            source,
            notes: Vec::new(),
            n_carried: 0,
            named: BTreeSet::new(),
        }
    }

    pub fn note(&mut self, fate: Fate, setting: &Setting, meaning: impl Into<String>) {
        self.named.insert(setting.key.clone());
        self.notes.push(Note {
            fate,
            key: setting.key.clone(),
            line: setting.line,
            value: yaml::show(&setting.node),
            meaning: meaning.into(),
        });
    }

    /// Something about a key that the file may not have.
    pub fn remark(&mut self, fate: Fate, key: &str, meaning: impl Into<String>) {
        let (key, value, meaning) = (key.to_owned(), String::new(), meaning.into());
        self.notes.push(Note { fate, key, line: 0, value, meaning });
    }

    /// Sets one of our keys from a setting, with its key as the comment.
    pub fn carry(&mut self, setting: &Setting, ours: &str, value: Value) {
        self.n_carried += 1;
        self.named.insert(setting.key.clone());
        self.recipe.set(ours, value, from(setting));
    }

    /// The same, saying what is different.
    pub fn change(&mut self, setting: &Setting, ours: &str, value: Value, meaning: impl Into<String>) {
        let meaning = meaning.into();
        self.recipe.set(ours, value, format!("{}: {meaning}", from(setting)));
        self.n_carried += 1;
        self.note(Fate::Changed, setting, meaning);
    }

    /// Sets one of our keys to what the tool does where its file says nothing.
    pub fn default(&mut self, theirs: &str, ours: &str, value: Value) {
        if self.recipe.get(ours).is_none() {
            self.recipe.set(ours, value, format!("{theirs} is not set: {}'s default", self.tool));
        }
    }

    fn expected(&mut self, setting: &Setting, what: &str) {
        self.note(Fate::Left, setting, format!("{what} was expected; the recipe has its default"));
    }

    pub fn number(&mut self, theirs: &str, ours: &str) -> Option<f64> {
        let setting = self.source.take(theirs)?;
        match setting.value() {
            Some(value) => self.carry(&setting, ours, value),
            None => self.expected(&setting, "a number"),
        }
        setting.number()
    }

    pub fn whole(&mut self, theirs: &str, ours: &str) -> Option<u64> {
        let setting = self.source.take(theirs)?;
        let whole = setting.whole();
        match whole {
            Some(whole) => self.carry(&setting, ours, Value::Whole(whole)),
            None => self.expected(&setting, "a whole number"),
        }
        whole
    }

    pub fn switch(&mut self, theirs: &str, ours: &str) -> Option<bool> {
        let setting = self.source.take(theirs)?;
        let on = setting.switch();
        match on {
            Some(on) => self.carry(&setting, ours, Value::Switch(on)),
            None => self.expected(&setting, "true or false"),
        }
        on
    }

    /// Sets our key where the setting is on.
    pub fn where_on(&mut self, theirs: &str, ours: &str, value: Value) -> bool {
        let Some(setting) = self.source.take(theirs) else { return false };
        let is_on = setting.switch() == Some(true);
        if is_on {
            self.carry(&setting, ours, value);
        }
        is_on
    }

    /// Names what was looked at and led to nothing, since it says what is so here in any case: a switch that is off.
    pub fn name_rest(&mut self) {
        let silent = self.source.taken().filter(|setting| !self.named.contains(&setting.key));
        for setting in silent.cloned().collect::<Vec<_>>() {
            self.note(Fate::Idle, &setting, "so it is here in any case");
        }
    }

    /// Sorts what is left: by the tool's table of what needs no key here, or as unknown. Settings to nothing are counted.
    pub fn sort_rest(&mut self, idle: Idle) -> Vec<String> {
        let (mut unset, mut notes) = (Vec::new(), Vec::new());
        for setting in self.source.left() {
            if setting.node == Node::Null {
                unset.push(setting.key.clone());
                continue;
            }
            let known =
                idle.iter().find(|(names, _)| names.iter().any(|name| is_or_below(&setting.key, name)));
            let (fate, meaning) = match known {
                Some((_, meaning)) => (Fate::Idle, *meaning),
                None => (Fate::Unknown, ""),
            };
            notes.push(Note {
                fate,
                key: setting.key.clone(),
                line: setting.line,
                value: yaml::show(&setting.node),
                meaning: meaning.to_owned(),
            });
        }
        self.notes.extend(notes);
        unset
    }
}

/// `profiler.cpu` is below `profiler`; `wandb_*` names all that begins so.
fn is_or_below(key: &str, name: &str) -> bool {
    match name.strip_suffix('*') {
        Some(beginning) => key.starts_with(beginning),
        None => key == name || key.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')),
    }
}

fn from(setting: &Setting) -> String {
    format!("{}: {}", yaml::plain(&setting.key), yaml::show(&setting.node))
}
