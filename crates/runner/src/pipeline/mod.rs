//! Pipelines: experts run one after another, each from a hard reset, stage by stage over the items.

pub mod check;
pub mod event;
pub mod run;
pub mod spec;

pub use check::Pipeline;
pub use event::{Event, ItemResult};
pub use run::{Outcome, RunOptions, run};
pub use spec::PipelineSpec;
