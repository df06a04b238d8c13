//! Room on a disk, and the exchange of two directories. `unsafe` for three system calls that std lacks:
//! statvfs, fallocate, renameat2.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::path::Path;

use crate::{Error, Result};

/// Bytes that may still be written to the file system that holds `path` (or its nearest existing parent).
///
/// Where the system cannot say (not Unix), [`u64::MAX`].
///
/// # Errors
/// [`Error::Io`].
pub fn free_bytes(path: &Path) -> Result<u64> {
    let absolute = std::path::absolute(path).map_err(|source| Error::Io {
        path: path.to_owned(),
        action: "find",
        source,
    })?;
    let existing = absolute.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    system::free_bytes(existing).map_err(|source| Error::Io {
        path: existing.to_owned(),
        action: "measure the free room of",
        source,
    })
}

/// Refuses what a disk has no room for; `path` need not be there yet.
///
/// # Errors
/// [`Error::DiskFull`] naming need and have; [`Error::Io`].
pub fn check_room(path: &Path, need_bytes: u64) -> Result<()> {
    let have_bytes = free_bytes(path)?;
    if need_bytes > have_bytes {
        return Err(Error::DiskFull { path: path.to_owned(), need_bytes, have_bytes });
    }
    Ok(())
}

/// Reserves `bytes` for `file`, whose path is only for the error; what it has already counts.
///
/// The file then has that length. Where the file system cannot reserve, the free room is only compared.
///
/// # Errors
/// [`Error::DiskFull`] naming need and have; [`Error::Io`].
pub fn reserve(file: &File, path: &Path, bytes: u64) -> Result<()> {
    let there = file.metadata().map_or(0, |metadata| metadata.len());
    check_room(path, bytes.saturating_sub(there))?;
    match system::allocate(file, bytes) {
        Ok(()) => Ok(()),
        Err(source) if source.kind() == io::ErrorKind::Unsupported => Ok(()),
        Err(source) => Err(write_error(path, "reserve room for", bytes, source)),
    }
}

/// The error of a failed write: [`Error::DiskFull`] when that was the reason.
pub(crate) fn write_error(path: &Path, action: &'static str, need_bytes: u64, source: io::Error) -> Error {
    let is_full = matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded);
    if is_full {
        let have_bytes = free_bytes(path).unwrap_or(0);
        return Error::DiskFull { path: path.to_owned(), need_bytes, have_bytes };
    }
    Error::Io { path: path.to_owned(), action, source }
}

/// Exchanges two existing paths in one step; `Unsupported` where the system has no such call.
pub(crate) fn exchange(first: &Path, second: &Path) -> io::Result<()> {
    system::exchange(first, second)
}

#[cfg(unix)]
mod system {
    use std::ffi::CString;
    use std::fs::File;
    use std::io;
    use std::os::unix::ffi::OsStrExt;
    use std::path::Path;

    fn c_path(path: &Path) -> io::Result<CString> {
        CString::new(path.as_os_str().as_bytes()).map_err(io::Error::from)
    }

    #[allow(clippy::unnecessary_cast, reason = "the fields' widths differ between systems")]
    pub(super) fn free_bytes(path: &Path) -> io::Result<u64> {
        let path = c_path(path)?;
        let mut stats = std::mem::MaybeUninit::<libc::statvfs>::uninit();
        // SAFETY: `path` ends with a zero and `stats` has room for what the call writes.
        let code = unsafe { libc::statvfs(path.as_ptr(), stats.as_mut_ptr()) };
        if code != 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the call succeeded, so it has filled `stats`.
        let stats = unsafe { stats.assume_init() };
        Ok((stats.f_bavail as u64).saturating_mul(stats.f_frsize as u64))
    }

    #[cfg(target_os = "linux")]
    pub(super) fn allocate(file: &File, bytes: u64) -> io::Result<()> {
        use std::os::fd::AsRawFd;
        let Ok(length) = i64::try_from(bytes) else { return Err(io::ErrorKind::FileTooLarge.into()) };
        if length == 0 {
            return Ok(());
        }
        loop {
            // SAFETY: the descriptor is that of an open file, borrowed for the call.
            let code = unsafe { libc::fallocate(file.as_raw_fd(), 0, 0, length) };
            if code == 0 {
                return Ok(());
            }
            let error = io::Error::last_os_error();
            if error.raw_os_error() == Some(libc::EOPNOTSUPP) {
                return Err(io::ErrorKind::Unsupported.into());
            }
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn allocate(_file: &File, _bytes: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    #[cfg(target_os = "linux")]
    pub(super) fn exchange(first: &Path, second: &Path) -> io::Result<()> {
        let (first, second) = (c_path(first)?, c_path(second)?);
        let (at, flags) = (libc::AT_FDCWD, libc::RENAME_EXCHANGE);
        // SAFETY: both paths end with a zero and live through the call.
        let code = unsafe { libc::renameat2(at, first.as_ptr(), at, second.as_ptr(), flags) };
        if code == 0 {
            return Ok(());
        }
        match io::Error::last_os_error() {
            error if matches!(error.raw_os_error(), Some(libc::EINVAL | libc::ENOSYS)) => {
                Err(io::ErrorKind::Unsupported.into())
            }
            error => Err(error),
        }
    }

    #[cfg(not(target_os = "linux"))]
    pub(super) fn exchange(_first: &Path, _second: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(not(unix))]
mod system {
    use std::fs::File;
    use std::io;
    use std::path::Path;

    pub(super) fn free_bytes(_path: &Path) -> io::Result<u64> {
        Ok(u64::MAX)
    }

    pub(super) fn allocate(_file: &File, _bytes: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(super) fn exchange(_first: &Path, _second: &Path) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_room_is_that_of_the_nearest_parent() {
        let dir = tempfile::tempdir().unwrap();
        let free = free_bytes(&dir.path().join("not/yet/there")).unwrap();
        assert!(free > 0);
    }

    #[test]
    fn reserving_more_than_the_disk_names_need_and_have() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("huge");
        let file = File::create(&path).unwrap();
        match reserve(&file, &path, 1 << 60).unwrap_err() {
            Error::DiskFull { path: named, need_bytes, have_bytes } => {
                assert_eq!((named, need_bytes), (path, 1 << 60));
                assert!(have_bytes < need_bytes);
            }
            other => panic!("{other}"),
        }
    }

    #[test]
    fn reserved_room_is_the_files() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let file = File::create(&path).unwrap();
        reserve(&file, &path, 10_000).unwrap();
        reserve(&file, &path, 0).unwrap();
        if cfg!(target_os = "linux") {
            assert_eq!(file.metadata().unwrap().len(), 10_000);
        }
    }
}
