//! One expert at a time: load, process, unload, with free memory measured around each.

use std::time::Duration;

use formats::Observer;
use serde::{Deserialize, Serialize};

use crate::Result;
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
        /// What it is expected to take.
        needs: ExpertMemory,
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

    /// The expert, loaded: kept if it is resident under the very same card, else what is resident is unloaded
    /// first, free memory measured, and the expert refused if it does not fit. Also how long the load took.
    ///
    /// # Errors
    /// [`crate::Error::DoesNotFit`], [`crate::Error::FileChanged`], [`crate::Error::Load`], [`crate::Error::Cancelled`].
    pub fn get(
        &mut self,
        card: &ExpertCard,
        cancelled: &dyn Fn() -> bool,
        observer: &mut dyn Observer<ResidencyEvent>,
    ) -> Result<(&mut dyn Loaded, Duration)> {
        let _ = (card, cancelled, observer);
        todo!()
    }

    /// Unloads what is resident, if anything is.
    ///
    /// # Errors
    /// The engine could not.
    pub fn clear(&mut self, observer: &mut dyn Observer<ResidencyEvent>) -> Result<()> {
        let _ = observer;
        todo!()
    }
}
