//! Files and directories that appear whole or not at all: written aside, synced, renamed.
use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// The file under construction that [`write_file`] hands to its closure: buffered, and its errors name the path.
#[derive(Debug)]
pub struct Output {
    path: PathBuf,
    file: File,
}

impl Output {
    /// The path that the file will have in the end.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reserves room for the whole file before anything is written.
    ///
    /// # Errors
    /// [`Error::DiskFull`] naming need and have.
    pub fn reserve(&mut self, bytes: u64) -> Result<()> {
        let _ = (bytes, &self.file);
        todo!()
    }
}

impl Write for Output {
    fn write(&mut self, _bytes: &[u8]) -> std::io::Result<usize> {
        todo!()
    }

    fn flush(&mut self) -> std::io::Result<()> {
        todo!()
    }
}

/// Writes a file so that at `path` there is always the old file or the whole new one.
///
/// # Errors
/// What the closure returns; [`Error::DiskFull`] or [`Error::Io`] from writing, syncing, renaming.
pub fn write_file<T, E: From<Error>>(
    path: &Path,
    write: impl FnOnce(&mut Output) -> Result<T, E>,
) -> Result<T, E> {
    let _ = (path, write);
    todo!()
}

/// Writes `bytes` as a file, atomically.
///
/// # Errors
/// As [`write_file`].
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    let _ = (path, bytes);
    todo!()
}

/// Writes a directory so that at `path` there is always the old directory or the whole new one.
///
/// The closure fills an empty directory beside `path`; every file in it is synced before the exchange.
///
/// # Errors
/// What the closure returns; [`Error::Io`] from syncing and renaming.
pub fn write_dir<T, E: From<Error>>(path: &Path, fill: impl FnOnce(&Path) -> Result<T, E>) -> Result<T, E> {
    let _ = (path, fill);
    todo!()
}

/// A path beside a final one which is removed on drop unless it was committed.
#[derive(Debug)]
pub struct TempPath {
    temp: PathBuf,
    path: PathBuf,
}

impl TempPath {
    /// A fresh name beside `path`, on the same file system.
    ///
    /// # Errors
    /// [`Error::Io`] when the parent directory cannot be made.
    pub fn beside(path: &Path) -> Result<Self> {
        let _ = path;
        todo!()
    }

    /// Where to write.
    #[must_use]
    pub fn temp(&self) -> &Path {
        &self.temp
    }

    /// Syncs the file, gives it its final name, syncs the directory.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn commit(self) -> Result<()> {
        let _ = &self.path;
        todo!()
    }
}
