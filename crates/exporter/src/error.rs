//! Everything that can end an export.

use std::path::PathBuf;

/// Result with this crate's [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong: what, where, expected, found. Nothing stands under the final name when one is returned.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the messages say what each field is")]
pub enum Error {
    #[error("the name `{name}` cannot name a file: {reason}")]
    Name { name: String, reason: &'static str },

    #[error("cannot {action} {}: {source}", path.display())]
    Io { path: PathBuf, action: &'static str, source: std::io::Error },

    #[error("another export is writing {}", path.display())]
    Busy { path: PathBuf },

    #[error("no room in {}: the export needs {need_bytes} bytes, {have_bytes} are free", path.display())]
    DiskFull { path: PathBuf, need_bytes: u64, have_bytes: u64 },

    #[error(
        "the adapter {} was trained on another base: it records {expected}, {} is {actual}",
        adapter.display(), base.display()
    )]
    OtherBase { adapter: PathBuf, base: PathBuf, expected: String, actual: String },

    #[error("the adapter {} uses {feature}, which cannot be merged: expected {expected}", path.display())]
    AdapterFeature { path: PathBuf, feature: String, expected: &'static str },

    #[error("the adapter {} changes `{module}`, which the base does not have", path.display())]
    NoSuchModule { path: PathBuf, module: String },

    #[error("tensor `{tensor}` of {} has shape {actual:?}, expected {expected:?}", path.display())]
    Shape { path: PathBuf, tensor: String, expected: Vec<usize>, actual: Vec<usize> },

    #[error("{} has no tensor `{tensor}`", path.display())]
    MissingTensor { path: PathBuf, tensor: String },

    #[error("{} has a tensor `{tensor}` that a {architecture} model has no place for", path.display())]
    ForeignTensor { path: PathBuf, tensor: String, architecture: String },

    #[error(
        "tensor `{tensor}`, row {row}, column {column} is {value} after merging; {type_name} holds at most ±{limit}"
    )]
    OutOfRange { tensor: String, row: usize, column: usize, value: f32, type_name: &'static str, limit: f32 },

    #[error("the tokenizer of {} has {tokens} tokens, the embedding of the base {rows} rows", path.display())]
    Vocabulary { path: PathBuf, tokens: usize, rows: usize },

    #[error("num_ctx is {num_ctx}, the base was made for {max_positions} positions")]
    ContextTooLong { num_ctx: usize, max_positions: usize },

    #[error("evaluation row {row}: {reason}")]
    EvaluationRow { row: usize, reason: String },

    #[error("the written file differs from the plan: {place} is {actual}, expected {expected}")]
    Written { place: String, expected: String, actual: String },

    #[error("the engine cannot {action} the exported file: {source}")]
    Engine { action: &'static str, source: crate::EngineError },

    #[error("the gate refused the export: {reason}")]
    Refused { reason: String },

    #[error(transparent)]
    Formats(#[from] formats::Error),

    #[error(transparent)]
    Text(#[from] text::Error),

    #[error(transparent)]
    Model(#[from] model::Error),
}
