//! Tokenizers of Hugging Face directories: tokenizer.json and the files beside it.

use std::fmt;
use std::path::{Path, PathBuf};

use ahash::AHashMap as HashMap;
use formats::json::Entries;
use serde::de::value::MapAccessDeserializer;
use serde::de::{Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;

use super::added::AddedToken;
use super::beside::{Beside, ListedToken, NO_MODEL};
use super::model_file::{ModelFile, Piece};
use super::pre_tokenizer;
use super::sentencepiece::merges_from_scores;
use super::special::{self, Sources, SpecialTokens};
use super::vocabulary::{Kind, Vocabulary, byte_of, looks_like_control};
use super::{Parts, Spelling, Tokenizer};
use crate::files::read_json;
use crate::{Error, Result};

/// Ids beyond this are a mistake, and would reserve memory for every id below them.
const LARGEST_ID: u32 = 4_000_000;

impl Tokenizer {
    /// Reads `tokenizer.json` and what stands beside it in a Hugging Face directory, or a SentencePiece model,
    /// `tokenizer.model`, where that is all there is.
    ///
    /// # Errors
    /// Files that are absent or cannot be understood; tokenizers other than byte-level BPE and
    /// SentencePiece-style BPE with byte fallback; a way of cutting text that GGUF has no name for.
    pub fn from_dir(dir: &Path) -> Result<Tokenizer> {
        let beside = Beside::read(dir)?;
        let (path, file) = match read_json::<TokenizerFile>(&dir.join("tokenizer.json"))? {
            Some(file) => (dir.join("tokenizer.json"), file),
            None => (dir.join("tokenizer.model"), TokenizerFile::without_file(&beside, dir)?),
        };
        let unusable = |reason| Error::Tokenizer { path: path.clone(), reason };
        let parts = file.into_parts(&path, beside)?;
        parts.assemble().map_err(unusable)
    }
}

#[derive(Deserialize)]
struct TokenizerFile {
    #[serde(default)]
    added_tokens: Vec<ListedToken>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    model: Model,
    /// Tokens that have a role where no other file gives it one.
    #[serde(skip)]
    roles: Vec<(&'static str, u32)>,
}

#[derive(Default, Deserialize)]
struct Model {
    #[serde(default, rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    vocab: Vocab,
    #[serde(default)]
    merges: Vec<Merge>,
    #[serde(default)]
    unk_token: Option<String>,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
    #[serde(default)]
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    dropout: Option<f32>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
}

/// Tokens and ids in their order; `None` where a model of another kind has a list.
#[derive(Default)]
struct Vocab(Option<Vec<(String, Value)>>);

impl<'de> Deserialize<'de> for Vocab {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Vocab, D::Error> {
        struct VocabVisitor;
        impl<'de> Visitor<'de> for VocabVisitor {
            type Value = Vocab;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("an object of tokens and ids")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Vocab, A::Error> {
                let Entries(entries) = Entries::deserialize(MapAccessDeserializer::new(map))?;
                Ok(Vocab(Some(entries)))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vocab, A::Error> {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Vocab(None))
            }
        }
        deserializer.deserialize_any(VocabVisitor)
    }
}

/// A merge, `left right` in older files, `["left", "right"]` in newer ones; held the first way, spaces within
/// a token written as byte-level BPE spells them.
struct Merge(String);

impl<'de> Deserialize<'de> for Merge {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Merge, D::Error> {
        struct MergeVisitor;
        impl<'de> Visitor<'de> for MergeVisitor {
            type Value = Merge;

            fn expecting(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
                formatter.write_str("two tokens, as `left right` or as a list")
            }

            fn visit_str<E: serde::de::Error>(self, merge: &str) -> Result<Merge, E> {
                let is_pair = merge.split(' ').count() == 2;
                if is_pair { Ok(Merge(merge.to_owned())) } else { Err(E::custom(format!("merge `{merge}`"))) }
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Merge, A::Error> {
                let (left, right) = (list.next_element::<String>()?, list.next_element::<String>()?);
                match (left, right, list.next_element::<String>()?) {
                    (Some(left), Some(right), None) => {
                        Ok(Merge(format!("{} {}", left.replace(' ', "Ġ"), right.replace(' ', "Ġ"))))
                    }
                    _ => Err(A::Error::custom("a merge is not of two tokens")),
                }
            }
        }
        deserializer.deserialize_any(MergeVisitor)
    }
}

impl TokenizerFile {
    /// What tokenizer.json would be of a directory that has none.
    fn without_file(beside: &Beside, dir: &Path) -> Result<TokenizerFile> {
        let Some(file) = &beside.model_file else {
            let source = std::io::Error::from(std::io::ErrorKind::NotFound);
            return Err(Error::Read { path: dir.join("tokenizer.json"), source });
        };
        let alone = |reason: String| Error::Tokenizer {
            path: file.path.clone(),
            reason: format!("{reason}, and there is no tokenizer.json"),
        };
        let model = file.parsed.as_ref().ok_or_else(|| alone(NO_MODEL.to_owned()))?;
        model.unusable().map_or_else(|| Ok(TokenizerFile::of_model(model)), |reason| Err(alone(reason)))
    }

    /// The tokenizer.json that Hugging Face's conversion of a SentencePiece model amounts to.
    fn of_model(model: &ModelFile) -> TokenizerFile {
        let of_kinds = |kinds: &'static [Kind]| {
            let pieces = (0..).zip(&model.pieces);
            pieces.filter(move |(_, piece)| kinds.contains(&piece.kind))
        };
        let joinable: HashMap<&str, u32> = of_kinds(&[Kind::Normal, Kind::Byte, Kind::UserDefined])
            .map(|(id, piece)| (piece.text.as_str(), id))
            .collect();
        let scores: Vec<f32> = model.pieces.iter().map(|piece| piece.score).collect();
        let merges = merges_from_scores(&joinable, &scores);
        let found_as_written = of_kinds(&[Kind::Control, Kind::Unknown, Kind::UserDefined]);
        let added_tokens = found_as_written.map(|(id, piece)| ListedToken {
            id,
            content: piece.text.replace('▁', " "),
            special: piece.kind.is_special(),
            ..ListedToken::default()
        });
        let marks = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
        let prefix = model.prefixes_space.then(|| json!({"type": "Prepend", "prepend": "▁"}));
        let steps: Vec<Value> = prefix.into_iter().chain([marks]).collect();
        TokenizerFile {
            added_tokens: added_tokens.collect(),
            normalizer: json!({"type": "Sequence", "normalizers": steps}),
            pre_tokenizer: Value::Null,
            post_processor: Value::Null,
            model: Model {
                vocab: Vocab(Some(
                    (0..)
                        .zip(&model.pieces)
                        .map(|(id, piece)| (piece.text.clone(), Value::from(id)))
                        .collect(),
                )),
                merges: merges.into_iter().map(|(left, right)| Merge(format!("{left} {right}"))).collect(),
                unk_token: model
                    .pieces
                    .iter()
                    .find(|piece| piece.kind == Kind::Unknown)
                    .map(|piece| piece.text.clone()),
                byte_fallback: true,
                ..Model::default()
            },
            roles: model.roles().collect(),
        }
    }

    fn into_parts(mut self, path: &Path, beside: Beside) -> Result<Parts> {
        let unusable = |reason: String| Error::Tokenizer { path: path.to_owned(), reason };
        self.check_model().map_err(unusable)?;
        let model_vocabulary = self.model_vocabulary().map_err(unusable)?;
        self.merge_added(&beside, &model_vocabulary);
        self.added_tokens.retain(|token| !beside.has_no_row(token));
        if let Some(token) = self.added_tokens.iter().find(|token| token.id > LARGEST_ID) {
            return Err(unusable(format!("added token `{}` has id {}", token.content, token.id)));
        }
        let ignore_merges = self.model.ignore_merges;
        // Beside byte-level BPE it is tiktoken's file, which says nothing that is not in tokenizer.json.
        let pieces = if self.model.byte_fallback { beside.pieces()? } else { None };
        let (spelling, normalizer, pre_tokenizer) = if self.model.byte_fallback {
            let (normalizer, pre_tokenizer) = self.sentencepiece_steps().map_err(unusable)?;
            (self.sentencepiece_spelling(&beside, pieces), normalizer, pre_tokenizer)
        } else {
            self.byte_level(path, &model_vocabulary)?
        };
        let vocabulary = self.vocabulary(&model_vocabulary, &beside, pieces.unwrap_or_default());
        let id_of =
            |text: &str| self.added_tokens.iter().find(|token| token.content == text).map(|token| token.id);
        let sources = Sources {
            post_processor: &self.post_processor,
            tokenizer_config: &beside.tokenizer_config,
            config: &beside.config,
        };
        let mut special = special::read(&sources, id_of);
        self.roles.iter().for_each(|&(role, id)| special.set_id(role, id));
        let added = self.added_tokens.iter().map(|token| AddedToken {
            id: token.id,
            content: token.content.clone(),
            single_word: token.single_word,
            lstrip: token.lstrip,
            rstrip: token.rstrip,
            normalized: token.normalized,
            control: vocabulary.kind(token.id).is_special(),
        });
        Ok(Parts {
            added: added.collect(),
            ends: ends(&special, &beside),
            origin: PathBuf::from(path),
            merges: std::mem::take(&mut self.model.merges).into_iter().map(|merge| merge.0).collect(),
            unknown: self.model.unk_token.take(),
            vocabulary,
            spelling,
            special,
            normalizer,
            pre_tokenizer,
            ignore_merges,
        })
    }

    fn check_model(&self) -> Result<(), String> {
        let model = &self.model;
        if let Some(kind) = model.kind.as_deref().filter(|kind| *kind != "BPE") {
            return Err(format!(
                "its model is of type {kind}; BPE, byte-level or with byte fallback, is known"
            ));
        }
        if model.dropout.is_some_and(|dropout| dropout > 0.0) {
            return Err("its model drops merges at random".to_owned());
        }
        let affixes = [&model.continuing_subword_prefix, &model.end_of_word_suffix];
        if affixes.into_iter().flatten().any(|affix| !affix.is_empty()) {
            return Err("its model marks where words continue or end".to_owned());
        }
        Ok(())
    }

    fn model_vocabulary(&mut self) -> Result<HashMap<String, u32>, String> {
        let Vocab(Some(entries)) = std::mem::take(&mut self.model.vocab) else {
            return Err("`model.vocab` is not an object of tokens and ids".to_owned());
        };
        let mut tokens = HashMap::with_capacity(entries.len());
        let mut seen = vec![false; entries.len()];
        for (token, id) in entries {
            let id = id.as_u64().and_then(|id| u32::try_from(id).ok()).filter(|id| *id <= LARGEST_ID);
            let id = id.ok_or_else(|| format!("token `{token}` has no usable id"))?;
            if id as usize >= seen.len() {
                seen.resize(id as usize + 1, false);
            }
            if std::mem::replace(&mut seen[id as usize], true) {
                return Err(format!("two tokens have id {id}, `{token}` is one of them"));
            }
            // As in any object, the last of the same name counts.
            tokens.insert(token, id);
        }
        Ok(tokens)
    }

    /// Completes the list of added tokens as loading with transformers does: what tokenizer_config.json lists
    /// or declares special counts over tokenizer.json.
    fn merge_added(&mut self, beside: &Beside, model_vocabulary: &HashMap<String, u32>) {
        for listed in beside.listed() {
            match self.added_tokens.iter_mut().find(|token| token.id == listed.id) {
                Some(token) => *token = listed,
                None => self.added_tokens.push(listed),
            }
        }
        for text in beside.declared_special() {
            match self.added_tokens.iter_mut().find(|token| token.content == text) {
                Some(token) => token.special = true,
                None => {
                    let Some(&id) = model_vocabulary.get(&text) else { continue };
                    let (single_word, lstrip, rstrip) = (false, false, false);
                    let token = ListedToken {
                        id,
                        content: text,
                        single_word,
                        lstrip,
                        rstrip,
                        normalized: false,
                        special: true,
                    };
                    self.added_tokens.push(token);
                }
            }
        }
    }

    fn vocabulary(&self, model: &HashMap<String, u32>, beside: &Beside, pieces: &[Piece]) -> Vocabulary {
        let mut vocabulary = Vocabulary::default();
        for (token, id) in model {
            let is_byte = self.model.byte_fallback && byte_of(token).is_some();
            vocabulary.set(*id, token, if is_byte { Kind::Byte } else { Kind::Normal });
        }
        for (id, piece) in (0..).zip(pieces) {
            vocabulary.set(id, &piece.text, piece.kind);
        }
        // Where there is a tokenizer.model, only tokenizer_config.json says more of its pieces.
        let speaks = |id: u32| id as usize >= pieces.len() || beside.tokenizer_config.is_object();
        for token in self.added_tokens.iter().filter(|token| speaks(token.id)) {
            let control = token.special || looks_like_control(&token.content);
            vocabulary.set(token.id, &token.content, if control { Kind::Control } else { Kind::UserDefined });
        }
        vocabulary
    }

    fn sentencepiece_spelling(&self, beside: &Beside, pieces: Option<&[Piece]>) -> Spelling {
        let scores = pieces.map(|pieces| {
            let mut scores: Vec<f32> = pieces.iter().map(|piece| piece.score).collect();
            let named = beside.added_tokens.iter().flat_map(|tokens| tokens.values().copied());
            for id in
                named.chain(beside.listed().into_iter().map(|token| token.id)).filter(|id| *id <= LARGEST_ID)
            {
                if id as usize >= scores.len() {
                    scores.resize(id as usize + 1, PADDING_SCORE);
                }
                scores[id as usize] = ADDED_SCORE;
            }
            scores
        });
        // llama.cpp's prefix goes behind every control token. Where only the very first text has one, behind
        // BOS and a template nothing has: there it is no prefix that gives the same ids.
        let steps = parts_of(&self.pre_tokenizer, "pretokenizers");
        let first_only = steps.iter().any(|step| step["prepend_scheme"] == "first");
        let written = beside.tokenizer_config["add_prefix_space"].as_bool();
        let written_space_prefix = if first_only { Some(false) } else { written };
        Spelling::SentencePiece { space_prefix: self.prefixes_space(), written_space_prefix, scores }
    }

    fn prefixes_space(&self) -> bool {
        let prepends = parts_of(&self.normalizer, "normalizers")
            .iter()
            .any(|step| step["type"] == "Prepend" && step["prepend"] == "▁");
        let metaspace = parts_of(&self.pre_tokenizer, "pretokenizers").iter().any(|step| {
            let never = step["prepend_scheme"] == "never" || step["add_prefix_space"] == Value::Bool(false);
            step["type"] == "Metaspace" && !never
        });
        prepends || metaspace
    }

    fn sentencepiece_steps(
        &self,
    ) -> Result<(Option<NormalizerWrapper>, Option<PreTokenizerWrapper>), String> {
        for step in parts_of(&self.normalizer, "normalizers") {
            let known = ["Prepend", "Replace", "NFC"].into_iter().any(|name| step["type"] == name);
            if !known || !step["pattern"]["Regex"].is_null() {
                return Err(format!("its normalizer {step} is not known"));
            }
        }
        for step in parts_of(&self.pre_tokenizer, "pretokenizers") {
            let known = ["Metaspace", "Split"].into_iter().any(|name| step["type"] == name);
            if !known || !step["pattern"]["Regex"].is_null() {
                return Err(format!("its pre-tokenizer {step} is not known"));
            }
        }
        Ok((working(&self.normalizer)?, working(&self.pre_tokenizer)?))
    }

    fn byte_level(
        &self,
        path: &Path,
        model_vocabulary: &HashMap<String, u32>,
    ) -> Result<(Spelling, Option<NormalizerWrapper>, Option<PreTokenizerWrapper>)> {
        let unusable = |reason: String| Error::Tokenizer { path: path.to_owned(), reason };
        let Some(row) = pre_tokenizer::by_structure(&self.pre_tokenizer, self.model.ignore_merges) else {
            let description = self.pre_tokenizer.to_string().chars().take(400).collect();
            let known = pre_tokenizer::known_names();
            return Err(Error::UnknownPreTokenizer { path: path.to_owned(), description, known });
        };
        if let Some(step) =
            parts_of(&self.normalizer, "normalizers").iter().find(|step| step["type"] != "NFC")
        {
            return Err(unusable(format!("its normalizer {step} is not known")));
        }
        let has_token = |token: &str| model_vocabulary.contains_key(token);
        let spelling = Spelling::ByteLevel { pre: row.name(has_token).to_owned(), adds_bos: row.adds_bos };
        let pre_tokenizer = row.build().map_err(|error| unusable(error.to_string()))?;
        Ok((spelling, working(&self.normalizer).map_err(unusable)?, Some(pre_tokenizer)))
    }
}

/// The score that llama.cpp's converter gives to added tokens.
pub(crate) const ADDED_SCORE: f32 = -1000.0;
/// The score that llama.cpp's converter gives to rows without a token.
pub(crate) const PADDING_SCORE: f32 = -10000.0;

/// The steps of a normalizer or pre-tokenizer: those of a sequence, itself, or none.
fn parts_of<'a>(step: &'a Value, key: &str) -> Vec<&'a Value> {
    match step["type"].as_str() {
        None => Vec::new(),
        Some("Sequence") => step[key].as_array().into_iter().flatten().collect(),
        Some(_) => vec![step],
    }
}

fn working<T: for<'de> Deserialize<'de>>(description: &Value) -> Result<Option<T>, String> {
    if description.is_null() {
        return Ok(None);
    }
    T::deserialize(description).map(Some).map_err(|error| error.to_string())
}

/// The tokenizer's own end token, then those of generation_config.json and config.json.
fn ends(special: &SpecialTokens, beside: &Beside) -> Vec<u32> {
    let listed = [&beside.generation_config, &beside.config].map(|file| match &file["eos_token_id"] {
        Value::Array(ids) => ids.iter().filter_map(Value::as_u64).collect(),
        id => Vec::from_iter(id.as_u64()),
    });
    let mut ends = Vec::from_iter(special.id("eos"));
    for id in listed.into_iter().flatten().filter_map(|id| u32::try_from(id).ok()) {
        if !ends.contains(&id) {
            ends.push(id);
        }
    }
    ends
}
