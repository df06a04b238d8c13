//! The formats with a fixed set of values: IQ4 with sixteen numbers, IQ2 and IQ3 with points of a grid, several weights
//! a point, and their signs apart.

pub(super) mod four;
mod grid;
mod search;
mod tables;
pub(super) mod three;
pub(super) mod two;
