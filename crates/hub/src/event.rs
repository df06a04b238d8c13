//! What a download reports while it goes.

use std::path::PathBuf;

use serde::Serialize;

/// One thing that happened in a download.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// What is to come, before its first byte.
    PullPlan {
        /// The model as it was asked for.
        id: String,
        /// The commit that its revision stands for.
        commit: String,
        /// Files that training needs.
        n_files: usize,
        /// Their size.
        total_bytes: u64,
        /// What of it is not in the cache yet.
        download_bytes: u64,
        /// The model's folder in the cache.
        folder: PathBuf,
    },
    /// Bytes came in; some four times a second.
    PullProgress {
        /// The file they belong to.
        file: String,
        /// Bytes of this download that are there, of all files.
        done_bytes: u64,
        /// Bytes to download in all.
        total_bytes: u64,
        /// Over the last seconds.
        bytes_per_second: f64,
    },
    /// A file is complete and its checksum is right.
    PullFile {
        /// Its name.
        file: String,
        /// Its size.
        bytes: u64,
    },
    /// A part of a file is here from before, and is continued.
    PullResumed {
        /// Its name.
        file: String,
        /// Bytes that are there.
        have_bytes: u64,
        /// Its size.
        bytes: u64,
    },
    /// A part that is here does not help: the file is read from its beginning.
    PullStartedOver {
        /// Its name.
        file: String,
        /// Why.
        reason: String,
    },
    /// The connection failed and is tried again.
    PullRetry {
        /// What was asked for.
        what: String,
        /// How it failed.
        reason: String,
        /// Time until the next try.
        wait_ms: u64,
    },
    /// Another process downloads the same file; this one goes on when that has ended.
    PullWaiting {
        /// The file that is locked.
        path: PathBuf,
    },
    /// The hub cannot be reached; what the cache has is used, without knowing whether the hub has more.
    PullUnasked {
        /// The model.
        id: String,
        /// Why the hub was not asked.
        reason: String,
    },
    /// Everything is in the cache.
    PullFinished {
        /// The folder, or the GGUF.
        path: PathBuf,
        /// What was downloaded.
        downloaded_bytes: u64,
        /// How long it took.
        seconds: f64,
    },
}
