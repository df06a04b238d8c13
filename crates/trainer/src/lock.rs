//! One writer at a time: a run's folder is locked by the process that trains it.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::time::Duration;

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
        let mut file = match lock_patiently(file) {
            Ok(file) => file,
            Err((_, TryLockError::Error(source))) => return Err(failed(source)),
            Err((file, TryLockError::WouldBlock)) => {
                return Err(Error::RunLocked { run_dir: run_dir.path().into(), pid: pid(file) });
            }
        };
        file.set_len(0).and_then(|()| file.rewind()).map_err(failed)?;
        writeln!(file, "{}", std::process::id()).map_err(failed)?;
        Ok(Self { _file: file })
    }
}

/// The process that trains a run now, as it wrote itself down; `None` when none does.
///
/// # Errors
/// [`Error::Io`] where there are no locks.
pub fn holder(run_dir: &RunDir) -> Result<Option<String>> {
    let path = run_dir.lock();
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(Error::Io { path, source }),
    };
    // Shared, so that two who only look do not take each other for a trainer.
    match file.try_lock_shared() {
        Ok(()) => {
            let _ = file.unlock();
            Ok(None)
        }
        Err(TryLockError::WouldBlock) => Ok(Some(pid(file))),
        Err(TryLockError::Error(source)) => Err(Error::Io { path, source }),
    }
}

/// Tries once more when someone may only have looked whether the run is locked.
fn lock_patiently(file: File) -> std::result::Result<LockedFile, (File, TryLockError)> {
    match LockedFile::try_new(file) {
        Err((file, TryLockError::WouldBlock)) => {
            std::thread::sleep(LOOK);
            LockedFile::try_new(file)
        }
        other => other,
    }
}

/// Far longer than [`holder`] holds the lock.
const LOOK: Duration = Duration::from_millis(20);

fn pid(file: File) -> String {
    let mut pid = String::new();
    // The holder may be about to write its number; that it holds the lock stands without it.
    let _ = file.take(32).read_to_string(&mut pid);
    if pid.trim().is_empty() { "unknown".into() } else { pid.trim().into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looking_names_the_trainer_and_does_not_stand_in_its_way() {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = RunDir::new(dir.path());
        assert_eq!(holder(&run_dir).unwrap(), None);
        assert!(!run_dir.lock().exists(), "looking writes nothing");
        let lock = RunLock::take(&run_dir).unwrap();
        assert_eq!(holder(&run_dir).unwrap(), Some(std::process::id().to_string()));
        drop(lock);
        let looking = File::open(run_dir.lock()).unwrap();
        looking.try_lock_shared().unwrap();
        assert_eq!(holder(&run_dir).unwrap(), None, "another looks at the same time");
        let looker = std::thread::spawn(move || {
            std::thread::sleep(LOOK / 4);
            drop(looking);
        });
        RunLock::take(&run_dir).unwrap();
        looker.join().unwrap();
    }

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
