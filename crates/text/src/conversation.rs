//! Conversations to token ids, with the mask of what is to be learnt.

use crate::{ChatTemplate, Message, Result, Tokenizer};

/// Which tokens of a conversation are to be learnt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrainOn {
    /// Every assistant turn.
    Assistant,
    /// The last assistant turn alone.
    Last,
    /// Every token but the first.
    All,
}

/// A conversation as token ids.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Encoded {
    /// The tokens.
    pub ids: Vec<u32>,
    /// Whether token i is to be predicted, so that a loss is taken at position i - 1.
    pub is_target: Vec<bool>,
}

/// Renders and encodes a conversation, and marks its targets: an assistant's content and the token that
/// ends its turn.
///
/// # Errors
/// Where the template refuses the conversation, its assistant turns cannot be told apart, or nothing would
/// be a target.
pub fn encode_conversation(
    _tokenizer: &Tokenizer,
    _template: &ChatTemplate,
    _messages: &[Message],
    _train_on: TrainOn,
) -> Result<Encoded> {
    todo!()
}

/// Encodes a conversation up to where the assistant is to answer. BOS stands in front where the model
/// wants it, once.
pub fn encode_prompt(_tokenizer: &Tokenizer, _template: &ChatTemplate, _messages: &[Message]) -> Result<Vec<u32>> {
    todo!()
}

/// The token that closes an assistant turn, found from the template's own rendering.
pub fn end_of_turn(_tokenizer: &Tokenizer, _template: &ChatTemplate) -> Result<u32> {
    todo!()
}
