//! Read-only memory maps. The one module with `unsafe` for them: a map is undefined when another process
//! shortens the file under it, which no program can rule out; a shortened file then ends this process.
#![allow(unsafe_code)]

use std::fs::File;
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
}
