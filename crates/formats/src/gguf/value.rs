//! Metadata values and their layout: reader and writer of each type side by side.

use super::cursor::Cursor;
use super::texts::Texts;
use crate::{Error, Result};

/// One metadata value.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "each is the GGUF type of the same name")]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// An array, held in its element type: a million bytes take a million bytes.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs, reason = "each is the GGUF type of the same name")]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(Texts),
    Array(Vec<Array>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

/// Arrays may nest this deep; published files do not nest at all.
const MAX_DEPTH: u32 = 4;

/// A type with its number in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Type {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl Type {
    /// In the order of their numbers, 0 to 12.
    const ALL: [Self; 13] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Bool,
        Self::String,
        Self::Array,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    fn read(cursor: &mut Cursor<'_>, place: &str) -> Result<Self> {
        let number = cursor.u32(place)?;
        let known = usize::try_from(number).ok().and_then(|number| Self::ALL.get(number));
        known.copied().ok_or_else(|| {
            cursor.malformed(format!("the type of {place}"), "a number from 0 to 12", format!("{number}"))
        })
    }
}

/// A value as it stands in a file.
trait Stored: Sized {
    /// The fewest bytes one can take: bounds how many a file can hold.
    const MIN_BYTES: u64;
    fn read(cursor: &mut Cursor<'_>, place: &str) -> Result<Self>;
    fn write(&self, out: &mut Vec<u8>);
}

macro_rules! stored_number {
    ($($type:ty),*) => {$(
        impl Stored for $type {
            const MIN_BYTES: u64 = size_of::<$type>() as u64;

            fn read(cursor: &mut Cursor<'_>, place: &str) -> Result<Self> {
                Ok(Self::from_le_bytes(cursor.array(place)?))
            }

            fn write(&self, out: &mut Vec<u8>) {
                out.extend(self.to_le_bytes());
            }
        }
    )*};
}

stored_number!(u8, i8, u16, i16, u32, i32, u64, i64, f32, f64);

impl Stored for bool {
    const MIN_BYTES: u64 = 1;

    fn read(cursor: &mut Cursor<'_>, place: &str) -> Result<Self> {
        match cursor.array(place)? {
            [0] => Ok(false),
            [1] => Ok(true),
            [other] => Err(cursor.malformed(place.to_owned(), "a boolean, 0 or 1", format!("{other}"))),
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.push(u8::from(*self));
    }
}

impl Stored for String {
    const MIN_BYTES: u64 = 8;

    fn read(cursor: &mut Cursor<'_>, place: &str) -> Result<Self> {
        cursor.string(place)
    }

    fn write(&self, out: &mut Vec<u8>) {
        write_string(self, out);
    }
}

/// A string as a file holds it: its length as u64, then its bytes.
pub(super) fn write_string(text: &str, out: &mut Vec<u8>) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// The elements of an array.
trait Elements: Sized {
    fn read(cursor: &mut Cursor<'_>, length: u64, place: &str) -> Result<Self>;
    fn write(&self, ty: Type, out: &mut Vec<u8>);
}

impl<T: Stored> Elements for Vec<T> {
    fn read(cursor: &mut Cursor<'_>, length: u64, place: &str) -> Result<Self> {
        let mut values = Vec::with_capacity(cursor.capacity(length, T::MIN_BYTES, place)?);
        for _ in 0..length {
            values.push(T::read(cursor, place)?);
        }
        Ok(values)
    }

    fn write(&self, ty: Type, out: &mut Vec<u8>) {
        write_head(ty, self.len(), out);
        self.iter().for_each(|value| value.write(out));
    }
}

impl Elements for Texts {
    /// They are looked for first: a count that lies is to cost nothing.
    fn read(cursor: &mut Cursor<'_>, length: u64, place: &str) -> Result<Self> {
        let capacity = cursor.capacity(length, String::MIN_BYTES, place)?;
        let (mut ahead, mut bytes) = (cursor.clone(), 0);
        for _ in 0..length {
            let length = ahead.u64(place)?;
            bytes += ahead.take(length, place)?.len();
        }
        let mut texts = Texts::with_capacity(capacity, bytes);
        for _ in 0..length {
            texts.push(cursor.text(place)?);
        }
        Ok(texts)
    }

    fn write(&self, ty: Type, out: &mut Vec<u8>) {
        write_head(ty, self.len(), out);
        self.iter().for_each(|text| write_string(text, out));
    }
}

/// What stands before the elements of an array.
fn write_head(ty: Type, length: usize, out: &mut Vec<u8>) {
    (ty as u32).write(out);
    (length as u64).write(out);
}

macro_rules! by_type {
    ($($variant:ident),*) => {
        impl Value {
            /// Reads a type and a value.
            pub(super) fn read(cursor: &mut Cursor<'_>, place: &str) -> Result<Self> {
                match Type::read(cursor, place)? {
                    $(Type::$variant => Ok(Self::$variant(Stored::read(cursor, place)?)),)*
                    Type::Array => Ok(Self::Array(Array::read(cursor, place, MAX_DEPTH)?)),
                }
            }

            /// Writes a type and a value.
            pub(super) fn write(&self, out: &mut Vec<u8>) {
                match self {
                    $(Self::$variant(value) => {
                        (Type::$variant as u32).write(out);
                        value.write(out);
                    })*
                    Self::Array(array) => {
                        (Type::Array as u32).write(out);
                        array.write(out);
                    }
                }
            }
        }

        impl Array {
            fn read(cursor: &mut Cursor<'_>, place: &str, depth: u32) -> Result<Self> {
                let ty = Type::read(cursor, place)?;
                let length = cursor.u64(place)?;
                match ty {
                    $(Type::$variant => Ok(Self::$variant(Elements::read(cursor, length, place)?)),)*
                    Type::Array => read_nested(cursor, length, place, depth).map(Self::Array),
                }
            }

            fn write(&self, out: &mut Vec<u8>) {
                match self {
                    $(Self::$variant(values) => Elements::write(values, Type::$variant, out),)*
                    Self::Array(arrays) => {
                        (Type::Array as u32).write(out);
                        (arrays.len() as u64).write(out);
                        for array in arrays {
                            array.write(out);
                        }
                    }
                }
            }

            /// Elements.
            #[must_use]
            pub fn len(&self) -> usize {
                match self {
                    $(Self::$variant(values) => values.len(),)*
                    Self::Array(arrays) => arrays.len(),
                }
            }
        }
    };
}

by_type!(U8, I8, U16, I16, U32, I32, F32, Bool, String, U64, I64, F64);

impl Array {
    /// Whether there are no elements.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

fn read_nested(cursor: &mut Cursor<'_>, length: u64, place: &str, depth: u32) -> Result<Vec<Array>> {
    if depth == 0 {
        let place = format!("the nesting of {place}");
        let (limit, actual) = (MAX_DEPTH.into(), u64::from(MAX_DEPTH) + 1);
        return Err(Error::TooLarge { path: cursor.path().to_owned(), place, limit, actual });
    }
    // Twelve bytes: type and length of an empty array.
    let mut arrays = Vec::with_capacity(cursor.cautious_capacity::<Array>(length, 12, place)?);
    for _ in 0..length {
        arrays.push(Array::read(cursor, place, depth - 1)?);
    }
    Ok(arrays)
}

macro_rules! value_from {
    ($($type:ty => $variant:ident),* $(,)?) => {$(
        impl From<$type> for Value {
            fn from(value: $type) -> Self {
                Self::$variant(value)
            }
        }
        impl From<Vec<$type>> for Value {
            fn from(values: Vec<$type>) -> Self {
                Self::Array(Array::$variant(values))
            }
        }
    )*};
}

value_from! {
    u8 => U8, i8 => I8, u16 => U16, i16 => I16, u32 => U32, i32 => I32, u64 => U64, i64 => I64,
    f32 => F32, f64 => F64, bool => Bool,
}

impl From<String> for Value {
    fn from(value: String) -> Self {
        Self::String(value)
    }
}

impl From<Texts> for Value {
    fn from(texts: Texts) -> Self {
        Self::Array(Array::String(texts))
    }
}

impl From<Vec<String>> for Value {
    fn from(texts: Vec<String>) -> Self {
        Texts::from(texts).into()
    }
}

impl From<&str> for Value {
    fn from(value: &str) -> Self {
        Self::String(value.to_owned())
    }
}

impl From<Array> for Value {
    fn from(value: Array) -> Self {
        Self::Array(value)
    }
}
