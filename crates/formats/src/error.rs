//! The one error type of this crate: every variant names the place, and file errors name their path.

use std::path::PathBuf;

use crate::BlockType;

/// The result of everything that can fail here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can be wrong with a file, a layout, or a request for one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs, reason = "the messages say what each field is")]
pub enum Error {
    #[error("cannot {action} {}: {source}", path.display())]
    Io { path: PathBuf, action: &'static str, source: std::io::Error },

    #[error("cannot write {what}: {source}")]
    Write { what: String, source: std::io::Error },

    #[error("no room for {}: it needs {need_bytes} bytes, {have_bytes} are free on its disk", path.display())]
    DiskFull { path: PathBuf, need_bytes: u64, have_bytes: u64 },

    #[error("{} is not valid JSON: {source}", path.display())]
    Json { path: PathBuf, source: serde_json::Error },

    #[error("`{name}` of Ollama's models in {}: {reason}", models.display())]
    OllamaModel { name: String, models: PathBuf, reason: String },

    #[error("{}: key `{key}` is {actual}, expected {expected}", path.display())]
    Key { path: PathBuf, key: String, expected: String, actual: String },

    #[error("{}: key `{key}` is missing, expected {expected}", path.display())]
    MissingKey { path: PathBuf, key: String, expected: String },

    #[error("{}: {place} occurs twice: `{name}`", path.display())]
    Duplicate { path: PathBuf, place: &'static str, name: String },

    #[error("{} ends too early: {place} needs {expected} bytes, {actual} are left", path.display())]
    Truncated { path: PathBuf, place: String, expected: u64, actual: u64 },

    #[error("{}: {place} is {actual}, expected {expected}", path.display())]
    Malformed { path: PathBuf, place: String, expected: String, actual: String },

    #[error("{}: {place} is {actual}, the limit is {limit}", path.display())]
    TooLarge { path: PathBuf, place: String, limit: u64, actual: u64 },

    #[error("{}: alignment is {actual}, expected a power of two from 8 to 65536", path.display())]
    Alignment { path: PathBuf, actual: u64 },

    #[error("{}: the size of tensor `{tensor}` overflows: shape {shape:?}", path.display())]
    SizeOverflow { path: PathBuf, tensor: String, shape: Vec<u64> },

    #[error("{}: tensor `{tensor}` lies at bytes {begin}..{end}, the data ends at {data_bytes}", path.display())]
    OutOfFile { path: PathBuf, tensor: String, begin: u64, end: u64, data_bytes: u64 },

    #[error("{}: tensors `{first}` and `{second}` overlap at byte {at} of the data", path.display())]
    Overlap { path: PathBuf, first: String, second: String, at: u64 },

    #[error("{}: tensor `{tensor}` has type {actual}, which this program does not read", path.display())]
    UnknownType { path: PathBuf, tensor: String, actual: String },

    #[error("{}: there is no tensor `{tensor}`", path.display())]
    NoSuchTensor { path: PathBuf, tensor: String },

    #[error("{}: tensor `{tensor}` has shape {actual:?}, expected {expected:?}", path.display())]
    Shape { path: PathBuf, tensor: String, expected: Vec<usize>, actual: Vec<usize> },

    #[error("{}: tensor `{tensor}` has {actual} rows, rows {begin}..{end} were asked for", path.display())]
    Rows { path: PathBuf, tensor: String, begin: usize, end: usize, actual: usize },

    #[error("{} is missing, expected {expected}", path.display())]
    MissingFile { path: PathBuf, expected: &'static str },

    #[error("a row of {} has {actual} values, expected a multiple of {expected}", ty.name())]
    RowLength { ty: BlockType, expected: usize, actual: usize },

    #[error("{what} for {} has length {actual}, expected {expected}", ty.name())]
    BufferLength { ty: BlockType, what: &'static str, expected: usize, actual: usize },

    #[error("weight {index} is {value}; {} holds finite numbers only", ty.name())]
    NotFinite { ty: BlockType, index: usize, value: f32 },

    #[error("{} cannot be made without an importance matrix", ty.name())]
    NeedsImportance { ty: BlockType },

    #[error("`{name}` cannot be written: it has {actual}, expected {expected}")]
    Plan { name: String, expected: String, actual: String },

    #[error("{} is in use by another process", path.display())]
    InUse { path: PathBuf },

    #[error("`{name}` is written where the plan has {expected}")]
    WriteOrder { name: String, expected: String },
}
