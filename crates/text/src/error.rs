//! What can go wrong with tokenizers and templates.

use std::path::PathBuf;

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Every failure of the crate; file errors name their path.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file could not be read.
    #[error("cannot read `{}`: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is larger than anything of its kind.
    #[error("`{}` has {bytes} bytes; more than {limit} are not read", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
        /// The most that is read.
        limit: u64,
    },
    /// A JSON file does not parse, or not into what it should be.
    #[error("`{}` cannot be understood: {source}", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        source: serde_json::Error,
    },
    /// A tokenizer that cannot be used.
    #[error("the tokenizer of `{}` cannot be used: {reason}", path.display())]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The way a tokenizer cuts text into words is none that llama.cpp knows.
    #[error("the tokenizer of `{}` cuts text in a way that is not known, {description}; known are the ways of {known}", path.display())]
    UnknownPreTokenizer {
        /// The file.
        path: PathBuf,
        /// The way, as the file has it, shortened.
        description: String,
        /// The names of those that are known.
        known: String,
    },
    /// A GGUF key is absent, of another type, or names what does not exist.
    #[error("metadata key `{key}`: {reason}")]
    Metadata {
        /// The key.
        key: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A vocabulary does not fit the rows of the embedding.
    #[error("the tokenizer of `{}` has ids up to {largest_id}, the model has {rows} rows of embedding", path.display())]
    VocabularyTooLarge {
        /// The file.
        path: PathBuf,
        /// The tokenizer's largest id.
        largest_id: usize,
        /// The model's rows.
        rows: usize,
    },
    /// A model directory has no chat template.
    #[error("`{}` has no chat template, neither as chat_template.jinja, as chat_template.json nor in tokenizer_config.json", dir.display())]
    NoTemplate {
        /// The directory.
        dir: PathBuf,
    },
    /// A chat template does not compile, or a conversation is none that it renders.
    #[error("chat template: {reason}")]
    Template {
        /// The engine's message with the line, or the template's own `raise_exception`.
        reason: String,
    },
    /// The output of a template is longer than anything of use.
    #[error("chat template: the output grows beyond {limit_bytes} bytes")]
    OutputTooLong {
        /// The most that is rendered.
        limit_bytes: usize,
    },
    /// A conversation in which nothing is to be learnt.
    #[error("no part of the conversation is to be learnt: {reason}")]
    NoTarget {
        /// Why.
        reason: String,
    },
    /// An assistant's turn cannot be told from the rest of the rendered text.
    #[error("message {index} ({role}): {reason}")]
    Turn {
        /// Index of the message.
        index: usize,
        /// Its role.
        role: String,
        /// Why.
        reason: String,
    },
}
