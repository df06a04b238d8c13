//! One GGUF file open in llama.cpp at token level: what an export's verification needs.

use std::ops::ControlFlow;
use std::path::Path;

use text::{ChatTemplate, Message, Tokenizer};

use crate::Result;
use crate::card::LoadOptions;
use crate::engine::ExpertMemory;

/// How a session is opened.
#[derive(Debug, Clone, Default)]
pub struct SessionOptions {
    /// Context, batch, threads, types of the cache.
    pub load: LoadOptions,
    /// Whether llama.cpp checks every block of every tensor for NaN and infinities while it loads.
    pub check_tensors: bool,
}

/// A model and its context.
pub struct Session {
    tokenizer: Tokenizer,
    template: Option<ChatTemplate>,
}

impl Session {
    /// Opens a GGUF file.
    ///
    /// # Errors
    /// [`crate::Error::Processor`], [`crate::Error::Load`] with llama.cpp's own words, [`crate::Error::Text`].
    pub fn open(path: &Path, options: &SessionOptions) -> Result<Self> {
        let _ = (path, options);
        todo!()
    }

    /// The tokenizer, rebuilt from the file's metadata.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The file's chat template.
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// Tokens of context.
    pub fn context_tokens(&self) -> usize {
        todo!()
    }

    /// Rows of the vocabulary, padding included.
    pub fn vocabulary_rows(&self) -> usize {
        todo!()
    }

    /// Ids that end an answer: what llama.cpp knows as end of generation, and what closes an assistant turn in
    /// the template.
    pub fn stop_ids(&self) -> &[u32] {
        todo!()
    }

    /// Ids of rendered messages with the generation prompt: what the engine is given for a chat.
    ///
    /// # Errors
    /// [`crate::Error::Text`], or [`crate::Error::Card`] if the file has no template.
    pub fn chat_ids(&self, messages: &[Message]) -> Result<Vec<u32>> {
        let _ = messages;
        todo!()
    }

    /// llama.cpp's own tokenizer on a text; `parse_special` makes control tokens of their text. No begin-of-text
    /// token is added.
    pub fn engine_tokenize(&self, text: &str, parse_special: bool) -> Vec<u32> {
        let _ = (text, parse_special);
        todo!()
    }

    /// Greedy continuation from a hard reset: the ids generated, without the stop id that ended it.
    ///
    /// # Errors
    /// [`crate::Error::PromptTooLong`], [`crate::Error::EmptyPrompt`], [`crate::Error::Decode`].
    pub fn greedy(&mut self, prompt: &[u32], stop: &[u32], max_new: usize) -> Result<Vec<u32>> {
        let _ = (prompt, stop, max_new);
        todo!()
    }

    /// Decodes a whole sequence from a hard reset; `each` gets every position with its logits, in order, and may
    /// break. Position `i`'s logits predict token `i + 1`.
    ///
    /// # Errors
    /// [`crate::Error::PromptTooLong`] when the sequence is longer than the context, [`crate::Error::Decode`].
    pub fn decode_logits(
        &mut self,
        tokens: &[u32],
        each: &mut dyn FnMut(usize, &[f32]) -> ControlFlow<()>,
    ) -> Result<()> {
        let _ = (tokens, each);
        todo!()
    }

    /// Natural log-probabilities of tokens 1.. given what stands before each: one fewer than `tokens`.
    ///
    /// # Errors
    /// As [`Session::decode_logits`].
    pub fn log_probs(&mut self, tokens: &[u32]) -> Result<Vec<f64>> {
        let _ = tokens;
        todo!()
    }

    /// What it takes.
    pub fn memory(&self) -> ExpertMemory {
        todo!()
    }
}
