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
    parse(path, &bounded(path)?)
}

/// Reads a JSON file that Python wrote: see [`from_python`].
///
/// # Errors
/// As [`read`].
pub fn read_python<T: DeserializeOwned>(path: &Path) -> Result<T> {
    from_python(&bounded(path)?).map_err(|source| Error::Json { path: path.to_owned(), source })
}

fn bounded(path: &Path) -> Result<Vec<u8>> {
    let failed = |source| Error::Io { path: path.to_owned(), action: "read", source };
    let length = std::fs::metadata(path).map_err(failed)?.len();
    if length > MAX_BYTES {
        let place = "its size in bytes".to_owned();
        return Err(Error::TooLarge { path: path.to_owned(), place, limit: MAX_BYTES, actual: length });
    }
    std::fs::read(path).map_err(failed)
}

/// Reads JSON from memory; `path` is for the error.
pub(crate) fn parse<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|source| Error::Json { path: path.to_owned(), source })
}

/// Reads JSON as Python writes it, where numbers beyond all numbers stand bare: `[0.0, Infinity]`.
///
/// What is no JSON for that reason alone is read as if `Infinity`, `-Infinity` and `NaN` were texts.
///
/// # Errors
/// What is wrong with the JSON otherwise.
pub fn from_python<T: DeserializeOwned>(bytes: &[u8]) -> serde_json::Result<T> {
    serde_json::from_slice(bytes).or_else(|error| match with_quoted_numbers(bytes) {
        Some(quoted) => serde_json::from_slice(&quoted),
        None => Err(error),
    })
}

/// The same with quotation marks around bare numbers that JSON does not have; `None` where there are none.
fn with_quoted_numbers(bytes: &[u8]) -> Option<Vec<u8>> {
    const NAMES: [&[u8]; 3] = [b"-Infinity", b"Infinity", b"NaN"];
    let (mut quoted, mut in_text, mut at) = (Vec::with_capacity(bytes.len() + 16), false, 0);
    while at < bytes.len() {
        let name = NAMES.into_iter().find(|name| !in_text && bytes[at..].starts_with(name));
        if let Some(name) = name {
            quoted.extend([b"\"", name, b"\""].concat());
            at += name.len();
            continue;
        }
        let n = if in_text && bytes[at] == b'\\' { 2.min(bytes.len() - at) } else { 1 };
        in_text ^= bytes[at] == b'"';
        quoted.extend(&bytes[at..at + n]);
        at += n;
    }
    (quoted.len() > bytes.len()).then_some(quoted)
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
#[derive(Debug, Clone, Default)]
pub struct Entries<V>(pub Vec<(String, V)>);

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

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn check(text: &str, expected: Option<Value>) {
        assert_eq!(from_python::<Value>(text.as_bytes()).ok(), expected, "{text}");
    }

    #[test]
    fn bare_numbers_of_python_become_texts() {
        check("[0.0, Infinity]", Some(json!([0.0, "Infinity"])));
        check(r#"{"a": -Infinity, "b": NaN}"#, Some(json!({"a": "-Infinity", "b": "NaN"})));
        check(r#"["NaN \" Infinity", NaN, "\\"]"#, Some(json!(["NaN \" Infinity", "NaN", "\\"])));
    }

    #[test]
    fn what_is_wrong_otherwise_stays_wrong() {
        check("[Infinit]", None);
        check("[NaN", None);
        check("[1, Infinity}", None);
        check("\"\\", None);
    }
}
