//! Writing a safetensors file: the header is known before the data, which come one tensor, or part of one, at a time.

use std::io::Write;
use std::path::Path;

use super::METADATA_KEY;
use crate::{BlockType, Error, Result, atomic, block};

/// Values encoded at a time.
const WRITE_VALUES: usize = 64 * 1024;

/// What a tensor to be written holds.
#[derive(Debug, Clone, Copy)]
pub enum Data<'a> {
    /// Written as F32.
    F32(&'a [f32]),
    /// Written as BF16, rounded to nearest even.
    Bf16(&'a [f32]),
    /// Written as they are.
    U8(&'a [u8]),
}

impl Data<'_> {
    fn len(self) -> usize {
        match self {
            Self::F32(values) | Self::Bf16(values) => values.len(),
            Self::U8(bytes) => bytes.len(),
        }
    }

    fn stored(self) -> Stored {
        match self {
            Self::F32(_) => BlockType::F32.into(),
            Self::Bf16(_) => BlockType::BF16.into(),
            Self::U8(_) => Stored { dtype: "U8", value_bytes: 1 },
        }
    }

    fn write(self, out: &mut atomic::Output, name: &str) -> Result<()> {
        match self {
            Self::F32(values) => write_values(out, name, BlockType::F32, values),
            Self::Bf16(values) => write_values(out, name, BlockType::BF16, values),
            Self::U8(bytes) => write_bytes(out, name, bytes),
        }
    }
}

/// How the header names a type, and bytes of one value.
struct Stored {
    dtype: &'static str,
    value_bytes: usize,
}

impl From<BlockType> for Stored {
    fn from(ty: BlockType) -> Self {
        Self { dtype: ty.name(), value_bytes: ty.block_bytes() }
    }
}

/// Writes tensors (name, shape outermost first, data) as one safetensors file, atomically.
///
/// # Errors
/// [`Error::Plan`] for a shape that is not that of the data or a name used twice; as [`atomic::write_file`].
pub fn write_safetensors(path: &Path, tensors: &[(String, Vec<usize>, Data<'_>)]) -> Result<()> {
    let planned = tensors.iter().map(|(name, shape, data)| (name.as_str(), shape.as_slice(), data.stored()));
    let header = header(planned)?;
    atomic::write_file(path, |out| {
        out.reserve((header.text.len() + header.data_bytes) as u64)?;
        write_header(out, &header)?;
        tensors.iter().try_for_each(|(name, shape, data)| {
            check_values(name, shape, data.len())?;
            data.write(out, name)
        })
    })
}

/// As [`write_safetensors`] for tensors in 32 bits of which only one is in memory at a time: `values` is asked for
/// each by its place in the list, in order.
///
/// # Errors
/// As [`write_safetensors`], and what `values` returns.
pub fn write_safetensors_by<E: From<Error>>(
    path: &Path,
    tensors: &[(String, Vec<usize>)],
    mut values: impl FnMut(usize) -> Result<Vec<f32>, E>,
) -> Result<(), E> {
    let planned: Vec<PlannedTensor> =
        tensors.iter().map(|(name, shape)| (name.clone(), shape.clone(), BlockType::F32)).collect();
    write_safetensors_in_parts(path, &planned, |index, put| Ok(put(&values(index)?)?))
}

/// A tensor to be written: name, shape outermost first, and a type of one value each (F32, F16, BF16).
pub type PlannedTensor = (String, Vec<usize>, BlockType);

/// As [`write_safetensors`] with a few rows in memory at a time: `write` is asked for each tensor by its place in the list,
/// in order, and puts its values part after part.
///
/// # Errors
/// As [`write_safetensors`], and what `write` returns.
pub fn write_safetensors_in_parts<E: From<Error>>(
    path: &Path,
    tensors: &[PlannedTensor],
    mut write: impl FnMut(usize, &mut dyn FnMut(&[f32]) -> Result<()>) -> Result<(), E>,
) -> Result<(), E> {
    let planned = tensors.iter().map(|(name, shape, ty)| (name.as_str(), shape.as_slice(), (*ty).into()));
    let header = header(planned)?;
    atomic::write_file(path, |out| {
        out.reserve((header.text.len() + header.data_bytes) as u64)?;
        write_header(out, &header)?;
        for (index, (name, shape, ty)) in tensors.iter().enumerate() {
            let mut n_values = 0;
            write(index, &mut |values| {
                n_values += values.len();
                write_values(out, name, *ty, values)
            })?;
            check_values(name, shape, n_values)?;
        }
        Ok(())
    })
}

fn write_header(out: &mut atomic::Output, header: &Header) -> Result<()> {
    out.write_all(&header.text).map_err(|source| Error::Write { what: "the header".into(), source })
}

fn write_values(out: &mut atomic::Output, name: &str, ty: BlockType, values: &[f32]) -> Result<()> {
    let mut bytes = Vec::new();
    for values in values.chunks(WRITE_VALUES) {
        bytes.resize(values.len() * ty.block_bytes(), 0);
        block::encode(ty, values, values.len(), None, &mut bytes)?;
        write_bytes(out, name, &bytes)?;
    }
    Ok(())
}

fn write_bytes(out: &mut atomic::Output, name: &str, bytes: &[u8]) -> Result<()> {
    out.write_all(bytes).map_err(|source| Error::Write { what: format!("tensor `{name}`"), source })
}

fn check_values(name: &str, shape: &[usize], n_values: usize) -> Result<()> {
    if shape.iter().product::<usize>() == n_values {
        return Ok(());
    }
    let (expected, actual) = (format!("the values of shape {shape:?}"), format!("{n_values} values"));
    Err(Error::Plan { name: name.to_owned(), expected, actual })
}

/// What stands before the data.
struct Header {
    /// Length and JSON, padded so that the data begins at a multiple of 8.
    text: Vec<u8>,
    data_bytes: usize,
}

fn header<'a>(tensors: impl Iterator<Item = (&'a str, &'a [usize], Stored)>) -> Result<Header> {
    let mut entries = serde_json::Map::new();
    // transformers refuses files that do not say which framework's layout they have.
    entries.insert(METADATA_KEY.to_owned(), serde_json::json!({ "format": "pt" }));
    let mut begin = 0;
    for (name, shape, Stored { dtype, value_bytes }) in tensors {
        let end = begin + shape.iter().product::<usize>() * value_bytes;
        let entry = serde_json::json!({ "dtype": dtype, "shape": shape, "data_offsets": [begin, end] });
        if entries.insert(name.to_owned(), entry).is_some() {
            let (expected, actual) = ("a name of its own".to_owned(), "one that is used twice".to_owned());
            return Err(Error::Plan { name: name.to_owned(), expected, actual });
        }
        begin = end;
    }
    let mut text = serde_json::Value::Object(entries).to_string();
    text.extend(std::iter::repeat_n(' ', text.len().next_multiple_of(8) - text.len()));
    let mut header = (text.len() as u64).to_le_bytes().to_vec();
    header.extend(text.as_bytes());
    Ok(Header { text: header, data_bytes: begin })
}
