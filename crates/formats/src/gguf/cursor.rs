//! A position in the head of a file: every read is checked against what is left.

use std::path::Path;

use crate::{Error, Result};

#[derive(Clone)]
pub(super) struct Cursor<'a> {
    path: &'a Path,
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(path: &'a Path, bytes: &'a [u8]) -> Self {
        Self { path, bytes, at: 0 }
    }

    pub(super) fn path(&self) -> &'a Path {
        self.path
    }

    /// Bytes read so far.
    pub(super) fn position(&self) -> usize {
        self.at
    }

    /// The next `length` bytes; `place` is for the error.
    pub(super) fn take(&mut self, length: u64, place: &str) -> Result<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        let taken = usize::try_from(length).ok().and_then(|length| rest.get(..length));
        let taken = taken.ok_or_else(|| self.truncated(length, place))?;
        self.at += taken.len();
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self, place: &str) -> Result<[u8; N]> {
        let bytes = self.take(N as u64, place)?;
        Ok(*bytes.first_chunk().expect("take gives what was asked for"))
    }

    pub(super) fn u32(&mut self, place: &str) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(place)?))
    }

    pub(super) fn u64(&mut self, place: &str) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(place)?))
    }

    pub(super) fn string(&mut self, place: &str) -> Result<String> {
        Ok(self.text(place)?.to_owned())
    }

    /// A string where it lies.
    pub(super) fn text(&mut self, place: &str) -> Result<&'a str> {
        let length = self.u64(place)?;
        let bytes = self.take(length, place)?;
        std::str::from_utf8(bytes)
            .map_err(|error| self.malformed(place.to_owned(), "text in UTF-8", error.to_string()))
    }

    /// `count` as a capacity, once it is certain that the rest of the file can hold so many things of at
    /// least `min_bytes` each.
    pub(super) fn capacity(&self, count: u64, min_bytes: u64, place: &str) -> Result<usize> {
        let left = (self.bytes.len() - self.at) as u64;
        match count.checked_mul(min_bytes) {
            Some(bytes) if bytes <= left => Ok(usize::try_from(count).expect("no larger than the file")),
            needed => Err(self.truncated(needed.unwrap_or(u64::MAX), place)),
        }
    }

    /// As [`Cursor::capacity`] for things that take more memory than bytes of the file: no more of them than take as
    /// much memory as the rest of the file, since the count may lie.
    pub(super) fn cautious_capacity<T>(&self, count: u64, min_bytes: u64, place: &str) -> Result<usize> {
        let as_large_as_the_rest = (self.bytes.len() - self.at) / size_of::<T>();
        Ok(self.capacity(count, min_bytes, place)?.min(as_large_as_the_rest))
    }

    fn truncated(&self, expected: u64, place: &str) -> Error {
        let actual = (self.bytes.len() - self.at) as u64;
        Error::Truncated { path: self.path.to_owned(), place: place.to_owned(), expected, actual }
    }

    pub(super) fn malformed(&self, place: String, expected: &str, actual: String) -> Error {
        Error::Malformed { path: self.path.to_owned(), place, expected: expected.to_owned(), actual }
    }
}
