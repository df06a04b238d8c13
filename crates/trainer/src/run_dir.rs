//! The folder of a run: names of everything in it.
//!
//! ```text
//! runs/x/lock                   held while a process writes the run; names that process
//!        run.json               options, hashes of the inputs, figures
//!        chat_template.jinja    the template, where it is another than the base's
//!        metrics.jsonl          one object a step, validation, exact match or sample
//!        report.html            a page made of run.json and metrics.jsonl
//!        tensorboard/           event files, where the recipe asks for them
//!        checkpoints/step-N/    adapter, moments, state.json, manifest.json
//!        reference.jsonl        log-likelihoods of the answers of preferences under the base, where DPO needs them
//!        init/                  A and B at step 0 and what the base is held without, where a method made them
//!        adapter/               the result, PEFT layout
//!        best/                  the adapter with the lowest validation loss, PEFT layout
//! ```

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::event::Outcome;
use crate::record::RunRecord;

/// The folder of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunDir(PathBuf);

impl RunDir {
    /// The run in this folder, which need not exist.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// File that is locked while a process writes the run.
    pub fn lock(&self) -> PathBuf {
        self.0.join("lock")
    }

    /// Options, hashes of the inputs, figures.
    pub fn run_json(&self) -> PathBuf {
        self.0.join("run.json")
    }

    /// Figures of the run so far.
    ///
    /// # Errors
    /// [`Error::NothingToResume`] when there is no run; [`Error::Io`] when its record cannot be read.
    pub fn outcome(&self) -> Result<Outcome> {
        let record =
            RunRecord::read(self)?.ok_or_else(|| Error::NothingToResume { run_dir: self.0.clone() })?;
        Ok(record.outcome)
    }

    /// The chat template, where it is another than the base's.
    pub fn chat_template(&self) -> PathBuf {
        self.0.join("chat_template.jinja")
    }

    /// One object a step, validation, exact match or sample.
    pub fn metrics(&self) -> PathBuf {
        self.0.join("metrics.jsonl")
    }

    /// The page that shows the run.
    pub fn report(&self) -> PathBuf {
        self.0.join("report.html")
    }

    /// Folder of TensorBoard's event files.
    pub fn tensorboard(&self) -> PathBuf {
        self.0.join("tensorboard")
    }

    /// Folder of all checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.0.join("checkpoints")
    }

    /// Folder of one checkpoint.
    pub fn checkpoint(&self, step: u64) -> PathBuf {
        self.checkpoints().join(format!("step-{step}"))
    }

    /// Log-likelihoods of the answers of preferences under the base.
    pub fn reference(&self) -> PathBuf {
        self.0.join("reference.jsonl")
    }

    /// Where A and B began, if a method took them from the weights.
    pub fn init(&self) -> PathBuf {
        self.0.join("init")
    }

    /// The result, PEFT layout.
    pub fn adapter(&self) -> PathBuf {
        self.0.join("adapter")
    }

    /// The adapter with the lowest validation loss, PEFT layout.
    pub fn best(&self) -> PathBuf {
        self.0.join("best")
    }
}
