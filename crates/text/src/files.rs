//! Reading the small files of a model directory, none of them without a limit.

use std::path::Path;

use formats::config::TOKENIZER_FILES;
use serde::de::DeserializeOwned;

use crate::{Error, Result};

/// The largest published tokenizer.json files have some 35 MB.
const LIMIT_BYTES: u64 = 256 << 20;

/// One BLAKE3 of all files of a folder that decide what its tokenizer does; those that it lacks are passed over.
///
/// # Errors
/// What reading them meets.
pub fn files_blake3(dir: &Path) -> formats::Result<String> {
    let mut listed = String::new();
    for name in TOKENIZER_FILES {
        let path = dir.join(name);
        if path.is_file() {
            listed += &format!("{name} {}\n", formats::hash::blake3_file(&path)?);
        }
    }
    Ok(formats::hash::blake3_bytes(listed.as_bytes()))
}

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
