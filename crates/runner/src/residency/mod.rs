//! Which experts are loaded: as many as fit where that is wanted, one at a time where not, with free memory measured
//! around every load.
//!
//! Who runs a pipeline tells what comes next ([`Residency::foresee`]): what is needed latest goes first, and the next
//! expert's file is read ahead while this one decodes.

mod forecast;
mod read_ahead;

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use formats::Observer;
use serde::{Deserialize, Serialize};

use crate::Result;
use crate::budget::{Available, Budget, Planned};
use crate::card::{ExpertCard, Model};
use crate::engine::{Engine, ExpertMemory, Loaded};
use crate::memory::MemoryState;

pub use forecast::{Comes, PlannedExpert, StepForecast, forecast};
pub use read_ahead::{ReadAhead, ReadAheadLimits};

/// What happens to the experts that are loaded.
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
    /// What is loaded took on another adapter, for another expert over the same base.
    Switched {
        /// The expert it is now.
        expert: String,
        /// The expert it was.
        from: String,
        /// How long it took.
        switch_ms: f64,
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

/// How many experts stay loaded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Keeping {
    /// As many as fit, by what is free and what each is planned to take.
    #[default]
    WhereTheyFit,
    /// One: what is loaded goes before the next one comes.
    One,
}

/// Progress of a load is told in steps of this part.
const PROGRESS_STEP: f32 = 0.05;

/// Where several experts are kept, this part of main memory is left to others; an expert that is alone may take it.
const LEFT_TO_OTHERS: u64 = 16;

/// An engine and the experts that are loaded in it.
pub struct Residency {
    engine: Box<dyn Engine>,
    keeping: Keeping,
    /// The one that was asked for last is the last.
    residents: Vec<Box<dyn Loaded>>,
    upcoming: Vec<ExpertCard>,
    limits: Option<ReadAheadLimits>,
    read_ahead: Option<ReadAhead>,
    n_loads: u64,
}

impl Residency {
    /// An engine with nothing loaded, which keeps what fits and reads ahead.
    pub fn new(engine: Box<dyn Engine>) -> Self {
        Self {
            engine,
            keeping: Keeping::default(),
            residents: Vec::new(),
            upcoming: Vec::new(),
            limits: Some(ReadAheadLimits::default()),
            read_ahead: None,
            n_loads: 0,
        }
    }

    /// The same, keeping so many.
    #[must_use]
    pub fn keeping(self, keeping: Keeping) -> Self {
        Self { keeping, ..self }
    }

    /// The same, reading ahead within these limits, or not at all.
    #[must_use]
    pub fn reading_ahead(self, limits: Option<ReadAheadLimits>) -> Self {
        Self { limits, ..self }
    }

    /// The engine.
    pub fn engine(&self) -> &dyn Engine {
        self.engine.as_ref()
    }

    /// The expert that was asked for last, if it is loaded.
    pub fn resident(&self) -> Option<&dyn Loaded> {
        self.residents.last().map(AsRef::as_ref)
    }

    /// All that are loaded, the one that was asked for last at the end.
    pub fn residents(&self) -> impl DoubleEndedIterator<Item = &dyn Loaded> {
        self.residents.iter().map(AsRef::as_ref)
    }

    /// How many loads there were.
    pub fn n_loads(&self) -> u64 {
        self.n_loads
    }

    /// What is being read ahead.
    pub fn read_ahead(&self) -> Option<&ReadAhead> {
        self.read_ahead.as_ref()
    }

    /// Says which experts are needed from now on, in that order, the one of now first; nothing, if nobody knows.
    pub fn foresee(&mut self, upcoming: Vec<ExpertCard>) {
        self.upcoming = upcoming;
        let is_wanted = |ahead: &ReadAhead| self.upcoming.iter().any(|card| reads(card, ahead));
        if self.read_ahead.as_ref().is_some_and(|ahead| !is_wanted(ahead)) {
            self.read_ahead = None;
        }
    }

    /// The expert, loaded: kept if its file is resident under the same load options, else room is made, free memory
    /// measured, and the expert refused if it does not fit, with what would. Also how long the load took.
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
        // What was to come before this one is past.
        if let Some(at) = self.upcoming.iter().position(|next| serves(next, card)) {
            self.upcoming.drain(..at);
        }
        let took = match self.residents.iter().position(|resident| serves(resident.card(), card)) {
            Some(index) => {
                let mut resident = self.residents.remove(index);
                let switched = switch(resident.as_mut(), card, observer);
                self.residents.push(resident);
                switched?;
                Duration::ZERO
            }
            None => {
                let (loaded, took) = self.load(card, fallback, cancelled, observer)?;
                self.residents.push(loaded);
                took
            }
        };
        self.read_next();
        let resident = self.residents.last_mut().expect("one was put there just now");
        Ok((resident.as_mut(), took))
    }

    fn load(
        &mut self,
        card: &ExpertCard,
        fallback: Option<&ExpertCard>,
        cancelled: &dyn Fn() -> bool,
        observer: &mut dyn Observer<ResidencyEvent>,
    ) -> Result<(Box<dyn Loaded>, Duration)> {
        // From here on the load itself reads.
        self.read_ahead = None;
        // Nothing is unloaded for a file that has changed.
        card.check_file()?;
        let planned = self.make_room(card, fallback, observer)?;
        let (needs, memory) = (planned.memory(), self.engine.memory());
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
        Ok((loaded, took))
    }

    /// Unloads what must go for an expert to fit, the one first that is needed latest; gives what it is planned to take.
    fn make_room(
        &mut self,
        card: &ExpertCard,
        fallback: Option<&ExpertCard>,
        observer: &mut dyn Observer<ResidencyEvent>,
    ) -> Result<Budget> {
        let stays = self.keeping == Keeping::WhereTheyFit && !matches!(card.model, Model::Ollama(_));
        if !stays {
            // What a server on this machine takes is known to it alone.
            self.clear(observer)?;
        }
        if card.file().is_none() {
            return Ok(Budget::default());
        }
        loop {
            let available = self.available();
            let planned = Planned::new(card, self.engine.place(), &available, fallback)?;
            if self.residents.is_empty() {
                planned.check(&card.name)?;
                return Ok(planned.budget);
            }
            if planned.short_of.is_none() {
                return Ok(planned.budget);
            }
            let index = self.needed_latest();
            let resident = self.residents.remove(index);
            self.unload(resident, observer)?;
        }
    }

    /// What an expert may take beside those that are loaded.
    fn available(&self) -> Available {
        let memory = self.engine.memory();
        let now = Available::now(&memory);
        if self.residents.is_empty() {
            return now;
        }
        let held = self.mapped_bytes().saturating_add(memory.total_bytes / LEFT_TO_OTHERS);
        Available { main_bytes: now.main_bytes.map(|free| free.saturating_sub(held)), ..now }
    }

    /// Pages that the system would give away, and that experts would miss.
    fn mapped_bytes(&self) -> u64 {
        self.residents.iter().map(|resident| resident.mapped_bytes()).fold(0, u64::saturating_add)
    }

    /// The resident that is needed latest or never; of those that are never, the one that was asked for longest ago.
    fn needed_latest(&self) -> usize {
        let next_use = |resident: &dyn Loaded| {
            self.upcoming.iter().position(|card| serves(resident.card(), card)).unwrap_or(usize::MAX)
        };
        let uses = self.residents.iter().map(|resident| next_use(resident.as_ref())).enumerate();
        // Of equals the first, which was asked for longest ago.
        uses.rev().max_by_key(|&(_, next_use)| next_use).map_or(0, |(index, _)| index)
    }

    /// Begins to read the file of the next expert that is not loaded.
    fn read_next(&mut self) {
        let Some(limits) = self.limits else { return };
        let is_here = |card: &&ExpertCard| self.residents.iter().any(|held| serves(held.card(), card));
        let next = self.upcoming.iter().find(|card| card.file().is_some() && !is_here(card));
        let Some(next) = next else { return };
        if self.read_ahead.as_ref().is_some_and(|ahead| reads(next, ahead)) {
            return;
        }
        // Another's file may be this one's too, under other load options: it is in memory then.
        let file = next.file().map(|file| &file.file);
        let held = self.residents.iter().filter_map(|resident| resident.card().file());
        if held.into_iter().any(|held| Some(&held.file) == file) {
            return;
        }
        let spare = self.available().main_bytes.unwrap_or(0);
        self.read_ahead = file.and_then(|file| ReadAhead::start(file, spare, limits));
    }

    /// Unloads all that is loaded.
    ///
    /// # Errors
    /// The engine could not.
    pub fn clear(&mut self, observer: &mut dyn Observer<ResidencyEvent>) -> Result<()> {
        self.read_ahead = None;
        while let Some(resident) = self.residents.pop() {
            self.unload(resident, observer)?;
        }
        Ok(())
    }

    /// Unloads those that are meant.
    ///
    /// # Errors
    /// The engine could not.
    pub fn unload_where(
        &mut self,
        is_meant: &dyn Fn(&ExpertCard) -> bool,
        observer: &mut dyn Observer<ResidencyEvent>,
    ) -> Result<()> {
        while let Some(index) = self.residents.iter().position(|resident| is_meant(resident.card())) {
            let resident = self.residents.remove(index);
            self.unload(resident, observer)?;
        }
        Ok(())
    }

    fn unload(&self, resident: Box<dyn Loaded>, observer: &mut dyn Observer<ResidencyEvent>) -> Result<()> {
        let expert = resident.card().name.clone();
        let begun = Instant::now();
        resident.unload()?;
        let unload_ms = milliseconds(begun.elapsed());
        observer.observe(ResidencyEvent::Unloaded { expert, unload_ms, memory: self.engine.memory() });
        Ok(())
    }
}

/// Makes what is loaded another expert, and tells where that meant another adapter: another role alone takes nothing.
fn switch(
    resident: &mut dyn Loaded,
    card: &ExpertCard,
    observer: &mut dyn Observer<ResidencyEvent>,
) -> Result<()> {
    let adapters = |card: &ExpertCard| card.file().map(|file| file.adapters.clone());
    let (from, before) = (resident.card().name.clone(), adapters(resident.card()));
    let begun = Instant::now();
    resident.switch_to(card)?;
    if before != adapters(card) {
        let switch_ms = milliseconds(begun.elapsed());
        observer.observe(ResidencyEvent::Switched { expert: card.name.clone(), from, switch_ms });
    }
    Ok(())
}

/// Whether what is loaded for one expert answers for another without a load.
fn serves(held: &ExpertCard, wanted: &ExpertCard) -> bool {
    held.model.is_same_load(&wanted.model) && held.load == wanted.load
}

fn reads(card: &ExpertCard, ahead: &ReadAhead) -> bool {
    card.file().is_some_and(|file| file.file == ahead.path())
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}
