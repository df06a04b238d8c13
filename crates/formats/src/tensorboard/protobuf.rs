//! The wire format of protocol buffers, as far as event files need it.
//!
//! A field is a key (number · 8 + wire type) and a value. As in proto3, a number that is zero is left out.
//! Source: https://protobuf.dev/programming-guides/encoding/

const VARINT: u32 = 0;
const FIXED64: u32 = 1;
const BYTES: u32 = 2;
const FIXED32: u32 = 5;

/// A message that is being written.
#[derive(Debug, Default)]
pub struct Message(Vec<u8>);

impl Message {
    /// The bytes, leaving the message empty.
    pub fn take(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.0)
    }

    /// A whole number.
    pub fn varint(&mut self, field: u32, value: u64) -> &mut Self {
        if value != 0 {
            self.key(field, VARINT);
            self.number(value);
        }
        self
    }

    /// A number of 64 bits.
    pub fn double(&mut self, field: u32, value: f64) -> &mut Self {
        if value.to_bits() != 0 {
            self.key(field, FIXED64);
            self.0.extend(value.to_le_bytes());
        }
        self
    }

    /// A number of 32 bits that stands even when it is zero, being one of several alternatives.
    pub fn float(&mut self, field: u32, value: f32) -> &mut Self {
        self.key(field, FIXED32);
        self.0.extend(value.to_le_bytes());
        self
    }

    /// A text or a message.
    pub fn bytes(&mut self, field: u32, value: &[u8]) -> &mut Self {
        self.key(field, BYTES);
        self.number(value.len() as u64);
        self.0.extend(value);
        self
    }

    fn key(&mut self, field: u32, wire_type: u32) {
        self.number(u64::from(field << 3 | wire_type));
    }

    /// Seven bits a byte, the lowest first; the eighth says that more follow.
    fn number(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

/// A value as it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field<'a> {
    /// A whole number.
    Varint(u64),
    /// The bits of a number of 64.
    Fixed64(u64),
    /// The bits of a number of 32.
    Fixed32(u32),
    /// A text or a message.
    Bytes(&'a [u8]),
}

/// The fields of a message, in order; `None` where it is malformed, and nothing after that.
pub struct Fields<'a>(pub &'a [u8]);

impl<'a> Iterator for Fields<'a> {
    type Item = Option<(u32, Field<'a>)>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_none() {
            self.0 = &[];
        }
        Some(field)
    }
}

impl<'a> Fields<'a> {
    fn field(&mut self) -> Option<(u32, Field<'a>)> {
        let key = u32::try_from(self.number()?).ok()?;
        let value = match key & 7 {
            VARINT => Field::Varint(self.number()?),
            FIXED64 => Field::Fixed64(u64::from_le_bytes(self.array()?)),
            FIXED32 => Field::Fixed32(u32::from_le_bytes(self.array()?)),
            BYTES => {
                let length = usize::try_from(self.number()?).ok()?;
                let (value, rest) = self.0.split_at_checked(length)?;
                self.0 = rest;
                Field::Bytes(value)
            }
            _ => return None,
        };
        Some((key >> 3, value))
    }

    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*array)
    }

    fn number(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.0.split_first()?;
            self.0 = rest;
            value |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_every_length_are_read_as_written() {
        for value in [1, 127, 128, 300, u64::from(u32::MAX), u64::MAX] {
            let bytes = Message::default().varint(3, value).take();
            assert_eq!(Fields(&bytes).collect::<Vec<_>>(), [Some((3, Field::Varint(value)))]);
        }
        // The example of the documentation.
        assert_eq!(Message::default().varint(1, 150).take(), [0x08, 0x96, 0x01]);
        assert!(Message::default().varint(1, 0).take().is_empty());
    }

    #[test]
    fn what_is_cut_short_or_endless_is_malformed() {
        for bytes in [&[0x08][..], &[0x12, 5, 1], &[0x09, 0, 0], &[0x0B], &[0x80; 11]] {
            assert_eq!(Fields(bytes).collect::<Vec<_>>(), [None], "{bytes:?}");
        }
    }
}
