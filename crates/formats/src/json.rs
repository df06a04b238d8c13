//! JSON files, bounded in size, with errors that name the file.
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// The largest JSON file that is read; the largest published ones (tokenizers) are near 35 MB.
const MAX_BYTES: u64 = 256 << 20;

/// Reads a JSON file.
///
/// # Errors
/// [`Error::Io`], [`Error::TooLarge`], [`Error::Json`].
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let failed = |source| Error::Io { path: path.to_owned(), action: "read", source };
    let length = std::fs::metadata(path).map_err(failed)?.len();
    if length > MAX_BYTES {
        let place = "its size in bytes".to_owned();
        return Err(Error::TooLarge { path: path.to_owned(), place, limit: MAX_BYTES, actual: length });
    }
    let bytes = std::fs::read(path).map_err(failed)?;
    serde_json::from_slice(&bytes).map_err(|source| Error::Json { path: path.to_owned(), source })
}
