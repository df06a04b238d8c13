//! One row of a data file: which format it has, and what it says.

mod alpaca;
mod fields;
mod messages;
mod preference;
mod prompt;

use std::path::Path;

use serde_json::Value;
use text::{Conversation, Message};

use super::reader::Place;
use crate::error::{Error, Result};
use crate::options::{Format, Source};
use fields::Fields;
pub use fields::KEYS;
pub use preference::Preference;

/// What a row says.
#[derive(Debug, Clone, PartialEq)]
pub enum Row {
    /// A conversation.
    Chat(Chat),
    /// A text, every token of which is learned.
    Text(String),
    /// Two answers, one of which is preferred.
    Preference(Preference),
}

/// A conversation, and what of it is learned beyond what the recipe says.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Chat {
    /// Messages and tools.
    pub conversation: Conversation,
    /// How much each message counts; empty where all count alike.
    pub weights: Vec<f32>,
    /// The first message that is learned from: those before it are given, whoever says them.
    pub learned_from: usize,
}

/// What is wrong with a row, without its place.
type Fault = String;

impl Row {
    /// Parses a row, which must have an answer that can be learned if it is a conversation.
    ///
    /// # Errors
    /// [`Error::Row`] and [`Error::NoAssistantTurn`], with file and line.
    pub fn parse(source: &Source, place: Place, bytes: &[u8]) -> Result<Self> {
        let path = source.path.as_path();
        let fault = |line: u64, reason: String| Error::Row { path: path.into(), line, reason };
        let json: Value = serde_json::from_slice(bytes).map_err(|error| {
            let line = place.line + (error.line() as u64).saturating_sub(1);
            fault(line, format!("broken JSON at column {}: {}", error.column(), without_place(&error)))
        })?;
        let Value::Object(row) = json else {
            return Err(fault(place.line, format!("expected an object, found {}", kind_of(&json))));
        };
        let row = Self::from_fields(source.format, Fields::new(row, &source.fields))
            .map_err(|reason| fault(place.line, reason))?;
        row.check_answer(path, place)?;
        Ok(row)
    }

    fn from_fields(format: Format, mut row: Fields<'_>) -> std::result::Result<Self, Fault> {
        match if format == Format::Auto { row.format()? } else { format } {
            Format::Auto | Format::Messages => messages::parse(&mut row, "messages").map(Self::Chat),
            Format::ShareGpt => messages::parse(&mut row, "conversations").map(Self::Chat),
            Format::Alpaca => alpaca::parse(&mut row).map(Self::Chat),
            Format::PromptCompletion => prompt::parse(&mut row).map(Self::Chat),
            Format::Text => row.text("text").map(Self::Text),
            Format::Preference => preference::parse(&mut row).map(Self::Preference),
        }
    }

    fn check_answer(&self, path: &Path, place: Place) -> Result<()> {
        let Self::Chat(chat) = self else { return Ok(()) };
        match chat.conversation.messages.iter().any(is_answer) {
            true => Ok(()),
            false => Err(Error::NoAssistantTurn { path: path.into(), line: place.line }),
        }
    }

    /// The conversation that is to be learned, of a preference that with the better answer; `None` of a text.
    pub fn into_conversation(self) -> Option<Conversation> {
        match self {
            Self::Chat(chat) => Some(chat.conversation),
            Self::Preference(preference) => Some(preference.with(&preference.chosen)),
            Self::Text(_) => None,
        }
    }

    /// Name of the kind; all rows of a run are of one kind.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Chat(_) => "messages",
            Self::Text(_) => "text",
            Self::Preference(_) => "preference",
        }
    }
}

fn is_answer(message: &Message) -> bool {
    message.role == "assistant"
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The parser's message without its own line and column, which count from the row's start.
fn without_place(error: &serde_json::Error) -> String {
    let message = error.to_string();
    message.split(" at line ").next().unwrap_or(&message).to_owned()
}

#[cfg(test)]
mod tests;
