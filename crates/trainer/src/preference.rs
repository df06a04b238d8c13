//! Training on preferences: pairs of answers through the step, their figures, and the loss of held-out pairs.
//!
//! A pair is two rows of the corpus, the better answer first, and they lie beside one another in the same batch. A
//! step's loss is the mean over its pairs, however they are cut into micro-batches.

use model::lora::Gradients;
use model::preference::{Normalisers, Pair, PairSums, Preference};
use model::step::LossSum;
use model::{Adapter, Device, TrainStep};

use crate::data::batches::cut;
use crate::data::corpus::Corpus;
use crate::data::dataset::Dataset;
use crate::data::packed::Packed;
use crate::error::{Error, Result};
use crate::event::PreferenceFigures;
use crate::options::Method;
use crate::reference::Likelihoods;

/// Refuses a method over rows that it cannot learn from.
///
/// # Errors
/// [`Error::Option`].
pub fn check_kind(method: Method, dataset: &Dataset) -> Result<()> {
    let learns_from_pairs = method != Method::Sft;
    for corpus in std::iter::once(&dataset.corpus).chain(&dataset.validation) {
        let reason = match (learns_from_pairs, corpus.kind() == PREFERENCE) {
            (false, true) => {
                "is \"sft\", and the rows are preferences, from which \"dpo\" and \"orpo\" learn".to_owned()
            }
            (true, false) => {
                let (name, kind) = (method.name(), corpus.kind());
                format!(
                    "is \"{name}\", which learns from `chosen` and `rejected`, and the rows are of kind `{kind}`"
                )
            }
            _ => continue,
        };
        return Err(Error::Option { key: "train.method", reason });
    }
    Ok(())
}

/// Kind of the rows that are pairs.
const PREFERENCE: &str = "preference";

/// Some pairs that are added up to one loss.
pub struct Judging<'a> {
    preference: Preference,
    corpus: &'a Corpus,
    reference: &'a Likelihoods,
    normalisers: Normalisers,
    sums: PairSums,
}

impl<'a> Judging<'a> {
    /// The loss of the pairs that these rows are, none of them seen yet.
    pub fn of(
        preference: Preference,
        corpus: &'a Corpus,
        reference: &'a Likelihoods,
        rows: &[usize],
    ) -> Self {
        let chosen = rows.iter().step_by(2).map(|&row| corpus.target_weight(row));
        let normalisers = Normalisers { pairs: (rows.len() / 2) as f64, chosen_weights: chosen.sum() };
        Self { preference, corpus, reference, normalisers, sums: PairSums::default() }
    }

    /// Forward and backward of some of the pairs; returns how many tokens they had.
    ///
    /// # Errors
    /// What the model meets.
    pub fn forward_backward<D: Device>(
        &mut self,
        step: &mut TrainStep<D>,
        adapter: &Adapter<D>,
        rows: &[usize],
        packed: &mut Packed,
        gradients: &mut Gradients<D>,
    ) -> Result<usize> {
        packed.fill(rows, self.corpus);
        let mut factors_of = |answers: &[LossSum], factors: &mut [f32]| self.judge(rows, answers, factors);
        step.forward_backward_sequences(adapter, &packed.batch(), gradients, &mut factors_of)?;
        Ok(packed.tokens.len())
    }

    /// Forward of some of the pairs.
    ///
    /// # Errors
    /// What the model meets.
    pub fn evaluate<D: Device>(
        &mut self,
        step: &mut TrainStep<D>,
        adapter: Option<&Adapter<D>>,
        rows: &[usize],
        packed: &mut Packed,
    ) -> Result<()> {
        packed.fill(rows, self.corpus);
        let mut answers = Vec::new();
        step.evaluate_sequences(adapter, &packed.batch(), &mut answers)?;
        let mut factors = vec![0.0; answers.len()];
        self.judge(rows, &answers, &mut factors);
        Ok(())
    }

    fn judge(&mut self, rows: &[usize], answers: &[LossSum], factors: &mut [f32]) {
        let answers = answers.chunks_exact(2).zip(factors.chunks_exact_mut(2));
        for (rows, (answers, factors)) in rows.chunks_exact(2).zip(answers) {
            let reference = [rows[0], rows[1]].map(|row| self.reference.of(row));
            let pair = Pair { chosen: answers[0], rejected: answers[1], reference };
            factors.copy_from_slice(&self.preference.add(&pair, self.normalisers, &mut self.sums));
        }
    }

    /// Loss and figures of the pairs seen.
    pub fn result(&self) -> (f64, PreferenceFigures) {
        (self.preference.loss(&self.sums), figures(&self.sums))
    }
}

fn figures(sums: &PairSums) -> PreferenceFigures {
    let pairs = sums.pairs as f64;
    let [rewards_chosen, rewards_rejected, logps_chosen, logps_rejected] =
        [sums.chosen_rewards, sums.rejected_rewards, sums.chosen_logps, sums.rejected_logps]
            .map(|sum| sum / pairs);
    PreferenceFigures {
        accuracy: sums.correct as f64 / pairs,
        margin: rewards_chosen - rewards_rejected,
        rewards_chosen,
        rewards_rejected,
        logps_chosen,
        logps_rejected,
        nll: sums.chosen.mean(),
    }
}

/// Loss and figures of held-out pairs.
///
/// # Errors
/// What the model meets.
pub fn validation<D: Device>(
    mut judging: Judging<'_>,
    step: &mut TrainStep<D>,
    adapter: Option<&Adapter<D>>,
    rows: &[usize],
    max_tokens: usize,
    packed: &mut Packed,
) -> Result<(f64, PreferenceFigures)> {
    for group in cut(rows, 2, max_tokens, judging.corpus) {
        judging.evaluate(step, adapter, group, packed)?;
    }
    Ok(judging.result())
}
