//! An expert held against the memory there is, before it is loaded.

use formats::gguf;

use super::{Available, Budget, Head, Place, Remedy, budget, fits, remedies};
use crate::card::{ExpertCard, ModelFile};
use crate::{Error, Result};

/// What an expert takes, and what is to be done where that is too much.
#[derive(Debug, Clone)]
pub struct Planned {
    /// What it takes.
    pub budget: Budget,
    /// Where it runs.
    pub place: Place,
    /// What would fit, where it does not.
    pub remedies: Vec<Remedy>,
    /// The memory that is too small for it, and what is free there.
    pub short_of: Option<(Place, u64)>,
}

impl Planned {
    /// Reads the head of an expert's file and adds up what it takes; `fallback` is the expert that its card names.
    ///
    /// # Errors
    /// [`Error::Format`] if a file can't be read, [`Error::Card`] if the model is none.
    pub fn new(
        card: &ExpertCard,
        place: Place,
        available: &Available,
        fallback: Option<&ExpertCard>,
    ) -> Result<Self> {
        let place = place_of(card, place);
        let file = card.file().ok_or_else(|| Error::Card {
            expert: card.name.clone(),
            reason: "its model is on a server, which alone knows what it takes".to_owned(),
        })?;
        let head = head_of(file)?;
        let budget = budget(&head, &card.load, place);
        let short_of = short_of(&budget, available);
        let mut planned = Self { budget, place, remedies: Vec::new(), short_of };
        if planned.short_of.is_some() {
            planned.remedies = remedies(&head, &card.load, place, available);
            planned
                .remedies
                .extend(fallback.map(|card| other(card, place, available)).transpose()?.flatten());
        }
        Ok(planned)
    }

    /// The refusal of an expert that does not fit.
    ///
    /// # Errors
    /// [`Error::DoesNotFit`].
    pub fn check(&self, expert: &str) -> Result<()> {
        let Some((place, free_bytes)) = self.short_of else { return Ok(()) };
        Err(Error::DoesNotFit {
            expert: expert.to_owned(),
            place,
            share: *self.budget.share(place),
            free_bytes,
            remedies: self.remedies.clone(),
        })
    }
}

/// The head of a file with its adapters.
fn head_of(file: &ModelFile) -> Result<Head> {
    let mut head = Head::of_file(&gguf::Reader::open(&file.file)?);
    for adapter in &file.adapters {
        head.add_adapter(&gguf::Reader::open(&adapter.file)?);
    }
    Ok(head)
}

/// An expert whose card leaves no layer to the graphics card runs in main memory.
fn place_of(card: &ExpertCard, place: Place) -> Place {
    if card.load.num_gpu == Some(0) { Place::Main } else { place }
}

fn short_of(budget: &Budget, available: &Available) -> Option<(Place, u64)> {
    let card = Available { main_bytes: None, ..*available };
    let main = Available { card_bytes: None, ..*available };
    let short = |place, of: &Available, free: Option<u64>| {
        (!fits(budget, of)).then(|| (place, free.unwrap_or_default()))
    };
    short(Place::Card, &card, available.card_bytes)
        .or_else(|| short(Place::Main, &main, available.main_bytes))
}

/// The fallback as a remedy, if it fits; one on a server takes nothing here.
fn other(card: &ExpertCard, place: Place, available: &Available) -> Result<Option<Remedy>> {
    let Some(file) = card.file() else {
        return Ok(Some(Remedy::Server { expert: card.name.clone() }));
    };
    let place = place_of(card, place);
    let budget = budget(&head_of(file)?, &card.load, place);
    let need_bytes = budget.share(place).total_bytes();
    Ok(fits(&budget, available).then(|| Remedy::Fallback { expert: card.name.clone(), need_bytes }))
}
