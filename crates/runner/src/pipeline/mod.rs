//! Pipelines: experts run one after another, each from a hard reset, stage by stage over the items.

pub mod check;
pub mod event;
mod expert;
pub mod journal;
mod program;
mod replies;
mod retrieve;
mod route;
mod rules;
pub mod run;
mod schema;
pub mod spec;
pub mod step;
mod template;

pub use check::Pipeline;
pub use event::{Cut, Event, ItemResult, Round, State};
pub use journal::{Load, RunRecord, RunSummary, Switch, history, read_run};
pub use program::Programs;
pub use replies::replies;
pub(crate) use replies::replies_of;
pub use run::{Afterwards, Outcome, RunOptions, run};
pub use spec::PipelineSpec;
pub use step::StepKind;
