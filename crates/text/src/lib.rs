//! Text in and out of a model: tokenizers, chat templates, role spans for the loss mask, streaming decode,
//! and the vocabulary as GGUF metadata.
//!
//! The one rule of this crate: what stands inside a message is data. A control token's text there stays
//! ordinary text, whichever way it is rendered and encoded.

#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod chat;
mod conversation;
mod error;
mod files;
mod guard;
mod message;
mod template;
mod tokenizer;
mod turns;

pub use chat::{Chat, Conversation};
pub use conversation::{Encoded, TrainOn, Turn, encode_conversation, encode_prompt, end_of_turn};
pub use error::{Error, Result};
pub use files::files_blake3;
pub use message::Message;
pub use template::{ChatTemplate, GenerationPrompt, go_template};
pub use tokenizer::{DecodeStream, Tokenizer};
