//! The header of a safetensors file, packed: what it says takes no more room than its text.
//!
//! A header is hostile until it is checked, and may be millions of the shortest entries: as strings and lists of their own
//! they would take twelve times the file. The JSON is read straight into records, in one pass.

use std::fmt;
use std::ops::Range;
use std::path::Path;

use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{METADATA_KEY, twice};
use crate::{BlockType, Error, Result};

/// The least that a tensor takes in a header.
const LEAST_TENSOR: usize = r#""":{"dtype":"","shape":[],"data_offsets":[0,0]},"#.len();
/// The least that a text of the metadata takes.
const LEAST_TEXT: usize = r#""":"","#.len();
/// Most dimensions of a tensor: PyTorch's own limit.
const MOST_DIMENSIONS: usize = 64;
/// The longest name of a type: the known ones have up to seven letters.
const LONGEST_TYPE: usize = 16;
/// The longest text with escapes in it: the JSON reader puts these together in memory of its own.
const LONGEST_ESCAPED: usize = 256 << 10;

/// One tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor<'a> {
    /// Name, such as `model.norm.weight`.
    pub name: &'a str,
    /// Type as the file names it, such as `BF16`.
    pub dtype: &'a str,
    /// Shape, outermost dimension first.
    pub shape: Vec<usize>,
    /// Where its bytes lie in the data section.
    pub(super) bytes: Range<u64>,
}

impl Tensor<'_> {
    /// Bytes of the tensor.
    #[must_use]
    pub fn stored_bytes(&self) -> usize {
        (self.bytes.end - self.bytes.start) as usize
    }

    /// The type, when it is one that can be read as f32.
    #[must_use]
    pub fn block_type(&self) -> Option<BlockType> {
        match self.dtype {
            "F32" => Some(BlockType::F32),
            "F16" => Some(BlockType::F16),
            "BF16" => Some(BlockType::BF16),
            _ => None,
        }
    }
}

/// What a header says: of each tensor and each text beside them where its record begins.
#[derive(Debug)]
pub(super) struct Header {
    records: Records,
    tensors: Vec<u32>,
    metadata: Vec<u32>,
}

impl Header {
    /// Reads JSON; `path` is for the error. What it says is well formed, but not yet true.
    pub fn parse(path: &Path, json: &[u8]) -> Result<Self> {
        let n_colons = count_colons(path, json)?;
        let mut header = Self {
            records: Records(Vec::with_capacity(json.len())),
            tensors: Vec::with_capacity(n_colons.min(json.len() / LEAST_TENSOR)),
            metadata: Vec::new(),
        };
        let failed = |source| Error::Json { path: path.to_owned(), source };
        let mut deserializer = serde_json::Deserializer::from_slice(json);
        let most_texts = n_colons.min(json.len() / LEAST_TEXT);
        let whole = Whole { header: &mut header, most_texts };
        let n_metadata = whole.deserialize(&mut deserializer).map_err(failed)?;
        deserializer.end().map_err(failed)?;
        if n_metadata > 1 {
            return Err(twice(path, "a key of the header", METADATA_KEY));
        }
        header.refuse_texts_twice(path)?;
        Ok(header)
    }

    /// Sorted where they stand, and back: a second list would be as large as the texts.
    fn refuse_texts_twice(&mut self, path: &Path) -> Result<()> {
        let Self { records, metadata, .. } = self;
        let key = |&at: &u32| records.at(at).text();
        metadata.sort_unstable_by(|a, b| key(a).cmp(key(b)));
        if let Some(pair) = metadata.windows(2).find(|pair| key(&pair[0]) == key(&pair[1])) {
            return Err(twice(path, "a key of `__metadata__`", key(&pair[0])));
        }
        metadata.sort_unstable();
        Ok(())
    }

    pub fn n_tensors(&self) -> usize {
        self.tensors.len()
    }

    pub fn name(&self, index: usize) -> &str {
        self.records.at(self.tensors[index]).text()
    }

    pub fn tensor(&self, index: usize) -> Tensor<'_> {
        let mut record = self.records.at(self.tensors[index]);
        let (name, dtype) = (record.text(), record.text());
        let n_dimensions = record.number();
        let shape = (0..n_dimensions).map(|_| record.number() as usize).collect();
        let bytes = record.number()..record.number();
        Tensor { name, dtype, shape, bytes }
    }

    /// Where a tensor lies, without what else its record says.
    pub fn bytes(&self, index: usize) -> Range<u64> {
        let mut record = self.records.at(self.tensors[index]);
        record.skip_text();
        record.skip_text();
        (0..record.number()).for_each(|_| _ = record.number());
        record.number()..record.number()
    }

    pub fn tensors(&self) -> impl ExactSizeIterator<Item = Tensor<'_>> {
        (0..self.n_tensors()).map(|index| self.tensor(index))
    }

    pub fn metadata(&self) -> impl ExactSizeIterator<Item = (&str, &str)> {
        self.metadata.iter().map(|&at| {
            let mut record = self.records.at(at);
            (record.text(), record.text())
        })
    }
}

/// Colons in a text, of which every entry has one. Refuses texts that would cost much to put together.
fn count_colons(path: &Path, json: &[u8]) -> Result<usize> {
    let (mut n_colons, mut begin, mut has_escapes, mut at) = (0, None, false, 0);
    while at < json.len() {
        match (json[at], begin) {
            (b':', _) => n_colons += 1,
            (b'\\', Some(_)) => {
                has_escapes = true;
                at += 1;
            }
            (b'"', None) => (begin, has_escapes) = (Some(at), false),
            (b'"', Some(begun)) => {
                if has_escapes && at - begun > LONGEST_ESCAPED {
                    let (place, path) = ("a text with escapes in the header".to_owned(), path.to_owned());
                    let (limit, actual) = (LONGEST_ESCAPED as u64, (at - begun) as u64);
                    return Err(Error::TooLarge { path, place, limit, actual });
                }
                begin = None;
            }
            _ => {}
        }
        at += 1;
    }
    Ok(n_colons)
}

/// Texts and numbers one after another, a text's length before it. Numbers are LEB128, never longer than their digits.
#[derive(Debug)]
struct Records(Vec<u8>);

impl Records {
    /// Where the next record begins.
    #[allow(
        clippy::cast_possible_truncation,
        reason = "a header is limited in size, and records are shorter"
    )]
    fn next(&self) -> u32 {
        self.0.len() as u32
    }

    fn put_text(&mut self, text: &str) {
        self.put_number(text.len() as u64);
        self.0.extend(text.as_bytes());
    }

    fn put_number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    fn at(&self, at: u32) -> Record<'_> {
        Record(&self.0[at as usize..])
    }
}

/// What is left of a record; read in the order in which it was put.
struct Record<'a>(&'a [u8]);

impl<'a> Record<'a> {
    fn number(&mut self) -> u64 {
        let (mut number, mut shift) = (0, 0);
        loop {
            let (&byte, rest) = self.0.split_first().expect("a number ends");
            self.0 = rest;
            number |= u64::from(byte & 0x7F) << shift;
            shift += 7;
            if byte < 0x80 {
                return number;
            }
        }
    }

    fn text(&mut self) -> &'a str {
        std::str::from_utf8(self.skip_text()).expect("a text was put")
    }

    fn skip_text(&mut self) -> &'a [u8] {
        let length = self.number() as usize;
        let (text, rest) = self.0.split_at(length);
        self.0 = rest;
        text
    }
}

/// Reads the whole header, and counts how often there is metadata.
struct Whole<'a> {
    header: &'a mut Header,
    most_texts: usize,
}

impl<'de> DeserializeSeed<'de> for Whole<'_> {
    type Value = usize;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<usize, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Whole<'_> {
    type Value = usize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<usize, A::Error> {
        let Self { header, most_texts } = self;
        let mut n_metadata = 0;
        loop {
            let begin = header.records.next();
            if map.next_key_seed(PutText(&mut header.records))?.is_none() {
                return Ok(n_metadata);
            }
            if header.records.at(begin).text() == METADATA_KEY {
                header.records.0.truncate(begin as usize);
                header.metadata.reserve_exact(most_texts - header.metadata.len());
                map.next_value_seed(Texts(header))?;
                n_metadata += 1;
            } else {
                header.tensors.push(begin);
                map.next_value_seed(OneTensor { records: &mut header.records, begin })?;
            }
        }
    }
}

/// A text to its record.
struct PutText<'a>(&'a mut Records);

impl<'de> DeserializeSeed<'de> for PutText<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for PutText<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a text")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> std::result::Result<(), E> {
        self.0.put_text(text);
        Ok(())
    }
}

/// The texts beside the tensors.
struct Texts<'a>(&'a mut Header);

impl<'de> DeserializeSeed<'de> for Texts<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Texts<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{METADATA_KEY}` to be an object of texts")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<(), A::Error> {
        let Header { records, metadata, .. } = self.0;
        loop {
            let begin = records.next();
            if map.next_key_seed(PutText(records))?.is_none() {
                return Ok(());
            }
            map.next_value_seed(PutText(records))?;
            metadata.push(begin);
        }
    }
}

/// Type, shape and place of a tensor to its record, which begins with its name.
struct OneTensor<'a> {
    records: &'a mut Records,
    begin: u32,
}

impl<'de> DeserializeSeed<'de> for OneTensor<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> std::result::Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

/// The keys of a tensor.
#[derive(serde::Deserialize, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum Key {
    Dtype,
    Shape,
    DataOffsets,
    #[serde(other)]
    Another,
}

impl<'de> Visitor<'de> for OneTensor<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a tensor: an object of dtype, shape and data_offsets")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<(), A::Error> {
        let Self { records, begin } = self;
        let (mut dtype, mut shape, mut offsets) = (None, None, None);
        while let Some(key) = map.next_key::<Key>()? {
            let (name, is_second) = match key {
                Key::Dtype => ("dtype", dtype.replace(map.next_value::<TypeName>()?).is_some()),
                Key::Shape => ("shape", shape.replace(map.next_value::<Dimensions>()?).is_some()),
                Key::DataOffsets => {
                    ("data_offsets", offsets.replace(map.next_value::<[u64; 2]>()?).is_some())
                }
                Key::Another => {
                    map.next_value::<IgnoredAny>()?;
                    return Err(not_a_tensor(records, begin));
                }
            };
            if is_second {
                return Err(A::Error::custom(format_args!("the key `{name}` occurs twice")));
            }
        }
        let (Some(dtype), Some(shape), Some(offsets)) = (dtype, shape, offsets) else {
            return Err(not_a_tensor(records, begin));
        };
        records.put_text(&dtype.0);
        records.put_number(shape.0.len() as u64);
        shape.0.into_iter().chain(offsets).for_each(|number| records.put_number(number));
        Ok(())
    }
}

fn not_a_tensor<E: serde::de::Error>(records: &Records, begin: u32) -> E {
    let name = records.at(begin).text();
    E::custom(format_args!("tensor `{name}` must have the keys dtype, shape and data_offsets, and no other"))
}

/// The name of a type, which is short.
struct TypeName(String);

impl<'de> serde::Deserialize<'de> for TypeName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_str(TypeNameVisitor)
    }
}

struct TypeNameVisitor;

impl Visitor<'_> for TypeNameVisitor {
    type Value = TypeName;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the name of a type, of up to {LONGEST_TYPE} bytes")
    }

    fn visit_str<E: serde::de::Error>(self, text: &str) -> std::result::Result<TypeName, E> {
        if text.len() > LONGEST_TYPE {
            return Err(E::invalid_length(text.len(), &self));
        }
        Ok(TypeName(text.to_owned()))
    }
}

/// The dimensions of a tensor, of which there are few.
struct Dimensions(Vec<u64>);

impl<'de> serde::Deserialize<'de> for Dimensions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_seq(DimensionsVisitor)
    }
}

struct DimensionsVisitor;

impl<'de> Visitor<'de> for DimensionsVisitor {
    type Value = Dimensions;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "up to {MOST_DIMENSIONS} dimensions")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> std::result::Result<Dimensions, A::Error> {
        let mut dimensions = Vec::new();
        while let Some(dimension) = sequence.next_element()? {
            if dimensions.len() == MOST_DIMENSIONS {
                return Err(A::Error::invalid_length(MOST_DIMENSIONS + 1, &self));
            }
            dimensions.push(dimension);
        }
        Ok(Dimensions(dimensions))
    }
}
