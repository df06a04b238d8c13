//! What a training run left for the stages after it.

use crate::failure::Failure;
use std::path::Path;
use text::Message;
use trainer::Outcome;

/// The figures of a run, finished or not.
pub fn read(run_dir: &Path) -> Result<Outcome, Failure> {
    Ok(trainer::run_dir::RunDir::new(run_dir).outcome()?)
}

/// The figures of a run that has ended.
///
/// # Errors
/// There is no run, or it has not finished.
pub fn finished(run_dir: &Path) -> Result<Outcome, Failure> {
    let outcome = read(run_dir)?;
    if outcome.is_finished {
        return Ok(outcome);
    }
    Err(Failure::new(format!(
        "{} has stopped after step {} of {}",
        run_dir.display(),
        outcome.steps,
        outcome.total_steps
    ))
    .hint("finish it first with --resume"))
}

/// The first `limit` held-out conversations of a data file.
pub fn conversations(path: &Path, limit: usize) -> Result<Vec<Vec<Message>>, Failure> {
    Ok(trainer::data::conversations(path, limit)?)
}
