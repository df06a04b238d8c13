//! An expert's card: the model file and everything that must not drift from one call to the next.

mod load;

use std::path::{Path, PathBuf};

use formats::{gguf, hash};
use serde::{Deserialize, Serialize};
use text::Message;

use crate::engine::llama;
use crate::{Error, Result};

pub use load::{FlashAttention, KvType, LoadOptions};

/// Everything that names an expert and decides how it is loaded and sampled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpertCard {
    /// What requests and pipelines call it; see [`check_name`].
    pub name: String,
    /// The GGUF file.
    pub file: PathBuf,
    /// BLAKE3 of the file, hex.
    pub blake3: String,
    /// SHA-256 of the file, hex, as Ollama names blobs; absent for an expert used straight from a file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<String>,
    /// Length of the file.
    pub file_bytes: u64,
    /// Last change of the file, nanoseconds since 1970: a file unchanged in both need not be hashed again.
    pub file_modified: u64,
    /// `general.architecture`.
    pub architecture: String,
    /// Weights of all tensors.
    pub n_parameters: u64,
    /// The type most weights have, as in `Q4_K`.
    pub weight_type: String,
    /// BLAKE3 of the chat template, hex; absent when the file has none and only raw prompts work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template_blake3: Option<String>,
    /// A system message put before the first message of a chat that has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// Texts at which generation stops, besides the end-of-turn tokens.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stop: Vec<String>,
    /// What a change of forces a reload.
    #[serde(default)]
    pub load: LoadOptions,
    /// What a request may override.
    #[serde(default)]
    pub sampling: Sampling,
    /// The expert to take where this one does not fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fallback: Option<String>,
    /// Where the file comes from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provenance: Option<Provenance>,
}

/// How the next token is chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Sampling {
    /// 0: always the most likely token, so that a run can be repeated.
    pub temperature: f32,
    /// Only the most likely `top_k` tokens; 0: all.
    pub top_k: u32,
    /// Only the most likely tokens that hold this much probability together; 1: all.
    pub top_p: f32,
    /// Only tokens at least this likely, relative to the most likely; 0: all.
    pub min_p: f32,
    /// Above 1: tokens of the last `repeat_last_n` become less likely.
    pub repeat_penalty: f32,
    /// How far back `repeat_penalty` looks.
    pub repeat_last_n: u32,
    /// Seed of the draw; the same seed gives the same text.
    pub seed: u32,
    /// Most tokens of an answer; absent: to the end of the context.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_tokens: Option<u32>,
}

impl Default for Sampling {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 40,
            top_p: 0.95,
            min_p: 0.0,
            repeat_penalty: 1.0,
            repeat_last_n: 64,
            seed: 0,
            max_tokens: None,
        }
    }
}

impl Sampling {
    /// Refuses what no sampler can do.
    ///
    /// # Errors
    /// The key and the value, as text.
    pub fn check(&self) -> std::result::Result<(), String> {
        let within = |key: &str, value: f32, low: f32, high: f32| {
            if value.is_finite() && (low..=high).contains(&value) {
                return Ok(());
            }
            Err(format!("`{key}` is {value}, allowed is {low} to {high}"))
        };
        within("temperature", self.temperature, 0.0, 10.0)?;
        within("top_p", self.top_p, 0.0, 1.0)?;
        within("min_p", self.min_p, 0.0, 1.0)?;
        within("repeat_penalty", self.repeat_penalty, 0.1, 10.0)
    }
}

/// Hashes of what an expert was made from, taken from the export's receipt beside the file.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Provenance {
    /// The receipt's path.
    pub receipt: PathBuf,
    /// Base model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_blake3: Option<String>,
    /// Adapter.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adapter_blake3: Option<String>,
    /// Recipe.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub recipe_blake3: Option<String>,
}

/// What a caller decides about an expert; the rest of the card is read from the file.
#[derive(Debug, Clone, Default)]
pub struct CardOptions {
    /// System message.
    pub system: Option<String>,
    /// Stop texts.
    pub stop: Vec<String>,
    /// What a change of forces a reload.
    pub load: LoadOptions,
    /// Sampling defaults.
    pub sampling: Sampling,
    /// The expert to take where this one does not fit.
    pub fallback: Option<String>,
}

/// How thoroughly a file is hashed for its card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Digests {
    /// BLAKE3 alone: enough to know a file again.
    Blake3,
    /// Both, for the registry and servers that name models by SHA-256.
    Blake3AndSha256,
}

impl ExpertCard {
    /// Makes the card of a GGUF file, after checking that an engine can use it: it opens, its architecture is
    /// known, its tokenizer is complete, its template renders and ends a turn.
    ///
    /// # Errors
    /// [`Error::Format`], [`Error::Text`] or [`Error::Card`].
    pub fn from_file(name: &str, file: &Path, options: &CardOptions, digests: Digests) -> Result<Self> {
        check_name(name)?;
        let wrong = |reason: String| Error::Card { expert: name.to_owned(), reason };
        options.sampling.check().map_err(wrong)?;
        options.load.check().map_err(wrong)?;
        let path = std::path::absolute(file).map_err(Error::io(file))?;
        let (file_bytes, file_modified) = stamp(&path)?;
        let reader = gguf::Reader::open(&path)?;
        let metadata = reader.metadata();
        let architecture = metadata.get_str("general.architecture");
        let architecture =
            architecture.ok_or_else(|| wrong("the file has no `general.architecture`".to_owned()))?;
        let template_blake3 = check_text(name, metadata)?;
        check_engine(name, &path)?;
        let (n_parameters, weight_type) = weights(&reader);
        Ok(Self {
            name: name.to_owned(),
            blake3: hash::blake3_file(&path)?,
            sha256: (digests == Digests::Blake3AndSha256).then(|| hash::sha256_file(&path)).transpose()?,
            file_bytes,
            file_modified,
            architecture: architecture.to_owned(),
            n_parameters,
            weight_type,
            template_blake3,
            system: options.system.clone(),
            stop: options.stop.clone(),
            load: options.load.clone(),
            sampling: options.sampling.clone(),
            fallback: options.fallback.clone(),
            provenance: provenance(&path)?,
            file: path,
        })
    }

    /// Checks that the model file is still the one of the card. It is hashed again only if its length or time of
    /// change differs, since hashing a large file takes as long as loading it.
    ///
    /// # Errors
    /// [`Error::FileChanged`], [`Error::Io`] if it is gone.
    pub fn check_file(&self) -> Result<()> {
        if stamp(&self.file)? == (self.file_bytes, self.file_modified) {
            return Ok(());
        }
        let actual = hash::blake3_file(&self.file)?;
        if actual == self.blake3 {
            return Ok(());
        }
        let (expert, path, expected) = (self.name.clone(), self.file.clone(), self.blake3.clone());
        Err(Error::FileChanged { expert, path, expected, actual })
    }

    /// Tokens of context the model was trained on, if its file says.
    ///
    /// # Errors
    /// [`Error::Format`] if the file can't be read.
    pub fn trained_context_tokens(&self) -> Result<Option<u32>> {
        let reader = gguf::Reader::open(&self.file)?;
        Ok(reader.metadata().get_u32(&format!("{}.context_length", self.architecture)))
    }
}

/// Length and time of change of a file.
fn stamp(path: &Path) -> Result<(u64, u64)> {
    let metadata = std::fs::metadata(path).map_err(Error::io(path))?;
    let modified = metadata.modified().map_err(Error::io(path))?;
    let age = modified.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Ok((metadata.len(), u64::try_from(age.as_nanos()).unwrap_or(u64::MAX)))
}

/// Checks tokenizer and template: special ids are there, a conversation renders, a turn has its end. Gives the
/// hash of the template.
fn check_text(name: &str, metadata: &gguf::Metadata) -> Result<Option<String>> {
    let (tokenizer, template) = llama::session::text_of(name, metadata)?;
    let Some(template) = template else { return Ok(None) };
    let failed = |source| Error::Text { expert: name.to_owned(), source };
    text::encode_prompt(&tokenizer, &template, &[Message::new("user", "Hello.")]).map_err(failed)?;
    text::end_of_turn(&tokenizer, &template).map_err(failed)?;
    Ok(Some(hash::blake3_bytes(template.source().as_bytes())))
}

/// Checks with llama.cpp itself that it knows the file's architecture and vocabulary.
fn check_engine(name: &str, path: &Path) -> Result<()> {
    llama::Vocabulary::open(path).map(drop).map_err(|error| match error {
        Error::Load { path, reason, .. } => Error::Load { expert: name.to_owned(), path, reason },
        other => other,
    })
}

/// Number of weights, and the type most of them have.
fn weights(reader: &gguf::Reader) -> (u64, String) {
    let mut by_type: Vec<(&str, u64)> = Vec::new();
    for tensor in reader.tensors() {
        let n: u64 = tensor.shape.iter().product();
        match by_type.iter_mut().find(|(name, _)| *name == tensor.ty.name()) {
            Some((_, sum)) => *sum += n,
            None => by_type.push((tensor.ty.name(), n)),
        }
    }
    let most = by_type.iter().max_by_key(|(_, n)| n).map_or_else(String::new, |(name, _)| (*name).to_owned());
    (by_type.iter().map(|(_, n)| n).sum(), most)
}

/// Reads `receipt.json` beside a model file, as an export leaves it; a model without one has no provenance.
fn provenance(file: &Path) -> Result<Option<Provenance>> {
    let receipt = file.with_file_name("receipt.json");
    let bytes = match std::fs::read(&receipt) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(receipt)(error)),
    };
    let Ok(value) = serde_json::from_slice::<serde_json::Value>(&bytes) else { return Ok(None) };
    let text = |pointer: &str| value.pointer(pointer).and_then(|value| value.as_str()).map(str::to_owned);
    // A receipt beside several files speaks of one of them.
    if text("/file").as_deref() != file.file_name().and_then(|name| name.to_str()) {
        return Ok(None);
    }
    Ok(Some(Provenance {
        base_blake3: text("/sources/base_blake3"),
        adapter_blake3: text("/sources/adapter_blake3"),
        recipe_blake3: text("/provenance/recipe_blake3"),
        receipt,
    }))
}

/// Checks a name: 1 to 64 of `a-z A-Z 0-9 . _ -`, beginning with a letter or digit.
///
/// # Errors
/// [`Error::Card`].
pub fn check_name(name: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let begins_well = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    if begins_well && name.len() <= 64 && name.chars().all(allowed) {
        return Ok(());
    }
    Err(Error::Card {
        expert: name.to_owned(),
        reason: "a name has 1 to 64 of the characters a-z A-Z 0-9 . _ - and begins with a letter or digit"
            .to_owned(),
    })
}
