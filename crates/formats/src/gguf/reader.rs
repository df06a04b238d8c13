//! Reading a GGUF file through a memory map.
//!
//! The whole head is checked when a file is opened; after that no access can fall outside the file.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use super::cursor::Cursor;
use super::{MAGIC, Metadata, TensorInfo, Value, layout};
use crate::map::Map;
use crate::names::NameIndex;
use crate::source::{Naming, check_rows, rows_and_cols};
use crate::{BlockType, Error, Result, TensorSource, block, hash};

/// The fewest bytes of a key with its value, and of an entry of the tensor directory.
const MIN_ENTRY_BYTES: u64 = 13;
const MIN_TENSOR_BYTES: u64 = 24;
/// The most keys, and the most tensors: published files have under a hundred and a few thousand.
const MAX_ENTRIES: u64 = 65_536;
/// Longest key or tensor name; the specification's limit for keys.
const MAX_NAME_BYTES: u64 = 65_535;
/// ggml's tensors have at most four dimensions.
const MAX_DIMENSIONS: u32 = 4;

/// An open GGUF file.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    map: Map,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    by_name: NameIndex,
    data_start: u64,
    content_hash: OnceLock<String>,
}

impl Reader {
    /// Opens a file and checks its header, metadata and tensor directory.
    ///
    /// # Errors
    /// A variant of [`Error`] for each way in which the file can be wrong.
    pub fn open(path: &Path) -> Result<Self> {
        let map = Map::open(path)?;
        let mut cursor = Cursor::new(path, map.bytes());
        let (n_tensors, n_entries) = read_header(&mut cursor)?;
        let metadata = read_metadata(&mut cursor, n_entries)?;
        let alignment = layout::alignment(&metadata, path)?;
        let (tensors, by_name) = read_directory(&mut cursor, n_tensors, alignment)?;
        let data_start = (cursor.position() as u64).next_multiple_of(alignment);
        let data_bytes = (map.bytes().len() as u64).saturating_sub(data_start);
        check_placement(path, &tensors, data_bytes)?;
        let content_hash = OnceLock::new();
        Ok(Self { path: path.to_owned(), map, metadata, tensors, by_name, data_start, content_hash })
    }

    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// [`TensorSource::content_hash`] with another way to hash a file: one that remembers, say.
    ///
    /// # Errors
    /// What hashing meets.
    pub fn content_hash_by(&self, hash_file: &mut dyn FnMut(&Path) -> Result<String>) -> Result<String> {
        hash::once(&self.content_hash, || hash_file(&self.path))
    }

    /// Its keys and values.
    #[must_use]
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Its tensors, in file order.
    #[must_use]
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor with this name.
    #[must_use]
    pub fn tensor(&self, name: &str) -> Option<&TensorInfo> {
        self.by_name.find(name, |index| &self.tensors[index].name).map(|index| &self.tensors[index])
    }

    /// Where one of this file's tensors begins in it, in bytes.
    #[must_use]
    pub fn position(&self, tensor: &TensorInfo) -> u64 {
        self.data_start + tensor.offset
    }

    /// The stored bytes of one of this file's tensors.
    ///
    /// # Panics
    /// If `tensor` is of another file and does not fit into this one.
    #[must_use]
    #[allow(clippy::cast_possible_truncation, reason = "the map holds it, so it fits an address")]
    pub fn data(&self, tensor: &TensorInfo) -> &[u8] {
        &self.map.bytes()[self.position(tensor) as usize..][..tensor.bytes as usize]
    }
}

impl TensorSource for Reader {
    fn tensor_names(&self) -> Vec<String> {
        self.tensors.iter().map(|tensor| tensor.name.clone()).collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        Some(self.tensor(name)?.torch_shape())
    }

    fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut Vec<f32>) -> Result<()> {
        let tensor = self
            .tensor(name)
            .ok_or_else(|| Error::NoSuchTensor { path: self.path.clone(), tensor: name.to_owned() })?;
        let (n_rows, cols) = rows_and_cols(&tensor.torch_shape());
        check_rows(&self.path, name, &rows, n_rows)?;
        let row_bytes = tensor.ty.row_bytes(cols)?;
        // What is there is written over: it need not be zero.
        out.resize(rows.len() * cols, 0.0);
        block::decode(tensor.ty, &self.data(tensor)[rows.start * row_bytes..rows.end * row_bytes], out)
    }

    fn content_hash(&self) -> Result<String> {
        self.content_hash_by(&mut |path| hash::blake3_file(path))
    }

    fn naming(&self) -> Naming {
        Naming::Gguf
    }

    fn label(&self) -> PathBuf {
        self.path.clone()
    }
}

/// Numbers of tensors and of metadata entries.
fn read_header(cursor: &mut Cursor<'_>) -> Result<(u64, u64)> {
    let magic = cursor.array("the magic")?;
    if magic != MAGIC {
        return Err(cursor.malformed("the magic".into(), "`GGUF`", format!("`{}`", magic.escape_ascii())));
    }
    let version = cursor.u32("the version")?;
    if !(2..=3).contains(&version) {
        let expected = "2 or 3, little-endian";
        return Err(cursor.malformed("the version".into(), expected, format!("{version}")));
    }
    Ok((read_count(cursor, "the number of tensors")?, read_count(cursor, "the number of keys")?))
}

fn read_count(cursor: &mut Cursor<'_>, place: &str) -> Result<u64> {
    let count = cursor.u64(place)?;
    if count <= MAX_ENTRIES {
        return Ok(count);
    }
    let (path, place) = (cursor.path().to_owned(), place.to_owned());
    Err(Error::TooLarge { path, place, limit: MAX_ENTRIES, actual: count })
}

fn read_metadata(cursor: &mut Cursor<'_>, count: u64) -> Result<Metadata> {
    let capacity = cursor.cautious_capacity::<(String, Value)>(count, MIN_ENTRY_BYTES, "the metadata")?;
    let mut entries: Vec<(String, Value)> = Vec::with_capacity(capacity);
    for index in 0..count {
        let key = read_name(cursor, &format!("key {index}"))?;
        let value = Value::read(cursor, &format!("the value of `{key}`"))?;
        entries.push((key, value));
    }
    index_names(cursor.path(), "a key", entries.len(), |index| &entries[index].0)?;
    Ok(entries.into_iter().collect())
}

type Directory = (Vec<TensorInfo>, NameIndex);

fn read_directory(cursor: &mut Cursor<'_>, count: u64, alignment: u64) -> Result<Directory> {
    let place = "the tensor directory";
    let mut tensors =
        Vec::with_capacity(cursor.cautious_capacity::<TensorInfo>(count, MIN_TENSOR_BYTES, place)?);
    for index in 0..count as usize {
        tensors.push(read_tensor(cursor, index, alignment)?);
    }
    let by_name = index_names(cursor.path(), "a tensor", tensors.len(), |index| &tensors[index].name)?;
    Ok((tensors, by_name))
}

fn index_names<'a>(
    path: &Path,
    place: &'static str,
    count: usize,
    name: impl Fn(usize) -> &'a str,
) -> Result<NameIndex> {
    NameIndex::new(count, &name).map_err(|twice| Error::Duplicate {
        path: path.to_owned(),
        place,
        name: name(twice).to_owned(),
    })
}

fn read_tensor(cursor: &mut Cursor<'_>, index: usize, alignment: u64) -> Result<TensorInfo> {
    let name = read_name(cursor, &format!("the name of tensor {index}"))?;
    let place = format!("tensor `{name}`");
    let n_dimensions = cursor.u32(&place)?;
    if !(1..=MAX_DIMENSIONS).contains(&n_dimensions) {
        let place = format!("the number of dimensions of {place}");
        return Err(cursor.malformed(place, "from 1 to 4", format!("{n_dimensions}")));
    }
    let shape = (0..n_dimensions).map(|_| cursor.u64(&place)).collect::<Result<Vec<_>>>()?;
    let id = cursor.u32(&place)?;
    let ty = BlockType::from_id(id).ok_or_else(|| Error::UnknownType {
        path: cursor.path().to_owned(),
        tensor: name.clone(),
        actual: layout::type_name(id),
    })?;
    let offset = cursor.u64(&place)?;
    let bytes = layout::tensor_bytes(cursor.path(), &name, &shape, ty)?;
    if !offset.is_multiple_of(alignment) {
        let expected = format!("a multiple of the alignment {alignment}");
        return Err(cursor.malformed(format!("the offset of {place}"), &expected, format!("{offset}")));
    }
    Ok(TensorInfo { name, shape, ty, offset, bytes })
}

fn read_name(cursor: &mut Cursor<'_>, place: &str) -> Result<String> {
    let length = cursor.u64(place)?;
    if length > MAX_NAME_BYTES {
        let (path, place) = (cursor.path().to_owned(), format!("the length of {place}"));
        return Err(Error::TooLarge { path, place, limit: MAX_NAME_BYTES, actual: length });
    }
    let bytes = cursor.take(length, place)?;
    let name = std::str::from_utf8(bytes)
        .map_err(|error| cursor.malformed(place.to_owned(), "text in UTF-8", error.to_string()))?;
    Ok(name.to_owned())
}

/// Every tensor inside the data, no two over each other.
fn check_placement(path: &Path, tensors: &[TensorInfo], data_bytes: u64) -> Result<()> {
    let mut in_order: Vec<&TensorInfo> = tensors.iter().collect();
    in_order.sort_by_key(|tensor| tensor.offset);
    let mut before: Option<(&TensorInfo, u64)> = None;
    for tensor in in_order {
        let end = tensor.offset.checked_add(tensor.bytes).filter(|&end| end <= data_bytes);
        let end = end.ok_or_else(|| Error::OutOfFile {
            path: path.to_owned(),
            tensor: tensor.name.clone(),
            begin: tensor.offset,
            end: tensor.offset.saturating_add(tensor.bytes),
            data_bytes,
        })?;
        if let Some((first, first_end)) = before
            && tensor.offset < first_end
        {
            let (first, second) = (first.name.clone(), tensor.name.clone());
            return Err(Error::Overlap { path: path.to_owned(), first, second, at: tensor.offset });
        }
        before = Some((tensor, end));
    }
    Ok(())
}
