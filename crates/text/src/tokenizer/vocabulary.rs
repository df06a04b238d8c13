//! The token list: texts, kinds, and how a text of bytes is spelt in it.

use std::sync::OnceLock;

/// What a token is for. The numbers are those of `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Normal = 1,
    Unknown = 2,
    Control = 3,
    UserDefined = 4,
    Unused = 5,
    Byte = 6,
}

impl Kind {
    pub fn from_id(id: i64) -> Kind {
        match id {
            2 => Kind::Unknown,
            3 => Kind::Control,
            4 => Kind::UserDefined,
            5 => Kind::Unused,
            6 => Kind::Byte,
            _ => Kind::Normal,
        }
    }

    /// Control tokens and the unknown token have no text of their own.
    pub fn is_special(self) -> bool {
        matches!(self, Kind::Control | Kind::Unknown)
    }
}

/// Tokens by id. An id that stands for nothing has an empty text and is [`Kind::Unused`].
#[derive(Debug, Default)]
pub(crate) struct Vocabulary {
    pub tokens: Vec<String>,
    pub kinds: Vec<Kind>,
}

impl Vocabulary {
    pub fn set(&mut self, id: u32, token: &str, kind: Kind) {
        let at = id as usize;
        if at >= self.tokens.len() {
            self.tokens.resize(at + 1, String::new());
            self.kinds.resize(at + 1, Kind::Unused);
        }
        self.tokens[at] = token.to_owned();
        self.kinds[at] = kind;
    }

    pub fn token(&self, id: u32) -> Option<&str> {
        self.tokens.get(id as usize).map(String::as_str).filter(|token| !token.is_empty())
    }

    pub fn kind(&self, id: u32) -> Kind {
        self.kinds.get(id as usize).copied().unwrap_or(Kind::Unused)
    }
}

/// Whether a converter makes a control token of an added token that its publisher did not mark as one.
pub(crate) fn looks_like_control(token: &str) -> bool {
    matches!(token, "<pad>" | "<mask>" | "<2mass>" | "[@BOS@]")
        || (token.starts_with("<|") && token.ends_with("|>"))
        || (token.starts_with("<｜") && token.ends_with("｜>"))
        || (token.starts_with("<unused") && token.ends_with('>'))
}

/// The byte that `<0xAB>` spells.
pub(crate) fn byte_of(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok()).flatten()
}

/// The printable character that stands for each byte in byte-level BPE (Radford et al. 2019): printable
/// Latin-1 for itself, the others from U+0100 on.
pub(crate) fn byte_characters() -> &'static [char; 256] {
    static TABLE: OnceLock<[char; 256]> = OnceLock::new();
    TABLE.get_or_init(|| {
        let mut next = 0x100;
        std::array::from_fn(|byte| {
            if matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) {
                char::from(byte as u8)
            } else {
                next += 1;
                char::from_u32(next - 1).expect("U+0100 to U+0143 are characters")
            }
        })
    })
}

/// The bytes that a token of byte-level BPE spells; `None` when a character of it stands for no byte.
pub(crate) fn spelt_bytes(token: &str) -> Option<Vec<u8>> {
    token
        .chars()
        .map(|character| {
            let code = character as usize;
            match code {
                0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF => Some(code as u8),
                0x100..=0x143 => {
                    byte_characters().iter().position(|&c| c == character).map(|byte| byte as u8)
                }
                _ => None,
            }
        })
        .collect()
}
