//! The files of a Hugging Face directory that stand beside tokenizer.json.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;

use super::model_file::{ModelFile, Piece};
use super::special::{self, token_text};
use crate::files::{read, read_json};
use crate::{Error, Result};

/// The files beside tokenizer.json, null where absent.
pub(super) struct Beside {
    pub tokenizer_config: Value,
    pub config: Value,
    pub generation_config: Value,
    pub added_tokens: Option<BTreeMap<String, u32>>,
    pub model_file: Option<SentencePieceFile>,
}

/// A `tokenizer.model`, or nothing where its bytes are no SentencePiece model.
pub(super) struct SentencePieceFile {
    pub path: PathBuf,
    pub parsed: Option<ModelFile>,
}

pub(super) const NO_MODEL: &str = "it is no SentencePiece model, or a torn one";

impl SentencePieceFile {
    pub fn model(&self) -> Result<&ModelFile> {
        let unusable = || Error::Tokenizer { path: self.path.clone(), reason: NO_MODEL.to_owned() };
        self.parsed.as_ref().ok_or_else(unusable)
    }
}

impl Beside {
    pub fn read(dir: &Path) -> Result<Beside> {
        let json = |name: &str| Ok::<Value, Error>(read_json(&dir.join(name))?.unwrap_or_default());
        let path = dir.join("tokenizer.model");
        let model_file =
            read(&path)?.map(|bytes| SentencePieceFile { parsed: ModelFile::parse(&bytes), path });
        Ok(Beside {
            tokenizer_config: json("tokenizer_config.json")?,
            config: json("config.json")?,
            generation_config: json("generation_config.json")?,
            added_tokens: read_json(&dir.join("added_tokens.json"))?,
            model_file,
        })
    }

    /// The pieces of tokenizer.model, none where there is no such file.
    pub fn pieces(&self) -> Result<Option<&[Piece]>> {
        let model = self.model_file.as_ref().map(SentencePieceFile::model).transpose()?;
        Ok(model.map(|model| model.pieces.as_slice()))
    }

    /// `added_tokens_decoder` of tokenizer_config.json.
    pub fn listed(&self) -> Vec<ListedToken> {
        let decoder = self.tokenizer_config["added_tokens_decoder"].as_object();
        let entries = decoder.into_iter().flatten();
        let tokens = entries.filter_map(|(id, token)| {
            let token = ListedToken::deserialize(token).ok()?;
            Some(ListedToken { id: id.parse().ok()?, ..token })
        });
        tokens.collect()
    }

    /// Whether a token stands for an image or a sound and the model has no row for it: Gemma 3's smallest model
    /// takes text alone, and has the tokenizer of its siblings. Any other token without a row is a mistake.
    pub fn has_no_row(&self, token: &ListedToken) -> bool {
        let rows = self.config["vocab_size"].as_u64().or(self.config["text_config"]["vocab_size"].as_u64());
        let placeholders = ["image_token", "audio_token", "video_token"];
        let is_placeholder =
            |key: &&str| token_text(&self.tokenizer_config[key]).is_some_and(|text| text == token.content);
        rows.is_some_and(|rows| u64::from(token.id) >= rows) && placeholders.iter().any(is_placeholder)
    }

    /// Texts that tokenizer_config.json declares special, whatever the list of added tokens says of them.
    pub fn declared_special(&self) -> Vec<String> {
        let roles = special::ROLES.iter().map(|(role, _)| &self.tokenizer_config[format!("{role}_token")]);
        let more = self.tokenizer_config["additional_special_tokens"].as_array().into_iter().flatten();
        roles.chain(more).filter_map(token_text).collect()
    }
}

/// An added token as tokenizer.json and `added_tokens_decoder` list it.
#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct ListedToken {
    #[serde(default)]
    pub id: u32,
    pub content: String,
    #[serde(default)]
    pub single_word: bool,
    #[serde(default)]
    pub lstrip: bool,
    #[serde(default)]
    pub rstrip: bool,
    #[serde(default)]
    pub normalized: bool,
    #[serde(default)]
    pub special: bool,
}
