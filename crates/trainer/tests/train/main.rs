//! Whole runs over a tiny base that the test writes itself: results, records, resuming, refusals.

mod asked;
mod cache;
mod kept_rows;
mod offload;
mod policies;
mod preference;
mod records;
mod refusals;
mod results;
mod resume;
mod tiny_base;
mod trained_model;
