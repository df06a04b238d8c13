//! Which rows make up each optimiser step and each micro-batch: pure functions of seed and step.

use super::corpus::Corpus;
use super::epoch::{Epochs, Order};
use crate::options::{Length, Options};

/// Cuts the epochs into steps and the steps into micro-batches.
#[derive(Debug)]
pub struct Batches {
    epochs: Epochs,
    /// Units (examples, or packs of them) of a micro-batch and of a step.
    units_per_micro_batch: usize,
    units_per_step: usize,
    /// Largest micro-batch in tokens; what goes beyond it opens another one within the same step.
    micro_batch_tokens: usize,
    /// Whether the sequences of a unit have to stay together.
    is_indivisible: bool,
    /// Step before the first of each epoch that is known yet, and of the one after.
    steps_before: Vec<u64>,
    order: (u64, Order),
}

/// The rows of one optimiser step.
#[derive(Debug, Clone, PartialEq)]
pub struct StepRows {
    /// The pass over the data, from 0.
    pub epoch: u64,
    /// Units of this epoch that come before this step.
    pub cursor: usize,
    /// The step's units, in order.
    pub units: Order,
}

impl Batches {
    /// Batches over some examples of a corpus, with no limit on a micro-batch's tokens.
    pub fn new(corpus: &Corpus, examples: &[usize], options: &Options) -> Self {
        let epochs = Epochs::new(corpus, examples, options);
        let order = (0, epochs.order(0));
        let mut batches = Self {
            epochs,
            units_per_micro_batch: options.train.batch_size,
            units_per_step: options
                .train
                .batch_size
                .saturating_mul(options.train.gradient_accumulation_steps),
            micro_batch_tokens: usize::MAX,
            is_indivisible: corpus.rows_per_example() > 1,
            steps_before: vec![0],
            order,
        };
        batches.steps_before.push(batches.steps_of(&batches.order.1));
        batches
    }

    /// Limits the tokens of a micro-batch, which never changes which rows a step has.
    pub fn limit_tokens(&mut self, micro_batch_tokens: usize) {
        self.micro_batch_tokens = micro_batch_tokens;
    }

    /// Units of an optimiser step; the last one of an epoch may have fewer.
    pub fn rows_per_step(&self) -> usize {
        self.units_per_step.min(self.order.1.ends.len())
    }

    /// Optimiser steps of the first epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        self.steps_before[1]
    }

    /// Optimiser steps of a run.
    pub fn total_steps(&mut self, length: Length) -> u64 {
        match length {
            Length::Epochs(epochs) => self.steps_before(u64::from(epochs)),
            Length::MaxSteps(steps) => steps,
        }
    }

    /// How full the packs of the first epoch are; `None` where nothing is put together.
    pub fn fill(&self) -> Option<f64> {
        self.epochs.fill(&self.epochs.order(0))
    }

    fn steps_of(&self, order: &Order) -> u64 {
        order.ends.len().div_ceil(self.units_per_step) as u64
    }

    /// Steps before an epoch.
    fn steps_before(&mut self, epoch: u64) -> u64 {
        while self.steps_before.len() as u64 <= epoch {
            let next = self.steps_before.len() as u64 - 1;
            self.go_to(next);
            let steps = self.steps_before[next as usize] + self.steps_of(&self.order.1);
            self.steps_before.push(steps);
        }
        self.steps_before[epoch as usize]
    }

    fn go_to(&mut self, epoch: u64) {
        if self.order.0 != epoch {
            self.order = (epoch, self.epochs.order(epoch));
        }
    }

    /// The rows of a step, counted from 1.
    pub fn step(&mut self, step: u64) -> StepRows {
        let mut epoch = self.order.0;
        if step <= self.steps_before[epoch as usize] {
            epoch = 0;
        }
        while step > self.steps_before(epoch + 1) {
            epoch += 1;
        }
        self.go_to(epoch);
        let index = (step - 1 - self.steps_before[epoch as usize]) as usize;
        let (order, cursor) = (&self.order.1, index * self.units_per_step);
        let end = (cursor + self.units_per_step).min(order.ends.len());
        StepRows { epoch, cursor, units: order.part(cursor, end) }
    }

    /// Cuts the units of a step into micro-batches.
    pub fn micro_batches<'a>(&self, units: &'a Order, corpus: &Corpus) -> Vec<&'a [usize]> {
        let mut groups = Vec::new();
        let mut start = 0;
        for ends in units.ends.chunks(self.units_per_micro_batch) {
            let end = ends[ends.len() - 1];
            let unit = if self.is_indivisible { corpus.rows_per_example() } else { 1 };
            groups.extend(cut(&units.rows[start..end], unit, self.micro_batch_tokens, corpus));
            start = end;
        }
        groups
    }

    /// Tokens of the largest micro-batch of a run.
    pub fn largest_micro_batch(&mut self, total_steps: u64, corpus: &Corpus) -> usize {
        (1..=total_steps)
            .flat_map(|step| {
                let units = self.step(step).units;
                let tokens = |micro: &&[usize]| micro.iter().map(|&row| corpus.n_inputs(row)).sum::<usize>();
                self.micro_batches(&units, corpus).iter().map(tokens).max()
            })
            .max()
            .unwrap_or(0)
    }
}

/// Cuts rows, in order, into groups of at most so many tokens; `together` rows stay together, and what is longer alone is a
/// group of its own.
pub fn cut<'a>(rows: &'a [usize], together: usize, most_tokens: usize, corpus: &Corpus) -> Vec<&'a [usize]> {
    let (mut groups, mut start, mut tokens) = (Vec::new(), 0, 0_usize);
    for (index, unit) in rows.chunks(together).enumerate() {
        let (at, next) = (index * together, unit.iter().map(|&row| corpus.n_inputs(row)).sum::<usize>());
        if at > start && tokens.saturating_add(next) > most_tokens {
            groups.push(&rows[start..at]);
            (start, tokens) = (at, 0);
        }
        tokens += next;
    }
    if start < rows.len() {
        groups.push(&rows[start..]);
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows of 3, 4, 5, ... tokens; all but the first two of each are targets.
    fn corpus(n_rows: u32) -> Corpus {
        let row = |index: u32| ((0..index + 3).map(|token| 100 * index + token).collect(), 2);
        Corpus::of_rows(&(0..n_rows).map(row).collect::<Vec<_>>())
    }

    fn batches(n_rows: usize, batch_size: usize, accumulation: usize) -> Batches {
        let mut options = Options::default();
        options.train.batch_size = batch_size;
        options.train.gradient_accumulation_steps = accumulation;
        Batches::new(&corpus(n_rows as u32), &(0..n_rows).collect::<Vec<_>>(), &options)
    }

    #[test]
    fn an_epoch_has_every_row_once_and_the_next_one_another_order() {
        let mut batches = batches(10, 2, 2);
        assert_eq!((batches.steps_per_epoch(), batches.total_steps(Length::Epochs(3))), (3, 9));
        let mut epoch = |first: u64| -> Vec<usize> {
            (first..first + 3).flat_map(|step| batches.step(step).units.rows).collect()
        };
        let (one, two) = (epoch(1), epoch(4));
        assert_ne!(one, two);
        for mut rows in [one.clone(), two] {
            rows.sort_unstable();
            assert_eq!(rows, (0..10).collect::<Vec<_>>());
        }
        // Any step can be asked for at any time: that is what resuming relies on.
        assert_eq!(epoch(1), one);
    }

    #[test]
    fn the_cursor_counts_rows_of_the_epoch() {
        let mut batches = batches(10, 4, 1);
        let found: Vec<_> =
            (1..=4).map(|step| (batches.step(step).epoch, batches.step(step).cursor)).collect();
        assert_eq!(found, [(0, 0), (0, 4), (0, 8), (1, 0)]);
        assert_eq!(batches.step(3).units.rows.len(), 2);
    }

    #[test]
    fn micro_batches_respect_rows_and_tokens_and_never_split_a_row() {
        let corpus = corpus(6);
        let rows: Vec<usize> = (0..6).collect();
        // Inputs of the rows: 2 3 4 5 6 7.
        assert_eq!(cut(&rows, 1, 9, &corpus), [&rows[0..3], &rows[3..4], &rows[4..5], &rows[5..6]]);
        assert_eq!(cut(&rows, 2, 14, &corpus), [&rows[0..4], &rows[4..6]]);
        assert_eq!(cut(&rows, 1, 1, &corpus).len(), 6);
        assert_eq!(cut(&[], 1, 1, &corpus).len(), 0);
        let mut batches = batches(6, 4, 2);
        let units = batches.step(1).units;
        assert_eq!(batches.micro_batches(&units, &corpus), [&units.rows[0..4], &units.rows[4..6]]);
        batches.limit_tokens(7);
        let limited = batches.micro_batches(&units, &corpus);
        assert_eq!(limited.concat(), units.rows);
        let tokens = |rows: &&[usize]| rows.iter().map(|&row| corpus.n_inputs(row)).sum::<usize>();
        assert!(limited.iter().all(|rows| rows.len() == 1 || tokens(rows) <= 7), "{limited:?}");
    }

    #[test]
    fn the_largest_micro_batch_is_the_largest_of_the_run() {
        let corpus = corpus(6);
        let mut batches = batches(6, 2, 1);
        let largest = batches.largest_micro_batch(30, &corpus);
        assert!((7 + 2..=7 + 6).contains(&largest), "{largest}");
        let rows = |step| batches.step(step).units.rows;
        let all = (1..=30).map(rows).map(|rows| rows.iter().map(|&row| corpus.n_inputs(row)).sum::<usize>());
        assert_eq!(all.max(), Some(largest));
    }
}
