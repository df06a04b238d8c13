//! Experts put to work: cards and registry, engines, residency, pipelines, HTTP API and web page.
//!
//! An expert is a model file plus everything that must not drift between two calls (its card). Its budget is added
//! up from the head of the file before anything is loaded. An engine loads one, generates, and gives the memory back;
//! [`residency::Residency`] keeps exactly one expert resident and measures free memory around every load. A pipeline
//! chains experts, step by step, each from a hard reset.

#![deny(missing_docs)]
#![deny(unsafe_code)]

pub mod budget;
pub mod card;
mod clock;
pub mod engine;
pub mod error;
pub mod http;
pub mod memory;
pub mod pipeline;
pub mod registry;
pub mod residency;
pub mod suggest;

pub use card::ExpertCard;
pub use engine::{Engine, Loaded};
pub use error::{Error, Result};
pub use registry::Registry;
pub use residency::Residency;
