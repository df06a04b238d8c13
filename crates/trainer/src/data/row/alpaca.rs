//! Alpaca's rows: an instruction, perhaps an input, and the output.

use serde_json::Value;
use text::{Conversation, Message};

use super::fields::Fields;
use super::{Chat, Fault};

/// One turn of the user, instruction and input on lines of their own, and the answer; `history` goes before.
pub fn parse(row: &mut Fields<'_>) -> Result<Chat, Fault> {
    let mut messages = asked(row)?;
    messages.push(Message::new("assistant", row.text("output")?));
    Ok(Chat { conversation: Conversation::from(messages), ..Chat::default() })
}

/// What is answered: system prompt, history, instruction and input.
pub fn asked(row: &mut Fields<'_>) -> Result<Vec<Message>, Fault> {
    let mut messages = Vec::new();
    if let Some(system) = row.optional_text("system")?.filter(|text| !text.is_empty()) {
        messages.push(Message::new("system", system));
    }
    if let Some(history) = row.take("history") {
        let name = row.name("history");
        let wrong = || format!("`{name}` is no list of pairs of question and answer");
        for pair in history.as_array().ok_or_else(wrong)? {
            let texts: Option<Vec<&str>> =
                pair.as_array().and_then(|pair| pair.iter().map(Value::as_str).collect());
            let Some([question, answer]) = texts.as_deref() else { return Err(wrong()) };
            messages.push(Message::new("user", *question));
            messages.push(Message::new("assistant", *answer));
        }
    }
    let instruction = row.text("instruction")?;
    let asked = match row.optional_text("input")?.filter(|input| !input.is_empty()) {
        Some(input) if instruction.is_empty() => input,
        Some(input) => format!("{instruction}\n{input}"),
        None => instruction,
    };
    messages.push(Message::new("user", asked));
    Ok(messages)
}
