//! Text to token ids and back.

mod added;
mod beside;
mod bpe;
mod decode;
mod gguf;
mod hf;
mod metadata;
mod model_file;
mod pre_tokenizer;
mod sentencepiece;
mod special;
mod vocabulary;

use std::ops::Range;
use std::path::{Path, PathBuf};

pub use decode::DecodeStream;

use added::{AddedTokens, Trust};
use bpe::Merger;
use special::SpecialTokens;
use vocabulary::{Kind, Vocabulary};

/// A model's tokenizer, read from its directory or from a GGUF.
#[derive(Debug)]
pub struct Tokenizer {
    /// Where it was read from, for messages.
    origin: PathBuf,
    vocabulary: Vocabulary,
    /// Merges as `left right`, as they are written into a GGUF.
    merges: Vec<String>,
    spelling: Spelling,
    special: SpecialTokens,
    /// Tokens that end a generation, the first the tokenizer's own.
    ends: Vec<u32>,
    added: AddedTokens,
    merger: Merger,
}

/// How tokens spell bytes.
#[derive(Clone, Debug, PartialEq)]
enum Spelling {
    /// GPT-2's alphabet: a printable character for each byte.
    ByteLevel {
        /// What llama.cpp calls the way text is cut into words.
        pre: String,
        /// Whether BOS goes in front when no file says so.
        adds_bos: bool,
    },
    /// SentencePiece's: `▁` for a space, `<0xAB>` for bytes that no token holds.
    SentencePiece {
        /// Whether a space is put in front of a text.
        space_prefix: bool,
        /// `add_prefix_space` as a file has it.
        written_space_prefix: Option<bool>,
        /// Scores where a file has them; otherwise the merges decide.
        scores: Option<Vec<f32>>,
    },
}

impl Tokenizer {
    /// The file that it was read from: tokenizer.json, or a SentencePiece model.
    pub fn path(&self) -> &Path {
        &self.origin
    }

    /// Encodes data: the text of a control token stays ordinary text; nothing is added in front or behind.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        self.merger.ids(text, &self.added, &self.added.find(text, Trust::Data))
    }

    /// Encodes trusted text, such as a template's output: control tokens are recognised.
    pub fn encode_template(&self, text: &str) -> Vec<u32> {
        self.merger.ids(text, &self.added, &self.added.find(text, Trust::Template))
    }

    /// The id of a token by its exact text.
    pub fn id(&self, token: &str) -> Option<u32> {
        let added = self.added.tokens.iter().find(|added| added.content == token).map(|added| added.id);
        added.or_else(|| self.merger.id(token))
    }

    /// The text of a token as the vocabulary writes it.
    pub fn token(&self, id: u32) -> Option<&str> {
        self.vocabulary.token(id)
    }

    /// The largest id plus one.
    pub fn vocab_size(&self) -> usize {
        self.vocabulary.tokens.len()
    }

    /// Whether `id` is a control token, which is never part of ordinary text.
    pub fn is_special(&self, id: u32) -> bool {
        self.vocabulary.kind(id).is_special()
    }

    /// The token that opens a text.
    pub fn bos(&self) -> Option<u32> {
        self.special.id("bos")
    }

    /// The token that ends a text.
    pub fn eos(&self) -> Option<u32> {
        self.special.id("eos")
    }

    /// The token that fills up a batch, where the model has one.
    pub fn pad(&self) -> Option<u32> {
        self.special.id("pad")
    }

    /// Whether a text is to begin with [`Tokenizer::bos`].
    pub fn adds_bos(&self) -> bool {
        let default = match &self.spelling {
            Spelling::ByteLevel { adds_bos, .. } => *adds_bos,
            Spelling::SentencePiece { .. } => true,
        };
        self.bos().is_some() && self.special.adds("bos").unwrap_or(default)
    }

    /// Whether a text without a template is to end with [`Tokenizer::eos`].
    pub fn adds_eos(&self) -> bool {
        self.eos().is_some() && self.special.adds("eos").unwrap_or(false)
    }

    /// The tokens at which generation stops, as the model's files name them. The token which a template puts
    /// behind an assistant's turn, [`crate::end_of_turn`], is not necessarily among them.
    pub fn end_of_turn_ids(&self) -> &[u32] {
        &self.ends
    }

    /// The control tokens, with their texts.
    pub(crate) fn control_tokens(&self) -> impl Iterator<Item = (u32, &str)> {
        self.added.tokens.iter().filter(|token| token.control).map(|token| (token.id, token.content.as_str()))
    }

    /// Where the text of a control token stands in `text`.
    pub(crate) fn find_control(&self, text: &str) -> impl Iterator<Item = Range<usize>> {
        self.added.find_control(text).into_iter()
    }

    /// Encodes `text` with the control tokens that `guarded`, the same text with `guard` put in here and
    /// there, has; each id with the bytes of `text` it stands for.
    pub(crate) fn encode_guarded(&self, text: &str, guarded: &str, guard: char) -> Placed {
        let found = self.added.find_guarded(text, guarded, guard);
        let (ids, places) = self.merger.ids_and_places(text, &self.added, &found);
        let controls = found.into_iter().filter(|found| self.is_special(found.id));
        Placed { ids, places, controls: controls.map(|found| (found.id, found.range)).collect() }
    }
}

/// Ids with their places in the text.
#[derive(Debug)]
pub(crate) struct Placed {
    pub ids: Vec<u32>,
    pub places: Vec<Range<usize>>,
    /// The control tokens among them, in order.
    pub controls: Vec<(u32, Range<usize>)>,
}

/// The parts of a tokenizer from which the rest follows.
struct Parts {
    origin: PathBuf,
    vocabulary: Vocabulary,
    merges: Vec<String>,
    spelling: Spelling,
    special: SpecialTokens,
    ends: Vec<u32>,
    added: Vec<added::AddedToken>,
    normalizer: Option<tokenizers::normalizers::NormalizerWrapper>,
    pre_tokenizer: Option<tokenizers::pre_tokenizers::PreTokenizerWrapper>,
    /// Whether a word that is a token is taken whole.
    ignore_merges: bool,
    unknown: Option<String>,
}

impl Parts {
    fn assemble(self) -> Result<Tokenizer, String> {
        let bpe = bpe::build(&self)?;
        let added = AddedTokens::new(self.added, self.normalizer.as_ref())?;
        Ok(Tokenizer {
            origin: self.origin,
            vocabulary: self.vocabulary,
            merges: self.merges,
            spelling: self.spelling,
            special: self.special,
            ends: self.ends,
            added,
            merger: Merger { normalizer: self.normalizer, pre_tokenizer: self.pre_tokenizer, bpe },
        })
    }
}

impl Parts {
    /// Tokens that text can become by merging, with their ids: never a control token, or data could spell one.
    fn mergeable(&self) -> impl Iterator<Item = (&str, u32)> {
        let tokens = self.vocabulary.tokens.iter().zip(&self.vocabulary.kinds).zip(0..);
        let usable = tokens.filter(|((token, kind), _)| {
            !token.is_empty() && matches!(kind, Kind::Normal | Kind::Byte | Kind::UserDefined)
        });
        usable.map(|((token, _), id)| (token.as_str(), id))
    }
}
