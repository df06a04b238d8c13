//! The base model's files: configuration, weights, tokenizer, chat template, and what they hash to.

mod folder;
mod gguf;
mod weights;

use std::path::{Path, PathBuf};

use formats::hash_index::HashIndex;
use model::ModelConfig;
use text::{ChatTemplate, Tokenizer};

use crate::error::{Error, Result};
use crate::options::{DataOptions, ModelOptions};
use crate::record::Inputs;
pub use weights::{BaseWeights, Sizes};

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
    /// Whether the template is another than the base was published with.
    pub has_own_template: bool,
}

/// The variable by which templates are told whether the model is to think aloud.
const THINKING: &str = "enable_thinking";

impl BaseFiles {
    /// Opens a base, a folder in Hugging Face layout or a GGUF, and checks that its parts belong together.
    ///
    /// # Errors
    /// A file that is missing or broken; a tensor that is missing, surplus or of another shape;
    /// [`Error::TokenizerMismatch`]; [`Error::Option`] for a `model.quant` that a GGUF's blocks do not have, or a
    /// `data.chat_template` that is none.
    pub fn open(options: &ModelOptions, data: &DataOptions) -> Result<Self> {
        let path = &options.base;
        let mut files = match path.is_file() {
            true => gguf::open(path, options.quant.as_deref())?,
            false => folder::open(path, options)?,
        };
        if data.chat_template.is_some() || data.thinking.is_some() {
            files.replace_template(data)?;
        }
        Ok(files)
    }

    /// Takes the template that the recipe names, and fixes what it says about thinking.
    fn replace_template(&mut self, data: &DataOptions) -> Result<()> {
        let of = |key: &'static str, reason: String| Error::Option { key, reason };
        if let Some(path) = &data.chat_template {
            let template = ChatTemplate::from_file(path, &self.tokenizer)
                .map_err(|error| of("data.chat_template", format!("names {}: {error}", path.display())))?;
            self.template = Some(template);
        }
        if let Some(thinking) = data.thinking {
            let template = self.template.take();
            let template = template
                .ok_or_else(|| of("data.thinking", "is set, but the base has no chat template".into()))?;
            if !template.source().contains(THINKING) {
                let reason = format!("is set, but the chat template knows no `{THINKING}`");
                return Err(of("data.thinking", reason));
            }
            self.template = Some(template.with_fixed(THINKING, thinking)?);
        }
        let (tokenizer, template) = (&self.tokenizer, self.template.as_ref());
        self.end_of_turn = template.map(|template| text::end_of_turn(tokenizer, template)).transpose()?;
        self.stop.extend(self.end_of_turn);
        self.stop.sort_unstable();
        self.stop.dedup();
        self.has_own_template = true;
        Ok(())
    }

    /// Hashes everything of the base, weights as the index remembers them; the other fields are left empty.
    ///
    /// # Errors
    /// What reading meets.
    pub fn hashes(&self, mut index: Option<&mut HashIndex>) -> Result<Inputs> {
        let template =
            self.template.as_ref().map(|template| formats::hash::blake3_bytes(template.source().as_bytes()));
        let inputs = Inputs { template: template.unwrap_or_default(), ..Inputs::default() };
        let mut hash_file = |path: &Path| match &mut index {
            Some(index) => index.blake3_file(path),
            None => formats::hash::blake3_file(path),
        };
        match &self.weights {
            BaseWeights::Folder { checkpoint, .. } => {
                let base = checkpoint.content_hash_by(&mut hash_file)?;
                folder::hashes(&self.path, base, inputs)
            }
            BaseWeights::Gguf(reader) => Ok(gguf::hashes(reader.content_hash_by(&mut hash_file)?, inputs)),
        }
    }

    /// BLAKE3 of everything that makes token ids of rows: tokenizer, template, and the day where the template tells it.
    ///
    /// # Errors
    /// What reading meets.
    pub fn text_blake3(&self) -> Result<String> {
        let tokenizer = match &self.weights {
            BaseWeights::Folder { .. } => text::files_blake3(&self.path)?,
            BaseWeights::Gguf(reader) => formats::TensorSource::content_hash(reader)?,
        };
        let template = self.template.as_ref().map(|template| (template.source(), template.day()));
        let template = serde_json::json!([tokenizer, template]).to_string();
        Ok(formats::hash::blake3_bytes(template.as_bytes()))
    }

    /// Has the template tell this moment, in seconds since 1970: the one at which the run began, so that a run which goes on
    /// another day learns from the same tokens.
    pub fn set_now(&mut self, unix_seconds: u64) {
        let at = i64::try_from(unix_seconds).unwrap_or(i64::MAX);
        self.template = self.template.take().map(|template| template.at(at));
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
        let path = path.into();
        Ok(Self { path, config, weights, tokenizer, template, end_of_turn, stop, has_own_template: false })
    }
}
