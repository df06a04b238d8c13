//! Ollama's API: its routes, shapes and words.
//!
//! Everything that would force a reload is fixed in an expert's card, so a request that asks for another value is
//! refused rather than obeyed or ignored; a prompt longer than the context is refused rather than cut.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use text::Message;

use super::Server;
use super::accept::body;
use super::generation::{self, Answer, Answers, Asked, Done, Work};
use super::offers::Offer;
use super::refusal::Refusal;
use super::worker::KeepAlive;
use super::{reply, runs};
use crate::card::{ExpertCard, LoadOptions, Sampling};
use crate::clock;
use crate::engine::{Finish, Form, Prompt};
use crate::pipeline::Pipeline;

/// `POST /api/generate`.
#[derive(Deserialize)]
pub(super) struct GenerateBody {
    #[serde(default)]
    model: String,
    #[serde(default)]
    prompt: String,
    #[serde(default)]
    system: Option<String>,
    #[serde(default)]
    raw: bool,
    #[serde(default)]
    suffix: String,
    #[serde(default)]
    template: String,
    #[serde(default)]
    images: Vec<Value>,
    #[serde(flatten)]
    rest: Rest,
}

/// `POST /api/chat`.
#[derive(Deserialize)]
pub(super) struct ChatBody {
    #[serde(default)]
    model: String,
    #[serde(default)]
    messages: Vec<Message>,
    #[serde(default)]
    tools: Option<Vec<Value>>,
    #[serde(flatten)]
    rest: Rest,
}

/// What both have.
#[derive(Deserialize)]
struct Rest {
    stream: Option<bool>,
    format: Option<Value>,
    options: Option<Map<String, Value>>,
    keep_alive: Option<Value>,
    think: Option<Value>,
}

/// Which of the two shapes an answer has.
#[derive(Clone, Copy)]
enum Shape {
    Generate,
    Chat,
}

pub(super) async fn generate(State(server): State<Server>, request: Request) -> Result<Response, Refusal> {
    let asked: GenerateBody = body(request).await?;
    let beside = [
        ("suffix", !asked.suffix.is_empty()),
        ("template", !asked.template.is_empty()),
        ("images", !asked.images.is_empty()),
    ];
    let card = match server.offers.find(&asked.model)? {
        Offer::Expert(card) => card,
        Offer::Pipeline(pipeline) => {
            let system = asked.system.is_some_and(|system| !system.is_empty());
            reply::refuse(&pipeline, &beside)?;
            reply::refuse(&pipeline, &[("system", system), ("raw", asked.raw)])?;
            let input = (!asked.prompt.is_empty()).then_some(asked.prompt);
            return of_pipeline(&server, pipeline, input, &asked.rest, Shape::Generate).await;
        }
    };
    if let Some((key, _)) = beside.iter().find(|(_, given)| *given) {
        return Err(Refusal::bad(format!("\"{}\" does not support `{key}`", card.name)));
    }
    let prompt = if asked.prompt.is_empty() {
        None
    } else if asked.raw {
        Some(Prompt::Rendered(asked.prompt))
    } else if !card.has_template() {
        Some(Prompt::Raw(asked.prompt))
    } else {
        let system = asked.system.map(|text| Message::new("system", text));
        Some(Prompt::Chat(system.into_iter().chain([Message::new("user", asked.prompt)]).collect()))
    };
    of_expert(&server, *card, prompt, &asked.rest, Shape::Generate).await
}

pub(super) async fn chat(State(server): State<Server>, request: Request) -> Result<Response, Refusal> {
    let asked: ChatBody = body(request).await?;
    let has_tools = asked.tools.is_some_and(|tools| !tools.is_empty());
    let is_empty = asked.messages.is_empty();
    let card = match server.offers.find(&asked.model)? {
        Offer::Expert(card) => card,
        Offer::Pipeline(pipeline) => {
            reply::refuse(&pipeline, &[("tools", has_tools)])?;
            let input = if is_empty { None } else { Some(reply::input(&pipeline, &asked.messages)?) };
            return of_pipeline(&server, pipeline, input, &asked.rest, Shape::Chat).await;
        }
    };
    if has_tools {
        return Err(Refusal::bad(format!("\"{}\" does not support tools", card.name)));
    }
    let prompt = (!is_empty).then_some(Prompt::Chat(asked.messages));
    of_expert(&server, *card, prompt, &asked.rest, Shape::Chat).await
}

impl Rest {
    fn thinks(&self) -> bool {
        self.think.as_ref().is_some_and(|think| !matches!(think, Value::Bool(false) | Value::Null))
    }

    fn keep_alive(&self) -> Result<Option<KeepAlive>, Refusal> {
        Ok(self.keep_alive.as_ref().map(keep_alive).transpose()?.flatten())
    }
}

async fn of_expert(
    server: &Server,
    card: ExpertCard,
    prompt: Option<Prompt>,
    rest: &Rest,
    shape: Shape,
) -> Result<Response, Refusal> {
    if rest.thinks() {
        return Err(Refusal::bad(format!("\"{}\" does not support thinking", card.name)));
    }
    let keep_alive = rest.keep_alive()?;
    let (sampling, stop) = options(&card, rest.options.as_ref())?;
    let work = match prompt {
        Some(prompt) => Work::Generate { prompt, sampling, stop, form: form(rest.format.as_ref())? },
        None => idle(keep_alive, vec![card.name.clone()]),
    };
    let heading = Heading { name: card.name.clone(), idle: idle_reason(&work), shape };
    let answers = generation::start(&server.worker, Asked { card, work, keep_alive })?;
    answer(answers, heading, rest.stream).await
}

/// A pipeline's run; without an input its first expert is loaded, or all of them let go, as a model is.
async fn of_pipeline(
    server: &Server,
    pipeline: Arc<Pipeline>,
    input: Option<String>,
    rest: &Rest,
    shape: Shape,
) -> Result<Response, Refusal> {
    let format = rest.format.as_ref().is_some_and(reply::is_given);
    reply::refuse(&pipeline, &[("think", rest.thinks()), ("format", format)])?;
    if let Some((key, _)) = rest.options.iter().flatten().next() {
        reply::refuse(&pipeline, &[(&format!("options.{key}"), true)])?;
    }
    let keep_alive = rest.keep_alive()?;
    let name = pipeline.name().to_owned();
    let Some(input) = input else {
        let first = pipeline.first_expert().and_then(|name| pipeline.experts().get(name)).cloned();
        let card = first.ok_or_else(|| Refusal::bad(format!("'{name}' has no expert to load")))?;
        let work = idle(keep_alive, pipeline.experts().keys().cloned().collect());
        let heading = Heading { name, idle: idle_reason(&work), shape };
        let answers = generation::start(&server.worker, Asked { card, work, keep_alive })?;
        return answer(answers, heading, rest.stream).await;
    };
    let asked = runs::Asked { input, keep_alive, ..runs::Asked::default() };
    let answers = reply::start(server, pipeline, asked)?;
    answer(answers, Heading { name, idle: "", shape }, rest.stream).await
}

/// What a request without a prompt asks for: that an expert is loaded, or that experts are let go.
fn idle(keep_alive: Option<KeepAlive>, names: Vec<String>) -> Work {
    if keep_alive == Some(KeepAlive::For(Duration::ZERO)) { Work::Unload(names) } else { Work::Load }
}

fn idle_reason(work: &Work) -> &'static str {
    if matches!(work, Work::Unload(_)) { "unload" } else { "load" }
}

/// What every line of an answer says.
struct Heading {
    name: String,
    /// Why it is done where nothing was generated.
    idle: &'static str,
    shape: Shape,
}

async fn answer(answers: Answers, heading: Heading, stream: Option<bool>) -> Result<Response, Refusal> {
    let Heading { name, idle, shape } = heading;
    if stream == Some(false) {
        let (text, done) = generation::whole(answers).await?;
        return Ok(Json(last(shape, &name, idle, text, &done)).into_response());
    }
    let lines = generation::begun(answers).await?.map(move |answer| {
        let value = match answer {
            Answer::Text(text) => part(shape, &name, &text),
            Answer::Done(done) => last(shape, &name, idle, String::new(), &done),
            Answer::Failed(refusal) => json!({"error": refusal.message}),
        };
        Ok::<_, std::convert::Infallible>(format!("{value}\n"))
    });
    Ok(([(header::CONTENT_TYPE, "application/x-ndjson")], Body::from_stream(lines)).into_response())
}

fn part(shape: Shape, name: &str, text: &str) -> Value {
    let mut value = json!({"model": name, "created_at": clock::rfc3339(clock::now())});
    match shape {
        Shape::Generate => value["response"] = text.into(),
        Shape::Chat => value["message"] = json!({"role": "assistant", "content": text}),
    }
    value["done"] = false.into();
    value
}

fn last(shape: Shape, name: &str, idle: &str, text: String, done: &Done) -> Value {
    let mut value = part(shape, name, &text);
    value["done"] = true.into();
    let Some(generated) = &done.generated else {
        value["done_reason"] = idle.into();
        return value;
    };
    value["done_reason"] = if generated.finish == Finish::Length { "length" } else { "stop" }.into();
    value["total_duration"] = done.total_ns.into();
    value["load_duration"] = done.load_ns.into();
    value["prompt_eval_count"] = generated.prompt_tokens.into();
    value["prompt_eval_duration"] = generated.prompt_ns.into();
    value["eval_count"] = generated.output_tokens.into();
    value["eval_duration"] = generated.decode_ns.into();
    if let Some(run) = &done.run {
        value["pipeline"] = run.clone();
    }
    value
}

/// `"5m"`, `"1h30m"`, `300` (seconds), `0`, or anything negative for always.
fn keep_alive(value: &Value) -> Result<Option<KeepAlive>, Refusal> {
    let wrong = || Refusal::bad(format!("invalid keep_alive {value}"));
    let seconds = match value {
        Value::Null => return Ok(None),
        Value::Number(number) => number.as_f64().ok_or_else(wrong)?,
        Value::String(text) => parse_duration(text).ok_or_else(wrong)?,
        _ => return Err(wrong()),
    };
    if seconds < 0.0 {
        return Ok(Some(KeepAlive::Always));
    }
    Duration::try_from_secs_f64(seconds).map(|time| Some(KeepAlive::For(time))).map_err(|_| wrong())
}

/// Seconds of a duration as Go writes it, or of a plain number.
fn parse_duration(text: &str) -> Option<f64> {
    let (sign, mut rest) = text.strip_prefix('-').map_or((1.0, text), |rest| (-1.0, rest));
    if let Ok(seconds) = rest.parse::<f64>() {
        return Some(sign * seconds);
    }
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let units =
            [("ns", 1e-9), ("us", 1e-6), ("µs", 1e-6), ("ms", 1e-3), ("h", 3600.0), ("m", 60.0), ("s", 1.0)];
        let (unit, scale) = units.into_iter().find(|(unit, _)| rest.starts_with(unit))?;
        rest = &rest[unit.len()..];
        seconds += number * scale;
    }
    Some(sign * seconds)
}

fn form(format: Option<&Value>) -> Result<Form, Refusal> {
    match format {
        None | Some(Value::Null) => Ok(Form::Text),
        Some(Value::String(text)) if text.is_empty() => Ok(Form::Text),
        Some(Value::String(text)) if text == "json" => Ok(Form::Json),
        Some(schema @ Value::Object(_)) => Ok(Form::Schema(schema.clone())),
        Some(other) => Err(Refusal::bad(format!("invalid format: {other}"))),
    }
}

/// Sampling and stop texts of a request over its expert's card.
fn options(
    card: &ExpertCard,
    options: Option<&Map<String, Value>>,
) -> Result<(Sampling, Vec<String>), Refusal> {
    let mut sampling = card.sampling.clone();
    let mut stop = Vec::new();
    for (key, value) in options.into_iter().flatten() {
        let wrong = |what: &str| Refusal::bad(format!("option \"{key}\" must be {what}, it is {value}"));
        let float = || value.as_f64().map(|value| value as f32).ok_or_else(|| wrong("a number"));
        let whole = || value.as_i64().ok_or_else(|| wrong("an integer"));
        let count = || whole().and_then(|n| u32::try_from(n).map_err(|_| wrong("0 or more")));
        match key.as_str() {
            "temperature" => sampling.temperature = float()?,
            "top_p" => sampling.top_p = float()?,
            "min_p" => sampling.min_p = float()?,
            "repeat_penalty" => sampling.repeat_penalty = float()?,
            "top_k" => {
                sampling.top_k = u32::try_from(whole()?.max(0)).map_err(|_| wrong("a small integer"))?
            }
            "repeat_last_n" => sampling.repeat_last_n = count()?,
            // -1 asks for a seed of the server's choice.
            "seed" => sampling.seed = u32::try_from(whole()?).unwrap_or_else(|_| clock::now().subsec_nanos()),
            // Negative: no limit but the context.
            "num_predict" => sampling.max_tokens = u32::try_from(whole()?).ok(),
            "stop" => stop = texts(value).ok_or_else(|| wrong("a text or a list of texts"))?,
            "num_ctx" | "num_batch" | "num_thread" | "num_gpu" => fixed(card, key, count()?)?,
            _ => {}
        }
    }
    sampling.check().map_err(Refusal::bad)?;
    Ok((sampling, stop))
}

/// Refuses a load-time option that is not what the card says.
fn fixed(card: &ExpertCard, key: &str, asked: u32) -> Result<(), Refusal> {
    let LoadOptions { num_ctx, num_batch, num_thread, num_gpu, .. } = card.load;
    let own = match key {
        "num_ctx" if num_ctx == 0 => return smaller_context(card, asked),
        "num_ctx" => num_ctx,
        "num_batch" => num_batch,
        "num_thread" => num_thread,
        _ => num_gpu.unwrap_or(asked),
    };
    // A larger context than asked for serves as well.
    if own == asked || (key == "num_ctx" && asked < own) {
        return Ok(());
    }
    Err(Refusal::bad(format!(
        "option \"{key}\" is {asked}, but expert '{}' is fixed at {own}: register it with another value instead",
        card.name
    )))
}

fn smaller_context(card: &ExpertCard, asked: u32) -> Result<(), Refusal> {
    let own = card.trained_context_tokens()?.unwrap_or(4096).min(4096);
    if asked <= own {
        return Ok(());
    }
    Err(Refusal::bad(format!(
        "option \"num_ctx\" is {asked}, but expert '{}' is fixed at {own}: register it with another value instead",
        card.name
    )))
}

fn texts(value: &Value) -> Option<Vec<String>> {
    match value {
        Value::String(text) => Some(vec![text.clone()]),
        Value::Array(texts) => texts.iter().map(|text| text.as_str().map(str::to_owned)).collect(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_as_go_writes_them() {
        let check = |value: Value| keep_alive(&value).unwrap().unwrap();
        assert_eq!(check(json!("1h30m")), KeepAlive::For(Duration::from_secs(5400)));
        assert_eq!(check(json!("250ms")), KeepAlive::For(Duration::from_millis(250)));
        assert_eq!(check(json!(300)), KeepAlive::For(Duration::from_secs(300)));
        assert_eq!(
            (check(json!(0)), check(json!("0"))),
            (KeepAlive::For(Duration::ZERO), KeepAlive::For(Duration::ZERO))
        );
        assert_eq!((check(json!(-1)), check(json!("-1m"))), (KeepAlive::Always, KeepAlive::Always));
        for wrong in [json!("soon"), json!("5x"), json!([]), json!("1e400")] {
            assert!(keep_alive(&wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn formats() {
        assert_eq!(form(Some(&json!("json"))).unwrap(), Form::Json);
        assert_eq!(form(Some(&json!({"type": "string"}))).unwrap(), Form::Schema(json!({"type": "string"})));
        assert_eq!(form(None).unwrap(), Form::Text);
        assert!(form(Some(&json!("yaml"))).is_err());
    }
}
