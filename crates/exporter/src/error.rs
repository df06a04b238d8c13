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

    #[error(
        "the adapter {} was trained on another base: it records {expected}, {} is {actual}",
        adapter.display(), base.display()
    )]
    OtherBase { adapter: PathBuf, base: PathBuf, expected: String, actual: String },

    #[error(
        "the adapter {} was trained with another tokenizer than {}: it records {expected}, this one is {actual}",
        adapter.display(), tokenizer.display()
    )]
    OtherTokenizer { adapter: PathBuf, tokenizer: PathBuf, expected: String, actual: String },

    #[error(
        "the adapter {} was trained with another chat template: it records {expected}, this one is {actual}",
        adapter.display()
    )]
    OtherTemplate { adapter: PathBuf, expected: String, actual: String },

    #[error("the adapter {} changes `{module}`, which the base does not have", path.display())]
    NoSuchModule { path: PathBuf, module: String },

    #[error("tensor `{tensor}` of {} has shape {actual:?}, expected {expected:?}", path.display())]
    Shape { path: PathBuf, tensor: String, expected: Vec<usize>, actual: Vec<usize> },

    #[error(
        "tensor `{tensor}`, row {row}, column {column} is {value} after merging; {type_name} holds at most ±{limit}"
    )]
    OutOfRange { tensor: String, row: usize, column: usize, value: f32, type_name: &'static str, limit: f32 },

    #[error("{quant} is a form of weights in memory that no file has (valid: {valid})")]
    NoFileType { quant: &'static str, valid: String },

    #[error("{quant} needs an importance matrix: without one the file is garbage")]
    NeedsMatrix { quant: &'static str },

    #[error("the importance matrix {} is another model's: {what}", path.display())]
    OtherMatrix { path: PathBuf, what: String },

    #[error("no importance matrix says anything about `{tensor}`, which as {type_name} needs it")]
    Unimportant { tensor: String, type_name: &'static str },

    #[error("the pattern `{pattern}` cannot give tensors a type: {reason}")]
    Pattern { pattern: String, reason: String },

    #[error("the adapter {} cannot be merged with weight {weight}: {reason}", adapter.display())]
    Weight { adapter: PathBuf, weight: f32, reason: &'static str },

    #[error("{} is one of the {n_files} files of a split GGUF", path.display())]
    SplitGguf { path: PathBuf, n_files: u32 },

    #[error("{} is a GGUF: {what} needs the base as a folder", path.display())]
    NoFolder { path: PathBuf, what: &'static str },

    #[error(
        "{} is quantised already (`{tensor}` is {type_name}): rounded once more it loses more than {quant} of the original",
        path.display()
    )]
    Requantising { path: PathBuf, tensor: String, type_name: &'static str, quant: &'static str },

    #[error("{what} takes {need_bytes} bytes of memory, and {have_bytes} are free")]
    Memory { what: &'static str, need_bytes: u64, have_bytes: u64 },

    #[error("`{module}` has an adapter that cannot be written for llama.cpp: {reason}")]
    Form { module: String, reason: &'static str },

    #[error("num_ctx is {num_ctx}, expected 1 to {max_positions}, the positions that the base was made for")]
    Context { num_ctx: usize, max_positions: usize },

    #[error(
        "num_ctx is {num_ctx}, and the model's layers see only {window} tokens: llama.cpp has no such window in a {architecture} model"
    )]
    Window { num_ctx: usize, window: usize, architecture: &'static str },

    #[error(
        "the system prompt has three quotes in a row, or a quote at its end, which no Modelfile can hold"
    )]
    System,

    #[error("evaluation row {row}: {reason}")]
    EvaluationRow { row: usize, reason: String },

    #[error("the written file differs from the plan: {place} is {actual}, expected {expected}")]
    Written { place: String, expected: String, actual: String },

    #[error("the engine cannot {action} the exported file: {source}")]
    Engine { action: &'static str, source: crate::EngineError },

    #[error("the gate refused the export: {reason}")]
    Refused { reason: String, remedy: Option<&'static str> },

    #[error(transparent)]
    Formats(#[from] formats::Error),

    #[error(transparent)]
    Text(#[from] text::Error),

    #[error(transparent)]
    Model(#[from] model::Error),
}

impl Error {
    /// What the user can do about it, where that is known.
    pub fn hint(&self) -> Option<&'static str> {
        Some(match self {
            Error::Busy { .. } => "wait for it to end; a lock that no process holds is no obstacle",
            Error::OtherBase { .. } => {
                "see `base_path` in the adapter's tune.json for the base it belongs to"
            }
            Error::Formats(formats::Error::Key { key, .. }) if key == "init_lora_weights" => {
                "convert it to a plain LoRA with PEFT: `save_pretrained(…, path_initial_model_for_weight_conversion=…)`"
            }
            Error::OtherTemplate { .. } => "export with the chat template that the adapter was trained with",
            Error::Text(text::Error::VocabularyTooLarge { .. }) => {
                "tokenizer and base belong to different models, or tokens were added"
            }
            Error::Formats(formats::Error::DiskFull { .. }) => "free some room, or write to another disk",
            Error::Refused { remedy, .. } => return *remedy,
            Error::Window { .. } => "set `num_ctx` in the recipe's [expert] to at most that window",
            Error::OtherTokenizer { .. } => "export with the tokenizer that the adapter was trained with",
            Error::Formats(formats::Error::Malformed { place, .. }) if place == "its BLAKE3" => {
                "the adapter was damaged or changed since it was written: take it from the run's best checkpoint, or remove \
                 tune.json beside it to use it as it is"
            }
            Error::Memory { .. } => {
                "close other programs, lower `num_ctx` in [expert], or leave the comparison out with \
                 `comparison_tokens = 0` in [export]"
            }
            Error::SplitGguf { .. } => "make it one with llama.cpp: llama-gguf-split --merge FIRST OUT",
            Error::Requantising { .. } => {
                "export from the 16-bit original; or accept the loss with --allow-requantize"
            }
            Error::Weight { .. } => "write a weight as DIR=0.5, and merge an adapter of DoRA alone and whole",
            Error::Form { .. } => "merge it: `tune export` without --as, or --as merged-hf",
            Error::NeedsMatrix { .. } => {
                "measure one with `--imatrix train` or `--imatrix general`, or choose iq3_m or larger"
            }
            Error::Unimportant { .. } => {
                "collect it on more text, so that every expert is met, or choose iq3_m or larger"
            }
            Error::OutOfRange { .. } => "the training diverged, or the base is damaged: inspect both",
            _ => return None,
        })
    }
}
