//! Held-out rows as they are measured: token ids with their targets, and the question whose answer is compared.

use std::path::{Path, PathBuf};

use text::{Chat, Conversation};

use crate::data::dataset::{Dataset, Question, question};
use crate::data::encoder::{Encoded, Fate, RowEncoder};
use crate::data::reader::{Place, Readers};
use crate::data::row::Row;
use crate::data::up_to_last_answer;
use crate::error::{Error, Result};
use crate::options::{DataOptions, OnTooLong, Source};
use crate::subject::Subject;

/// Keys by which rows are grouped where nobody names one.
const GROUP_KEYS: [&str; 2] = ["task", "category"];

/// One row.
#[derive(Debug, Clone)]
pub struct HeldOut {
    /// Its file.
    pub path: PathBuf,
    /// Its line in the file, from 1.
    pub line: u64,
    /// What it is grouped by, where it has that.
    pub group: Option<String>,
    /// Its tokens.
    pub ids: Vec<u32>,
    /// How much each of them counts for the loss, as it would in training; 0 for what is only given.
    pub weights: Vec<f32>,
    /// What is asked, of a conversation.
    pub question: Option<Question>,
    /// The conversation up to its last answer; empty of a text.
    pub conversation: Conversation,
}

impl HeldOut {
    /// Tokens that are predicted; the first one is given.
    pub fn n_targets(&self) -> usize {
        self.weights.iter().skip(1).filter(|&&weight| weight > 0.0).count()
    }

    /// Their weights, added up.
    pub fn target_weight(&self) -> f64 {
        self.weights.iter().skip(1).map(|&weight| f64::from(weight)).sum()
    }

    /// What is said before the answer.
    pub fn before_answer(&self) -> Chat<'_> {
        self.conversation.first(self.conversation.messages.len().saturating_sub(1))
    }
}

/// The rows that all contenders are measured on.
#[derive(Debug, Clone)]
pub struct Rows {
    /// The files.
    pub paths: Vec<PathBuf>,
    /// Rows of a validation split rather than of a file of their own.
    pub is_validation: bool,
    /// The rows.
    pub rows: Vec<HeldOut>,
    /// Rows left out, since the base does not handle so many tokens.
    pub n_too_long: usize,
}

impl Rows {
    /// The first `limit` rows of a file, or where none is named of the run's test files, one of each after the other, or else
    /// of its validation rows; grouped by the value of `by`.
    ///
    /// # Errors
    /// Whatever is wrong with a row; [`Error::NoRows`] when none is left, or there are none to begin with.
    pub fn read(subject: &Subject, data: Option<&Path>, limit: usize, by: Option<&str>) -> Result<Rows> {
        let options = &subject.options.data;
        let kept = DataOptions {
            max_seq_len: subject.max_positions(),
            on_too_long: OnTooLong::Drop,
            ..options.clone()
        };
        let encoder = RowEncoder::new(subject.tokenizer(), subject.template(), &kept);
        let reading = Reading { subject, encoder, by };
        let named: Vec<Source> = data.map(Source::new).into_iter().collect();
        match (named.as_slice(), options.test.as_slice()) {
            ([], []) => reading.validation(limit),
            ([], sources) | (sources, _) => reading.files(sources, limit),
        }
    }

    /// Tokens that a generator must hold for the longest row and answer.
    pub fn longest(&self, max_new_tokens: usize, max_positions: usize) -> usize {
        let tokens = |row: &HeldOut| {
            let question = row.question.as_ref().map_or(0, |question| question.prompt.len() + max_new_tokens);
            row.ids.len().max(question)
        };
        self.rows.iter().map(tokens).max().unwrap_or(1).min(max_positions)
    }
}

struct Reading<'a> {
    subject: &'a Subject,
    encoder: RowEncoder<'a>,
    by: Option<&'a str>,
}

impl Reading<'_> {
    fn files(&self, sources: &[Source], limit: usize) -> Result<Rows> {
        let mut rows = Rows::of(sources, false);
        let mut readers = Readers::open(sources)?;
        while rows.rows.len() < limit {
            let Some((source, place, bytes)) = readers.next_row()? else { break };
            self.push(&mut rows, source, place, &bytes)?;
        }
        rows.check(&sources[0].path)
    }

    fn validation(&self, limit: usize) -> Result<Rows> {
        let options = &self.subject.options;
        if options.data.train.is_empty() {
            let reason = "there are no held-out rows to measure on".to_owned();
            return Err(Error::NoRows { path: self.subject.files.path.clone(), reason });
        }
        let dataset = Dataset::read(options, &self.subject.files)?;
        let sources = match options.data.validation.as_slice() {
            [] => &options.data.train,
            validation => validation,
        };
        let mut rows = Rows::of(sources, true);
        let examples = &dataset.validation_rows[..limit.min(dataset.validation_rows.len())];
        for (source, place, bytes) in dataset.validation_corpus().bytes_again(examples)? {
            self.push(&mut rows, source, place, &bytes)?;
        }
        rows.check(&sources[0].path)
    }

    fn push(&self, rows: &mut Rows, source: &Source, place: Place, bytes: &[u8]) -> Result<()> {
        let (row, path) = (Row::parse(source, place, bytes)?, &source.path);
        let fate = self.encoder.encode(&row);
        let fate = fate.map_err(|reason| Error::Row { path: path.clone(), line: place.line, reason })?;
        let encoded = match fate {
            Fate::Kept(encoded) | Fate::Truncated(encoded) => encoded,
            Fate::Dropped | Fate::TooLong { .. } => {
                rows.n_too_long += 1;
                return Ok(());
            }
        };
        // Of two answers the better one is the reference.
        let Some(encoded) = encoded.into_iter().next() else { return Ok(()) };
        let conversation = match row {
            Row::Chat(chat) => Some(chat.conversation),
            Row::Preference(preference) => preference.both().into_iter().next(),
            Row::Text(_) => None,
        };
        let conversation = conversation.map(up_to_last_answer).unwrap_or_default();
        rows.rows.push(HeldOut {
            path: path.clone(),
            line: place.line,
            group: group(bytes, self.by),
            weights: weights(&encoded),
            ids: encoded.ids,
            question: question(&self.subject.files, &conversation)?,
            conversation,
        });
        Ok(())
    }
}

fn weights(encoded: &Encoded) -> Vec<f32> {
    let weight = |at: usize| encoded.weights.get(at).copied().unwrap_or(1.0);
    let marks = encoded.is_target.iter().enumerate();
    marks.map(|(at, &is_target)| if is_target { weight(at) } else { 0.0 }).collect()
}

impl Rows {
    fn of(sources: &[Source], is_validation: bool) -> Rows {
        let paths = sources.iter().map(|source| source.path.clone()).collect();
        Rows { paths, is_validation, rows: Vec::new(), n_too_long: 0 }
    }

    fn check(self, first: &Path) -> Result<Rows> {
        if !self.rows.is_empty() {
            return Ok(self);
        }
        let reason = match self.n_too_long {
            0 => "there are no held-out rows to measure on".to_owned(),
            n => format!("all {n} rows are longer than the base handles"),
        };
        Err(Error::NoRows { path: first.to_owned(), reason })
    }
}

/// The value of the first key that the row has; what is neither text, number nor truth is no group.
fn group(bytes: &[u8], by: Option<&str>) -> Option<String> {
    let row: serde_json::Value = serde_json::from_slice(bytes).ok()?;
    let keys = by.map_or(GROUP_KEYS.to_vec(), |key| vec![key]);
    keys.into_iter().find_map(|key| match row.get(key)? {
        serde_json::Value::String(text) => Some(text.clone()),
        value @ (serde_json::Value::Number(_) | serde_json::Value::Bool(_)) => Some(value.to_string()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::group;

    #[test]
    fn a_row_is_of_the_group_that_its_key_names() {
        let row = br#"{"text":"x","category":"b","level":3,"list":[1]}"#;
        let found = |by| group(row, by);
        assert_eq!(found(None).as_deref(), Some("b"));
        assert_eq!(found(Some("level")).as_deref(), Some("3"));
        assert_eq!([found(Some("list")), found(Some("absent"))], [None, None]);
    }
}
