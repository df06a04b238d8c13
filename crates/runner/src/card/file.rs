//! A model that is a GGUF file on this machine: what is known of it, and whether it is still the same.

use std::path::{Path, PathBuf};

use formats::{gguf, hash};
use serde::{Deserialize, Serialize};
use text::Message;

use super::adapter::{Adapter, AdapterOptions, BaseFile};
use crate::engine::llama::{self, language::Language};
use crate::{Error, Result};

/// A GGUF file, as it was when the card was made.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelFile {
    /// The file.
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
    /// What is set over it: experts of one file that differ in nothing else share what is loaded of it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub adapters: Vec<Adapter>,
}

/// How thoroughly a file is hashed for its card.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Digests {
    /// BLAKE3 alone: enough to know a file again.
    Blake3,
    /// Both, for the registry and servers that name models by SHA-256.
    Blake3AndSha256,
}

impl ModelFile {
    /// Reads a file, after checking that the embedded engine can use it: it opens, its architecture is known, its
    /// tokenizer is complete, its template renders and ends a turn; the adapters are of this base.
    pub(super) fn read(
        expert: &str,
        file: &Path,
        adapters: &[AdapterOptions],
        digests: Digests,
    ) -> Result<Self> {
        let path = std::path::absolute(file).map_err(Error::io(file))?;
        let (file_bytes, file_modified) = stamp(&path)?;
        let reader = gguf::Reader::open(&path)?;
        let metadata = reader.metadata();
        let architecture = metadata.get_str("general.architecture");
        let architecture = architecture.ok_or_else(|| Error::Card {
            expert: expert.to_owned(),
            reason: "the file has no `general.architecture`".to_owned(),
        })?;
        let template_blake3 = check_text(expert, metadata)?;
        check_engine(expert, &path)?;
        let (n_parameters, weight_type) = weights(&reader);
        let blake3 = hash::blake3_file(&path)?;
        let base = BaseFile { reader: &reader, blake3: &blake3 };
        Ok(Self {
            adapters: Adapter::all(expert, adapters, &base)?,
            blake3,
            sha256: (digests == Digests::Blake3AndSha256).then(|| hash::sha256_file(&path)).transpose()?,
            file_bytes,
            file_modified,
            architecture: architecture.to_owned(),
            n_parameters,
            weight_type,
            template_blake3,
            file: path,
        })
    }

    /// Checks that the file and its adapters are still those of the card.
    pub(super) fn check(&self, expert: &str) -> Result<()> {
        check_unchanged(expert, &self.file, (self.file_bytes, self.file_modified), &self.blake3)?;
        self.adapters.iter().try_for_each(|adapter| {
            let known = (adapter.file_bytes, adapter.file_modified);
            check_unchanged(expert, &adapter.file, known, &adapter.blake3)
        })
    }

    /// Tokens of context the model was trained on, if its file says.
    pub(super) fn trained_context_tokens(&self) -> Result<Option<u32>> {
        let reader = gguf::Reader::open(&self.file)?;
        Ok(reader.metadata().get_u32(&format!("{}.context_length", self.architecture)))
    }
}

/// Checks that a file is still the one that was hashed. It is hashed again only if its length or time of change
/// differs, since hashing a large file takes as long as loading it.
fn check_unchanged(expert: &str, path: &Path, known: (u64, u64), blake3: &str) -> Result<()> {
    if stamp(path)? == known {
        return Ok(());
    }
    let actual = hash::blake3_file(path)?;
    if actual == blake3 {
        return Ok(());
    }
    let (expert, path, expected) = (expert.to_owned(), path.to_owned(), blake3.to_owned());
    Err(Error::FileChanged { expert, path, expected, actual })
}

/// Length and time of change of a file.
pub(super) fn stamp(path: &Path) -> Result<(u64, u64)> {
    let metadata = std::fs::metadata(path).map_err(Error::io(path))?;
    let modified = metadata.modified().map_err(Error::io(path))?;
    let age = modified.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Ok((metadata.len(), u64::try_from(age.as_nanos()).unwrap_or(u64::MAX)))
}

/// Checks tokenizer and template: special ids are there, a conversation renders, a turn has its end. Gives the
/// hash of the template.
fn check_text(name: &str, metadata: &gguf::Metadata) -> Result<Option<String>> {
    let Language { tokenizer, template } = Language::of(name, metadata)?;
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
