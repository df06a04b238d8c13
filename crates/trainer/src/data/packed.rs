//! The buffers of one packed batch: sequences one after another, without padding.

use model::step::IGNORE;

use super::corpus::Corpus;

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
    /// How much each position's target counts; empty where all count alike.
    pub weights: Vec<f32>,
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
        self.weights.clear();
        for &row in rows {
            let (ids, is_target) = (corpus.ids(row), corpus.is_target(row));
            self.sequence_starts.push(self.tokens.len());
            self.tokens.extend_from_slice(&ids[..ids.len() - 1]);
            self.positions.extend(0..ids.len() as u32 - 1);
            let next = ids[1..].iter().zip(&is_target[1..]);
            self.targets.extend(next.map(|(&id, &is_target)| if is_target { id } else { IGNORE }));
        }
        if rows.iter().any(|&row| corpus.weights(row).is_some()) {
            self.fill_weights(rows, corpus);
        }
        self.n_targets = self.targets.iter().filter(|&&target| target != IGNORE).count();
    }

    fn fill_weights(&mut self, rows: &[usize], corpus: &Corpus) {
        for &row in rows {
            match corpus.weights(row) {
                Some(weights) => self.weights.extend_from_slice(&weights[1..]),
                None => self.weights.extend(std::iter::repeat_n(1.0, corpus.n_inputs(row))),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
