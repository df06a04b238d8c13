//! Room on a disk: how much is free, and reserving it before a long write.
use std::fs::File;
use std::path::Path;

use crate::Result;

/// Bytes that may still be written to the file system that holds `path` (or its nearest existing parent).
///
/// # Errors
/// [`crate::Error::Io`].
pub fn free_bytes(path: &Path) -> Result<u64> {
    let _ = path;
    todo!()
}

/// Reserves `bytes` for `file`, whose path is only for the error.
///
/// # Errors
/// [`crate::Error::DiskFull`] naming need and have.
pub fn reserve(file: &File, path: &Path, bytes: u64) -> Result<()> {
    let _ = (file, path, bytes);
    todo!()
}
