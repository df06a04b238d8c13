//! The experts that are served: the registry's, read anew for every request, and those of the pipelines.

use formats::hash;

use super::refusal::Refusal;
use crate::card::{ExpertCard, Model};
use crate::pipeline::Pipeline;
use crate::{Error, Registry, Result};

/// All experts a request can name.
#[derive(Clone)]
pub(super) struct Experts {
    registry: Registry,
    /// Experts that pipelines take straight from files; a registered one of the same name comes first.
    of_pipelines: Vec<ExpertCard>,
}

impl Experts {
    /// Collects them; files of pipelines get the SHA-256 that a registered one has.
    ///
    /// # Errors
    /// A file can't be read.
    pub(super) fn new(registry: Registry, pipelines: &[Pipeline]) -> Result<Self> {
        let mut of_pipelines: Vec<ExpertCard> = Vec::new();
        for card in pipelines.iter().flat_map(|pipeline| pipeline.experts().values()) {
            if of_pipelines.iter().any(|known| known.name == card.name) {
                continue;
            }
            let mut card = card.clone();
            if let Model::File(file) = &mut card.model
                && file.sha256.is_none()
            {
                file.sha256 = Some(hash::sha256_file(&file.file)?);
            }
            of_pipelines.push(card);
        }
        Ok(Self { registry, of_pipelines })
    }

    /// Every card, by name.
    ///
    /// # Errors
    /// A card can't be read.
    pub(super) fn cards(&self) -> Result<Vec<ExpertCard>> {
        let mut cards = self.registry.cards()?;
        for card in &self.of_pipelines {
            if !cards.iter().any(|known| known.name == card.name) {
                cards.push(card.clone());
            }
        }
        cards.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(cards)
    }

    /// The expert of a name as Ollama writes it: any case, with or without `:latest`; without a name the default one.
    pub(super) fn find(&self, name: &str) -> std::result::Result<ExpertCard, Refusal> {
        let default = if name.is_empty() { self.registry.default_expert()? } else { None };
        let name = default.as_deref().unwrap_or(name);
        if name.is_empty() {
            return Err(Refusal::bad("model is required"));
        }
        let plain = name.strip_suffix(":latest").unwrap_or(name);
        let names = self.registry.names()?;
        if let Some(known) = names.iter().find(|known| known.eq_ignore_ascii_case(plain)) {
            return self.registry.card(known).map_err(|error| match error {
                Error::UnknownExpert { .. } => Refusal::unknown_model(name),
                other => other.into(),
            });
        }
        let found = self.of_pipelines.iter().find(|card| card.name.eq_ignore_ascii_case(plain));
        found.cloned().ok_or_else(|| Refusal::unknown_model(name))
    }
}
