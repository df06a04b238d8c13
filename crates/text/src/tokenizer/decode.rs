//! Token ids to text, all at once or as they come.

use super::vocabulary::{byte_of, spelt_bytes};
use super::{Kind, Spelling, Tokenizer};

/// Which tokens have a text.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Show {
    Text,
    ControlToo,
}

impl Tokenizer {
    /// The text of `ids` without control tokens.
    pub fn decode(&self, ids: &[u32]) -> String {
        self.decode_showing(ids, Show::Text)
    }

    /// The text of `ids`, control tokens included.
    pub fn decode_with_special(&self, ids: &[u32]) -> String {
        self.decode_showing(ids, Show::ControlToo)
    }

    /// A decoder for tokens as they are generated; control tokens give no text.
    pub fn stream(&self) -> DecodeStream<'_> {
        DecodeStream { tokenizer: self, pending: Vec::new(), at_start: true }
    }

    fn decode_showing(&self, ids: &[u32], show: Show) -> String {
        let mut bytes = Vec::with_capacity(4 * ids.len());
        for &id in ids {
            self.push_bytes(id, show, &mut bytes);
        }
        let text = String::from_utf8_lossy(&bytes);
        let text = if self.strips_first_space() { text.strip_prefix(' ').unwrap_or(&text) } else { &text };
        text.to_owned()
    }

    fn push_bytes(&self, id: u32, show: Show, bytes: &mut Vec<u8>) {
        let Some(token) = self.token(id) else { return };
        let kind = self.vocabulary.kind(id);
        match (&self.spelling, kind) {
            (_, Kind::Control | Kind::Unknown) if show == Show::Text => {}
            (_, Kind::Control | Kind::Unknown | Kind::Unused) => bytes.extend(token.as_bytes()),
            (Spelling::ByteLevel { .. }, Kind::UserDefined) => bytes.extend(token.as_bytes()),
            (Spelling::ByteLevel { .. }, _) => match spelt_bytes(token) {
                Some(spelt) => bytes.extend(spelt),
                None => bytes.extend(token.as_bytes()),
            },
            (Spelling::SentencePiece { .. }, Kind::Byte) => bytes.extend(byte_of(token)),
            (Spelling::SentencePiece { .. }, _) => bytes.extend(token.replace('▁', " ").as_bytes()),
        }
    }

    /// The space that encoding put in front of a text is not part of it.
    fn strips_first_space(&self) -> bool {
        matches!(self.spelling, Spelling::SentencePiece { space_prefix: true, .. })
    }
}

/// Decodes generated tokens one by one and only ever yields whole UTF-8 characters.
#[derive(Debug)]
pub struct DecodeStream<'a> {
    tokenizer: &'a Tokenizer,
    pending: Vec<u8>,
    at_start: bool,
}

impl DecodeStream<'_> {
    /// Takes the next token; gives the text that became complete with it, if any. All pieces together, with
    /// [`DecodeStream::finish`], are what [`Tokenizer::decode`] gives for all tokens.
    pub fn push(&mut self, id: u32) -> Option<String> {
        self.tokenizer.push_bytes(id, Show::Text, &mut self.pending);
        if self.pending.is_empty() {
            return None;
        }
        let mut text = String::new();
        let mut taken = 0;
        for chunk in self.pending.utf8_chunks() {
            let is_last = taken + chunk.valid().len() + chunk.invalid().len() == self.pending.len();
            text.push_str(chunk.valid());
            taken += chunk.valid().len();
            let waits = is_last && may_be_completed(chunk.invalid());
            if !chunk.invalid().is_empty() && !waits {
                text.push(char::REPLACEMENT_CHARACTER);
                taken += chunk.invalid().len();
            }
        }
        self.pending.drain(..taken);
        self.release(text)
    }

    /// What is left at the end: bytes that never became a character, as U+FFFD.
    pub fn finish(mut self) -> Option<String> {
        let rest = String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned();
        self.release(rest)
    }

    fn release(&mut self, mut text: String) -> Option<String> {
        if text.is_empty() {
            return None;
        }
        if std::mem::take(&mut self.at_start) && self.tokenizer.strips_first_space() && text.starts_with(' ')
        {
            text.remove(0);
        }
        (!text.is_empty()).then_some(text)
    }
}

/// Whether more bytes could make a character of these.
fn may_be_completed(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}
