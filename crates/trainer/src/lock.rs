//! One writer at a time: a run's folder is locked by the process that trains it.

use std::fs::{OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};

use formats::lock::LockedFile;

use crate::error::{Error, Result};
use crate::run_dir::RunDir;

/// Held while a process writes a run; the system frees it when the process ends, however it ends.
#[derive(Debug)]
pub struct RunLock {
    _file: LockedFile,
}

impl RunLock {
    /// Locks the folder of a run, which must exist.
    ///
    /// # Errors
    /// [`Error::RunLocked`] names the process that holds it.
    pub fn take(run_dir: &RunDir) -> Result<Self> {
        let path = run_dir.lock();
        let failed = |source| Error::Io { path: path.clone(), source };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(failed)?;
        let mut file = match LockedFile::try_new(file) {
            Ok(file) => file,
            Err((_, TryLockError::Error(source))) => return Err(failed(source)),
            Err((file, TryLockError::WouldBlock)) => {
                let mut pid = String::new();
                // The holder may be about to write its number; the refusal stands without it.
                let _ = file.take(32).read_to_string(&mut pid);
                let pid = if pid.trim().is_empty() { "unknown".into() } else { pid.trim().into() };
                return Err(Error::RunLocked { run_dir: run_dir.path().into(), pid });
            }
        };
        file.set_len(0).and_then(|()| file.rewind()).map_err(failed)?;
        writeln!(file, "{}", std::process::id()).map_err(failed)?;
        Ok(Self { _file: file })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_writer_is_refused_and_told_who_is_first() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = RunDir::new(dir.path());
        let first = RunLock::take(&run_dir).unwrap();
        match RunLock::take(&run_dir) {
            Err(Error::RunLocked { pid, .. }) => assert_eq!(pid, std::process::id().to_string()),
            other => panic!("{other:?}"),
        }
        drop(first);
        RunLock::take(&run_dir).unwrap();
    }
}
