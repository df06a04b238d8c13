//! The content of an answer: read within a bound, and what it says where it is a refusal.

use std::time::Duration;

use reqwest::StatusCode;
use serde_json::Value;

use super::wire::{Fault, Watch};

/// A refusal longer than this says nothing more.
const REFUSAL_BYTES: usize = 64 << 10;

/// Of a refusal that is no JSON so much is shown.
const SHOWN_CHARS: usize = 300;

/// All of an answer.
pub(super) async fn whole(
    mut response: reqwest::Response,
    most: usize,
    watch: &mut Watch<'_, '_>,
) -> Result<Vec<u8>, Fault> {
    let mut bytes = Vec::new();
    loop {
        let piece = watch.over(response.chunk()).await?;
        let Some(piece) = piece.map_err(|error| Fault::passing(error.to_string()))? else { return Ok(bytes) };
        if bytes.len() + piece.len() > most {
            return Err(Fault::lasting(format!("the answer is longer than {most} bytes")));
        }
        bytes.extend_from_slice(&piece);
    }
}

/// An answer as JSON; none at all is `null`.
pub(super) fn json(bytes: &[u8]) -> Result<Value, String> {
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(Value::Null);
    }
    serde_json::from_slice(bytes)
        .map_err(|error| format!("the answer is no JSON ({error}): {}", shown(bytes)))
}

/// What a server says when it does not do what it is asked.
pub(super) struct Refused {
    words: String,
    is_json: bool,
}

impl Refused {
    pub(super) async fn read(response: reqwest::Response, watch: &mut Watch<'_, '_>) -> Result<Self, Fault> {
        let bytes = match whole(response, REFUSAL_BYTES, watch).await {
            Ok(bytes) => bytes,
            Err(Fault::Cancelled) => return Err(Fault::Cancelled),
            // The status says enough.
            Err(_) => Vec::new(),
        };
        let value = serde_json::from_slice::<Value>(&bytes).ok();
        let words = value.as_ref().and_then(words_of);
        let is_json = words.is_some();
        Ok(Self { words: words.unwrap_or_else(|| shown(&bytes)), is_json })
    }

    /// Of what the server said and its status, whether it may do better the next time.
    pub(super) fn fault(self, status: StatusCode, wait: Option<Duration>) -> Fault {
        let reason = match (self.words.is_empty(), self.is_json) {
            (true, _) => plain(status),
            (false, true) => format!("{} ({})", self.words, status.as_u16()),
            (false, false) => format!("{}: {}", plain(status), self.words),
        };
        let passes = status.is_server_error()
            || matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS);
        // A server that found too little memory finds no more of it the next time.
        let is_full = self.words.contains("more system memory") || self.words.contains("out of memory");
        if passes && !is_full { Fault::Passing { reason, wait } } else { Fault::lasting(reason) }
    }
}

/// `{"error": "…"}` as Ollama has it, `{"error": {"message": "…"}}` as OpenAI, `{"detail": …}` and `{"message": …}` as
/// others do.
pub(crate) fn words_of(value: &Value) -> Option<String> {
    let found =
        [value.pointer("/error/message"), value.get("error"), value.get("message"), value.get("detail")];
    let text = found.into_iter().flatten().find_map(|value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Null => None,
        other => Some(other.to_string()),
    })?;
    Some(plain_text(&text))
}

fn plain(status: StatusCode) -> String {
    status.canonical_reason().map_or_else(
        || format!("status {}", status.as_u16()),
        |reason| format!("{} {}", status.as_u16(), reason.to_lowercase()),
    )
}

fn shown(bytes: &[u8]) -> String {
    plain_text(&String::from_utf8_lossy(bytes))
}

/// A server's words as part of one line of a message: short, and without what a terminal would obey.
fn plain_text(text: &str) -> String {
    let clean: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    let mut shown: String = clean.trim().chars().take(SHOWN_CHARS).collect();
    if clean.trim().chars().count() > SHOWN_CHARS {
        shown.push('…');
    }
    shown
}
