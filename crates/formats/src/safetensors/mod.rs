//! One safetensors file: reader and writer.
//!
//! Specification: <https://github.com/huggingface/safetensors#format> (0.8).

mod header;
mod writer;

use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::map::Map;
use crate::names::NameIndex;
use crate::source::{check_rows, rows_and_cols};
use crate::{Error, Result, block};
use header::Header;

pub use header::Tensor;
pub use writer::{Data, PlannedTensor, write_safetensors, write_safetensors_by, write_safetensors_in_parts};

/// The largest header that is read: room for more than a hundred thousand tensors.
const MAX_HEADER_BYTES: u64 = 16 << 20;
/// Values of a tensor, so that their bytes fit a signed address in any type.
const MAX_VALUES: u64 = i64::MAX as u64 / 8;
/// The key beside the tensors that holds text.
const METADATA_KEY: &str = "__metadata__";
/// An open file, memory-mapped, its header checked.
#[derive(Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    map: Map,
    data_start: usize,
    header: Header,
    by_name: NameIndex,
}

impl SafetensorsFile {
    /// The whole file.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.map.bytes()
    }

    /// Opens a file and checks its header.
    ///
    /// # Errors
    /// A variant of [`Error`] for each way in which the header can be wrong.
    pub fn open(path: &Path) -> Result<Self> {
        let map = Map::open(path)?;
        let (header_bytes, data) = split_header(path, map.bytes())?;
        let data_start = map.bytes().len() - data.len();
        let header = Header::parse(path, header_bytes)?;
        let by_name = NameIndex::new(header.n_tensors(), |index| header.name(index))
            .map_err(|index| twice(path, "a key of the header", header.name(index)))?;
        header.tensors().try_for_each(|tensor| check_tensor(path, &tensor, data.len()))?;
        check_placement(path, &header, data.len())?;
        Ok(Self { path: path.to_owned(), map, data_start, header, by_name })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tensors, in the order of the header.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = Tensor<'_>> {
        self.header.tensors()
    }

    /// Keys and texts of `__metadata__`, in the order of the header.
    pub fn metadata(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.header.metadata()
    }

    /// The tensor with this name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<Tensor<'_>> {
        self.by_name.find(name, |index| self.header.name(index)).map(|index| self.header.tensor(index))
    }

    /// The stored bytes of one of this file's tensors.
    ///
    /// # Panics
    /// If `tensor` is of another file and does not fit into this one.
    #[must_use]
    pub fn data(&self, tensor: &Tensor<'_>) -> &[u8] {
        // They lie in the file, whose length is a number of this machine.
        &self.map.bytes()[self.data_start..][tensor.bytes.start as usize..tensor.bytes.end as usize]
    }

    /// Clears `out` and fills it with rows of a tensor, widened to f32.
    ///
    /// # Errors
    /// [`Error::NoSuchTensor`], [`Error::UnknownType`], [`Error::Rows`].
    pub fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        let tensor = self
            .tensor(name)
            .ok_or_else(|| Error::NoSuchTensor { path: self.path.clone(), tensor: name.to_owned() })?;
        let ty = tensor.block_type().ok_or_else(|| Error::UnknownType {
            path: self.path.clone(),
            tensor: name.to_owned(),
            actual: tensor.dtype.to_owned(),
        })?;
        let (n_rows, cols) = rows_and_cols(&tensor.shape);
        check_rows(&self.path, name, &rows, n_rows)?;
        let row_bytes = ty.row_bytes(cols)?;
        // What is there is written over: it need not be zero.
        out.resize(rows.len() * cols, 0.0);
        block::decode(ty, &self.data(&tensor)[rows.start * row_bytes..rows.end * row_bytes], out)
    }
}

/// Header and data of a file.
fn split_header<'a>(path: &Path, bytes: &'a [u8]) -> Result<(&'a [u8], &'a [u8])> {
    let truncated = |place: &str, expected, actual: usize| Error::Truncated {
        path: path.to_owned(),
        place: place.to_owned(),
        expected,
        actual: actual as u64,
    };
    let Some((length, rest)) = bytes.split_first_chunk() else {
        return Err(truncated("the length of the header", 8, bytes.len()));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES {
        let place = "the length of the header".to_owned();
        return Err(Error::TooLarge {
            path: path.to_owned(),
            place,
            limit: MAX_HEADER_BYTES,
            actual: length,
        });
    }
    rest.split_at_checked(length as usize).ok_or_else(|| truncated("the header", length, rest.len()))
}

/// Bytes of one value of a type, where they are whole.
fn value_bytes(dtype: &str) -> Option<u64> {
    match dtype {
        "BOOL" | "U8" | "I8" | "F8_E4M3" | "F8_E5M2" | "F8_E8M0" => Some(1),
        "U16" | "I16" | "F16" | "BF16" => Some(2),
        "U32" | "I32" | "F32" => Some(4),
        "U64" | "I64" | "F64" | "C64" => Some(8),
        _ => None,
    }
}

/// Type, shape and place of a tensor agree, and it lies in the data.
fn check_tensor(path: &Path, tensor: &Tensor<'_>, data_bytes: usize) -> Result<()> {
    let Tensor { name, dtype, shape, bytes } = tensor;
    let own = || (path.to_owned(), (*name).to_owned());
    if bytes.start > bytes.end || bytes.end > data_bytes as u64 {
        let (path, tensor) = own();
        let (begin, end, data_bytes) = (bytes.start, bytes.end, data_bytes as u64);
        return Err(Error::OutOfFile { path, tensor, begin, end, data_bytes });
    }
    let overflow = || {
        let (path, tensor) = own();
        Error::SizeOverflow { path, tensor, shape: shape.iter().map(|&d| d as u64).collect() }
    };
    // A zero does not excuse the others: of [0, 2⁶³] a row alone would wrap when it is counted in bytes.
    let without_zeros = shape.iter().try_fold(1u64, |product, &d| product.checked_mul(d.max(1) as u64));
    without_zeros.filter(|&values| values <= MAX_VALUES).ok_or_else(overflow)?;
    let values: u64 = shape.iter().map(|&d| d as u64).product();
    if let Some(each) = value_bytes(dtype) {
        let expected = values.checked_mul(each).ok_or_else(overflow)?;
        if expected != bytes.end - bytes.start {
            let place = format!("the length of tensor `{name}`, {dtype} {shape:?},");
            let (expected, actual) =
                (format!("{expected} bytes"), format!("{} bytes", bytes.end - bytes.start));
            return Err(Error::Malformed { path: path.to_owned(), place, expected, actual });
        }
    }
    Ok(())
}

/// Tensors cover the data without overlap and, as the specification asks, without holes.
fn check_placement(path: &Path, header: &Header, data_bytes: usize) -> Result<()> {
    let mut in_order: Vec<u32> = (0..).take(header.n_tensors()).collect();
    in_order.sort_by_key(|&index| {
        let bytes = header.bytes(index as usize);
        (bytes.start, bytes.end)
    });
    let mut end = 0;
    let mut before = "";
    for index in in_order {
        let (name, bytes) = (header.name(index as usize), header.bytes(index as usize));
        if bytes.start < end {
            let (first, second) = (before.to_owned(), name.to_owned());
            return Err(Error::Overlap { path: path.to_owned(), first, second, at: bytes.start });
        }
        check_no_hole(path, end, bytes.start)?;
        (end, before) = (bytes.end, name);
    }
    check_no_hole(path, end, data_bytes as u64)
}

fn check_no_hole(path: &Path, end: u64, next: u64) -> Result<()> {
    if end == next {
        return Ok(());
    }
    let place = format!("what follows byte {end} of the data");
    let expected = "a tensor or the end of the file".to_owned();
    let actual = format!("{} bytes of no tensor", next - end);
    Err(Error::Malformed { path: path.to_owned(), place, expected, actual })
}

fn twice(path: &Path, place: &'static str, name: &str) -> Error {
    Error::Duplicate { path: path.to_owned(), place, name: name.to_owned() }
}
