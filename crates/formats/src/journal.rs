//! An append-only file of JSON lines, each with a checksum: what was appended survives a crash, whole.
//!
//! A line is `{"n":3,"blake3":"…","record":{…}}`. The checksum covers number and record; numbers count up from
//! 0, so that a line which was lost or moved is noticed. Each record is synced before the next is written:
//! only the last line can be torn, and it is cut off when the journal is opened.

use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::atomic::{parent, sync_dir};
use crate::disk::write_error;
use crate::lock::LockedFile;
use crate::{Error, Result, hash};

/// Hex digits of the checksum: 64 bits of BLAKE3, against accidents, not attackers.
const CHECKSUM_DIGITS: usize = 16;

/// A journal open for appending; no second process can open it meanwhile.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: LockedFile,
    /// Bytes and number of the whole records.
    length_bytes: u64,
    n_records: u64,
    /// Set when the file may hold more than `length_bytes` and could not be cut back.
    is_broken: bool,
}

impl Journal {
    /// Opens or makes a journal and reads its records; a torn last line is cut off.
    ///
    /// # Errors
    /// [`Error::Malformed`] when a line before the last is damaged, [`Error::Json`] when a whole record is not a
    /// `T`, [`Error::InUse`], [`Error::Io`].
    pub fn open<T: DeserializeOwned>(path: &Path) -> Result<(Vec<T>, Self)> {
        let failed = |action| move |source| Error::Io { path: path.to_owned(), action, source };
        std::fs::create_dir_all(parent(path)).map_err(failed("make the directory of"))?;
        let file =
            OpenOptions::new().read(true).append(true).create(true).open(path).map_err(failed("open"))?;
        let mut file = LockedFile::try_new(file).map_err(|(_, error)| match error {
            std::fs::TryLockError::WouldBlock => Error::InUse { path: path.to_owned() },
            std::fs::TryLockError::Error(source) => failed("lock")(source),
        })?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed("read"))?;
        let (records, length) = read_records(path, &bytes)?;
        let mut journal = Self {
            path: path.to_owned(),
            file,
            length_bytes: length as u64,
            n_records: records.len() as u64,
            is_broken: false,
        };
        if length < bytes.len() {
            journal.cut_back()?;
        }
        if length == 0 {
            sync_dir(parent(path))?;
        }
        Ok((records, journal))
    }

    /// Appends one record and syncs it to the disk before returning.
    ///
    /// After a failure the file holds what it held before.
    ///
    /// # Errors
    /// [`Error::DiskFull`] or [`Error::Io`]; [`Error::Json`] when the record is no JSON.
    pub fn append<T: Serialize>(&mut self, record: &T) -> Result<()> {
        let record = serde_json::to_string(record)
            .map_err(|source| Error::Json { path: self.path.clone(), source })?;
        if self.is_broken {
            let source = std::io::Error::other("an earlier write failed and could not be undone");
            return Err(Error::Io { path: self.path.clone(), action: "append to", source });
        }
        let line = line(self.n_records, &record);
        let written = self.file.write_all(line.as_bytes()).and_then(|()| self.file.sync_data());
        if let Err(source) = written {
            // The pages of a failed sync may be gone: they are cut off, never synced again.
            self.is_broken = self.cut_back().is_err();
            let need_bytes = self.length_bytes + line.len() as u64;
            return Err(write_error(&self.path, "append to", need_bytes, source));
        }
        self.length_bytes += line.len() as u64;
        self.n_records += 1;
        Ok(())
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn cut_back(&mut self) -> Result<()> {
        let cut = self.file.set_len(self.length_bytes);
        let cut = cut.and_then(|()| self.file.seek(SeekFrom::End(0)).map(drop));
        cut.and_then(|()| self.file.sync_all()).map_err(|source| Error::Io {
            path: self.path.clone(),
            action: "cut back",
            source,
        })
    }
}

/// Reads the records of a journal without opening it for writing; a torn last line is left out.
///
/// # Errors
/// As [`Journal::open`], but never [`Error::InUse`].
pub fn read<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    let failed = |source| Error::Io { path: path.to_owned(), action: "read", source };
    let bytes = std::fs::read(path).map_err(failed)?;
    Ok(read_records(path, &bytes)?.0)
}

fn line(number: u64, record: &str) -> String {
    format!("{{\"n\":{number},\"blake3\":\"{}\",\"record\":{record}}}\n", checksum(number, record))
}

fn checksum(number: u64, record: &str) -> String {
    let mut hash = hash::blake3_bytes(format!("{number} {record}").as_bytes());
    hash.truncate(CHECKSUM_DIGITS);
    hash
}

/// The records, and how many bytes their lines take.
fn read_records<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<(Vec<T>, usize)> {
    let mut records = Vec::new();
    let mut length = 0;
    for line in bytes.split_inclusive(|&byte| byte == b'\n') {
        let Some(record) = record_of(line, records.len() as u64) else {
            if length + line.len() == bytes.len() {
                break;
            }
            return Err(Error::Malformed {
                path: path.to_owned(),
                place: format!("line {}", records.len() + 1),
                expected: format!("record {} with its checksum", records.len()),
                actual: "damaged".to_owned(),
            });
        };
        records.push(crate::json::parse(path, record.as_bytes())?);
        length += line.len();
    }
    Ok((records, length))
}

/// The record of a line, if number and checksum are right.
fn record_of(line: &[u8], number: u64) -> Option<&str> {
    let line = std::str::from_utf8(line.strip_suffix(b"\n")?).ok()?;
    let rest = line.strip_prefix(&format!("{{\"n\":{number},\"blake3\":\""))?;
    let (stated, rest) = rest.split_at_checked(CHECKSUM_DIGITS)?;
    let record = rest.strip_prefix("\",\"record\":")?.strip_suffix('}')?;
    (checksum(number, record) == stated).then_some(record)
}
