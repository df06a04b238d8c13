//! A base that is opened: a folder in Hugging Face layout, or one GGUF.

use std::path::{Path, PathBuf};

use formats::checkpoint::Checkpoint;
use formats::config::{GenerationConfig, HfConfig};
use formats::gguf::{Metadata, Reader, Value};
use formats::{BlockType, TensorSource, hash};
use model::{ModelConfig, family};
use text::{ChatTemplate, Tokenizer};

use crate::{Error, Request, Result, Template, license};

/// A model's weights where they lie, found to be whole.
pub(crate) struct Base {
    path: PathBuf,
    pub(crate) config: ModelConfig,
    weights: Weights,
}

enum Weights {
    Folder(Checkpoint),
    Gguf(Reader),
}

/// The positions that a base was made for; `None` where it cannot be read, which an export says better.
pub fn max_positions(base: &Path) -> Option<usize> {
    if base.is_file() {
        let reader = Reader::open(base).ok()?;
        return Some(ModelConfig::from_gguf(reader.metadata(), &reader).ok()?.max_positions);
    }
    HfConfig::from_dir(base).ok()?.max_position_embeddings
}

/// What turns text into tokens and conversations into text.
pub(crate) struct Language {
    pub(crate) tokenizer: Tokenizer,
    pub(crate) template: Option<ChatTemplate>,
    /// The keys that say so in a file; empty where a GGUF has them already.
    pub(crate) vocabulary: Vec<(String, Value)>,
}

impl Base {
    /// Opens a base and checks names, shapes and types of its tensors; nothing large is read, see [`Base::read_through`].
    pub(crate) fn open(path: &Path) -> Result<Base> {
        let (config, weights) = if path.is_file() {
            let reader = Reader::open(path)?;
            (ModelConfig::from_gguf(reader.metadata(), &reader)?, Weights::Gguf(reader))
        } else {
            let config = ModelConfig::from_hf(&HfConfig::from_dir(path)?)?;
            let checkpoint = Checkpoint::open(path)?;
            (config.named_as_in(&checkpoint), Weights::Folder(checkpoint))
        };
        let base = Base { path: path.to_owned(), config, weights };
        base.refuse_part()?;
        family::check(&base.config, base.source())?;
        family::check_types(&base.config, base.source())?;
        Ok(base)
    }

    /// Hashes the weights, which the base remembers, and checks what cannot be told without reading them.
    pub(crate) fn read_through(&self) -> Result<()> {
        family::check_tied_head(&self.config, self.source())?;
        self.source().content_hash()?;
        Ok(())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn source(&self) -> &dyn TensorSource {
        match &self.weights {
            Weights::Folder(checkpoint) => checkpoint,
            Weights::Gguf(reader) => reader,
        }
    }

    /// The folder's weights; `what` needs a folder.
    pub(crate) fn folder(&self, what: &'static str) -> Result<&Checkpoint> {
        match &self.weights {
            Weights::Folder(checkpoint) => Ok(checkpoint),
            Weights::Gguf(_) => Err(Error::NoFolder { path: self.path.clone(), what }),
        }
    }

    /// The keys of a GGUF.
    pub(crate) fn metadata(&self) -> Option<&Metadata> {
        match &self.weights {
            Weights::Folder(_) => None,
            Weights::Gguf(reader) => Some(reader.metadata()),
        }
    }

    /// The blocks of a GGUF's tensor, if they are of this type.
    pub(crate) fn stored(&self, name: &str, ty: BlockType) -> Option<&[u8]> {
        match &self.weights {
            Weights::Folder(_) => None,
            Weights::Gguf(reader) => {
                reader.tensor(name).filter(|tensor| tensor.ty == ty).map(|tensor| reader.data(tensor))
            }
        }
    }

    /// The first tensor whose weights have been rounded to fewer than 16 bits, and its type.
    pub(crate) fn first_quantised(&self) -> Option<(&str, BlockType)> {
        match &self.weights {
            Weights::Folder(_) => None,
            Weights::Gguf(reader) => {
                let found = reader.tensors().iter().find(|tensor| tensor.ty.block_len() > 1);
                found.map(|tensor| (tensor.name.as_str(), tensor.ty))
            }
        }
    }

    /// Tokenizer and template, those of the file in a GGUF.
    pub(crate) fn language(&self, request: &Request) -> Result<Language> {
        let (tokenizer, vocabulary) = match self.metadata() {
            Some(metadata) if request.tokenizer == self.path => (Tokenizer::from_gguf(metadata)?, Vec::new()),
            Some(_) => {
                let what = "a tokenizer from elsewhere";
                return Err(Error::NoFolder { path: self.path.clone(), what });
            }
            None => {
                let tokenizer = Tokenizer::from_dir(&request.tokenizer)?;
                let vocabulary = tokenizer.gguf_metadata(self.config.vocab_size)?;
                (tokenizer, vocabulary)
            }
        };
        let template = self.template(request, &tokenizer)?;
        if template.is_none() && !request.evaluation.is_empty() {
            let reason = "there is no chat template to render it with".to_owned();
            return Err(Error::EvaluationRow { row: 0, reason });
        }
        Ok(Language { tokenizer, template, vocabulary })
    }

    fn template(&self, request: &Request, tokenizer: &Tokenizer) -> Result<Option<ChatTemplate>> {
        let text_of = |id: Option<u32>| id.and_then(|id| tokenizer.token(id)).unwrap_or_default().to_owned();
        Ok(match (&request.template, self.metadata()) {
            (Template::FromTokenizer, Some(metadata)) => ChatTemplate::from_gguf(metadata, tokenizer)?,
            (Template::FromTokenizer, None) => match ChatTemplate::from_dir(&request.tokenizer, tokenizer) {
                Err(text::Error::NoTemplate { .. }) => None,
                other => Some(other?),
            },
            (Template::Source(source), _) => {
                let (bos, eos) = (text_of(tokenizer.bos()), text_of(tokenizer.eos()));
                Some(ChatTemplate::from_source(source, &bos, &eos)?)
            }
        })
    }

    /// How the base's makers advise to sample; a GGUF says so in its own keys.
    pub(crate) fn generation(&self) -> Result<Option<GenerationConfig>> {
        match &self.weights {
            Weights::Folder(_) => Ok(GenerationConfig::from_dir(&self.path)?),
            Weights::Gguf(_) => Ok(None),
        }
    }

    /// Under which terms it was published.
    pub(crate) fn licenses(&self) -> Vec<String> {
        match self.metadata() {
            None => license::texts(&self.path),
            Some(metadata) => metadata.get_str("general.license").map(str::to_owned).into_iter().collect(),
        }
    }

    /// Hash of the configuration; of a GGUF, of the file.
    pub(crate) fn config_blake3(&self) -> Result<(PathBuf, String)> {
        match &self.weights {
            Weights::Folder(_) => {
                let path = self.path.join("config.json");
                let hash = hash::blake3_file(&path)?;
                Ok((path, hash))
            }
            Weights::Gguf(reader) => Ok((self.path.clone(), reader.content_hash()?)),
        }
    }

    /// Hash of all that makes the tokenizer; of a GGUF, of the file.
    pub(crate) fn tokenizer_blake3(&self, tokenizer: &Path) -> Result<String> {
        match &self.weights {
            Weights::Folder(_) => Ok(text::files_blake3(tokenizer)?),
            Weights::Gguf(reader) => Ok(reader.content_hash()?),
        }
    }

    /// Hash of the file that the tokenizer was read from.
    pub(crate) fn tokenizer_file_blake3(&self, tokenizer: &Tokenizer) -> Result<String> {
        match &self.weights {
            Weights::Folder(_) => Ok(hash::blake3_file(tokenizer.path())?),
            Weights::Gguf(reader) => Ok(reader.content_hash()?),
        }
    }

    /// One of several files is no model.
    fn refuse_part(&self) -> Result<()> {
        let n_files = self.metadata().and_then(|metadata| match metadata.get("split.count")? {
            Value::U16(n) => Some(u32::from(*n)),
            Value::U32(n) => Some(*n),
            _ => None,
        });
        match n_files {
            Some(n_files @ 2..) => Err(Error::SplitGguf { path: self.path.clone(), n_files }),
            _ => Ok(()),
        }
    }
}
