//! How far a file under construction is, so that an export that was killed goes on where it was.
//!
//! `<name>.journal.tmp` has line after line what the file is to be (a hash of its head and of all that it is made from), how
//! many tensors stand complete, the bytes up to there, and their BLAKE3. Whoever goes on hashes the file anew and believes
//! only the lines that it bears out.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use formats::{hash, journal};
use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Bytes of a file between two lines: what little is lost is soon made again.
const LINE_BYTES: u64 = 32 << 20;

/// A line.
#[derive(Serialize, Deserialize)]
struct Standing {
    /// Hash of all that decides about the file.
    of: String,
    n_tensors: usize,
    bytes: u64,
    blake3: String,
}

/// The beginning of a file that is there already.
pub(crate) struct Kept {
    /// Tensors that it holds completely.
    pub(crate) n_tensors: usize,
    /// Its length.
    pub(crate) bytes: u64,
    /// Over its bytes.
    pub(crate) hasher: blake3::Hasher,
}

/// Keeps the record.
pub(crate) struct Journal {
    path: PathBuf,
    of: String,
    /// There once there is something to keep.
    lines: Option<journal::Journal>,
    last_bytes: u64,
}

impl Journal {
    /// The journal of what is to be `file`; `identity` tells all that decides about its bytes.
    pub(crate) fn new(file: &Path, identity: &[u8]) -> Journal {
        let mut path = file.as_os_str().to_owned();
        path.push(".journal.tmp");
        Journal { path: path.into(), of: hash::blake3_bytes(identity), lines: None, last_bytes: 0 }
    }

    /// What of the temporary file can be kept; `None` where it is of something else, or damaged from its first line on.
    ///
    /// # Errors
    /// What reading meets.
    pub(crate) fn kept(&self, mut temp: &File) -> Result<Option<Kept>> {
        // A journal that is damaged says nothing.
        let lines: Vec<Standing> = journal::read(&self.path).unwrap_or_default();
        let failed = |source| Error::Io { path: self.path.clone(), action: "go on by", source };
        temp.seek(SeekFrom::Start(0)).map_err(failed)?;
        let (mut hasher, mut read_bytes, mut kept) = (blake3::Hasher::new(), 0, None);
        for Standing { of, n_tensors, bytes, blake3 } in lines {
            let Some(more) = bytes.checked_sub(read_bytes).filter(|_| of == self.of) else { break };
            let read = std::io::copy(&mut Read::by_ref(&mut temp).take(more), &mut hasher).map_err(failed)?;
            read_bytes = bytes;
            if read != more || blake3 != hasher.finalize().to_hex().as_str() {
                break;
            }
            kept = Some(Kept { n_tensors, bytes, hasher: hasher.clone() });
        }
        Ok(kept)
    }

    /// Goes on after what is kept, or anew.
    ///
    /// # Errors
    /// What writing meets.
    pub(crate) fn begin(&mut self, kept: Option<&Kept>) -> Result<()> {
        self.last_bytes = 0;
        self.remove()?;
        match kept {
            Some(kept) => self.line(kept.n_tensors, kept.bytes, &kept.hasher),
            None => Ok(()),
        }
    }

    /// Whether so many bytes are worth a line.
    pub(crate) fn wants(&self, bytes: u64) -> bool {
        bytes >= self.last_bytes + LINE_BYTES
    }

    /// Records that so many tensors stand complete in so many bytes.
    ///
    /// # Errors
    /// What writing meets.
    pub(crate) fn line(&mut self, n_tensors: usize, bytes: u64, hasher: &blake3::Hasher) -> Result<()> {
        self.last_bytes = bytes;
        let blake3 = hasher.finalize().to_hex().to_string();
        let line = Standing { of: self.of.clone(), n_tensors, bytes, blake3 };
        let lines = match &mut self.lines {
            Some(lines) => lines,
            none => none.insert(journal::Journal::open::<Standing>(&self.path)?.1),
        };
        Ok(lines.append(&line)?)
    }

    /// The file is complete, or given up.
    ///
    /// # Errors
    /// What removing meets.
    pub(crate) fn remove(&mut self) -> Result<()> {
        self.lines = None;
        match std::fs::remove_file(&self.path) {
            Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::Io { path: self.path.clone(), action: "remove", source })
            }
            _ => Ok(()),
        }
    }
}
