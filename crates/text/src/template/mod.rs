//! Chat templates: messages to the text that a model was trained on.

use std::path::Path;

use crate::{Message, Result, Tokenizer};

/// Whether the rendering ends with the opening of an assistant turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GenerationPrompt {
    /// It does: the model is to answer.
    Add,
    /// It does not: the conversation is complete.
    Omit,
}

/// A model's chat template.
#[derive(Debug)]
pub struct ChatTemplate {}

impl ChatTemplate {
    /// Finds the template of a Hugging Face directory: `chat_template.jinja`, `chat_template.json`, or the
    /// key `chat_template` (a string, or a list with a `default`) of `tokenizer_config.json`.
    pub fn from_dir(_dir: &Path, _tokenizer: &Tokenizer) -> Result<ChatTemplate> {
        todo!()
    }

    /// Compiles a template; `bos` and `eos` are the texts of those tokens, empty where there is none.
    pub fn from_source(_source: &str, _bos: &str, _eos: &str) -> Result<ChatTemplate> {
        todo!()
    }

    /// The template as published.
    pub fn source(&self) -> &str {
        todo!()
    }

    /// Renders a conversation as transformers' `apply_chat_template` does.
    pub fn render(&self, _messages: &[Message], _prompt: GenerationPrompt) -> Result<String> {
        todo!()
    }
}
