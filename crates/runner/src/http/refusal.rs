//! Errors as answers: a status and `{"error": …}`, in Ollama's words where it has some.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::worker::Busy;
use crate::Error;

/// A request that is not fulfilled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub status: StatusCode,
    pub message: String,
}

impl Refusal {
    pub(super) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into() }
    }

    /// 400.
    pub(super) fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 404 for an expert.
    pub(super) fn unknown_model(name: &str) -> Self {
        Self::new(StatusCode::NOT_FOUND, format!("model '{name}' not found"))
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        (self.status, Json(json!({"error": self.message}))).into_response()
    }
}

impl From<Busy> for Refusal {
    fn from(_: Busy) -> Self {
        Self::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "server busy, please try again.  maximum pending requests exceeded",
        )
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        let status = match &error {
            Error::UnknownExpert { name, .. } => return Self::unknown_model(name),
            Error::PromptTooLong { .. }
            | Error::EmptyPrompt { .. }
            | Error::Schema { .. }
            | Error::Sampling { .. }
            | Error::Text { .. }
            | Error::Card { .. }
            | Error::Pipeline { .. } => StatusCode::BAD_REQUEST,
            Error::Resume { .. } => StatusCode::NOT_FOUND,
            Error::DoesNotFit { .. } => StatusCode::INSUFFICIENT_STORAGE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let hint = error.hint().map_or_else(String::new, |hint| format!("; {hint}"));
        Self::new(status, format!("{error}{hint}"))
    }
}
