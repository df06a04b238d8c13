//! Training: options -> data -> plan -> loop -> checkpoints -> adapter, and its evaluation.
//!
//! One call, [`train`], runs or resumes a training run and reports through an observer of [`Event`]s.  Everything
//! that a run writes lies in one folder, described in [`run_dir`]; nothing is printed here.

#![deny(missing_docs)]
#![forbid(unsafe_code)]

pub mod error;
pub mod event;
pub mod options;

pub mod survey;
mod train;

mod base_cache;
mod base_files;
pub mod data;
mod memory_use;
pub mod offload;
mod plan;

pub mod chat;
pub mod comparison;
pub mod subject;

mod adapter_files;
mod beginning;
mod evaluate;
mod preference;
pub mod probe;
mod reference;
mod schedule;
mod session;
mod speed;
mod spikes;

mod checkpoint;
pub mod course;
mod lock;
pub mod metrics;
pub mod record;
pub mod report;
pub mod run_dir;
pub mod runs;
mod tensorboard;

pub use base_cache::CacheOptions;
pub use error::{Change, Error, Result};
pub use event::{End, Event, ExactMatch, Outcome, PlanTable, PreferenceFigures, StepReport, Unit, Weights};
pub use options::{
    Init, Length, Method, OnTooLong, Options, ResultAdapter, Scheduler, Start, TrainOn, Warmup,
};
pub use train::train;
