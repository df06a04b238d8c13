//! What experts there are: `/api/tags`, `/api/ps`, `/api/show`, `/api/version`.

use axum::Json;
use axum::extract::{Request, State};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Server;
use super::accept::body;
use super::refusal::Refusal;
use crate::card::ExpertCard;
use crate::clock;

pub(super) async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}

pub(super) async fn tags(State(server): State<Server>) -> Result<Json<Value>, Refusal> {
    let models: Vec<Value> = server.experts.cards()?.iter().map(tag).collect();
    Ok(Json(json!({"models": models})))
}

fn tag(card: &ExpertCard) -> Value {
    json!({
        "name": format!("{}:latest", card.name),
        "model": format!("{}:latest", card.name),
        "modified_at": clock::rfc3339(std::time::Duration::from_nanos(card.file_modified)),
        "size": card.file_bytes,
        "digest": card.sha256,
        "details": details(card),
    })
}

fn details(card: &ExpertCard) -> Value {
    json!({
        "parent_model": "",
        "format": "gguf",
        "family": card.architecture,
        "families": [card.architecture],
        "parameter_size": parameter_size(card.n_parameters),
        "quantization_level": card.weight_type,
    })
}

/// `4.0B`, `751.6M`, `260.0K`.
fn parameter_size(n: u64) -> String {
    let n = n as f64;
    match n {
        _ if n >= 1e9 => format!("{:.1}B", n / 1e9),
        _ if n >= 1e6 => format!("{:.1}M", n / 1e6),
        _ => format!("{:.1}K", n / 1e3),
    }
}

pub(super) async fn ps(State(server): State<Server>) -> Json<Value> {
    let resident = server.worker.state().resident.map(|resident| {
        let mut value = tag(&resident.card);
        let bytes = resident.memory.total_bytes();
        value["size"] = bytes.into();
        // All of it is on the card, or there is none: nothing is offloaded silently.
        let on_device =
            !server.worker.state().memory.devices.is_empty() && resident.card.load.num_gpu != Some(0);
        value["size_vram"] = if on_device { bytes } else { 0 }.into();
        value["context_length"] = resident.context_tokens.into();
        value["expires_at"] = match resident.expires {
            Some(at) => clock::rfc3339(at).into(),
            None => "0001-01-01T00:00:00Z".into(),
        };
        value
    });
    let models: Vec<Value> = resident.into_iter().collect();
    Json(json!({"models": models}))
}

#[derive(Deserialize)]
struct ShowBody {
    #[serde(default)]
    model: String,
    #[serde(default)]
    name: String,
}

pub(super) async fn show(State(server): State<Server>, request: Request) -> Result<Json<Value>, Refusal> {
    let asked: ShowBody = body(request).await?;
    let card = server.experts.find(if asked.model.is_empty() { &asked.name } else { &asked.model })?;
    let file = formats::gguf::Reader::open(&card.file).map_err(crate::Error::from)?;
    let metadata = file.metadata();
    let mut facts = Map::new();
    for (key, value) in metadata.entries() {
        let value = match value {
            formats::gguf::Value::String(text) if key != "tokenizer.chat_template" => text.as_str().into(),
            formats::gguf::Value::Bool(value) => (*value).into(),
            formats::gguf::Value::F32(value) => (*value).into(),
            formats::gguf::Value::F64(value) => (*value).into(),
            // Ollama leaves lists out: a vocabulary is longer than all the rest.
            _ => match metadata.get_u64(key) {
                Some(value) => value.into(),
                None => continue,
            },
        };
        facts.insert(key.clone(), value);
    }
    facts.insert("general.parameter_count".to_owned(), card.n_parameters.into());
    Ok(Json(json!({
        "modelfile": format!("FROM {}\n{}", card.file.display(), parameters(&card, "PARAMETER ")),
        "parameters": parameters(&card, ""),
        "template": metadata.get_str("tokenizer.chat_template").unwrap_or_default(),
        "system": card.system,
        "details": details(&card),
        "model_info": facts,
        "capabilities": ["completion"],
        "modified_at": clock::rfc3339(std::time::Duration::from_nanos(card.file_modified)),
        "card": card,
    })))
}

fn parameters(card: &ExpertCard, prefix: &str) -> String {
    let mut lines = vec![
        format!("{prefix}temperature {}", card.sampling.temperature),
        format!("{prefix}num_batch {}", card.load.num_batch),
    ];
    if card.load.num_ctx > 0 {
        lines.push(format!("{prefix}num_ctx {}", card.load.num_ctx));
    }
    lines.extend(card.stop.iter().map(|stop| format!("{prefix}stop {}", Value::from(stop.as_str()))));
    lines.join("\n")
}
