//! The course of a run: what `metrics.jsonl` says, in columns.

use crate::error::Result;
use crate::event::{ExactMatch, Outcome, PreferenceFigures, Sample};
use crate::metrics::{self, Metric};
use crate::run_dir::RunDir;

/// Figures of one step that are shown over all steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepPoint {
    /// The step, from 1.
    pub step: u64,
    /// Mean negative log-likelihood of a target token, or of preferences the loss that is trained on.
    pub loss: f64,
    /// Of preferences.
    pub preference: Option<PreferenceFigures>,
    /// Learning rate.
    pub learning_rate: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Tokens a second, over the last few steps.
    pub tokens_per_second: f64,
    /// Highest memory so far.
    pub memory_bytes: Option<u64>,
}

/// What a run went through so far.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Course {
    /// All steps that were not skipped.
    pub steps: Vec<StepPoint>,
    /// Passes over the data at the last step.
    pub epoch: Option<f64>,
    /// Steps done before each measurement, and the validation loss.
    pub validations: Vec<(u64, f64)>,
    /// The same of preferences.
    pub preferences: Vec<(u64, PreferenceFigures)>,
    /// Steps done before each measurement, and the figures.
    pub exact_matches: Vec<(u64, ExactMatch)>,
    /// Steps done before each answer, and the answer.
    pub samples: Vec<(u64, Sample)>,
    /// Skipped steps, and why.
    pub skipped: Vec<(u64, String)>,
    /// Steps after which a later sitting went on, and when, in seconds since 1970.
    pub resumed: Vec<(u64, u64)>,
}

impl Course {
    /// Reads a run's metrics; nothing has happened where there are none.
    ///
    /// # Errors
    /// [`crate::Error::Io`].
    pub fn read(run_dir: &RunDir) -> Result<Self> {
        let mut course = Self::default();
        if run_dir.metrics().exists() {
            metrics::read_each(&run_dir.metrics(), |metric| course.add(metric))?;
        }
        Ok(course)
    }

    /// Adds a line of the metrics.
    pub fn add(&mut self, metric: Metric) {
        match metric {
            Metric::Step(report) => {
                self.epoch = Some(report.epoch);
                self.steps.push(StepPoint {
                    step: report.step,
                    loss: report.loss,
                    preference: report.preference,
                    learning_rate: report.learning_rate,
                    grad_norm: report.grad_norm,
                    tokens_per_second: report.tokens_per_second,
                    memory_bytes: report.memory_bytes,
                });
            }
            Metric::Skipped { step, what } => self.skipped.push((step, format!("{what} was not finite"))),
            Metric::Spike { step, what, value, median } => {
                self.skipped.push((step, format!("{what} was {value:.4}, {median:.4} being usual")));
            }
            Metric::Validation { step, loss, preference } => {
                self.validations.push((step, loss));
                self.preferences.extend(preference.map(|figures| (step, figures)));
            }
            Metric::ExactMatch { step, exact_match } => self.exact_matches.push((step, exact_match)),
            Metric::Sample { step, sample } => self.samples.push((step, sample)),
            Metric::Resumed { step, at } => self.resumed.push((step, at)),
        }
    }

    /// The last step that was done or skipped.
    pub fn last_step(&self) -> u64 {
        let done = self.steps.last().map(|point| point.step);
        let skipped = self.skipped.last().map(|(step, _)| *step);
        done.max(skipped).unwrap_or(0)
    }

    /// Loss of the last step.
    pub fn train_loss(&self) -> Option<f64> {
        self.steps.last().map(|point| point.loss)
    }

    /// Validation loss of the base.
    pub fn base_validation_loss(&self) -> Option<f64> {
        self.validations.iter().find(|(step, _)| *step == 0).map(|(_, loss)| *loss)
    }

    /// That of the result when the run is finished, which may be of an earlier step; before that the newest after a step.
    pub fn validation_loss(&self, outcome: &Outcome) -> Option<f64> {
        match self.validations.as_slice() {
            _ if outcome.is_finished => outcome.validation_loss,
            [] => outcome.validation_loss,
            all => all.iter().rev().find(|(step, _)| *step > 0).map(|(_, loss)| *loss),
        }
    }

    /// The lowest validation loss, and the step that it was measured after.
    pub fn best_validation_loss(&self) -> Option<(f64, u64)> {
        let finite = self.validations.iter().filter(|(_, loss)| loss.is_finite());
        finite.map(|&(step, loss)| (loss, step)).min_by(|a, b| a.0.total_cmp(&b.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figures_of_a_run_are_found_among_its_lines() {
        let mut course = Course::default();
        let outcome = Outcome { validation_loss: Some(9.0), ..Outcome::default() };
        assert_eq!((course.last_step(), course.validation_loss(&outcome)), (0, Some(9.0)));
        course.add(Metric::Validation { step: 0, loss: 3.0, preference: None });
        assert_eq!(course.validation_loss(&outcome), None, "the base's alone");
        for (step, loss) in [(5, 1.0), (10, f64::NAN), (15, 2.0)] {
            course.add(Metric::Validation { step, loss, preference: None });
        }
        let finished = Outcome { is_finished: true, ..outcome.clone() };
        assert_eq!(course.validation_loss(&finished), Some(9.0), "of the result");
        course.add(Metric::Skipped { step: 16, what: "loss".into() });
        assert_eq!(course.last_step(), 16);
        assert_eq!((course.base_validation_loss(), course.validation_loss(&outcome)), (Some(3.0), Some(2.0)));
        assert_eq!(course.best_validation_loss(), Some((1.0, 5)));
    }
}
