//! The part of OpenAI's API that chat clients use: `/v1/models` and `/v1/chat/completions`.

use std::convert::Infallible;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::sse::{Event, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::{StreamExt, stream};
use serde::Deserialize;
use serde_json::{Value, json};
use text::Message;
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::Server;
use super::accept::body;
use super::generation::{self, Answer, Asked, Work};
use super::ollama::whole;
use super::refusal::Refusal;
use crate::clock;
use crate::engine::{Finish, Form, Generated, Prompt};

pub(super) async fn models(State(server): State<Server>) -> Result<Json<Value>, Refusal> {
    let cards = server.experts.cards()?;
    let model = |card: &crate::ExpertCard| json!({"id": card.name, "object": "model", "created": card.modified().as_secs(), "owned_by": "tune"});
    Ok(Json(json!({"object": "list", "data": cards.iter().map(model).collect::<Vec<_>>()})))
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
}

#[derive(Deserialize)]
struct ChatMessage {
    role: String,
    #[serde(default)]
    content: Value,
}

pub(super) async fn completions(State(server): State<Server>, request: Request) -> Result<Response, Refusal> {
    let asked: CompletionBody = body(request).await?;
    let card = server.experts.find(&asked.model)?;
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
    let messages = asked.messages.iter().map(message).collect::<Result<Vec<_>, _>>()?;
    if messages.is_empty() {
        return Err(Refusal::bad("there are no messages"));
    }
    let work = Work::Generate {
        prompt: Prompt::Chat(messages),
        sampling,
        stop,
        form: form(asked.response_format.as_ref())?,
    };
    let name = card.name.clone();
    let id = format!("chatcmpl-{}", clock::now().as_nanos());
    let mut answers = generation::start(&server.worker, Asked { card, work, keep_alive: None })?;
    if !asked.stream {
        let (text, done) = whole(&mut answers).await?;
        let message = json!({"role": "assistant", "content": text});
        let mut value = frame(&id, &name, "chat.completion");
        value["choices"] =
            json!([{"index": 0, "message": message, "finish_reason": reason(done.generated.as_ref())}]);
        value["usage"] = usage(done.generated.as_ref());
        return Ok(Json(value).into_response());
    }
    let first = match answers.recv().await {
        Some(Answer::Failed(refusal)) => return Err(refusal),
        Some(first) => first,
        None => return Err(super::ollama::gone()),
    };
    let events = stream::once(async { first }).chain(UnboundedReceiverStream::new(answers)).map(move |answer| {
        let mut value = frame(&id, &name, "chat.completion.chunk");
        match answer {
            Answer::Text(text) => {
                value["choices"] = json!([{"index": 0, "delta": {"role": "assistant", "content": text}, "finish_reason": null}]);
            }
            Answer::Done(done) => {
                value["choices"] = json!([{"index": 0, "delta": {}, "finish_reason": reason(done.generated.as_ref())}]);
                value["usage"] = usage(done.generated.as_ref());
            }
            Answer::Failed(refusal) => value = json!({"error": {"message": refusal.message}}),
        }
        Ok::<_, Infallible>(Event::default().data(value.to_string()))
    });
    let events = events.chain(stream::once(async { Ok(Event::default().data("[DONE]")) }));
    Ok(Sse::new(events).keep_alive(KeepAlive::default()).into_response())
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
