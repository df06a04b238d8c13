//! What an export reports while it runs.

use std::path::PathBuf;

use serde::Serialize;

use crate::{Figures, GateFigures};

/// One report of an export, in the order in which they come.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The importance of the columns is being measured.
    Measuring {
        /// Layers that are done.
        done: usize,
        /// How many there are.
        total: usize,
    },
    /// There is a matrix of the importance of the columns.
    Measured {
        /// Its file.
        path: PathBuf,
        /// Tokens it is measured on.
        n_tokens: usize,
        /// Whether it was measured now, or was there of the same model and texts.
        is_new: bool,
    },
    /// Everything was checked; writing begins.
    Planned {
        /// The file that is to appear.
        file: PathBuf,
        /// Its tensors.
        n_tensors: usize,
        /// How many of them the adapter changes.
        n_merged: usize,
        /// How many of them are quantised with an importance matrix.
        n_important: usize,
        /// Its exact size.
        file_bytes: u64,
        /// Bytes of it that a killed export of the same left, and that are kept.
        kept_bytes: u64,
        /// What was free on its disk.
        free_bytes: u64,
        /// Mean bits of a weight.
        bits_per_weight: f64,
    },
    /// A tensor was merged, quantised and written, to one or several files.
    Tensor {
        /// Which one, from 0.
        index: usize,
        /// How many there are.
        n_tensors: usize,
        /// Its name in the file.
        name: String,
        /// Its type in the first file.
        type_name: &'static str,
        /// The bytes of the files up to here.
        written_bytes: u64,
        /// The size of the files.
        file_bytes: u64,
        /// Seconds since the first byte was written.
        seconds: f64,
    },
    /// Of a file all is written; now it is checked.
    Checking {
        /// The file that is to appear.
        file: PathBuf,
    },
    /// The file was read back: table, hashes and sampled rows are as meant.
    ReadBack {
        /// Rows that were decoded and compared with the merged weights.
        n_rows: usize,
        /// Seconds since the start of the export.
        seconds: f64,
    },
    /// The engine has loaded the file.
    Loaded {
        /// Seconds that loading took.
        seconds: f64,
    },
    /// One held-out row was answered.
    GateRow {
        /// Which one, from 0.
        index: usize,
        /// How many there are.
        n_rows: usize,
        /// Whether the answer equals the expected one.
        is_exact: bool,
        /// Whether the end-of-turn token ended it.
        stopped: bool,
    },
    /// The file's predictions are being compared with those of the merged model.
    Comparing {
        /// Layers and texts that are done.
        done: usize,
        /// How many there are.
        total: usize,
    },
    /// The gate's figures, beside the adapter's.
    Gate {
        /// What the exported file reached.
        figures: GateFigures,
        /// What the run recorded for the adapter.
        adapter: Option<Figures>,
    },
    /// The file has its final name.
    Finished {
        /// The file.
        file: PathBuf,
        /// Its size.
        file_bytes: u64,
        /// Seconds that the export took.
        seconds: f64,
    },
}
