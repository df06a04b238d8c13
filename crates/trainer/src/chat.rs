//! A conversation: what was said, who answers, and rows for training that come of it.

use std::io::Write;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use formats::observe::Observer;
use model::Cpu;
use model::generate::{Capacity, Dialogue, Progress, Request, SamplerOptions, StopReason};
use serde::Serialize;
use text::Message;

use crate::error::{Error, Result};
use crate::event::{Event, Weights};
use crate::subject::{Loaded, Subject};

/// Who answers.
pub trait Speaker {
    /// Tokens of prompt and answer that it holds.
    fn context_tokens(&self) -> usize;

    /// Tokens of a conversation up to where the answer begins.
    ///
    /// # Errors
    /// Where the template refuses it.
    fn prompt_tokens(&self, messages: &[Message]) -> Result<usize>;

    /// Answers; `heard` gets every piece of text as it comes, whole characters only, and may break off.
    ///
    /// # Errors
    /// [`Error::ContextFull`] when the conversation leaves no room for an answer; what the engine meets.
    fn answer(
        &mut self,
        messages: &[Message],
        sampling: &Sampling,
        heard: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Reply>;
}

/// How answers are chosen.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Temperature, filters and seed.
    pub sampler: SamplerOptions,
    /// Longest answer; `None`: to the end of the context.
    pub max_tokens: Option<usize>,
}

/// An answer and what it took.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Reply {
    /// The text.
    pub text: String,
    /// Why it ended.
    pub end: End,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of these that an earlier turn had read.
    pub kept_tokens: usize,
    /// Tokens of the answer.
    pub answer_tokens: usize,
    /// Until the prompt was read.
    pub prompt_seconds: f64,
    /// From there on.
    pub answer_seconds: f64,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// By itself.
    Turn,
    /// As many tokens as asked for.
    MaxTokens,
    /// The context is full.
    Context,
    /// Somebody broke it off.
    Cancelled,
}

/// What was said so far.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Conversation {
    system: Option<String>,
    turns: Vec<Message>,
}

impl Conversation {
    /// A conversation that has not begun.
    pub fn new(system: Option<String>) -> Conversation {
        Conversation { system: system.filter(|system| !system.is_empty()), turns: Vec::new() }
    }

    /// All messages, the system's first.
    pub fn messages(&self) -> Vec<Message> {
        let system = self.system.as_ref().map(|text| Message::new("system", text.as_str()));
        system.into_iter().chain(self.turns.iter().cloned()).collect()
    }

    /// Forgets what was said; the system message stays.
    pub fn reset(&mut self) {
        self.turns.clear();
    }

    /// Sets or, with nothing, removes the system message, and forgets what was said under the other one.
    pub fn set_system(&mut self, text: &str) {
        *self = Conversation::new(Some(text.to_owned()));
    }

    /// Asks `speaker`; what cannot be answered is not part of the conversation, what was broken off is, so far as it came.
    ///
    /// # Errors
    /// As [`Speaker::answer`].
    pub fn ask(
        &mut self,
        question: &str,
        speaker: &mut dyn Speaker,
        sampling: &Sampling,
        heard: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Reply> {
        self.turns.push(Message::new("user", question));
        let reply = speaker.answer(&self.messages(), sampling, heard);
        match &reply {
            Ok(reply) if reply.end != End::Cancelled || !reply.text.is_empty() => {
                self.turns.push(Message::new("assistant", reply.text.as_str()));
            }
            _ => drop(self.turns.pop()),
        }
        reply
    }

    /// Takes the last answer and its question back, and gives the question; `None` before the first answer.
    pub fn take_back(&mut self) -> Option<String> {
        let at = self.turns.len().checked_sub(2)?;
        let question = self.turns.get(at).map(|message| message.content.clone());
        self.turns.truncate(at);
        question
    }

    /// Whether there is an answer that could be learnt.
    pub fn has_answer(&self) -> bool {
        !self.turns.is_empty()
    }

    /// Appends the conversation to a file as one row of training data.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn append_to(&self, path: &Path) -> Result<()> {
        let failed = |source| Error::Io { path: path.to_owned(), source };
        let row = serde_json::json!({ "messages": self.messages() });
        let mut line = format!("{row}\n");
        // A file that somebody left without a line end would swallow the row.
        let before = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(failed(error)),
        };
        if before.last().is_some_and(|&last| last != b'\n') {
            line.insert(0, '\n');
        }
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path).map_err(failed)?;
        file.write_all(line.as_bytes()).and_then(|()| file.sync_data()).map_err(failed)
    }
}

/// Base and adapter as a speaker: this program's own decoding, which reads of each turn only what is new.
pub struct OwnSpeaker {
    subject: Subject,
    loaded: Loaded,
    dialogue: Dialogue<Cpu>,
    weights: Weights,
}

impl OwnSpeaker {
    /// Brings everything into memory; a context of `n_tokens`, or the most up to [`USUAL_CONTEXT`] that the budget holds.
    ///
    /// # Errors
    /// [`Error::BudgetTooSmall`]; [`Error::Option`] for a base without a chat template or a context that it does not
    /// handle; what loading meets.
    pub fn new(
        subject: Subject,
        n_tokens: Option<usize>,
        observer: &mut dyn Observer<Event>,
    ) -> Result<OwnSpeaker> {
        if subject.template().is_none() {
            let reason =
                "has no chat template: it can be trained on plain text, but not talked to".to_owned();
            return Err(Error::Option { key: "model.base", reason });
        }
        let n_tokens = context(&subject, n_tokens)?;
        let loaded = subject.load(Capacity { n_sequences: 1, n_tokens }, observer)?;
        let dialogue = Dialogue::new(loaded.base.clone(), loaded.lora(), n_tokens)?;
        let weights = if subject.has_adapter() { Weights::Adapter } else { Weights::Base };
        Ok(OwnSpeaker { subject, loaded, dialogue, weights })
    }

    /// Which weights answer.
    pub fn weights(&self) -> Weights {
        self.weights
    }

    /// Switches the adapter off and on; `None` where there is none.
    pub fn toggle(&mut self) -> Option<Weights> {
        if !self.subject.has_adapter() {
            return None;
        }
        // Over a base that is itself only with what the adapter began with, both have an adapter.
        self.dialogue.forget();
        self.weights = match self.weights {
            Weights::Base => Weights::Adapter,
            Weights::Adapter => Weights::Base,
        };
        Some(self.weights)
    }

    /// The memory that it takes.
    ///
    /// # Errors
    /// As [`Subject::room`].
    pub fn total_bytes(&self) -> Result<u64> {
        let n_tokens = self.dialogue.capacity_tokens();
        Ok(self.subject.room(Capacity { n_sequences: 1, n_tokens })?.total_bytes)
    }

    fn prompt(&self, messages: &[Message]) -> Result<Vec<u32>> {
        let files = &self.subject.files;
        let template = files.template.as_ref().expect("a base without a template is refused at the start");
        Ok(text::encode_prompt(&files.tokenizer, template, messages)?)
    }
}

/// The context where nobody asks for another.
pub const USUAL_CONTEXT: usize = 4096;

/// No one talks in less.
const LEAST_CONTEXT: usize = 256;

fn context(subject: &Subject, asked: Option<usize>) -> Result<usize> {
    let limit = subject.max_positions();
    if let Some(asked) = asked {
        if asked == 0 || asked > limit {
            let reason = format!("is {asked}; the base handles 1 to {limit} tokens");
            return Err(Error::Option { key: "expert.num_ctx", reason });
        }
        return Ok(asked);
    }
    let mut n_tokens = USUAL_CONTEXT.min(limit);
    while n_tokens / 2 >= LEAST_CONTEXT && !subject.room(Capacity { n_sequences: 1, n_tokens })?.fits() {
        n_tokens /= 2;
    }
    Ok(n_tokens)
}

impl Speaker for OwnSpeaker {
    fn context_tokens(&self) -> usize {
        self.dialogue.capacity_tokens()
    }

    fn prompt_tokens(&self, messages: &[Message]) -> Result<usize> {
        Ok(self.prompt(messages)?.len())
    }

    fn answer(
        &mut self,
        messages: &[Message],
        sampling: &Sampling,
        heard: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> Result<Reply> {
        let started = Instant::now();
        let prompt = self.prompt(messages)?;
        let context_tokens = self.context_tokens();
        if prompt.len() >= context_tokens {
            return Err(Error::ContextFull { prompt_tokens: prompt.len(), context_tokens });
        }
        let room = context_tokens - prompt.len();
        let max_new_tokens = sampling.max_tokens.map_or(room, |most| most.min(room));
        let request = Request { stop: self.subject.stop(), sampler: sampling.sampler, max_new_tokens };
        let mut stream = Some(self.subject.tokenizer().stream());
        let (mut text, mut prompt_seconds) = (String::new(), 0.0);
        let mut take = |progress| match progress {
            // An empty piece asks whether to go on.
            Progress::Prompt { .. } => {
                prompt_seconds = started.elapsed().as_secs_f64();
                heard("")
            }
            Progress::Token { id, .. } => {
                let piece = stream.as_mut().and_then(|stream| stream.push(id)).unwrap_or_default();
                text.push_str(&piece);
                heard(&piece)
            }
        };
        let adapter = self.loaded.adapter(self.weights);
        let generated = self.dialogue.generate(adapter, &prompt, &request, &mut take)?;
        let rest = stream.take().and_then(text::DecodeStream::finish).unwrap_or_default();
        if !rest.is_empty() {
            text.push_str(&rest);
            // Nothing is left to break off.
            let _ = heard(&rest);
        }
        let end = match generated.reason {
            StopReason::Stop => End::Turn,
            StopReason::Cancelled => End::Cancelled,
            StopReason::Length if generated.ids.len() == room => End::Context,
            StopReason::Length => End::MaxTokens,
        };
        Ok(Reply {
            text,
            end,
            prompt_tokens: prompt.len(),
            kept_tokens: self.dialogue.n_kept(),
            answer_tokens: generated.ids.len(),
            prompt_seconds,
            answer_seconds: started.elapsed().as_secs_f64() - prompt_seconds,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Answers with the number of messages; a question of `long` does not fit.
    struct Counter;

    impl Speaker for Counter {
        fn context_tokens(&self) -> usize {
            8
        }

        fn prompt_tokens(&self, messages: &[Message]) -> Result<usize> {
            Ok(messages.len())
        }

        fn answer(
            &mut self,
            messages: &[Message],
            _: &Sampling,
            heard: &mut dyn FnMut(&str) -> ControlFlow<()>,
        ) -> Result<Reply> {
            if messages.last().is_some_and(|message| message.content == "long") {
                return Err(Error::ContextFull { prompt_tokens: 9, context_tokens: 8 });
            }
            let text = messages.len().to_string();
            let end = if heard(&text).is_break() { End::Cancelled } else { End::Turn };
            Ok(Reply {
                text,
                end,
                prompt_tokens: 1,
                kept_tokens: 0,
                answer_tokens: 1,
                prompt_seconds: 0.0,
                answer_seconds: 0.0,
            })
        }
    }

    fn ask(conversation: &mut Conversation, question: &str) -> Result<Reply> {
        let sampling = Sampling { sampler: SamplerOptions::GREEDY, max_tokens: None };
        conversation.ask(question, &mut Counter, &sampling, &mut |_| ControlFlow::Continue(()))
    }

    #[test]
    fn a_conversation_keeps_what_was_answered_and_can_be_taken_back() {
        let mut conversation = Conversation::new(Some("Count.".into()));
        assert_eq!(ask(&mut conversation, "a").unwrap().text, "2");
        assert_eq!(ask(&mut conversation, "b").unwrap().text, "4");
        assert!(ask(&mut conversation, "long").is_err());
        assert_eq!(conversation.messages().len(), 5);
        assert_eq!(conversation.take_back().as_deref(), Some("b"));
        assert_eq!(conversation.messages().len(), 3);
        conversation.set_system("");
        assert_eq!((conversation.messages().len(), conversation.take_back()), (0, None));
    }

    #[test]
    fn a_saved_conversation_is_a_row_of_training_data() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.jsonl");
        std::fs::write(&path, r#"{"messages":[{"role":"assistant","content":"no line end"}]}"#).unwrap();
        let mut conversation = Conversation::new(Some("Count.".into()));
        ask(&mut conversation, "a \"quoted\"\nline").unwrap();
        conversation.append_to(&path).unwrap();
        conversation.append_to(&path).unwrap();
        let rows = crate::data::conversations(&[crate::options::Source::new(&path)], 9).unwrap();
        assert_eq!(rows.len(), 3);
        assert_eq!(rows[2].messages, conversation.messages());
    }
}
