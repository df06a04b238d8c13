//! One row to token ids and loss mask, within the recipe's length.

use text::{ChatTemplate, Encoded, Tokenizer};

use super::row::Row;
use crate::options::{DataOptions, OnTooLong, TrainOn};

/// What became of a row.
#[derive(Debug, PartialEq)]
pub enum Fate {
    /// It is trained on.
    Kept(Encoded),
    /// Its end was cut off.
    Truncated(Encoded),
    /// It was left out: too long, or nothing to learn was left after the cut.
    Dropped,
    /// It is too long and the recipe wants to know.
    TooLong {
        /// Its length.
        tokens: usize,
    },
}

/// Turns rows into token ids by the base's tokenizer and template.
pub struct RowEncoder<'a> {
    tokenizer: &'a Tokenizer,
    template: Option<&'a ChatTemplate>,
    train_on: text::TrainOn,
    max_seq_len: usize,
    on_too_long: OnTooLong,
}

impl<'a> RowEncoder<'a> {
    /// An encoder; a base without a template can only be trained on plain text.
    pub fn new(tokenizer: &'a Tokenizer, template: Option<&'a ChatTemplate>, options: &DataOptions) -> Self {
        let train_on = match options.train_on {
            TrainOn::Assistant => text::TrainOn::Assistant,
            TrainOn::Last => text::TrainOn::Last,
            TrainOn::All => text::TrainOn::All,
        };
        Self {
            tokenizer,
            template,
            train_on,
            max_seq_len: options.max_seq_len,
            on_too_long: options.on_too_long,
        }
    }

    /// The longest row that is kept whole.
    pub fn max_seq_len(&self) -> usize {
        self.max_seq_len
    }

    /// Encodes a row; `Err` says what is wrong with it, to be completed by file and line.
    pub fn encode(&self, row: &Row) -> std::result::Result<Fate, String> {
        let encoded = match (row, self.template) {
            (Row::Text(text), _) => self.encode_text(text),
            (Row::Chat(messages), Some(template)) => {
                text::encode_conversation(self.tokenizer, template, messages, self.train_on)
                    .map_err(|error| error.to_string())?
            }
            (Row::Chat(_), None) => {
                return Err("the base has no chat template, so it cannot learn conversations".into());
            }
        };
        if !has_any_target(&encoded) {
            return Err("the row has no token to learn".into());
        }
        Ok(self.fit(encoded))
    }

    /// Plain text is learned whole, but for the token that opens it.
    fn encode_text(&self, text: &str) -> Encoded {
        let (tokenizer, mut ids) = (self.tokenizer, Vec::new());
        ids.extend(tokenizer.bos().filter(|_| tokenizer.adds_bos()));
        ids.extend(tokenizer.encode(text));
        ids.extend(tokenizer.eos().filter(|_| tokenizer.adds_eos()));
        let is_target = (0..ids.len()).map(|index| index > 0).collect();
        Encoded { ids, is_target }
    }

    fn fit(&self, mut encoded: Encoded) -> Fate {
        let tokens = encoded.ids.len();
        if tokens <= self.max_seq_len {
            return Fate::Kept(encoded);
        }
        match self.on_too_long {
            OnTooLong::Error => Fate::TooLong { tokens },
            OnTooLong::Drop => Fate::Dropped,
            OnTooLong::Truncate => {
                encoded.ids.truncate(self.max_seq_len);
                encoded.is_target.truncate(self.max_seq_len);
                if has_any_target(&encoded) { Fate::Truncated(encoded) } else { Fate::Dropped }
            }
        }
    }
}

/// The first token has nothing before it that it could be predicted from.
fn has_any_target(encoded: &Encoded) -> bool {
    encoded.is_target.iter().skip(1).any(|&is_target| is_target)
}

/// Whether a row teaches the model to end its answer.
pub fn has_target(encoded: &Encoded, token: u32) -> bool {
    encoded.ids.iter().zip(&encoded.is_target).any(|(&id, &is_target)| is_target && id == token)
}
