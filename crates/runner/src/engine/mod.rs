//! What an engine does: load an expert, generate as a stream, give vectors of texts, count tokens, tell its memory, unload.
//!
//! The embedded llama.cpp is one engine; a server elsewhere is another. So a request carries messages, not
//! token ids, and what an engine can't know (the tokens of a text, for one) is an error, never a guess.

mod by_model;
pub mod llama;
pub mod ollama;
pub mod openai;
pub mod processor;
pub mod remote;

use std::ops::ControlFlow;

use serde::{Deserialize, Serialize};
use text::Message;

pub use by_model::{EngineByModel, Servers};

use crate::budget::Place;
use crate::card::{ExpertCard, Sampling};
use crate::memory::MemoryState;
use crate::{Error, Result};

/// Something that can load experts.
pub trait Engine: Send {
    /// What it is, with its version.
    fn name(&self) -> String;

    /// Loads an expert; `progress` gets the part done, 0 to 1, and may break to give up.
    ///
    /// # Errors
    /// [`Error::Load`], [`Error::Cancelled`] after a break.
    fn load(
        &mut self,
        card: &ExpertCard,
        progress: &mut dyn FnMut(f32) -> ControlFlow<()>,
    ) -> Result<Box<dyn Loaded>>;

    /// Where this engine's experts live.
    fn place(&self) -> Place;

    /// Memory where this engine's experts live, measured now.
    fn memory(&self) -> MemoryState;
}

/// A loaded expert.
pub trait Loaded: Send {
    /// Its card.
    fn card(&self) -> &ExpertCard;

    /// Tokens of context it holds.
    fn context_tokens(&self) -> usize;

    /// Tokens of a text taken as data.
    ///
    /// # Errors
    /// An engine that can't know says so.
    fn tokens(&self, text: &str) -> Result<usize>;

    /// Tokens of a whole prompt, template included.
    ///
    /// # Errors
    /// As [`Loaded::generate`]'s prompt errors.
    fn prompt_tokens(&self, prompt: &Prompt) -> Result<usize>;

    /// Generates from a hard reset; nothing of an earlier call is seen. `sink` gets what happens and may break
    /// to cancel: after every chunk of the prompt, after every token.
    ///
    /// # Errors
    /// [`Error::PromptTooLong`], [`Error::EmptyPrompt`], [`Error::Schema`], [`Error::Decode`]. Cancelling is not
    /// an error: see [`Finish::Cancelled`].
    fn generate(
        &mut self,
        request: &Request,
        sink: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> Result<Generated>;

    /// One vector a text, of length 1 and of the model's width: two texts are as near as the product of theirs is
    /// large. `go_on` gets how many texts are done and may break.
    ///
    /// # Errors
    /// [`Error::NoEmbedding`] from an engine that gives none, [`Error::PromptTooLong`], [`Error::EmptyPrompt`],
    /// [`Error::Decode`]; [`Error::Cancelled`] after a break.
    fn embed(
        &mut self,
        texts: &[String],
        go_on: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Vec<Vec<f32>>> {
        let _ = (texts, go_on);
        let reason = "its engine gives none".to_owned();
        Err(Error::NoEmbedding { expert: self.card().name.clone(), reason })
    }

    /// The next answer of a conversation, as [`Loaded::generate`] gives it; an engine that can does not read again what this
    /// prompt and the last one with its answer begin with alike.  Gives also how many tokens that were.  What was read in
    /// which pieces then decides the last bits, as it does not in a pipeline's steps.
    ///
    /// # Errors
    /// As [`Loaded::generate`].
    fn converse(
        &mut self,
        request: &Request,
        sink: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> Result<(Generated, usize)> {
        Ok((self.generate(request, sink)?, 0))
    }

    /// Takes on another card of the same file and load options: system message, stop texts, sampling and adapters
    /// change without a reload. Where that fails it stays what it was.
    ///
    /// # Errors
    /// [`Error::Adapter`] with the engine's own words, [`Error::DoesNotFit`] if there is no room for an adapter.
    fn switch_to(&mut self, card: &ExpertCard) -> Result<()>;

    /// What it takes.
    fn memory(&self) -> ExpertMemory;

    /// Of the weights, what lies in mapped pages of the file: the system counts it as free, and would read it again.
    fn mapped_bytes(&self) -> u64 {
        0
    }

    /// Gives the memory back; it is free when this returns.
    ///
    /// # Errors
    /// An engine elsewhere may fail to.
    fn unload(self: Box<Self>) -> Result<()>;
}

/// What an expert is asked.
#[derive(Debug, Clone, PartialEq)]
pub enum Prompt {
    /// Messages, rendered with the model's own template; their content never becomes a control token.
    Chat(Vec<Message>),
    /// A text with no template at all, after the begin-of-text token where the model wants one.
    Raw(String),
    /// A text that the caller rendered with a template: control tokens are recognised in it. Only for callers
    /// whose whole prompt is their own.
    Rendered(String),
}

/// One generation.
#[derive(Debug, Clone)]
pub struct Request {
    /// The prompt.
    pub prompt: Prompt,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Texts at which to stop, besides the card's; a stop text is not part of the answer.
    pub stop: Vec<String>,
    /// A form the answer must have.
    pub form: Form,
}

/// A form an answer is held to, token by token.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum Form {
    /// Any text.
    #[default]
    Text,
    /// Any JSON value.
    Json,
    /// JSON under this schema.
    Schema(serde_json::Value),
}

/// What happens while an expert generates.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Progress<'a> {
    /// So much of the prompt is read.
    Prompt {
        /// Tokens read.
        done: usize,
        /// Tokens in all.
        total: usize,
    },
    /// More text; whole characters only.
    Text(&'a str),
}

/// Why a generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Finish {
    /// The model ended its turn, or a stop text came.
    Stop,
    /// Its limit or the end of the context was reached.
    Length,
    /// The sink broke.
    Cancelled,
}

/// A finished generation.
#[derive(Debug, Clone, PartialEq)]
pub struct Generated {
    /// The answer, without end-of-turn token and stop text.
    pub text: String,
    /// Why it ended.
    pub finish: Finish,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated, the end-of-turn token included.
    pub output_tokens: usize,
    /// Time to read the prompt.
    pub prompt_ns: u64,
    /// Time to generate.
    pub decode_ns: u64,
}

/// What an expert takes, by part.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExpertMemory {
    /// The weights.
    pub weights_bytes: u64,
    /// The key-value cache.
    pub context_bytes: u64,
    /// Intermediate results.
    pub compute_bytes: u64,
}

impl ExpertMemory {
    /// All parts.
    pub fn total_bytes(&self) -> u64 {
        self.weights_bytes.saturating_add(self.context_bytes).saturating_add(self.compute_bytes)
    }
}

impl Request {
    /// A request in plain text with the card's own sampling.
    pub fn new(card: &ExpertCard, prompt: Prompt) -> Self {
        Self { prompt, sampling: card.sampling.clone(), stop: Vec::new(), form: Form::Text }
    }
}

/// Checks that the prompt leaves room for an answer.
pub(crate) fn check_room(expert: &str, prompt_tokens: usize, context_tokens: usize) -> Result<()> {
    if prompt_tokens == 0 {
        return Err(Error::EmptyPrompt { expert: expert.to_owned() });
    }
    if prompt_tokens >= context_tokens {
        return Err(Error::PromptTooLong { expert: expert.to_owned(), prompt_tokens, context_tokens });
    }
    Ok(())
}
