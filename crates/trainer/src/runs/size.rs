//! How much disk files and folders take.

use std::path::Path;

use crate::error::{Error, Result};

/// Bytes of a file, or of all files under a folder; links are not followed, and what is not there takes none.
///
/// # Errors
/// [`Error::Io`].
pub fn tree_bytes(path: &Path) -> Result<u64> {
    let failed = |source| Error::Io { path: path.into(), source };
    let about = match path.symlink_metadata() {
        Ok(about) => about,
        // A run that goes on removes files of its own.
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(source) => return Err(failed(source)),
    };
    if !about.is_dir() {
        return Ok(about.len());
    }
    let entries = match std::fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(source) => return Err(failed(source)),
    };
    let mut bytes = 0;
    for entry in entries {
        bytes += tree_bytes(&entry.map_err(failed)?.path())?;
    }
    Ok(bytes)
}
