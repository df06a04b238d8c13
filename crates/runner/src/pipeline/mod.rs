//! Pipelines: experts run one after another, each from a hard reset, stage by stage over the items.

pub mod check;
pub mod event;
mod expert;
pub mod journal;
mod rules;
pub mod run;
mod schema;
pub mod spec;
mod template;

pub use check::Pipeline;
pub use event::{Event, ItemResult};
pub use journal::{RunRecord, RunSummary, history, read_run};
pub use run::{Afterwards, Outcome, RunOptions, run};
pub use spec::PipelineSpec;
