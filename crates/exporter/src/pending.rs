//! The file under construction: `<final name>.tmp`, locked while a process writes it.
//!
//! The name is fixed, so that what a killed export left is found and used again by the next one; the lock tells a
//! leftover from a file that another process is writing right now.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Seek, SeekFrom};
use std::path::{Path, PathBuf};

use formats::disk;
use formats::lock::LockedFile;

use crate::journal::{Journal, Kept};
use crate::{Error, Result};

/// A locked `*.tmp` beside a final path, and the journal of how far it is. Removed on drop unless it got its final name.
pub(crate) struct Pending {
    path: PathBuf,
    temp: PathBuf,
    file: LockedFile,
    journal: Journal,
    /// What a killed export of the same left.
    kept: Option<Kept>,
    is_final: bool,
}

impl Pending {
    /// Takes over what an interrupted export left, or creates the file; its directory is made where missing.
    ///
    /// Of a file that was to be the same, which `identity` tells, the beginning that stands is kept; any other is emptied.
    pub(crate) fn create(path: &Path, identity: &[u8]) -> Result<Pending> {
        let mut temp = path.as_os_str().to_owned();
        temp.push(".tmp");
        let temp = PathBuf::from(temp);
        if let Some(dir) = path.parent() {
            create_dir(dir)?;
        }
        let file = loop {
            let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&temp);
            let file = file.map_err(failed(&temp, "create"))?;
            let file = LockedFile::try_new(file).map_err(|(_, error)| match error {
                TryLockError::WouldBlock => Error::Busy { path: path.to_owned() },
                TryLockError::Error(source) => failed(&temp, "lock")(source),
            })?;
            // Between the two calls another export may have finished and renamed this very file: it would be
            // the final one that is emptied below.
            if is_same_file(&file, &temp) {
                break file;
            }
        };
        let mut journal = Journal::new(path, identity);
        let kept = journal.kept(&file)?;
        let length = kept.as_ref().map_or(0, |kept| kept.bytes);
        file.set_len(length).map_err(failed(&temp, "empty"))?;
        (&*file).seek(SeekFrom::Start(length)).map_err(failed(&temp, "go on with"))?;
        journal.begin(kept.as_ref())?;
        Ok(Pending { path: path.to_owned(), temp, file, journal, kept, is_final: false })
    }

    /// The beginning that need not be written again.
    pub(crate) fn kept(&self) -> Option<&Kept> {
        self.kept.as_ref()
    }

    /// Where to write, and where to record how far it is.
    pub(crate) fn parts(&mut self) -> (&File, &mut Journal) {
        (&self.file, &mut self.journal)
    }

    /// Reserves room for the whole file; nothing may run out of it half-way.
    pub(crate) fn reserve(&self, bytes: u64) -> Result<()> {
        Ok(disk::reserve(&self.file, &self.path, bytes)?)
    }

    /// Where the file is until [`Pending::rename`].
    pub(crate) fn temp(&self) -> &Path {
        &self.temp
    }

    /// Hands everything to the disk; after a failure here the contents are unknown, and the export ends.
    pub(crate) fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(failed(&self.temp, "sync"))
    }

    /// Gives the synced file its final name, in place of an older one.
    pub(crate) fn rename(mut self) -> Result<()> {
        std::fs::rename(&self.temp, &self.path).map_err(failed(&self.path, "create"))?;
        self.is_final = true;
        self.journal.remove()?;
        sync_directory(&self.path)
    }
}

/// Makes a folder for what is written, where it is missing.
pub(crate) fn create_dir(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(failed(dir, "create"))
}

impl Drop for Pending {
    fn drop(&mut self) {
        if !self.is_final {
            // The next export of this name removes it where this fails.
            let _ = std::fs::remove_file(&self.temp);
            let _ = self.journal.remove();
        }
    }
}

/// The error of what could not be done with a file.
pub(crate) fn failed(path: &Path, action: &'static str) -> impl FnOnce(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::Io { path, action, source }
}

#[cfg(unix)]
fn is_same_file(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(open), Ok(named)) => (open.dev(), open.ino()) == (named.dev(), named.ino()),
        _ => false,
    }
}

/// A file that is open cannot be renamed away there.
#[cfg(not(unix))]
fn is_same_file(_file: &File, _path: &Path) -> bool {
    true
}

/// Without it a crash may undo the rename.
#[cfg(unix)]
fn sync_directory(path: &Path) -> Result<()> {
    let dir = match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    };
    let directory = File::open(dir).map_err(failed(dir, "open"))?;
    directory.sync_all().map_err(failed(dir, "sync"))
}

#[cfg(not(unix))]
fn sync_directory(_path: &Path) -> Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let entries = std::fs::read_dir(dir).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn nothing_stays_of_a_dropped_one() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sub/x.gguf");
        drop(Pending::create(&path, b"same").unwrap());
        assert!(names(&dir.path().join("sub")).is_empty());
    }

    #[test]
    fn a_leftover_is_emptied_and_used_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.gguf");
        std::fs::write(dir.path().join("x.gguf.tmp"), "half of something").unwrap();
        std::fs::write(&path, "old").unwrap();
        let pending = Pending::create(&path, b"same").unwrap();
        (&*pending.file).write_all(b"new").unwrap();
        pending.sync().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        pending.rename().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(names(dir.path()), ["x.gguf"]);
    }

    #[test]
    fn a_second_writer_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.gguf");
        let first = Pending::create(&path, b"same").unwrap();
        assert!(matches!(Pending::create(&path, b"same"), Err(Error::Busy { .. })));
        drop(first);
        Pending::create(&path, b"same").unwrap();
    }

    #[test]
    fn more_than_the_disk_has_is_refused_with_need_and_have() {
        let dir = tempfile::tempdir().unwrap();
        let pending = Pending::create(&dir.path().join("x.gguf"), b"same").unwrap();
        let error = pending.reserve(1 << 60).unwrap_err();
        let Error::Formats(formats::Error::DiskFull { need_bytes, have_bytes, .. }) = error else {
            panic!("{error}")
        };
        assert_eq!(need_bytes, 1 << 60);
        assert!(have_bytes < need_bytes);
    }
}
