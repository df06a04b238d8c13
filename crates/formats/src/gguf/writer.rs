//! Writing a GGUF file front to back: sizes are known before the first byte.

use std::collections::HashSet;
use std::io::Write;
use std::path::Path;

use super::value::write_string;
use super::{MAGIC, Metadata, layout};
use crate::{BlockType, Error, Result};

/// The version that is written.
const VERSION: u32 = 3;
/// ggml keeps names in 64 bytes with a final zero.
const MAX_TENSOR_NAME_BYTES: usize = 63;

/// A tensor to be written: name, shape in ggml's order (length of a row first), type.
pub type Planned = (String, Vec<u64>, BlockType);

/// The exact size of the file that a [`Writer`] with these arguments makes.
///
/// # Errors
/// As [`Writer::begin`], without those of writing.
pub fn file_bytes(metadata: &Metadata, tensors: &[Planned]) -> Result<u64> {
    let head = Head::new(metadata, tensors)?;
    Ok(head.bytes.len() as u64 + head.data_bytes)
}

/// The bytes before the data, of the file that a [`Writer`] with these arguments makes.
///
/// # Errors
/// As [`file_bytes`].
pub fn head_bytes(metadata: &Metadata, tensors: &[Planned]) -> Result<Vec<u8>> {
    Ok(Head::new(metadata, tensors)?.bytes)
}

/// A GGUF file under construction.
#[derive(Debug)]
pub struct Writer<W: Write> {
    out: W,
    /// Names and sizes of the tensors, in file order.
    planned: Vec<(String, u64)>,
    /// The tensor being written, and how much of it is.
    index: usize,
    written: u64,
    alignment: u64,
}

impl<W: Write> Writer<W> {
    /// Writes header, metadata, tensor directory and padding.
    ///
    /// # Errors
    /// [`Error::Plan`] for names, shapes and keys that no reader would take, [`Error::Write`].
    pub fn begin(mut out: W, metadata: &Metadata, tensors: &[Planned]) -> Result<Self> {
        let head = Head::new(metadata, tensors)?;
        out.write_all(&head.bytes).map_err(|source| Error::Write { what: "the header".into(), source })?;
        Ok(Self { out, planned: head.planned, index: 0, written: 0, alignment: head.alignment })
    }

    /// Goes on where `out` holds the beginning of the same file up to the end of its tensor `n_written` - 1.
    ///
    /// # Errors
    /// As [`Writer::begin`]; [`Error::WriteOrder`] where there are not so many tensors.
    pub fn go_on(out: W, metadata: &Metadata, tensors: &[Planned], n_written: usize) -> Result<Self> {
        let head = Head::new(metadata, tensors)?;
        if n_written > tensors.len() {
            let expected = format!("{} tensors", tensors.len());
            return Err(Error::WriteOrder { name: format!("tensor {n_written}"), expected });
        }
        Ok(Self { out, planned: head.planned, index: n_written, written: 0, alignment: head.alignment })
    }

    /// Where it is written.
    pub fn get_ref(&self) -> &W {
        &self.out
    }

    /// Where it is written; what is written past the writer is not counted.
    pub fn get_mut(&mut self) -> &mut W {
        &mut self.out
    }

    /// Writes the next planned tensor, all of it, and its padding.
    ///
    /// # Errors
    /// [`Error::WriteOrder`] when the length is not the planned one, [`Error::Write`].
    pub fn write_tensor(&mut self, bytes: &[u8]) -> Result<()> {
        let expected = self.planned.get(self.index).map_or(0, |(_, bytes)| *bytes);
        if self.written != 0 || bytes.len() as u64 != expected {
            return Err(self.out_of_order(bytes.len() as u64));
        }
        self.write_part(bytes)
    }

    /// Writes a piece of the next planned tensor; pieces add up to exactly one tensor.
    ///
    /// # Errors
    /// As [`Writer::write_tensor`].
    pub fn write_part(&mut self, bytes: &[u8]) -> Result<()> {
        let written = self.written + bytes.len() as u64;
        let Some((name, planned)) = self.planned.get(self.index).filter(|(_, planned)| written <= *planned)
        else {
            return Err(self.out_of_order(bytes.len() as u64));
        };
        let failed = |source| Error::Write { what: format!("tensor `{name}`"), source };
        self.out.write_all(bytes).map_err(failed)?;
        self.written = written;
        if written == *planned {
            let padding = planned.next_multiple_of(self.alignment) - planned;
            write_zeros(&mut self.out, padding).map_err(failed)?;
            (self.index, self.written) = (self.index + 1, 0);
        }
        Ok(())
    }

    /// Flushes and hands the destination back.
    ///
    /// # Errors
    /// [`Error::WriteOrder`] when planned tensors are missing, [`Error::Write`].
    pub fn finish(mut self) -> Result<W> {
        if let Some((name, bytes)) = self.planned.get(self.index) {
            let expected = format!("tensor `{name}` of {bytes} bytes");
            return Err(Error::WriteOrder { name: "the end of the file".into(), expected });
        }
        self.out.flush().map_err(|source| Error::Write { what: "the end of the file".into(), source })?;
        Ok(self.out)
    }

    fn out_of_order(&self, bytes: u64) -> Error {
        let expected = match self.planned.get(self.index) {
            None => "no further tensor".to_owned(),
            Some((name, planned)) => format!("{} more bytes of tensor `{name}`", planned - self.written),
        };
        Error::WriteOrder { name: format!("a tensor of {bytes} bytes"), expected }
    }
}

fn write_zeros(out: &mut impl Write, count: u64) -> std::io::Result<()> {
    std::io::copy(&mut std::io::Read::take(std::io::repeat(0), count), out).map(drop)
}

/// Everything before the data, and the size of the data.
struct Head {
    bytes: Vec<u8>,
    planned: Vec<(String, u64)>,
    data_bytes: u64,
    alignment: u64,
}

impl Head {
    fn new(metadata: &Metadata, tensors: &[Planned]) -> Result<Self> {
        let path = Path::new("(a GGUF file to be written)");
        let alignment = layout::alignment(metadata, path)?;
        check_unique(metadata.entries().iter().map(|(key, _)| key.as_str()), "a key")?;
        check_unique(tensors.iter().map(|(name, ..)| name.as_str()), "a tensor")?;
        let mut bytes = Vec::new();
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend((tensors.len() as u64).to_le_bytes());
        bytes.extend((metadata.len() as u64).to_le_bytes());
        for (key, value) in metadata.entries() {
            write_string(key, &mut bytes);
            value.write(&mut bytes);
        }
        let mut planned = Vec::with_capacity(tensors.len());
        let mut offset = 0u64;
        for (name, shape, ty) in tensors {
            check_tensor(name, shape)?;
            let id = file_id(name, *ty)?;
            let tensor_bytes = layout::tensor_bytes(path, name, shape, *ty)?;
            write_entry(name, shape, id, offset, &mut bytes);
            let end = offset.checked_add(tensor_bytes.next_multiple_of(alignment));
            offset = end.filter(|&end| end < i64::MAX as u64).ok_or_else(|| Error::SizeOverflow {
                path: path.to_owned(),
                tensor: name.clone(),
                shape: shape.clone(),
            })?;
            planned.push((name.clone(), tensor_bytes));
        }
        let padded = (bytes.len() as u64).next_multiple_of(alignment);
        bytes.resize(usize::try_from(padded).expect("the header is in memory"), 0);
        Ok(Self { bytes, planned, data_bytes: offset, alignment })
    }
}

fn write_entry(name: &str, shape: &[u64], type_id: u32, offset: u64, out: &mut Vec<u8>) {
    write_string(name, out);
    out.extend((shape.len() as u32).to_le_bytes());
    for dimension in shape {
        out.extend(dimension.to_le_bytes());
    }
    out.extend(type_id.to_le_bytes());
    out.extend(offset.to_le_bytes());
}

fn file_id(name: &str, ty: BlockType) -> Result<u32> {
    ty.id().ok_or_else(|| Error::Plan {
        name: name.to_owned(),
        expected: "a type that files have".to_owned(),
        actual: ty.to_string(),
    })
}

fn check_tensor(name: &str, shape: &[u64]) -> Result<()> {
    let refused = |expected: &str, actual: String| {
        Err(Error::Plan { name: name.to_owned(), expected: expected.to_owned(), actual })
    };
    if name.is_empty() || name.len() > MAX_TENSOR_NAME_BYTES {
        return refused("a name of 1 to 63 bytes", format!("a name of {} bytes", name.len()));
    }
    if !(1..=4).contains(&shape.len()) {
        return refused("1 to 4 dimensions", format!("{} dimensions", shape.len()));
    }
    Ok(())
}

fn check_unique<'a>(names: impl Iterator<Item = &'a str>, what: &str) -> Result<()> {
    let mut seen = HashSet::new();
    for name in names {
        if !seen.insert(name) {
            let (expected, actual) = (format!("{what} once"), format!("{what} twice"));
            return Err(Error::Plan { name: name.to_owned(), expected, actual });
        }
    }
    Ok(())
}
