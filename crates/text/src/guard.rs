//! Private-use characters put into messages before rendering, to be found again in the rendered text.
//!
//! A guard inside the text of a control token keeps content from spelling one; marks around content show where
//! the template puts it. Taken out again, nothing of them is left.

use serde_json::Value;

use crate::{Chat, ChatTemplate, Conversation, Error, GenerationPrompt, Message, Result, Tokenizer};

/// Characters that occur neither in a conversation nor in its template.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Marks {
    pub guard: char,
    pub open: char,
    pub close: char,
}

impl Marks {
    pub fn unused_in(chat: Chat<'_>, template: &ChatTemplate) -> Result<Marks> {
        let used = |mark: char| {
            template.source().contains(mark)
                || chat.messages.iter().any(|message| holds(message, mark))
                || chat.tools.is_some_and(|tools| value_holds(tools, mark))
        };
        let mut unused = ('\u{E000}'..='\u{F8FF}').filter(|mark| !used(*mark));
        match (unused.next(), unused.next(), unused.next()) {
            (Some(guard), Some(open), Some(close)) => Ok(Marks { guard, open, close }),
            _ => {
                Err(Error::Template { reason: "the conversation uses all private-use characters".to_owned() })
            }
        }
    }
}

fn holds(message: &Message, mark: char) -> bool {
    message.content.contains(mark)
        || message.role.contains(mark)
        || message.extra.values().any(|v| value_holds(v, mark))
}

fn value_holds(value: &Value, mark: char) -> bool {
    match value {
        Value::String(text) => text.contains(mark),
        Value::Array(items) => items.iter().any(|item| value_holds(item, mark)),
        Value::Object(entries) => {
            entries.iter().any(|(key, item)| key.contains(mark) || value_holds(item, mark))
        }
        _ => false,
    }
}

/// A rendered conversation.
#[derive(Debug)]
pub(crate) struct Rendered {
    /// The text.
    pub text: String,
    /// The text with guards, which spells no control token but the template's own.
    pub guarded: String,
}

/// Renders a conversation so that the template's own control tokens can be told from those in content.
pub(crate) fn render(
    tokenizer: &Tokenizer,
    template: &ChatTemplate,
    chat: Chat<'_>,
    prompt: GenerationPrompt,
    guard: char,
) -> Result<Rendered> {
    let text = template.render(chat, prompt)?;
    for edges in [true, false] {
        let messages =
            chat.messages.iter().map(|message| guarded(tokenizer, message, guard, edges)).collect();
        let mut tools = chat.tools.cloned();
        tools.iter_mut().for_each(|tools| guard_value(tokenizer, tools, guard));
        let guarded = Conversation { messages, tools };
        if guarded.messages == chat.messages && guarded.tools.as_ref() == chat.tools {
            return Ok(Rendered { guarded: text.clone(), text });
        }
        // A template may look at how content begins or ends, and take another way for a guard there.
        let rendered = template.render(&guarded, prompt);
        if let Some(guarded) = rendered.ok().filter(|guarded| without(guarded, &[guard]) == text) {
            return Ok(Rendered { text, guarded });
        }
    }
    let reason = "it treats content differently when that holds the text of a control token".to_owned();
    Err(Error::Template { reason })
}

/// A message that spells no control token.
fn guarded(tokenizer: &Tokenizer, message: &Message, guard: char, edges: bool) -> Message {
    let mut content = guard_within(tokenizer, &message.content, guard);
    if edges {
        content = guard_edges(tokenizer, &content, guard);
    }
    let mut extra = message.extra.clone();
    extra.values_mut().for_each(|value| guard_value(tokenizer, value, guard));
    Message { role: guard_within(tokenizer, &message.role, guard), content, extra }
}

fn guard_value(tokenizer: &Tokenizer, value: &mut Value, guard: char) {
    match value {
        Value::String(text) => *text = guard_within(tokenizer, text, guard),
        Value::Array(items) => items.iter_mut().for_each(|item| guard_value(tokenizer, item, guard)),
        Value::Object(entries) => {
            let guard_entry = |(key, mut item): (String, Value)| {
                guard_value(tokenizer, &mut item, guard);
                (guard_within(tokenizer, &key, guard), item)
            };
            *entries = std::mem::take(entries).into_iter().map(guard_entry).collect();
        }
        _ => {}
    }
}

/// Puts a guard behind the first character of each control token's text, until none is left.
fn guard_within(tokenizer: &Tokenizer, text: &str, guard: char) -> String {
    let mut text = text.to_owned();
    loop {
        let starts: Vec<usize> = tokenizer.find_control(&text).map(|found| found.start).collect();
        if starts.is_empty() {
            return text;
        }
        for start in starts.into_iter().rev() {
            let first = text[start..].chars().next().map_or(0, char::len_utf8);
            text.insert(start + first, guard);
        }
    }
}

/// Puts a guard where content begins or ends with a part of a control token's text, which the template's own
/// text could complete.
fn guard_edges(tokenizer: &Tokenizer, text: &str, guard: char) -> String {
    let inner = text.trim();
    let parts = |token: &str| token.char_indices().skip(1).map(|(at, _)| at).collect::<Vec<_>>();
    let tokens = || tokenizer.control_tokens().map(|(_, token)| token);
    let opens = tokens().any(|token| parts(token).into_iter().any(|at| inner.starts_with(&token[at..])));
    let closes = tokens().any(|token| parts(token).into_iter().any(|at| inner.ends_with(&token[..at])));
    if inner.is_empty() || !(opens || closes) {
        return text.to_owned();
    }
    around(text, opens.then_some(guard), closes.then_some(guard))
}

/// The text with marks around what is not white space at its ends, so that a template may still trim it.
pub(crate) fn around(text: &str, open: Option<char>, close: Option<char>) -> String {
    let start = text.len() - text.trim_start().len();
    let end = text.trim_end().len();
    let mut marked = text[..start].to_owned();
    marked.extend(open);
    marked.push_str(&text[start..end]);
    marked.extend(close);
    marked.push_str(&text[end..]);
    marked
}

/// The text without marks.
pub(crate) fn without(text: &str, marks: &[char]) -> String {
    text.chars().filter(|character| !marks.contains(character)).collect()
}

/// Where each mark stands, counted in the text without marks.
pub(crate) fn positions(text: &str, marks: &[char]) -> Vec<(char, usize)> {
    let (mut found, mut at) = (Vec::new(), 0);
    for character in text.chars() {
        if marks.contains(&character) {
            found.push((character, at));
        } else {
            at += character.len_utf8();
        }
    }
    found
}
