//! GGUF, version 3: metadata, tensor directory, aligned data.
//!
//! Specification: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>.

mod cursor;
mod layout;
mod metadata;
mod reader;
mod texts;
mod value;
mod writer;

pub use metadata::Metadata;
pub use reader::Reader;
pub use texts::Texts;
pub use value::{Array, Value};
pub use writer::{Planned, Writer, file_bytes, head_bytes};

use crate::BlockType;

/// The first four bytes of every file.
const MAGIC: [u8; 4] = *b"GGUF";

/// What tensors are aligned to in a file whose metadata is silent.
pub const DEFAULT_ALIGNMENT: u64 = 32;

/// One entry of a file's tensor directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Name, such as `blk.0.attn_q.weight`.
    pub name: String,
    /// Shape in ggml's order: the length of a row first.
    pub shape: Vec<u64>,
    /// How the values are stored.
    pub ty: BlockType,
    /// Where the tensor starts, counted from the start of the data section.
    pub offset: u64,
    /// Bytes of the tensor, without padding.
    pub bytes: u64,
}

impl TensorInfo {
    /// The shape in PyTorch's order: outermost dimension first.
    #[must_use]
    #[allow(clippy::cast_possible_truncation, reason = "a reader has checked that the tensor fits the file")]
    pub fn torch_shape(&self) -> Vec<usize> {
        self.shape.iter().rev().map(|&dimension| dimension as usize).collect()
    }
}
