//! Registering a file with a server: sent, made a model under a name of its own, held against the file, and only then
//! given its name.

use std::path::PathBuf;

use formats::{Observer, gguf, hash};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::api::CreateLine;
use super::generation::{Generation, Version};
use super::server::OllamaServer;
use super::{name, residence, verify};
use crate::card::{Adapter, ExpertCard, LoadOptions, OllamaModel};
use crate::engine::llama::language::Language;
use crate::engine::remote::{self, Fault, Poll, Upload, patiently};
use crate::{Error, Result};

/// The way out where a server takes no adapter.
const MERGE: &str = "export the adapter merged into its base, and register that file";

/// What the tag of a model has behind it until the model is found to be what was sent.
const UNCHECKED: &str = "-unchecked";

/// A file that is to become a model of a server.
#[derive(Debug, Clone)]
pub struct Registration {
    /// What the server is to call it, with or without a tag.
    pub name: String,
    /// The GGUF file.
    pub file: PathBuf,
    /// Its SHA-256, where that is known.
    pub sha256: Option<String>,
    /// A LoRA adapter over it, as a GGUF; servers from 0.34.1 on take none.
    pub adapter: Option<PathBuf>,
    /// Texts to stop at, besides the token that ends a turn.
    pub stop: Vec<String>,
    /// System message of conversations that have none.
    pub system: Option<String>,
    /// Texts or names of licences.
    pub licenses: Vec<String>,
    /// What is fixed when it is loaded: its context, batch, threads, layers on the card become its parameters.
    pub load: LoadOptions,
}

impl Registration {
    /// The file of a card, as the card has it loaded.
    ///
    /// # Errors
    /// [`Error::Card`] if the card's model is no file.
    pub fn of_card(name: &str, card: &ExpertCard) -> Result<Self> {
        let file = card.file().ok_or_else(|| Error::Card {
            expert: card.name.clone(),
            reason: "its model is on a server already".to_owned(),
        })?;
        Ok(Self {
            name: name.to_owned(),
            file: file.file.clone(),
            sha256: file.sha256.clone(),
            adapter: adapter_of(card, &file.adapters)?,
            stop: card.stop.clone(),
            system: card.system.clone(),
            licenses: Vec::new(),
            load: card.load.clone(),
        })
    }
}

/// The one adapter that a server can take: whole, as it was trained.
fn adapter_of(card: &ExpertCard, adapters: &[Adapter]) -> Result<Option<PathBuf>> {
    match adapters {
        [] => Ok(None),
        [adapter] if adapter.scale == 1.0 => Ok(Some(adapter.file.clone())),
        _ => Err(Error::Card {
            expert: card.name.clone(),
            reason:
                "Ollama takes one adapter, as it was trained: export these merged, and register that file"
                    .to_owned(),
        }),
    }
}

/// How a registration goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum RegisterEvent {
    /// The server is known.
    Server {
        /// Its version.
        version: Version,
        /// What that version does with a file.
        generation: Generation,
    },
    /// The file's SHA-256 is computed.
    Hashing {
        /// Its length.
        bytes: u64,
    },
    /// The server holds these bytes already.
    Held,
    /// The file is on its way.
    Sending {
        /// Bytes sent.
        sent_bytes: u64,
        /// Bytes in all.
        total_bytes: u64,
    },
    /// What the server says while it makes the model.
    Status {
        /// Its words.
        status: String,
    },
    /// The stored model was held against the file.
    Checked {
        /// What was compared.
        what: String,
    },
    /// It has its name.
    Registered {
        /// The name with its tag.
        name: String,
        /// The digest that identifies it.
        digest: String,
    },
}

/// Sends a file to a server and makes it a model there, with template, stop texts and load-time parameters of its
/// own, so that nothing is left to the server to guess. What it stored is compared with the file by the rules of its
/// generation, and the prompts that it renders with the file's own template, before the name is given: what had the
/// name before stays until then.
///
/// # Errors
/// [`Error::Remote`]; [`Error::OnServer`] where the generation can't take it or stored something else.
pub fn register(
    server: &OllamaServer,
    request: &Registration,
    cancelled: &dyn Fn() -> bool,
    observer: &mut dyn Observer<RegisterEvent>,
) -> Result<OllamaModel> {
    use std::ops::ControlFlow::{Break, Continue};
    let poll: &mut Poll<'_> = &mut || if cancelled() { Break(()) } else { Continue(()) };
    let refuse = |reason: String, hint: &str| Error::OnServer {
        expert: request.name.clone(),
        server: server.url(),
        reason,
        hint: hint.to_owned(),
    };
    let named = name::with_tag(&request.name).map_err(|reason| {
        refuse(reason, "a name is [HOST/][NAMESPACE/]MODEL[:TAG], of letters, digits, `_`, `-` and `.`")
    })?;
    let version = server.version_while(poll)?;
    let generation = version.generation();
    observer.observe(RegisterEvent::Server { version, generation });
    if request.adapter.is_some() && generation == Generation::Wraps {
        let reason = format!("Ollama {version} takes no LoRA adapters any more");
        return Err(refuse(reason, MERGE));
    }
    let plan = Plan::new(request, &named, generation).map_err(|trouble| match trouble {
        Trouble::Error(error) => error,
        Trouble::Refused { reason, hint } => refuse(reason, hint),
    })?;
    let unchecked = format!("{named}{UNCHECKED}");
    let made = plan
        .send(server, request, poll, observer)
        .and_then(|files| plan.create(server, &unchecked, &files, poll, observer))
        .and_then(|()| verify::stored(server, &unchecked, &plan, poll, observer))
        .and_then(|()| verify::rendered(server, &unchecked, &plan, poll, observer))
        .and_then(|()| server.copy(&unchecked, &named));
    // Whatever came of it, this name has had its use; that it was never made is no news.
    let _ = residence::ask_to_unload(server, &unchecked);
    let _ = server.delete(&unchecked);
    made.map_err(|error| match error {
        // Ollama 0.24 makes a model of base and adapter, and can't load it for the architectures of its own engine.
        Error::Remote { reason, .. } if request.adapter.is_some() && reason.contains("lora") => {
            refuse(format!("Ollama {version} can't load the adapter: {reason}"), MERGE)
        }
        other => other,
    })?;
    let model = server.identify(&named)?;
    observer.observe(RegisterEvent::Registered { name: model.name.clone(), digest: model.digest.clone() });
    Ok(model)
}

/// Why a file can't become a model.
pub(super) enum Trouble {
    Error(Error),
    Refused { reason: String, hint: &'static str },
}

impl From<Error> for Trouble {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

/// Everything about the model that is settled before a byte is sent.
pub(super) struct Plan {
    pub expert: String,
    pub file: gguf::Reader,
    pub generation: Generation,
    pub template: std::sync::Arc<text::ChatTemplate>,
    /// What the tokenizer itself puts in front.
    pub bos: String,
    pub system: Option<String>,
    /// In Go's language, where the template can be written in it.
    pub go: Option<String>,
    pub parameters: Map<String, Value>,
    licenses: Vec<String>,
}

/// Digests of what was sent.
struct Sent {
    file: String,
    adapter: Option<String>,
}

impl Plan {
    fn new(
        request: &Registration,
        expert: &str,
        generation: Generation,
    ) -> std::result::Result<Self, Trouble> {
        let file = gguf::Reader::open(&request.file).map_err(Error::from)?;
        let Language { tokenizer, template } = Language::of(expert, file.metadata())?;
        let template = template.ok_or_else(|| Trouble::Refused {
            reason: "the file has no chat template, and the server would give it one that fits by chance"
                .to_owned(),
            hint: "set `chat_template` in the recipe and export it again",
        })?;
        let spelling = |id: Option<u32>| id.and_then(|id| tokenizer.token(id)).unwrap_or_default().to_owned();
        let bos = spelling(tokenizer.bos());
        let go = text::go_template(&template, if tokenizer.adds_bos() { &bos } else { "" });
        if go.is_none() && generation == Generation::Keeps {
            return Err(Trouble::Refused {
                reason: "its chat template does more than frame each message, and this server runs only templates of \
                         Go's language"
                    .to_owned(),
                hint: "update Ollama to 0.30 or later, which runs the template inside the file",
            });
        }
        let end = text::end_of_turn(&tokenizer, &template)
            .map_err(|source| Error::Text { expert: expert.to_owned(), source })?;
        let mut stop = vec![spelling(Some(end))];
        stop.extend(request.stop.iter().filter(|text| !text.is_empty()).cloned());
        let architecture = file.metadata().get_str("general.architecture").unwrap_or_default();
        let trained = file.metadata().get_u32(&format!("{architecture}.context_length"));
        Ok(Self {
            expert: expert.to_owned(),
            generation,
            template,
            bos,
            system: request.system.clone(),
            go,
            parameters: parameters(&request.load, trained, stop),
            licenses: request.licenses.clone(),
            file,
        })
    }

    fn send(
        &self,
        server: &OllamaServer,
        request: &Registration,
        poll: &mut Poll<'_>,
        observer: &mut dyn Observer<RegisterEvent>,
    ) -> Result<Sent> {
        let file = send(server, &request.file, request.sha256.as_deref(), poll, observer)?;
        let adapter =
            request.adapter.as_ref().map(|path| send(server, path, None, poll, observer)).transpose()?;
        Ok(Sent { file, adapter })
    }

    fn create(
        &self,
        server: &OllamaServer,
        named: &str,
        sent: &Sent,
        poll: &mut Poll<'_>,
        observer: &mut dyn Observer<RegisterEvent>,
    ) -> Result<()> {
        let mut body = json!({
            "model": named,
            "files": {"model.gguf": format!("sha256:{}", sent.file)},
            "parameters": self.parameters,
            "stream": true,
        });
        if let Some(adapter) = &sent.adapter {
            body["adapters"] = json!({"adapter.gguf": format!("sha256:{adapter}")});
        }
        if let Some(go) = &self.go {
            body["template"] = go.as_str().into();
        }
        if let Some(system) = &self.system {
            body["system"] = system.as_str().into();
        }
        if !self.licenses.is_empty() {
            body["license"] = self.licenses.as_slice().into();
        }
        // A file that is written anew takes as long as a load.
        let silence = server.patience.load;
        let made = patiently(&server.patience, poll, |poll| {
            server.lines("/api/create", &body, silence, poll, &mut |line| {
                let line: CreateLine = serde::Deserialize::deserialize(line).map_err(|error| {
                    Fault::passing(format!("a line of the answer is not the API's: {error}"))
                })?;
                let is_done = line.status == "success";
                observer.observe(RegisterEvent::Status { status: line.status });
                Ok(if is_done {
                    std::ops::ControlFlow::Break(())
                } else {
                    std::ops::ControlFlow::Continue(())
                })
            })
        });
        made.map_err(|fault| remote::failed(&server.address, &format!("make `{named}`"), fault))
    }
}

/// What is fixed when a model is loaded, as parameters of it.
fn parameters(load: &LoadOptions, trained: Option<u32>, stop: Vec<String>) -> Map<String, Value> {
    let num_ctx = if load.num_ctx > 0 { load.num_ctx } else { trained.unwrap_or(4096).clamp(1, 4096) };
    let mut parameters = Map::new();
    let mut set = |key: &str, value: Value| drop(parameters.insert(key.to_owned(), value));
    set("num_ctx", num_ctx.into());
    set("num_batch", load.num_batch.into());
    if load.num_thread > 0 {
        set("num_thread", load.num_thread.into());
    }
    if let Some(layers) = load.num_gpu {
        set("num_gpu", layers.into());
    }
    set("stop", stop.into());
    parameters
}

/// Sends a file, unless the server holds its bytes; gives its digest.
fn send(
    server: &OllamaServer,
    path: &std::path::Path,
    sha256: Option<&str>,
    poll: &mut Poll<'_>,
    observer: &mut dyn Observer<RegisterEvent>,
) -> Result<String> {
    let bytes = std::fs::metadata(path).map_err(Error::io(path))?.len();
    let digest = match sha256 {
        Some(known) => known.to_owned(),
        None => {
            observer.observe(RegisterEvent::Hashing { bytes });
            hash::sha256_file(path)?
        }
    };
    if server.has_blob(&digest, poll)? {
        observer.observe(RegisterEvent::Held);
        return Ok(digest);
    }
    let upload = Upload::new(path, bytes);
    let mut told = None;
    server.push_blob(&digest, &upload, &mut || {
        let sent_bytes = upload.sent();
        if told != Some(sent_bytes) {
            told = Some(sent_bytes);
            observer.observe(RegisterEvent::Sending { sent_bytes, total_bytes: bytes });
        }
        poll()
    })?;
    Ok(digest)
}
