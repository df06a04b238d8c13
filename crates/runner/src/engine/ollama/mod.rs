//! An Ollama server as an engine, of any of the three generations in use, over its HTTP API alone.
//!
//! A model is its name and the digest that `/api/tags` gives it. What would reload a model (context, batch, layers on
//! the card) is fixed in the model's parameters when it is created, and never sent with a request; `shift` and
//! `truncate` are off in every one, so that no prompt is cut and no context shifted without a word.
//!
//! Written from the published API and Ollama's sources of 2026 (`server/routes.go`, `api/types.go`).

mod answer;
mod api;
mod control;
mod generation;
mod loaded;
mod name;
mod process;
mod register;
mod residence;
mod server;
mod verify;

use std::ops::ControlFlow;

pub use api::{Running, Shown, StoredTensor, Tag};
pub use generation::{Generation, Version};
pub use process::{Started, start};
pub use register::{RegisterEvent, Registration, register};
pub use server::OllamaServer;

use self::loaded::LoadedOllama;
use super::Loaded;
use super::remote::Patience;
use crate::card::{ExpertCard, OllamaModel};
use crate::{Error, Result};

/// Where Ollama listens unless it is told otherwise.
pub const DEFAULT_HOST: &str = "127.0.0.1:11434";

/// Loads experts on the Ollama servers that their cards name.
#[derive(Debug, Clone, Default)]
pub struct OllamaEngine {
    patience: Patience,
}

impl OllamaEngine {
    /// An engine that waits so long.
    pub fn new(patience: Patience) -> Self {
        Self { patience }
    }

    /// Has the server load a model, after making sure that it is still the one of the card.
    ///
    /// # Errors
    /// [`Error::Remote`], [`Error::Load`] where a part of it would run on the processor, [`Error::Cancelled`].
    pub fn load(
        &self,
        card: &ExpertCard,
        model: &OllamaModel,
        progress: &mut dyn FnMut(f32) -> ControlFlow<()>,
    ) -> Result<Box<dyn Loaded>> {
        let server = OllamaServer::at(&model.url, self.patience.clone())
            .map_err(|reason| Error::Card { expert: card.name.clone(), reason })?;
        let loaded = LoadedOllama::load(server, card, model, progress)?;
        Ok(Box::new(loaded))
    }
}
