//! What turns text into tokens and conversations into text, from a file's metadata.
//!
//! The last one is kept: experts that follow one another are most often of one family, and reading a vocabulary of
//! 150,000 tokens takes as long as all else of the load of a small model. It is known again by every key of the
//! vocabulary and the template being equal, not by a name or a file.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use formats::gguf::{Metadata, Value};
use text::{ChatTemplate, Tokenizer};

use crate::{Error, Result};

/// Tokenizer and template of a file.
#[derive(Clone)]
pub(crate) struct Language {
    pub tokenizer: Arc<Tokenizer>,
    pub template: Option<Arc<ChatTemplate>>,
}

struct Kept {
    keys: Vec<(String, Value)>,
    language: Language,
}

static KEPT: Mutex<Option<Kept>> = Mutex::new(None);

/// The keys that decide about it.
fn keys(metadata: &Metadata) -> impl Iterator<Item = &(String, Value)> {
    metadata
        .entries()
        .iter()
        .filter(|(key, _)| key.starts_with("tokenizer.") || key == "general.architecture")
}

impl Language {
    /// Reads it, or takes the one that is kept.
    ///
    /// # Errors
    /// [`Error::Card`] for a vocabulary that holds a token twice, [`Error::Text`].
    pub(crate) fn of(name: &str, metadata: &Metadata) -> Result<Self> {
        if let Some(kept) = Self::kept(metadata) {
            return Ok(kept);
        }
        refuse_doubles(name, metadata)?;
        Self::read(name, metadata)
    }

    /// The one that is kept, if it is this file's.
    pub(super) fn kept(metadata: &Metadata) -> Option<Self> {
        let kept = KEPT.lock().unwrap_or_else(PoisonError::into_inner);
        kept.as_ref().filter(|kept| kept.keys.iter().eq(keys(metadata))).map(|kept| kept.language.clone())
    }

    /// Reads one in which no token stands twice, and keeps it.
    pub(super) fn read(name: &str, metadata: &Metadata) -> Result<Self> {
        let failed = |source| Error::Text { expert: name.to_owned(), source };
        let tokenizer = Tokenizer::from_gguf(metadata).map_err(failed)?;
        let template = metadata.get_str("tokenizer.chat_template").map(|source| {
            let spelling =
                |id: Option<u32>| id.and_then(|id| tokenizer.token(id)).map(|token| token.to_string());
            let bos = spelling(tokenizer.bos()).unwrap_or_default();
            let eos = spelling(tokenizer.eos()).unwrap_or_default();
            ChatTemplate::from_source(source, &bos, &eos).map_err(failed)
        });
        let template = template.transpose()?.map(Arc::new);
        let language = Self { tokenizer: Arc::new(tokenizer), template };
        let kept = Kept { keys: keys(metadata).cloned().collect(), language: language.clone() };
        *KEPT.lock().unwrap_or_else(PoisonError::into_inner) = Some(kept);
        Ok(language)
    }
}

/// A token that stands twice in the vocabulary makes llama.cpp abort the whole process.
pub(super) fn refuse_doubles(name: &str, metadata: &Metadata) -> Result<()> {
    let Some(tokens) = metadata.get_strings("tokenizer.ggml.tokens") else { return Ok(()) };
    let mut seen = HashSet::with_capacity(tokens.len());
    match tokens.iter().find(|token| !seen.insert(*token)) {
        None => Ok(()),
        Some(token) => {
            let reason = format!("token `{token}` stands twice in its file's vocabulary");
            Err(Error::Card { expert: name.to_owned(), reason })
        }
    }
}
