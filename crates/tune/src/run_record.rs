//! What a training run left for the stages after it.

use crate::failure::Failure;
use std::path::Path;
use text::Conversation;
use trainer::Outcome;
use trainer::data::row::Row;
use trainer::options::HubBase;
use trainer::options::Source;
use trainer::record::RunRecord;
use trainer::run_dir::RunDir;

/// The figures of a run, finished or not.
pub fn read(run_dir: &Path) -> Result<Outcome, Failure> {
    Ok(RunDir::new(run_dir).outcome()?)
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

/// The commit on the hub that a run's base was taken from; nothing when there is no run, or its base is of this machine.
pub fn hub_base(run_dir: &Path) -> Result<Option<HubBase>, Failure> {
    let record = RunRecord::read(&RunDir::new(run_dir))?;
    Ok(record.and_then(|record| record.options.model.hub))
}

/// The first `limit` held-out conversations of data files, one of each after the other.
pub fn conversations(sources: &[Source], limit: usize) -> Result<Vec<Conversation>, Failure> {
    Ok(trainer::data::conversations(sources, limit)?)
}

/// Conversations and plain texts of rows that are taken at random, but the same ones each time.
pub fn sample(sources: &[Source], limit: usize) -> Result<(Vec<Conversation>, Vec<String>), Failure> {
    let (mut conversations, mut texts) = (Vec::new(), Vec::new());
    for row in trainer::data::sample(sources, limit)? {
        match row {
            Row::Chat(chat) => conversations.push(chat.conversation),
            // The better answer is what the model is to say.
            Row::Preference(preference) => {
                let [chosen, _] = preference.both();
                conversations.push(chosen);
            }
            Row::Text(text) => texts.push(text),
        }
    }
    Ok((conversations, texts))
}
