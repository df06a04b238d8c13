//! Which rows make up each optimiser step and each micro-batch: pure functions of seed and step.

use model::step::IGNORE;

use super::corpus::Corpus;
use super::order::epoch_order;
use crate::options::{Length, TrainOptions};

/// Cuts the epochs into steps and the steps into micro-batches.
#[derive(Debug)]
pub struct Batches {
    rows: Vec<usize>,
    seed: u64,
    micro_batch_rows: usize,
    rows_per_step: usize,
    /// Largest micro-batch in tokens; rows beyond it open another one within the same step.
    micro_batch_tokens: usize,
    order: (u64, Vec<usize>),
}

/// The rows of one optimiser step.
#[derive(Debug, Clone, PartialEq)]
pub struct StepRows {
    /// The pass over the data, from 0.
    pub epoch: u64,
    /// Rows of this epoch that come before this step.
    pub cursor: usize,
    /// The step's rows, in order.
    pub rows: Vec<usize>,
}

impl Batches {
    /// Batches over the given rows of a corpus, with no limit on a micro-batch's tokens.
    pub fn new(rows: Vec<usize>, options: &TrainOptions) -> Self {
        let order = (0, epoch_order(&rows, options.seed, 0));
        Self {
            rows,
            seed: options.seed,
            micro_batch_rows: options.batch_size,
            rows_per_step: options.batch_size.saturating_mul(options.gradient_accumulation_steps),
            micro_batch_tokens: usize::MAX,
            order,
        }
    }

    /// Limits the tokens of a micro-batch, which never changes which rows a step has.
    pub fn limit_tokens(&mut self, micro_batch_tokens: usize) {
        self.micro_batch_tokens = micro_batch_tokens;
    }

    /// Rows of an optimiser step; the last one of an epoch may have fewer.
    pub fn rows_per_step(&self) -> usize {
        self.rows_per_step.min(self.rows.len())
    }

    /// Optimiser steps of an epoch.
    pub fn steps_per_epoch(&self) -> u64 {
        self.rows.len().div_ceil(self.rows_per_step) as u64
    }

    /// Optimiser steps of a run.
    pub fn total_steps(&self, length: Length) -> u64 {
        match length {
            Length::Epochs(epochs) => self.steps_per_epoch() * u64::from(epochs),
            Length::MaxSteps(steps) => steps,
        }
    }

    /// The rows of a step, counted from 1.
    pub fn step(&mut self, step: u64) -> StepRows {
        let (epoch, index) = ((step - 1) / self.steps_per_epoch(), (step - 1) % self.steps_per_epoch());
        if self.order.0 != epoch {
            self.order = (epoch, epoch_order(&self.rows, self.seed, epoch));
        }
        let cursor = index as usize * self.rows_per_step;
        let end = (cursor + self.rows_per_step).min(self.rows.len());
        StepRows { epoch, cursor, rows: self.order.1[cursor..end].to_vec() }
    }

    /// Cuts rows into micro-batches.
    pub fn micro_batches<'a>(&self, rows: &'a [usize], corpus: &Corpus) -> Vec<&'a [usize]> {
        cut(rows, self.micro_batch_rows, self.micro_batch_tokens, corpus)
    }

    /// Tokens of the largest micro-batch of a run.
    pub fn largest_micro_batch(&mut self, total_steps: u64, corpus: &Corpus) -> usize {
        (1..=total_steps)
            .flat_map(|step| {
                let rows = self.step(step).rows;
                let tokens = |micro: &&[usize]| micro.iter().map(|&row| corpus.n_inputs(row)).sum::<usize>();
                self.micro_batches(&rows, corpus).iter().map(tokens).max()
            })
            .max()
            .unwrap_or(0)
    }
}

/// Cuts rows, in order, into groups of at most so many rows and tokens; a single longer row is a group of its own.
pub fn cut<'a>(rows: &'a [usize], most_rows: usize, most_tokens: usize, corpus: &Corpus) -> Vec<&'a [usize]> {
    let (mut groups, mut start, mut tokens) = (Vec::new(), 0, 0);
    for (index, &row) in rows.iter().enumerate() {
        let next = corpus.n_inputs(row);
        if index > start && (index - start == most_rows || tokens + next > most_tokens) {
            groups.push(&rows[start..index]);
            (start, tokens) = (index, 0);
        }
        tokens += next;
    }
    if start < rows.len() {
        groups.push(&rows[start..]);
    }
    groups
}

/// The buffers of one packed batch, reused from step to step.
#[derive(Debug, Default)]
pub struct Packed {
    /// Token ids of all rows, one after another, without the last of each.
    pub tokens: Vec<u32>,
    /// What is to be predicted at each position, or [`IGNORE`].
    pub targets: Vec<u32>,
    /// Position of each token in its own row.
    pub positions: Vec<u32>,
    /// Index of each row's first token.
    pub sequence_starts: Vec<usize>,
    /// Positions that have a target.
    pub n_targets: usize,
}

impl Packed {
    /// Packs rows block-diagonally: no padding, positions reset at each row.
    pub fn fill(&mut self, rows: &[usize], corpus: &Corpus) {
        self.tokens.clear();
        self.targets.clear();
        self.positions.clear();
        self.sequence_starts.clear();
        for &row in rows {
            let (ids, is_target) = (corpus.ids(row), corpus.is_target(row));
            self.sequence_starts.push(self.tokens.len());
            self.tokens.extend_from_slice(&ids[..ids.len() - 1]);
            self.positions.extend(0..ids.len() as u32 - 1);
            let next = ids[1..].iter().zip(&is_target[1..]);
            self.targets.extend(next.map(|(&id, &is_target)| if is_target { id } else { IGNORE }));
        }
        self.n_targets = self.targets.iter().filter(|&&target| target != IGNORE).count();
    }
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
        let options =
            TrainOptions { batch_size, gradient_accumulation_steps: accumulation, ..TrainOptions::default() };
        Batches::new((0..n_rows).collect(), &options)
    }

    #[test]
    fn an_epoch_has_every_row_once_and_the_next_one_another_order() {
        let mut batches = batches(10, 2, 2);
        assert_eq!((batches.steps_per_epoch(), batches.total_steps(Length::Epochs(3))), (3, 9));
        let mut epoch = |first: u64| -> Vec<usize> {
            (first..first + 3).flat_map(|step| batches.step(step).rows).collect()
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
        assert_eq!(batches.step(3).rows.len(), 2);
    }

    #[test]
    fn micro_batches_respect_rows_and_tokens_and_never_split_a_row() {
        let corpus = corpus(6);
        let rows: Vec<usize> = (0..6).collect();
        // Inputs of the rows: 2 3 4 5 6 7.
        assert_eq!(cut(&rows, 4, usize::MAX, &corpus), [&rows[0..4], &rows[4..6]]);
        assert_eq!(cut(&rows, 4, 9, &corpus), [&rows[0..3], &rows[3..4], &rows[4..5], &rows[5..6]]);
        assert_eq!(cut(&rows, 2, 1, &corpus).len(), 6);
        assert_eq!(cut(&[], 2, 1, &corpus).len(), 0);
    }

    #[test]
    fn the_largest_micro_batch_is_the_largest_of_the_run() {
        let corpus = corpus(6);
        let mut batches = batches(6, 2, 1);
        let largest = batches.largest_micro_batch(30, &corpus);
        assert!((7 + 2..=7 + 6).contains(&largest), "{largest}");
        let rows = |step| batches.step(step).rows;
        let all = (1..=30).map(rows).map(|rows| rows.iter().map(|&row| corpus.n_inputs(row)).sum::<usize>());
        assert_eq!(all.max(), Some(largest));
    }

    #[test]
    fn packing_shifts_targets_and_resets_positions() {
        let corpus = Corpus::of_rows(&[(vec![1, 2, 3, 4], 2), (vec![5, 6], 1)]);
        let mut packed = Packed::default();
        packed.fill(&[1, 0], &corpus);
        assert_eq!(packed.tokens, [5, 1, 2, 3]);
        assert_eq!(packed.targets, [6, IGNORE, 3, 4]);
        assert_eq!(packed.positions, [0, 0, 1, 2]);
        assert_eq!(packed.sequence_starts, [0, 1]);
        assert_eq!((packed.n_targets, corpus.n_targets(0), corpus.n_targets(1)), (3, 2, 1));
    }
}
