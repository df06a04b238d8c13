//! Hashes of large files that are not read again while they stay as they are.
//!
//! A file counts as unchanged while its path, length, time of change and inode are; one that changed less than two
//! seconds ago might change again within a tick of the clock, and is read every time, as git does.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::{Error, Result, hash, json};

/// A file of known hashes.
#[derive(Debug)]
pub struct HashIndex {
    path: PathBuf,
    known: BTreeMap<PathBuf, Known>,
    is_changed: bool,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Known {
    bytes: u64,
    modified_ns: u64,
    inode: u64,
    blake3: String,
}

const SETTLED: Duration = Duration::from_secs(2);

impl HashIndex {
    /// Takes up the index at `path`; one that is missing or broken is an empty one.
    #[must_use]
    pub fn open(path: &Path) -> Self {
        Self { path: path.to_owned(), known: json::read(path).unwrap_or_default(), is_changed: false }
    }

    /// The BLAKE3 of a file, from the index where the file is as it was.
    ///
    /// # Errors
    /// [`Error::Io`] when the file cannot be read.
    pub fn blake3_file(&mut self, path: &Path) -> Result<String> {
        let failed = |source| Error::Io { path: path.to_owned(), action: "read", source };
        // Through links, so that one file under two names is hashed once.
        let real = std::fs::canonicalize(path).map_err(failed)?;
        let metadata = std::fs::metadata(&real).map_err(failed)?;
        let modified = metadata.modified().map_err(failed)?;
        let now = Known {
            bytes: metadata.len(),
            modified_ns: modified.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos() as u64),
            inode: inode(&metadata),
            blake3: String::new(),
        };
        let is_same = |known: &&Known| Known { blake3: String::new(), ..(*known).clone() } == now;
        if let Some(known) = self.known.get(&real).filter(is_same) {
            return Ok(known.blake3.clone());
        }
        let blake3 = hash::blake3_file(&real)?;
        let is_settled = SystemTime::now().duration_since(modified).is_ok_and(|age| age > SETTLED);
        if is_settled {
            self.known.insert(real, Known { blake3: blake3.clone(), ..now });
            self.is_changed = true;
        }
        Ok(blake3)
    }

    /// Keeps what was learnt, and forgets files that are gone.
    ///
    /// # Errors
    /// What writing meets.
    pub fn save(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.is_changed) {
            return Ok(());
        }
        self.known.retain(|path, _| path.exists());
        if let Some(dir) = self.path.parent() {
            std::fs::create_dir_all(dir).map_err(|source| Error::Io {
                path: dir.to_owned(),
                action: "make",
                source,
            })?;
        }
        json::write(&self.path, &self.known)
    }
}

#[cfg(unix)]
fn inode(metadata: &std::fs::Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(metadata)
}

#[cfg(not(unix))]
fn inode(_: &std::fs::Metadata) -> u64 {
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn age(path: &Path, seconds: u64) {
        let time = SystemTime::now() - Duration::from_secs(seconds);
        std::fs::File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
    }

    #[test]
    fn a_file_is_read_again_only_when_it_has_changed() {
        let dir = tempfile::tempdir().unwrap();
        let (index_path, file) = (dir.path().join("hashes.json"), dir.path().join("weights"));
        std::fs::write(&file, "one").unwrap();
        age(&file, 100);
        let mut index = HashIndex::open(&index_path);
        let one = index.blake3_file(&file).unwrap();
        assert_eq!(one, hash::blake3_bytes(b"one"));
        index.save().unwrap();
        // The index is believed: a mark in it shows that the file was not read.
        let text = std::fs::read_to_string(&index_path).unwrap();
        std::fs::write(&index_path, text.replace(&one, "marked")).unwrap();
        assert_eq!(HashIndex::open(&index_path).blake3_file(&file).unwrap(), "marked");
        for (contents, seconds) in [("two", 100), ("longer", 100), ("longer", 50)] {
            std::fs::write(&file, contents).unwrap();
            age(&file, seconds);
            let mut index = HashIndex::open(&index_path);
            assert_eq!(index.blake3_file(&file).unwrap(), hash::blake3_bytes(contents.as_bytes()));
            index.save().unwrap();
        }
    }

    #[test]
    fn a_file_that_has_just_changed_is_not_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let (index_path, file) = (dir.path().join("hashes.json"), dir.path().join("weights"));
        std::fs::write(&file, "one").unwrap();
        let mut index = HashIndex::open(&index_path);
        index.blake3_file(&file).unwrap();
        index.save().unwrap();
        assert!(!index_path.exists());
        assert!(index.blake3_file(&dir.path().join("absent")).is_err());
    }

    #[test]
    fn a_broken_index_is_an_empty_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hashes.json");
        std::fs::write(&path, "{\"a\": 1").unwrap();
        assert!(HashIndex::open(&path).known.is_empty());
    }
}
