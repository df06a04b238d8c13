//! Read-only memory maps. The one module with `unsafe` for them: a map is undefined when another process
//! shortens the file under it, which no program can rule out; a shortened file then ends this process.
#![allow(unsafe_code)]

use std::fs::File;
use std::ops::Range;
use std::path::Path;

use crate::{Error, Result};

/// A whole file as bytes, paged in when touched; data larger than memory is fine.
#[derive(Debug)]
pub struct Map {
    /// `None` for an empty file, which the system refuses to map.
    map: Option<memmap2::Mmap>,
}

impl Map {
    /// Maps a file.
    ///
    /// # Errors
    /// [`Error::Io`] when it cannot be opened or mapped, for example because it is a directory.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |source| Error::Io { path: path.to_owned(), action: "open", source };
        let file = File::open(path).map_err(failed)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(failed(std::io::Error::other("not a regular file")));
        }
        if metadata.len() == 0 {
            return Ok(Self { map: None });
        }
        // SAFETY: the map is read-only and lives no longer than `self`; that the file keeps its length is the
        // condition the module header states.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(failed)?;
        Ok(Self { map: Some(map) })
    }

    /// The bytes of the file.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or(&[])
    }

    /// Whether [`Map::release`] gives memory back on this system: of those that we know, Linux alone takes mapped pages
    /// out of a process when it is asked to.
    pub const CAN_RELEASE: bool = cfg!(target_os = "linux");

    /// Brings the pages of a range into memory, and returns when they are there; where the system can't, it is asked to
    /// begin reading them. What goes wrong shows when the bytes are touched.
    pub fn fetch(&self, range: Range<usize>) {
        #[cfg(target_os = "linux")]
        if let Some(map) = self.map.as_ref().filter(|map| is_part(&range, map.len())) {
            use memmap2::Advice;
            // Before Linux 5.14 a process could not ask for more than a beginning.
            if map.advise_range(Advice::PopulateRead, range.start, range.len()).is_err() {
                let _ = map.advise_range(Advice::WillNeed, range.start, range.len());
            }
        }
        #[cfg(not(target_os = "linux"))]
        let _ = range;
    }

    /// Takes the pages of a range, and with them what else lies on these, out of this process's memory; whoever touches
    /// them next has them read again, from the system's cache or the file. Does nothing without [`Map::CAN_RELEASE`].
    pub fn release(&self, range: Range<usize>) {
        #[cfg(target_os = "linux")]
        if let Some(map) = self.map.as_ref().filter(|map| is_part(&range, map.len())) {
            let advice = memmap2::UncheckedAdvice::DontNeed;
            // SAFETY: the map is read-only and of a file, so no byte of it can be lost: pages that are dropped are read
            // from the file again, with what they held before.
            let _ = unsafe { map.unchecked_advise_range(advice, range.start, range.len()) };
        }
        #[cfg(not(target_os = "linux"))]
        let _ = range;
    }
}

#[cfg(target_os = "linux")]
fn is_part(range: &Range<usize>, len: usize) -> bool {
    range.start < range.end && range.end <= len
}
