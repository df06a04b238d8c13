//! What the steps of a pipeline will load and unload, by plan alone: the rule of the residency without the engine.

use super::{Keeping, LEFT_TO_OTHERS, serves};
use crate::budget::{Available, Budget, Share, fits};
use crate::card::{ExpertCard, Model};

/// An expert and what it is planned to take; nothing, where its model is on a server.
#[derive(Debug, Clone, Copy)]
pub struct PlannedExpert<'a> {
    /// Its card.
    pub card: &'a ExpertCard,
    /// What it takes.
    pub budget: &'a Budget,
}

/// What a step does to the residents.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StepForecast {
    /// Experts that go, by their indices.
    pub unloads: Vec<usize>,
    /// What becomes of the step's own.
    pub comes: Comes,
    /// All that are loaded while the step runs; of experts that share what is loaded, the one that is asked.
    pub residents: Vec<usize>,
}

/// How a step's expert gets there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Comes {
    /// The step asks none.
    #[default]
    None,
    /// It is loaded.
    Loads,
    /// Another role or adapter of what is loaded is taken on.
    Switches,
    /// It is there.
    Stays,
}

/// Follows the steps, each with the expert that it asks, over memory of `total_bytes` of which so much is free.
pub fn forecast(
    experts: &[PlannedExpert<'_>],
    steps: &[Option<usize>],
    available: &Available,
    total_bytes: u64,
    keeping: Keeping,
) -> Vec<StepForecast> {
    let mut residents: Vec<usize> = Vec::new();
    let mut forecasts = Vec::with_capacity(steps.len());
    for (i, step) in steps.iter().enumerate() {
        let mut unloads = Vec::new();
        let comes = match *step {
            None => Comes::None,
            Some(asked) => {
                let wanted = experts[asked].card;
                let same = residents.iter().position(|&held| serves(experts[held].card, wanted));
                match same.map(|at| residents.remove(at)) {
                    Some(held) if held == asked => Comes::Stays,
                    Some(_) => Comes::Switches,
                    None => {
                        let stays =
                            keeping == Keeping::WhereTheyFit && !matches!(wanted.model, Model::Ollama(_));
                        loop {
                            let fits = stays && has_room(experts, &residents, asked, available, total_bytes);
                            if fits || residents.is_empty() {
                                break;
                            }
                            let at = needed_latest(experts, &residents, &steps[i..]);
                            unloads.push(residents.remove(at));
                        }
                        Comes::Loads
                    }
                }
            }
        };
        residents.extend(*step);
        forecasts.push(StepForecast { unloads, comes, residents: residents.clone() });
    }
    forecasts
}

fn has_room(
    experts: &[PlannedExpert<'_>],
    residents: &[usize],
    asked: usize,
    available: &Available,
    total_bytes: u64,
) -> bool {
    let held = |share: fn(&Budget) -> &Share| -> u64 {
        residents.iter().map(|&held| share(experts[held].budget).total_bytes()).sum()
    };
    let main = held(|budget| &budget.main).saturating_add(total_bytes / LEFT_TO_OTHERS);
    let left = Available {
        card_bytes: available.card_bytes.map(|free| free.saturating_sub(held(|budget| &budget.card))),
        main_bytes: available.main_bytes.map(|free| free.saturating_sub(main)),
    };
    fits(experts[asked].budget, &left)
}

/// As the residency chooses: the one that is needed latest; of those that never are, the one asked for longest ago.
fn needed_latest(experts: &[PlannedExpert<'_>], residents: &[usize], upcoming: &[Option<usize>]) -> usize {
    let next_use = |held: usize| {
        let is_of =
            |step: &Option<usize>| step.is_some_and(|asked| serves(experts[held].card, experts[asked].card));
        upcoming.iter().position(is_of).unwrap_or(usize::MAX)
    };
    let uses = residents.iter().map(|&held| next_use(held)).enumerate();
    uses.rev().max_by_key(|&(_, next_use)| next_use).map_or(0, |(at, _)| at)
}
