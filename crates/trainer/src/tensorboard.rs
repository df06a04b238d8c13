//! A run's metrics as TensorBoard's event files, under the tags that Hugging Face's Trainer made common.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use formats::tensorboard::{Content, Event, EventWriter, cut_after};

use crate::error::{Error, Result};
use crate::event::{PreferenceFigures, Weights};
use crate::metrics::{self, Metric};

/// What every event file's name begins with; TensorBoard looks for it.
const PREFIX: &str = "events.out.tfevents.";

/// Appends to the event files of a run.
#[derive(Debug)]
pub struct EventLog {
    writer: EventWriter,
}

impl EventLog {
    /// Begins a new file for a run whose first `done_steps` steps are done, cutting from the others what came after
    /// these; `None` begins anew, without the others.
    ///
    /// A run that has no event files yet gets the steps of `metrics_path` first.
    ///
    /// # Errors
    /// What reading and writing meet.
    pub fn open(dir: &Path, done_steps: Option<u64>, metrics_path: &Path) -> Result<Self> {
        let failed = |source| Error::Io { path: dir.into(), source };
        std::fs::create_dir_all(dir).map_err(failed)?;
        let earlier = event_files(dir).map_err(failed)?;
        for path in &earlier {
            match done_steps {
                Some(steps) => cut_after(path, steps)?,
                None => std::fs::remove_file(path).map_err(failed)?,
            }
        }
        let now = wall_time();
        // TensorBoard reads the files of a folder in the order of their names.
        // Counted, since two sittings may begin within a second.
        let number = done_steps.map_or(0, |_| earlier.len());
        let path = dir.join(format!("{PREFIX}{:010}.tune.{number:04}", now as u64));
        let mut log = Self { writer: EventWriter::create(&path, now)? };
        if !earlier.is_empty() {
            // One that has the folder open has seen the steps that were just cut.
            let step = done_steps.map_or(0, |steps| steps + 1);
            log.writer.append(&Event { wall_time: now, step, content: Content::Start })?;
        } else if done_steps.is_some() {
            let mut earlier_lines = Ok(());
            metrics::read_each(metrics_path, |metric| {
                if earlier_lines.is_ok() {
                    earlier_lines = log.append(&metric);
                }
            })?;
            earlier_lines?;
        }
        Ok(log)
    }

    /// Appends what a line of the metrics says.
    ///
    /// # Errors
    /// What writing meets.
    pub fn append(&mut self, metric: &Metric) -> Result<()> {
        let scalars = scalars(metric);
        if scalars.is_empty() {
            return Ok(());
        }
        let named = scalars.into_iter().map(|(tag, value)| (tag.to_owned(), value as f32)).collect();
        let event = Event { wall_time: wall_time(), step: metric.step(), content: Content::Scalars(named) };
        Ok(self.writer.append(&event)?)
    }

    /// Waits until everything is on disk.
    ///
    /// # Errors
    /// What writing meets.
    pub fn sync(&self) -> Result<()> {
        Ok(self.writer.sync()?)
    }
}

fn scalars(metric: &Metric) -> Vec<(&'static str, f64)> {
    match metric {
        Metric::Step(step) => {
            let mut scalars = vec![
                ("train/loss", step.loss),
                ("train/grad_norm", step.grad_norm),
                ("train/learning_rate", step.learning_rate),
                ("train/epoch", step.epoch),
                ("train/tokens_per_second", step.tokens_per_second),
            ];
            scalars.extend(step.preference.iter().flat_map(|figures| preference(figures, &TRAIN)));
            scalars.extend(step.memory_bytes.map(|bytes| ("train/memory_mib", bytes as f64 / 1048576.0)));
            scalars
        }
        Metric::Skipped { .. } | Metric::Spike { .. } => vec![("train/skipped", 1.0)],
        Metric::Validation { loss, preference: figures, .. } => {
            let mut scalars = vec![("eval/loss", *loss)];
            scalars.extend(figures.iter().flat_map(|figures| preference(figures, &EVAL)));
            scalars
        }
        Metric::ExactMatch { exact_match, .. } => match exact_match.weights {
            Weights::Base | Weights::Adapter => vec![("eval/exact_match", exact_match.share())],
        },
        Metric::Sample { .. } | Metric::Resumed { .. } => Vec::new(),
    }
}

/// TRL's tags of preferences.
const TRAIN: [&str; 6] = [
    "train/rewards/accuracies",
    "train/rewards/margins",
    "train/rewards/chosen",
    "train/rewards/rejected",
    "train/logps/chosen",
    "train/logps/rejected",
];
const EVAL: [&str; 6] = [
    "eval/rewards/accuracies",
    "eval/rewards/margins",
    "eval/rewards/chosen",
    "eval/rewards/rejected",
    "eval/logps/chosen",
    "eval/logps/rejected",
];

fn preference(figures: &PreferenceFigures, tags: &[&'static str; 6]) -> [(&'static str, f64); 6] {
    let values = [
        figures.accuracy,
        figures.margin,
        figures.rewards_chosen,
        figures.rewards_rejected,
        figures.logps_chosen,
        figures.logps_rejected,
    ];
    std::array::from_fn(|index| (tags[index], values[index]))
}

/// The event files of a folder, oldest first.
fn event_files(dir: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(PREFIX) {
            paths.push(entry.path());
        }
    }
    paths.sort();
    Ok(paths)
}

/// Seconds since 1970.
pub fn wall_time() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn validation(step: u64) -> Metric {
        Metric::Validation { step, loss: step as f64, preference: None }
    }

    /// Steps of all figures, in the order in which TensorBoard reads them.
    fn steps(dir: &Path) -> Vec<u64> {
        let files = event_files(dir).unwrap();
        let events = files.iter().flat_map(|path| formats::tensorboard::read(path).unwrap());
        events.filter(|event| matches!(event.content, Content::Scalars(_))).map(|event| event.step).collect()
    }

    #[test]
    fn a_resumed_run_goes_on_in_a_new_file_and_repeats_no_step() {
        let dir = tempfile::tempdir().unwrap();
        let (events, metrics) = (dir.path().join("tensorboard"), dir.path().join("metrics.jsonl"));
        let write = |done_steps, new: std::ops::Range<u64>| {
            let mut log = EventLog::open(&events, done_steps, &metrics).unwrap();
            new.for_each(|step| log.append(&validation(step)).unwrap());
        };
        write(None, 0..6);
        write(Some(3), 4..9);
        assert_eq!(steps(&events), (0..9).collect::<Vec<_>>());
        write(Some(2), 3..5);
        assert_eq!(steps(&events), (0..5).collect::<Vec<_>>());
        assert_eq!(event_files(&events).unwrap().len(), 3);
        write(None, 0..2);
        assert_eq!(steps(&events), [0, 1]);
        write(Some(1), 2..3);
        assert_eq!(steps(&events), [0, 1, 2]);
    }

    #[test]
    fn a_run_that_asks_for_events_later_has_its_earlier_steps() {
        let dir = tempfile::tempdir().unwrap();
        let (events, path) = (dir.path().join("tensorboard"), dir.path().join("metrics.jsonl"));
        let lines: String =
            (0..4).map(|step| serde_json::to_string(&validation(step)).unwrap() + "\n").collect();
        std::fs::write(&path, lines).unwrap();
        let mut log = EventLog::open(&events, Some(3), &path).unwrap();
        log.append(&validation(4)).unwrap();
        assert_eq!(steps(&events), [0, 1, 2, 3, 4]);
    }
}
