//! Passages by the words they share with a question: Okapi BM25.
//!
//! score(q, p) = Σ over words w of q:  idf(w) · f(w, p) · (k₁ + 1) / (f(w, p) + k₁ · (1 − b + b · |p| / mean |p|))
//!
//! idf(w) = ln(1 + (N − n(w) + ½) / (n(w) + ½))      N passages, n(w) of them with w, f(w, p) times in p of |p| words
//!
//! Source: Robertson and Zaragoza 2009, "The Probabilistic Relevance Framework: BM25 and Beyond", doi:10.1561/1500000019,
//! with the idf of Lucene, which is never negative.

use std::collections::HashMap;

use super::{Corpus, Hit, best};
use crate::pipeline::rules::words;

/// How soon more of the same word stops to count.
const K1: f64 = 1.2;

/// How much a long passage is held back.
const B: f64 = 0.75;

/// The words of a corpus.
pub(in crate::pipeline) struct Words {
    /// Passages that have a word, and how often.
    postings: HashMap<String, Vec<(usize, u32)>>,
    lengths: Vec<f64>,
    mean_length: f64,
}

impl Words {
    pub(in crate::pipeline) fn new(corpus: &Corpus) -> Self {
        let mut postings: HashMap<String, Vec<(usize, u32)>> = HashMap::new();
        let mut lengths = Vec::with_capacity(corpus.passages.len());
        for (i, passage) in corpus.passages.iter().enumerate() {
            let words = words(&passage.text);
            lengths.push(words.len() as f64);
            for word in words {
                let passages = postings.entry(word).or_default();
                match passages.last_mut() {
                    Some((last, n)) if *last == i => *n += 1,
                    _ => passages.push((i, 1)),
                }
            }
        }
        let mean_length = lengths.iter().sum::<f64>() / lengths.len().max(1) as f64;
        Self { postings, lengths, mean_length }
    }

    /// The passages that share a word with a question, best first.
    pub(in crate::pipeline) fn find(&self, question: &str, top: usize) -> Vec<Hit> {
        let n_passages = self.lengths.len() as f64;
        let mut scores: HashMap<usize, f64> = HashMap::new();
        for word in words(question) {
            let Some(passages) = self.postings.get(&word) else { continue };
            let n = passages.len() as f64;
            let idf = (1.0 + (n_passages - n + 0.5) / (n + 0.5)).ln();
            for &(i, times) in passages {
                let times = f64::from(times);
                let length = 1.0 - B + B * self.lengths[i] / self.mean_length.max(1.0);
                *scores.entry(i).or_default() += idf * times * (K1 + 1.0) / (times + K1 * length);
            }
        }
        best(scores.into_iter().map(|(passage, score)| Hit { passage, score }), top)
    }
}

#[cfg(test)]
mod tests {
    use super::super::corpus::Passage;
    use super::*;

    fn corpus(texts: &[&str]) -> Corpus {
        let passage = |text: &&str| Passage { source: String::new(), text: (*text).to_owned() };
        Corpus { passages: texts.iter().map(passage).collect(), blake3: String::new() }
    }

    /// By hand: N 3, lengths 2, 4, 3, mean 3; "lamp" is in two passages, "blue" in one.
    #[test]
    fn scores_are_the_formula() {
        let words = Words::new(&corpus(&["blue lamp", "a lamp, a Lamp", "nothing of that"]));
        let hits = words.find("Blue LAMP?", 5);
        let idf = |n: f64| (1.0 + (3.0 - n + 0.5) / (n + 0.5)).ln();
        let share = |f: f64, length: f64| f * 2.2 / (f + 1.2 * (0.25 + 0.75 * length / 3.0));
        let expected =
            [(0, idf(2.0) * share(1.0, 2.0) + idf(1.0) * share(1.0, 2.0)), (1, idf(2.0) * share(2.0, 4.0))];
        assert_eq!(hits.len(), 2);
        for (hit, (passage, score)) in hits.iter().zip(expected) {
            assert_eq!(hit.passage, passage);
            assert!((hit.score - score).abs() < 1e-12, "{hit:?} {score}");
        }
        assert!(words.find("zebra", 5).is_empty() && words.find("", 5).is_empty());
        assert_eq!(words.find("lamp", 1).len(), 1);
    }

    #[test]
    fn equals_come_in_the_order_of_the_files() {
        let words = Words::new(&corpus(&["same", "same", "same"]));
        let order: Vec<usize> = words.find("same", 2).iter().map(|hit| hit.passage).collect();
        assert_eq!(order, [0, 1]);
    }
}
