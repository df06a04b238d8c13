//! The engine's own thread: one job at a time in the order they came, a bounded queue, and the end of idle experts.

use std::collections::BTreeMap;
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::ServeEvent;
use super::log::Log;
use crate::card::ExpertCard;
use crate::clock;
use crate::engine::{ExpertMemory, Loaded};
use crate::memory::MemoryState;
use crate::residency::ResidencyEvent;
use crate::{Residency, Result};

/// Work for the engine's thread.
type Job = Box<dyn FnOnce(&mut Desk) + Send>;

/// The way to the engine's thread.
#[derive(Clone)]
pub(super) struct Worker {
    jobs: SyncSender<Job>,
    state: Arc<Mutex<State>>,
}

/// The queue is full.
#[derive(Debug)]
pub(super) struct Busy;

/// What the engine's thread shows of itself.
#[derive(Debug, Clone, Default, Serialize)]
pub(super) struct State {
    /// The experts that are loaded, the one that was asked last at the end.
    pub residents: Vec<Resident>,
    /// The expert being loaded.
    pub loading: Option<String>,
    /// The expert that is loaded before anybody asks, and whether somebody asks for another meanwhile.
    #[serde(skip)]
    pub preload: Option<(String, bool)>,
    /// Jobs that wait or run.
    pub n_jobs: usize,
    /// Memory, as last measured.
    pub memory: MemoryState,
}

/// A loaded expert, for who asks.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Resident {
    /// Its card.
    pub card: ExpertCard,
    /// What it takes.
    pub memory: ExpertMemory,
    /// Tokens of context.
    pub context_tokens: usize,
    /// When it goes if nobody asks, since 1970; absent: never.
    pub expires: Option<Duration>,
}

/// How long an expert stays after a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum KeepAlive {
    /// So long.
    For(Duration),
    /// Until another is needed.
    Always,
}

/// What a job works with.
pub(super) struct Desk {
    residency: Residency,
    keep_alive: KeepAlive,
    /// When each expert goes if nobody asks for it; `None`: not for that.
    expires: BTreeMap<String, Option<Instant>>,
    state: Arc<Mutex<State>>,
    log: Log,
}

impl Worker {
    /// Starts the thread; it ends once every `Worker` is gone.
    pub(super) fn start(
        residency: Residency,
        keep_alive: KeepAlive,
        max_queue: usize,
        log: Log,
    ) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (jobs, queue) = mpsc::sync_channel::<Job>(max_queue);
        let memory = residency.engine().memory();
        let state = Arc::new(Mutex::new(State { memory, ..State::default() }));
        let mut desk =
            Desk { residency, keep_alive, expires: BTreeMap::new(), state: Arc::clone(&state), log };
        let thread = std::thread::Builder::new().name("engine".to_owned()).spawn(move || {
            loop {
                match queue.recv_timeout(desk.idle_left()) {
                    Ok(job) => desk.work(job),
                    Err(RecvTimeoutError::Timeout) => desk.expire(),
                    Err(RecvTimeoutError::Disconnected) => break,
                }
            }
            desk.unload();
        })?;
        Ok((Self { jobs, state }, thread))
    }

    /// Queues a job that begins with an expert.
    pub(super) fn submit(
        &self,
        expert: Option<&str>,
        job: impl FnOnce(&mut Desk) + Send + 'static,
    ) -> std::result::Result<(), Busy> {
        change(&self.state, |state| {
            state.n_jobs += 1;
            if let Some((name, is_unwanted)) = &mut state.preload {
                *is_unwanted |= expert != Some(name);
            }
        });
        match self.jobs.try_send(Box::new(job)) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                change(&self.state, |state| state.n_jobs -= 1);
                Err(Busy)
            }
        }
    }

    /// Loads an expert before anybody asks for it; who asks for another meanwhile ends that.
    pub(super) fn preload(&self, card: ExpertCard) {
        let name = card.name.clone();
        let state = Arc::clone(&self.state);
        change(&self.state, |state| state.preload = Some((name.clone(), false)));
        // A full queue has better to do; an expert that can't be loaded is refused to who asks for it.
        let _ = self.submit(Some(&name), move |desk| {
            let is_unwanted = || {
                let state = state.lock().unwrap_or_else(PoisonError::into_inner);
                state.preload.as_ref().is_some_and(|(_, is_unwanted)| *is_unwanted)
            };
            let _ = desk.expert(&card, &is_unwanted);
            change(&state, |state| state.preload = None);
            desk.keep(None);
        });
    }

    /// What the thread shows of itself now.
    pub(super) fn state(&self) -> State {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Desk {
    /// The expert, loaded, and how long the load took.
    pub(super) fn expert(
        &mut self,
        card: &ExpertCard,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<(&mut dyn Loaded, Duration)> {
        let note = self.noter();
        let got = self.residency.get(card, cancelled, &mut |event| note(&event));
        change(&self.state, |state| state.loading = None);
        got
    }

    /// Unloads all that is loaded.
    pub(super) fn unload(&mut self) {
        self.unload_where(&|_| true);
    }

    /// Unloads those of some experts that are loaded.
    pub(super) fn unload_named(&mut self, names: &[String]) {
        self.unload_where(&|held| names.contains(&held.name));
    }

    fn unload_where(&mut self, is_meant: &dyn Fn(&ExpertCard) -> bool) {
        let note = self.noter();
        // An engine that fails to unload has already lost the expert; there is nothing left to do about it.
        let _ = self.residency.unload_where(is_meant, &mut |event| note(&event));
        self.show();
    }

    /// The residency, for a whole pipeline.
    pub(super) fn residency(&mut self) -> &mut Residency {
        &mut self.residency
    }

    /// Makes loads and unloads seen; apart from the desk, so that it can be used while the residency is borrowed.
    pub(super) fn noter(&self) -> impl Fn(&ResidencyEvent) + use<> {
        let (state, log) = (Arc::clone(&self.state), self.log.clone());
        move |event| {
            change(&state, |state| match event {
                ResidencyEvent::Loading { expert, memory, .. } => {
                    (state.loading, state.memory) = (Some(expert.clone()), memory.clone());
                }
                ResidencyEvent::LoadProgress { .. } | ResidencyEvent::Switched { .. } => {}
                ResidencyEvent::Loaded { memory, .. } => {
                    (state.loading, state.memory) = (None, memory.clone());
                }
                ResidencyEvent::Unloaded { expert, memory, .. } => {
                    state.residents.retain(|resident| resident.card.name != *expert);
                    state.memory = memory.clone();
                }
            });
            log.write(ServeEvent::Residency(event.clone()));
        }
    }

    /// How long the expert that was asked last stays from now on; `None`: as configured. So long stay those too that came
    /// with it, for a pipeline.
    pub(super) fn keep(&mut self, keep_alive: Option<KeepAlive>) {
        let Some(last) = self.residency.resident().map(|resident| resident.card().name.clone()) else {
            return self.show();
        };
        let until = |keep_alive| match keep_alive {
            KeepAlive::For(time) => Instant::now().checked_add(time),
            KeepAlive::Always => None,
        };
        let keep_alive = keep_alive.unwrap_or(self.keep_alive);
        self.expires.insert(last.clone(), until(keep_alive));
        for resident in self.residency.residents() {
            let name = resident.card().name.clone();
            self.expires.entry(name).or_insert_with(|| until(self.keep_alive));
        }
        if keep_alive == KeepAlive::For(Duration::ZERO) {
            self.unload_where(&|held| held.name == last);
        }
        self.show();
    }

    fn work(&mut self, job: Job) {
        // A panic ends one request, whose listener sees its channel closed, and not the thread that serves all.
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| job(self)));
        change(&self.state, |state| state.n_jobs -= 1);
        self.show();
    }

    fn idle_left(&self) -> Duration {
        // An hour where nothing is to expire: the wait simply begins anew.
        let first = self.expires.values().flatten().min();
        first.map_or(Duration::from_secs(3600), |at| at.saturating_duration_since(Instant::now()))
    }

    fn expire(&mut self) {
        let now = Instant::now();
        let over = |at: &Option<Instant>| at.is_some_and(|at| at <= now);
        let over: Vec<String> =
            self.expires.iter().filter(|(_, at)| over(at)).map(|(name, _)| name.clone()).collect();
        self.unload_where(&|held| over.contains(&held.name));
    }

    fn show(&mut self) {
        let held: Vec<&ExpertCard> = self.residency.residents().map(Loaded::card).collect();
        // Roles that a loaded file no longer has are forgotten too.
        self.expires.retain(|name, _| held.iter().any(|card| card.name == *name));
        let left = |name: &str| {
            let at = self.expires.get(name).copied().flatten();
            at.map(|at| clock::now() + at.saturating_duration_since(Instant::now()))
        };
        let residents = self.residency.residents().map(|resident| Resident {
            card: resident.card().clone(),
            memory: resident.memory(),
            context_tokens: resident.context_tokens(),
            expires: left(&resident.card().name),
        });
        let residents = residents.collect();
        let memory = self.residency.engine().memory();
        change(&self.state, |state| (state.residents, state.memory) = (residents, memory));
    }
}

fn change(state: &Mutex<State>, how: impl FnOnce(&mut State)) {
    how(&mut state.lock().unwrap_or_else(PoisonError::into_inner));
}
