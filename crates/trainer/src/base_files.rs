//! The base model's folder: configuration, weights, tokenizer, chat template, and what they hash to.

use std::path::{Path, PathBuf};

use formats::checkpoint::Checkpoint;
use formats::config::{GenerationConfig, HfConfig};
use formats::{TensorSource, hash};
use model::ModelConfig;
use model::family::{self, Naming};
use text::{ChatTemplate, Tokenizer};

use crate::error::{Error, Result};
use crate::record::Inputs;

/// Files that decide what a tokenizer does; those that a folder lacks are passed over.
const TOKENIZER_FILES: [&str; 7] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
];

/// An opened base; its weights stay on disk.
pub struct BaseFiles {
    /// The folder, as the recipe names it.
    pub dir: PathBuf,
    /// Hyper-parameters.
    pub config: ModelConfig,
    /// Weights, memory-mapped.
    pub weights: Checkpoint,
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
    /// Opens a base and checks that its parts belong together.
    ///
    /// # Errors
    /// A file that is missing or broken; a tensor that is missing, surplus or of another shape;
    /// [`Error::TokenizerMismatch`].
    pub fn open(dir: &Path) -> Result<Self> {
        let hf = HfConfig::from_dir(dir)?;
        let config = ModelConfig::from_hf(&hf)?;
        let weights = Checkpoint::open(dir)?;
        family::check(&config, &weights, Naming::Hf)?;
        let tokenizer = Tokenizer::from_dir(dir)?;
        let (tokens, rows) = (tokenizer.vocab_size(), config.vocab_size);
        if tokens > rows {
            return Err(Error::TokenizerMismatch { base: dir.into(), tokens, rows });
        }
        let template = match has_template(dir) {
            true => Some(ChatTemplate::from_dir(dir, &tokenizer)?),
            false => None,
        };
        let end_of_turn =
            template.as_ref().map(|template| text::end_of_turn(&tokenizer, template)).transpose()?;
        let mut stop: Vec<u32> = end_of_turn.into_iter().chain(tokenizer.eos()).collect();
        stop.extend(GenerationConfig::from_dir(dir)?.unwrap_or_default().eos_token_ids);
        stop.sort_unstable();
        stop.dedup();
        Ok(Self { dir: dir.into(), config, weights, tokenizer, template, end_of_turn, stop })
    }

    /// Hashes everything of the base; the other fields are left empty.
    ///
    /// # Errors
    /// What reading meets.
    pub fn hashes(&self) -> Result<Inputs> {
        let mut tokenizer = String::new();
        for name in TOKENIZER_FILES {
            let path = self.dir.join(name);
            if path.is_file() {
                tokenizer += &format!("{name} {}\n", hash::blake3_file(&path)?);
            }
        }
        let template =
            self.template.as_ref().map(|template| hash::blake3_bytes(template.source().as_bytes()));
        Ok(Inputs {
            base: self.weights.content_hash()?,
            base_config: hash::blake3_file(&self.dir.join("config.json"))?,
            tokenizer: hash::blake3_bytes(tokenizer.as_bytes()),
            template: template.unwrap_or_default(),
            ..Inputs::default()
        })
    }
}

/// Whether one of the three places where a template can stand has one.
fn has_template(dir: &Path) -> bool {
    let stands_alone =
        ["chat_template.jinja", "chat_template.json"].iter().any(|name| dir.join(name).is_file());
    let in_config = || {
        let bytes = std::fs::read(dir.join("tokenizer_config.json")).ok()?;
        let config: serde_json::Value = serde_json::from_slice(&bytes).ok()?;
        config.get("chat_template").map(|template| !template.is_null())
    };
    stands_alone || in_config().unwrap_or(false)
}
