//! The part of OpenAI's API that chat clients use: `/v1/models` and `/v1/chat/completions`.

use std::convert::Infallible;
use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::{StreamExt, stream};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use text::Message;

use super::Server;
use super::accept::body;
use super::generation::{self, Answer, Answers, Asked, Done, Work};
use super::offers::Offer;
use super::refusal::Refusal;
use super::{reply, runs};
use crate::card::ExpertCard;
use crate::clock;
use crate::engine::{Finish, Form, Generated, Prompt};
use crate::pipeline::Pipeline;

pub(super) async fn models(State(server): State<Server>) -> Result<Json<Value>, Wrong> {
    let model = |name: &str, created: Duration, owner: &str| json!({"id": name, "object": "model", "created": created.as_secs(), "owned_by": owner});
    let cards = server.offers.cards()?;
    let experts = cards.iter().map(|card| model(&card.name, card.modified(), "tune"));
    // The one field that clients show beside the name.
    let pipelines =
        server.offers.answering().map(|pipeline| model(pipeline.name(), server.since, "tune (pipeline)"));
    Ok(Json(json!({"object": "list", "data": experts.chain(pipelines).collect::<Vec<_>>()})))
}

/// An error as OpenAI's API has it.
pub(super) struct Wrong(Refusal);

impl From<Refusal> for Wrong {
    fn from(refusal: Refusal) -> Self {
        Self(refusal)
    }
}

impl From<crate::Error> for Wrong {
    fn from(error: crate::Error) -> Self {
        Self(error.into())
    }
}

impl IntoResponse for Wrong {
    fn into_response(self) -> Response {
        (self.0.status, Json(error(&self.0))).into_response()
    }
}

fn error(refusal: &Refusal) -> Value {
    let kind = if refusal.status.is_client_error() { "invalid_request_error" } else { "server_error" };
    json!({"error": {"message": refusal.message, "type": kind, "param": null, "code": null}})
}

#[derive(Deserialize)]
struct CompletionBody {
    #[serde(default)]
    model: String,
    #[serde(default)]
    messages: Vec<ChatMessage>,
    #[serde(default)]
    stream: bool,
    temperature: Option<f32>,
    top_p: Option<f32>,
    seed: Option<i64>,
    max_tokens: Option<u32>,
    max_completion_tokens: Option<u32>,
    stop: Option<Value>,
    response_format: Option<Value>,
    n: Option<u32>,
    tools: Option<Vec<Value>>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

#[derive(Deserialize)]
struct ChatMessage {
    role: String,
    #[serde(default)]
    content: Value,
}

/// What says nothing about the answer: who asks, how it is sent and kept.
const HARMLESS: &[&str] =
    &["user", "stream_options", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"];

pub(super) async fn completions(State(server): State<Server>, request: Request) -> Result<Response, Wrong> {
    let asked: CompletionBody = body(request).await?;
    let messages = asked.messages.iter().map(message).collect::<Result<Vec<_>, _>>()?;
    if messages.is_empty() {
        return Err(Refusal::bad("there are no messages").into());
    }
    let is_streamed = asked.stream;
    let (name, answers) = match server.offers.find(&asked.model)? {
        Offer::Expert(card) => {
            let name = card.name.clone();
            let work = of_expert(&card, &asked, messages)?;
            (name, generation::start(&server.worker, Asked { card: *card, work, keep_alive: None })?)
        }
        Offer::Pipeline(pipeline) => {
            refuse_beside(&pipeline, &asked)?;
            let input = reply::input(&pipeline, &messages)?;
            let name = pipeline.name().to_owned();
            (name, reply::start(&server, pipeline, runs::Asked { input, ..runs::Asked::default() })?)
        }
    };
    Ok(answer(answers, name, is_streamed).await?)
}

fn of_expert(card: &ExpertCard, asked: &CompletionBody, messages: Vec<Message>) -> Result<Work, Refusal> {
    if asked.n.is_some_and(|n| n != 1) || asked.tools.as_ref().is_some_and(|tools| !tools.is_empty()) {
        return Err(Refusal::bad(format!("'{}' gives one answer and knows no tools", card.name)));
    }
    let mut sampling = card.sampling.clone();
    sampling.temperature = asked.temperature.unwrap_or(sampling.temperature);
    sampling.top_p = asked.top_p.unwrap_or(sampling.top_p);
    sampling.seed = asked.seed.map_or(sampling.seed, |seed| seed as u32);
    sampling.max_tokens = asked.max_completion_tokens.or(asked.max_tokens).or(sampling.max_tokens);
    sampling.check().map_err(Refusal::bad)?;
    let stop = match &asked.stop {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::String(text)) => vec![text.clone()],
        Some(list) => {
            serde_json::from_value(list.clone()).map_err(|error| Refusal::bad(format!("stop: {error}")))?
        }
    };
    let form = form(asked.response_format.as_ref())?;
    Ok(Work::Generate { prompt: Prompt::Chat(messages), sampling, stop, form })
}

/// Refuses all that a pipeline's steps would not follow, known here or not.
fn refuse_beside(pipeline: &Pipeline, asked: &CompletionBody) -> Result<(), Refusal> {
    let form = form(asked.response_format.as_ref())?;
    reply::refuse(
        pipeline,
        &[
            ("temperature", asked.temperature.is_some()),
            ("top_p", asked.top_p.is_some()),
            ("seed", asked.seed.is_some()),
            ("max_tokens", asked.max_tokens.is_some()),
            ("max_completion_tokens", asked.max_completion_tokens.is_some()),
            ("stop", asked.stop.as_ref().is_some_and(reply::is_given)),
            ("response_format", form != Form::Text),
            ("n", asked.n.is_some_and(|n| n != 1)),
            ("tools", asked.tools.as_ref().is_some_and(|tools| !tools.is_empty())),
        ],
    )?;
    // Penalties of 0 ask for nothing.
    let asks = |value: &Value| reply::is_given(value) && value.as_f64() != Some(0.0);
    let other = asked.others.iter().find(|(key, value)| !HARMLESS.contains(&key.as_str()) && asks(value));
    other.map_or(Ok(()), |(key, _)| reply::refuse(pipeline, &[(key, true)]))
}

async fn answer(answers: Answers, name: String, is_streamed: bool) -> Result<Response, Refusal> {
    let id = format!("chatcmpl-{}", clock::now().as_nanos());
    if !is_streamed {
        let (text, done) = generation::whole(answers).await?;
        let message = json!({"role": "assistant", "content": text});
        let mut value = frame(&id, &name, "chat.completion");
        value["choices"] =
            json!([{"index": 0, "message": message, "finish_reason": reason(done.generated.as_ref())}]);
        close(&mut value, &done);
        return Ok(Json(value).into_response());
    }
    let events = generation::begun(answers).await?.map(move |answer| {
        let mut value = frame(&id, &name, "chat.completion.chunk");
        match answer {
            Answer::Text(text) => {
                value["choices"] = json!([{"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": null}]);
            }
            Answer::Done(done) => {
                value["choices"] = json!([{"index": 0, "delta": {}, "finish_reason": reason(done.generated.as_ref())}]);
                close(&mut value, &done);
            }
            Answer::Failed(refusal) => value = error(&refusal),
        }
        Ok::<_, Infallible>(Event::default().data(value.to_string()))
    });
    let events = events.chain(stream::once(async { Ok(Event::default().data("[DONE]")) }));
    Ok(Sse::new(events).keep_alive(KeepAlive::default()).into_response())
}

/// What an answer took, and the run that gave it where a pipeline did.
fn close(value: &mut Value, done: &Done) {
    value["usage"] = usage(done.generated.as_ref());
    if let Some(run) = &done.run {
        value["pipeline"] = run.clone();
    }
}

fn frame(id: &str, model: &str, object: &str) -> Value {
    json!({"id": id, "object": object, "created": clock::now().as_secs(), "model": model})
}

fn reason(generated: Option<&Generated>) -> &'static str {
    if generated.is_some_and(|generated| generated.finish == Finish::Length) { "length" } else { "stop" }
}

fn usage(generated: Option<&Generated>) -> Value {
    let (prompt, output) =
        generated.map_or((0, 0), |generated| (generated.prompt_tokens, generated.output_tokens));
    json!({"prompt_tokens": prompt, "completion_tokens": output, "total_tokens": prompt + output})
}

/// A message whose content is a text or a list of text parts.
fn message(asked: &ChatMessage) -> Result<Message, Refusal> {
    let text = match &asked.content {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts
            .iter()
            .map(|part| part.get("text").and_then(Value::as_str))
            .collect::<Option<String>>()
            .ok_or_else(|| Refusal::bad("a message has a part that is no text"))?,
        _ => return Err(Refusal::bad("the content of a message is no text")),
    };
    Ok(Message::new(asked.role.as_str(), text))
}

fn form(format: Option<&Value>) -> Result<Form, Refusal> {
    let Some(format) = format else { return Ok(Form::Text) };
    match format.get("type").and_then(Value::as_str) {
        Some("text") => Ok(Form::Text),
        Some("json_object") => Ok(Form::Json),
        Some("json_schema") => {
            let schema = format.pointer("/json_schema/schema").cloned();
            schema.map(Form::Schema).ok_or_else(|| Refusal::bad("response_format has no json_schema.schema"))
        }
        _ => Err(Refusal::bad(format!("unknown response_format {format}"))),
    }
}
