//! The keys of a configuration, each taken at most once: what nobody takes is told, never dropped.

use super::yaml::{Entry, Node};
use crate::recipe_text::Value;

/// One setting: a key with dots for the maps that it stands in, and a value that is no map.
#[derive(Debug, Clone)]
pub struct Setting {
    pub key: String,
    pub line: usize,
    pub node: Node,
    is_taken: bool,
}

/// All settings of a file, in its order.
pub struct Source(Vec<Setting>);

impl Source {
    pub fn new(root: &Node) -> Source {
        let mut settings = Vec::new();
        if let Node::Map(entries) = root {
            flatten("", entries, &mut settings);
        }
        Source(settings)
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the file has the key, or keys below it.
    pub fn has(&self, key: &str) -> bool {
        self.0.iter().any(|setting| {
            setting.key == key || setting.key.strip_prefix(key).is_some_and(|rest| rest.starts_with('.'))
        })
    }

    /// Whether any key ends so.
    pub fn has_last(&self, name: &str) -> bool {
        self.0.iter().any(|setting| setting.key.rsplit('.').next() == Some(name))
    }

    /// A setting that says something, without taking it.
    pub fn peek(&self, key: &str) -> Option<&Setting> {
        self.0.iter().find(|setting| setting.key == key && setting.node != Node::Null)
    }

    /// Takes a setting; `None` where the key is absent or set to nothing.
    pub fn take(&mut self, key: &str) -> Option<Setting> {
        let setting = self.0.iter_mut().find(|setting| setting.key == key && setting.node != Node::Null)?;
        setting.is_taken = true;
        Some(setting.clone())
    }

    /// What somebody has taken.
    pub fn taken(&self) -> impl Iterator<Item = &Setting> {
        self.0.iter().filter(|setting| setting.is_taken)
    }

    /// What nobody has taken.
    pub fn left(&self) -> impl Iterator<Item = &Setting> {
        self.0.iter().filter(|setting| !setting.is_taken)
    }
}

fn flatten(prefix: &str, entries: &[Entry], settings: &mut Vec<Setting>) {
    for entry in entries {
        let key = if prefix.is_empty() { entry.key.clone() } else { format!("{prefix}.{}", entry.key) };
        match &entry.node {
            Node::Map(inner) if !inner.is_empty() => flatten(&key, inner, settings),
            node => settings.push(Setting { key, line: entry.line, node: node.clone(), is_taken: false }),
        }
    }
}

impl Setting {
    /// A setting inside a list, which no key of its own leads to.
    pub fn at(key: &str, line: usize, node: Node) -> Setting {
        Setting { key: key.to_owned(), line, node, is_taken: true }
    }

    /// A number, also one in quotes.
    pub fn number(&self) -> Option<f64> {
        match &self.node {
            Node::Whole(whole) => Some(*whole as f64),
            Node::Number(number) => Some(*number),
            Node::Text(text) => text.trim().parse().ok().filter(|number: &f64| number.is_finite()),
            _ => None,
        }
    }

    /// The same as a value, without a point where it has none.
    pub fn value(&self) -> Option<Value> {
        let is_whole = |number: f64| number.fract() == 0.0 && (0.0..1e15).contains(&number);
        self.number().map(|number| match self.node {
            Node::Number(_) => Value::Number(number),
            _ if is_whole(number) => Value::Whole(number as u64),
            _ => Value::Number(number),
        })
    }

    /// A whole number from zero on, also `3.0`.
    pub fn whole(&self) -> Option<u64> {
        let number = self.number()?;
        (number.fract() == 0.0 && (0.0..1e15).contains(&number)).then_some(number as u64)
    }

    pub fn switch(&self) -> Option<bool> {
        match &self.node {
            Node::Switch(on) => Some(*on),
            Node::Text(text) => text.to_ascii_lowercase().parse().ok(),
            _ => None,
        }
    }

    /// A text, or a number that was meant as one.
    pub fn text(&self) -> Option<String> {
        match &self.node {
            Node::Text(text) => Some(text.clone()),
            Node::Whole(whole) => Some(whole.to_string()),
            _ => None,
        }
    }

    /// A list of texts; a single one may have commas between its parts.
    pub fn texts(&self) -> Option<Vec<String>> {
        let of_item = |item: &Node| match item {
            Node::Text(text) => Some(text.clone()),
            _ => None,
        };
        match &self.node {
            Node::List(items) => items.iter().map(of_item).collect(),
            Node::Text(text) => Some(text.split(',').map(|part| part.trim().to_owned()).collect()),
            _ => None,
        }
    }
}

/// A value inside a map of a list, such as a data set's path.
pub fn get<'a>(entries: &'a [Entry], key: &str) -> Option<&'a Node> {
    entries.iter().find(|entry| entry.key == key).map(|entry| &entry.node).filter(|node| **node != Node::Null)
}
