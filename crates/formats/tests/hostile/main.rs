//! Files made to hurt: no panic, and no more memory than the file itself gives reason for.

#![allow(clippy::result_large_err, reason = "errors are looked at, in tests")]

mod counting;
mod fuzz;
mod heads;
