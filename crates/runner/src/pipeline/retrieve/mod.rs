//! Retrieval: the passages of some files that fit a question best, by words or by meaning, each with its source.

mod corpus;
mod meaning;
mod words;

pub(super) use corpus::Corpus;
pub(super) use meaning::{Index, key};
pub(super) use words::Words;

/// Passages of a result where the step does not say.
pub(super) const TOP: usize = 4;

/// Most passages of a result.
pub(super) const TOP_MAX: usize = 100;

/// A passage that fits, and how well.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Hit {
    /// Its index in the corpus.
    pub passage: usize,
    /// Larger is better.
    pub score: f64,
}

/// The best of some scores, best first; of equals the first.
fn best(scores: impl IntoIterator<Item = Hit>, top: usize) -> Vec<Hit> {
    let mut hits: Vec<Hit> = scores.into_iter().collect();
    hits.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.passage.cmp(&b.passage)));
    hits.truncate(top);
    hits
}
