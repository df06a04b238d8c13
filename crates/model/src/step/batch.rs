//! What a step takes and gives: a packed batch, and the sum of its loss.

use crate::config::ModelConfig;
use crate::device::Segment;
use crate::{Error, Result};

/// The target of a row that bears no loss.
pub const IGNORE: u32 = u32::MAX;

/// Sequences laid end to end: no padding, no batch dimension. Sequences do not see one another.
#[derive(Debug, Clone, Copy)]
pub struct Batch<'a> {
    /// Token ids of all sequences (N).
    pub tokens: &'a [u32],
    /// The token each row is to predict, that is its successor, or [`IGNORE`] (N).
    pub targets: &'a [u32],
    /// What each row's loss counts (N), 1 where there are none; a row of weight 0 is left out as one without a target.
    pub weights: Option<&'a [f32]>,
    /// Position of each row in its sequence (N); restarts at 0 with each sequence.
    pub positions: &'a [u32],
    /// First row of each sequence, ascending, the first being 0.
    pub sequence_starts: &'a [usize],
}

/// Negative log-likelihood summed over the target tokens of a batch, in nats.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct LossSum {
    /// Σ w · -ln p(target)
    pub sum_nll: f64,
    /// How many targets; those of weight 0 are none.
    pub n_targets: usize,
    /// Σ w: as many as targets where none is weighted.
    pub sum_weights: f64,
}

impl LossSum {
    /// Of targets that all count alike.
    pub fn unweighted(sum_nll: f64, n_targets: usize) -> Self {
        Self { sum_nll, n_targets, sum_weights: n_targets as f64 }
    }

    /// Nats a target token, by its weight; NaN without targets.
    pub fn mean(&self) -> f64 {
        self.sum_nll / self.sum_weights
    }
}

impl std::ops::AddAssign for LossSum {
    fn add_assign(&mut self, other: Self) {
        self.sum_nll += other.sum_nll;
        self.n_targets += other.n_targets;
        self.sum_weights += other.sum_weights;
    }
}

impl Batch<'_> {
    /// Checks the batch against a workspace of `max_tokens` rows and a vocabulary of `vocab_size`.
    ///
    /// # Errors
    /// [`Error::InvalidBatch`].
    pub fn check(&self, max_tokens: usize, vocab_size: usize) -> Result<()> {
        let n = self.tokens.len();
        let invalid =
            |what, found: String, expected: String| Err(Error::InvalidBatch { what, found, expected });
        if n == 0 || n > max_tokens {
            return invalid("number of tokens", n.to_string(), format!("1 to {max_tokens}"));
        }
        let weights = self.weights.unwrap_or_default();
        let lengths = [
            ("number of targets", Some(self.targets.len())),
            ("number of weights", self.weights.map(<[f32]>::len)),
            ("number of positions", Some(self.positions.len())),
        ];
        for (what, len) in lengths {
            if let Some(len) = len.filter(|&len| len != n) {
                return invalid(what, len.to_string(), n.to_string());
            }
        }
        if let Some(weight) = weights.iter().find(|weight| !weight.is_finite()) {
            return invalid("weight", weight.to_string(), "a finite number".to_owned());
        }
        if let Some(id) = self.tokens.iter().find(|&&id| id as usize >= vocab_size) {
            return invalid("token id", id.to_string(), format!("below {vocab_size}"));
        }
        if let Some(id) = self.targets.iter().find(|&&id| id != IGNORE && id as usize >= vocab_size) {
            return invalid("target id", id.to_string(), format!("below {vocab_size}"));
        }
        if let Some(position) = self.positions.iter().find(|&&position| position as usize >= max_tokens) {
            return invalid("position", position.to_string(), format!("below {max_tokens}"));
        }
        let starts = self.sequence_starts;
        let ascending = starts.windows(2).all(|pair| pair[0] < pair[1]);
        if starts.first() != Some(&0) || !ascending || starts.last().is_some_and(|&last| last >= n) {
            return invalid(
                "list of sequence starts",
                format!("{starts:?}"),
                format!("0, ascending, below {n}"),
            );
        }
        Ok(())
    }

    /// The row of a model's rotary tables for each token, tables being for up to `max_tokens`.
    pub(super) fn rotary_rows(&self, config: &ModelConfig, max_tokens: usize, rows: &mut Vec<u32>) {
        rows.clear();
        for Segment { first_query, n_queries, .. } in self.segments() {
            let positions = &self.positions[first_query..first_query + n_queries];
            let n_tokens = positions.last().map_or(0, |&last| last as usize + 1);
            let start = config.rotary_start(n_tokens, max_tokens) as u32;
            rows.extend(positions.iter().map(|position| start + position));
        }
    }

    /// The sequences as attention sees them.
    pub fn segments(&self) -> impl Iterator<Item = Segment> + '_ {
        let ends = self.sequence_starts[1..].iter().copied().chain(std::iter::once(self.tokens.len()));
        self.sequence_starts.iter().zip(ends).map(|(&start, end)| Segment::causal(start..end))
    }
}
