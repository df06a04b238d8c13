//! The project's own routes: pipelines, their runs as server-sent events, history, and the machine's state.

use std::convert::Infallible;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::StatusCode;
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures::StreamExt;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio_stream::wrappers::UnboundedReceiverStream;

use super::Server;
use super::accept::body;
use super::refusal::Refusal;
use super::runs::{self, Asked, Told};
use crate::card::Model;
use crate::pipeline::{self, Pipeline};

/// Runs the history shows.
const HISTORY: usize = 50;

pub(super) async fn status(State(server): State<Server>) -> Json<Value> {
    let state = server.worker.state();
    let show = |resident: &super::worker::Resident| {
        json!({
            "expert": resident.card.name,
            "memory": resident.memory,
            "context_tokens": resident.context_tokens,
            "expires_in_ms": resident.expires.map(|at| at.saturating_sub(crate::clock::now()).as_millis() as u64),
        })
    };
    let residents: Vec<Value> = state.residents.iter().map(show).collect();
    Json(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "engine": *server.engine_name,
        "resident": residents.last(),
        "residents": residents,
        "loading": state.loading,
        "n_jobs": state.n_jobs,
        "memory": state.memory,
    }))
}

pub(super) async fn list(State(server): State<Server>) -> Json<Value> {
    let pipelines: Vec<Value> = server.offers.pipelines().iter().map(|pipeline| describe(pipeline)).collect();
    Json(json!({"pipelines": pipelines}))
}

/// A pipeline, for a person to see what it does.
pub(super) fn describe(pipeline: &Pipeline) -> Value {
    let spec = pipeline.spec();
    let steps: Vec<Value> = spec
        .steps
        .iter()
        .zip(pipeline.steps())
        .map(|(step, (_, experts))| {
            json!({
                "name": step.name,
                "kind": step.kind,
                "experts": experts,
                "when": step.when,
                "prompt": step.prompt,
                "of": step.of,
                "map": step.map,
                "has_schema": step.schema.is_some(),
            })
        })
        .collect();
    let experts: Map<String, Value> =
        pipeline.experts().iter().map(|(name, card)| (name.clone(), of_model(&card.model))).collect();
    json!({
        "name": pipeline.name(),
        "description": spec.description,
        "example": spec.example,
        "params": spec.params,
        "experts": experts,
        "steps": steps,
    })
}

/// What a page shows of an expert's model.
fn of_model(model: &Model) -> Value {
    match model {
        Model::File(file) => {
            let name = file.file.file_name().map(|name| name.to_string_lossy().into_owned());
            json!({"file": name, "file_bytes": file.file_bytes, "architecture": file.architecture,
                "n_parameters": file.n_parameters, "weight_type": file.weight_type})
        }
        Model::Ollama(model) => {
            json!({"ollama": model.name, "url": model.url, "file_bytes": model.size_bytes,
            "architecture": model.family, "parameter_size": model.parameter_size,
            "weight_type": model.weight_type})
        }
        Model::OpenAi(model) => json!({"openai": model.model, "url": model.url}),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RunBody {
    #[serde(default)]
    input: String,
    #[serde(default)]
    params: Map<String, Value>,
    #[serde(default)]
    resume: Option<String>,
}

pub(super) async fn run(
    State(server): State<Server>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Response, Refusal> {
    let pipeline = server.offers.pipelines().iter().find(|pipeline| pipeline.name() == name);
    let pipeline = pipeline
        .ok_or_else(|| Refusal::new(StatusCode::NOT_FOUND, format!("pipeline '{name}' not found")))?;
    let RunBody { input, params, resume } = body(request).await?;
    let asked = Asked { input, params, resume, keep_alive: None };
    let told = runs::start(&server, Arc::clone(pipeline), asked)?;
    let events = UnboundedReceiverStream::new(told).filter_map(async |told| {
        let event = match told {
            Told::Event(event) => json!(event),
            Told::Ended(ended) => {
                json!({"event": "failed", "error": Refusal::from(ended.err()?).message})
            }
        };
        Some(Ok::<_, Infallible>(sse::Event::default().data(event.to_string())))
    });
    Ok(Sse::new(events).keep_alive(KeepAlive::default()).into_response())
}

pub(super) async fn history(State(server): State<Server>) -> Result<Json<Value>, Refusal> {
    let runs = off_thread(move || pipeline::history(&server.runs, HISTORY)).await?;
    Ok(Json(json!({"runs": runs})))
}

pub(super) async fn read(
    State(server): State<Server>,
    Path(run): Path<String>,
) -> Result<Json<Value>, Refusal> {
    let record = off_thread(move || pipeline::read_run(&server.runs, &run)).await?;
    Ok(Json(json!(record)))
}

/// Reads files away from the threads that serve connections.
async fn off_thread<T: Send + 'static>(
    read: impl FnOnce() -> crate::Result<T> + Send + 'static,
) -> Result<T, Refusal> {
    let done = tokio::task::spawn_blocking(read).await;
    done.map_err(|error| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()))?
        .map_err(Refusal::from)
}
