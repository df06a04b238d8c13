//! A model that a server has loaded, as an expert.

use std::cell::RefCell;
use std::ops::ControlFlow;

use text::Message;

use super::answer::{self, Heard};
use super::api::Running;
use super::server::{Detail, OllamaServer};
use super::{control, residence};
use crate::card::{ExpertCard, OllamaModel};
use crate::engine::remote::{self, Fault, Poll, patiently, vectors};
use crate::engine::{ExpertMemory, Finish, Generated, Loaded, Progress, Prompt, Request};
use crate::{Error, Result};

/// Texts of one request for vectors: between two the caller can break.
const EMBEDDED_AT_ONCE: usize = 32;

/// A model that a server has loaded.
pub(super) struct LoadedOllama {
    server: OllamaServer,
    card: ExpertCard,
    model: OllamaModel,
    running: Running,
    control: Vec<String>,
}

impl LoadedOllama {
    pub(super) fn load(
        server: OllamaServer,
        card: &ExpertCard,
        model: &OllamaModel,
        progress: &mut dyn FnMut(f32) -> ControlFlow<()>,
    ) -> Result<Self> {
        // How far a server is with a load it does not tell.
        let poll: &mut Poll<'_> = &mut || progress(0.0);
        server.version_while(poll)?;
        let running = residence::load(&server, card, model, poll)?;
        let control = control::tokens(&server.show_while(&model.name, Detail::Lists, poll)?);
        Ok(Self { server, card: card.clone(), model: model.clone(), running, control })
    }

    /// The messages with the card's system message, which comes before the model's own.
    fn messages(&self, prompt: &Prompt) -> Vec<Message> {
        let messages = match prompt {
            Prompt::Chat(messages) => messages.clone(),
            Prompt::Raw(text) => return vec![Message::new("user", text.as_str())],
            Prompt::Rendered(_) => return Vec::new(),
        };
        let has_one = messages.first().is_some_and(|message| message.role == "system");
        let system = self.card.system.as_ref().filter(|_| !has_one);
        let system = system.map(|text| Message::new("system", text.as_str()));
        system.into_iter().chain(messages).collect()
    }

    fn check_prompt(&self, prompt: &Prompt, messages: &[Message]) -> Result<()> {
        let is_empty = match prompt {
            Prompt::Chat(messages) => messages.is_empty(),
            Prompt::Raw(text) | Prompt::Rendered(text) => text.is_empty(),
        };
        if is_empty {
            return Err(Error::EmptyPrompt { expert: self.card.name.clone() });
        }
        let Some(token) = control::within(&self.control, messages) else { return Ok(()) };
        Err(Error::OnServer {
            expert: self.card.name.clone(),
            server: self.model.url.clone(),
            reason: format!("the prompt has the text `{token}`, which this server would take for a control token"),
            hint: "the embedded engine takes it as text: use `file` for this expert, or remove it before the step"
                .to_owned(),
        })
    }

    /// Makes sure that the model is still loaded as it was. A server unloads what was long idle, or for another
    /// client's model, and would load it again by itself, perhaps only in part on the card.
    fn check_residence(&mut self, poll: &mut Poll<'_>) -> Result<()> {
        self.running = match residence::running(&self.server, &self.model, poll)? {
            Some(running) => {
                residence::check_running(&self.card, &self.model, &running)?;
                running
            }
            None => residence::load(&self.server, &self.card, &self.model, poll)?,
        };
        Ok(())
    }

    /// The texts to stop at: what a request gives takes the place of the model's own, so these are given with them.
    fn stop(&self, request: &Request) -> Vec<String> {
        let own = self.card.stop.iter().chain(&request.stop);
        if own.clone().next().is_none() {
            return Vec::new();
        }
        let mut all: Vec<String> = Vec::new();
        for text in self.model.stop.iter().chain(own) {
            if !text.is_empty() && !all.contains(text) {
                all.push(text.clone());
            }
        }
        all
    }

    /// The error of an answer of which so much was heard.
    fn failed(&self, tries: u32, fault: Fault, heard: &str) -> Error {
        let expert = self.card.name.clone();
        match fault {
            Fault::Lasting { reason, .. } if !heard.is_empty() => {
                let n = heard.chars().count();
                let reason = format!("{} broke off after {n} characters: {reason}", self.model.url);
                Error::Decode { expert, reason }
            }
            Fault::Lasting { reason, .. } if reason.contains("exceed") && reason.contains("context") => {
                let context_tokens = self.context_tokens();
                match prompt_tokens(&reason) {
                    Some(prompt_tokens) => Error::PromptTooLong { expert, prompt_tokens, context_tokens },
                    None => Error::OnServer {
                        expert,
                        server: self.model.url.clone(),
                        reason,
                        hint: format!("its context has {context_tokens} tokens; a prompt is never cut"),
                    },
                }
            }
            fault => {
                let request = format!("answer with `{}`", self.model.name);
                remote::failed(&self.server.address, &request, (tries, fault))
            }
        }
    }

    fn without_vectors(&self, error: Error) -> Error {
        match error {
            Error::Remote { reason, .. } if reason.contains("does not support") => {
                Error::NoEmbedding { expert: self.card.name.clone(), reason }
            }
            other => other,
        }
    }

    fn cannot_count(&self) -> Error {
        let reason = "it does not tell how many tokens a text has".to_owned();
        self.server.refusal("count tokens", reason)
    }
}

impl Loaded for LoadedOllama {
    fn card(&self) -> &ExpertCard {
        &self.card
    }

    fn context_tokens(&self) -> usize {
        let listed = usize::try_from(self.running.context_length).unwrap_or(usize::MAX);
        if listed > 0 { listed } else { self.model.num_ctx.unwrap_or(self.card.load.num_ctx) as usize }
    }

    fn tokens(&self, _text: &str) -> Result<usize> {
        Err(self.cannot_count())
    }

    fn prompt_tokens(&self, _prompt: &Prompt) -> Result<usize> {
        Err(self.cannot_count())
    }

    fn generate(
        &mut self,
        request: &Request,
        sink: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> Result<Generated> {
        let messages = self.messages(&request.prompt);
        self.check_prompt(&request.prompt, &messages)?;
        request.sampling.check().map_err(|reason| Error::Sampling { reason })?;
        let sink = RefCell::new(sink);
        let poll: &mut Poll<'_> = &mut || (sink.borrow_mut())(Progress::Text(""));
        match self.check_residence(poll) {
            Err(Error::Cancelled) => return Ok(cancelled(String::new())),
            other => other?,
        }
        let (route, body) = answer::body(&self.model, request, &messages, &self.stop(request));
        let (server, silence) = (&self.server, self.server.patience.silence);
        let mut last = String::new();
        let heard = patiently(&server.patience, poll, |poll| {
            let mut heard = Heard::new();
            let ended = server.lines(route, &body, silence, poll, &mut |line| {
                heard.line(line, &mut |text| (sink.borrow_mut())(Progress::Text(text)))
            });
            last.clone_from(&heard.text);
            match ended {
                Ok(()) => heard.generated(self.running.context_length),
                Err(Fault::Cancelled) => Ok(cancelled(heard.text)),
                Err(fault) if heard.is_delivered() => Err(fault.made_lasting()),
                Err(fault) => Err(fault),
            }
        });
        heard.map_err(|(tries, fault)| self.failed(tries, fault, &last))
    }

    fn embed(
        &mut self,
        texts: &[String],
        go_on: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Vec<Vec<f32>>> {
        let mut vectors = Vec::with_capacity(texts.len());
        for some in texts.chunks(EMBEDDED_AT_ONCE) {
            if some.iter().any(String::is_empty) {
                return Err(Error::EmptyPrompt { expert: self.card.name.clone() });
            }
            let done = vectors.len();
            let answer = self.server.embed(&self.model.name, some, &mut || go_on(done));
            let answer = answer.map_err(|error| self.without_vectors(error))?;
            vectors.extend(vectors::checked(&self.card.name, answer, some.len())?);
        }
        Ok(vectors)
    }

    fn switch_to(&mut self, card: &ExpertCard) -> Result<()> {
        self.card = card.clone();
        Ok(())
    }

    fn memory(&self) -> ExpertMemory {
        // The server tells the sum alone.
        ExpertMemory { weights_bytes: self.running.size, ..ExpertMemory::default() }
    }

    fn unload(self: Box<Self>) -> Result<()> {
        residence::unload(&self.server, &self.model)
    }
}

/// Tokens of a prompt that was refused for its length, where the server says how many.
fn prompt_tokens(reason: &str) -> Option<usize> {
    let (_, rest) = reason.split_once("\"n_prompt_tokens\":")?;
    rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn cancelled(text: String) -> Generated {
    let finish = Finish::Cancelled;
    Generated { text, finish, prompt_tokens: 0, output_tokens: 0, prompt_ns: 0, decode_ns: 0 }
}
