//! Chat templates: messages to the text that a model was trained on.

mod clock;
mod engine;
mod find;
mod generation;
mod go;
mod growth;
mod python;

use std::path::Path;

use formats::gguf::Metadata;
use minijinja::value::{Serde, Value};
use serde_json::Map;

use crate::{Chat, Message, Result, Tokenizer};
use engine::Engine;
pub use go::go_template;

/// Whether the rendering ends with the opening of an assistant turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GenerationPrompt {
    /// It does: the model is to answer.
    Add,
    /// It does not: the conversation is complete.
    Omit,
}

/// A model's chat template.
///
/// Templates come with models from anywhere, so their source, their steps and their output are bounded. What
/// `strftime_now` tells is the moment of loading (in UTC), the same for all rows of a run.
#[derive(Debug)]
pub struct ChatTemplate {
    source: String,
    engine: Engine,
    /// What the template sees beside the conversation.
    variables: Map<String, serde_json::Value>,
    marks_generation: bool,
}

impl ChatTemplate {
    /// Finds the template of a Hugging Face directory: `chat_template.jinja`, `chat_template.json`, or the
    /// key `chat_template` (a string, or a list with a `default`) of `tokenizer_config.json`.
    ///
    /// # Errors
    /// [`crate::Error::NoTemplate`], or what [`ChatTemplate::from_source`] says.
    pub fn from_dir(dir: &Path, tokenizer: &Tokenizer) -> Result<ChatTemplate> {
        find::from_dir(dir, tokenizer)
    }

    /// A template that stands alone in a file.
    ///
    /// # Errors
    /// The file cannot be read; [`crate::Error::Template`] where it does not compile.
    pub fn from_file(path: &Path, tokenizer: &Tokenizer) -> Result<ChatTemplate> {
        find::from_file(path, tokenizer)
    }

    /// The template that a GGUF holds for the tokenizer it holds; `None` where it holds none.
    ///
    /// # Errors
    /// [`crate::Error::Template`] where it does not compile.
    pub fn from_gguf(metadata: &Metadata, tokenizer: &Tokenizer) -> Result<Option<ChatTemplate>> {
        let text = |id: Option<u32>| id.and_then(|id| tokenizer.token(id)).unwrap_or_default();
        let source = metadata.get_str("tokenizer.chat_template");
        source
            .map(|source| ChatTemplate::from_source(source, text(tokenizer.bos()), text(tokenizer.eos())))
            .transpose()
    }

    /// Compiles a template; `bos` and `eos` are the texts of those tokens, empty where there is none.
    ///
    /// # Errors
    /// [`crate::Error::Template`] where it does not compile.
    pub fn from_source(source: &str, bos: &str, eos: &str) -> Result<ChatTemplate> {
        let mut variables = Map::new();
        for (name, text) in [("bos_token", bos), ("eos_token", eos)] {
            if !text.is_empty() {
                variables.insert(name.to_owned(), text.into());
            }
        }
        // jinja2 knows one kind of newline.
        let normalized = source.replace("\r\n", "\n").replace('\r', "\n");
        let (rewritten, marks_generation) = generation::rewrite(&normalized);
        let engine = Engine::new(rewritten)?;
        Ok(ChatTemplate { source: source.to_owned(), engine, variables, marks_generation })
    }

    /// Sets a variable of the template, such as `enable_thinking` or `tools`.
    #[must_use]
    pub fn with_variable(
        mut self,
        name: impl Into<String>,
        value: impl Into<serde_json::Value>,
    ) -> ChatTemplate {
        self.variables.insert(name.into(), value.into());
        self
    }

    /// Sets what `strftime_now` tells, in seconds since 1970 (UTC).
    #[must_use]
    pub fn at(self, unix_seconds: i64) -> ChatTemplate {
        self.engine.set_now(unix_seconds);
        self
    }

    /// The day that `strftime_now` tells, counted from 1970 (UTC); `None` where the template does not ask for it.
    pub fn day(&self) -> Option<i64> {
        self.source.contains("strftime_now").then(|| self.engine.now().div_euclid(86_400))
    }

    /// The same template with a variable of its own from now on, whatever it is called with: the source says so in front,
    /// so that whoever is given it renders the same.
    ///
    /// # Errors
    /// [`crate::Error::Template`] where the result does not compile.
    pub fn with_fixed(self, name: &str, value: bool) -> Result<ChatTemplate> {
        let source = format!("{{%- set {name} = {value} -%}}\n{}", self.source);
        let of = |name: &str| self.variables.get(name).and_then(|text| text.as_str()).unwrap_or_default();
        let template = ChatTemplate::from_source(&source, of("bos_token"), of("eos_token"))?;
        Ok(ChatTemplate { variables: self.variables, ..template })
    }

    /// The template as published.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Renders a conversation as transformers' `apply_chat_template` does.
    ///
    /// # Errors
    /// [`crate::Error::Template`] where the template refuses the conversation or fails,
    /// [`crate::Error::OutputTooLong`].
    pub fn render<'a>(&self, chat: impl Into<Chat<'a>>, prompt: GenerationPrompt) -> Result<String> {
        self.engine.render(self.context(chat.into(), prompt))
    }

    /// Whether the template itself marks what an assistant generates.
    pub(crate) fn marks_generation(&self) -> bool {
        self.marks_generation
    }

    /// Renders with `open` and `close` around what the template marks as generated.
    pub(crate) fn render_marked(&self, chat: Chat<'_>, open: char, close: char) -> Result<String> {
        let marks = [(generation::OPEN, open), (generation::CLOSE, close)];
        let marks = marks.map(|(name, mark)| (name, Value::from(mark.to_string())));
        self.engine.render(self.context(chat, GenerationPrompt::Omit).into_iter().chain(marks))
    }

    fn context(&self, chat: Chat<'_>, prompt: GenerationPrompt) -> Vec<(&str, Value)> {
        let mut context = vec![
            ("tools", Value::from(())),
            ("documents", Value::from(())),
            ("messages", chat.messages.iter().map(message_value).collect()),
            ("add_generation_prompt", Value::from(prompt == GenerationPrompt::Add)),
        ];
        context.extend(self.variables.iter().map(|(name, value)| (name.as_str(), Value::from(Serde(value)))));
        context.extend(chat.tools.map(|tools| ("tools", Value::from(Serde(tools)))));
        context
    }
}

/// A message as a template sees it. One that only calls tools has no content rather than an empty one.
fn message_value(message: &Message) -> Value {
    let calls_only = message.content.is_empty() && message.extra.contains_key("tool_calls");
    let content = if calls_only { Value::from(()) } else { Value::from(message.content.as_str()) };
    let fields = [("role", Value::from(message.role.as_str())), ("content", content)];
    let extra = message.extra.iter().map(|(name, value)| (name.as_str(), Value::from(Serde(value))));
    Value::from_pairs(fields.into_iter().chain(extra))
}
