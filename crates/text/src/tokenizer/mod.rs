//! Text to token ids and back.

use std::path::Path;

use formats::gguf::{Metadata, Value};

use crate::Result;

/// A model's tokenizer, read from its directory or from a GGUF.
#[derive(Debug)]
pub struct Tokenizer {}

impl Tokenizer {
    /// Reads `tokenizer.json` and what stands beside it in a Hugging Face directory.
    pub fn from_dir(_dir: &Path) -> Result<Tokenizer> {
        todo!()
    }

    /// Rebuilds the tokenizer of a GGUF from its `tokenizer.ggml.*` keys.
    pub fn from_gguf(_metadata: &Metadata) -> Result<Tokenizer> {
        todo!()
    }

    /// The vocabulary as the `tokenizer.ggml.*` keys of a GGUF with `n_vocab_rows` rows of embedding: rows
    /// beyond the vocabulary are named `[PAD{i}]`. The template's own key is not among them.
    pub fn gguf_metadata(&self, _n_vocab_rows: usize) -> Result<Vec<(String, Value)>> {
        todo!()
    }

    /// Encodes data: the text of a control token stays ordinary text; nothing is added in front or behind.
    pub fn encode(&self, _text: &str) -> Vec<u32> {
        todo!()
    }

    /// Encodes trusted text, such as a template's output: control tokens are recognised.
    pub fn encode_template(&self, _text: &str) -> Vec<u32> {
        todo!()
    }

    /// The text of `ids` without control tokens.
    pub fn decode(&self, _ids: &[u32]) -> String {
        todo!()
    }

    /// The text of `ids`, control tokens included.
    pub fn decode_with_special(&self, _ids: &[u32]) -> String {
        todo!()
    }

    /// A decoder for tokens as they are generated.
    pub fn stream(&self) -> DecodeStream<'_> {
        todo!()
    }

    /// The id of a token by its exact text.
    pub fn id(&self, _token: &str) -> Option<u32> {
        todo!()
    }

    /// The text of a token as the vocabulary writes it.
    pub fn token(&self, _id: u32) -> Option<&str> {
        todo!()
    }

    /// The largest id plus one.
    pub fn vocab_size(&self) -> usize {
        todo!()
    }

    /// Whether `id` is a control token, which is never part of ordinary text.
    pub fn is_special(&self, _id: u32) -> bool {
        todo!()
    }

    /// The token that opens a text.
    pub fn bos(&self) -> Option<u32> {
        todo!()
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        todo!()
    }

    /// Whether a text without a template is to begin with [`Tokenizer::bos`].
    pub fn adds_bos(&self) -> bool {
        todo!()
    }

    /// Whether a text without a template is to end with [`Tokenizer::eos`].
    pub fn adds_eos(&self) -> bool {
        todo!()
    }
}

/// Decodes generated tokens one by one and only ever yields whole UTF-8 characters.
pub struct DecodeStream<'a> {
    _tokenizer: &'a Tokenizer,
}

impl DecodeStream<'_> {
    /// Takes the next token; gives the text that became complete with it, if any.
    pub fn push(&mut self, _id: u32) -> Option<String> {
        todo!()
    }

    /// What is left at the end: bytes that never became a character, as U+FFFD.
    pub fn finish(self) -> Option<String> {
        todo!()
    }
}
