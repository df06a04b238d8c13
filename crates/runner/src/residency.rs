//! One expert at a time: load, process, unload, with free memory measured around each.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use formats::Observer;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::budget::{Available, Budget, Planned};
use crate::card::ExpertCard;
use crate::engine::{Engine, ExpertMemory, Loaded};
use crate::memory::MemoryState;

/// What happens to the resident expert.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum ResidencyEvent {
    /// A load begins.
    Loading {
        /// The expert.
        expert: String,
        /// What it is expected to take; nothing where its model is on a server, which alone knows.
        needs: ExpertMemory,
        /// The same by place, with what the engine takes beside it.
        planned: Budget,
        /// Memory before.
        memory: MemoryState,
    },
    /// A load goes on.
    LoadProgress {
        /// The expert.
        expert: String,
        /// 0 to 1.
        part: f32,
    },
    /// It is there.
    Loaded {
        /// The expert.
        expert: String,
        /// How long it took.
        load_ms: f64,
        /// What it takes.
        takes: ExpertMemory,
        /// Memory after.
        memory: MemoryState,
    },
    /// It is gone.
    Unloaded {
        /// The expert.
        expert: String,
        /// How long it took.
        unload_ms: f64,
        /// Memory after.
        memory: MemoryState,
    },
}

/// Progress of a load is told in steps of this part.
const PROGRESS_STEP: f32 = 0.05;

/// An engine and the one expert that is loaded in it.
pub struct Residency {
    engine: Box<dyn Engine>,
    resident: Option<Box<dyn Loaded>>,
    n_loads: u64,
}

impl Residency {
    /// An engine with nothing loaded.
    pub fn new(engine: Box<dyn Engine>) -> Self {
        Self { engine, resident: None, n_loads: 0 }
    }

    /// The engine.
    pub fn engine(&self) -> &dyn Engine {
        self.engine.as_ref()
    }

    /// The card of the resident expert.
    pub fn resident(&self) -> Option<&dyn Loaded> {
        self.resident.as_deref()
    }

    /// How many loads there were.
    pub fn n_loads(&self) -> u64 {
        self.n_loads
    }

    /// The expert, loaded: kept if its file is resident under the same load options, else what is resident is
    /// unloaded first, free memory measured, and the expert refused if it does not fit, with what would. Also how
    /// long the load took.
    ///
    /// # Errors
    /// [`crate::Error::DoesNotFit`], [`crate::Error::FileChanged`], [`crate::Error::Load`], [`crate::Error::Cancelled`].
    pub fn get(
        &mut self,
        card: &ExpertCard,
        cancelled: &dyn Fn() -> bool,
        observer: &mut dyn Observer<ResidencyEvent>,
    ) -> Result<(&mut dyn Loaded, Duration)> {
        self.get_or_name(card, None, cancelled, observer)
    }

    /// As [`Residency::get`]; where the expert does not fit, `fallback`, the expert that its card names for that, is
    /// among what would.
    ///
    /// # Errors
    /// As [`Residency::get`].
    pub fn get_or_name(
        &mut self,
        card: &ExpertCard,
        fallback: Option<&ExpertCard>,
        cancelled: &dyn Fn() -> bool,
        observer: &mut dyn Observer<ResidencyEvent>,
    ) -> Result<(&mut dyn Loaded, Duration)> {
        let same = |resident: &dyn Loaded| {
            let held = resident.card();
            held.model.is_same_load(&card.model) && held.load == card.load
        };
        if self.resident.as_deref().is_some_and(same) {
            return self.kept(card);
        }
        self.clear(observer)?;
        card.check_file()?;
        let memory = self.engine.memory();
        let mut planned = Budget::default();
        if card.file().is_some() {
            let fitted = Planned::new(card, self.engine.place(), &Available::now(&memory), fallback)?;
            fitted.check(&card.name)?;
            planned = fitted.budget;
        }
        let needs = planned.memory();
        observer.observe(ResidencyEvent::Loading { expert: card.name.clone(), needs, planned, memory });
        let begun = Instant::now();
        let mut told = 0.0;
        let loaded = self.engine.load(card, &mut |part| {
            if part - told >= PROGRESS_STEP {
                told = part;
                observer.observe(ResidencyEvent::LoadProgress { expert: card.name.clone(), part });
            }
            if cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        let took = begun.elapsed();
        self.n_loads += 1;
        observer.observe(ResidencyEvent::Loaded {
            expert: card.name.clone(),
            load_ms: milliseconds(took),
            takes: loaded.memory(),
            memory: self.engine.memory(),
        });
        Ok((self.resident.insert(loaded).as_mut(), took))
    }

    fn kept(&mut self, card: &ExpertCard) -> Result<(&mut dyn Loaded, Duration)> {
        let resident = self.resident.as_mut().expect("the caller saw that one is resident");
        resident.switch_to(card);
        Ok((resident.as_mut(), Duration::ZERO))
    }

    /// Unloads what is resident, if anything is.
    ///
    /// # Errors
    /// The engine could not.
    pub fn clear(&mut self, observer: &mut dyn Observer<ResidencyEvent>) -> Result<()> {
        let Some(resident) = self.resident.take() else { return Ok(()) };
        let expert = resident.card().name.clone();
        let begun = Instant::now();
        resident.unload()?;
        let unload_ms = milliseconds(begun.elapsed());
        observer.observe(ResidencyEvent::Unloaded { expert, unload_ms, memory: self.engine.memory() });
        Ok(())
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
