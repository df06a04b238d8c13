//! Columns: plain numbers one after another, little endian, in memory or in a file that is mapped.
//!
//! A cache of the program that wrote it, so that a column has no head; who keeps columns keeps their hashes.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::marker::PhantomData;
use std::ops::Deref;
use std::path::{Path, PathBuf};

use bytemuck::Pod;

use crate::map::Map;
use crate::{Error, Result, hash};

const BUFFER_BYTES: usize = 1 << 20;

/// A column that grows at its end.
#[derive(Debug)]
pub enum ColumnWriter<T> {
    /// In memory.
    Memory(Vec<T>),
    /// In a file.
    File {
        /// Its path.
        path: PathBuf,
        /// What writes it.
        out: BufWriter<File>,
    },
}

/// A column that is complete: a slice of numbers.
#[derive(Debug)]
pub struct Column<T> {
    values: Values<T>,
}

#[derive(Debug)]
enum Values<T> {
    Memory(Vec<T>),
    Mapped(Map, PhantomData<T>),
}

impl<T: Pod> ColumnWriter<T> {
    /// An empty column, in a new file where a path is given.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn new(path: Option<PathBuf>) -> Result<Self> {
        let Some(path) = path else { return Ok(Self::Memory(Vec::new())) };
        let file = File::create_new(&path).map_err(|source| Error::Io {
            path: path.clone(),
            action: "make",
            source,
        })?;
        Ok(Self::File { path, out: BufWriter::with_capacity(BUFFER_BYTES, file) })
    }

    /// Appends numbers.
    ///
    /// # Errors
    /// [`Error::Write`].
    pub fn extend(&mut self, values: &[T]) -> Result<()> {
        match self {
            Self::Memory(all) => all.extend_from_slice(values),
            Self::File { path, out } => {
                let written = out.write_all(bytemuck::cast_slice(values));
                written.map_err(|source| Error::Write { what: path.display().to_string(), source })?;
            }
        }
        Ok(())
    }

    /// The whole column.
    ///
    /// # Errors
    /// [`Error::Write`], [`Error::Io`].
    pub fn finish(self) -> Result<Column<T>> {
        match self {
            Self::Memory(values) => Ok(Column { values: Values::Memory(values) }),
            Self::File { path, mut out } => {
                let flushed = out.flush();
                flushed.map_err(|source| Error::Write { what: path.display().to_string(), source })?;
                drop(out);
                Column::open(&path)
            }
        }
    }
}

impl<T: Pod> Column<T> {
    /// Maps a column's file.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Malformed`] where it ends within a number.
    pub fn open(path: &Path) -> Result<Self> {
        let map = Map::open(path)?;
        if !map.bytes().len().is_multiple_of(size_of::<T>()) {
            return Err(Error::Malformed {
                path: path.to_owned(),
                place: "its length".into(),
                expected: format!("a multiple of {}", size_of::<T>()),
                actual: map.bytes().len().to_string(),
            });
        }
        Ok(Self { values: Values::Mapped(map, PhantomData) })
    }

    /// BLAKE3 of its bytes, hex.
    #[must_use]
    pub fn blake3(&self) -> String {
        hash::blake3_mapped(bytemuck::cast_slice(self))
    }
}

impl<T: Pod> Deref for Column<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match &self.values {
            Values::Memory(values) => values,
            // A map begins at a page; where nothing is mapped, the empty slice begins anywhere.
            Values::Mapped(map, _) if map.bytes().is_empty() => &[],
            Values::Mapped(map, _) => bytemuck::cast_slice(map.bytes()),
        }
    }
}

impl<T> Default for Column<T> {
    fn default() -> Self {
        Self { values: Values::Memory(Vec::new()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(path: Option<PathBuf>) -> Column<u32> {
        let mut writer = ColumnWriter::new(path).unwrap();
        for part in [&[1, 2, 3][..], &[], &[u32::MAX]] {
            writer.extend(part).unwrap();
        }
        writer.finish().unwrap()
    }

    #[test]
    fn in_memory_and_in_a_file_it_is_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ids");
        let (memory, file) = (column(None), column(Some(path.clone())));
        assert_eq!(*memory, [1, 2, 3, u32::MAX]);
        assert_eq!((&*file, file.blake3()), (&*memory, memory.blake3()));
        assert_eq!(*Column::<u32>::open(&path).unwrap(), *memory);
        assert!(ColumnWriter::<u32>::new(Some(path)).is_err(), "a file that is there stays");
        let empty = ColumnWriter::<u64>::new(Some(dir.path().join("none"))).unwrap().finish().unwrap();
        assert!(empty.is_empty());
    }

    #[test]
    fn a_cut_file_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ids");
        std::fs::write(&path, [0; 7]).unwrap();
        let message = Column::<u32>::open(&path).unwrap_err().to_string();
        assert!(message.ends_with("its length is 7, expected a multiple of 4"), "{message}");
    }
}
