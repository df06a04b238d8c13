//! A pipeline asked as a model is: its run, as the answer of one expert.
//!
//! The last message is the run's input. The answer is what the last step that writes gives, item by item, a line
//! between them; what steps before it write is no part of it. Text goes out as it comes where it can't be taken back
//! any more, else when its item is done: drafts that a verifier may reject, and records that are asked for again, are
//! not shown.

use std::sync::Arc;
use std::time::Instant;

use axum::http::StatusCode;
use futures::stream::{self, StreamExt};
use serde_json::{Value, json};
use text::Message;
use tokio::sync::mpsc::UnboundedReceiver;

use super::Server;
use super::generation::{Answer, Answers, Done, gone};
use super::refusal::Refusal;
use super::runs::{self, Asked, Told};
use crate::engine::{Finish, Generated};
use crate::pipeline::{Event, ItemResult, Outcome, Pipeline, State, StepKind, replies_of};
use crate::residency::ResidencyEvent;

/// Queues a run and gives its answer.
pub(super) fn start(server: &Server, pipeline: Arc<Pipeline>, asked: Asked) -> Result<Answers, Refusal> {
    let relay = Relay::new(&pipeline)?;
    let told = runs::start(server, pipeline, asked)?;
    let answers = stream::unfold((told, Some(relay)), |(mut told, relay)| async move {
        let (answers, relay) = next(&mut told, relay?).await;
        Some((stream::iter(answers), (told, relay)))
    });
    Ok(answers.flatten().boxed())
}

/// What is to be sent next; without a relay nothing follows.
async fn next(told: &mut UnboundedReceiver<Told>, mut relay: Relay) -> (Vec<Answer>, Option<Relay>) {
    match told.recv().await {
        Some(Told::Event(event)) => {
            let text = relay.take(*event);
            let answers = if text.is_empty() { Vec::new() } else { vec![Answer::Text(text)] };
            (answers, Some(relay))
        }
        Some(Told::Ended(ended)) => {
            match ended.map_err(Refusal::from).and_then(|outcome| relay.done(&outcome)) {
                Ok(done) => (vec![Answer::Done(Box::new(done))], None),
                Err(refusal) => (vec![Answer::Failed(refusal)], None),
            }
        }
        None => (vec![Answer::Failed(gone())], None),
    }
}

/// The run's input: the last message, which is the user's. A pipeline keeps no conversation, as its steps see nothing
/// but their prompts, so what was said before is not seen; a system message would be an instruction that nobody obeys.
pub(super) fn input(pipeline: &Pipeline, messages: &[Message]) -> Result<String, Refusal> {
    let name = pipeline.name();
    if let Some(message) =
        messages.iter().find(|message| !["user", "assistant"].contains(&message.role.as_str()))
    {
        let role = &message.role;
        return Err(Refusal::bad(format!(
            "'{name}' is a pipeline and takes no {role} message: its steps have their own"
        )));
    }
    let Some(last) = messages.last().filter(|message| message.role == "user") else {
        return Err(Refusal::bad(format!(
            "'{name}' is a pipeline and runs on the last message, which must be the user's"
        )));
    };
    let beside = last.extra.iter().find(|(_, value)| is_given(value));
    match beside {
        Some((key, _)) => Err(refused(pipeline, key)),
        None => Ok(last.content.clone()),
    }
}

/// Refuses what is asked beside the text: no step of a pipeline would follow it.
pub(super) fn refuse(pipeline: &Pipeline, asked: &[(&str, bool)]) -> Result<(), Refusal> {
    match asked.iter().find(|(_, is_given)| *is_given) {
        Some((key, _)) => Err(refused(pipeline, key)),
        None => Ok(()),
    }
}

/// Whether a value asks for anything: clients send empty ones for what they leave open.
pub(super) fn is_given(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => false,
        Value::Bool(true) | Value::Number(_) => true,
        Value::String(text) => !text.is_empty(),
        Value::Array(list) => !list.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

fn refused(pipeline: &Pipeline, key: &str) -> Refusal {
    let name = pipeline.name();
    Refusal::bad(format!("'{name}' is a pipeline, whose file says how its steps answer: leave `{key}` out"))
}

/// A run on its way to an answer.
struct Relay {
    name: String,
    /// The step that answers.
    step: String,
    /// Whether its text is sure as it comes.
    is_live: bool,
    begun: Instant,
    load_ms: f64,
    /// What earlier steps wrote.
    earlier: Vec<ItemResult>,
    /// Of that, what stands for an item that the last step leaves out.
    stands_in: Vec<String>,
    /// The items' answers, as far as they are known.
    known: Vec<Option<String>>,
    /// The item whose text is due.
    due: usize,
    /// Bytes of it that were sent.
    sent: usize,
}

impl Relay {
    fn new(pipeline: &Pipeline) -> Result<Self, Refusal> {
        let name = pipeline.name().to_owned();
        let (step, is_live) = pipeline.answering().ok_or_else(|| {
            Refusal::bad(format!(
                "'{name}' is a pipeline without a step that writes: it has no answer to give"
            ))
        })?;
        let (step, begun, load_ms) = (step.to_owned(), Instant::now(), 0.0);
        let (earlier, stands_in, known) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Self { name, step, is_live, begun, load_ms, earlier, stands_in, known, due: 0, sent: 0 })
    }

    /// Takes an event and gives the text that is due with it.
    fn take(&mut self, event: Event) -> String {
        let mut text = String::new();
        match event {
            Event::Residency(ResidencyEvent::Loaded { load_ms, .. }) => self.load_ms += load_ms,
            Event::StepStarted { step, n_items, .. } if step == self.step => {
                self.known = vec![None; n_items];
                self.stands_in = replies_of(&self.earlier, n_items).into_iter().map(str::to_owned).collect();
            }
            Event::Text { step, item, text: more }
                if self.is_live && step == self.step && item == self.due =>
            {
                self.begin(&mut text);
                self.sent += more.len();
                text.push_str(&more);
            }
            Event::ItemFinished(result) if result.step == self.step => {
                self.finish(result);
                self.flush(&mut text);
            }
            Event::ItemFinished(result) if result.kind == StepKind::Generate => self.earlier.push(result),
            _ => {}
        }
        text
    }

    /// A line between two items.
    fn begin(&self, text: &mut String) {
        if self.due > 0 && self.sent == 0 {
            text.push('\n');
        }
    }

    fn finish(&mut self, result: ItemResult) {
        let item = result.item;
        let answer = match result.state {
            State::Done => result.output,
            _ => self.stands_in.get_mut(item).map(std::mem::take).unwrap_or_default(),
        };
        if let Some(known) = self.known.get_mut(item) {
            *known = Some(answer);
        }
    }

    /// The rest of every item that is due and done.
    fn flush(&mut self, text: &mut String) {
        while let Some(Some(answer)) = self.known.get(self.due) {
            self.begin(text);
            text.push_str(answer.get(self.sent..).unwrap_or_default());
            (self.due, self.sent) = (self.due + 1, 0);
        }
    }

    /// The end of the answer: what all steps took together.
    fn done(&self, outcome: &Outcome) -> Result<Done, Refusal> {
        let results = &outcome.results;
        let refusal = |why: String| {
            let why = format!("{why}; what was done is kept in run {}", outcome.run);
            Refusal::new(StatusCode::UNPROCESSABLE_ENTITY, why)
        };
        let said = |result: &ItemResult| {
            let note = result.note.as_deref().unwrap_or("it failed");
            format!("step `{}`, item {}: {note}", result.step, result.item + 1)
        };
        if let Some(failed) = results.iter().find(|result| result.state == State::Failed) {
            return Err(refusal(said(failed)));
        }
        let writes = |result: &&ItemResult| result.kind == StepKind::Generate;
        if !results.iter().any(|result| writes(&result) && result.state == State::Done) {
            let last = results.iter().rfind(writes);
            let why = last.map_or_else(|| format!("'{}' wrote nothing", self.name), said);
            return Err(refusal(why));
        }
        let sum = |of: &dyn Fn(&ItemResult) -> usize| results.iter().map(of).sum();
        let time = |of: &dyn Fn(&ItemResult) -> f64| (results.iter().map(of).sum::<f64>() * 1e6) as u64;
        let of_step = results.iter().filter(|result| result.step == self.step);
        let is_cut = of_step.clone().any(|result| result.finish == Some(Finish::Length));
        let generated = Generated {
            text: String::new(),
            finish: if is_cut { Finish::Length } else { Finish::Stop },
            prompt_tokens: sum(&|result| result.prompt_tokens),
            output_tokens: sum(&|result| result.output_tokens),
            prompt_ns: time(&|result| result.prompt_ms),
            decode_ns: time(&|result| result.decode_ms),
        };
        let objections: Vec<String> = results
            .iter()
            .filter(|result| !result.objections.is_empty())
            .map(|result| {
                format!("step `{}`, item {}: {}", result.step, result.item + 1, result.objections.join("; "))
            })
            .collect();
        let run = json!({"run": outcome.run, "n_loads": outcome.n_loads, "objections": objections});
        let total_ns = u64::try_from(self.begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        Ok(Done {
            generated: Some(generated),
            total_ns,
            load_ns: (self.load_ms * 1e6) as u64,
            run: Some(run),
        })
    }
}
