//! Lists of messages: OpenAI's `role` and `content`, and ShareGPT's `from` and `value`.

use serde_json::{Map, Value, json};
use text::{Conversation, Message};

use super::fields::Fields;
use super::{Chat, Fault, kind_of};

/// The largest weight of a message.
const LARGEST_WEIGHT: f64 = 1000.0;

/// A row whose conversation stands under `key`.
pub fn parse<'a>(row: &mut Fields<'a>, key: &'a str) -> Result<Chat, Fault> {
    let list = row.take(key).ok_or_else(|| format!("the row has no `{}`", row.name(key)))?;
    let (mut messages, mut weights) = list_of(row, key, list)?;
    if let Some(system) = row.optional_text("system")?.filter(|text| !text.is_empty()) {
        if messages.first().is_some_and(|message| message.role == "system") {
            return Err(format!("the row has both `{}` and a message of that role", row.name("system")));
        }
        messages.insert(0, Message::new("system", system));
        weights.insert(0, 1.0);
    }
    let tools = tools(row)?;
    let chat = Chat { conversation: Conversation { messages, tools }, weights, learned_from: 0 };
    Ok(chat.with_plain_weights())
}

impl Chat {
    /// No weights rather than those that change nothing.
    fn with_plain_weights(mut self) -> Self {
        if self.weights.iter().all(|&weight| weight == 1.0) {
            self.weights.clear();
        }
        self
    }
}

/// Messages, and how much each counts.
pub fn list_of<'a>(row: &Fields<'a>, key: &'a str, list: Value) -> Result<(Vec<Message>, Vec<f32>), Fault> {
    let name = row.name(key);
    let Value::Array(list) = list else {
        return Err(format!("`{name}` is {}, expected a list", kind_of(&list)));
    };
    if list.is_empty() {
        return Err(format!("`{name}` is empty"));
    }
    let messages = list.into_iter().enumerate().map(|(index, message)| {
        let Value::Object(message) = message else {
            return Err(format!("message {} is {}, expected an object", index + 1, kind_of(&message)));
        };
        one(row.within(message)).map_err(|reason| format!("message {} {reason}", index + 1))
    });
    Ok(messages.collect::<Result<Vec<_>, _>>()?.into_iter().unzip())
}

/// The tools that a row offers: a list, or a text that holds one, as ShareGPT files have it.
pub fn tools(row: &mut Fields<'_>) -> Result<Option<Value>, Fault> {
    let name = row.name("tools");
    let tools = match row.take("tools") {
        Some(Value::String(text)) if text.trim().is_empty() => None,
        Some(Value::String(text)) => Some(
            serde_json::from_str(&text).map_err(|error| format!("`{name}` holds broken JSON: {error}"))?,
        ),
        other => other,
    };
    match tools {
        Some(Value::Array(tools)) if tools.is_empty() => Ok(None),
        Some(Value::Array(tools)) => Ok(Some(Value::Array(tools.into_iter().map(as_function).collect()))),
        Some(other) => Err(format!("`{name}` is {}, expected a list of tools", kind_of(&other))),
        None => Ok(None),
    }
}

/// A tool in OpenAI's form, which templates expect; a bare schema of a function is put into it.
fn as_function(tool: Value) -> Value {
    let is_bare = tool.get("name").is_some() && tool.get("function").is_none();
    if is_bare { json!({"type": "function", "function": tool}) } else { tool }
}

fn one(mut message: Fields<'_>) -> Result<(Message, f32), Fault> {
    let (role, content) = match (message.has("role"), message.has("from")) {
        (true, false) => (message.take("role"), message.take("content")),
        (false, true) => return one_of_sharegpt(message),
        (true, true) => return Err(format!("has both `{}` and `from`", message.name("role"))),
        (false, false) => return Err(format!("has no `{}`", message.name("role"))),
    };
    let role = string(role.unwrap_or_default(), message.name("role"))?;
    let name = message.name("content");
    let content = match content {
        Some(content) => text_of(content, name)?,
        None if message.has("tool_calls") => String::new(),
        None => return Err(format!("has no `{name}`")),
    };
    let weight = weight(&mut message)?;
    Ok((Message { role, content, extra: message.into_rest() }, weight))
}

/// `from` and `value`, with the roles of the models that first wrote such files.
fn one_of_sharegpt(mut message: Fields<'_>) -> Result<(Message, f32), Fault> {
    let from = string(message.take("from").unwrap_or_default(), "from")?;
    let value = message.take("value").ok_or("has no `value`")?;
    let value = text_of(value, "value")?;
    let weight = weight(&mut message)?;
    let extra = message.into_rest();
    let message = |role: &str, content, extra| Message { role: role.to_owned(), content, extra };
    let message = match from.as_str() {
        "human" | "user" => message("user", value, extra),
        "gpt" | "assistant" | "model" | "bot" | "chatgpt" => message("assistant", value, extra),
        "system" => message("system", value, extra),
        "observation" | "tool" | "function_response" | "tool_response" => message("tool", value, extra),
        "function_call" | "tool_call" => {
            let calls = calls(&value)?;
            let extra = Map::from_iter(extra.into_iter().chain([("tool_calls".to_owned(), calls)]));
            message("assistant", String::new(), extra)
        }
        _ => {
            return Err(format!(
                "is from `{}`; known are human, gpt, system, function_call, observation",
                from.escape_debug()
            ));
        }
    };
    Ok((message, weight))
}

/// Calls of tools as a text holds them: one `{"name", "arguments"}`, or a list of these.
fn calls(text: &str) -> Result<Value, Fault> {
    let parsed: Value = serde_json::from_str(text)
        .map_err(|error| format!("calls a tool with something that is not JSON: {error}"))?;
    let calls = match parsed {
        Value::Array(calls) => calls,
        call => vec![call],
    };
    let call = |call: Value| match call.get("name") {
        Some(Value::String(_)) => Ok(json!({"type": "function", "function": call})),
        _ => Err("calls a tool without saying its `name`".to_owned()),
    };
    calls.into_iter().map(call).collect::<Result<Vec<_>, _>>().map(Value::Array)
}

/// How much a message counts: a number, or whether it counts at all.
fn weight(message: &mut Fields<'_>) -> Result<f32, Fault> {
    let name = message.name("weight");
    match message.take("weight") {
        None => Ok(1.0),
        Some(Value::Bool(counts)) => Ok(f32::from(u8::from(counts))),
        Some(Value::Number(number)) => {
            let weight = number.as_f64().filter(|weight| (0.0..=LARGEST_WEIGHT).contains(weight));
            weight
                .map(|weight| weight as f32)
                .ok_or_else(|| format!("has a `{name}` that is not between 0 and 1000"))
        }
        Some(other) => Err(format!("has a `{name}` that is {}, expected a number", kind_of(&other))),
    }
}

/// A text, or a list of parts that are texts.
fn text_of(content: Value, name: &str) -> Result<String, Fault> {
    let Value::Array(parts) = content else { return string(content, name) };
    let part = |part: Value| {
        let text =
            ["text", "value", "content"].iter().find_map(|key| part.get(key)?.as_str().map(str::to_owned));
        let kind = part.get("type").and_then(Value::as_str).unwrap_or("text");
        match (kind, text) {
            ("text", Some(text)) => Ok(text),
            ("text", None) => Err(format!("has a part of `{name}` without text")),
            _ => Err(format!(
                "has a part of `{name}` that is `{}`; only text can be learned",
                kind.escape_debug()
            )),
        }
    };
    parts.into_iter().map(part).collect::<Result<Vec<_>, _>>().map(|parts| parts.concat())
}

fn string(value: Value, name: &str) -> Result<String, Fault> {
    match value {
        Value::String(text) => Ok(text),
        other => Err(format!("has a `{name}` that is {}, expected a string", kind_of(&other))),
    }
}
