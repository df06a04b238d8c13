//! JSON files, bounded in size, with errors that name the file.

use std::marker::PhantomData;
use std::path::Path;

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, MapAccess, Visitor};

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
    parse(path, &bytes)
}

/// Reads JSON from memory; `path` is for the error.
pub(crate) fn parse<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|source| Error::Json { path: path.to_owned(), source })
}

/// Writes a JSON file, indented, atomically.
///
/// # Errors
/// As [`crate::atomic::write_file`].
pub fn write<T: serde::Serialize>(path: &Path, value: &T) -> Result<()> {
    let mut bytes =
        serde_json::to_vec_pretty(value).map_err(|source| Error::Json { path: path.to_owned(), source })?;
    bytes.push(b'\n');
    crate::atomic::write_bytes(path, &bytes)
}

/// An object as it stands in the file: in order, a repeated key twice.
pub(crate) struct Entries<V>(pub Vec<(String, V)>);

impl<'de, V: Deserialize<'de>> Deserialize<'de> for Entries<V> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(EntriesVisitor(PhantomData))
    }
}

struct EntriesVisitor<V>(PhantomData<V>);

impl<'de, V: Deserialize<'de>> Visitor<'de> for EntriesVisitor<V> {
    type Value = Entries<V>;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Entries<V>, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Entries(entries))
    }
}
