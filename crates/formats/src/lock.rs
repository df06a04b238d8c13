//! A file that one process holds: locked while it is open, free again the moment it is dropped.

use std::fs::{File, TryLockError};
use std::ops::{Deref, DerefMut};

/// An open file with its exclusive advisory lock.
///
/// The system frees the lock when the process ends, however it ends. Dropping unlocks by hand: closing alone would
/// leave the lock to a child process that is just being started, which holds a copy of every descriptor until it
/// runs its own program.
#[derive(Debug)]
pub struct LockedFile(File);

impl LockedFile {
    /// Locks an open file, without waiting.
    ///
    /// # Errors
    /// [`TryLockError::WouldBlock`] when another holds it, [`TryLockError::Error`] where there are no locks.
    pub fn try_new(file: File) -> Result<Self, (File, TryLockError)> {
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(error) => Err((file, error)),
        }
    }
}

impl Deref for LockedFile {
    type Target = File;

    fn deref(&self) -> &File {
        &self.0
    }
}

impl DerefMut for LockedFile {
    fn deref_mut(&mut self) -> &mut File {
        &mut self.0
    }
}

impl Drop for LockedFile {
    fn drop(&mut self) {
        // Closing unlocks too, at the latest when every copy is closed.
        let _ = self.0.unlock();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_of_the_descriptor_does_not_keep_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let locked = LockedFile::try_new(File::create(&path).unwrap()).unwrap();
        let copy = locked.try_clone().unwrap();
        assert!(LockedFile::try_new(File::open(&path).unwrap()).is_err());
        drop(locked);
        assert!(LockedFile::try_new(File::open(&path).unwrap()).is_ok());
        drop(copy);
    }
}
