//! A row's values by the names that formats have for them, whatever a file calls them.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{Fault, kind_of};
use crate::options::Format;

/// Every key that a format knows, of rows and of messages.
pub const KEYS: [&str; 17] = [
    "messages",
    "conversations",
    "role",
    "content",
    "weight",
    "tools",
    "system",
    "instruction",
    "input",
    "output",
    "history",
    "prompt",
    "completion",
    "text",
    "chosen",
    "rejected",
    "task",
];

/// The keys that give a format away.
const SIGNS: [(Format, &[&str]); 6] = [
    (Format::Preference, &["chosen", "rejected"]),
    (Format::Messages, &["messages"]),
    (Format::ShareGpt, &["conversations"]),
    (Format::Alpaca, &["instruction", "output"]),
    (Format::PromptCompletion, &["prompt", "completion"]),
    (Format::Text, &["text"]),
];

/// A row or a message.
pub struct Fields<'a> {
    values: Map<String, Value>,
    /// What keys are called here, and in this file.
    names: &'a BTreeMap<String, String>,
}

impl<'a> Fields<'a> {
    pub fn new(values: Map<String, Value>, names: &'a BTreeMap<String, String>) -> Self {
        Self { values, names }
    }

    /// The fields of something within this row.
    pub fn within(&self, values: Map<String, Value>) -> Self {
        Self { values, names: self.names }
    }

    /// What this file calls a key.
    pub fn name(&self, key: &'a str) -> &'a str {
        self.names.get(key).map_or(key, String::as_str)
    }

    /// Whether there is a value that says something.
    pub fn has(&self, key: &'a str) -> bool {
        self.values.get(self.name(key)).is_some_and(|value| !value.is_null())
    }

    /// Takes a value out; null counts as none.
    pub fn take(&mut self, key: &'a str) -> Option<Value> {
        let name = self.name(key);
        self.values.shift_remove(name).filter(|value| !value.is_null())
    }

    /// What is left.
    pub fn into_rest(self) -> Map<String, Value> {
        self.values
    }

    /// A text that must be there.
    pub fn text(&mut self, key: &'a str) -> Result<String, Fault> {
        self.optional_text(key)?.ok_or_else(|| format!("the row has no `{}`", self.name(key)))
    }

    /// A text that may be missing.
    pub fn optional_text(&mut self, key: &'a str) -> Result<Option<String>, Fault> {
        match self.take(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(format!("`{}` is {}, expected a string", self.name(key), kind_of(&other))),
        }
    }

    /// The format that the keys tell of.
    pub fn format(&self) -> Result<Format, Fault> {
        let is_told = |keys: &[&'static str]| keys.iter().all(|key| self.has(key));
        let mut told = SIGNS.iter().filter(|(_, keys)| is_told(keys));
        let Some((format, keys)) = told.next() else { return Err(self.unknown()) };
        // What both answers of a preference answer stands in one of the other formats.
        let other = told.find(|_| *format != Format::Preference);
        match other {
            None => Ok(*format),
            Some((_, others)) => Err(format!(
                "the row has both {} and {}: say which with `format`",
                self.quoted(keys),
                self.quoted(others)
            )),
        }
    }

    fn quoted(&self, keys: &[&'static str]) -> String {
        keys.iter().map(|key| format!("`{}`", self.name(key))).collect::<Vec<_>>().join(" and ")
    }

    fn unknown(&self) -> Fault {
        const SHOWN: usize = 6;
        let names: Vec<_> =
            self.values.keys().take(SHOWN).map(|key| format!("`{}`", key.escape_debug())).collect();
        let more = if self.values.len() > SHOWN { ", ..." } else { "" };
        match names.is_empty() {
            true => "the row is empty".into(),
            false => format!("the row's keys tell of no known format: {}{more}", names.join(", ")),
        }
    }
}
