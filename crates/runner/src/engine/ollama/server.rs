//! The routes of a server, each asked with patience and read within bounds.

use std::ops::ControlFlow;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::api::{Processes, Running, Shown, Tag, Tags, VersionAnswer};
use super::generation::{OLDEST, Version};
use super::name;
use crate::card::OllamaModel;
use crate::engine::remote::{
    self, Address, Ask, Content, Fault, Limits, Lines, Method, Patience, Poll, Upload, Wire, patiently,
};
use crate::{Error, Result};

/// Answers that list or show; with a vocabulary of 250,000 tokens and its merges one has 20 MB.
const ANSWER_BYTES: usize = 64 << 20;

/// All lines of a stream together.
const STREAM_BYTES: usize = 256 << 20;

/// One line of a stream; the last one of `/api/generate` lists every token of the context.
pub(super) const LINE_BYTES: usize = 4 << 20;

/// One Ollama server.
#[derive(Debug, Clone)]
pub struct OllamaServer {
    pub(super) address: Address,
    pub(super) patience: Patience,
}

impl OllamaServer {
    /// The server at an address, written as `OLLAMA_HOST` has it.
    ///
    /// # Errors
    /// What is wrong with the address, as text.
    pub fn at(host: &str, patience: Patience) -> std::result::Result<Self, String> {
        Ok(Self { address: Address::of_ollama(host)?, patience })
    }

    /// Its address as a URL.
    pub fn url(&self) -> String {
        self.address.to_string()
    }

    /// Whether it is this machine.
    pub fn is_local(&self) -> bool {
        self.address.is_loopback()
    }

    /// Its version.
    ///
    /// # Errors
    /// [`Error::Remote`] if it does not answer, or is too old to be relied on.
    pub fn version(&self) -> Result<Version> {
        self.version_while(&mut always)
    }

    pub(super) fn version_while(&self, poll: &mut Poll<'_>) -> Result<Version> {
        let answer = self.ask::<VersionAnswer>("tell its version", Method::GET, "/api/version", None, poll);
        let answer = answer.map_err(|error| self.hint_to_start(error))?;
        let refuse = |reason, hint: Option<&str>| Error::Remote {
            server: self.url(),
            request: "tell its version".to_owned(),
            tries: 1,
            reason,
            hint: hint.map(str::to_owned),
        };
        let version = Version::parse(&answer.version).map_err(|reason| refuse(reason, None))?;
        if version.is_too_old() {
            let reason = format!("Ollama {version} cuts a prompt that is too long without a word");
            return Err(refuse(reason, Some(&format!("update it to {OLDEST} or later"))));
        }
        Ok(version)
    }

    fn hint_to_start(&self, error: Error) -> Error {
        match error {
            Error::Remote { server, request, tries, reason, hint: None } if self.is_local() => {
                let hint = Some("is Ollama running there? `ollama serve` starts it".to_owned());
                Error::Remote { server, request, tries, reason, hint }
            }
            other => other,
        }
    }

    /// The models that it holds.
    ///
    /// # Errors
    /// [`Error::Remote`].
    pub fn tags(&self) -> Result<Vec<Tag>> {
        self.tags_while(&mut always)
    }

    pub(super) fn tags_while(&self, poll: &mut Poll<'_>) -> Result<Vec<Tag>> {
        Ok(self.ask::<Tags>("list its models", Method::GET, "/api/tags", None, poll)?.models)
    }

    /// A model that it holds, by name.
    ///
    /// # Errors
    /// [`Error::Remote`], also if there is none of that name.
    pub fn tag(&self, name: &str) -> Result<Tag> {
        self.tag_while(name, &mut always)
    }

    pub(super) fn tag_while(&self, name: &str, poll: &mut Poll<'_>) -> Result<Tag> {
        let tags = self.tags_while(poll)?;
        if let Some(tag) = tags.iter().find(|tag| name::is_same(&tag.name, name)) {
            return Ok(tag.clone());
        }
        let mut known: Vec<&str> = tags.iter().map(|tag| tag.name.as_str()).take(20).collect();
        known.sort_unstable();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        Err(Error::Remote {
            server: self.url(),
            request: format!("find `{name}`"),
            tries: 1,
            reason: format!("it holds no model of that name; it has: {known}"),
            hint: Some(format!("`ollama pull {name}` downloads one, `tune register` brings a file of yours")),
        })
    }

    /// The models that are loaded.
    ///
    /// # Errors
    /// [`Error::Remote`].
    pub fn ps(&self) -> Result<Vec<Running>> {
        self.ps_while(&mut always)
    }

    pub(super) fn ps_while(&self, poll: &mut Poll<'_>) -> Result<Vec<Running>> {
        Ok(self.ask::<Processes>("list what is loaded", Method::GET, "/api/ps", None, poll)?.models)
    }

    /// What a model is made of.
    ///
    /// # Errors
    /// [`Error::Remote`].
    pub fn show(&self, name: &str) -> Result<Shown> {
        self.show_while(name, Detail::Short, &mut always)
    }

    pub(super) fn show_while(&self, name: &str, detail: Detail, poll: &mut Poll<'_>) -> Result<Shown> {
        let body = json!({"model": name, "verbose": detail == Detail::Lists});
        self.ask(&format!("show `{name}`"), Method::POST, "/api/show", Some(&body), poll)
    }

    /// What the card of a model says of it.
    ///
    /// # Errors
    /// [`Error::Remote`], also if there is none of that name or it runs elsewhere.
    pub fn identify(&self, name: &str) -> Result<OllamaModel> {
        let name = name::with_tag(name).map_err(|reason| self.refusal("find a model", reason))?;
        self.version()?;
        let (tag, shown) = (self.tag(&name)?, self.show(&name)?);
        if let Some(elsewhere) =
            [&tag.remote_host, &shown.remote_host].into_iter().find(|host| !host.is_empty())
        {
            return Err(self.refusal(
                &format!("find `{name}`"),
                format!("it does not run there but on {elsewhere}, which its name does not say"),
            ));
        }
        let digest = tag.digest.strip_prefix("sha256:").unwrap_or(&tag.digest).to_owned();
        if digest.is_empty() {
            return Err(self.refusal(&format!("find `{name}`"), "the list gives it no digest".to_owned()));
        }
        let count = |value: Option<u64>| value.and_then(|value| u32::try_from(value).ok());
        let parameter = |key| count(shown.number(key).and_then(|value| u64::try_from(value).ok()));
        Ok(OllamaModel {
            url: self.url(),
            name: tag.name,
            digest,
            size_bytes: tag.size,
            family: tag.details.family,
            parameter_size: tag.details.parameter_size,
            weight_type: tag.details.quantization_level,
            num_ctx: parameter("num_ctx"),
            num_gpu: parameter("num_gpu"),
            stop: shown.parameter("stop"),
            trained_context_tokens: count(shown.of_architecture("context_length")),
            capabilities: shown.capabilities,
        })
    }

    /// Gives a model a second name.
    ///
    /// # Errors
    /// [`Error::Remote`].
    pub fn copy(&self, from: &str, to: &str) -> Result<()> {
        let body = json!({"source": from, "destination": to});
        self.ask(&format!("copy `{from}` to `{to}`"), Method::POST, "/api/copy", Some(&body), &mut always)
    }

    /// Removes a name, and what no other name needs.
    ///
    /// # Errors
    /// [`Error::Remote`].
    pub fn delete(&self, name: &str) -> Result<()> {
        let body = json!({"model": name});
        self.ask(&format!("delete `{name}`"), Method::DELETE, "/api/delete", Some(&body), &mut always)
    }

    /// Vectors of texts.
    ///
    /// # Errors
    /// [`Error::Remote`].
    pub(super) fn embed(&self, name: &str, texts: &[String], poll: &mut Poll<'_>) -> Result<Vec<Vec<f32>>> {
        #[derive(serde::Deserialize)]
        struct Embedded {
            embeddings: Vec<Vec<f32>>,
        }
        let body = json!({"model": name, "input": texts, "truncate": false});
        let request = format!("embed with `{name}`");
        let limits = Limits { silence: self.patience.load, bytes: ANSWER_BYTES };
        let answer: Embedded =
            self.ask_within(&request, Method::POST, "/api/embed", Some(&body), limits, poll)?;
        Ok(answer.embeddings)
    }

    /// Whether it holds these bytes.
    pub(super) fn has_blob(&self, sha256: &str, poll: &mut Poll<'_>) -> Result<bool> {
        let route = format!("/api/blobs/sha256:{sha256}");
        let wire = Wire::get()?;
        let status = patiently(&self.patience, poll, |poll| {
            let ask = Ask::new(
                Method::HEAD,
                &self.address,
                &route,
                Content::Nothing,
                &self.patience,
                self.limits(self.patience.answer),
            );
            match wire.status(&ask, poll)? {
                status if status >= 500 => Err(Fault::passing(format!("status {status}"))),
                status => Ok(status),
            }
        })
        .map_err(|fault| remote::failed(&self.address, "look for a blob", fault))?;
        match status {
            200 => Ok(true),
            404 => Ok(false),
            other => Err(self.refusal("look for a blob", format!("status {other}"))),
        }
    }

    /// Sends a file, whose SHA-256 the server checks.
    pub(super) fn push_blob(&self, sha256: &str, upload: &Upload, poll: &mut Poll<'_>) -> Result<()> {
        let route = format!("/api/blobs/sha256:{sha256}");
        let wire = Wire::get()?;
        patiently(&self.patience, poll, |poll| {
            let ask = Ask::new(
                Method::POST,
                &self.address,
                &route,
                Content::File(upload),
                &self.patience,
                // Once all is sent the server has yet to write it, and to compare its checksum.
                self.limits(self.patience.load),
            );
            wire.json(&ask, poll).map(drop)
        })
        .map_err(|fault| remote::failed(&self.address, "take a file", fault))
    }

    /// Posts and gives every line of the answer to `each`, which breaks at the last; a stream that ends before is a
    /// fault. Tried once.
    pub(super) fn lines(
        &self,
        route: &str,
        body: &Value,
        silence: Duration,
        poll: &mut Poll<'_>,
        each: &mut dyn FnMut(&Value) -> std::result::Result<ControlFlow<()>, Fault>,
    ) -> std::result::Result<(), Fault> {
        let wire = Wire::get().map_err(|error| Fault::lasting(error.to_string()))?;
        let limits = Limits { silence, bytes: STREAM_BYTES };
        let ask = Ask::post(&self.address, route, body, &self.patience, limits);
        let (mut lines, mut ended) = (Lines::new(LINE_BYTES), false);
        wire.stream(&ask, poll, &mut |piece| {
            lines.push(piece, &mut |line| {
                if !ended && !line.iter().all(u8::is_ascii_whitespace) {
                    ended = each(&read_line(line)?)?.is_break();
                }
                Ok::<(), Fault>(())
            })?;
            Ok(if ended { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
        })?;
        if ended {
            return Ok(());
        }
        Err(match lines.rest() {
            [] => Fault::passing("the stream ended before its last line"),
            // A last line needs no end.
            rest => match read_line(rest).and_then(|value| each(&value)) {
                Ok(ControlFlow::Break(())) => return Ok(()),
                Ok(ControlFlow::Continue(())) => Fault::passing("the stream ended before its last line"),
                Err(Fault::Passing { .. }) => Fault::passing("the stream ended within a line"),
                Err(fault) => fault,
            },
        })
    }

    pub(super) fn limits(&self, silence: Duration) -> Limits {
        Limits { silence, bytes: ANSWER_BYTES }
    }

    pub(super) fn refusal(&self, request: &str, reason: String) -> Error {
        let request = request.to_owned();
        Error::Remote { server: self.url(), request, tries: 1, reason, hint: None }
    }

    fn ask<T: DeserializeOwned>(
        &self,
        request: &str,
        method: Method,
        route: &str,
        body: Option<&Value>,
        poll: &mut Poll<'_>,
    ) -> Result<T> {
        self.ask_within(request, method, route, body, self.limits(self.patience.answer), poll)
    }

    pub(super) fn ask_within<T: DeserializeOwned>(
        &self,
        request: &str,
        method: Method,
        route: &str,
        body: Option<&Value>,
        limits: Limits,
        poll: &mut Poll<'_>,
    ) -> Result<T> {
        let wire = Wire::get()?;
        let answer = patiently(&self.patience, poll, |poll| {
            let content = body.map_or(Content::Nothing, Content::Json);
            let ask = Ask::new(method.clone(), &self.address, route, content, &self.patience, limits);
            let value = wire.json(&ask, poll)?;
            error_in(&value)?;
            serde_json::from_value(value)
                .map_err(|error| Fault::passing(format!("the answer is not the API's: {error}")))
        });
        answer.map_err(|fault| remote::failed(&self.address, request, fault))
    }
}

/// How much of a model is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Detail {
    /// Without its lists.
    Short,
    /// With every token.
    Lists,
}

/// Somebody always waits for a short question.
pub(super) fn always() -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn read_line(line: &[u8]) -> std::result::Result<Value, Fault> {
    let value = serde_json::from_slice(line)
        .map_err(|error| Fault::passing(format!("a line of the answer is no JSON: {error}")))?;
    error_in(&value)?;
    Ok(value)
}

/// An error that a server tells under a status of success: of a stream it is the last line.
fn error_in(value: &Value) -> std::result::Result<(), Fault> {
    if value.get("error").is_none_or(Value::is_null) {
        return Ok(());
    }
    let words = remote::body::words_of(value).unwrap_or_default();
    let status = value.get("status").and_then(Value::as_u64).unwrap_or(500);
    if (400..500).contains(&status) { Err(Fault::lasting(words)) } else { Err(Fault::passing(words)) }
}
