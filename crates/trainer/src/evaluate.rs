//! Validation loss, and exact match of greedy answers.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use formats::observe::Observer;
use model::generate::{Capacity, Generator, Progress, Request, SamplerOptions};
use model::{Adapter, Base, Batch, Device, LossSum, TrainStep};
use text::Tokenizer;

use crate::data::batches::cut;
use crate::data::corpus::Corpus;
use crate::data::dataset::Question;
use crate::data::packed::Packed;
use crate::error::Result;
use crate::event::{Event, ExactMatch, Weights};
use crate::memory_use::Growth;

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
    for group in cut(rows, corpus.rows_per_example(), max_tokens, corpus) {
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
            weights: (!self.weights.is_empty()).then_some(&self.weights),
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
    /// How many are shown before and after training.
    pub n_samples: usize,
    /// How many are shown at each evaluation in between.
    pub n_samples_each: usize,
    /// Tokens at which an answer ends.
    pub stop: &'a [u32],
    /// Longest answer.
    pub max_new_tokens: usize,
    /// Most tokens of prompt and answer that the base handles.
    pub max_positions: usize,
    /// Tokens to text.
    pub tokenizer: &'a Tokenizer,
    /// The memory that the run takes.
    pub growth: &'a Growth,
}

impl Examination<'_> {
    /// What a generator must hold; nothing when there is no question.
    pub fn capacity(&self) -> Option<Capacity> {
        self.capacity_of(self.questions)
    }

    /// The same for the samples in between; nothing when none are shown.
    pub fn samples_capacity(&self) -> Option<Capacity> {
        self.capacity_of(self.samples_each())
    }

    fn samples_each(&self) -> &[Question] {
        &self.questions[..self.n_samples_each.min(self.questions.len())]
    }

    fn capacity_of(&self, questions: &[Question]) -> Option<Capacity> {
        let longest = questions.iter().map(|question| question.prompt.len()).max()?;
        let n_tokens = longest.saturating_add(self.max_new_tokens).min(self.max_positions);
        Some(Capacity { n_sequences: SIDE_BY_SIDE.min(questions.len()), n_tokens })
    }

    /// Answers the samples of an evaluation after `step` steps; does nothing when none are wanted.
    ///
    /// # Errors
    /// What the model meets.
    pub fn show<D: Device>(
        &self,
        base: &Arc<Base<D>>,
        step: u64,
        adapter: &Adapter<D>,
        observer: &mut dyn Observer<Event>,
        cancel: &AtomicBool,
    ) -> Result<()> {
        let (Some(capacity), questions) = (self.samples_capacity(), self.samples_each()) else {
            return Ok(());
        };
        let mut generator = Generator::new(base.clone(), Some(adapter.options()), capacity)?;
        let by = (Some(adapter), Weights::Adapter);
        let answers = self.answers(&mut generator, questions, by, observer, cancel)?;
        self.growth.sample();
        if cancel.load(Ordering::Relaxed) {
            return Ok(());
        }
        let total = questions.len();
        observer.observe(Event::Answering { weights: Weights::Adapter, done: total, total });
        for (question, answer) in questions.iter().zip(answers) {
            observer.observe(sample(step, Weights::Adapter, question, answer));
        }
        Ok(())
    }

    /// Asks everything of the base, which may need an adapter to be itself, or of the trained adapter; `None` when cancelled, or when nothing counts for exact match.
    ///
    /// # Errors
    /// What the model meets.
    pub fn ask<D: Device>(
        &self,
        base: &Arc<Base<D>>,
        (weights, step): (Weights, u64),
        adapter: Option<&Adapter<D>>,
        observer: &mut dyn Observer<Event>,
        cancel: &AtomicBool,
    ) -> Result<Option<ExactMatch>> {
        let Some(capacity) = self.capacity() else { return Ok(None) };
        let started = Instant::now();
        let mut generator = Generator::new(base.clone(), adapter.map(Adapter::options), capacity)?;
        let answers = self.answers(&mut generator, self.questions, (adapter, weights), observer, cancel)?;
        self.growth.sample();
        if cancel.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let total = self.questions.len();
        observer.observe(Event::Answering { weights, done: total, total });
        for (question, answer) in self.questions.iter().zip(&answers).take(self.n_samples) {
            observer.observe(sample(step, weights, question, answer.clone()));
        }
        if self.n_exact_match == 0 {
            return Ok(None);
        }
        let counted = self.questions.iter().zip(&answers).take(self.n_exact_match);
        let matched = counted.filter(|(question, answer)| answer.trim() == question.expected.trim()).count();
        let seconds = started.elapsed().as_secs_f64();
        Ok(Some(ExactMatch { weights, matched, rows: self.n_exact_match, seconds }))
    }

    /// The greedy answer to each question.
    fn answers<D: Device>(
        &self,
        generator: &mut Generator<D>,
        questions: &[Question],
        (adapter, weights): (Option<&Adapter<D>>, Weights),
        observer: &mut dyn Observer<Event>,
        cancel: &AtomicBool,
    ) -> Result<Vec<String>> {
        let prompts: Vec<&[u32]> = questions.iter().map(|question| question.prompt.as_slice()).collect();
        let request =
            Request { stop: self.stop, sampler: SamplerOptions::GREEDY, max_new_tokens: self.max_new_tokens };
        let total = prompts.len();
        let mut on_progress = |progress| {
            if let Progress::Prompt { sequence, .. } = progress {
                // Questions begin in order, and all but those side by side have ended.
                let done = (sequence + 1).saturating_sub(SIDE_BY_SIDE);
                observer.observe(Event::Answering { weights, done, total });
            }
            if cancel.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let answers = generator.generate_batch(adapter, &prompts, &request, &mut on_progress)?;
        Ok(answers.iter().map(|answer| self.tokenizer.decode(&answer.ids)).collect())
    }
}

fn sample(step: u64, weights: Weights, question: &Question, answer: String) -> Event {
    Event::Sample {
        step,
        weights,
        prompt: question.asked.clone(),
        expected: question.expected.clone(),
        answer,
    }
}
