//! One generation on the engine's thread, as a stream of what happens; it ends when its listener is gone.

use std::ops::ControlFlow;
use std::time::Instant;

use axum::http::StatusCode;
use futures::StreamExt;
use futures::stream::BoxStream;
use serde_json::Value;
use tokio::sync::mpsc::unbounded_channel;
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::refusal::Refusal;
use super::worker::{KeepAlive, Worker};
use crate::card::{ExpertCard, Sampling};
use crate::engine::{Finish, Form, Generated, Progress, Prompt, Request};
use crate::{Error, Result};

/// What is asked of an expert.
pub(super) struct Asked {
    pub card: ExpertCard,
    pub work: Work,
    pub keep_alive: Option<KeepAlive>,
}

/// What is to be done with the expert.
pub(super) enum Work {
    /// Load it and no more.
    Load,
    /// Let go of the experts of these names that are resident.
    Unload(Vec<String>),
    /// Generate.
    Generate { prompt: Prompt, sampling: Sampling, stop: Vec<String>, form: Form },
}

/// What comes of it.
pub(super) enum Answer {
    /// More text.
    Text(String),
    /// The end.
    Done(Box<Done>),
    /// It failed.
    Failed(Refusal),
}

/// A finished request.
pub(super) struct Done {
    /// What was generated, if anything was to be.
    pub generated: Option<Generated>,
    /// From the request to the end, waiting included.
    pub total_ns: u64,
    /// Of that, loading.
    pub load_ns: u64,
    /// The run that gave it, where a pipeline did.
    pub run: Option<Value>,
}

/// Any number of texts, then the end or a failure.
pub(super) type Answers = BoxStream<'static, Answer>;

/// Queues it and gives its answers.
///
/// The channel has no bound: an answer is as long as its context at most, and a slow listener must not hold up the
/// engine.
pub(super) fn start(worker: &Worker, asked: Asked) -> std::result::Result<Answers, Refusal> {
    let (sender, receiver) = unbounded_channel();
    let begun = Instant::now();
    let name = asked.card.name.clone();
    worker.submit(Some(&name), move |desk| {
        let Asked { card, work, keep_alive } = asked;
        let gone = || sender.is_closed();
        // Nobody listens any more: the request was dropped while it waited.
        if gone() {
            return;
        }
        let mut load_ns = 0;
        let keeps = !matches!(work, Work::Unload(_));
        let generated: Result<Option<Generated>> = match work {
            Work::Unload(names) => {
                desk.unload_named(&names);
                Ok(None)
            }
            Work::Load => desk.expert(&card, &gone).map(|(_, took)| {
                load_ns = nanoseconds(took);
                None
            }),
            Work::Generate { prompt, sampling, stop, form } => {
                let request = Request { prompt, sampling, stop, form };
                desk.expert(&card, &gone).and_then(|(expert, took)| {
                    load_ns = nanoseconds(took);
                    let generated = expert.generate(&request, &mut |progress| match progress {
                        Progress::Text(text) if !text.is_empty() => {
                            let sent = sender.send(Answer::Text(text.to_owned()));
                            sent.map_or(ControlFlow::Break(()), |()| ControlFlow::Continue(()))
                        }
                        _ if gone() => ControlFlow::Break(()),
                        _ => ControlFlow::Continue(()),
                    })?;
                    if generated.finish == Finish::Cancelled {
                        Err(Error::Cancelled)
                    } else {
                        Ok(Some(generated))
                    }
                })
            }
        };
        if keeps {
            desk.keep(keep_alive);
        }
        let answer = match generated {
            Ok(generated) => {
                let total_ns = nanoseconds(begun.elapsed());
                Answer::Done(Box::new(Done { generated, total_ns, load_ns, run: None }))
            }
            Err(error) => Answer::Failed(error.into()),
        };
        // A listener that left in the meantime misses nothing it wants.
        let _ = sender.send(answer);
    })?;
    Ok(UnboundedReceiverStream::new(receiver).boxed())
}

/// Collects an answer to its end.
pub(super) async fn whole(mut answers: Answers) -> std::result::Result<(String, Done), Refusal> {
    let mut text = String::new();
    while let Some(answer) = answers.next().await {
        match answer {
            Answer::Text(more) => text.push_str(&more),
            Answer::Done(done) => return Ok((text, *done)),
            Answer::Failed(refusal) => return Err(refusal),
        }
    }
    Err(gone())
}

/// An answer as a stream, once its first part is there: that decides the status; what fails later is told in the stream.
pub(super) async fn begun(mut answers: Answers) -> std::result::Result<Answers, Refusal> {
    match answers.next().await {
        Some(Answer::Failed(refusal)) => Err(refusal),
        Some(first) => Ok(futures::stream::once(async { first }).chain(answers).boxed()),
        None => Err(gone()),
    }
}

/// The engine's thread gave no end to an answer.
pub(super) fn gone() -> Refusal {
    Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "the engine gave up on this request")
}

fn nanoseconds(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
