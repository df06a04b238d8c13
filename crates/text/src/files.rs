//! Reading the small files of a model directory, none of them without a limit.

use std::path::Path;

use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// The largest published tokenizer.json files have some 35 MB.
const LIMIT_BYTES: u64 = 256 << 20;

/// The bytes of a file; `None` when there is no such file.
pub(crate) fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    let failed = |source| Error::Read { path: path.to_owned(), source };
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
        Ok(file) if file.len() > LIMIT_BYTES => {
            return Err(Error::TooLarge { path: path.to_owned(), bytes: file.len(), limit: LIMIT_BYTES });
        }
        Ok(_) => {}
    }
    std::fs::read(path).map(Some).map_err(failed)
}

/// A JSON file; `None` when there is no such file.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let Some(bytes) = read(path)? else { return Ok(None) };
    formats::json::from_python(&bytes)
        .map(Some)
        .map_err(|source| Error::Json { path: path.to_owned(), source })
}
