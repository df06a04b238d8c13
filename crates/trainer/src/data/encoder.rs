//! One row to token ids and loss mask, within the recipe's length.

use text::{ChatTemplate, Tokenizer};

use super::row::{Chat, Preference, Row};
use crate::options::{DataOptions, OnTooLong, TrainOn};

/// What became of a row.
#[derive(Debug, PartialEq)]
pub enum Fate {
    /// It is trained on.
    Kept(Vec<Encoded>),
    /// Its end was cut off.
    Truncated(Vec<Encoded>),
    /// It was left out: too long, or nothing to learn was left after the cut.
    Dropped,
    /// It is too long and the recipe wants to know.
    TooLong {
        /// Its length.
        tokens: usize,
    },
}

/// A sequence of tokens: one of a conversation or text, one for each answer of a preference.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Encoded {
    /// The tokens.
    pub ids: Vec<u32>,
    /// Whether token i is to be predicted.
    pub is_target: Vec<bool>,
    /// How much each token counts as a target; empty where all count alike.
    pub weights: Vec<f32>,
}

/// Turns rows into token ids by the base's tokenizer and template.
pub struct RowEncoder<'a> {
    tokenizer: &'a Tokenizer,
    template: Option<&'a ChatTemplate>,
    options: &'a DataOptions,
}

impl<'a> RowEncoder<'a> {
    /// An encoder; a base without a template can only be trained on plain text.
    pub fn new(
        tokenizer: &'a Tokenizer,
        template: Option<&'a ChatTemplate>,
        options: &'a DataOptions,
    ) -> Self {
        Self { tokenizer, template, options }
    }

    /// The recipe's words on the data.
    pub fn options(&self) -> &DataOptions {
        self.options
    }

    /// Encodes a row; `Err` says what is wrong with it, to be completed by file and line.
    pub fn encode(&self, row: &Row) -> std::result::Result<Fate, String> {
        let encoded = match row {
            Row::Text(text) => vec![self.encode_text(text)],
            Row::Chat(chat) => vec![self.encode_chat(chat)?],
            Row::Preference(preference) => self.encode_preference(preference)?,
        };
        match encoded.iter().all(Encoded::has_target) {
            true => Ok(self.fit(encoded)),
            false => Err("the row has no token to learn".into()),
        }
    }

    fn encode_chat(&self, chat: &Chat) -> std::result::Result<Encoded, String> {
        let train_on = match &self.options.train_on {
            TrainOn::Assistant if chat.learned_from > 0 => text::TrainOn::From(chat.learned_from),
            TrainOn::Assistant => text::TrainOn::Assistant,
            TrainOn::Last => text::TrainOn::Last,
            TrainOn::All => text::TrainOn::All,
            TrainOn::Roles(roles) => text::TrainOn::Roles(roles),
        };
        let found = self.conversation(&chat.conversation, train_on)?;
        let weights = if chat.weights.is_empty() { Vec::new() } else { weights(&found, &chat.weights)? };
        let text::Encoded { ids, mut is_target, .. } = found;
        for (is_target, &weight) in is_target.iter_mut().zip(&weights) {
            *is_target &= weight > 0.0;
        }
        Ok(Encoded { ids, is_target, weights }.with_plain_weights())
    }

    fn encode_preference(&self, preference: &Preference) -> std::result::Result<Vec<Encoded>, String> {
        let train_on = text::TrainOn::From(preference.prompt.messages.len());
        let encode = |conversation| {
            let text::Encoded { ids, is_target, .. } = self.conversation(&conversation, train_on)?;
            Ok(Encoded { ids, is_target, weights: Vec::new() })
        };
        preference.both().into_iter().map(encode).collect()
    }

    fn conversation(
        &self,
        conversation: &text::Conversation,
        train_on: text::TrainOn<'_>,
    ) -> std::result::Result<text::Encoded, String> {
        let Some(template) = self.template else {
            return Err("the base has no chat template, so it cannot learn conversations; \
                        `data.chat_template` can name a file with one"
                .into());
        };
        text::encode_conversation(self.tokenizer, template, conversation, train_on)
            .map_err(|error| error.to_string())
    }

    /// Plain text is learned whole, but for the token that opens it.
    fn encode_text(&self, text: &str) -> Encoded {
        let (tokenizer, mut ids) = (self.tokenizer, Vec::new());
        ids.extend(tokenizer.bos().filter(|_| tokenizer.adds_bos()));
        ids.extend(tokenizer.encode(text));
        ids.extend(tokenizer.eos().filter(|_| tokenizer.adds_eos()));
        let is_target = (0..ids.len()).map(|index| index > 0).collect();
        Encoded { ids, is_target, weights: Vec::new() }
    }

    fn fit(&self, mut encoded: Vec<Encoded>) -> Fate {
        let limit = self.options.max_seq_len;
        let tokens = encoded.iter().map(|encoded| encoded.ids.len()).max().unwrap_or(0);
        if tokens <= limit {
            return Fate::Kept(encoded);
        }
        match self.options.on_too_long {
            OnTooLong::Error => Fate::TooLong { tokens },
            OnTooLong::Drop => Fate::Dropped,
            OnTooLong::Truncate => {
                encoded.iter_mut().for_each(|encoded| encoded.truncate(limit));
                match encoded.iter().all(Encoded::has_target) {
                    true => Fate::Truncated(encoded),
                    false => Fate::Dropped,
                }
            }
        }
    }
}

/// The weight of each token: that of the message whose turn it is.
fn weights(found: &text::Encoded, of_messages: &[f32]) -> std::result::Result<Vec<f32>, String> {
    let mut weights = vec![1.0; found.ids.len()];
    for turn in &found.turns {
        let Some(weight) = turn.message.and_then(|message| of_messages.get(message)) else {
            return Err(
                "messages have weights, but the template leaves open which message is which turn".into()
            );
        };
        weights[turn.tokens.clone()].fill(*weight);
    }
    Ok(weights)
}

impl Encoded {
    /// The first token has nothing before it that it could be predicted from.
    fn has_target(&self) -> bool {
        self.is_target.iter().skip(1).any(|&is_target| is_target)
    }

    /// Whether it teaches the model to say a token.
    pub fn teaches(&self, token: u32) -> bool {
        self.ids.iter().zip(&self.is_target).any(|(&id, &is_target)| is_target && id == token)
    }

    fn truncate(&mut self, tokens: usize) {
        self.ids.truncate(tokens);
        self.is_target.truncate(tokens);
        self.weights.truncate(tokens);
    }

    /// No weights where every target counts once.
    fn with_plain_weights(mut self) -> Self {
        let counts_once = |(&is_target, &weight): (&bool, &f32)| !is_target || weight == 1.0;
        if self.is_target.iter().zip(&self.weights).all(counts_once) {
            self.weights.clear();
        }
        self
    }
}
