//! One safetensors file: reader and writer.
//!
//! Specification: <https://github.com/huggingface/safetensors#format> (0.8). The header is parsed straight
//! into its final form: through a tree of JSON values a header of 100 MB takes more than a gigabyte.

use std::fmt;
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};

use crate::json::Entries;
use crate::map::Map;
use crate::names::NameIndex;
use crate::source::{check_rows, rows_and_cols};
use crate::{BlockType, Error, Result, atomic, block, json};

/// The largest header that is read: room for more than a hundred thousand tensors.
const MAX_HEADER_BYTES: u64 = 16 << 20;
/// Values of a tensor, so that their bytes fit a signed address in any type.
const MAX_VALUES: u64 = i64::MAX as u64 / 8;
/// The key beside the tensors that holds text.
const METADATA_KEY: &str = "__metadata__";
/// Values encoded at a time when a file is written.
const WRITE_VALUES: usize = 64 * 1024;

/// One tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// Name, such as `model.norm.weight`.
    pub name: String,
    /// Type as the file names it, such as `BF16`.
    pub dtype: String,
    /// Shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// Where its bytes lie in the data section.
    bytes: Range<usize>,
}

impl Tensor {
    /// Bytes of the tensor.
    #[must_use]
    pub fn stored_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// The type, when it is one that can be read as f32.
    #[must_use]
    pub fn block_type(&self) -> Option<BlockType> {
        match self.dtype.as_str() {
            "F32" => Some(BlockType::F32),
            "F16" => Some(BlockType::F16),
            "BF16" => Some(BlockType::BF16),
            _ => None,
        }
    }
}

/// An open file, memory-mapped, its header checked.
#[derive(Debug)]
pub struct SafetensorsFile {
    path: PathBuf,
    map: Map,
    data_start: usize,
    metadata: Vec<(String, String)>,
    tensors: Vec<Tensor>,
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
        let Entries(entries) = json::parse::<Entries<Entry>>(path, header_bytes)?;
        let mut metadata = Vec::new();
        let mut tensors = Vec::with_capacity(entries.len());
        let mut seen_metadata = false;
        let twice = |name: &str| {
            let (path, name) = (path.to_owned(), name.to_owned());
            Error::Duplicate { path, place: "a key of the header", name }
        };
        for (name, entry) in entries {
            match entry {
                Entry::Metadata(entries) if name == METADATA_KEY => {
                    if std::mem::replace(&mut seen_metadata, true) {
                        return Err(twice(&name));
                    }
                    metadata = entries;
                }
                Entry::Metadata(_) => return Err(not_a_tensor(path, name)),
                Entry::Tensor { .. } if name == METADATA_KEY => return Err(not_metadata(path)),
                Entry::Tensor { dtype, shape, begin, end } => {
                    let bytes = check_tensor(path, &name, &dtype, &shape, begin..end, data.len())?;
                    let shape = shape.iter().map(|&d| d as usize).collect();
                    tensors.push(Tensor { name, dtype, shape, bytes });
                }
            }
        }
        let by_name = NameIndex::new(tensors.len(), |index| &tensors[index].name)
            .map_err(|index| twice(&tensors[index].name))?;
        check_placement(path, &tensors, data.len())?;
        Ok(Self { path: path.to_owned(), map, data_start, metadata, tensors, by_name })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tensors, in the order of the header.
    #[must_use]
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// The text entries of `__metadata__`.
    #[must_use]
    pub fn metadata(&self) -> &[(String, String)] {
        &self.metadata
    }

    /// The tensor with this name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&Tensor> {
        self.by_name.find(name, |index| &self.tensors[index].name).map(|index| &self.tensors[index])
    }

    /// The stored bytes of one of this file's tensors.
    ///
    /// # Panics
    /// If `tensor` is of another file and does not fit into this one.
    #[must_use]
    pub fn data(&self, tensor: &Tensor) -> &[u8] {
        &self.map.bytes()[self.data_start..][tensor.bytes.clone()]
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
            actual: tensor.dtype.clone(),
        })?;
        let (n_rows, cols) = rows_and_cols(&tensor.shape);
        check_rows(&self.path, name, &rows, n_rows)?;
        let row_bytes = ty.row_bytes(cols)?;
        // What is there is written over: it need not be zero.
        out.resize(rows.len() * cols, 0.0);
        block::decode(ty, &self.data(tensor)[rows.start * row_bytes..rows.end * row_bytes], out)
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

/// A value of the header: a tensor, or the text beside them.
enum Entry {
    Tensor { dtype: String, shape: Vec<u64>, begin: u64, end: u64 },
    Metadata(Vec<(String, String)>),
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(EntryVisitor)
    }
}

struct EntryVisitor;

impl<'de> Visitor<'de> for EntryVisitor {
    type Value = Entry;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a tensor: an object of dtype, shape and data_offsets")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Entry, A::Error> {
        let (mut dtype, mut shape, mut offsets) = (None, None, None);
        let mut text: Vec<(String, String)> = Vec::new();
        while let Some(key) = map.next_key::<String>()? {
            let repeated = match key.as_str() {
                "shape" => shape.replace(map.next_value::<Vec<u64>>()?).is_some(),
                "data_offsets" => offsets.replace(map.next_value::<[u64; 2]>()?).is_some(),
                "dtype" => dtype.replace(map.next_value::<String>()?).is_some(),
                _ => {
                    text.push((key, map.next_value()?));
                    continue;
                }
            };
            if repeated {
                return Err(occurs_twice(&key));
            }
        }
        NameIndex::new(text.len(), |index| &text[index].0).map_err(|index| occurs_twice(&text[index].0))?;
        match (dtype, shape, offsets) {
            (Some(dtype), Some(shape), Some([begin, end])) if text.is_empty() => {
                Ok(Entry::Tensor { dtype, shape, begin, end })
            }
            (dtype, None, None) => {
                text.extend(dtype.map(|dtype| ("dtype".to_owned(), dtype)));
                Ok(Entry::Metadata(text))
            }
            _ => Err(serde::de::Error::custom("a tensor has exactly the keys dtype, shape, data_offsets")),
        }
    }
}

fn occurs_twice<E: serde::de::Error>(key: &str) -> E {
    E::custom(format_args!("the key `{key}` occurs twice"))
}

fn not_a_tensor(path: &Path, name: String) -> Error {
    let (expected, actual) = ("dtype, shape and data_offsets".to_owned(), "without them".to_owned());
    Error::Malformed { path: path.to_owned(), place: format!("tensor `{name}`"), expected, actual }
}

fn not_metadata(path: &Path) -> Error {
    let (expected, actual) = ("an object of texts".to_owned(), "a tensor".to_owned());
    Error::Malformed { path: path.to_owned(), place: format!("`{METADATA_KEY}`"), expected, actual }
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

/// The range of a tensor in the data, once type, shape and offsets agree.
fn check_tensor(
    path: &Path,
    name: &str,
    dtype: &str,
    shape: &[u64],
    bytes: Range<u64>,
    data_bytes: usize,
) -> Result<Range<usize>> {
    let overflow =
        || Error::SizeOverflow { path: path.to_owned(), tensor: name.to_owned(), shape: shape.to_vec() };
    if bytes.start > bytes.end || bytes.end > data_bytes as u64 {
        let (path, tensor) = (path.to_owned(), name.to_owned());
        let (begin, end, data_bytes) = (bytes.start, bytes.end, data_bytes as u64);
        return Err(Error::OutOfFile { path, tensor, begin, end, data_bytes });
    }
    // A zero does not excuse the others: of [0, 2⁶³] a row alone would wrap when it is counted in bytes.
    let without_zeros = shape.iter().try_fold(1u64, |product, &d| product.checked_mul(d.max(1)));
    without_zeros.filter(|&values| values <= MAX_VALUES).ok_or_else(overflow)?;
    let values: u64 = shape.iter().product();
    if let Some(each) = value_bytes(dtype) {
        let expected = values.checked_mul(each).ok_or_else(overflow)?;
        if expected != bytes.end - bytes.start {
            let place = format!("the length of tensor `{name}`, {dtype} {shape:?},");
            let (expected, actual) =
                (format!("{expected} bytes"), format!("{} bytes", bytes.end - bytes.start));
            return Err(Error::Malformed { path: path.to_owned(), place, expected, actual });
        }
    }
    Ok(bytes.start as usize..bytes.end as usize)
}

/// Tensors cover the data without overlap and, as the specification asks, without holes.
fn check_placement(path: &Path, tensors: &[Tensor], data_bytes: usize) -> Result<()> {
    let mut in_order: Vec<&Tensor> = tensors.iter().collect();
    in_order.sort_by_key(|tensor| (tensor.bytes.start, tensor.bytes.end));
    let mut end = 0;
    let mut before = "";
    for tensor in in_order {
        if tensor.bytes.start < end {
            let (first, second) = (before.to_owned(), tensor.name.clone());
            let at = tensor.bytes.start as u64;
            return Err(Error::Overlap { path: path.to_owned(), first, second, at });
        }
        check_no_hole(path, end, tensor.bytes.start)?;
        (end, before) = (tensor.bytes.end, &tensor.name);
    }
    check_no_hole(path, end, data_bytes)
}

fn check_no_hole(path: &Path, end: usize, next: usize) -> Result<()> {
    if end == next {
        return Ok(());
    }
    let place = format!("what follows byte {end} of the data");
    let expected = "a tensor or the end of the file".to_owned();
    let actual = format!("{} bytes of no tensor", next - end);
    Err(Error::Malformed { path: path.to_owned(), place, expected, actual })
}

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
