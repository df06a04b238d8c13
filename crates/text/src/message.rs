//! One message of a conversation, as datasets and HTTP requests carry it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A role and what it says; every other key (`tool_calls`, `name`, ...) is kept for the template.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user`, `assistant`, `tool` or what else the template knows.
    pub role: String,
    /// The text. Absent or null in the source (a call of a tool alone) reads as empty.
    #[serde(default, deserialize_with = "text_or_null")]
    pub content: String,
    /// Further keys, in their order.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Message {
    /// A message without further keys.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Message {
        Message { role: role.into(), content: content.into(), extra: Map::new() }
    }
}

fn text_or_null<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.unwrap_or_default())
}
