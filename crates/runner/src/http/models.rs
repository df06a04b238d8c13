//! What there is to ask, experts and pipelines: `/api/tags`, `/api/ps`, `/api/show`, `/api/version`.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{Request, State};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Server;
use super::accept::body;
use super::offers::Offer;
use super::pipelines::describe;
use super::refusal::Refusal;
use crate::card::{ExpertCard, Model, ModelFile};
use crate::clock;
use crate::pipeline::Pipeline;

/// What a pipeline is called where a model has its format.
const PIPELINE: &str = "pipeline";

pub(super) async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}

pub(super) async fn tags(State(server): State<Server>) -> Result<Json<Value>, Refusal> {
    let mut models: Vec<Value> = server.offers.cards()?.iter().map(tag).collect();
    models.extend(server.offers.answering().map(|pipeline| tag_of_pipeline(&server, pipeline)));
    Ok(Json(json!({"models": models})))
}

/// A pipeline among the models: what it is stands where a model has its format and its family.
fn tag_of_pipeline(server: &Server, pipeline: &Pipeline) -> Value {
    let name = format!("{}:latest", pipeline.name());
    let files: BTreeMap<_, u64> = pipeline
        .experts()
        .values()
        .filter_map(ExpertCard::file)
        .map(|file| (&file.file, file.file_bytes))
        .collect();
    json!({
        "name": name,
        "model": name,
        "modified_at": clock::rfc3339(server.since),
        "size": files.values().sum::<u64>(),
        "digest": pipeline.hash(),
        "details": pipeline_details(),
    })
}

fn pipeline_details() -> Value {
    json!({
        "parent_model": "",
        "format": PIPELINE,
        "family": PIPELINE,
        "families": [PIPELINE],
        "parameter_size": "",
        "quantization_level": "",
    })
}

fn tag(card: &ExpertCard) -> Value {
    let (bytes, digest) = match &card.model {
        Model::File(file) => (file.file_bytes, file.sha256.as_deref()),
        Model::Ollama(model) => (model.size_bytes, Some(model.digest.as_str())),
        Model::OpenAi(_) => (0, None),
    };
    json!({
        "name": format!("{}:latest", card.name),
        "model": format!("{}:latest", card.name),
        "modified_at": clock::rfc3339(card.modified()),
        "size": bytes,
        "digest": digest,
        "details": details(card),
    })
}

fn details(card: &ExpertCard) -> Value {
    let (format, family, size, weight_type) = match &card.model {
        Model::File(file) => {
            ("gguf", file.architecture.as_str(), parameter_size(file.n_parameters), file.weight_type.as_str())
        }
        Model::Ollama(model) => {
            ("gguf", model.family.as_str(), model.parameter_size.clone(), model.weight_type.as_str())
        }
        Model::OpenAi(_) => ("", "", String::new(), ""),
    };
    json!({
        "parent_model": "",
        "format": format,
        "family": family,
        "families": [family],
        "parameter_size": size,
        "quantization_level": weight_type,
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
    let state = server.worker.state();
    // The one that was asked last comes first, as with Ollama.
    let models = state.residents.iter().rev().map(|resident| {
        let mut value = tag(&resident.card);
        let bytes = resident.memory.total_bytes();
        value["size"] = bytes.into();
        // All of it is on the card, or there is none: nothing is offloaded silently.
        let on_device = !state.memory.devices.is_empty() && resident.card.load.num_gpu != Some(0);
        value["size_vram"] = if on_device { bytes } else { 0 }.into();
        value["context_length"] = resident.context_tokens.into();
        value["expires_at"] = match resident.expires {
            Some(at) => clock::rfc3339(at).into(),
            None => "0001-01-01T00:00:00Z".into(),
        };
        value
    });
    Json(json!({"models": models.collect::<Vec<Value>>()}))
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
    match server.offers.find(if asked.model.is_empty() { &asked.name } else { &asked.model })? {
        Offer::Expert(card) => show_expert(&card),
        Offer::Pipeline(pipeline) => Ok(Json(show_pipeline(&server, &pipeline))),
    }
}

fn show_pipeline(server: &Server, pipeline: &Pipeline) -> Value {
    let steps: Vec<String> = pipeline
        .steps()
        .map(|(name, experts)| match experts.is_empty() {
            true => name.to_owned(),
            false => format!("{name} ({})", experts.join(", ")),
        })
        .collect();
    let capabilities = if pipeline.answering().is_some() { &["completion"][..] } else { &[] };
    json!({
        "modelfile": format!("# a pipeline of tune: {}", steps.join(" → ")),
        "parameters": "",
        "template": "",
        "details": pipeline_details(),
        "model_info": {"general.architecture": PIPELINE},
        "capabilities": capabilities,
        "modified_at": clock::rfc3339(server.since),
        "pipeline": describe(pipeline),
    })
}

fn show_expert(card: &ExpertCard) -> Result<Json<Value>, Refusal> {
    let Facts { from, template, model_info } = match &card.model {
        Model::File(file) => Facts::of_file(file)?,
        Model::Ollama(model) => Facts::elsewhere(format!("{} on {}", model.name, model.url)),
        Model::OpenAi(model) => Facts::elsewhere(format!("{} on {}", model.model, model.url)),
    };
    Ok(Json(json!({
        "modelfile": format!("FROM {from}\n{}", parameters(card, "PARAMETER ")),
        "parameters": parameters(card, ""),
        "template": template,
        "system": card.system,
        "details": details(card),
        "model_info": model_info,
        "capabilities": ["completion"],
        "modified_at": clock::rfc3339(card.modified()),
        "card": card,
    })))
}

/// What `/api/show` tells of a model beside its card.
struct Facts {
    from: String,
    template: String,
    model_info: Map<String, Value>,
}

impl Facts {
    fn of_file(model: &ModelFile) -> crate::Result<Self> {
        let file = formats::gguf::Reader::open(&model.file)?;
        let metadata = file.metadata();
        let mut model_info = Map::new();
        for (key, value) in metadata.entries() {
            let value = match value {
                formats::gguf::Value::String(text) if key != "tokenizer.chat_template" => {
                    text.as_str().into()
                }
                formats::gguf::Value::Bool(value) => (*value).into(),
                formats::gguf::Value::F32(value) => (*value).into(),
                formats::gguf::Value::F64(value) => (*value).into(),
                // Ollama leaves lists out: a vocabulary is longer than all the rest.
                _ => match metadata.get_u64(key) {
                    Some(value) => value.into(),
                    None => continue,
                },
            };
            model_info.insert(key.clone(), value);
        }
        model_info.insert("general.parameter_count".to_owned(), model.n_parameters.into());
        let template = metadata.get_str("tokenizer.chat_template").unwrap_or_default().to_owned();
        Ok(Self { from: model.file.display().to_string(), template, model_info })
    }

    /// A server renders by a template of its own.
    fn elsewhere(from: String) -> Self {
        Self { from, template: String::new(), model_info: Map::new() }
    }
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
