//! An expert's card: the model and everything that must not drift from one call to the next.

mod adapter;
mod file;
mod load;
mod provenance;
mod sampling;
mod server;

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{Error, Result};

pub use adapter::{Adapter, AdapterOptions, BaseMatch};
pub use file::{Digests, ModelFile};
pub use load::{FlashAttention, KvType, LoadOptions};
pub use provenance::Provenance;
pub use sampling::Sampling;
pub use server::{OllamaModel, OpenAiModel};

/// Everything that names an expert and decides how it is loaded and sampled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpertCard {
    /// What requests and pipelines call it; see [`check_name`].
    pub name: String,
    /// The model, and with it the engine.
    pub model: Model,
    /// A system message put before the first message of a chat that has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// Texts at which generation stops, besides the end-of-turn tokens.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// What a change of forces a reload.
    #[serde(default)]
    pub load: LoadOptions,
    /// What a request may override.
    #[serde(default)]
    pub sampling: Sampling,
    /// The expert to take where this one does not fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<String>,
    /// Where the file comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provenance: Option<Provenance>,
}

/// Where an expert's model is, which decides the engine that runs it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Model {
    /// A file on this machine, run by the embedded engine.
    File(ModelFile),
    /// A model that an Ollama server holds.
    Ollama(OllamaModel),
    /// A model behind an OpenAI-compatible server.
    OpenAi(OpenAiModel),
}

impl Model {
    /// What it is, and nothing that can differ while it stays the same: equal for two models, both answer alike.
    pub fn identity(&self) -> serde_json::Value {
        match self {
            Self::File(file) if file.adapters.is_empty() => json!({"blake3": file.blake3}),
            Self::File(file) => {
                let set = |adapter: &Adapter| json!([adapter.blake3, adapter.scale]);
                let adapters: Vec<_> = file.adapters.iter().map(set).collect();
                json!({"blake3": file.blake3, "adapters": adapters})
            }
            Self::Ollama(model) => json!({"ollama": model.name, "digest": model.digest}),
            Self::OpenAi(model) => json!({"openai": model.model, "url": model.url}),
        }
    }

    /// Whether what is loaded for one serves the other without a load; adapters are set anew.
    pub fn is_same_load(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::File(a), Self::File(b)) => (&a.file, &a.blake3) == (&b.file, &b.blake3),
            (Self::Ollama(a), Self::Ollama(b)) => {
                (&a.url, &a.name, &a.digest) == (&b.url, &b.name, &b.digest)
            }
            (Self::OpenAi(a), Self::OpenAi(b)) => a == b,
            _ => false,
        }
    }
}

/// What a caller decides about an expert; the rest of the card is read from the file.
#[derive(Debug, Clone, Default)]
pub struct CardOptions {
    /// Adapters to set over the file.
    pub adapters: Vec<AdapterOptions>,
    /// System message.
    pub system: Option<String>,
    /// Stop texts.
    pub stop: Vec<String>,
    /// What a change of forces a reload.
    pub load: LoadOptions,
    /// Sampling defaults.
    pub sampling: Sampling,
    /// The expert to take where this one does not fit.
    pub fallback: Option<String>,
}

impl ExpertCard {
    /// Makes the card of a GGUF file, after checking that an engine can use it: it opens, its architecture is
    /// known, its tokenizer is complete, its template renders and ends a turn.
    ///
    /// # Errors
    /// [`Error::Format`], [`Error::Text`] or [`Error::Card`].
    pub fn from_file(name: &str, file: &Path, options: &CardOptions, digests: Digests) -> Result<Self> {
        check_name(name)?;
        let model = ModelFile::read(name, file, &options.adapters, digests)?;
        let provenance = provenance::provenance(&model.file)?;
        Ok(Self { provenance, ..Self::of_model(name, Model::File(model), options)? })
    }

    /// Makes the card of a model that is known already.
    ///
    /// # Errors
    /// [`Error::Card`].
    pub fn of_model(name: &str, model: Model, options: &CardOptions) -> Result<Self> {
        check_name(name)?;
        let wrong = |reason: String| Error::Card { expert: name.to_owned(), reason };
        options.sampling.check().map_err(wrong)?;
        options.load.check().map_err(wrong)?;
        Ok(Self {
            name: name.to_owned(),
            model,
            system: options.system.clone(),
            stop: options.stop.clone(),
            load: options.load.clone(),
            sampling: options.sampling.clone(),
            fallback: options.fallback.clone(),
            provenance: None,
        })
    }

    /// The model file, where the model is one.
    pub fn file(&self) -> Option<&ModelFile> {
        match &self.model {
            Model::File(file) => Some(file),
            Model::Ollama(_) | Model::OpenAi(_) => None,
        }
    }

    /// When the model file last changed, since 1970; of a model on a server that is not known.
    pub fn modified(&self) -> Duration {
        self.file().map_or(Duration::ZERO, |file| Duration::from_nanos(file.file_modified))
    }

    /// The model's architecture, if its file or its server says.
    pub fn architecture(&self) -> Option<&str> {
        match &self.model {
            Model::File(file) => Some(&file.architecture),
            Model::Ollama(model) => Some(&model.family),
            Model::OpenAi(_) => None,
        }
    }

    /// Checks that a model file is still the one of the card; a server is asked when its model is loaded.
    ///
    /// # Errors
    /// [`Error::FileChanged`], [`Error::Io`] if it is gone.
    pub fn check_file(&self) -> Result<()> {
        self.file().map_or(Ok(()), |file| file.check(&self.name))
    }

    /// Whether it can take a conversation. A server always says so of itself, by a template of its own.
    pub fn has_template(&self) -> bool {
        self.file().is_none_or(|file| file.template_blake3.is_some())
    }

    /// Tokens of context the model was trained on, if its file or its server says.
    ///
    /// # Errors
    /// [`Error::Format`] if the file can't be read.
    pub fn trained_context_tokens(&self) -> Result<Option<u32>> {
        match &self.model {
            Model::File(file) => file.trained_context_tokens(),
            Model::Ollama(model) => Ok(model.trained_context_tokens),
            Model::OpenAi(_) => Ok(None),
        }
    }
}

/// Checks a name: 1 to 64 of `a-z A-Z 0-9 . _ -`, beginning with a letter or digit.
///
/// # Errors
/// [`Error::Card`].
pub fn check_name(name: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let begins_well = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if begins_well && name.len() <= 64 && name.chars().all(allowed) {
        return Ok(());
    }
    Err(Error::Card {
        expert: name.to_owned(),
        reason: "a name has 1 to 64 of the characters a-z A-Z 0-9 . _ - and begins with a letter or digit"
            .to_owned(),
    })
}
