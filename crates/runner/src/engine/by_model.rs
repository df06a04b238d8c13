//! One engine of several: each expert goes to the engine that its card's model needs.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::ControlFlow;

use super::llama::LlamaEngine;
use super::ollama::OllamaEngine;
use super::openai::OpenAiEngine;
use super::remote::Patience;
use super::{Engine, Loaded};
use crate::Result;
use crate::budget::Place;
use crate::card::{ExpertCard, Model};
use crate::memory::MemoryState;

/// What servers are asked with.
#[derive(Clone, Default)]
pub struct Servers {
    /// Keys, by the environment variables that cards name. They are kept in memory alone.
    pub keys: BTreeMap<String, String>,
    /// How long servers are waited for.
    pub patience: Patience,
}

/// Keys are never shown.
impl fmt::Debug for Servers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&String> = self.keys.keys().collect();
        f.debug_struct("Servers").field("keys", &names).field("patience", &self.patience).finish()
    }
}

/// The embedded llama.cpp for files, Ollama and OpenAI-compatible servers for what they hold.
#[derive(Debug)]
pub struct EngineByModel {
    llama: LlamaEngine,
    ollama: OllamaEngine,
    openai: OpenAiEngine,
}

impl EngineByModel {
    /// Starts the embedded engine; servers are asked when an expert of theirs is loaded.
    ///
    /// # Errors
    /// [`crate::Error::Processor`].
    pub fn new(servers: Servers) -> Result<Self> {
        Ok(Self {
            llama: LlamaEngine::new()?,
            ollama: OllamaEngine::new(servers.patience.clone()),
            openai: OpenAiEngine::new(servers),
        })
    }
}

impl Engine for EngineByModel {
    fn name(&self) -> String {
        self.llama.name()
    }

    fn load(
        &mut self,
        card: &ExpertCard,
        progress: &mut dyn FnMut(f32) -> ControlFlow<()>,
    ) -> Result<Box<dyn Loaded>> {
        match &card.model {
            Model::File(_) => self.llama.load(card, progress),
            Model::Ollama(model) => self.ollama.load(card, model, progress),
            Model::OpenAi(model) => self.openai.load(card, model, progress),
        }
    }

    fn place(&self) -> Place {
        self.llama.place()
    }

    /// This machine's: what a server on it takes is missing there too.
    fn memory(&self) -> MemoryState {
        self.llama.memory()
    }
}
