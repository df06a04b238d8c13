//! Everything that can go wrong with an expert, a pipeline or the server.

use std::path::PathBuf;

use crate::budget::{Place, Remedy, Share, size};

/// The result of this crate's functions.
pub type Result<T> = std::result::Result<T, Error>;

/// Every error of this crate; the file, expert, step or key is always named.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file of another layer is missing or broken.
    #[error(transparent)]
    Format(#[from] formats::Error),
    /// A configuration is of no family that is known.
    #[error(transparent)]
    Model(#[from] model::Error),
    /// Tokenizer or chat template refused.
    #[error("expert `{expert}`: {source}")]
    Text {
        /// The expert's name.
        expert: String,
        /// What the text layer says.
        source: text::Error,
    },
    /// Reading or writing failed.
    #[error("{path}: {source}")]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// The processor lacks instructions the engine is compiled for.
    #[error("this processor lacks {missing}, which the embedded engine is compiled for (x86-64-v3)")]
    Processor {
        /// The missing instruction sets.
        missing: String,
    },
    /// A card is not valid.
    #[error("card of expert `{expert}`: {reason}")]
    Card {
        /// The expert's name.
        expert: String,
        /// What is wrong with it.
        reason: String,
    },
    /// No expert of that name.
    #[error("expert `{name}` not found; there are: {known}")]
    UnknownExpert {
        /// The name asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// An adapter can't be set over the base of an expert.
    #[error("expert `{expert}`: adapter {path}: {reason}")]
    Adapter {
        /// The expert's name.
        expert: String,
        /// The adapter's file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// An expert does in the engine what it is not to do.
    #[error("expert `{expert}` is not as it was trained: {reason}")]
    Unfit {
        /// The expert's name.
        expert: String,
        /// What it does.
        reason: String,
    },
    /// The model file of an expert changed after it was registered.
    #[error("expert `{expert}`: {path} has blake3 {actual}, its card says {expected}")]
    FileChanged {
        /// The expert's name.
        expert: String,
        /// The model file.
        path: PathBuf,
        /// The hash in the card.
        expected: String,
        /// The hash of the file.
        actual: String,
    },
    /// The expert does not fit into the memory that is free.
    #[error(
        "expert `{expert}` needs {} {} (weights {}, context {}, compute {}, overhead {}), {} are free",
        size(share.total_bytes()),
        match place { Place::Card => "on the graphics card", Place::Main => "of memory" },
        size(share.weights_bytes),
        size(share.context_bytes),
        size(share.compute_bytes),
        size(share.overhead_bytes),
        size(*free_bytes)
    )]
    DoesNotFit {
        /// The expert's name.
        expert: String,
        /// The memory that is too small.
        place: Place,
        /// What it takes there.
        share: Share,
        /// What is free there now.
        free_bytes: u64,
        /// What would fit.
        remedies: Vec<Remedy>,
    },
    /// The engine could not load the file.
    #[error("expert `{expert}`: the engine refused {path}: {reason}")]
    Load {
        /// The expert's name.
        expert: String,
        /// The model file.
        path: PathBuf,
        /// The engine's own words.
        reason: String,
    },
    /// A prompt does not fit the context; it is never cut.
    #[error(
        "expert `{expert}`: the prompt has {prompt_tokens} tokens, its context holds {context_tokens} and at least one must be left for the answer"
    )]
    PromptTooLong {
        /// The expert's name.
        expert: String,
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Tokens of the context.
        context_tokens: usize,
    },
    /// A prompt without tokens.
    #[error("expert `{expert}`: the prompt is empty")]
    EmptyPrompt {
        /// The expert's name.
        expert: String,
    },
    /// An expert that gives no vectors for texts.
    #[error("expert `{expert}` gives no vectors for texts: {reason}")]
    NoEmbedding {
        /// The expert's name.
        expert: String,
        /// Why not.
        reason: String,
    },
    /// Decoding failed in the engine.
    #[error("expert `{expert}`: decoding failed: {reason}")]
    Decode {
        /// The expert's name.
        expert: String,
        /// The engine's own words.
        reason: String,
    },
    /// A server can't be asked, or refuses.
    #[error("{server} can't {request}: {reason}{}", if *tries > 1 { format!(" (after {tries} tries)") } else { String::new() })]
    Remote {
        /// Its address.
        server: String,
        /// What it was asked to do.
        request: String,
        /// How often.
        tries: u32,
        /// What it, or the network, says.
        reason: String,
        /// The way out, where one is known.
        hint: Option<String>,
    },
    /// A server's model is not as its card wants it.
    #[error("expert `{expert}` on {server}: {reason}")]
    OnServer {
        /// The expert's name.
        expert: String,
        /// The server's address.
        server: String,
        /// What is wrong.
        reason: String,
        /// The way out.
        hint: String,
    },
    /// A name on a server means another model than when the card was made.
    #[error("expert `{expert}`: `{model}` on {server} has digest {actual}, its card says {expected}")]
    ModelChanged {
        /// The expert's name.
        expert: String,
        /// The model's name.
        model: String,
        /// The server's address.
        server: String,
        /// The digest in the card.
        expected: String,
        /// The digest there is.
        actual: String,
    },
    /// A JSON schema or grammar the engine can't enforce.
    #[error("schema: {reason}")]
    Schema {
        /// What is wrong with it.
        reason: String,
    },
    /// Sampling settings no sampler can follow.
    #[error("sampling: {reason}")]
    Sampling {
        /// The key and its value.
        reason: String,
    },
    /// A pipeline file is wrong.
    #[error("pipeline `{pipeline}`: {place}: {reason}")]
    Pipeline {
        /// The pipeline's name.
        pipeline: String,
        /// Step and key, or expert and key.
        place: String,
        /// What is wrong there.
        reason: String,
    },
    /// A step of a running pipeline failed.
    #[error("step `{step}`, item {}: {reason}", item + 1)]
    Step {
        /// The step's name.
        step: String,
        /// The item's index; people are told its number, from 1.
        item: usize,
        /// What happened.
        reason: String,
    },
    /// A pipeline lists a program, and nobody has allowed it.
    #[error("step `{step}` runs a program of this machine, `{program}`, and programs are not allowed")]
    ProgramRefused {
        /// The step.
        step: String,
        /// The program and its arguments.
        program: String,
    },
    /// A run can't be resumed with what is given.
    #[error("run {path} can't be resumed: {reason}")]
    Resume {
        /// The run's directory.
        path: PathBuf,
        /// What differs.
        reason: String,
    },
    /// Stopped on request.
    #[error("cancelled")]
    Cancelled,
    /// The server can't listen there.
    #[error("can't listen on {address}: {source}")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
    /// The server's options contradict each other.
    #[error("server: {reason}")]
    Server {
        /// What is wrong.
        reason: String,
    },
}

impl Error {
    /// The way out, where there is one.
    pub fn hint(&self) -> Option<String> {
        let remedies = match self {
            Self::DoesNotFit { remedies, .. } => remedies,
            Self::Remote { hint, .. } => return hint.clone(),
            Self::OnServer { hint, .. } => return Some(hint.clone()),
            Self::ModelChanged { model, .. } => {
                return Some(format!(
                    "`{model}` was made anew or pulled since; read the pipeline anew, or register it"
                ));
            }
            _ => return None,
        };
        if remedies.is_empty() {
            return Some("no shorter context and no smaller quantisation of it would fit either".to_owned());
        }
        let listed: Vec<String> = remedies.iter().map(ToString::to_string).collect();
        Some(format!("what would fit: {}", listed.join(" · ")))
    }

    /// An [`Error::Io`] with its path.
    pub fn io(path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }
}
