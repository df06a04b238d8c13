//! Prompt and completion: of which the completion alone is learned.

use serde_json::Value;
use text::{Conversation, Message};

use super::fields::Fields;
use super::{Chat, Fault, messages};

/// A text is one turn, the user's or the assistant's; a list is several.
pub fn parse(row: &mut Fields<'_>) -> Result<Chat, Fault> {
    let mut all = turns(row, "prompt", "user")?;
    if let Some(system) = row.optional_text("system")?.filter(|text| !text.is_empty()) {
        all.insert(0, Message::new("system", system));
    }
    let learned_from = all.len();
    all.extend(turns(row, "completion", "assistant")?);
    let tools = messages::tools(row)?;
    let conversation = Conversation { messages: all, tools };
    Ok(Chat { conversation, weights: Vec::new(), learned_from })
}

/// The messages under `key`; a text is one of `role`.
pub fn turns<'a>(row: &mut Fields<'a>, key: &'a str, role: &str) -> Result<Vec<Message>, Fault> {
    match row.take(key) {
        None => Err(format!("the row has no `{}`", row.name(key))),
        Some(Value::String(text)) => Ok(vec![Message::new(role, text)]),
        // One message alone, as some files have it.
        Some(message @ Value::Object(_)) => Ok(messages::list_of(row, key, Value::Array(vec![message]))?.0),
        Some(list) => Ok(messages::list_of(row, key, list)?.0),
    }
}
