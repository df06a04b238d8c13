//! The engine's own thread: one job at a time in the order they came, a bounded queue, and the idle expert's end.

use std::sync::mpsc::{self, RecvTimeoutError, SyncSender, TrySendError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::ServeEvent;
use super::log::Log;
use crate::card::ExpertCard;
use crate::clock;
use crate::engine::{Engine, ExpertMemory, Loaded};
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
    /// The resident expert.
    pub resident: Option<Resident>,
    /// The expert being loaded.
    pub loading: Option<String>,
    /// Jobs that wait or run.
    pub n_jobs: usize,
    /// Memory, as last measured.
    pub memory: MemoryState,
}

/// The resident expert, for who asks.
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
    expires: Option<Instant>,
    state: Arc<Mutex<State>>,
    log: Log,
}

impl Worker {
    /// Starts the thread; it ends once every `Worker` is gone.
    pub(super) fn start(
        engine: Box<dyn Engine>,
        keep_alive: KeepAlive,
        max_queue: usize,
        log: Log,
    ) -> std::io::Result<(Self, JoinHandle<()>)> {
        let (jobs, queue) = mpsc::sync_channel::<Job>(max_queue);
        let state = Arc::new(Mutex::new(State { memory: engine.memory(), ..State::default() }));
        let residency = Residency::new(engine);
        let mut desk = Desk { residency, keep_alive, expires: None, state: Arc::clone(&state), log };
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

    /// Queues a job.
    pub(super) fn submit(
        &self,
        job: impl FnOnce(&mut Desk) + Send + 'static,
    ) -> std::result::Result<(), Busy> {
        change(&self.state, |state| state.n_jobs += 1);
        match self.jobs.try_send(Box::new(job)) {
            Ok(()) => Ok(()),
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                change(&self.state, |state| state.n_jobs -= 1);
                Err(Busy)
            }
        }
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

    /// Unloads what is resident.
    pub(super) fn unload(&mut self) {
        let note = self.noter();
        // An engine that fails to unload has already lost the expert; there is nothing left to do about it.
        let _ = self.residency.clear(&mut |event| note(&event));
        self.expires = None;
        self.show();
    }

    /// Unloads this expert if it is the resident one.
    pub(super) fn unload_if(&mut self, card: &ExpertCard) {
        if self.residency.resident().is_some_and(|resident| resident.card().name == card.name) {
            self.unload();
        }
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
                ResidencyEvent::LoadProgress { .. } => {}
                ResidencyEvent::Loaded { memory, .. } => {
                    (state.loading, state.memory) = (None, memory.clone());
                }
                ResidencyEvent::Unloaded { memory, .. } => {
                    (state.resident, state.memory) = (None, memory.clone());
                }
            });
            log.write(ServeEvent::Residency(event.clone()));
        }
    }

    /// How long the resident expert stays from now on; `None`: as configured.
    pub(super) fn keep(&mut self, keep_alive: Option<KeepAlive>) {
        match keep_alive.unwrap_or(self.keep_alive) {
            KeepAlive::For(Duration::ZERO) => self.unload(),
            KeepAlive::For(time) => self.expires = Instant::now().checked_add(time),
            KeepAlive::Always => self.expires = None,
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
        self.expires.map_or(Duration::from_secs(3600), |at| at.saturating_duration_since(Instant::now()))
    }

    fn expire(&mut self) {
        if self.expires.is_some_and(|at| at <= Instant::now()) {
            self.unload();
        }
    }

    fn show(&mut self) {
        let left = self.expires.map(|at| at.saturating_duration_since(Instant::now()));
        let resident = self.residency.resident().map(|resident| Resident {
            card: resident.card().clone(),
            memory: resident.memory(),
            context_tokens: resident.context_tokens(),
            expires: left.map(|left| clock::now() + left),
        });
        let memory = self.residency.engine().memory();
        change(&self.state, |state| (state.resident, state.memory) = (resident, memory));
    }
}

fn change(state: &Mutex<State>, how: impl FnOnce(&mut State)) {
    how(&mut state.lock().unwrap_or_else(PoisonError::into_inner));
}
