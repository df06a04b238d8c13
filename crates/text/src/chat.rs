//! A conversation as templates take it: messages, and the tools that the model may call.

use serde_json::Value;

use crate::Message;

/// A conversation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    /// What was said, in order.
    pub messages: Vec<Message>,
    /// The tools that are offered, as JSON schemas in OpenAI's form; `None` where there are none.
    pub tools: Option<Value>,
}

/// A conversation, or a part of one, that belongs to someone else.
#[derive(Clone, Copy, Debug)]
pub struct Chat<'a> {
    /// What was said, in order.
    pub messages: &'a [Message],
    /// The tools that are offered.
    pub tools: Option<&'a Value>,
}

impl<'a> Chat<'a> {
    /// The first messages, with all tools.
    pub fn first(self, n_messages: usize) -> Chat<'a> {
        Chat { messages: &self.messages[..n_messages], ..self }
    }
}

impl Conversation {
    /// The conversation up to a message.
    pub fn first(&self, n_messages: usize) -> Chat<'_> {
        Chat::from(self).first(n_messages)
    }
}

impl From<Vec<Message>> for Conversation {
    fn from(messages: Vec<Message>) -> Conversation {
        Conversation { messages, tools: None }
    }
}

impl<'a> From<&'a Conversation> for Chat<'a> {
    fn from(conversation: &'a Conversation) -> Chat<'a> {
        Chat { messages: &conversation.messages, tools: conversation.tools.as_ref() }
    }
}

impl<'a> From<&'a [Message]> for Chat<'a> {
    fn from(messages: &'a [Message]) -> Chat<'a> {
        Chat { messages, tools: None }
    }
}

impl<'a> From<&'a Vec<Message>> for Chat<'a> {
    fn from(messages: &'a Vec<Message>) -> Chat<'a> {
        Chat { messages, tools: None }
    }
}

impl<'a, const N: usize> From<&'a [Message; N]> for Chat<'a> {
    fn from(messages: &'a [Message; N]) -> Chat<'a> {
        Chat { messages, tools: None }
    }
}
