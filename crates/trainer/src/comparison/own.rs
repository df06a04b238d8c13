//! Base and adapter as contenders: this program's own decoding of the quantised base.

use model::generate::{Capacity, Generator, Progress, Request, SamplerOptions, StopReason};
use model::{Adapter, Cpu};
use text::Tokenizer;

use super::{Answer, Contender, HeldOut, Tick};
use crate::error::Result;
use crate::event::Weights;
use crate::subject::{Loaded, Subject};

/// The generator that base and adapter take turns on.
pub struct Own<'a> {
    loaded: &'a Loaded,
    generator: Generator<Cpu>,
    stop: &'a [u32],
    tokenizer: &'a Tokenizer,
}

impl<'a> Own<'a> {
    /// Draws the generator's memory.
    ///
    /// # Errors
    /// What the device meets.
    pub fn new(subject: &'a Subject, loaded: &'a Loaded, capacity: Capacity) -> Result<Own<'a>> {
        let generator = Generator::new(loaded.base.clone(), loaded.lora(), capacity)?;
        Ok(Own { loaded, generator, stop: subject.stop(), tokenizer: subject.tokenizer() })
    }

    /// One of the two.
    pub fn contender(&mut self, weights: Weights) -> impl Contender {
        let Own { loaded, generator, stop, tokenizer } = self;
        OwnContender { adapter: loaded.adapter(weights), generator, stop, tokenizer }
    }
}

struct OwnContender<'a> {
    generator: &'a mut Generator<Cpu>,
    adapter: Option<&'a Adapter<Cpu>>,
    stop: &'a [u32],
    tokenizer: &'a Tokenizer,
}

impl Contender for OwnContender<'_> {
    fn score(&mut self, row: &HeldOut, tick: &mut Tick<'_>) -> Result<Option<f64>> {
        let sum = self.generator.score_targets(self.adapter, &row.ids, &row.weights, &mut || tick(None))?;
        Ok(sum.map(|sum| sum.sum_nll))
    }

    fn answer(
        &mut self,
        prompts: &[&[u32]],
        max_new_tokens: usize,
        tick: &mut Tick<'_>,
    ) -> Result<Option<Vec<Answer>>> {
        let request = Request { stop: self.stop, sampler: SamplerOptions::GREEDY, max_new_tokens };
        let side_by_side = self.generator.capacity().n_sequences;
        let mut is_cancelled = false;
        let mut on_progress = |progress| {
            let begun = match progress {
                Progress::Prompt { sequence, .. } => Some(sequence + 1),
                Progress::Token { .. } => None,
            };
            // Prompts begin in order, and all but those side by side have ended.
            let flow = tick(begun.map(|begun| begun.saturating_sub(side_by_side)));
            is_cancelled |= flow.is_break();
            flow
        };
        let answers = self.generator.generate_batch(self.adapter, prompts, &request, &mut on_progress)?;
        if is_cancelled {
            return Ok(None);
        }
        let answer = |generated: model::generate::Generated| Answer {
            text: self.tokenizer.decode(&generated.ids),
            n_tokens: generated.ids.len(),
            ended: generated.reason == StopReason::Stop,
        };
        Ok(Some(answers.into_iter().map(answer).collect()))
    }
}

/// Fewer sequences side by side where the budget holds no more.
///
/// # Errors
/// [`crate::Error::BudgetTooSmall`] when not even one fits.
pub fn capacity(subject: &Subject, n_rows: usize, n_tokens: usize) -> Result<Capacity> {
    let mut n_sequences = n_rows.clamp(1, MOST_SIDE_BY_SIDE);
    loop {
        let capacity = Capacity { n_sequences, n_tokens };
        let room = subject.room(capacity)?;
        if room.fits() {
            return Ok(capacity);
        }
        if n_sequences == 1 {
            room.check()?;
        }
        n_sequences = n_sequences.div_ceil(2).min(n_sequences - 1).max(1);
    }
}

const MOST_SIDE_BY_SIDE: usize = 16;
