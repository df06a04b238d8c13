//! Validation loss, and exact match of greedy answers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use formats::observe::Observer;
use model::generate::{Capacity, Generator, SamplerOptions};
use model::{Adapter, Base, Batch, Device, LossSum, TrainStep};
use text::Tokenizer;

use crate::data::batches::{Packed, cut};
use crate::data::corpus::Corpus;
use crate::data::dataset::Question;
use crate::error::Result;
use crate::event::{Event, ExactMatch, Weights};

/// Questions that decode side by side.
const SIDE_BY_SIDE: usize = 16;

/// Mean negative log-likelihood of a target token over some rows.
///
/// # Errors
/// What the model meets.
pub fn validation_loss<D: Device>(
    step: &mut TrainStep<D>,
    adapter: Option<&Adapter<D>>,
    corpus: &Corpus,
    rows: &[usize],
    max_tokens: usize,
    packed: &mut Packed,
) -> Result<f64> {
    let mut sum = LossSum::default();
    for group in cut(rows, usize::MAX, max_tokens, corpus) {
        packed.fill(group, corpus);
        sum += step.evaluate(adapter, &packed.batch())?;
    }
    Ok(sum.mean())
}

impl Packed {
    /// The batch as the model takes it.
    pub fn batch(&self) -> Batch<'_> {
        Batch {
            tokens: &self.tokens,
            targets: &self.targets,
            positions: &self.positions,
            sequence_starts: &self.sequence_starts,
        }
    }
}

/// Asks questions and compares the answers.
pub struct Examination<'a> {
    /// What is asked; the first ones may be shown.
    pub questions: &'a [Question],
    /// How many count for exact match.
    pub n_exact_match: usize,
    /// How many are shown.
    pub n_samples: usize,
    /// Tokens at which an answer ends.
    pub stop: &'a [u32],
    /// Longest answer.
    pub max_new_tokens: usize,
    /// Most tokens of prompt and answer that the base handles.
    pub max_positions: usize,
    /// Tokens to text.
    pub tokenizer: &'a Tokenizer,
}

impl Examination<'_> {
    /// What a generator must hold; nothing when there is no question.
    pub fn capacity(&self) -> Option<Capacity> {
        let longest = self.questions.iter().map(|question| question.prompt.len()).max()?;
        let n_tokens = longest.saturating_add(self.max_new_tokens).min(self.max_positions);
        Some(Capacity { n_sequences: SIDE_BY_SIDE.min(self.questions.len()), n_tokens })
    }

    /// Asks everything of base or adapter; `None` when cancelled, or when nothing counts for exact match.
    ///
    /// # Errors
    /// What the model meets.
    pub fn ask<D: Device>(
        &self,
        base: &Base<D>,
        adapter: Option<&Adapter<D>>,
        observer: &mut dyn Observer<Event>,
        cancel: &AtomicBool,
    ) -> Result<Option<ExactMatch>> {
        let Some(capacity) = self.capacity() else { return Ok(None) };
        let weights = if adapter.is_some() { Weights::Adapter } else { Weights::Base };
        let (started, total) = (Instant::now(), self.questions.len());
        let mut generator = Generator::new(base, capacity)?;
        let (mut matched, mut done) = (0, 0);
        for group in self.questions.chunks(SIDE_BY_SIDE) {
            if cancel.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let prompts: Vec<_> = group.iter().map(|question| question.prompt.clone()).collect();
            let answers = generator.generate_batch(
                adapter,
                &prompts,
                self.stop,
                &SamplerOptions::GREEDY,
                self.max_new_tokens,
            )?;
            for (question, answer) in group.iter().zip(answers) {
                let answer = self.tokenizer.decode(&answer.ids);
                let is_match = answer.trim() == question.expected.trim();
                matched += usize::from(is_match && done < self.n_exact_match);
                if done < self.n_samples {
                    observer.observe(sample(weights, question, answer));
                }
                done += 1;
            }
            observer.observe(Event::Answering { weights, done, total });
        }
        if self.n_exact_match == 0 {
            return Ok(None);
        }
        let seconds = started.elapsed().as_secs_f64();
        Ok(Some(ExactMatch { weights, matched, rows: self.n_exact_match, seconds }))
    }
}

fn sample(weights: Weights, question: &Question, answer: String) -> Event {
    Event::Sample { weights, prompt: question.asked.clone(), expected: question.expected.clone(), answer }
}
