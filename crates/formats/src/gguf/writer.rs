//! Writing a GGUF file front to back: sizes are known before the first byte.
use std::io::Write;

use super::Metadata;
use crate::{BlockType, Result};

/// A tensor to be written: name, shape in ggml's order (length of a row first), type.
pub type Planned = (String, Vec<u64>, BlockType);

/// The exact size of the file that a [`Writer`] with these arguments makes.
///
/// # Errors
/// As [`Writer::begin`], without those of writing.
pub fn file_bytes(metadata: &Metadata, tensors: &[Planned]) -> Result<u64> {
    let _ = (metadata, tensors);
    todo!()
}

/// A GGUF file under construction.
#[derive(Debug)]
pub struct Writer<W: Write> {
    out: W,
}

impl<W: Write> Writer<W> {
    /// Writes header, metadata, tensor directory and padding.
    ///
    /// # Errors
    /// [`crate::Error`] for duplicate or over-long names, sizes that overflow, and failed writes.
    pub fn begin(out: W, metadata: &Metadata, tensors: &[Planned]) -> Result<Self> {
        let _ = (metadata, tensors);
        Ok(Self { out })
    }

    /// Writes the next planned tensor, all of it, and its padding.
    ///
    /// # Errors
    /// [`crate::Error::WriteOrder`] when the length is not the planned one, [`crate::Error::Write`].
    pub fn write_tensor(&mut self, bytes: &[u8]) -> Result<()> {
        let _ = bytes;
        todo!()
    }

    /// Writes a piece of the next planned tensor; pieces add up to exactly one tensor.
    ///
    /// # Errors
    /// As [`Writer::write_tensor`].
    pub fn write_part(&mut self, bytes: &[u8]) -> Result<()> {
        let _ = bytes;
        todo!()
    }

    /// Flushes and hands the destination back.
    ///
    /// # Errors
    /// [`crate::Error::WriteOrder`] when planned tensors are missing, [`crate::Error::Write`].
    pub fn finish(self) -> Result<W> {
        Ok(self.out)
    }
}
