//! All rows of a run: those trained on, those for the validation loss, those whose answers are compared.

use text::Conversation;

use super::corpus::{Corpus, blake3_of_all};
use super::encoder::RowEncoder;
use super::order::split;
use super::row::Row;
use super::row_cache::RowCache;
use super::{conversations, up_to_last_answer};
use crate::base_files::BaseFiles;
use crate::error::{Error, Result};
use crate::event::DataSummary;
use crate::options::Options;
use crate::record::Inputs;

/// A held-out row as a question and its reference answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// The conversation up to where the assistant is to answer, as token ids.
    pub prompt: Vec<u32>,
    /// The last message before the answer, for display.
    pub asked: String,
    /// The reference.
    pub expected: String,
}

/// All rows of a run.
pub struct Dataset {
    /// The training files; holds the validation rows too, unless they have files of their own.
    pub corpus: Corpus,
    /// Examples of `corpus` that are trained on.
    pub train_rows: Vec<usize>,
    /// The validation files, where there are some.
    pub validation: Option<Corpus>,
    /// Examples of the validation loss, in `validation` or else in `corpus`.
    pub validation_rows: Vec<usize>,
    /// Rows whose answers are compared; the first ones are shown.
    pub questions: Vec<Question>,
    /// How many of the questions count for exact match; the others are only shown.
    pub n_exact_match: usize,
}

impl Dataset {
    /// Reads, encodes and splits everything.
    ///
    /// # Errors
    /// Whatever is wrong with a file or row; [`Error::NeverStops`], [`Error::PositionsExceeded`].
    pub fn read(options: &Options, base: &BaseFiles) -> Result<Self> {
        let encoder = RowEncoder::new(&base.tokenizer, base.template.as_ref(), &options.data);
        let text_blake3 = || base.text_blake3();
        let cache = RowCache::new(&options.cache, &text_blake3);
        let corpus = cache.read(&options.data.train, &encoder, base.end_of_turn)?;
        check_end_of_turn(&corpus, base)?;
        let validation = match options.data.validation.as_slice() {
            [] => None,
            sources => Some(cache.read(sources, &encoder, base.end_of_turn)?),
        };
        let (train_rows, validation_rows) = match &validation {
            Some(validation) => ((0..corpus.n_examples()).collect(), (0..validation.n_examples()).collect()),
            None => split(corpus.n_examples(), options.data.val_split, options.train.seed),
        };
        let mut dataset =
            Self { corpus, train_rows, validation, validation_rows, questions: Vec::new(), n_exact_match: 0 };
        dataset.check_positions(base)?;
        dataset.read_questions(options, base)?;
        Ok(dataset)
    }

    /// The corpus that [`Dataset::validation_rows`] points into.
    pub fn validation_corpus(&self) -> &Corpus {
        self.validation.as_ref().unwrap_or(&self.corpus)
    }

    /// What went wrong in reading that is no reason to stop.
    pub fn warnings(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.corpus).chain(&self.validation).filter_map(|corpus| corpus.warning.as_deref())
    }

    /// Tokens of the longest row that enters the model.
    pub fn longest_row(&self) -> usize {
        let longest = |corpus: &Corpus| (0..corpus.n_rows()).map(|row| corpus.n_inputs(row)).max();
        longest(&self.corpus).max(self.validation.as_ref().and_then(longest)).unwrap_or(0)
    }

    /// Tokens of the longest example that enters the model: of its rows together, which are run in one batch.
    pub fn longest_example(&self) -> usize {
        let longest = |corpus: &Corpus| {
            let tokens = |example| corpus.rows_of(&[example]).iter().map(|&row| corpus.n_inputs(row)).sum();
            (0..corpus.n_examples()).map(tokens).max()
        };
        longest(&self.corpus).max(self.validation.as_ref().and_then(longest)).unwrap_or(0)
    }

    /// Figures for the user.
    pub fn summary(&self) -> DataSummary {
        let rows = self.corpus.rows_of(&self.train_rows);
        let validation = self.validation.as_ref();
        DataSummary {
            train_rows: self.train_rows.len(),
            validation_rows: self.validation_rows.len(),
            test_rows: self.n_exact_match,
            dropped_rows: self.corpus.tally.dropped_rows
                + validation.map_or(0, |corpus| corpus.tally.dropped_rows),
            truncated_rows: self.corpus.tally.truncated_rows
                + validation.map_or(0, |corpus| corpus.tally.truncated_rows),
            bad_rows: self.corpus.tally.bad_rows + validation.map_or(0, |corpus| corpus.tally.bad_rows),
            named_bad_rows: {
                let corpora = std::iter::once(&self.corpus).chain(validation);
                corpora.flat_map(|corpus| corpus.tally.named_bad_rows.iter().cloned()).collect()
            },
            duplicate_rows: self.corpus.tally.duplicate_rows,
            train_tokens: rows.iter().map(|&row| self.corpus.ids(row).len() as u64).sum(),
            target_tokens: rows.iter().map(|&row| self.corpus.n_targets(row) as u64).sum(),
            longest_row_tokens: self.longest_row() + 1,
        }
    }

    /// Fills in the hashes of the data files.
    ///
    /// # Errors
    /// What reading meets.
    pub fn hash_into(&self, inputs: &mut Inputs, options: &Options) -> Result<()> {
        inputs.dataset = self.corpus.tally.blake3.clone();
        inputs.validation =
            self.validation.as_ref().map(|corpus| corpus.tally.blake3.clone()).unwrap_or_default();
        inputs.test = match options.data.test.as_slice() {
            [] => String::new(),
            [source] => formats::hash::blake3_file(&source.path)?,
            sources => blake3_of_all(sources)?.0,
        };
        Ok(())
    }

    fn check_positions(&self, base: &BaseFiles) -> Result<()> {
        let (tokens, max_positions) = (self.longest_row(), base.config.max_positions);
        if tokens <= max_positions {
            return Ok(());
        }
        Err(Error::PositionsExceeded { base: base.path.clone(), tokens, max_positions })
    }

    /// Test rows where there are test files, otherwise validation rows.
    fn read_questions(&mut self, options: &Options, base: &BaseFiles) -> Result<()> {
        let wanted = options.eval.exact_match_rows.max(options.eval.samples).max(options.eval.samples_each);
        let rows = match options.data.test.as_slice() {
            [] => self.held_out_conversations(wanted)?,
            sources => conversations(sources, wanted)?,
        };
        for conversation in rows {
            self.questions.extend(question(base, &conversation)?);
        }
        self.n_exact_match = options.eval.exact_match_rows.min(self.questions.len());
        Ok(())
    }

    fn held_out_conversations(&self, wanted: usize) -> Result<Vec<Conversation>> {
        let first = &self.validation_rows[..wanted.min(self.validation_rows.len())];
        let rows = self.validation_corpus().read_again(first)?.into_iter();
        Ok(rows.filter_map(Row::into_conversation).map(up_to_last_answer).collect())
    }
}

/// The question and reference of a conversation that ends with an answer; `None` without a template.
pub(crate) fn question(base: &BaseFiles, conversation: &Conversation) -> Result<Option<Question>> {
    let (Some(template), Some((answer, before))) = (&base.template, conversation.messages.split_last())
    else {
        return Ok(None);
    };
    let prompt = text::encode_prompt(&base.tokenizer, template, conversation.first(before.len()))?;
    let asked = before.last().map(|message| message.content.clone()).unwrap_or_default();
    let (tokens, max_positions) = (prompt.len() + 1, base.config.max_positions);
    if tokens > max_positions {
        return Err(Error::PositionsExceeded { base: base.path.clone(), tokens, max_positions });
    }
    Ok(Some(Question { prompt, asked, expected: answer.content.clone() }))
}

/// A model that never sees the end of a turn never learns to stop.
fn check_end_of_turn(corpus: &Corpus, base: &BaseFiles) -> Result<()> {
    match base.end_of_turn {
        Some(token) if corpus.kind() != "text" && !corpus.tally.has_end_of_turn => {
            Err(Error::NeverStops { token: base.tokenizer.decode_with_special(&[token]) })
        }
        _ => Ok(()),
    }
}
