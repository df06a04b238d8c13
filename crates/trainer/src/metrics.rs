//! `metrics.jsonl`: one object a step, validation, exact match or sample, appended; a resumed run repeats no step.

use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize};

use crate::error::{Error, Result};
use crate::event::{ExactMatch, PreferenceFigures, Sample, StepReport};
use crate::tensorboard::EventLog;

/// One line of the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Metric {
    /// Figures of a step.
    Step(StepReport),
    /// The step was skipped, something being not finite.
    Skipped {
        /// The step.
        step: u64,
        /// What was not finite.
        what: String,
    },
    /// The step was skipped, something being far beyond what was usual.
    Spike {
        /// The step.
        step: u64,
        /// What was too large.
        what: String,
        /// Its value.
        value: f64,
        /// The median of the steps before.
        median: f64,
    },
    /// Validation loss after a step.
    Validation {
        /// Steps done before it.
        step: u64,
        /// Mean negative log-likelihood of a target token, or of preferences the loss that is trained on.
        #[serde(deserialize_with = "number_or_nan")]
        loss: f64,
        /// Of preferences.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        preference: Option<PreferenceFigures>,
    },
    /// Exact match after a step.
    ExactMatch {
        /// Steps done before it.
        step: u64,
        /// The figures.
        #[serde(flatten)]
        exact_match: ExactMatch,
    },
    /// An answer after a step.
    Sample {
        /// Steps done before it.
        step: u64,
        /// Question and answer.
        #[serde(flatten)]
        sample: Sample,
    },
    /// A later sitting went on from the checkpoint of a step.
    Resumed {
        /// The step.
        step: u64,
        /// Seconds since 1970.
        at: u64,
    },
}

/// JSON has no word for what is not a number: it is written as `null`.
fn number_or_nan<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

impl Metric {
    /// The step that the line belongs to.
    pub fn step(&self) -> u64 {
        match self {
            Self::Step(report) => report.step,
            Self::Skipped { step, .. }
            | Self::Spike { step, .. }
            | Self::Validation { step, .. }
            | Self::ExactMatch { step, .. }
            | Self::Sample { step, .. }
            | Self::Resumed { step, .. } => *step,
        }
    }

    /// What a line is told apart by that a run killed near its end would write again.
    fn identity(&self) -> Option<String> {
        match self {
            Self::ExactMatch { step, exact_match } => {
                Some(format!("exact match {step} {:?}", exact_match.weights))
            }
            Self::Sample { step, sample } => {
                Some(format!("sample {step} {:?} {} {}", sample.weights, sample.prompt, sample.expected))
            }
            Self::Step(_)
            | Self::Skipped { .. }
            | Self::Spike { .. }
            | Self::Validation { .. }
            | Self::Resumed { .. } => None,
        }
    }
}

/// Appends to a run's metrics.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: File,
    /// Lines that stand there and are not to be repeated.
    said: HashSet<String>,
    events: Option<EventLog>,
}

impl MetricsLog {
    /// Opens the file for a run whose first `done_steps` steps are done, dropping what was written after them.
    ///
    /// `done_steps` `None` starts a new file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn open(path: &Path, done_steps: Option<u64>) -> Result<Self> {
        let failed = |source| Error::Io { path: path.into(), source };
        let mut said = HashSet::new();
        let kept_bytes = match done_steps {
            Some(steps) if path.exists() => kept_bytes(path, steps, &mut said).map_err(failed)?,
            _ => 0,
        };
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(failed)?;
        file.set_len(kept_bytes).map_err(failed)?;
        Ok(Self { path: path.into(), file, said, events: None })
    }

    /// Writes TensorBoard's events too, from here on.
    pub fn also_to(&mut self, events: EventLog) {
        self.events = Some(events);
    }

    /// Appends one line, unless it is an answer that stands there already.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn append(&mut self, metric: &Metric) -> Result<()> {
        if metric.identity().is_some_and(|identity| !self.said.insert(identity)) {
            return Ok(());
        }
        if let Some(events) = &mut self.events {
            events.append(metric)?;
        }
        let failed = |source| Error::Io { path: self.path.clone(), source };
        let mut line = serde_json::to_vec(metric).map_err(|error| failed(error.into()))?;
        line.push(b'\n');
        // One write a line: a killed process leaves at most one torn line, which the next one drops.
        self.file.write_all(&line).map_err(failed)
    }

    /// Waits until everything is on disk; called before a checkpoint, so that no step of it can be missing.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn sync(&mut self) -> Result<()> {
        if let Some(events) = &self.events {
            events.sync()?;
        }
        self.file.sync_data().map_err(|source| Error::Io { path: self.path.clone(), source })
    }
}

/// Bytes up to the first line that is torn or belongs to a later step.
fn kept_bytes(path: &Path, done_steps: u64, said: &mut HashSet<String>) -> std::io::Result<u64> {
    let mut input = BufReader::new(File::open(path)?);
    let (mut kept, mut line) = (0, Vec::new());
    loop {
        line.clear();
        let n_bytes = input.read_until(b'\n', &mut line)?;
        let metric: Option<Metric> =
            line.strip_suffix(b"\n").and_then(|line| serde_json::from_slice(line).ok());
        match metric {
            Some(metric) if metric.step() <= done_steps => {
                said.extend(metric.identity());
                kept += n_bytes as u64;
            }
            _ => return Ok(kept),
        }
    }
}

/// Reads all whole lines of a run's metrics.
///
/// # Errors
/// [`Error::Io`].
pub fn read(path: &Path) -> Result<Vec<Metric>> {
    let mut metrics = Vec::new();
    read_each(path, |metric| metrics.push(metric))?;
    Ok(metrics)
}

/// Hands on all whole lines of a run's metrics, one after another.
///
/// # Errors
/// [`Error::Io`].
pub fn read_each(path: &Path, mut take: impl FnMut(Metric)) -> Result<()> {
    let failed = |source| Error::Io { path: path.into(), source };
    let mut input = BufReader::new(File::open(path).map_err(failed)?);
    let mut line = Vec::new();
    while input.read_until(b'\n', &mut line).map_err(failed)? > 0 {
        let Ok(metric) = serde_json::from_slice(&line) else { break };
        take(metric);
        line.clear();
    }
    Ok(())
}

/// Bytes that [`ends`] reads of either end.
const END_BYTES: u64 = 256 << 10;

/// The first and the last lines of a run's metrics, without reading a long file through.
///
/// # Errors
/// [`Error::Io`].
pub fn ends(path: &Path) -> Result<Vec<Metric>> {
    let failed = |source| Error::Io { path: path.into(), source };
    let mut file = File::open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len();
    if length <= 2 * END_BYTES {
        return read(path);
    }
    let (mut first, mut last) = (Vec::new(), Vec::new());
    (&mut file).take(END_BYTES).read_to_end(&mut first).map_err(failed)?;
    file.seek(SeekFrom::Start(length - END_BYTES)).map_err(failed)?;
    file.take(END_BYTES).read_to_end(&mut last).map_err(failed)?;
    let lines = first.split(|&byte| byte == b'\n').chain(last.split(|&byte| byte == b'\n'));
    // Cut lines, in the middle and at a torn end, are no JSON.
    Ok(lines.filter_map(|line| serde_json::from_slice(line).ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Weights;

    fn validation(step: u64) -> Metric {
        Metric::Validation { step, loss: 0.5 + step as f64, preference: None }
    }

    #[test]
    fn a_resumed_file_has_each_step_once_and_no_torn_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let mut log = MetricsLog::open(&path, None).unwrap();
        for step in 0..5 {
            log.append(&validation(step)).unwrap();
        }
        drop(log);
        let mut torn = std::fs::read(&path).unwrap();
        torn.truncate(torn.len() - 3);
        std::fs::write(&path, torn).unwrap();

        let mut log = MetricsLog::open(&path, Some(4)).unwrap();
        log.append(&validation(4)).unwrap();
        drop(log);
        assert_eq!(read(&path).unwrap(), (0..5).map(validation).collect::<Vec<_>>());

        drop(MetricsLog::open(&path, Some(2)).unwrap());
        assert_eq!(read(&path).unwrap(), (0..3).map(validation).collect::<Vec<_>>());
        drop(MetricsLog::open(&path, None).unwrap());
        assert_eq!(read(&path).unwrap(), []);
    }

    fn answer(step: u64, answer: &str) -> Metric {
        let sample = Sample {
            weights: Weights::Adapter,
            prompt: "a < b?".into(),
            expected: "yes".into(),
            answer: answer.into(),
        };
        Metric::Sample { step, sample }
    }

    #[test]
    fn an_answer_that_stands_there_is_not_repeated() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let exact_match = ExactMatch { weights: Weights::Adapter, matched: 1, rows: 2, seconds: 0.5 };
        let lines = [answer(4, "yes"), Metric::ExactMatch { step: 4, exact_match }];
        for _ in 0..2 {
            let mut log = MetricsLog::open(&path, Some(4)).unwrap();
            lines.iter().for_each(|line| log.append(line).unwrap());
            // Within one sitting too.
            log.append(&lines[0]).unwrap();
        }
        assert_eq!(read(&path).unwrap(), lines);
        // A later step is another answer.
        MetricsLog::open(&path, Some(8)).unwrap().append(&answer(8, "yes")).unwrap();
        assert_eq!(read(&path).unwrap().len(), 3);
    }

    #[test]
    fn what_is_not_a_number_survives() {
        let line =
            serde_json::to_string(&Metric::Validation { step: 3, loss: f64::NAN, preference: None }).unwrap();
        let read: Metric = serde_json::from_str(&line).unwrap();
        assert!(matches!(read, Metric::Validation { step: 3, loss, .. } if loss.is_nan()), "{line}");
    }

    #[test]
    fn the_ends_of_a_long_file_are_whole_lines() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("metrics.jsonl");
        let lines: String =
            (0..20_000).map(|step| serde_json::to_string(&validation(step)).unwrap() + "\n").collect();
        assert!(lines.len() as u64 > 3 * END_BYTES);
        std::fs::write(&path, lines).unwrap();
        let ends = ends(&path).unwrap();
        assert_eq!((ends.first(), ends.last()), (Some(&validation(0)), Some(&validation(19_999))));
        assert!(ends.len() < 20_000);
    }
}
