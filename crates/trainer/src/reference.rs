//! What DPO measures a policy against: log-likelihoods of the answers under the base, the adapter switched off.
//!
//! They never change, so they are measured once, before the first step, for the pairs that the run will see, and kept in
//! the run's folder. There is no second copy of the base and no second pass in a step: a pair costs one forward pass
//! however many epochs it is seen in, and validation finds its half of the work done.
//!
//! The last bits of a likelihood depend on what shares a batch with it. So pairs are put together as corpus and plan say,
//! in no other order, and a file that was lost or damaged is measured again to the same bits.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use formats::journal::Journal;
use formats::observe::Observer;
use model::{Adapter, Device, TrainStep};
use serde::{Deserialize, Serialize};

use crate::data::batches::{Batches, cut};
use crate::data::corpus::Corpus;
use crate::data::dataset::Dataset;
use crate::data::packed::Packed;
use crate::error::{Error, Result};
use crate::event::Event;

/// Σ -ln q of each row of a corpus, an answer; NaN for those that the run never sees.
#[derive(Debug, Default)]
pub struct Likelihoods(Vec<f64>);

impl Likelihoods {
    fn new(corpus: &Corpus) -> Self {
        Self(vec![f64::NAN; corpus.n_rows()])
    }

    /// Of a row; where nothing was measured, since the loss has no reference, that is nothing.
    pub fn of(&self, row: usize) -> f64 {
        self.0.get(row).copied().unwrap_or(f64::NAN)
    }
}

/// The likelihoods of training and validation pairs.
#[derive(Debug, Default)]
pub struct Reference {
    training: Likelihoods,
    /// Where validation pairs have a file of their own.
    validation: Option<Likelihoods>,
}

impl Reference {
    /// Of the pairs that are trained on.
    pub fn training(&self) -> &Likelihoods {
        &self.training
    }

    /// Of the pairs of the validation loss.
    pub fn validation(&self) -> &Likelihoods {
        self.validation.as_ref().unwrap_or(&self.training)
    }
}

/// Bytes of the likelihoods in memory.
pub fn bytes_in_memory(dataset: &Dataset) -> u64 {
    let validation = dataset.validation.as_ref().map_or(0, Corpus::n_rows);
    8 * (dataset.corpus.n_rows() + validation) as u64
}

/// At most so many bytes on disk: a number of up to 20 digits for each row.
pub fn bytes_on_disk(dataset: &Dataset) -> u64 {
    3 * bytes_in_memory(dataset)
}

/// A record of the file: likelihoods of rows in the order in which they are measured.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    /// Rows before these.
    done: usize,
    /// Bits of Σ -ln q.
    bits: Vec<u64>,
}

/// Time between two records: each is synced to the disk.
const BETWEEN_RECORDS: Duration = Duration::from_secs(2);

/// Pairs that are to be measured together.
struct Group {
    is_validation: bool,
    rows: Vec<usize>,
}

/// Which likelihoods are known, and which are not yet.
pub struct Measurement<'a> {
    dataset: &'a Dataset,
    groups: Vec<Group>,
    reference: Reference,
    journal: Journal,
    /// Groups that are done.
    n_groups: usize,
    /// Rows that are done, and all.
    n_rows: (usize, usize),
    /// What is measured and not on disk yet.
    pending: Record,
}

impl<'a> Measurement<'a> {
    /// Opens the file of a run and takes from it what is there.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(
        path: &Path,
        dataset: &'a Dataset,
        batches: &mut Batches,
        total_steps: u64,
        max_tokens: usize,
    ) -> Result<Self> {
        let groups = groups(dataset, batches, total_steps, max_tokens);
        let total = groups.iter().map(|group| group.rows.len()).sum();
        let (records, journal) = open_journal(path)?;
        let mut measurement = Self {
            dataset,
            groups,
            reference: Reference {
                training: Likelihoods::new(&dataset.corpus),
                validation: dataset.validation.as_ref().map(Likelihoods::new),
            },
            journal,
            n_groups: 0,
            n_rows: (0, total),
            pending: Record { done: 0, bits: Vec::new() },
        };
        if !measurement.take_up(&records) {
            drop(measurement.journal);
            remove(path)?;
            return Self::open(path, dataset, batches, total_steps, max_tokens);
        }
        Ok(measurement)
    }

    /// Takes what an earlier start measured; false where it is not of these groups.
    fn take_up(&mut self, records: &[Record]) -> bool {
        for record in records {
            if record.done != self.n_rows.0 {
                return false;
            }
            let mut bits = record.bits.as_slice();
            while !bits.is_empty() {
                let Some(group) = self.groups.get(self.n_groups) else { return false };
                let Some((here, rest)) = bits.split_at_checked(group.rows.len()) else {
                    return false;
                };
                let values: Vec<f64> = here.iter().map(|&bits| f64::from_bits(bits)).collect();
                self.put(&values);
                bits = rest;
            }
        }
        self.pending.done = self.n_rows.0;
        true
    }

    /// Puts the likelihoods of the next group where they belong.
    fn put(&mut self, values: &[f64]) {
        let Group { is_validation, rows } = &self.groups[self.n_groups];
        let likelihoods = match &mut self.reference.validation {
            Some(validation) if *is_validation => validation,
            _ => &mut self.reference.training,
        };
        rows.iter().zip(values).for_each(|(&row, &value)| likelihoods.0[row] = value);
        self.n_rows.0 += rows.len();
        self.n_groups += 1;
    }

    /// Whether nothing is left to do.
    pub fn is_complete(&self) -> bool {
        self.n_groups == self.groups.len()
    }

    /// Measures what is not known yet, with the adapter that makes the reference or without one; `None` when cancelled.
    ///
    /// # Errors
    /// What the model and the disk meet; [`Error::NotFinite`].
    pub fn finish<D: Device>(
        mut self,
        step: &mut TrainStep<D>,
        adapter: Option<&Adapter<D>>,
        packed: &mut Packed,
        observer: &mut dyn Observer<Event>,
        cancel: &AtomicBool,
    ) -> Result<Option<Reference>> {
        let (mut kept, mut answers) = (Instant::now(), Vec::new());
        while !self.is_complete() {
            let (done, total) = (self.n_rows.0 / 2, self.n_rows.1 / 2);
            observer.observe(Event::Reference { done, total });
            if cancel.load(Ordering::Relaxed) {
                self.keep()?;
                return Ok(None);
            }
            let group = &self.groups[self.n_groups];
            let corpus = match &self.dataset.validation {
                Some(validation) if group.is_validation => validation,
                _ => &self.dataset.corpus,
            };
            packed.fill(&group.rows, corpus);
            step.evaluate_sequences(adapter, &packed.batch(), &mut answers)?;
            let values: Vec<f64> = answers.iter().map(|sum| sum.sum_nll).collect();
            if values.iter().any(|value| !value.is_finite()) {
                let what = "the log-likelihood of an answer under the base".to_owned();
                return Err(Error::Model(model::Error::NotFinite { what }));
            }
            self.put(&values);
            self.pending.bits.extend(values.iter().map(|value| value.to_bits()));
            if kept.elapsed() >= BETWEEN_RECORDS || self.is_complete() {
                self.keep()?;
                kept = Instant::now();
            }
            if self.is_complete() {
                observer.observe(Event::Reference { done: total, total });
            }
        }
        Ok(Some(self.reference))
    }

    fn keep(&mut self) -> Result<()> {
        if !self.pending.bits.is_empty() {
            self.journal.append(&self.pending)?;
            self.pending = Record { done: self.n_rows.0, bits: Vec::new() };
        }
        Ok(())
    }
}

/// The pairs that a run sees, in the order of the corpus, validation pairs last.
fn groups(dataset: &Dataset, batches: &mut Batches, total_steps: u64, max_tokens: usize) -> Vec<Group> {
    let mut seen: BTreeSet<usize> =
        (1..=total_steps).flat_map(|step| batches.step(step).units.rows).collect();
    let mut held_out = dataset.validation_corpus().rows_of(&dataset.validation_rows);
    if dataset.validation.is_none() {
        seen.extend(held_out.drain(..));
    }
    let seen: Vec<usize> = seen.into_iter().collect();
    let group = |is_validation| move |rows: &[usize]| Group { is_validation, rows: rows.to_vec() };
    let training = cut(&seen, 2, max_tokens, &dataset.corpus).into_iter().map(group(false));
    let validation = cut(&held_out, 2, max_tokens, dataset.validation_corpus());
    training.chain(validation.into_iter().map(group(true))).collect()
}

/// A file that is damaged is made anew: nothing in it is worth more than the time it took.
fn open_journal(path: &Path) -> Result<(Vec<Record>, Journal)> {
    match Journal::open(path) {
        Err(formats::Error::Malformed { .. } | formats::Error::Json { .. }) => {
            remove(path)?;
            Ok(Journal::open(path)?)
        }
        opened => Ok(opened?),
    }
}

fn remove(path: &Path) -> Result<()> {
    std::fs::remove_file(path).map_err(|source| Error::Io { path: path.into(), source })
}
