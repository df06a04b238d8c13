//! From a text with known control tokens to ids with their places in the text.

use std::ops::Range;

use ahash::AHashMap;
use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizer::Range as At;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::tokenizer::{Model, Normalizer, PreTokenizer, Token};
use tokenizers::{NormalizedString, OffsetType, PreTokenizedString};

use super::Spelling;
use super::added::{AddedTokens, Found};
use super::vocabulary::byte_characters;

/// What turns text into ids: normalise, cut, merge.
#[derive(Debug)]
pub(crate) struct Merger {
    pub normalizer: Option<NormalizerWrapper>,
    pub pre_tokenizer: Option<PreTokenizerWrapper>,
    pub bpe: BPE,
}

type Piece = (NormalizedString, Option<Vec<Token>>);

impl Merger {
    /// The ids of `text`, in which `found` are tokens already.
    pub fn ids(&self, text: &str, added: &AddedTokens, found: &[Found]) -> Vec<u32> {
        self.encode(text, added, found, OffsetType::None).get_ids().to_vec()
    }

    /// The same, each with the bytes of `text` that it stands for.
    pub fn ids_and_places(
        &self,
        text: &str,
        added: &AddedTokens,
        found: &[Found],
    ) -> (Vec<u32>, Vec<Range<usize>>) {
        let encoding = self.encode(text, added, found, OffsetType::Byte);
        let places = encoding.get_offsets().iter().map(|&(start, end)| start..end).collect();
        (encoding.get_ids().to_vec(), places)
    }

    fn encode(
        &self,
        text: &str,
        added: &AddedTokens,
        found: &[Found],
        offsets: OffsetType,
    ) -> tokenizers::Encoding {
        self.try_encode(text, added, found, offsets)
            .expect("loading checked what encoding can fail of: the unknown token, and no dropout")
    }

    fn try_encode(
        &self,
        text: &str,
        added: &AddedTokens,
        found: &[Found],
        offsets: OffsetType,
    ) -> tokenizers::Result<tokenizers::Encoding> {
        let mut pieces = PreTokenizedString::from(text);
        pieces.split(|_, whole| Ok(cut(&whole, found)))?;
        if let Some(normalizer) = &self.normalizer {
            pieces.normalize(|piece| normalizer.normalize(piece))?;
        }
        if added.finds_normalized() {
            pieces.split(|_, piece| Ok(cut(&piece, &added.find_normalized(piece.get()))))?;
        }
        if let Some(pre_tokenizer) = &self.pre_tokenizer {
            pre_tokenizer.pre_tokenize(&mut pieces)?;
        }
        pieces.tokenize(|piece| self.bpe.tokenize(piece.get()))?;
        pieces.into_encoding(None, 0, offsets)
    }
}

/// Cuts a text at the tokens found in it.
fn cut(text: &NormalizedString, found: &[Found]) -> Vec<Piece> {
    let slice =
        |range: Range<usize>| text.slice(At::Normalized(range)).expect("found tokens lie on characters");
    let mut pieces = Vec::with_capacity(2 * found.len() + 1);
    let mut from = 0;
    for Found { id, range } in found {
        if from < range.start {
            pieces.push((slice(from..range.start), None));
        }
        let piece = slice(range.clone());
        let token = Token::new(*id, piece.get().to_owned(), (0, range.len()));
        pieces.push((piece, Some(vec![token])));
        from = range.end;
    }
    if from < text.len() {
        pieces.push((slice(from..text.len()), None));
    }
    pieces
}

impl Merger {
    /// The id of a token that text can become by merging.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.bpe.token_to_id(token)
    }
}

/// The merging part of a tokenizer.
pub(crate) fn build(parts: &super::Parts) -> Result<BPE, String> {
    let all = parts.merges.iter().map(|merge| {
        let (left, right) =
            merge.split_once(' ').ok_or_else(|| format!("merge `{merge}` is not two tokens"))?;
        Ok((left.to_owned(), right.to_owned()))
    });
    let merges = all.collect::<Result<Vec<_>, String>>()?;
    match with_merges(parts, merges) {
        Err(Failure::UnknownMerge) => with_merges(parts, known_merges(parts)).map_err(Failure::reason),
        built => built.map_err(Failure::reason),
    }
}

/// Why there is no merging part.
enum Failure {
    /// Merges join or give what is no token of ordinary text.
    UnknownMerge,
    Other(String),
}

impl Failure {
    fn reason(self) -> String {
        match self {
            Failure::UnknownMerge => "a merge is not of known tokens".to_owned(),
            Failure::Other(reason) => reason,
        }
    }
}

fn with_merges(parts: &super::Parts, merges: Vec<(String, String)>) -> Result<BPE, Failure> {
    let mut tokens: Vocab = parts.mergeable().map(|(token, id)| (token.to_owned(), id)).collect();
    if let Some(missing) = missing_byte(&parts.spelling, &tokens) {
        let reason = format!("no token for the byte 0x{missing:02X}, text that has it would be lost");
        return Err(Failure::Other(reason));
    }
    let unknown =
        parts.unknown.as_deref().filter(|_| matches!(parts.spelling, Spelling::SentencePiece { .. }));
    if let Some(unknown) = unknown {
        let Some(id) = parts.vocabulary.tokens.iter().position(|token| token == unknown) else {
            return Err(Failure::Other(format!("the unknown token `{unknown}` is not in it")));
        };
        tokens.insert(unknown.to_owned(), id as u32);
    }
    let mut builder = BPE::builder().vocab_and_merges(tokens, merges).ignore_merges(parts.ignore_merges);
    if let Some(unknown) = unknown {
        builder = builder.unk_token(unknown.to_owned()).fuse_unk(true).byte_fallback(true);
    }
    builder.build().map_err(|error| match error.downcast_ref::<tokenizers::models::bpe::Error>() {
        Some(tokenizers::models::bpe::Error::MergeTokenOutOfVocabulary(_)) => Failure::UnknownMerge,
        _ => Failure::Other(error.to_string()),
    })
}

/// The merges whose parts and result are all tokens of ordinary text.
fn known_merges(parts: &super::Parts) -> Vec<(String, String)> {
    let tokens: AHashMap<&str, u32> = parts.mergeable().collect();
    let mut joined = String::new();
    let mut is_known = |&(left, right): &(&str, &str)| {
        joined.clear();
        joined.extend([left, right]);
        [left, right, &joined].iter().all(|token| tokens.contains_key(token))
    };
    let pairs = parts.merges.iter().filter_map(|merge| merge.split_once(' '));
    pairs.filter(|pair| is_known(pair)).map(|(left, right)| (left.to_owned(), right.to_owned())).collect()
}

/// A byte of ordinary text that no token spells. Bytes of control characters, and those that only open
/// characters of the highest planes, are missing in several published vocabularies.
fn missing_byte(spelling: &Spelling, tokens: &Vocab) -> Option<u8> {
    let is_ordinary = |byte: &u8| matches!(byte, b'\t' | b'\n' | 0x20..=0x7E | 0x80..=0xBF | 0xC2..=0xF0);
    let is_missing = |byte: &u8| match spelling {
        Spelling::ByteLevel { .. } => {
            let character = byte_characters()[usize::from(*byte)];
            !tokens.contains_key(character.encode_utf8(&mut [0; 4]) as &str)
        }
        Spelling::SentencePiece { .. } => !tokens.contains_key(format!("<0x{byte:02X}>").as_str()),
    };
    (0..=u8::MAX).filter(is_ordinary).find(is_missing)
}
