//! OpenAI's API on the same server: its list of models, its errors, and an answer as server-sent events.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::{Inside, KILLED, Pieces, Wrong, fours};

pub fn models(inside: &Inside, wrong: Option<Wrong>) -> Response {
    let held = inside.models.keys().filter(|_| wrong != Some(Wrong::Vanished));
    let data: Vec<Value> = held.map(|name| json!({"id": name, "object": "model"})).collect();
    axum::Json(json!({"object": "list", "data": data})).into_response()
}

pub fn error(status: StatusCode, words: &str) -> Response {
    (status, axum::Json(of(words))).into_response()
}

fn of(words: &str) -> Value {
    json!({"error": {"message": words, "type": "server_error", "param": null, "code": null}})
}

pub fn pieces(name: &str, text: &str, wrong: Option<Wrong>) -> Pieces {
    let event = |value: Value| format!("data: {value}\n\n");
    let chunk = |delta: Value, reason: Value| {
        let choice = json!({"index": 0, "delta": delta, "finish_reason": reason});
        event(json!({"object": "chat.completion.chunk", "model": name, "choices": [choice]}))
    };
    let lines: Vec<String> = fours(text).map(|text| chunk(json!({"content": text}), Value::Null)).collect();
    let reason = if wrong == Some(Wrong::OtherReason) { "content_filter" } else { "stop" };
    let usage = json!({"prompt_tokens": 7, "completion_tokens": lines.len()});
    let usage = event(json!({"choices": [], "usage": usage}));
    let last = format!("{}{usage}data: [DONE]\n\n", chunk(json!({}), reason.into()));
    Pieces { lines, last, error: event(of(KILLED)) }
}
