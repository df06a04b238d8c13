//! What a file was trained with: the tokenizer and the template of the run whose folder it lies in.

use crate::failure::Failure;
use crate::run_record;
use std::path::{Path, PathBuf};
use text::{ChatTemplate, Conversation, Tokenizer};
use trainer::Options;
use trainer::options::DataOptions;
use trainer::record::RunRecord;
use trainer::run_dir::RunDir;
use trainer::subject::Subject;

/// An export lies in `runs/x/export`, or in a folder there.
const LEVELS: usize = 3;

/// Held-out rows whose prompts are compared.
const ROWS: usize = 8;

/// The run that a file came from.
pub struct TrainedOn {
    pub run: PathBuf,
    base: Subject,
    /// Held-out rows.
    pub conversations: Vec<Conversation>,
}

impl TrainedOn {
    /// What turned text into tokens and conversations into text, where there is a template.
    pub fn language(&self) -> Option<(&Tokenizer, &ChatTemplate)> {
        Some((self.base.tokenizer(), self.base.template()?))
    }
}

/// Why there is nothing to compare with.
pub enum Unknown {
    /// The file lies in no run's folder.
    NoRun,
    /// It lies in one, which says this.
    Run(String),
}

/// The run that a file lies in, if it was made of that run's base.
pub fn of_file(file: &Path, base_blake3: Option<&str>) -> Result<TrainedOn, Unknown> {
    let run = file.ancestors().skip(1).take(LEVELS).find(|folder| folder.join("run.json").is_file());
    let run = run.ok_or(Unknown::NoRun)?;
    let unknown = |what: &dyn std::fmt::Display| Unknown::Run(format!("{}: {what}", run.display()));
    let run_dir = RunDir::new(run);
    let record = RunRecord::read(&run_dir).map_err(|error| unknown(&error))?.ok_or(Unknown::NoRun)?;
    if base_blake3.is_some_and(|hash| hash != record.inputs.base) {
        return Err(unknown(&"the run was trained on another base than the file was made of"));
    }
    // What the run kept counts, not what the recipe's file says by now.
    let kept = run_dir.chat_template();
    let data = DataOptions { chat_template: kept.is_file().then_some(kept), ..DataOptions::default() };
    let options = Options { model: record.options.model.clone(), data, ..Options::default() };
    let base = Subject::open(&options, None).map_err(|error| unknown(&error))?;
    let conversations = rows(&record).map_err(|failure| unknown(&failure.message))?;
    Ok(TrainedOn { run: run.to_owned(), base, conversations })
}

fn rows(record: &RunRecord) -> Result<Vec<Conversation>, Failure> {
    let sources = &record.options.data.test;
    match sources.iter().all(|source| source.path.is_file()) {
        true => run_record::conversations(sources, ROWS),
        false => Ok(Vec::new()),
    }
}
