//! The vocabulary as GGUF metadata: what llama.cpp's convert_hf_to_gguf.py writes for the same tokenizer.

use ahash::{AHashMap as HashMap, AHashSet as HashSet};

use formats::gguf::Value;

use super::gguf::{ADD_SPACE_PREFIX, ADDS, MERGES, MODEL, PRE, SCORES, TOKEN_TYPE, TOKENS};
use super::hf::{ADDED_SCORE, PADDING_SCORE};
use super::sentencepiece::scores_from_merges;
use super::special::ROLES;
use super::vocabulary::Kind;
use super::{Spelling, Tokenizer};
use crate::{Error, Result};

impl Tokenizer {
    /// The vocabulary as the `tokenizer.ggml.*` keys of a GGUF with `n_vocab_rows` rows of embedding: rows
    /// beyond the vocabulary are named `[PAD{i}]`. The template's own key is not among them.
    ///
    /// Two differences to the converter, both for SentencePiece-style tokenizers. Without a tokenizer.model,
    /// scores follow the order of the merges (the converter writes the same score for all, which gives other
    /// ids). And where a space is put in front of the very first text alone, `add_space_prefix` is written as
    /// false (the converter is silent, and llama.cpp puts one behind each control token).
    ///
    /// # Errors
    /// More tokens than rows, two tokens of the same text (llama.cpp would abort on them), merges that no
    /// scores can express.
    pub fn gguf_metadata(&self, n_vocab_rows: usize) -> Result<Vec<(String, Value)>> {
        let (tokens, kinds) = self.rows(n_vocab_rows)?;
        let mut entries: Vec<(&str, Value)> = Vec::new();
        match &self.spelling {
            Spelling::ByteLevel { pre, .. } => {
                entries.push((MODEL, "gpt2".into()));
                entries.push((PRE, pre.as_str().into()));
                entries.push((TOKENS, tokens.into()));
                entries.push((TOKEN_TYPE, kinds.into()));
                entries.push((MERGES, self.merges.clone().into()));
            }
            Spelling::SentencePiece { space_prefix, written_space_prefix, scores } => {
                let written = written_space_prefix.or((!space_prefix).then_some(false));
                entries.extend(written.map(|prefix| (ADD_SPACE_PREFIX, prefix.into())));
                entries.push((MODEL, "llama".into()));
                entries.push((PRE, "default".into()));
                entries.push((TOKENS, tokens.into()));
                entries.push((SCORES, self.scores(scores.as_deref(), n_vocab_rows)?.into()));
                entries.push((TOKEN_TYPE, kinds.into()));
            }
        }
        let key_of = |table: &[(&str, &'static str)], role: &str| {
            table.iter().find(|(name, _)| *name == role).map(|(_, key)| *key)
        };
        let fits = |id: &u32| (*id as usize) < n_vocab_rows;
        for (role, id) in self.special.ids.iter().filter(|(_, id)| fits(id)) {
            entries.extend(key_of(&ROLES, role).map(|key| (key, Value::from(*id))));
        }
        for (role, adds) in &self.special.adds {
            entries.extend(key_of(&ADDS, role).map(|key| (key, Value::from(*adds))));
        }
        Ok(entries.into_iter().map(|(key, value)| (key.to_owned(), value)).collect())
    }

    /// Texts and types of all rows.
    fn rows(&self, n_rows: usize) -> Result<(Vec<String>, Vec<i32>)> {
        if self.vocab_size() > n_rows {
            return Err(Error::VocabularyTooLarge {
                path: self.origin.clone(),
                largest_id: self.vocab_size() - 1,
                rows: n_rows,
            });
        }
        let marks_spaces = matches!(self.spelling, Spelling::SentencePiece { .. });
        let (mut tokens, mut kinds) = (Vec::with_capacity(n_rows), Vec::with_capacity(n_rows));
        for id in 0..n_rows as u32 {
            let kind = if self.token(id).is_some() { self.vocabulary.kind(id) } else { Kind::Unused };
            let text = match (self.token(id), kind) {
                (None, _) => format!("[PAD{id}]"),
                // llama.cpp seeks such tokens in text whose spaces are spaces.
                (Some(token), Kind::UserDefined) if marks_spaces => token.replace('▁', " "),
                (Some(token), _) => token.to_owned(),
            };
            tokens.push(text);
            kinds.push(kind as i32);
        }
        let mut seen: HashSet<&str> = HashSet::with_capacity(n_rows);
        if let Some(id) = tokens.iter().position(|text| !seen.insert(text)) {
            let reason = format!("token {id} has the text `{}` of another token", tokens[id]);
            return Err(Error::Tokenizer { path: self.origin.clone(), reason });
        }
        Ok((tokens, kinds))
    }

    fn scores(&self, written: Option<&[f32]>, n_rows: usize) -> Result<Vec<f32>> {
        if let Some(written) = written {
            let mut scores = written.to_vec();
            scores.resize(n_rows, PADDING_SCORE);
            return Ok(scores);
        }
        let kinds = &self.vocabulary.kinds;
        let tokens: HashMap<&str, u32> = (0..)
            .zip(&self.vocabulary.tokens)
            .filter(|(id, token)| {
                !token.is_empty() && matches!(kinds[*id as usize], Kind::Normal | Kind::Byte)
            })
            .map(|(id, token)| (token.as_str(), id))
            .collect();
        let merges: Vec<(&str, &str)> =
            self.merges.iter().filter_map(|merge| merge.split_once(' ')).collect();
        let joined = scores_from_merges(&tokens, &merges)
            .map_err(|reason| Error::Tokenizer { path: self.origin.clone(), reason })?;
        let score = |id: u32| match self.vocabulary.kind(id) {
            Kind::Normal | Kind::Byte => joined.get(&id).copied().unwrap_or_default(),
            Kind::Unused => PADDING_SCORE,
            _ => ADDED_SCORE,
        };
        Ok((0..n_rows as u32).map(score).collect())
    }
}
