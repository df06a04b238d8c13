//! What can go wrong in a training run, and the remedy for it.

use std::path::PathBuf;

use thiserror::Error;

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// One thing of a run that is not what it was when the run began.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The recipe key, such as `train.learning_rate`, or the name of an input, such as `base contents`.
    pub key: String,
    /// Its value when the run began.
    pub was: String,
    /// Its value now.
    pub is: String,
}

impl std::fmt::Display for Change {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: was {}, is {}", self.key, self.was, self.is)
    }
}

/// What can go wrong in a training run.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// An option has a value that cannot be.
    #[error("`{key}` {reason}")]
    Option {
        /// The recipe key.
        key: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A file could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A row of a data set cannot be read.
    #[error("{}:{line}: {reason}", path.display())]
    Row {
        /// The data file.
        path: PathBuf,
        /// Line of the row, from 1.
        line: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// A row has nothing to learn from.
    #[error("{}:{line}: the conversation has no assistant turn", path.display())]
    NoAssistantTurn {
        /// The data file.
        path: PathBuf,
        /// Line of the row, from 1.
        line: u64,
    },
    /// A row is longer than the recipe allows.
    #[error("{}:{line}: the row has {tokens} tokens, `data.max_seq_len` is {limit}", path.display())]
    RowTooLong {
        /// The data file.
        path: PathBuf,
        /// Line of the row, from 1.
        line: u64,
        /// Its length.
        tokens: usize,
        /// The longest that is allowed.
        limit: usize,
    },
    /// A data file, or what is left of it, has no rows.
    #[error("{}: {reason}", path.display())]
    NoRows {
        /// The data file.
        path: PathBuf,
        /// Why nothing is left.
        reason: String,
    },
    /// No row would teach the model to stop.
    #[error("no row has the end-of-turn token `{token}` among the tokens that are learned")]
    NeverStops {
        /// The token that closes an assistant turn.
        token: String,
    },
    /// A row is longer than the base can handle.
    #[error("a row has {tokens} tokens, the model in {} handles at most {max_positions} positions", base.display())]
    PositionsExceeded {
        /// The base model.
        base: PathBuf,
        /// Length of the longest row.
        tokens: usize,
        /// The longest that the base handles.
        max_positions: usize,
    },
    /// Tokenizer and embedding do not belong together.
    #[error("{}: the tokenizer has {tokens} tokens, but the base model's embedding has {rows} rows", base.display())]
    TokenizerMismatch {
        /// The base model.
        base: PathBuf,
        /// Size of the vocabulary.
        tokens: usize,
        /// Rows of the embedding.
        rows: usize,
    },
    /// The plan does not fit the budget.
    #[error("the plan needs {need_bytes} bytes, the budget leaves {have_bytes}")]
    BudgetTooSmall {
        /// Bytes that the plan needs.
        need_bytes: u64,
        /// Bytes that may be used.
        have_bytes: u64,
        /// What would fit instead.
        would_fit: String,
    },
    /// The disk cannot hold what the run will write.
    #[error("{}: the run needs {need_bytes} bytes of disk, {have_bytes} are free", path.display())]
    DiskTooFull {
        /// The run folder.
        path: PathBuf,
        /// Bytes of checkpoints and adapter.
        need_bytes: u64,
        /// Bytes that are free.
        have_bytes: u64,
    },
    /// A new run would overwrite another.
    #[error("{} holds a run already", run_dir.display())]
    RunExists {
        /// The run folder.
        run_dir: PathBuf,
    },
    /// There is no run to continue.
    #[error("{} holds no run", run_dir.display())]
    NothingToResume {
        /// The run folder.
        run_dir: PathBuf,
    },
    /// Another process writes this run.
    #[error("{} is being trained by process {pid}", run_dir.display())]
    RunLocked {
        /// The run folder.
        run_dir: PathBuf,
        /// The other process, as it wrote itself down.
        pid: String,
    },
    /// The run was started with something else.
    #[error("the run was started with other settings: {}", list(changes))]
    RunChanged {
        /// Every difference.
        changes: Vec<Change>,
    },
    /// Checkpoints exist, and none is sound.
    #[error("no checkpoint of {} is sound: {reason}", run_dir.display())]
    NoSoundCheckpoint {
        /// The run folder.
        run_dir: PathBuf,
        /// What is wrong with the newest.
        reason: String,
    },
    /// A checkpoint's file is not what was written.
    #[error("{}: {reason}", path.display())]
    CheckpointDamaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Loss or gradient kept being infinite or not a number.
    #[error("loss or gradient was not finite in {count} steps, the last being step {step}")]
    NotFinite {
        /// The last of these steps.
        step: u64,
        /// How many steps were skipped.
        count: u32,
    },
    /// The adapter itself holds something that is not a finite number; it is not saved.
    #[error("after step {step} the adapter of `{module}` holds numbers that are not finite")]
    BrokenAdapter {
        /// Steps done.
        step: u64,
        /// The first such layer.
        module: String,
    },
    /// The optimiser holds something that is not a finite number; it is not saved.
    #[error("after step {step} the optimiser's moments hold numbers that are not finite")]
    BrokenMoments {
        /// Steps done.
        step: u64,
    },
    /// An adapter was trained on something else than it is used with.
    #[error("{} was trained on another base than {}: the {what} differ", adapter.display(), base.display())]
    OtherBase {
        /// The adapter's folder.
        adapter: PathBuf,
        /// The base.
        base: PathBuf,
        /// Which part is not the same.
        what: &'static str,
    },
    /// A conversation leaves no room for an answer.
    #[error(
        "the conversation has {prompt_tokens} tokens, the context holds {context_tokens}, of which an answer needs some"
    )]
    ContextFull {
        /// Tokens of the conversation.
        prompt_tokens: usize,
        /// Tokens that the context holds.
        context_tokens: usize,
    },
    /// An engine elsewhere could not do what it was asked.
    #[error("the engine could not {action}: {source}")]
    Engine {
        /// What it was to do.
        action: &'static str,
        /// Its own words.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Reading or writing a format failed.
    #[error(transparent)]
    Formats(#[from] formats::Error),
    /// Tokenizer or template failed.
    #[error(transparent)]
    Text(#[from] text::Error),
    /// The model failed.
    #[error(transparent)]
    Model(#[from] model::Error),
}

fn list(changes: &[Change]) -> String {
    changes.iter().map(Change::to_string).collect::<Vec<_>>().join("; ")
}

impl Error {
    /// Whether the training itself left the finite numbers, on sound input and a sound machine.
    pub fn is_divergence(&self) -> bool {
        matches!(self, Self::NotFinite { .. } | Self::BrokenAdapter { .. } | Self::BrokenMoments { .. })
    }

    /// What the user can do about it, where that is known.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::Row { .. } => {
                "a row is one JSON object with `messages`, `conversations`, `instruction` and `output`, `prompt` and \
                 `completion`, `chosen` and `rejected`, or `text`; `fields` names keys that are called otherwise, \
                 `data.max_bad_rows` lets broken rows pass"
                    .into()
            }
            Self::NoAssistantTurn { .. } => "add the answer that is to be learned, or remove the row".into(),
            Self::RowTooLong { .. } => {
                "raise `data.max_seq_len`, or set `data.on_too_long` to \"drop\" or \"truncate\"".into()
            }
            Self::NoRows { .. } => {
                "a data file is JSON objects, one a line, or one JSON array of them".into()
            }
            Self::NeverStops { .. } => {
                "the model would never end its answer; raise `data.max_seq_len`, or check the chat template"
                    .into()
            }
            Self::PositionsExceeded { max_positions, .. } => {
                format!("set `data.max_seq_len` to {max_positions} or less, and shorten longer test rows")
            }
            Self::TokenizerMismatch { .. } => {
                "the tokenizer files are of another model; fetch the base again".into()
            }
            Self::BudgetTooSmall { would_fit, .. } => would_fit.clone(),
            Self::DiskTooFull { .. } => "free some space, or lower `train.keep`".into(),
            Self::RunExists { .. } => "continue it with --resume, or give this run another name".into(),
            Self::NothingToResume { .. } => "start it without --resume".into(),
            Self::RunLocked { .. } => "wait for it, stop it, or give this run another name".into(),
            Self::RunChanged { .. } => "undo the change, or give the changed run another name".into(),
            Self::NoSoundCheckpoint { .. } | Self::CheckpointDamaged { .. } => {
                "start again under another name; the damaged files are left as they are".into()
            }
            Self::NotFinite { .. } | Self::BrokenAdapter { .. } | Self::BrokenMoments { .. } => {
                "lower `train.learning_rate`, or set `train.max_grad_norm`; the last checkpoint is from before"
                    .into()
            }
            Self::OtherBase { .. } => {
                "give the base that `base_path` in the adapter's tune.json names, as it was then".into()
            }
            Self::Formats(formats::Error::UnknownType { .. })
            | Self::Model(model::Error::Formats(formats::Error::UnknownType { .. })) => {
                "weights are read as F32, F16 or BF16: take the model's repository that has them so".into()
            }
            _ => return None,
        };
        Some(hint)
    }
}
