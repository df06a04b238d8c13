//! A model of a server, as an expert.

use std::cell::RefCell;
use std::ops::ControlFlow;

use serde::Deserialize;
use serde_json::json;
use text::Message;

use super::body::body;
use super::events::Heard;
use crate::card::{ExpertCard, OpenAiModel};
use crate::engine::remote::{
    self, Address, Ask, Fault, Limits, Lines, Patience, Poll, Wire, patiently, vectors,
};
use crate::engine::{ExpertMemory, Finish, Generated, Loaded, Progress, Prompt, Request};
use crate::{Error, Result};

/// One event.
const LINE_BYTES: usize = 4 << 20;

/// All events of an answer.
const STREAM_BYTES: usize = 256 << 20;

/// Texts of one request for vectors: between two the caller can break.
const EMBEDDED_AT_ONCE: usize = 32;

/// Their vectors.
const EMBEDDED_BYTES: usize = 64 << 20;

/// `POST /embeddings`.
#[derive(Deserialize)]
struct Embedded {
    data: Vec<Entry>,
}

#[derive(Deserialize)]
struct Entry {
    #[serde(default)]
    index: usize,
    embedding: Vec<f32>,
}

/// A model of a server.
pub(super) struct LoadedOpenAi {
    pub card: ExpertCard,
    pub model: OpenAiModel,
    pub address: Address,
    pub key: Option<String>,
    pub patience: Patience,
    /// The context it has, where the server says.
    pub context: Option<usize>,
}

impl LoadedOpenAi {
    fn refusal(&self, request: &str, reason: &str) -> Error {
        remote::failed(&self.address, request, (1, Fault::lasting(reason)))
    }

    fn messages(&self, prompt: &Prompt) -> Result<Vec<Message>> {
        let Prompt::Chat(messages) = prompt else {
            return Err(self.refusal("continue a text", "it takes conversations alone"));
        };
        if messages.is_empty() {
            return Err(Error::EmptyPrompt { expert: self.card.name.clone() });
        }
        let has_one = messages.first().is_some_and(|message| message.role == "system");
        let system = self.card.system.as_ref().filter(|_| !has_one);
        let system = system.map(|text| Message::new("system", text.as_str()));
        Ok(system.into_iter().chain(messages.iter().cloned()).collect())
    }

    /// Asks once.
    fn hear(
        &self,
        body: &serde_json::Value,
        heard: &mut Heard,
        poll: &mut Poll<'_>,
        tell: &mut dyn FnMut(&str) -> ControlFlow<()>,
    ) -> std::result::Result<(), Fault> {
        let wire = Wire::get().map_err(|error| Fault::lasting(error.to_string()))?;
        let limits = Limits { silence: self.patience.silence, bytes: STREAM_BYTES };
        let mut ask = Ask::post(&self.address, "/chat/completions", body, &self.patience, limits);
        ask.key = self.key.as_deref();
        let mut lines = Lines::new(LINE_BYTES);
        wire.stream(&ask, poll, &mut |piece| {
            lines.push(piece, &mut |line| heard.line(line, tell))?;
            Ok(if heard.is_done { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        if !lines.rest().is_empty() {
            heard.line(lines.rest(), tell)?;
        }
        heard.end(tell)
    }
}

impl Loaded for LoadedOpenAi {
    fn card(&self) -> &ExpertCard {
        &self.card
    }

    fn context_tokens(&self) -> usize {
        self.context.unwrap_or(self.card.load.num_ctx as usize)
    }

    fn tokens(&self, _text: &str) -> Result<usize> {
        Err(self.refusal("count tokens", "the API does not tell how many tokens a text has"))
    }

    fn prompt_tokens(&self, _prompt: &Prompt) -> Result<usize> {
        Err(self.refusal("count tokens", "the API does not tell how many tokens a prompt has"))
    }

    fn generate(
        &mut self,
        request: &Request,
        sink: &mut dyn FnMut(Progress<'_>) -> ControlFlow<()>,
    ) -> Result<Generated> {
        let messages = self.messages(&request.prompt)?;
        request.sampling.check().map_err(|reason| Error::Sampling { reason })?;
        let stop: Vec<&String> =
            self.card.stop.iter().chain(&request.stop).filter(|text| !text.is_empty()).collect();
        let body = body(&self.model, request, &messages, &stop);
        let sink = RefCell::new(sink);
        let poll: &mut Poll<'_> = &mut || (sink.borrow_mut())(Progress::Text(""));
        let mut delivered = 0;
        let heard = patiently(&self.patience, poll, |poll| {
            let mut heard = Heard::new();
            let ended =
                self.hear(&body, &mut heard, poll, &mut |text| (sink.borrow_mut())(Progress::Text(text)));
            delivered = heard.text.chars().count();
            let ended = match ended {
                Ok(()) => heard.generated(),
                Err(Fault::Cancelled) => {
                    let (text, finish) = (heard.text, Finish::Cancelled);
                    Ok(Generated {
                        text,
                        finish,
                        prompt_tokens: 0,
                        output_tokens: 0,
                        prompt_ns: 0,
                        decode_ns: 0,
                    })
                }
                Err(fault) => Err(fault),
            };
            ended.map_err(|fault| if delivered > 0 { fault.made_lasting() } else { fault })
        });
        heard.map_err(|(tries, fault)| match fault {
            Fault::Cancelled => Error::Cancelled,
            Fault::Lasting { reason, .. } if delivered > 0 => Error::Decode {
                expert: self.card.name.clone(),
                reason: format!("{} broke off after {delivered} characters: {reason}", self.address),
            },
            fault => {
                remote::failed(&self.address, &format!("answer with `{}`", self.model.model), (tries, fault))
            }
        })
    }

    fn embed(
        &mut self,
        texts: &[String],
        go_on: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Vec<Vec<f32>>> {
        let wire = Wire::get()?;
        let mut all = Vec::with_capacity(texts.len());
        for some in texts.chunks(EMBEDDED_AT_ONCE) {
            if some.iter().any(String::is_empty) {
                return Err(Error::EmptyPrompt { expert: self.card.name.clone() });
            }
            let body = json!({"model": self.model.model, "input": some, "encoding_format": "float"});
            let limits = Limits { silence: self.patience.silence, bytes: EMBEDDED_BYTES };
            let done = all.len();
            let answer = patiently(&self.patience, &mut || go_on(done), |poll| {
                let mut ask = Ask::post(&self.address, "/embeddings", &body, &self.patience, limits);
                ask.key = self.key.as_deref();
                let answer: Embedded = serde_json::from_value(wire.json(&ask, poll)?)
                    .map_err(|error| Fault::passing(format!("the answer is not the API's: {error}")))?;
                Ok(answer)
            });
            let request = format!("embed with `{}`", self.model.model);
            let mut answer = answer.map_err(|fault| remote::failed(&self.address, &request, fault))?.data;
            // They may come in any order.
            answer.sort_by_key(|entry| entry.index);
            let given = answer.into_iter().map(|entry| entry.embedding).collect();
            all.extend(vectors::checked(&self.card.name, given, some.len())?);
        }
        Ok(all)
    }

    fn switch_to(&mut self, card: &ExpertCard) -> Result<()> {
        self.card = card.clone();
        Ok(())
    }

    /// What it takes elsewhere nobody here knows.
    fn memory(&self) -> ExpertMemory {
        ExpertMemory::default()
    }

    fn unload(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
