//! From a text with known control tokens to ids with their places in the text.

use std::collections::HashMap;
use std::ops::Range;

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
    let mut tokens = parts.mergeable();
    if let Some(missing) = missing_byte(&parts.spelling, &tokens) {
        return Err(format!("no token for the byte 0x{missing:02X}, text that has it would be lost"));
    }
    let mut merges = Vec::with_capacity(parts.merges.len());
    for merge in &parts.merges {
        let (left, right) =
            merge.split_once(' ').ok_or_else(|| format!("merge `{merge}` is not two tokens"))?;
        if [left, right, &format!("{left}{right}")].iter().all(|token| tokens.contains_key(token)) {
            merges.push((left.to_owned(), right.to_owned()));
        }
    }
    let unknown =
        parts.unknown.as_deref().filter(|_| matches!(parts.spelling, Spelling::SentencePiece { .. }));
    if let Some(unknown) = unknown {
        let id = parts.vocabulary.tokens.iter().position(|token| token == unknown);
        tokens
            .insert(unknown, id.ok_or_else(|| format!("the unknown token `{unknown}` is not in it"))? as u32);
    }
    let vocabulary = tokens.into_iter().map(|(token, id)| (token.to_owned(), id)).collect::<Vocab>();
    let mut builder = BPE::builder().vocab_and_merges(vocabulary, merges).ignore_merges(parts.ignore_merges);
    if let Some(unknown) = unknown {
        builder = builder.unk_token(unknown.to_owned()).fuse_unk(true).byte_fallback(true);
    }
    builder.build().map_err(|error| error.to_string())
}

/// A byte of ordinary text that no token spells. Bytes of control characters, and those that only open
/// characters of the highest planes, are missing in several published vocabularies.
fn missing_byte(spelling: &Spelling, tokens: &HashMap<&str, u32>) -> Option<u8> {
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
