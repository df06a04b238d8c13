//! Added tokens: texts that are found before anything is cut or merged.

use std::ops::Range;

use aho_corasick::{AhoCorasick, MatchKind};
use tokenizers::NormalizedString;
use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::tokenizer::Normalizer;

/// A token that is found as it is written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct AddedToken {
    pub id: u32,
    pub content: String,
    /// Only between characters that are no part of a word.
    pub single_word: bool,
    /// Takes the white space in front along.
    pub lstrip: bool,
    /// Takes the white space behind along.
    pub rstrip: bool,
    /// Sought in normalised text.
    pub normalized: bool,
    /// A control token, which data can never spell.
    pub control: bool,
}

/// A token that was found in a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub id: u32,
    pub range: Range<usize>,
}

/// What may be found in a text.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trust {
    /// Control tokens too: the text is a template's.
    Template,
    /// No control token: the text is data.
    Data,
}

/// Finds added tokens, the leftmost first and there the longest, as Hugging Face's tokenizers do.
#[derive(Debug)]
pub(crate) struct AddedTokens {
    pub tokens: Vec<AddedToken>,
    raw: Finder,
    normalized: Option<Finder>,
}

#[derive(Debug)]
struct Finder {
    automaton: AhoCorasick,
    token_indices: Vec<usize>,
}

impl Finder {
    fn new(patterns: Vec<(usize, String)>) -> Result<Finder, String> {
        let (token_indices, texts): (Vec<_>, Vec<_>) = patterns.into_iter().unzip();
        let automaton = AhoCorasick::builder()
            .match_kind(MatchKind::LeftmostLongest)
            .build(texts)
            .map_err(|error| format!("added tokens cannot be sought: {error}"))?;
        Ok(Finder { automaton, token_indices })
    }
}

impl AddedTokens {
    /// Control tokens are always sought in the text as it stands: whether a text is one must not depend on
    /// what a normalizer makes of it.
    pub fn new(
        tokens: Vec<AddedToken>,
        normalizer: Option<&NormalizerWrapper>,
    ) -> Result<AddedTokens, String> {
        let is_raw = |token: &AddedToken| token.control || !token.normalized;
        let indexed = || tokens.iter().enumerate().filter(|(_, token)| !token.content.is_empty());
        let raw = indexed().filter(|(_, t)| is_raw(t)).map(|(i, t)| (i, t.content.clone())).collect();
        let mut patterns = Vec::new();
        for (index, token) in indexed().filter(|(_, token)| !is_raw(token)) {
            let mut text = NormalizedString::from(token.content.as_str());
            if let Some(normalizer) = normalizer {
                normalizer.normalize(&mut text).map_err(|error| error.to_string())?;
            }
            patterns.push((index, text.get().to_owned()));
        }
        let normalized = if patterns.is_empty() { None } else { Some(Finder::new(patterns)?) };
        Ok(AddedTokens { raw: Finder::new(raw)?, normalized, tokens })
    }

    /// The tokens of a text that has not been normalised.
    pub fn find(&self, text: &str, trust: Trust) -> Vec<Found> {
        self.stretch(text, self.matches(&self.raw, text, trust))
    }

    /// Where the text of a control token stands, as far as a character can be put inside it.
    pub fn find_control(&self, text: &str) -> Vec<Range<usize>> {
        let matches = self.matches(&self.raw, text, Trust::Template).into_iter();
        let breakable = |token: &AddedToken| token.control && token.content.chars().nth(1).is_some();
        matches.filter(|(index, _)| breakable(&self.tokens[*index])).map(|(_, range)| range).collect()
    }

    /// The tokens of `text`, sought in `guarded`: the same text, with `guard` put in here and there.
    pub fn find_guarded(&self, text: &str, guarded: &str, guard: char) -> Vec<Found> {
        let mut matches = self.matches(&self.raw, guarded, Trust::Template);
        let mut removed = 0;
        let mut guards = guarded.match_indices(guard).map(|(at, _)| at).peekable();
        for (_, range) in &mut matches {
            while guards.next_if(|at| *at < range.start).is_some() {
                removed += guard.len_utf8();
            }
            *range = range.start - removed..range.end - removed;
        }
        self.stretch(text, matches)
    }

    /// The tokens of normalised text.
    pub fn find_normalized(&self, text: &str) -> Vec<Found> {
        let Some(finder) = &self.normalized else { return Vec::new() };
        self.stretch(text, self.matches(finder, text, Trust::Data))
    }

    pub fn finds_normalized(&self) -> bool {
        self.normalized.is_some()
    }

    fn matches(&self, finder: &Finder, text: &str, trust: Trust) -> Vec<(usize, Range<usize>)> {
        finder
            .automaton
            .find_iter(text)
            .map(|found| (finder.token_indices[found.pattern().as_usize()], found.range()))
            .filter(|(index, _)| trust == Trust::Template || !self.tokens[*index].control)
            .collect()
    }

    /// Applies what each token says of its surroundings.
    fn stretch(&self, text: &str, matches: Vec<(usize, Range<usize>)>) -> Vec<Found> {
        let mut found = Vec::with_capacity(matches.len());
        let mut free_from = 0;
        for (index, Range { mut start, mut end }) in matches {
            let token = &self.tokens[index];
            let in_word = text[..start].ends_with(is_word) || text[end..].starts_with(is_word);
            if token.single_word && in_word {
                continue;
            }
            if token.lstrip {
                start = text[..start].trim_end().len().max(free_from);
            }
            if token.rstrip {
                end = text.len() - text[end..].trim_start().len();
            }
            // The white space that this one took may have held the next one's start.
            if start >= free_from {
                free_from = end;
                found.push(Found { id: token.id, range: start..end });
            }
        }
        found
    }
}

fn is_word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}
