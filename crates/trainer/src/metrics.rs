//! `metrics.jsonl`: one object a step, validation or exact match, appended; a resumed run repeats no step.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::event::{ExactMatch, PreferenceFigures, StepReport};

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
}

impl Metric {
    /// The step that the line belongs to.
    pub fn step(&self) -> u64 {
        match self {
            Self::Step(report) => report.step,
            Self::Skipped { step, .. }
            | Self::Spike { step, .. }
            | Self::Validation { step, .. }
            | Self::ExactMatch { step, .. } => *step,
        }
    }
}

/// Appends to a run's metrics.
#[derive(Debug)]
pub struct MetricsLog {
    path: PathBuf,
    file: File,
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
        let kept_bytes = match done_steps {
            Some(steps) if path.exists() => kept_bytes(path, steps).map_err(failed)?,
            _ => 0,
        };
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(failed)?;
        file.set_len(kept_bytes).map_err(failed)?;
        Ok(Self { path: path.into(), file })
    }

    /// Appends one line.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn append(&mut self, metric: &Metric) -> Result<()> {
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
        self.file.sync_data().map_err(|source| Error::Io { path: self.path.clone(), source })
    }
}

/// Bytes up to the first line that is torn or belongs to a later step.
fn kept_bytes(path: &Path, done_steps: u64) -> std::io::Result<u64> {
    let mut input = BufReader::new(File::open(path)?);
    let (mut kept, mut line) = (0, Vec::new());
    loop {
        line.clear();
        let n_bytes = input.read_until(b'\n', &mut line)?;
        let metric: Option<Metric> =
            line.strip_suffix(b"\n").and_then(|line| serde_json::from_slice(line).ok());
        match metric {
            Some(metric) if metric.step() <= done_steps => kept += n_bytes as u64,
            _ => return Ok(kept),
        }
    }
}

/// Reads all whole lines of a run's metrics.
///
/// # Errors
/// [`Error::Io`].
pub fn read(path: &Path) -> Result<Vec<Metric>> {
    let failed = |source| Error::Io { path: path.into(), source };
    let text = std::fs::read_to_string(path).map_err(failed)?;
    Ok(text.lines().map_while(|line| serde_json::from_str(line).ok()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

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
}
