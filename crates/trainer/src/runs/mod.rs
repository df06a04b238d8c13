//! Training runs on disk: which there are, how each stands, how they differ, and what of them is no longer needed.

mod clean;
mod compare;
mod size;

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Serialize;

use crate::checkpoint::{self, State};
use crate::course::Course;
use crate::error::{Error, Result};
use crate::event::ExactMatch;
use crate::lock;
use crate::metrics;
use crate::record::{RunRecord, read_json};
use crate::report;
use crate::run_dir::RunDir;

pub use clean::{Age, Reason, Removal, clean, removable};
pub use compare::{comparison_page, differing_options};
pub use size::tree_bytes;

/// How a run stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Standing {
    /// A process trains it now.
    Running {
        /// The process, as it wrote itself down.
        pid: String,
    },
    /// All steps are done and the adapter is written.
    Finished,
    /// No process trains it, and it is not finished.
    Interrupted {
        /// The step that it would go on from.
        checkpoint: u64,
    },
}

/// A run at a glance.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Summary {
    /// Its folder's name.
    pub name: String,
    /// Its folder.
    pub path: PathBuf,
    /// How it stands.
    #[serde(flatten)]
    pub standing: Standing,
    /// The base: its name on the hub, or its path.
    pub base: String,
    /// Steps done.
    pub steps: u64,
    /// Steps in all.
    pub total_steps: u64,
    /// Loss of the last step.
    pub train_loss: Option<f64>,
    /// Validation loss of the base.
    pub base_validation_loss: Option<f64>,
    /// The newest validation loss.
    pub validation_loss: Option<f64>,
    /// Lowest validation loss, and its step.
    pub best_validation_loss: Option<(f64, u64)>,
    /// Exact match of the base.
    pub base_exact_match: Option<ExactMatch>,
    /// Exact match with the adapter.
    pub adapter_exact_match: Option<ExactMatch>,
    /// Seconds spent in all sittings, as far as they were saved.
    pub seconds: f64,
    /// Size of everything in the folder.
    pub bytes: u64,
    /// When it began, in seconds since 1970.
    pub started_at: Option<u64>,
}

/// Folders of training runs directly under a folder, by name.
///
/// # Errors
/// [`Error::Io`] when the folder cannot be read; none is there when it does not exist.
pub fn find(folder: &Path) -> Result<Vec<RunDir>> {
    let failed = |source| Error::Io { path: folder.into(), source };
    let entries = match std::fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(failed(source)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let run_dir = RunDir::new(entry.map_err(failed)?.path());
        if run_dir.run_json().is_file() {
            found.push(run_dir);
        }
    }
    found.sort_by(|a, b| a.path().cmp(b.path()));
    Ok(found)
}

/// What a run was started with, and what it went through.
///
/// # Errors
/// [`Error::NothingToResume`] when there is no run; what reading meets.
pub fn read(run_dir: &RunDir) -> Result<(RunRecord, Course)> {
    let missing = || Error::NothingToResume { run_dir: run_dir.path().into() };
    let record = RunRecord::read(run_dir)?.ok_or_else(missing)?;
    Ok((record, Course::read(run_dir)?))
}

/// How a run stands, without reading long files through.
///
/// # Errors
/// [`Error::NothingToResume`] when there is no run; what reading meets.
pub fn summary(run_dir: &RunDir) -> Result<Summary> {
    let missing = || Error::NothingToResume { run_dir: run_dir.path().into() };
    let record = RunRecord::read(run_dir)?.ok_or_else(missing)?;
    let mut course = Course::default();
    if run_dir.metrics().exists() {
        metrics::ends(&run_dir.metrics())?.into_iter().for_each(|metric| course.add(metric));
    }
    let newest = newest_state(run_dir)?;
    let standing = standing(run_dir, &record, newest.as_ref())?;
    let outcome = &record.outcome;
    let best = newest.as_ref().and_then(|state| state.best).into_iter().chain(course.best_validation_loss());
    Ok(Summary {
        name: report::name(run_dir),
        path: run_dir.path().into(),
        standing,
        base: record.base_name(),
        steps: course.last_step().max(outcome.steps),
        total_steps: outcome.total_steps,
        train_loss: course.train_loss().or(outcome.train_loss),
        base_validation_loss: course.base_validation_loss().or(outcome.base_validation_loss),
        validation_loss: course.validation_loss(outcome),
        best_validation_loss: outcome
            .best_validation_loss
            .into_iter()
            .chain(best)
            .min_by(|a, b| a.0.total_cmp(&b.0)),
        base_exact_match: outcome.base_exact_match,
        adapter_exact_match: outcome.adapter_exact_match,
        seconds: newest.map_or(0.0, |state| state.seconds).max(outcome.seconds),
        bytes: tree_bytes(run_dir.path())?,
        started_at: record.started_at,
    })
}

fn standing(run_dir: &RunDir, record: &RunRecord, newest: Option<&State>) -> Result<Standing> {
    if let Some(pid) = lock::holder(run_dir)? {
        return Ok(Standing::Running { pid });
    }
    if is_finished(run_dir, record) {
        return Ok(Standing::Finished);
    }
    Ok(Standing::Interrupted { checkpoint: newest.map_or(0, |state| state.step) })
}

/// A run whose adapter is gone can only be finished anew, from its checkpoints.
fn is_finished(run_dir: &RunDir, record: &RunRecord) -> bool {
    record.outcome.is_finished && run_dir.adapter().is_dir()
}

/// The state of the newest checkpoint, if it can be read.
fn newest_state(run_dir: &RunDir) -> Result<Option<State>> {
    let Some(step) = checkpoint::steps(run_dir)?.pop() else { return Ok(None) };
    // A damaged one is found out, and passed over, when the run goes on.
    Ok(read_json(&run_dir.checkpoint(step).join("state.json")).unwrap_or(None))
}

/// Time since something in the run was last written.
fn untouched_for(run_dir: &RunDir) -> std::time::Duration {
    let paths = [run_dir.run_json(), run_dir.metrics(), run_dir.checkpoints(), run_dir.lock()];
    let modified = paths.iter().filter_map(|path| path.metadata().and_then(|about| about.modified()).ok());
    let newest = modified.max().unwrap_or(SystemTime::UNIX_EPOCH);
    SystemTime::now().duration_since(newest).unwrap_or_default()
}
