//! Running a pipeline: stage by stage over the items, each result on disk before the next begins.

use std::path::PathBuf;

use formats::Observer;

use super::check::Pipeline;
use super::event::{Event, ItemResult};
use crate::{Residency, Result};

/// How a pipeline is run.
#[derive(Debug, Clone, Default)]
pub struct RunOptions {
    /// Where runs are kept: a directory a run.
    pub runs: PathBuf,
    /// Goes on with this run instead of beginning one.
    pub resume: Option<String>,
    /// Overrides of the pipeline's params.
    pub params: serde_json::Map<String, serde_json::Value>,
}

/// What a run gave.
#[derive(Debug, Clone, PartialEq)]
pub struct Outcome {
    /// The run's id.
    pub run: String,
    /// Its directory.
    pub directory: PathBuf,
    /// Every item of every step, steps in order.
    pub results: Vec<ItemResult>,
    /// Loads of an expert.
    pub n_loads: u64,
    /// Items a check objected to.
    pub n_objected: usize,
}

/// Runs a pipeline on an input.
///
/// # Errors
/// [`crate::Error::Step`] names step and item; [`crate::Error::Cancelled`] once `cancelled` says so. What was
/// committed stays, and the run can be resumed.
pub fn run(
    pipeline: &Pipeline,
    input: &str,
    options: &RunOptions,
    residency: &mut Residency,
    cancelled: &dyn Fn() -> bool,
    observer: &mut dyn Observer<Event>,
) -> Result<Outcome> {
    let _ = (pipeline, input, options, residency, cancelled, observer);
    todo!()
}
