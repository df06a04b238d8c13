//! Everything that can go wrong in this crate.

use thiserror::Error;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong: what, where, expected, found.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The configuration names an architecture that no family here implements.
    #[error("{origin}: architecture `{found}` is not supported (supported: {supported})")]
    UnsupportedArchitecture {
        /// The file, or `GGUF metadata`.
        origin: String,
        /// The architecture it names.
        found: String,
        /// The architectures that are supported.
        supported: String,
    },
    /// The configuration asks for something the family's layers do not compute.
    #[error("{origin}: `{key}` is {found}, supported: {supported}")]
    UnsupportedFeature {
        /// The file, or `GGUF metadata`.
        origin: String,
        /// The key that asks for it.
        key: String,
        /// Its value.
        found: String,
        /// The values that are supported.
        supported: String,
    },
    /// A hyper-parameter is missing, zero, or contradicts another one.
    #[error("{origin}: `{key}` is {found}, expected {expected}")]
    InvalidConfig {
        /// The file, or `GGUF metadata`.
        origin: String,
        /// The key.
        key: String,
        /// Its value, or `missing`.
        found: String,
        /// What would be right.
        expected: String,
    },
    /// The weights lack a tensor that the configuration asks for.
    #[error("tensor `{name}` is missing ({n_missing} of {n_expected} tensors are)")]
    MissingTensor {
        /// The first missing tensor.
        name: String,
        /// How many are missing.
        n_missing: usize,
        /// How many the configuration asks for.
        n_expected: usize,
    },
    /// The weights hold a tensor that the family would not use.
    #[error("tensor `{name}` has no place in a {family} model ({n_surplus} such tensors)")]
    SurplusTensor {
        /// The first surplus tensor.
        name: String,
        /// The family.
        family: &'static str,
        /// How many are surplus.
        n_surplus: usize,
    },
    /// A tensor has another shape than the configuration implies.
    #[error("tensor `{name}` has shape {found:?}, expected {expected:?}")]
    TensorShape {
        /// The tensor.
        name: String,
        /// Its shape, outermost dimension first.
        found: Vec<usize>,
        /// The shape that the configuration implies.
        expected: Vec<usize>,
    },
    /// A model whose head is its embedding comes with another head.
    #[error(
        "weight ({row}, {column}) of `{tensor}` is {value}: the checkpoint is damaged, download it again"
    )]
    WeightNotFinite {
        /// The tensor's name in the checkpoint.
        tensor: String,
        /// Its row.
        row: usize,
        /// Its column.
        column: usize,
        /// What stands there.
        value: f32,
    },

    /// A measurement that gave no number.
    #[error("{what} is not finite: base or adapter is damaged, or their precision too low")]
    NotFinite {
        /// What was measured.
        what: String,
    },

    /// A model whose head is its embedding comes with another head.
    #[error(
        "the model is tied, but `{head}` and `{embedding}` differ from row {row} on (set `tie_word_embeddings` to false to use the head, or remove it)"
    )]
    TiedHead {
        /// The head's tensor.
        head: String,
        /// The embedding's.
        embedding: String,
        /// The first row that differs.
        row: usize,
    },
    /// No such quantisation.
    #[error("unknown quantisation `{found}` (valid: {valid})")]
    UnknownQuant {
        /// What was asked for.
        found: String,
        /// All valid names.
        valid: String,
    },
    /// An op's arguments disagree on a size.
    #[error("{op}: {what} holds {found}, expected {expected}")]
    Shape {
        /// The op.
        op: &'static str,
        /// The argument.
        what: &'static str,
        /// Its size.
        found: usize,
        /// The size that the others imply.
        expected: usize,
    },
    /// An index points past what it selects from.
    #[error("{op}: {what} is {found}, expected below {limit}")]
    Index {
        /// The op.
        op: &'static str,
        /// What the index selects.
        what: &'static str,
        /// The index.
        found: usize,
        /// How many there are to select from.
        limit: usize,
    },
    /// The plan's memory is used up; more is never asked of the system.
    #[error(
        "no memory left for {what}: {needed_bytes} bytes needed, {free_bytes} free of the planned {capacity_bytes}"
    )]
    OutOfMemory {
        /// What asked for it.
        what: String,
        /// What it needs.
        needed_bytes: u64,
        /// What is left.
        free_bytes: u64,
        /// The cap.
        capacity_bytes: u64,
    },
    /// Products of a precision that the processor has no instructions for.
    #[error("this processor has no instructions for products in {precision} ({}); f32 runs on every one", .precision.instructions())]
    Precision {
        /// What was asked for.
        precision: crate::device::Precision,
    },
    /// A batch that the step cannot run.
    #[error("batch: {what} is {found}, expected {expected}")]
    InvalidBatch {
        /// Which property.
        what: &'static str,
        /// Its value.
        found: String,
        /// What would be right.
        expected: String,
    },
    /// LoRA options or adapter tensors that do not fit the model.
    #[error("adapter: {what} is {found}, expected {expected}")]
    InvalidAdapter {
        /// Which property.
        what: String,
        /// Its value.
        found: String,
        /// What would be right.
        expected: String,
    },
    /// A file or block layout failed.
    #[error(transparent)]
    Formats(#[from] formats::Error),
}
