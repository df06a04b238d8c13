//! `tokenizer.model`: a SentencePiece vocabulary, and how it was made.
//!
//! A protocol buffer, see
//! <https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto>; read are its fields 1
//! (`pieces`), 2 (`trainer_spec`) and 3 (`normalizer_spec`).

use super::vocabulary::Kind;

/// One entry of the vocabulary.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Piece {
    pub text: String,
    pub score: f32,
    pub kind: Kind,
}

/// What a `tokenizer.model` says, with SentencePiece's defaults for what it leaves out.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ModelFile {
    pub pieces: Vec<Piece>,
    pub prefixes_space: bool,
    model_type: u64,
    charsmap_bytes: usize,
    removes_spaces: bool,
    marks_spaces: bool,
    spaces_behind: bool,
    /// Ids of the unknown token, BOS, EOS and padding; below zero where there is none.
    roles: [(&'static str, i32); 4],
}

impl ModelFile {
    /// Reads a file; `None` where the bytes are no such thing (tiktoken's files have the same name).
    pub fn parse(mut bytes: &[u8]) -> Option<ModelFile> {
        let mut file = ModelFile {
            pieces: Vec::new(),
            prefixes_space: true,
            model_type: UNIGRAM,
            charsmap_bytes: 0,
            removes_spaces: true,
            marks_spaces: true,
            spaces_behind: false,
            roles: [("unk", 0), ("bos", 1), ("eos", 2), ("pad", -1)],
        };
        while !bytes.is_empty() {
            match field(&mut bytes)? {
                (1, Field::Bytes(piece)) => file.pieces.push(parse_piece(piece)?),
                (2, Field::Bytes(trainer)) => file.read_trainer(trainer)?,
                (3, Field::Bytes(normalizer)) => file.read_normalizer(normalizer)?,
                _ => {}
            }
        }
        (!file.pieces.is_empty()).then_some(file)
    }

    fn read_trainer(&mut self, mut bytes: &[u8]) -> Option<()> {
        while !bytes.is_empty() {
            match field(&mut bytes)? {
                (3, Field::Varint(model_type)) => self.model_type = model_type,
                (24, Field::Varint(flag)) => self.spaces_behind = flag != 0,
                // Negative numbers are written as 64 bits of two's complement.
                (role @ 40..=43, Field::Varint(id)) => self.roles[role as usize - 40].1 = id as i32,
                _ => {}
            }
        }
        Some(())
    }

    fn read_normalizer(&mut self, mut bytes: &[u8]) -> Option<()> {
        while !bytes.is_empty() {
            match field(&mut bytes)? {
                (2, Field::Bytes(charsmap)) => self.charsmap_bytes = charsmap.len(),
                (3, Field::Varint(flag)) => self.prefixes_space = flag != 0,
                (4, Field::Varint(flag)) => self.removes_spaces = flag != 0,
                (5, Field::Varint(flag)) => self.marks_spaces = flag != 0,
                _ => {}
            }
        }
        Some(())
    }

    /// The ids of the tokens with a role.
    pub fn roles(&self) -> impl Iterator<Item = (&'static str, u32)> {
        let in_it = |id: &u32| (*id as usize) < self.pieces.len();
        self.roles.iter().filter_map(move |(role, id)| Some((*role, u32::try_from(*id).ok().filter(in_it)?)))
    }

    /// Why the file alone does not make a tokenizer that a GGUF can hold, if so.
    pub fn unusable(&self) -> Option<String> {
        let reason = match self {
            ModelFile { model_type: 0..=1 | 3.., .. } => {
                let names = ["of no type", "unigram", "bpe", "word", "char"];
                let name = names.get(self.model_type as usize).unwrap_or(&names[0]);
                format!("its model is {name}, not bpe")
            }
            ModelFile { charsmap_bytes: 1.., .. } => "it normalises text by a table of its own".to_owned(),
            ModelFile { removes_spaces: true, .. } => "it removes repeated spaces".to_owned(),
            ModelFile { marks_spaces: false, .. } => "it leaves spaces as they are".to_owned(),
            ModelFile { spaces_behind: true, .. } => "it marks spaces behind words".to_owned(),
            _ => return None,
        };
        Some(reason)
    }
}

/// SentencePiece's default.
const UNIGRAM: u64 = 1;

fn parse_piece(mut bytes: &[u8]) -> Option<Piece> {
    let mut piece = Piece { text: String::new(), score: 0.0, kind: Kind::Normal };
    while !bytes.is_empty() {
        match field(&mut bytes)? {
            (1, Field::Bytes(text)) => piece.text = std::str::from_utf8(text).ok()?.to_owned(),
            (2, Field::Fixed32(score)) => piece.score = f32::from_bits(score),
            // The numbers are the same, but the piece types that a user defines are called 4 on both sides.
            (3, Field::Varint(kind)) => piece.kind = Kind::from_id(i64::try_from(kind).ok()?),
            _ => {}
        }
    }
    Some(piece)
}

enum Field<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    Fixed32(u32),
    Fixed64,
}

fn field<'a>(bytes: &mut &'a [u8]) -> Option<(u64, Field<'a>)> {
    let tag = varint(bytes)?;
    let value = match tag & 7 {
        0 => Field::Varint(varint(bytes)?),
        1 => {
            take(bytes, 8)?;
            Field::Fixed64
        }
        2 => {
            let length = usize::try_from(varint(bytes)?).ok()?;
            Field::Bytes(take(bytes, length)?)
        }
        5 => Field::Fixed32(u32::from_le_bytes(take(bytes, 4)?.try_into().ok()?)),
        _ => return None,
    };
    Some((tag >> 3, value))
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = *take(bytes, 1)?.first()?;
        value |= u64::from(byte & 0x7F) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(taken)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE: [u8; 10] = [0x0A, 0x08, 0x0A, 0x01, b'x', 0x15, 0, 0, 0x80, 0x3F];

    #[test]
    fn a_torn_file_is_none() {
        let parsed = ModelFile::parse(&PIECE).unwrap();
        assert_eq!(parsed.pieces, [Piece { text: "x".into(), score: 1.0, kind: Kind::Normal }]);
        assert!((1..PIECE.len()).all(|length| ModelFile::parse(&PIECE[..length]).is_none()));
    }

    #[test]
    fn what_a_gguf_cannot_say_is_named() {
        let reason = |trainer: &[u8], normalizer: &[u8]| {
            let part = |number: u8, bytes: &[u8]| [&[number << 3 | 2, bytes.len() as u8], bytes].concat();
            let bytes = [PIECE.to_vec(), part(2, trainer), part(3, normalizer)].concat();
            ModelFile::parse(&bytes).unwrap().unusable()
        };
        let keeps_spaces = [0x20, 0];
        assert_eq!(reason(&[0x18, 2], &keeps_spaces), None);
        assert_eq!(reason(&[], &keeps_spaces).unwrap(), "its model is unigram, not bpe");
        assert_eq!(reason(&[0x18, 2], &[]).unwrap(), "it removes repeated spaces");
        assert_eq!(reason(&[0x18, 2], &[0x12, 1, 0]).unwrap(), "it normalises text by a table of its own");
        assert_eq!(reason(&[0x18, 2], &[0x20, 0, 0x28, 0]).unwrap(), "it leaves spaces as they are");
        assert_eq!(reason(&[0x18, 2, 0xC0, 1, 1], &keeps_spaces).unwrap(), "it marks spaces behind words");
    }
}
