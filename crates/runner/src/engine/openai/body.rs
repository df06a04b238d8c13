//! What is sent to be answered.

use serde_json::{Value, json};
use text::Message;

use crate::card::OpenAiModel;
use crate::engine::{Form, Request};

/// The body of a request. It has what the published API has: servers refuse what they do not know, so that `top_k`,
/// `min_p` and the penalty of repetitions are not sent.
pub(super) fn body(model: &OpenAiModel, request: &Request, messages: &[Message], stop: &[&String]) -> Value {
    let sampling = &request.sampling;
    let mut body = json!({
        "model": model.model,
        "messages": messages.iter().map(|m| json!({"role": m.role, "content": m.content})).collect::<Vec<_>>(),
        "stream": true,
        "stream_options": {"include_usage": true},
        "temperature": rounded(sampling.temperature),
        "top_p": rounded(sampling.top_p),
        "seed": sampling.seed,
    });
    if let Some(most) = sampling.max_tokens {
        body["max_tokens"] = most.into();
    }
    if !stop.is_empty() {
        body["stop"] = json!(stop);
    }
    match &request.form {
        Form::Text => {}
        Form::Json => body["response_format"] = json!({"type": "json_object"}),
        Form::Schema(schema) => {
            body["response_format"] = json!({
                "type": "json_schema",
                "json_schema": {"name": "answer", "strict": true, "schema": schema},
            });
        }
    }
    body
}

/// A number of 32 bits as a person wrote it: 0.7, not 0.699999988.
fn rounded(value: f32) -> Value {
    value.to_string().parse::<f64>().map_or(Value::Null, Value::from)
}
