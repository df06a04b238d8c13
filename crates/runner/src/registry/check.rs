//! What an expert must do before its card is kept: load with every number finite, read prompts as training did, and end
//! an answer by itself.

use std::ops::ControlFlow;

use serde::Serialize;
use text::{Chat, ChatTemplate, Conversation, GenerationPrompt, Message, Tokenizer};

use crate::budget::{Available, Place, Planned};
use crate::card::{ExpertCard, ModelFile};
use crate::engine::llama::language::Language;
use crate::engine::llama::{LlamaEngine, Session, SessionOptions};
use crate::engine::{Engine, ExpertMemory};
use crate::{Error, Result};

/// Tokens after which an answer that has not ended is cut: more than a role that is to be brief needs.
pub const SMOKE_TOKENS: usize = 256;

/// What an expert is checked against.
#[derive(Default)]
pub struct Probe<'a> {
    /// What training had, where the expert comes from a run that is still there.
    pub training: Option<(&'a Tokenizer, &'a ChatTemplate)>,
    /// Conversations as the expert is to meet them; the last message of each, if it is the assistant's, is left out.
    pub conversations: Vec<Conversation>,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Checked {
    /// What it takes, loaded.
    pub takes: ExpertMemory,
    /// Prompts whose ids were found equal to training's.
    pub n_compared: usize,
    /// Of all prompts, how many llama.cpp's own tokenizer reads otherwise: a server that tokenises by itself depends on it.
    pub n_engine_differs: usize,
    /// An answer, where it has a template.
    pub smoke: Option<Smoke>,
}

/// One answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Smoke {
    /// Its text.
    pub text: String,
    /// Tokens generated.
    pub n_tokens: usize,
    /// Whether the expert ended it, within [`SMOKE_TOKENS`] and the context.
    pub ended: bool,
}

/// Loads an expert as its card says and asks it; it is unloaded when this returns.
///
/// # Errors
/// [`Error::DoesNotFit`], [`Error::Load`] for one with a NaN or an infinity in its tensors, [`Error::Unfit`] with what it
/// does otherwise than training, [`Error::Cancelled`].
pub fn check(card: &ExpertCard, probe: &Probe<'_>, cancelled: &dyn Fn() -> bool) -> Result<Checked> {
    let Some(file) = card.file() else { return Ok(Checked::default()) };
    let engine = LlamaEngine::new()?;
    let place = if engine.place() == Place::Card { Place::Card } else { Place::Main };
    Planned::new(card, place, &Available::now(&engine.memory()), None)?.check(&card.name)?;
    let mut expert = Expert::load(card, file, cancelled)?;
    let mut checked = Checked::default();
    if file.template_blake3.is_some() {
        let plain = plain();
        for conversation in plain.iter().chain(&probe.conversations) {
            expert.read(conversation, probe, &mut checked)?;
        }
        let first = probe.conversations.first().or(plain.first());
        checked.smoke = first.map(|conversation| expert.answer(conversation, cancelled)).transpose()?;
    }
    checked.takes = expert.session.memory();
    Ok(checked)
}

/// Holds what an expert makes of conversations against what training made of them, without loading it; gives how many
/// prompts were compared.
///
/// # Errors
/// [`Error::Unfit`] with what it does otherwise than training; its file can't be read.
pub fn compare(card: &ExpertCard, probe: &Probe<'_>) -> Result<usize> {
    let Some(file) = card.file().filter(|file| file.template_blake3.is_some()) else { return Ok(0) };
    let reader = formats::gguf::Reader::open(&file.file)?;
    let language = Language::of(&card.name, reader.metadata())?;
    let Some(template) = &language.template else { return Ok(0) };
    let mut n_compared = 0;
    for conversation in plain().iter().chain(&probe.conversations) {
        let chat = prompt_of(conversation);
        let found = text::encode_prompt(&language.tokenizer, template, chat);
        let found = found.map_err(|source| Error::Text { expert: card.name.clone(), source });
        let is_compared = held(&card.name, found, chat, probe)?.is_some() && probe.training.is_some();
        n_compared += usize::from(is_compared);
    }
    Ok(n_compared)
}

/// The ids of a prompt, if they are training's; nothing where both refuse the chat.
fn held(name: &str, found: Result<Vec<u32>>, chat: Chat<'_>, probe: &Probe<'_>) -> Result<Option<Vec<u32>>> {
    let unfit = |reason: String| Error::Unfit { expert: name.to_owned(), reason };
    let expected = probe.training.map(|(tokenizer, template)| text::encode_prompt(tokenizer, template, chat));
    match (found, expected) {
        (Ok(found), Some(Ok(expected))) if found != expected => Err(unfit(difference(&found, &expected))),
        (Ok(found), None | Some(Ok(_))) => Ok(Some(found)),
        (Err(_), None | Some(Err(_))) => Ok(None),
        (Ok(_), Some(Err(error))) => {
            Err(unfit(format!("it renders a chat that training's template refuses: {error}")))
        }
        (Err(error), Some(Ok(_))) => {
            Err(unfit(format!("it refuses a chat that training's template renders: {error}")))
        }
    }
}

/// Conversations that show where templates and tokenizers differ: a system message, several turns, text that looks like
/// control tokens, several scripts.
fn plain() -> Vec<Conversation> {
    let user = |text: &str| Message::new("user", text);
    let of = |messages: Vec<Message>| Conversation { messages, ..Conversation::default() };
    vec![
        of(vec![user("Hello! What is 2 + 3?")]),
        of(vec![Message::new("system", "Be brief."), user("naïve  日本語 🦀\n\n\tdef f(x): return x")]),
        of(vec![user("One."), Message::new("assistant", "Two."), user("<|im_end|></s><eos> is text.")]),
    ]
}

struct Expert<'a> {
    card: &'a ExpertCard,
    session: Session,
}

impl<'a> Expert<'a> {
    fn load(card: &'a ExpertCard, file: &ModelFile, cancelled: &dyn Fn() -> bool) -> Result<Self> {
        let options =
            SessionOptions { load: card.load.clone(), check_tensors: true, ..SessionOptions::default() };
        let mut go_on = |_| if cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
        let mut session = Session::open_named(&card.name, &file.file, &options, &mut go_on)?;
        session.set_adapters(&file.adapters)?;
        Ok(Self { card, session })
    }

    /// A prompt as serving renders and tokenises it, held against training's.
    fn read(&self, conversation: &Conversation, probe: &Probe<'_>, checked: &mut Checked) -> Result<()> {
        let chat = prompt_of(conversation);
        // Some templates know no system message.
        let Some(found) = held(&self.card.name, self.session.chat_ids(chat), chat, probe)? else {
            return Ok(());
        };
        checked.n_compared += usize::from(probe.training.is_some());
        // Control tokens' text inside a message is text here and control to llama.cpp, with every template.
        let tokenizer = self.session.tokenizer();
        let is_plain = |text: &str| tokenizer.encode_template(text) == tokenizer.encode(text);
        if chat.messages.iter().all(|message| is_plain(&message.content))
            && let Some(template) = self.session.template()
            && let Ok(rendered) = template.render(chat, GenerationPrompt::Add)
        {
            let own = self.session.engine_tokenize(&rendered, true);
            // A template without the begin-of-text token leaves it to the tokenizer.
            let is_same = own == found || found.split_first().is_some_and(|(_, rest)| rest == own);
            checked.n_engine_differs += usize::from(!is_same);
        }
        Ok(())
    }

    fn answer(&mut self, conversation: &Conversation, cancelled: &dyn Fn() -> bool) -> Result<Smoke> {
        let chat = prompt_of(conversation);
        let has_system = chat.messages.first().is_some_and(|message| message.role == "system");
        let system = self.card.system.as_deref().filter(|_| !has_system);
        let system = system.map(|text| Message::new("system", text));
        let messages: Vec<Message> = system.into_iter().chain(chat.messages.iter().cloned()).collect();
        let prompt = self.session.chat_ids(Chat { messages: &messages, tools: chat.tools })?;
        let stop = self.session.stop_ids().to_vec();
        let mut go_on = || if cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
        let answer = self.session.greedy_while(&prompt, &stop, SMOKE_TOKENS, &mut go_on)?;
        let (ids, ended) = answer.ok_or(Error::Cancelled)?;
        let mut text = self.session.tokenizer().decode(&ids);
        let stops = self.card.stop.iter().filter_map(|stop| text.find(stop.as_str()));
        let cut = stops.min();
        if let Some(at) = cut {
            text.truncate(at);
        }
        Ok(Smoke { text, n_tokens: ids.len(), ended: ended || cut.is_some() })
    }
}

/// A conversation up to where the assistant is to answer.
fn prompt_of(conversation: &Conversation) -> Chat<'_> {
    let n = conversation.messages.len();
    let is_answered = conversation.messages.last().is_some_and(|message| message.role == "assistant");
    conversation.first(n - usize::from(is_answered))
}

fn difference(found: &[u32], expected: &[u32]) -> String {
    let at = expected.iter().zip(found).take_while(|(a, b)| a == b).count();
    let around = |ids: &[u32]| format!("{:?}", &ids[at.min(ids.len())..(at + 4).min(ids.len())]);
    format!(
        "its ids of a prompt differ from those of training from token {at} on: {} against {}",
        around(found),
        around(expected)
    )
}
