//! Tokenizers of GGUF files, from their `tokenizer.ggml.*` keys.

use std::path::PathBuf;

use formats::gguf::{Array, Metadata};
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::normalizers::prepend::Prepend;
use tokenizers::normalizers::replace::{Replace, ReplacePattern};
use tokenizers::normalizers::utils::Sequence;

use super::added::AddedToken;
use super::pre_tokenizer::{self, PreTokenizer};
use super::sentencepiece::merges_from_scores;
use super::special::{ROLES, SpecialTokens};
use super::vocabulary::{Kind, Vocabulary};
use super::{Parts, Spelling, Tokenizer};
use crate::{Error, Result};

pub(super) const MODEL: &str = "tokenizer.ggml.model";
pub(super) const PRE: &str = "tokenizer.ggml.pre";
pub(super) const TOKENS: &str = "tokenizer.ggml.tokens";
pub(super) const TOKEN_TYPE: &str = "tokenizer.ggml.token_type";
pub(super) const SCORES: &str = "tokenizer.ggml.scores";
pub(super) const MERGES: &str = "tokenizer.ggml.merges";
pub(super) const ADD_SPACE_PREFIX: &str = "tokenizer.ggml.add_space_prefix";
pub(super) const ADDS: [(&str, &str); 3] = [
    ("bos", "tokenizer.ggml.add_bos_token"),
    ("eos", "tokenizer.ggml.add_eos_token"),
    ("sep", "tokenizer.ggml.add_sep_token"),
];

impl Tokenizer {
    /// Rebuilds the tokenizer of a GGUF from its `tokenizer.ggml.*` keys.
    ///
    /// # Errors
    /// Keys that are absent or contradict each other; models other than `gpt2` and `llama`; names of
    /// pre-tokenizers outside the known ones.
    pub fn from_gguf(metadata: &Metadata) -> Result<Tokenizer> {
        let vocabulary = vocabulary(metadata)?;
        let parts = match metadata.get_str(MODEL) {
            Some("gpt2") => byte_level(metadata, vocabulary)?,
            Some("llama") => sentencepiece(metadata, vocabulary)?,
            Some(other) => {
                return Err(wrong(MODEL, format!("`{other}` is not known, only `gpt2` and `llama`")));
            }
            None => return Err(wrong(MODEL, "it is absent")),
        };
        parts.assemble().map_err(|reason| wrong(TOKENS, reason))
    }
}

fn wrong(key: &'static str, reason: impl Into<String>) -> Error {
    Error::Metadata { key, reason: reason.into() }
}

fn vocabulary(metadata: &Metadata) -> Result<Vocabulary> {
    let tokens = metadata.get_strings(TOKENS).ok_or_else(|| wrong(TOKENS, "no list of texts"))?.to_strings();
    let kinds: Vec<Kind> = match metadata.get(TOKEN_TYPE).map(|_| metadata.get_array(TOKEN_TYPE)) {
        None => vec![Kind::Normal; tokens.len()],
        Some(Some(Array::I32(kinds))) => kinds.iter().map(|kind| Kind::from_id(i64::from(*kind))).collect(),
        Some(Some(Array::U32(kinds))) => kinds.iter().map(|kind| Kind::from_id(i64::from(*kind))).collect(),
        Some(_) => return Err(wrong(TOKEN_TYPE, "no list of 32-bit integers")),
    };
    if kinds.len() != tokens.len() {
        return Err(wrong(TOKEN_TYPE, format!("{} types for {} tokens", kinds.len(), tokens.len())));
    }
    Ok(Vocabulary { tokens, kinds })
}

fn byte_level(metadata: &Metadata, vocabulary: Vocabulary) -> Result<Parts> {
    let (name, row) = pre_tokenizer(metadata)?;
    let merges = metadata.get_strings(MERGES).ok_or_else(|| wrong(MERGES, "no list of texts"))?.to_strings();
    let pre_tokenizer = row.build().map_err(|error| wrong(PRE, error.to_string()))?;
    Ok(Parts {
        merges,
        spelling: Spelling::ByteLevel { pre: name.to_owned(), adds_bos: row.adds_bos },
        normalizer: None,
        pre_tokenizer: Some(pre_tokenizer),
        ignore_merges: row.ignore_merges,
        unknown: None,
        ..common(metadata, vocabulary)?
    })
}

/// How text is cut into words, under the name to write.
fn pre_tokenizer(metadata: &Metadata) -> Result<(&str, &'static PreTokenizer)> {
    let architecture = metadata.get_str("general.architecture").unwrap_or_default();
    let known = pre_tokenizer::known_names;
    // llama.cpp takes `default` for an absent name and warns of degraded quality: no published tokenizer cuts so.
    let name = metadata
        .get_str(PRE)
        .or_else(|| pre_tokenizer::name_by_architecture(architecture))
        .ok_or_else(|| {
            wrong(
                PRE,
                format!("it is absent, and `{architecture}` models have several; known are {}", known()),
            )
        })?;
    let row = pre_tokenizer::by_name(name)
        .ok_or_else(|| wrong(PRE, format!("`{name}` is not known; known are {}", known())))?;
    Ok((name, row))
}

fn sentencepiece(metadata: &Metadata, vocabulary: Vocabulary) -> Result<Parts> {
    let Some(Array::F32(scores)) = metadata.get_array(SCORES) else {
        return Err(wrong(SCORES, "no list of 32-bit numbers"));
    };
    if scores.len() != vocabulary.tokens.len() {
        return Err(wrong(SCORES, format!("{} scores for {} tokens", scores.len(), vocabulary.tokens.len())));
    }
    let written_space_prefix = metadata.get_bool(ADD_SPACE_PREFIX);
    let space_prefix = written_space_prefix.unwrap_or(true);
    let mut parts = common(metadata, vocabulary)?;
    let merges = merges_from_scores(&parts.mergeable().collect(), scores);
    parts.merges = merges.into_iter().map(|(left, right)| format!("{left} {right}")).collect();
    parts.normalizer = Some(spaces_to_marks(space_prefix));
    parts.spelling =
        Spelling::SentencePiece { space_prefix, written_space_prefix, scores: Some(scores.clone()) };
    let unknown = parts.special.id("unk").or_else(|| first_of(&parts.vocabulary, Kind::Unknown));
    parts.unknown = unknown.and_then(|id| parts.vocabulary.token(id)).map(str::to_owned);
    Ok(parts)
}

fn first_of(vocabulary: &Vocabulary, kind: Kind) -> Option<u32> {
    (0..).zip(&vocabulary.kinds).find(|(_, of_token)| **of_token == kind).map(|(id, _)| id)
}

/// `▁` for each space, and one in front.
fn spaces_to_marks(space_prefix: bool) -> NormalizerWrapper {
    let replace =
        Replace::new(ReplacePattern::String(" ".to_owned()), "▁").expect("a plain text is a valid pattern");
    let mut steps = vec![NormalizerWrapper::Replace(replace)];
    if space_prefix {
        steps.insert(0, NormalizerWrapper::Prepend(Prepend::new("▁".to_owned())));
    }
    NormalizerWrapper::Sequence(Sequence::new(steps))
}

/// What both kinds of model have.
fn common(metadata: &Metadata, vocabulary: Vocabulary) -> Result<Parts> {
    let mut special = SpecialTokens::default();
    for (role, key) in ROLES {
        if let Some(id) = metadata.get_u32(key) {
            if id as usize >= vocabulary.tokens.len() {
                return Err(wrong(key, format!("{id} for {} tokens", vocabulary.tokens.len())));
            }
            special.ids.push((role, id));
        }
    }
    special.adds = ADDS.iter().filter_map(|(role, key)| Some((*role, metadata.get_bool(key)?))).collect();
    let found_as_written = [Kind::Control, Kind::Unknown, Kind::UserDefined];
    let tokens = vocabulary.tokens.iter().zip(&vocabulary.kinds).zip(0..);
    let added = tokens.filter(|((_, kind), _)| found_as_written.contains(kind)).map(|((token, kind), id)| {
        AddedToken {
            id,
            content: token.clone(),
            single_word: false,
            lstrip: false,
            rstrip: false,
            normalized: false,
            control: kind.is_special(),
        }
    });
    let ends = ["eos", "eot"].into_iter().filter_map(|role| special.id(role)).collect();
    Ok(Parts {
        added: added.collect(),
        origin: PathBuf::from("tokenizer.ggml.*"),
        merges: Vec::new(),
        spelling: Spelling::SentencePiece { space_prefix: true, written_space_prefix: None, scores: None },
        normalizer: None,
        pre_tokenizer: None,
        ignore_merges: false,
        unknown: None,
        vocabulary,
        special,
        ends,
    })
}
