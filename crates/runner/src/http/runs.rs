//! Runs of pipelines on the engine's thread: whoever asks, the page or a client of one of the two APIs, starts them here.

use std::sync::Arc;

use serde_json::{Map, Value};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::Server;
use super::refusal::Refusal;
use super::worker::KeepAlive;
use crate::pipeline::{self, Afterwards, Event, Outcome, Pipeline, RunOptions};

/// What is asked of a pipeline.
#[derive(Default)]
pub(super) struct Asked {
    pub input: String,
    pub params: Map<String, Value>,
    pub resume: Option<String>,
    pub keep_alive: Option<KeepAlive>,
}

/// What a run tells.
pub(super) enum Told {
    /// On its way.
    Event(Box<Event>),
    /// Its end.
    Ended(Box<crate::Result<Outcome>>),
}

/// Queues a run and gives what it tells. It ends, and can be resumed, when nobody listens any more.
///
/// The channel has no bound: answers are as long as their contexts at most, and a slow listener must not hold up the
/// engine.
pub(super) fn start(
    server: &Server,
    pipeline: Arc<Pipeline>,
    asked: Asked,
) -> Result<UnboundedReceiver<Told>, Refusal> {
    let Asked { input, params, resume, keep_alive } = asked;
    if input.trim().is_empty() {
        return Err(Refusal::bad("the input is empty"));
    }
    let (runs, programs) = (server.runs.to_path_buf(), server.programs.clone());
    let options = RunOptions { runs, resume, params, afterwards: Afterwards::Keep, programs };
    let (sender, receiver) = unbounded_channel();
    let first = pipeline.first_expert().map(str::to_owned);
    server.worker.submit(first.as_deref(), move |desk| {
        let gone = || sender.is_closed();
        if gone() {
            return;
        }
        let note = desk.noter();
        let mut tell = |event: Event| {
            if let Event::Residency(event) = &event {
                note(event);
            }
            // A listener that left is noticed by `gone`.
            let _ = sender.send(Told::Event(Box::new(event)));
        };
        let ended = pipeline::run(&pipeline, &input, &options, desk.residency(), &gone, &mut tell);
        desk.keep(keep_alive);
        let _ = sender.send(Told::Ended(Box::new(ended)));
    })?;
    Ok(receiver)
}
