//! Files and directories that appear whole or not at all: written aside, synced, renamed.
//!
//! What is being written has a hidden name beside the final one, `.NAME.PID-N.tmp`, and its writer holds a
//! lock on it; leftovers of writers that were killed have no lock and are removed by the next one. A failed
//! sync is never tried again: the pages may be lost although the second call succeeds.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::disk::{self, write_error};
use crate::{Error, Result};

/// Bytes that [`Output`] collects before it writes.
const BUFFER_BYTES: usize = 1 << 20;

/// The file under construction that [`write_file`] hands to its closure: buffered, and its errors name the path.
#[derive(Debug)]
pub struct Output {
    path: PathBuf,
    file: File,
    buffer: Vec<u8>,
    written_bytes: u64,
    reserved_bytes: u64,
}

impl Output {
    fn new(path: &Path, file: File) -> Self {
        let buffer = Vec::with_capacity(BUFFER_BYTES);
        Self { path: path.to_owned(), file, buffer, written_bytes: 0, reserved_bytes: 0 }
    }

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
        disk::reserve(&self.file, &self.path, bytes)?;
        self.reserved_bytes = bytes;
        Ok(())
    }

    /// Writes out what is buffered, gives back what was reserved beyond it, and syncs.
    fn complete(&mut self) -> Result<()> {
        let need = self.need_bytes(0);
        let failed = |source| write_error(&self.path, "write", need, source);
        write_all(&mut self.file, &mut self.buffer, &mut self.written_bytes).map_err(failed)?;
        self.file.set_len(self.written_bytes).map_err(failed)?;
        self.file.sync_all().map_err(failed)
    }

    /// The size that the file is known to need.
    fn need_bytes(&self, more: usize) -> u64 {
        (self.written_bytes + (self.buffer.len() + more) as u64).max(self.reserved_bytes)
    }

    /// An error for callers that know only `io::Error`: still of its kind, and naming path, need and have.
    fn named(&self, more: usize, source: io::Error) -> io::Error {
        let kind = source.kind();
        io::Error::new(kind, write_error(&self.path, "write", self.need_bytes(more), source))
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.len() + bytes.len() > BUFFER_BYTES {
            self.flush()?;
        }
        if bytes.len() < BUFFER_BYTES {
            self.buffer.extend_from_slice(bytes);
            return Ok(bytes.len());
        }
        let written = self.file.write(bytes).map_err(|source| self.named(bytes.len(), source))?;
        self.written_bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        write_all(&mut self.file, &mut self.buffer, &mut self.written_bytes)
            .map_err(|source| self.named(0, source))
    }
}

/// Writes a whole buffer and empties it; what was written before a failure is not written twice.
fn write_all(file: &mut File, buffer: &mut Vec<u8>, written_bytes: &mut u64) -> io::Result<()> {
    let mut done = 0;
    let mut result = Ok(());
    while done < buffer.len() && result.is_ok() {
        match file.write(&buffer[done..]) {
            Ok(0) => result = Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => done += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => result = Err(error),
        }
    }
    *written_bytes += done as u64;
    buffer.drain(..done);
    result
}

/// Writes a file so that at `path` there is always the old file or the whole new one.
///
/// # Errors
/// What the closure returns; [`Error::DiskFull`] or [`Error::Io`] from writing, syncing, renaming.
pub fn write_file<T, E: From<Error>>(
    path: &Path,
    write: impl FnOnce(&mut Output) -> Result<T, E>,
) -> Result<T, E> {
    let temp = TempPath::file_beside(path)?;
    let file = temp.lock.try_clone().map_err(|source| io_error(temp.temp(), "open", source))?;
    let mut output = Output::new(path, file);
    let value = write(&mut output)?;
    output.complete()?;
    temp.rename()?;
    Ok(value)
}

/// Writes `bytes` as a file, atomically.
///
/// # Errors
/// As [`write_file`].
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    write_file(path, |out| {
        out.write_all(bytes).map_err(|source| Error::Write { what: path.display().to_string(), source })
    })
}

/// Writes a directory so that at `path` there is always the old directory or the whole new one.
///
/// The closure fills an empty directory beside `path`; every file in it is synced before the exchange.
/// On Linux the exchange is one system call; elsewhere an old directory is first renamed aside.
///
/// # Errors
/// What the closure returns; [`Error::Io`] from syncing and renaming.
pub fn write_dir<T, E: From<Error>>(path: &Path, fill: impl FnOnce(&Path) -> Result<T, E>) -> Result<T, E> {
    let temp = TempPath::dir_beside(path)?;
    let value = fill(temp.temp())?;
    temp.commit()?;
    Ok(value)
}

/// A path beside a final one, for writers that need a path and not a stream; removed on drop unless committed.
#[derive(Debug)]
pub struct TempPath {
    temp: PathBuf,
    path: PathBuf,
    /// The file or directory itself: the lock tells other writers that it is not a leftover.
    lock: File,
    committed: bool,
}

impl TempPath {
    /// A fresh, empty file beside `path`, on the same file system.
    ///
    /// # Errors
    /// [`Error::Io`] when it, or the parent directory, cannot be made.
    pub fn file_beside(path: &Path) -> Result<Self> {
        Self::beside(path, |temp| File::create_new(temp))
    }

    /// A fresh, empty directory beside `path`, on the same file system.
    ///
    /// # Errors
    /// As [`TempPath::file_beside`].
    pub fn dir_beside(path: &Path) -> Result<Self> {
        Self::beside(path, |temp| fs::create_dir(temp).and_then(|()| File::open(temp)))
    }

    fn beside(path: &Path, create: impl Fn(&Path) -> io::Result<File>) -> Result<Self> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let Some(name) = path.file_name() else {
            let source = io::Error::new(io::ErrorKind::InvalidInput, "it has no name");
            return Err(io_error(path, "write", source));
        };
        let parent = parent(path);
        fs::create_dir_all(parent).map_err(|source| io_error(parent, "make", source))?;
        let prefix = format!(".{}.", name.to_string_lossy());
        remove_leftovers(parent, &prefix);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let temp = parent.join(format!("{prefix}{}-{number}.tmp", std::process::id()));
        let lock = create(&temp).map_err(|source| write_error(&temp, "make", 0, source))?;
        // Some network file systems have no locks; there, leftovers merely stay.
        let _ = lock.try_lock();
        Ok(Self { temp, path: path.to_owned(), lock, committed: false })
    }

    /// Where to write.
    #[must_use]
    pub fn temp(&self) -> &Path {
        &self.temp
    }

    /// Syncs what was written, gives it its final name, syncs the directory.
    ///
    /// # Errors
    /// [`Error::DiskFull`] or [`Error::Io`]; the old file or directory is then still in place.
    pub fn commit(self) -> Result<()> {
        sync_tree(&self.temp)?;
        self.rename()
    }

    fn rename(mut self) -> Result<()> {
        let renamed = if self.temp.is_dir() && self.path.is_dir() {
            replace_dir(&self.temp, &self.path)
        } else {
            fs::rename(&self.temp, &self.path)
        };
        renamed.map_err(|source| io_error(&self.path, "rename a finished file to", source))?;
        self.committed = true;
        sync_dir(parent(&self.path))
    }
}

impl Drop for TempPath {
    fn drop(&mut self) {
        if !self.committed {
            remove(&self.temp);
        }
    }
}

/// Puts a new directory in the place of an old one, which is removed after that.
fn replace_dir(new: &Path, old: &Path) -> io::Result<()> {
    match disk::exchange(new, old) {
        Ok(()) => {
            // The new directory is in place; a remainder of the old one is a leftover like any other.
            remove(new);
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::Unsupported => {
            let aside = new.with_extension("old.tmp");
            fs::rename(old, &aside)?;
            fs::rename(new, old)?;
            remove(&aside);
            Ok(())
        }
        Err(error) => Err(error),
    }
}

fn remove(path: &Path) {
    let _ = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
}

/// Removes what killed writers of the same name have left: temporary paths that nobody has locked.
fn remove_leftovers(parent: &Path, prefix: &str) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        let is_ours =
            name.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(".tmp")).is_some_and(|unique| {
                unique.bytes().all(|byte| byte.is_ascii_digit() || b"-.old".contains(&byte))
            });
        if is_ours && File::open(entry.path()).is_ok_and(|file| file.try_lock().is_ok()) {
            remove(&entry.path());
        }
    }
}

/// Syncs a file, or every file and directory below a directory.
fn sync_tree(path: &Path) -> Result<()> {
    if path.is_dir() {
        let entries = fs::read_dir(path).map_err(|source| io_error(path, "list", source))?;
        for entry in entries {
            let entry = entry.map_err(|source| io_error(path, "list", source))?;
            sync_tree(&entry.path())?;
        }
        return sync_dir(path);
    }
    let file = File::open(path).map_err(|source| io_error(path, "open", source))?;
    file.sync_all().map_err(|source| write_error(path, "sync", 0, source))
}

/// Syncs a directory, so that a rename in it survives a power cut. Windows cannot, and need not.
pub(crate) fn sync_dir(path: &Path) -> Result<()> {
    if cfg!(not(unix)) {
        return Ok(());
    }
    let dir = File::open(path).map_err(|source| io_error(path, "open", source))?;
    dir.sync_all().map_err(|source| io_error(path, "sync", source))
}

/// The directory a path lies in; `.` for a bare name.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => Path::new("."),
    }
}

fn io_error(path: &Path, action: &'static str, source: io::Error) -> Error {
    Error::Io { path: path.to_owned(), action, source }
}
