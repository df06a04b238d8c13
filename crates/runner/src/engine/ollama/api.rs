//! What the routes answer, as far as it is used; everything else in an answer is passed over.

use serde::Deserialize;
use serde_json::{Map, Value};

/// `GET /api/version`.
#[derive(Debug, Deserialize)]
pub(super) struct VersionAnswer {
    pub version: String,
}

/// `GET /api/tags`.
#[derive(Debug, Deserialize)]
pub(super) struct Tags {
    #[serde(default)]
    pub models: Vec<Tag>,
}

/// A model that the server holds.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Tag {
    /// Its name, with its tag.
    pub name: String,
    /// The digest of its manifest, hex.
    #[serde(default)]
    pub digest: String,
    /// What it takes on disk.
    #[serde(default)]
    pub size: u64,
    /// What kind of model it is.
    #[serde(default)]
    pub details: Details,
    /// Where it really runs, of a model that is elsewhere.
    #[serde(default)]
    pub remote_host: String,
}

/// What kind of model it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Details {
    /// Its architecture.
    #[serde(default)]
    pub family: String,
    /// Its size, as in `4.0B`.
    #[serde(default)]
    pub parameter_size: String,
    /// The type of most weights.
    #[serde(default)]
    pub quantization_level: String,
}

/// `POST /api/show`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub struct Shown {
    /// As `ollama show --modelfile` prints it.
    #[serde(default)]
    pub modelfile: String,
    /// Parameters, one a line.
    #[serde(default)]
    pub parameters: String,
    /// The template, Go's or the file's own.
    #[serde(default)]
    pub template: String,
    /// System message.
    #[serde(default)]
    pub system: String,
    /// What the model can do.
    #[serde(default)]
    pub capabilities: Vec<String>,
    /// The file's metadata; lists only where they were asked for.
    #[serde(default)]
    pub model_info: Map<String, Value>,
    /// The file's tensors.
    #[serde(default)]
    pub tensors: Option<Vec<StoredTensor>>,
    /// Where it really runs, of a model that is elsewhere.
    #[serde(default)]
    pub remote_host: String,
}

/// A tensor of a stored file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct StoredTensor {
    /// Its name.
    pub name: String,
    /// Its type.
    #[serde(rename = "type")]
    pub ty: String,
    /// Its shape.
    pub shape: Vec<u64>,
}

impl Shown {
    /// The values of a parameter. Texts are written as Go quotes them.
    pub fn parameter(&self, key: &str) -> Vec<String> {
        let values = self.parameters.lines().filter_map(|line| {
            let (name, value) = line.split_once(char::is_whitespace)?;
            (name == key).then(|| unquoted(value.trim()))
        });
        values.collect()
    }

    /// A parameter that is a number.
    pub fn number(&self, key: &str) -> Option<i64> {
        let text = self.parameter(key).pop()?;
        // Go prints a large float as 4.096e+03.
        text.parse::<i64>().ok().or_else(|| text.parse::<f64>().ok().map(|value| value as i64))
    }

    /// The SHA-256 of the file that the model is made of, hex, as the modelfile names it.
    pub fn stored_file(&self) -> Option<&str> {
        let from = self.modelfile.lines().find_map(|line| line.strip_prefix("FROM "))?;
        let digest = from.trim().rsplit(['/', '\\']).next()?;
        let hex = digest.strip_prefix("sha256-").or_else(|| digest.strip_prefix("sha256:"))?;
        (hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit())).then_some(hex)
    }

    /// A number of the file's metadata under its architecture, as in `context_length`.
    pub fn of_architecture(&self, key: &str) -> Option<u64> {
        let architecture = self.model_info.get("general.architecture")?.as_str()?;
        let value = self.model_info.get(&format!("{architecture}.{key}"))?;
        value.as_u64().or_else(|| value.as_f64().map(|value| value as u64))
    }
}

/// A text as Go's `%#v` writes it; what is not quoted stays as it is.
fn unquoted(text: &str) -> String {
    if let Some(raw) = text.strip_prefix('`').and_then(|rest| rest.strip_suffix('`')) {
        return raw.to_owned();
    }
    if !text.starts_with('"') {
        return text.to_owned();
    }
    // Go's escapes are JSON's, but for control characters and those beyond the first plane.
    let json = text.replace("\\x", "\\u00").replace("\\a", "\\u0007").replace("\\v", "\\u000b");
    serde_json::from_str(&json).unwrap_or_else(|_| text.trim_matches('"').to_owned())
}

/// `GET /api/ps`.
#[derive(Debug, Deserialize)]
pub(super) struct Processes {
    #[serde(default)]
    pub models: Vec<Running>,
}

/// A model that is loaded.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Running {
    /// Its name, with its tag.
    pub name: String,
    /// The digest of its manifest, hex.
    #[serde(default)]
    pub digest: String,
    /// What it takes in all.
    #[serde(default)]
    pub size: u64,
    /// What of that is on graphics cards.
    #[serde(default)]
    pub size_vram: u64,
    /// Tokens of context; 0 where the server does not say.
    #[serde(default)]
    pub context_length: u64,
}

/// An answer of `/api/generate` and `/api/chat`: one line of a stream, or all of it.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Piece {
    #[serde(default)]
    pub response: String,
    #[serde(default)]
    pub message: Option<PieceMessage>,
    #[serde(default)]
    pub done: bool,
    #[serde(default)]
    pub done_reason: String,
    #[serde(default)]
    pub prompt_eval_count: usize,
    #[serde(default)]
    pub prompt_eval_duration: u64,
    #[serde(default)]
    pub eval_count: usize,
    #[serde(default)]
    pub eval_duration: u64,
    #[serde(default, rename = "_debug_info")]
    pub debug: Option<DebugInfo>,
}

/// What a server rendered, where it was asked for that alone.
#[derive(Debug, Deserialize)]
pub(super) struct DebugInfo {
    #[serde(default)]
    pub rendered_template: String,
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct PieceMessage {
    #[serde(default)]
    pub content: String,
}

/// A line that `/api/create` streams.
#[derive(Debug, Default, Deserialize)]
pub(super) struct CreateLine {
    #[serde(default)]
    pub status: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(parameters: &str, modelfile: &str) -> Shown {
        let value = serde_json::json!({"parameters": parameters, "modelfile": modelfile});
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn parameters_are_read_as_go_prints_them() {
        let shown = shown(
            "num_ctx                        4096\nstop                           \"<|im_end|>\"\nstop                           \"a \\\"b\\\"\\n\"\ntemperature                    0.7",
            "",
        );
        assert_eq!(shown.parameter("stop"), ["<|im_end|>", "a \"b\"\n"]);
        assert_eq!((shown.number("num_ctx"), shown.number("num_batch")), (Some(4096), None));
        assert_eq!(unquoted("4.096e+03").parse::<f64>(), Ok(4096.0));
        assert_eq!(unquoted("`a\"b`"), "a\"b");
    }

    #[test]
    fn the_stored_file_is_read_from_the_modelfile() {
        let hex = "0123456789abcdef".repeat(4);
        let file = |path: &str| {
            shown("", &format!("# FROM x\n\nFROM {path}\nTEMPLATE x")).stored_file().map(str::to_owned)
        };
        assert_eq!(file(&format!("/var/lib/ollama/blobs/sha256-{hex}")), Some(hex.clone()));
        assert_eq!(file(&format!("C:\\models\\blobs\\sha256-{hex}")), Some(hex.clone()));
        assert_eq!(file("qwen3:4b"), None);
    }
}
