//! A model's blocks on disk as they lie in memory, to be mapped: what a base that was quantised once is kept as.
//!
//! ```text
//! "TUNEBLK1"            8 bytes
//! length of the index   u64, little endian
//! index                 JSON: key, and of each tensor name, type, rows, cols, offset, bytes
//! tensors               each at a multiple of 64 bytes from the start of the file
//! ```
//!
//! A cache, read by the program that wrote it: another version of the layout has another magic, and is written anew.

use std::collections::HashMap;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::atomic::Output;
use crate::map::Map;
use crate::{BlockType, Error, Result};

const MAGIC: &[u8; 8] = b"TUNEBLK1";
const ALIGNMENT: usize = 64;
/// Far above the index of any model: 400 bytes for each of 100,000 tensors.
const MAX_INDEX_BYTES: usize = 64 << 20;

/// A tensor to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Planned {
    /// Its name.
    pub name: String,
    /// How it is encoded.
    pub block_type: BlockType,
    /// Its rows.
    pub rows: usize,
    /// Weights of a row.
    pub cols: usize,
}

#[derive(Serialize, Deserialize)]
struct Index {
    key: String,
    tensors: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    name: String,
    #[serde(rename = "type")]
    block_type: String,
    rows: usize,
    cols: usize,
    offset: usize,
    bytes: usize,
}

/// Writes the tensors of a model one after the other.
pub struct BlockWriter<'a> {
    out: &'a mut Output,
    ends: std::vec::IntoIter<(usize, usize)>,
    at: usize,
    /// Where the tensor that is being written ends.
    end: usize,
}

impl<'a> BlockWriter<'a> {
    /// Reserves room for the whole file and writes its head; `key` says what the blocks are of.
    ///
    /// # Errors
    /// [`Error::DiskFull`], [`Error::RowLength`], what writing meets.
    pub fn begin(out: &'a mut Output, key: &str, tensors: &[Planned]) -> Result<Self> {
        // Offsets count from the end of the index while its length is not known; readers add it.
        let (mut entries, mut offset) = (Vec::with_capacity(tensors.len()), 0usize);
        for Planned { name, block_type, rows, cols } in tensors {
            let bytes = rows * block_type.row_bytes(*cols)?;
            let block_type = block_type.name().to_owned();
            entries.push(Entry { name: name.clone(), block_type, rows: *rows, cols: *cols, offset, bytes });
            offset = (offset + bytes).next_multiple_of(ALIGNMENT);
        }
        let ends: Vec<_> = entries.iter().map(|entry| (entry.offset, entry.offset + entry.bytes)).collect();
        let index = Index { key: key.to_owned(), tensors: entries };
        let index = serde_json::to_vec(&index).map_err(|source| json_error(out.path(), source))?;
        let head = MAGIC.len() + 8 + index.len();
        let padding = head.next_multiple_of(ALIGNMENT) - head;
        out.reserve((head + padding + offset) as u64)?;
        let mut writer = Self { out, ends: ends.into_iter(), at: 0, end: 0 };
        writer.write_all(MAGIC)?;
        writer.write_all(&(index.len() as u64).to_le_bytes())?;
        writer.write_all(&index)?;
        writer.write_all(&[0; ALIGNMENT][..padding])?;
        Ok(writer)
    }

    /// Writes the next bytes of the tensors, which come in the planned order, each in as many parts as suits.
    ///
    /// # Errors
    /// [`Error::Plan`] for more than was planned; what writing meets.
    pub fn write(&mut self, blocks: &[u8]) -> Result<()> {
        if self.at == self.end && !blocks.is_empty() {
            let (start, end) = self.ends.next().ok_or_else(|| self.unplanned(blocks.len()))?;
            self.write_all(&[0; ALIGNMENT][..start - self.at])?;
            (self.at, self.end) = (start, end);
        }
        if self.at + blocks.len() > self.end {
            return Err(self.unplanned(blocks.len()));
        }
        self.at += blocks.len();
        self.write_all(blocks)
    }

    /// Checks that everything was written.
    ///
    /// # Errors
    /// [`Error::Plan`] when something is missing.
    pub fn finish(self) -> Result<()> {
        if self.at == self.end && self.ends.len() == 0 { Ok(()) } else { Err(self.unplanned(0)) }
    }

    fn unplanned(&self, more: usize) -> Error {
        let actual = format!("{more} bytes at byte {} of the tensors", self.at);
        Error::Plan { name: "blocks".to_owned(), expected: "as many as planned".to_owned(), actual }
    }

    fn write_all(&mut self, bytes: &[u8]) -> Result<()> {
        let result = self.out.write_all(bytes);
        result.map_err(|source| Error::Write { what: self.out.path().display().to_string(), source })
    }
}

/// A file of blocks, mapped.
#[derive(Debug)]
pub struct BlockFile {
    path: PathBuf,
    map: Arc<Map>,
    tensors: HashMap<String, (Planned, Range<usize>)>,
}

impl BlockFile {
    /// Maps a file and checks that it is whole and of this key.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Json`], [`Error::Malformed`], [`Error::Truncated`].
    pub fn open(path: &Path, key: &str) -> Result<Self> {
        let map = Arc::new(Map::open(path)?);
        let bytes = map.bytes();
        let malformed = |place: &str, expected: &str, actual: String| {
            let (path, place, expected) = (path.to_owned(), place.to_owned(), expected.to_owned());
            Error::Malformed { path, place, expected, actual }
        };
        let head = bytes.first_chunk::<16>().ok_or_else(|| truncated(path, "the head", 16, bytes.len()))?;
        if &head[..8] != MAGIC {
            let actual = String::from_utf8_lossy(&head[..8]).into_owned();
            return Err(malformed("the first 8 bytes", "TUNEBLK1", format!("{actual:?}")));
        }
        let length = u64::from_le_bytes(head[8..].try_into().unwrap_or_default());
        let length = usize::try_from(length).ok().filter(|&length| length <= MAX_INDEX_BYTES);
        let length = length
            .ok_or_else(|| malformed("the length of the index", "at most 64 MiB", "more".to_owned()))?;
        let index =
            bytes.get(16..16 + length).ok_or_else(|| truncated(path, "the index", length, bytes.len()))?;
        let index: Index = serde_json::from_slice(index).map_err(|source| json_error(path, source))?;
        if index.key != key {
            return Err(malformed("the key", key, index.key));
        }
        let start = (16 + length).next_multiple_of(ALIGNMENT);
        let mut tensors = HashMap::with_capacity(index.tensors.len());
        for Entry { name, block_type, rows, cols, offset, bytes: size } in index.tensors {
            let ty = BlockType::from_name(&block_type);
            let ty =
                ty.ok_or_else(|| malformed(&format!("the type of `{name}`"), "a block type", block_type))?;
            let expected = ty.row_bytes(cols).ok().and_then(|bytes| bytes.checked_mul(rows));
            let end = start.checked_add(offset).and_then(|begin| begin.checked_add(size));
            match end.filter(|&end| end <= bytes.len()) {
                Some(end) if expected == Some(size) => {
                    let planned = Planned { name: name.clone(), block_type: ty, rows, cols };
                    tensors.insert(name, (planned, end - size..end));
                }
                Some(_) => {
                    let expected = format!("{rows} rows of {cols}");
                    return Err(malformed(&format!("the size of `{name}`"), &expected, size.to_string()));
                }
                None => return Err(truncated(path, &name, size, bytes.len())),
            }
        }
        Ok(Self { path: path.to_owned(), map, tensors })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The map that all tensors lie in.
    #[must_use]
    pub fn map(&self) -> &Arc<Map> {
        &self.map
    }

    /// A tensor and where its blocks lie in the map.
    ///
    /// # Errors
    /// [`Error::NoSuchTensor`].
    pub fn tensor(&self, name: &str) -> Result<(&Planned, Range<usize>)> {
        let missing = || Error::NoSuchTensor { path: self.path.clone(), tensor: name.to_owned() };
        self.tensors.get(name).map(|(planned, range)| (planned, range.clone())).ok_or_else(missing)
    }
}

fn truncated(path: &Path, place: &str, expected: usize, actual: usize) -> Error {
    let (path, place) = (path.to_owned(), place.to_owned());
    Error::Truncated { path, place, expected: expected as u64, actual: actual as u64 }
}

fn json_error(path: &Path, source: serde_json::Error) -> Error {
    Error::Json { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::atomic;

    fn planned() -> Vec<Planned> {
        let plan =
            |name: &str, block_type, rows, cols| Planned { name: name.to_owned(), block_type, rows, cols };
        vec![
            plan("a", BlockType::Q4K, 3, 256),
            plan("b", BlockType::F32, 1, 5),
            plan("c", BlockType::Nf4, 2, 64),
        ]
    }

    fn write(path: &Path, key: &str, parts: &[&[u8]]) -> Result<()> {
        atomic::write_file(path, |out| {
            let mut writer = BlockWriter::begin(out, key, &planned())?;
            parts.iter().try_for_each(|part| writer.write(part))?;
            writer.finish()
        })
    }

    fn sample(dir: &Path) -> PathBuf {
        let path = dir.join("x.blocks");
        let (a, b, c) = ([1; 3 * 144], [2; 20], [3; 2 * 41]);
        write(&path, "k", &[&a[..100], &a[100..], &b, &c]).unwrap();
        path
    }

    #[test]
    fn what_is_written_is_mapped_back() {
        let dir = tempfile::tempdir().unwrap();
        let file = BlockFile::open(&sample(dir.path()), "k").unwrap();
        for (plan, (byte, size)) in planned().iter().zip([(1, 432), (2, 20), (3, 82)]) {
            let (found, range) = file.tensor(&plan.name).unwrap();
            assert_eq!((found, range.start % ALIGNMENT, range.len()), (plan, 0, size));
            assert!(file.map().bytes()[range].iter().all(|&found| found == byte));
        }
        assert!(file.tensor("d").is_err());
    }

    #[test]
    fn another_amount_than_planned_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.blocks");
        for parts in [&[&[0u8; 431][..]][..], &[&[0; 433]], &[&[0; 432], &[0; 20], &[0; 82], &[0; 1]]] {
            assert!(write(&path, "k", parts).unwrap_err().to_string().contains("as many as planned"));
            assert!(!path.exists());
        }
    }

    #[test]
    fn a_damaged_file_is_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = sample(dir.path());
        let whole = std::fs::read(&path).unwrap();
        assert!(BlockFile::open(&path, "other").is_err());
        for length in [0, 7, 15, 40, whole.len() / 2, whole.len() - 1] {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert!(BlockFile::open(&path, "k").is_err(), "{length} of {} bytes", whole.len());
        }
        for (at, byte) in [(0, b'X'), (8, 255), (15, 255), (20, b'{')] {
            let mut damaged = whole.clone();
            damaged[at] = byte;
            std::fs::write(&path, damaged).unwrap();
            assert!(BlockFile::open(&path, "k").is_err(), "byte {at}");
        }
    }
}
