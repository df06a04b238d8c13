//! One row of a data file: which kind it is, and what it says.

use std::path::Path;

use serde_json::{Map, Value};
use text::Message;

use super::reader::Place;
use crate::error::{Error, Result};

/// What a row says.
#[derive(Debug, Clone)]
pub enum Row {
    /// `{"messages": [{"role": ..., "content": ...}, ...]}`.
    Chat(Vec<Message>),
    /// `{"text": ...}`, every token of which is learned.
    Text(String),
}

impl Row {
    /// Parses a row, which must have an assistant turn if it is a conversation.
    ///
    /// # Errors
    /// [`Error::Row`] and [`Error::NoAssistantTurn`], with file and line.
    pub fn parse(path: &Path, place: Place, bytes: &[u8]) -> Result<Self> {
        let fault = |line: u64, reason: String| Error::Row { path: path.into(), line, reason };
        let json: Value = serde_json::from_slice(bytes).map_err(|error| {
            let line = place.line + (error.line() as u64).saturating_sub(1);
            fault(line, format!("broken JSON at column {}: {}", error.column(), without_place(&error)))
        })?;
        let Value::Object(mut row) = json else {
            return Err(fault(place.line, format!("expected an object, found {}", kind_of(&json))));
        };
        match (row.remove("messages"), row.remove("text")) {
            (Some(messages), None) => {
                let messages = parse_messages(messages).map_err(|reason| fault(place.line, reason))?;
                if !messages.iter().any(|message| message.role == "assistant") {
                    return Err(Error::NoAssistantTurn { path: path.into(), line: place.line });
                }
                Ok(Self::Chat(messages))
            }
            (None, Some(Value::String(text))) => Ok(Self::Text(text)),
            (None, Some(other)) => {
                Err(fault(place.line, format!("`text` is {}, expected a string", kind_of(&other))))
            }
            (Some(_), Some(_)) => Err(fault(place.line, "the row has both `messages` and `text`".into())),
            (None, None) => Err(fault(place.line, missing_keys(&row))),
        }
    }

    /// Name of the kind; all rows of a file are of one kind.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Chat(_) => "messages",
            Self::Text(_) => "text",
        }
    }
}

fn parse_messages(messages: Value) -> std::result::Result<Vec<Message>, String> {
    let Value::Array(messages) = messages else {
        return Err(format!("`messages` is {}, expected a list", kind_of(&messages)));
    };
    if messages.is_empty() {
        return Err("`messages` is empty".into());
    }
    messages.into_iter().enumerate().map(|(index, message)| parse_message(index, message)).collect()
}

fn parse_message(index: usize, message: Value) -> std::result::Result<Message, String> {
    for key in ["role", "content"] {
        match message.get(key) {
            Some(Value::String(_)) => {}
            Some(other) => {
                return Err(format!(
                    "`{key}` of message {} is {}, expected a string",
                    index + 1,
                    kind_of(other)
                ));
            }
            None => return Err(format!("message {} has no `{key}`", index + 1)),
        }
    }
    serde_json::from_value(message).map_err(|error| format!("message {}: {error}", index + 1))
}

fn missing_keys(row: &Map<String, Value>) -> String {
    const SHOWN: usize = 6;
    let names: Vec<_> = row.keys().take(SHOWN).map(|key| format!("`{}`", key.escape_debug())).collect();
    let more = if row.len() > SHOWN { ", ..." } else { "" };
    match names.is_empty() {
        true => "the row is empty".into(),
        false => format!("the row has neither `messages` nor `text`, but {}{more}", names.join(", ")),
    }
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
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(row: &str, expected: Expect) {
        let place = Place { line: 7, offset: 0, bytes: row.len() as u32 };
        let found = match Row::parse(Path::new("x.jsonl"), place, row.as_bytes()) {
            Ok(Row::Chat(messages)) => format!("chat of {}", messages.len()),
            Ok(Row::Text(text)) => format!("text {text:?}"),
            Err(error) => error.to_string(),
        };
        expected.assert_eq(&found);
    }

    #[test]
    fn kinds_are_told_apart_by_their_keys() {
        check(
            r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b"}]}"#,
            expect!["chat of 2"],
        );
        check(r#"{"text":"once","id":3}"#, expect![[r#"text "once""#]]);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        check(r#"{"text":"#, expect!["x.jsonl:7: broken JSON at column 8: EOF while parsing a value"]);
        check("{\n\"text\": }", expect!["x.jsonl:8: broken JSON at column 9: expected value"]);
        check("[]", expect!["x.jsonl:7: expected an object, found a list"]);
        check("{}", expect!["x.jsonl:7: the row is empty"]);
        check(
            r#"{"a":1,"b":2}"#,
            expect!["x.jsonl:7: the row has neither `messages` nor `text`, but `a`, `b`"],
        );
        check(r#"{"text":4}"#, expect!["x.jsonl:7: `text` is a number, expected a string"]);
        check(r#"{"messages":[]}"#, expect!["x.jsonl:7: `messages` is empty"]);
        check(r#"{"messages":"x"}"#, expect!["x.jsonl:7: `messages` is a string, expected a list"]);
        check(r#"{"messages":[{"role":"user"}]}"#, expect!["x.jsonl:7: message 1 has no `content`"]);
        check(
            r#"{"messages":[{"role":"assistant","content":null}]}"#,
            expect!["x.jsonl:7: `content` of message 1 is null, expected a string"],
        );
        check(
            r#"{"messages":[{"role":"user","content":"a"}]}"#,
            expect!["x.jsonl:7: the conversation has no assistant turn"],
        );
    }
}
