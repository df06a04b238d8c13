//! The system's page cache, kept out of the way of large files: what is written leaves it once the disk has it, and what is
//! checked is read from the disk, not from the memory that it was written from. `unsafe` for one system call that std lacks:
//! posix_fadvise. On other systems than Linux files are written and read as ever.
#![allow(unsafe_code)]

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// What is read past the cache begins in the file, begins in memory and ends at multiples of this, in bytes.
const PAGE_BYTES: usize = 4096;

/// Gives up the memory that holds what a file has on the disk; what is not yet there stays. The pages are then free for
/// what is written next, and what else the cache holds need not go for it.
pub fn forget(file: &File) {
    system::forget(file);
}

/// A file that is read from its beginning to its end, from the disk where the system lets it.
#[derive(Debug)]
pub(crate) struct FromDisk {
    path: PathBuf,
    file: File,
    /// Whether `file` is read past the cache.
    is_direct: bool,
    read_bytes: u64,
}

impl FromDisk {
    /// Opens a file; past the cache, or where the file system does not let it, as ever.
    ///
    /// # Errors
    /// Those of opening the file.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let direct = system::open_direct(path);
        let is_direct = direct.is_ok();
        let file = direct.or_else(|_| File::open(path))?;
        Ok(Self { path: path.to_owned(), file, is_direct, read_bytes: 0 })
    }
}

impl Read for FromDisk {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let n = match self.file.read(into) {
            // A file system may open a file so and not read it, or want larger pages.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput && self.is_direct => {
                self.file = File::open(&self.path)?;
                self.is_direct = false;
                self.file.seek(SeekFrom::Start(self.read_bytes))?;
                self.file.read(into)?
            }
            read => read?,
        };
        self.read_bytes += n as u64;
        Ok(n)
    }
}

/// Memory that begins on a page.
pub(crate) struct Pages {
    memory: Vec<u8>,
    start: usize,
    n_bytes: usize,
}

impl Pages {
    /// As many bytes, rounded up to whole pages.
    pub(crate) fn new(n_bytes: usize) -> Self {
        let n_bytes = n_bytes.next_multiple_of(PAGE_BYTES);
        let memory = vec![0; n_bytes + PAGE_BYTES];
        let start = memory.as_ptr().align_offset(PAGE_BYTES).min(PAGE_BYTES);
        Self { memory, start, n_bytes }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.memory[self.start..][..self.n_bytes]
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..][..self.n_bytes]
    }
}

#[cfg(target_os = "linux")]
mod system {
    use std::fs::{File, OpenOptions};
    use std::io;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::OpenOptionsExt;
    use std::path::Path;

    pub(super) fn forget(file: &File) {
        // SAFETY: the descriptor is that of an open file, borrowed for the call.
        unsafe { libc::posix_fadvise(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    }

    pub(super) fn open_direct(path: &Path) -> io::Result<File> {
        OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(path)
    }
}

#[cfg(not(target_os = "linux"))]
mod system {
    use std::fs::File;
    use std::io;
    use std::path::Path;

    pub(super) fn forget(_file: &File) {}

    pub(super) fn open_direct(_path: &Path) -> io::Result<File> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn what_was_written_is_read_and_its_end_is_no_whole_page() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        let written: Vec<u8> = (0..5 * PAGE_BYTES + 123).map(|i| (i * i / 7) as u8).collect();
        let mut file = File::create(&path).unwrap();
        file.write_all(&written).unwrap();
        file.sync_data().unwrap();
        forget(&file);
        let (mut reader, mut pages) = (FromDisk::open(&path).unwrap(), Pages::new(2 * PAGE_BYTES - 1));
        assert_eq!(pages.bytes().len(), 2 * PAGE_BYTES);
        let mut found = Vec::new();
        loop {
            let n = reader.read(pages.bytes_mut()).unwrap();
            if n == 0 {
                break;
            }
            found.extend_from_slice(&pages.bytes()[..n]);
        }
        assert_eq!(found, written);
    }

    #[test]
    fn memory_off_a_page_is_read_into_as_well() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        std::fs::write(&path, vec![7; 3 * PAGE_BYTES]).unwrap();
        let (mut reader, mut odd) = (FromDisk::open(&path).unwrap(), vec![0; 101]);
        for _ in 0..2 {
            odd.fill(0);
            reader.read_exact(&mut odd).unwrap();
            assert_eq!(odd, [7; 101]);
        }
    }
}
