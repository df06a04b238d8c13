//! How near an exported file is to what it was made from: its predictions beside those of base and adapter, merged and not
//! rounded below 16 bits, on held-out rows and on a general text.
//!
//! The merged model is run layer by layer, so that it takes the memory of one layer and of the head.

use std::ops::ControlFlow;

use formats::{Observer, TensorSource};
use model::Cpu;
use model::step::Streamed;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::gate::{LoadedModel, engine};
use crate::merged::Merged;
use crate::running::Running;
use crate::sequences::{self, LONGEST_PIECE, Purpose, Sequence};
use crate::{Error, Event, Request, Result};

/// Rows of logits that are compared at once.
const ROWS: usize = 32;

/// How near a file's predictions are to those of the model it was made from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Fidelity {
    /// Of the expected answers of held-out rows.
    pub held_out: Option<Divergence>,
    /// Of a general text.
    pub general: Option<Divergence>,
}

/// Means over the tokens that were looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Divergence {
    /// How many.
    pub n_tokens: usize,
    /// Σ p · ln(p / q) in nats, p of the merged model, q of the file.
    pub mean_kl: f64,
    /// The share of tokens of which both hold the same one for likeliest.
    pub top1_share: f64,
    /// Negative log-likelihood of the file, in nats.
    pub mean_nll: f64,
    /// The same of the merged model.
    pub merged_nll: f64,
    /// The same of the base without the adapter, where there is one.
    pub base_nll: Option<f64>,
}

impl Divergence {
    /// The share of the adapter's improvement of the likelihood that is kept; `None` where it improved nothing to speak of.
    pub fn retained(&self) -> Option<f64> {
        let base_nll = self.base_nll?;
        let gain = base_nll - self.merged_nll;
        (gain > LEAST_GAIN).then(|| (base_nll - self.mean_nll) / gain)
    }
}

/// Nats below which a gain is noise.
const LEAST_GAIN: f64 = 0.01;

/// The merged model's predictions, which every file of an export is compared with.
pub(crate) struct Yardstick<'a> {
    request: &'a Request,
    merged: &'a Merged,
    source: &'a dyn TensorSource,
    /// There once a file was compared.
    taken: Option<Taken<'a>>,
}

/// What was run for it.
struct Taken<'a> {
    held_out: Vec<Sequence>,
    general: Vec<Sequence>,
    /// Over all of them.
    run: Run<'a>,
    base_nll: Option<f64>,
}

impl<'a> Yardstick<'a> {
    /// `source` are the weights of the merged model.
    pub(crate) fn new(
        request: &'a Request,
        merged: &'a Merged,
        source: &'a dyn TensorSource,
    ) -> Yardstick<'a> {
        Yardstick { request, merged, source, taken: None }
    }

    /// Runs the merged model, where no file before has needed it, and beside it what the engine has loaded.
    ///
    /// # Errors
    /// What reading the base and the engine meet.
    pub(crate) fn measure(
        &mut self,
        model: &mut dyn LoadedModel,
        observer: &mut dyn Observer<Event>,
    ) -> Result<Option<Fidelity>> {
        let (mut progress, taken) = match &mut self.taken {
            Some(taken) => (Progress { observer, done: 0, total: taken.n_sequences() }, taken),
            None => {
                let (held_out, general) = self.sequences()?;
                if held_out.is_empty() && general.is_empty() {
                    return Ok(None);
                }
                let n_layers = self.merged.base.config.n_layers;
                let with_base = self.merged.is_changed() && !held_out.is_empty();
                let n_sequences = held_out.len() + general.len();
                let total = n_layers * (1 + usize::from(with_base)) + n_sequences;
                let mut progress = Progress { observer, done: 0, total };
                let taken = self.take(held_out, general, with_base, &mut progress)?;
                (progress, self.taken.insert(taken))
            }
        };
        let Taken { held_out: of_rows, general: of_text, run, base_nll } = taken;
        let held_out = run.compare(of_rows, 0, model, &mut progress)?;
        let general = run.compare(of_text, of_rows.len(), model, &mut progress)?;
        let held_out = held_out.map(|divergence| Divergence { base_nll: *base_nll, ..divergence });
        Ok(Some(Fidelity { held_out, general }))
    }

    fn sequences(&self) -> Result<(Vec<Sequence>, Vec<Sequence>)> {
        let (request, merged) = (self.request, self.merged);
        let (tokenizer, most) = (&merged.tokenizer, request.comparison_tokens);
        let longest = request.num_ctx.min(merged.base.config.max_positions);
        let held_out = match &merged.template {
            Some(template) if most > 0 => {
                sequences::conversations(tokenizer, template, &request.evaluation, longest, most)?
            }
            _ => Vec::new(),
        };
        let piece = longest.min(LONGEST_PIECE);
        Ok((held_out, sequences::general(tokenizer, Purpose::Comparing, piece, most)))
    }

    fn take(
        &self,
        held_out: Vec<Sequence>,
        general: Vec<Sequence>,
        with_base: bool,
        progress: &mut Progress<'_>,
    ) -> Result<Taken<'a>> {
        let base_nll = match with_base {
            true => {
                let source = self.merged.base.source();
                Some(Run::over(source, self.merged, &held_out, progress)?.mean_nll(&held_out)?)
            }
            false => None,
        };
        let run = Run::over(self.source, self.merged, held_out.iter().chain(&general), progress)?;
        Ok(Taken { held_out, general, run, base_nll })
    }
}

impl Taken<'_> {
    fn n_sequences(&self) -> usize {
        self.held_out.len() + self.general.len()
    }
}

struct Progress<'a> {
    observer: &'a mut dyn Observer<Event>,
    done: usize,
    total: usize,
}

impl Progress<'_> {
    fn step(&mut self) {
        self.done += 1;
        self.observer.observe(Event::Comparing { done: self.done, total: self.total });
    }
}

/// A model that has been run up to its head.
struct Run<'a> {
    streamed: Streamed<'a, Cpu>,
    /// (N, C) of each sequence.
    streams: Vec<Vec<f32>>,
    hidden: usize,
    vocab_size: usize,
}

impl<'a> Run<'a> {
    fn over<'s>(
        source: &'a dyn TensorSource,
        merged: &Merged,
        sequences: impl IntoIterator<Item = &'s Sequence>,
        progress: &mut Progress<'_>,
    ) -> Result<Run<'a>> {
        let ids: Vec<&[u32]> = sequences.into_iter().map(|sequence| &sequence.ids[..]).collect();
        let Running { mut streamed, .. } = Running::new(&merged.base.config, source, &ids)?;
        let streams = streamed.run(&ids, None, &mut |_| {
            progress.step();
            ControlFlow::Continue(())
        })?;
        let (hidden, vocab_size) = (merged.base.config.hidden, merged.base.config.vocab_size);
        Ok(Run { streamed, streams: streams.unwrap_or_default(), hidden, vocab_size })
    }

    /// Logits (m, V) at some places of a sequence.
    fn logits(&mut self, sequence: usize, places: &[usize]) -> Result<Vec<f32>> {
        let (stream, c) = (&self.streams[sequence], self.hidden);
        let rows: Vec<f32> = places.iter().flat_map(|at| &stream[at * c..(at + 1) * c]).copied().collect();
        let mut logits = Vec::with_capacity(places.len() * self.vocab_size);
        self.streamed.logits(&rows, &mut |_, row| logits.extend_from_slice(row))?;
        Ok(logits)
    }

    fn mean_nll(&mut self, sequences: &[Sequence]) -> Result<f64> {
        let (mut sum, mut n) = (0.0, 0);
        for (index, sequence) in sequences.iter().enumerate() {
            for places in sequence.places().chunks(ROWS) {
                let logits = self.logits(index, places)?;
                let rows = logits.par_chunks(self.vocab_size).zip(places);
                sum += rows.map(|(row, &at)| log_sum(row) - target(row, sequence.ids[at + 1])).sum::<f64>();
                n += places.len();
            }
        }
        Ok(sum / n as f64)
    }

    /// The file's predictions beside these; `first` is the number of the first sequence in the run.
    fn compare(
        &mut self,
        sequences: &[Sequence],
        first: usize,
        model: &mut dyn LoadedModel,
        progress: &mut Progress<'_>,
    ) -> Result<Option<Divergence>> {
        let mut sums = Sums::default();
        for (index, sequence) in sequences.iter().enumerate() {
            let wanted = sequence.places();
            let (mut places, mut theirs, mut failed) = (Vec::new(), Vec::new(), None);
            let mut take = |at: usize, logits: &[f32]| {
                if wanted.binary_search(&at).is_ok() {
                    places.push(at);
                    theirs.extend_from_slice(logits);
                }
                if places.len() == ROWS || Some(&at) == wanted.last() {
                    let compared = self.logits(first + index, &places).and_then(|ours| {
                        Sums::of(&ours, &theirs, self.vocab_size, |row| sequence.ids[places[row] + 1])
                    });
                    match compared {
                        Ok(more) => sums = sums + more,
                        Err(error) => failed = Some(error),
                    }
                    places.clear();
                    theirs.clear();
                }
                if failed.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            };
            model.logits(&sequence.ids, &mut take).map_err(engine("compare"))?;
            if let Some(error) = failed {
                return Err(error);
            }
            progress.step();
        }
        Ok((sums.n > 0).then(|| sums.divergence()))
    }
}

impl Sequence {
    /// Places whose successor is looked at.
    fn places(&self) -> Vec<usize> {
        (0..self.ids.len().saturating_sub(1)).filter(|&at| self.is_target[at + 1]).collect()
    }
}

/// Over rows of logits.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    n: usize,
    kl: f64,
    n_same: usize,
    nll: f64,
    merged_nll: f64,
}

impl std::ops::Add for Sums {
    type Output = Sums;

    fn add(self, other: Sums) -> Sums {
        Sums {
            n: self.n + other.n,
            kl: self.kl + other.kl,
            n_same: self.n_same + other.n_same,
            nll: self.nll + other.nll,
            merged_nll: self.merged_nll + other.merged_nll,
        }
    }
}

impl Sums {
    /// Of rows of logits (m, V) of the merged model and of the file.
    fn of(
        merged: &[f32],
        file: &[f32],
        vocab_size: usize,
        target_of: impl Fn(usize) -> u32 + Sync,
    ) -> Result<Sums> {
        if merged.len() != file.len() {
            return Err(Error::Written {
                place: "its number of logits".to_owned(),
                expected: merged.len().to_string(),
                actual: file.len().to_string(),
            });
        }
        let rows = merged.par_chunks(vocab_size).zip(file.par_chunks(vocab_size)).enumerate();
        Ok(rows.map(|(row, (p, q))| Sums::of_row(p, q, target_of(row))).reduce(Sums::default, |a, b| a + b))
    }

    fn of_row(p: &[f32], q: &[f32], next: u32) -> Sums {
        let (log_sum_p, log_sum_q) = (log_sum(p), log_sum(q));
        let (mut mass, mut difference) = (0.0, 0.0);
        for (&p, &q) in p.iter().zip(q) {
            let weight = f64::from((f64::from(p) - log_sum_p) as f32).exp();
            mass += weight;
            difference += weight * (f64::from(p) - f64::from(q));
        }
        Sums {
            n: 1,
            kl: difference / mass - log_sum_p + log_sum_q,
            n_same: usize::from(likeliest(p) == likeliest(q)),
            nll: log_sum_q - target(q, next),
            merged_nll: log_sum_p - target(p, next),
        }
    }

    fn divergence(&self) -> Divergence {
        let n = self.n as f64;
        Divergence {
            n_tokens: self.n,
            mean_kl: self.kl / n,
            top1_share: self.n_same as f64 / n,
            mean_nll: self.nll / n,
            merged_nll: self.merged_nll / n,
            base_nll: None,
        }
    }
}

/// ln Σ exp(x)
fn log_sum(logits: &[f32]) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|x| f64::from((x - max).exp())).sum();
    f64::from(max) + sum.ln()
}

fn target(logits: &[f32], token: u32) -> f64 {
    logits.get(token as usize).map_or(f64::NAN, |&x| f64::from(x))
}

fn likeliest(logits: &[f32]) -> Option<usize> {
    (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In f64, as the definition says.
    fn plain(p: &[f32], q: &[f32]) -> f64 {
        let softmax = |x: &[f32]| -> Vec<f64> {
            let sum: f64 = x.iter().map(|&x| f64::from(x).exp()).sum();
            x.iter().map(|&x| f64::from(x).exp() / sum).collect()
        };
        softmax(p).iter().zip(softmax(q)).map(|(p, q)| p * (p / q).ln()).sum()
    }

    #[test]
    fn divergences_are_those_of_the_definition() {
        let p = [1.0, -2.0, 0.5, 3.0, -40.0, 2.9];
        let q = [0.5, -1.0, 0.25, 2.5, -50.0, 3.5];
        let sums = Sums::of_row(&p, &q, 3);
        assert!((sums.kl - plain(&p, &q)).abs() < 1e-6, "{} against {}", sums.kl, plain(&p, &q));
        assert_eq!((sums.n, sums.n_same), (1, 0));
        let nll = |x: &[f32]| x.iter().map(|&x| f64::from(x).exp()).sum::<f64>().ln() - f64::from(x[3]);
        assert!((sums.nll - nll(&q)).abs() < 1e-6 && (sums.merged_nll - nll(&p)).abs() < 1e-6);
        let same = Sums::of_row(&p, &p, 0);
        assert!(same.kl.abs() < 1e-6 && same.n_same == 1, "{same:?}");
    }

    #[test]
    fn retained_is_the_share_of_the_gain() {
        let retained = |mean_nll, merged_nll, base_nll| {
            Divergence { mean_nll, merged_nll, base_nll, ..Divergence::default() }.retained()
        };
        assert_eq!(retained(1.0, 1.0, Some(3.0)), Some(1.0));
        assert_eq!(retained(1.5, 1.0, Some(3.0)), Some(0.75));
        assert_eq!(retained(1.5, 1.0, Some(1.001)), None);
        assert_eq!(retained(1.5, 1.0, None), None);
    }
}
