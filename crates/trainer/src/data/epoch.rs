//! Which examples an epoch has, in which order, and which of them are put together: pure functions of seed and epoch.
//!
//! Nothing of an order is ever stored, so a resumed run cannot disagree with itself.

use std::collections::BTreeSet;

use super::corpus::Corpus;
use super::order::{Random, shuffle};
use crate::options::Options;

/// What every epoch is made from.
#[derive(Debug)]
pub struct Epochs {
    seed: u64,
    /// The training examples of each source with its weight; one entry where no source weighs more than another.
    parts: Vec<(f64, Vec<usize>)>,
    rows_per_example: usize,
    /// Tokens of each sequence of the corpus and of a pack, where sequences are put together.
    packs: Option<(Vec<u32>, usize)>,
}

/// The sequences of an epoch in their order, in units that a batch counts: examples, or packs of them.
#[derive(Debug, Default, Clone, PartialEq)]
pub struct Order {
    /// Sequences of all units, one after another.
    pub rows: Vec<usize>,
    /// Where each unit ends in `rows`.
    pub ends: Vec<usize>,
}

impl Order {
    fn push(&mut self, rows: impl IntoIterator<Item = usize>) {
        self.rows.extend(rows);
        self.ends.push(self.rows.len());
    }

    /// The units from `first` to before `end`, as an order of their own.
    pub fn part(&self, first: usize, end: usize) -> Order {
        let start = if first == 0 { 0 } else { self.ends[first - 1] };
        let ends: Vec<usize> = self.ends[first..end].iter().map(|end| end - start).collect();
        let rows = self.rows[start..start + ends.last().copied().unwrap_or(0)].to_vec();
        Order { rows, ends }
    }
}

impl Epochs {
    /// Epochs over some examples of a corpus.
    pub fn new(corpus: &Corpus, examples: &[usize], options: &Options) -> Self {
        let weight = |source: usize| corpus.sources().get(source).map_or(1.0, |source| source.weight.0);
        let is_even = (0..corpus.sources().len()).all(|source| weight(source) == 1.0);
        let parts = match is_even {
            true => vec![(1.0, examples.to_vec())],
            false => (0..corpus.sources().len())
                .map(|source| {
                    let here = |example: &usize| corpus.source_index(*example) == source;
                    (weight(source), examples.iter().copied().filter(here).collect())
                })
                .collect(),
        };
        let lengths = || (0..corpus.n_rows()).map(|row| corpus.n_inputs(row) as u32).collect();
        let packs = options.data.packing.then(|| (lengths(), options.data.max_seq_len - 1));
        Self { seed: options.train.seed, parts, rows_per_example: corpus.rows_per_example(), packs }
    }

    /// The order of one epoch, counted from 0.
    pub fn order(&self, epoch: u64) -> Order {
        let mut examples = self.examples(epoch);
        shuffle(&mut examples, &mut Random::new(self.seed, "epoch order", epoch));
        let n = self.rows_per_example;
        match &self.packs {
            None => {
                let mut order = Order::default();
                examples.iter().for_each(|&example| order.push(n * example..n * (example + 1)));
                order
            }
            Some((lengths, capacity)) => {
                let length =
                    |example: usize| (n * example..n * (example + 1)).map(|row| lengths[row] as usize).sum();
                let mut packs = best_fit(&examples, length, *capacity);
                shuffle(&mut packs, &mut Random::new(self.seed, "order of packs", epoch));
                let mut order = Order::default();
                for pack in packs {
                    order.push(pack.into_iter().flat_map(|example| n * example..n * (example + 1)));
                }
                order
            }
        }
    }

    /// Every source's examples as often as its weight says; of a part of them, another part each epoch.
    fn examples(&self, epoch: u64) -> Vec<usize> {
        let mut all = Vec::new();
        for (source, (weight, examples)) in (0..).zip(&self.parts) {
            for _ in 0..weight.floor() as usize {
                all.extend_from_slice(examples);
            }
            let n_more = (weight.fract() * examples.len() as f64).round() as usize;
            if n_more > 0 {
                let mut turns = examples.clone();
                shuffle(&mut turns, &mut Random::new(self.seed, "turns of a source", source));
                let first = (epoch as u128 * n_more as u128 % examples.len() as u128) as usize;
                all.extend((first..first + n_more).map(|at| turns[at % turns.len()]));
            }
        }
        all
    }

    /// Tokens of the packs over those that they would have if all were full; `None` where nothing is put together.
    pub fn fill(&self, order: &Order) -> Option<f64> {
        let (lengths, capacity) = self.packs.as_ref()?;
        let tokens: u64 = order.rows.iter().map(|&row| u64::from(lengths[row])).sum();
        Some(tokens as f64 / (order.ends.len() * capacity) as f64)
    }
}

/// Puts items into bins, the longest first, each into the fullest that has room (best fit decreasing: at most 11/9 of the
/// fewest bins there could be, Johnson 1973). Within a bin and among bins of the same fill the given order decides.
fn best_fit(items: &[usize], length: impl Fn(usize) -> usize, capacity: usize) -> Vec<Vec<usize>> {
    let mut by_length = items.to_vec();
    by_length.sort_by_key(|&item| std::cmp::Reverse(length(item)));
    let mut bins: Vec<Vec<usize>> = Vec::new();
    // Room that is left, and the bin that has it.
    let mut rooms: BTreeSet<(usize, usize)> = BTreeSet::new();
    for item in by_length {
        let needed = length(item);
        let found = rooms.range((needed, 0)..).next().copied();
        let (room, bin) = match found {
            Some(found) => {
                rooms.remove(&found);
                found
            }
            None => {
                bins.push(Vec::new());
                (capacity.max(needed), bins.len() - 1)
            }
        };
        bins[bin].push(item);
        rooms.insert((room - needed, bin));
    }
    bins
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{Source, Weight};

    /// Sequences of 2, 3, 4, ... inputs.
    fn corpus(n_rows: u32) -> Corpus {
        let row = |index: u32| ((0..index + 3).map(|token| 100 * index + token).collect(), 2);
        Corpus::of_rows(&(0..n_rows).map(row).collect::<Vec<_>>())
    }

    fn sorted(order: &Order) -> Vec<usize> {
        let mut rows = order.rows.clone();
        rows.sort_unstable();
        rows
    }

    #[test]
    fn an_epoch_has_every_example_once_and_the_next_one_another_order() {
        let (corpus, examples): (_, Vec<usize>) = (corpus(50), (0..50).collect());
        let epochs = Epochs::new(&corpus, &examples, &Options::default());
        let (first, second) = (epochs.order(0), epochs.order(1));
        assert_eq!(first, epochs.order(0));
        assert_ne!(first, second);
        assert_eq!((sorted(&first), sorted(&second)), (examples.clone(), examples));
        assert_eq!(first.part(3, 5).rows, first.rows[3..5]);
        // A changed order would make old runs impossible to resume.
        let six = Epochs::new(&corpus, &[0, 1, 2, 3, 4, 5], &Options::default()).order(0).rows;
        expect_test::expect!["[1, 3, 2, 4, 0, 5]"].assert_eq(&format!("{six:?}"));
    }

    #[test]
    fn weights_say_how_often_a_source_is_seen() {
        let mut corpus = Corpus::of_sources(&[10, 10, 10]);
        for (source, weight) in corpus.sources_mut().iter_mut().zip([1.0, 2.0, 0.3]) {
            source.weight = Weight(weight);
        }
        let examples: Vec<usize> = (0..30).collect();
        let epochs = Epochs::new(&corpus, &examples, &Options::default());
        let mut seen = [0; 30];
        for epoch in 0..10 {
            let order = epochs.order(epoch);
            assert_eq!(order.rows.len(), 10 + 20 + 3);
            order.rows.iter().for_each(|&row| seen[row] += 1);
        }
        let each = |n: usize| [n; 10];
        assert_eq!(seen, [each(10), each(20), each(3)].concat()[..]);
    }

    #[test]
    fn packs_hold_every_example_once_and_no_more_than_fits() {
        let (corpus, examples): (_, Vec<usize>) = (corpus(60), (0..60).collect());
        let mut options = Options::default();
        (options.data.packing, options.data.max_seq_len) = (true, 65);
        let epochs = Epochs::new(&corpus, &examples, &options);
        let order = epochs.order(0);
        assert_eq!(sorted(&order), examples);
        let tokens = |at: usize| -> usize {
            order.part(at, at + 1).rows.iter().map(|&row| corpus.n_inputs(row)).sum()
        };
        let packs: Vec<usize> = (0..order.ends.len()).map(tokens).collect();
        assert!(packs.iter().all(|&tokens| tokens <= 64), "{packs:?}");
        // 1,890 tokens fill 29.5 packs.
        assert_eq!(packs.len(), 30);
        assert!(epochs.fill(&order).unwrap() > 0.98);
        assert_ne!(order, epochs.order(1));
        assert_eq!(order.ends.len(), epochs.order(1).ends.len());
    }

    #[test]
    fn a_source_is_one_when_it_weighs_nothing_else() {
        assert_eq!(Source::new("a").weight, Weight(1.0));
    }
}
