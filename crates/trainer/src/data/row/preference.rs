//! Preferences: two answers to the same, one of which is better.

use text::{Conversation, Message};

use super::fields::Fields;
use super::{Fault, alpaca, is_answer, messages, prompt};

/// Two answers to the same.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Preference {
    /// What both answer, and the tools that are offered.
    pub prompt: Conversation,
    /// The better answer, in one message or several.
    pub chosen: Vec<Message>,
    /// The worse one.
    pub rejected: Vec<Message>,
}

impl Preference {
    /// The conversations with the better and with the worse answer.
    pub fn both(&self) -> [Conversation; 2] {
        [&self.chosen, &self.rejected].map(|answer| self.with(answer))
    }

    /// The conversation with an answer.
    pub fn with(&self, answer: &[Message]) -> Conversation {
        let messages = [self.prompt.messages.as_slice(), answer].concat();
        Conversation { messages, tools: self.prompt.tools.clone() }
    }
}

/// What both answer stands under `prompt`, `messages`, `conversations` or `instruction`, or is what both begin with.
pub fn parse(row: &mut Fields<'_>) -> Result<Preference, Fault> {
    let mut chosen = prompt::turns(row, "chosen", "assistant")?;
    let mut rejected = prompt::turns(row, "rejected", "assistant")?;
    let mut tools = None;
    let messages = if row.has("prompt") {
        let system = row.optional_text("system")?.filter(|text| !text.is_empty());
        let system = system.map(|text| Message::new("system", text));
        let asked = prompt::turns(row, "prompt", "user")?;
        // Some files have the prompt, and in both answers the whole conversation once more.
        if chosen.first() == asked.last() && rejected.first() == asked.last() {
            chosen.remove(0);
            rejected.remove(0);
        }
        system.into_iter().chain(asked).collect()
    } else if let Some(key) = ["messages", "conversations"].into_iter().find(|key| row.has(key)) {
        let chat = messages::parse(row, key)?;
        tools = chat.conversation.tools;
        chat.conversation.messages
    } else if row.has("instruction") {
        alpaca::asked(row)?
    } else {
        common_beginning(&mut chosen, &mut rejected)?
    };
    let tools = match tools {
        Some(tools) => Some(tools),
        None => messages::tools(row)?,
    };
    for (name, answer) in [("chosen", &chosen), ("rejected", &rejected)] {
        if !answer.iter().any(is_answer) {
            return Err(format!("`{}` has no assistant turn", row.name(name)));
        }
    }
    if chosen == rejected {
        return Err(format!("`{}` and `{}` are the same", row.name("chosen"), row.name("rejected")));
    }
    Ok(Preference { prompt: Conversation { messages, tools }, chosen, rejected })
}

/// Takes off what both conversations begin with.
fn common_beginning(chosen: &mut Vec<Message>, rejected: &mut Vec<Message>) -> Result<Vec<Message>, Fault> {
    let common = chosen.iter().zip(rejected.iter()).take_while(|(one, other)| one == other).count();
    if common == 0 {
        return Err(
            "the row does not say what both answer: there is no `prompt`, and they begin differently".into(),
        );
    }
    rejected.drain(..common);
    Ok(chosen.drain(..common).collect())
}
