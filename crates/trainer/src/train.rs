//! One training run from options to adapter.

use std::sync::atomic::AtomicBool;

use formats::observe::Observer;

use crate::error::Result;
use crate::event::{Event, Outcome};
use crate::options::Options;

/// Runs or resumes a training run.
///
/// Setting `cancel` ends it after the current step with a checkpoint; the outcome then says that it is not finished.
///
/// # Errors
/// Everything of [`crate::Error`]; nothing is written before options, data and plan are found sound.
pub fn train(options: &Options, observer: &mut dyn Observer<Event>, cancel: &AtomicBool) -> Result<Outcome> {
    options.validate()?;
    let _ = (observer, cancel);
    todo!()
}
