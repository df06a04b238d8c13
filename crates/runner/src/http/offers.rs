//! What a request can name as its model: the registry's experts, read anew each time, those of the pipelines, and the
//! pipelines themselves.

use std::sync::Arc;

use formats::hash;

use super::refusal::Refusal;
use crate::card::{ExpertCard, Model};
use crate::pipeline::Pipeline;
use crate::{Error, Registry, Result};

/// All that a request can name.
#[derive(Clone)]
pub(super) struct Offers {
    registry: Registry,
    /// Experts that pipelines take straight from files; a registered one of the same name comes first.
    of_pipelines: Vec<ExpertCard>,
    pipelines: Arc<[Arc<Pipeline>]>,
}

/// What a name means.
pub(super) enum Offer {
    Expert(Box<ExpertCard>),
    Pipeline(Arc<Pipeline>),
}

impl Offers {
    /// Collects them; files of pipelines get the SHA-256 that a registered one has.
    ///
    /// # Errors
    /// [`Error::Server`] if two have one name; a file can't be read.
    pub(super) fn new(registry: Registry, pipelines: Vec<Pipeline>) -> Result<Self> {
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
        let pipelines = pipelines.into_iter().map(Arc::new).collect();
        let offers = Self { registry, of_pipelines, pipelines };
        offers.refuse_clashes()?;
        Ok(offers)
    }

    /// A request would get another answer than it asks for.
    fn refuse_clashes(&self) -> Result<()> {
        let experts = self.cards()?;
        for (i, pipeline) in self.pipelines.iter().enumerate() {
            let name = pipeline.name();
            let is_same = |other: &str| other.eq_ignore_ascii_case(name);
            let what = if self.pipelines[..i].iter().any(|other| is_same(other.name())) {
                "another pipeline"
            } else if experts.iter().any(|card| is_same(&card.name)) {
                "an expert"
            } else {
                continue;
            };
            let reason = format!(
                "pipeline `{name}` has the name of {what}, and a request could mean either: give it another, with \
                 `name = \"…\"` at the top of its file"
            );
            return Err(Error::Server { reason });
        }
        Ok(())
    }

    /// Every expert, by name.
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

    /// Every pipeline, as the server was started with them.
    pub(super) fn pipelines(&self) -> &[Arc<Pipeline>] {
        &self.pipelines
    }

    /// The pipelines that can be asked as a model is: those that write an answer.
    pub(super) fn answering(&self) -> impl Iterator<Item = &Pipeline> {
        self.pipelines.iter().map(Arc::as_ref).filter(|pipeline| pipeline.answering().is_some())
    }

    /// What a name means as Ollama writes it: any case, with or without `:latest`; without a name the default expert.
    /// An expert that got a pipeline's name after the start does not take its place.
    pub(super) fn find(&self, name: &str) -> std::result::Result<Offer, Refusal> {
        let default = if name.is_empty() { self.registry.default_expert()? } else { None };
        let name = default.as_deref().unwrap_or(name);
        if name.is_empty() {
            return Err(Refusal::bad("model is required"));
        }
        let plain = name.strip_suffix(":latest").unwrap_or(name);
        let is_meant = |other: &str| other.eq_ignore_ascii_case(plain);
        if let Some(pipeline) = self.pipelines.iter().find(|pipeline| is_meant(pipeline.name())) {
            return Ok(Offer::Pipeline(Arc::clone(pipeline)));
        }
        if let Some(known) = self.registry.names()?.iter().find(|known| is_meant(known)) {
            let card = self.registry.card(known).map_err(|error| match error {
                Error::UnknownExpert { .. } => Refusal::unknown_model(name),
                other => other.into(),
            });
            return card.map(|card| Offer::Expert(Box::new(card)));
        }
        let found = self.of_pipelines.iter().find(|card| is_meant(&card.name));
        found.map(|card| Offer::Expert(Box::new(card.clone()))).ok_or_else(|| Refusal::unknown_model(name))
    }
}
