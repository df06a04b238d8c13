//! The base model's files: configuration, weights, tokenizer, chat template, and what they hash to.

mod folder;
mod gguf;
mod weights;

use std::path::{Path, PathBuf};

use formats::hash_index::HashIndex;
use model::ModelConfig;
use text::{ChatTemplate, Tokenizer};

use crate::error::{Error, Result};
use crate::options::ModelOptions;
use crate::record::Inputs;
pub use weights::BaseWeights;

/// An opened base; its weights stay on disk.
pub struct BaseFiles {
    /// The folder or file, as the recipe names it.
    pub path: PathBuf,
    /// Hyper-parameters.
    pub config: ModelConfig,
    /// Weights, memory-mapped.
    pub weights: BaseWeights,
    /// Text to tokens.
    pub tokenizer: Tokenizer,
    /// Conversations to text, where the base has a template.
    pub template: Option<ChatTemplate>,
    /// The token that closes an assistant turn, where there is a template.
    pub end_of_turn: Option<u32>,
    /// All tokens at which an answer ends.
    pub stop: Vec<u32>,
}

impl BaseFiles {
    /// Opens a base, a folder in Hugging Face layout or a GGUF, and checks that its parts belong together.
    ///
    /// # Errors
    /// A file that is missing or broken; a tensor that is missing, surplus or of another shape;
    /// [`Error::TokenizerMismatch`]; [`Error::Option`] for a `model.quant` that a GGUF's blocks do not have.
    pub fn open(options: &ModelOptions) -> Result<Self> {
        let path = &options.base;
        if path.is_file() { gguf::open(path, options.quant.as_deref()) } else { folder::open(path, options) }
    }

    /// Hashes everything of the base, weights as the index remembers them; the other fields are left empty.
    ///
    /// # Errors
    /// What reading meets.
    pub fn hashes(&self, index: Option<&mut HashIndex>) -> Result<Inputs> {
        let template =
            self.template.as_ref().map(|template| formats::hash::blake3_bytes(template.source().as_bytes()));
        let inputs = Inputs { template: template.unwrap_or_default(), ..Inputs::default() };
        match &self.weights {
            BaseWeights::Folder { checkpoint, .. } => folder::hashes(&self.path, checkpoint, index, inputs),
            BaseWeights::Gguf(reader) => gguf::hashes(reader, inputs),
        }
    }

    /// Fits tokenizer and template to the rest; `stop` are further tokens at which an answer ends.
    fn assemble(
        path: &Path,
        (config, weights): (ModelConfig, BaseWeights),
        (tokenizer, template): (Tokenizer, Option<ChatTemplate>),
        stop: impl IntoIterator<Item = u32>,
    ) -> Result<Self> {
        let (tokens, rows) = (tokenizer.vocab_size(), config.vocab_size);
        if tokens > rows {
            return Err(Error::TokenizerMismatch { base: path.into(), tokens, rows });
        }
        let end_of_turn =
            template.as_ref().map(|template| text::end_of_turn(&tokenizer, template)).transpose()?;
        let mut stop: Vec<u32> = end_of_turn.into_iter().chain(tokenizer.eos()).chain(stop).collect();
        stop.sort_unstable();
        stop.dedup();
        Ok(Self { path: path.into(), config, weights, tokenizer, template, end_of_turn, stop })
    }
}
