//! Where the assistant speaks in a rendered conversation, found from the template's structure.
//!
//! Templates that mark it with `{% generation %}` are taken at their word. For the others, the conversation is
//! rendered with marks around the assistant's content (where is the content?), and up to each assistant's turn
//! with the generation prompt (what will the model be given?). What the model has to say is everything behind
//! that prompt, up to and with the control token that closes the turn.

use std::ops::Range;

use crate::guard::{Marks, around, positions, without};
use crate::{Chat, ChatTemplate, Conversation, Error, GenerationPrompt, Result};

const ASSISTANT: &str = "assistant";
const END_OF_THOUGHTS: &str = "</think>";

/// What an assistant says, in bytes of the rendered text, the token that closes the turn included.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Spoken {
    pub range: Range<usize>,
    /// The token that closes it; a turn of another's may have none.
    pub end_token: Option<u32>,
    /// Whose turn it is, where the template leaves no doubt.
    pub message: Option<usize>,
}

/// A rendered conversation with what was found in it.
pub(crate) struct Rendering<'a> {
    pub template: &'a ChatTemplate,
    pub chat: Chat<'a>,
    pub text: &'a str,
    /// The template's control tokens.
    pub controls: &'a [(u32, Range<usize>)],
    pub marks: Marks,
}

/// Which of the assistant's turns are wanted.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    All,
    Last,
    /// Those from this message on.
    From(usize),
}

impl Rendering<'_> {
    /// The assistant's turns.
    pub fn turns(&self, which: Which) -> Result<Vec<Spoken>> {
        let mut assistants = self.said_by(|role| role == ASSISTANT);
        let Some(&last) = assistants.last() else {
            return Err(Error::NoTarget { reason: "no message is an assistant's".to_owned() });
        };
        let first = match which {
            Which::All => 0,
            Which::Last => last,
            Which::From(first) => first.min(last),
        };
        if self.template.marks_generation() {
            return self.generated(first, &assistants);
        }
        let contents = self.contents(&assistants);
        assistants.retain(|&index| index >= first);
        let mut turns: Vec<Spoken> = Vec::with_capacity(assistants.len());
        for index in assistants {
            let turn = self.turn(index, contents.as_ref().and_then(|contents| contents[index].clone()))?;
            if turns.last().is_some_and(|before| before.range.end > turn.range.start) {
                return Err(self.error(index, "it begins before the turn in front of it has ended"));
            }
            turns.push(turn);
        }
        Ok(turns)
    }

    /// What messages of other roles say, each with the control token that stands right behind it.
    pub fn others(&self, is_wanted: impl Fn(&str) -> bool) -> Result<Vec<Spoken>> {
        let speakers = self.said_by(|role| role != ASSISTANT && is_wanted(role));
        let Some(&first) = speakers.first() else { return Ok(Vec::new()) };
        let contents = self.contents(&speakers);
        let contents =
            contents.ok_or_else(|| self.error(first, "its content cannot be found in the rendered text"))?;
        let spoken = |index: usize| {
            let Content { start, end } = contents[index].clone()?;
            let closing = self.controls.iter().find(|(_, place)| place.start >= end);
            let closing = closing.filter(|(_, place)| self.text[end..place.start].trim().is_empty());
            let range = start.unwrap_or(end)..closing.map_or(end, |(_, place)| place.end);
            Some(Spoken { range, end_token: closing.map(|(token, _)| *token), message: Some(index) })
        };
        Ok(speakers.into_iter().filter_map(spoken).collect())
    }

    fn said_by(&self, is_wanted: impl Fn(&str) -> bool) -> Vec<usize> {
        let messages = self.chat.messages.iter().enumerate();
        messages.filter(|(_, message)| is_wanted(&message.role)).map(|(index, _)| index).collect()
    }

    fn error(&self, index: usize, reason: &str) -> Error {
        let role = self.chat.messages[index].role.clone();
        Error::Turn { index, role, reason: reason.to_owned() }
    }

    /// What the template's own `{% generation %}` blocks hold.
    fn generated(&self, first: usize, assistants: &[usize]) -> Result<Vec<Spoken>> {
        let last = assistants[assistants.len() - 1];
        let Marks { open, close, .. } = self.marks;
        let marked = self.template.render_marked(self.chat, open, close)?;
        if without(&marked, &[open, close]) != self.text {
            return Err(self.error(last, "the template renders it differently each time"));
        }
        let mut turns = Vec::new();
        for pair in positions(&marked, &[open, close]).chunks(2) {
            match *pair {
                [(first, start), (second, end)] if first == open && second == close => {
                    turns.extend(self.closed(start..end));
                }
                _ => return Err(self.error(last, "the template's generation blocks lie within each other")),
            }
        }
        if turns.len() == assistants.len() {
            turns.iter_mut().zip(assistants).for_each(|(turn, &index)| turn.message = Some(index));
        }
        if first > 0 {
            let before = self.prefix(first, GenerationPrompt::Omit).map_or(0, |text| text.len());
            let wanted = assistants.iter().filter(|&&index| index >= first).count();
            let from = turns.iter().position(|turn| turn.range.start >= before && before > 0);
            turns.drain(..from.unwrap_or(turns.len().saturating_sub(wanted)));
        }
        match turns.is_empty() {
            true => Err(self.error(last, "the template marks no generated text that a control token closes")),
            false => Ok(turns),
        }
    }

    /// A marked stretch, with the control token that closes it, within or right behind it.
    fn closed(&self, range: Range<usize>) -> Option<Spoken> {
        let spoken = range.start + self.text[range.clone()].trim_end().len();
        let within = self
            .controls
            .iter()
            .rev()
            .find(|(_, place)| place.end <= range.end && place.start >= range.start);
        let within = within.filter(|(_, place)| place.end >= spoken);
        let behind = || {
            let next = self.controls.iter().find(|(_, place)| place.start >= spoken)?;
            self.text[spoken..next.1.start].trim().is_empty().then_some(next)
        };
        let (end_token, place) = within.or_else(behind)?;
        let range = range.start..place.end.max(range.end.min(place.end));
        Some(Spoken { range, end_token: Some(*end_token), message: None })
    }

    /// Where the content of each of these messages stands; `None` where the template does more with content than to
    /// put it somewhere once.
    fn contents(&self, speakers: &[usize]) -> Option<Vec<Option<Content>>> {
        let Marks { open, close, .. } = self.marks;
        let messages = self.chat.messages;
        let speaks = |index: &usize| !messages[*index].content.trim().is_empty();
        let speakers: Vec<usize> = speakers.iter().copied().filter(speaks).collect();
        for opening in [Opening::Front, Opening::BehindThoughts, Opening::Nowhere] {
            let mut marked = Conversation { messages: messages.to_vec(), tools: self.chat.tools.cloned() };
            for &index in &speakers {
                let content = &mut marked.messages[index].content;
                *content = opening.marked(content, self.marks);
            }
            let Ok(rendered) = self.template.render(&marked, GenerationPrompt::Omit) else { continue };
            if without(&rendered, &[open, close]) != self.text {
                continue;
            }
            let found = positions(&rendered, &[open, close]);
            let per_speaker = if opening == Opening::Nowhere { 1 } else { 2 };
            let in_order = found
                .iter()
                .enumerate()
                .all(|(at, (mark, _))| (*mark == open) == (per_speaker == 2 && at % 2 == 0));
            if !in_order || found.len() != per_speaker * speakers.len() {
                continue;
            }
            let mut contents = vec![None; messages.len()];
            for (&index, places) in speakers.iter().zip(found.chunks(per_speaker)) {
                let start = places.first().filter(|(mark, _)| *mark == open).map(|(_, at)| *at);
                contents[index] = places.last().map(|(_, end)| Content { start, end: *end });
            }
            return Some(contents);
        }
        None
    }

    fn turn(&self, index: usize, content: Option<Content>) -> Result<Spoken> {
        let whole = self.prefix(index + 1, GenerationPrompt::Omit).map(|text| text.len());
        let start = self.start(index, content.as_ref(), whole)?;
        let calls = self.chat.messages[index].extra.get("tool_calls").is_some_and(|calls| !calls.is_null());
        let within = |place: &Range<usize>| place.start >= start && whole.is_none_or(|end| place.start < end);
        let closing = match (content, whole) {
            (Some(content), _) if !calls => {
                self.controls.iter().find(|(_, place)| place.start >= content.end)
            }
            (_, Some(_)) => self.controls.iter().rev().find(|(_, place)| within(place)),
            _ => return Err(self.error(index, "what follows it cannot be told from it in the rendered text")),
        };
        let closing = closing.filter(|(_, place)| within(place));
        let (end_token, place) = closing.ok_or_else(|| {
            self.error(
                index,
                "the template puts no control token behind it, so that a model could not learn to stop",
            )
        })?;
        Ok(Spoken { range: start..place.end, end_token: Some(*end_token), message: Some(index) })
    }

    /// Where the assistant begins to speak: behind the generation prompt, or else with the content.
    fn start(&self, index: usize, content: Option<&Content>, whole: Option<usize>) -> Result<usize> {
        let prompt = self.prefix(index, GenerationPrompt::Add);
        let without_prompt = self.template.render(self.chat.first(index), GenerationPrompt::Omit).ok();
        if let Some(prompt) = prompt.as_ref().filter(|prompt| without_prompt.as_ref() != Some(*prompt)) {
            return Ok(prompt.len());
        }
        // Without one, the turn is all that the message adds, if that is speech alone...
        let adds = prompt.map(|prompt| prompt.len()).filter(|start| {
            let end = content.map(|content| content.end).or(whole);
            let header =
                |place: &Range<usize>| place.start >= *start && end.is_some_and(|end| place.end < end);
            !self.controls.iter().any(|(_, place)| header(place))
        });
        // ... or else the content, with the space that may stand between it and the template's tokens.
        let speaks = || Some(self.text[..content?.start?].trim_end_matches(' ').len());
        adds.or_else(speaks)
            .ok_or_else(|| self.error(index, "its beginning cannot be told from the template's own text"))
    }

    /// The rendering of the first messages, if the whole conversation's begins with it.
    fn prefix(&self, n_messages: usize, prompt: GenerationPrompt) -> Option<String> {
        let rendered = self.template.render(self.chat.first(n_messages), prompt).ok()?;
        self.text.starts_with(&rendered).then_some(rendered)
    }
}

/// Where the mark of a content's beginning is put: what a template cuts off, it cuts off in front.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Opening {
    Front,
    /// Behind the thoughts, which DeepSeek's templates drop from every turn.
    BehindThoughts,
    Nowhere,
}

impl Opening {
    fn marked(self, content: &str, Marks { open, close, .. }: Marks) -> String {
        let said = content.rsplit_once(END_OF_THOUGHTS).filter(|(_, said)| !said.trim().is_empty());
        match (self, said) {
            (Opening::BehindThoughts, Some((thoughts, said))) => {
                format!("{thoughts}{END_OF_THOUGHTS}{open}{}", around(said, None, Some(close)))
            }
            (Opening::Nowhere, _) => around(content, None, Some(close)),
            _ => around(content, Some(open), Some(close)),
        }
    }
}

/// Where a message's content stands in the rendered text.
#[derive(Clone, Debug)]
struct Content {
    /// Its first byte, where the template keeps its beginning.
    start: Option<usize>,
    end: usize,
}
