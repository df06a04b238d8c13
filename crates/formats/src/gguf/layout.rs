//! Sizes and alignment, the same for reader and writer.

use std::path::Path;

use super::{DEFAULT_ALIGNMENT, Metadata, Value};
use crate::{BlockType, Error, Result};

/// The key that may change the alignment.
const ALIGNMENT_KEY: &str = "general.alignment";

/// The alignment that the metadata asks for.
pub(super) fn alignment(metadata: &Metadata, path: &Path) -> Result<u64> {
    let asked = match metadata.get(ALIGNMENT_KEY) {
        None => return Ok(DEFAULT_ALIGNMENT),
        Some(Value::U32(asked)) => u64::from(*asked),
        Some(_) => {
            let (expected, actual) = ("a 32-bit unsigned number".to_owned(), "of another type".to_owned());
            return Err(Error::Key { path: path.to_owned(), key: ALIGNMENT_KEY.into(), expected, actual });
        }
    };
    if !(8..=65_536).contains(&asked) || !asked.is_power_of_two() {
        return Err(Error::Alignment { path: path.to_owned(), actual: asked });
    }
    Ok(asked)
}

/// Bytes of a tensor; all of the arithmetic is checked, since 2³² · 2³² wraps to 0.
pub(super) fn tensor_bytes(path: &Path, name: &str, shape: &[u64], ty: BlockType) -> Result<u64> {
    let overflow =
        || Error::SizeOverflow { path: path.to_owned(), tensor: name.to_owned(), shape: shape.to_vec() };
    let values = shape.iter().try_fold(1u64, |product, &d| product.checked_mul(d)).ok_or_else(overflow)?;
    let (row, block) = (shape[0], ty.block_len() as u64);
    if values == 0 || !row.is_multiple_of(block) {
        let place = format!("the row length of tensor `{name}` of type {ty}");
        let expected = format!("a multiple of {block}, and no dimension of 0");
        return Err(Error::Malformed {
            path: path.to_owned(),
            place,
            expected,
            actual: format!("{shape:?}"),
        });
    }
    let bytes = (values / block).checked_mul(ty.block_bytes() as u64).ok_or_else(overflow)?;
    // Offsets are added to sizes later on: both stay far from the end of the range.
    if bytes > i64::MAX as u64 / 2 { Err(overflow()) } else { Ok(bytes) }
}

/// ggml's types that are not ours, so that the error can name what the file holds.
pub(super) fn type_name(id: u32) -> String {
    let name = match id {
        9 => "Q8_1",
        15 => "Q8_K",
        19 => "IQ1_S",
        24 => "I8",
        25 => "I16",
        26 => "I32",
        27 => "I64",
        28 => "F64",
        29 => "IQ1_M",
        34 => "TQ1_0",
        35 => "TQ2_0",
        39 => "MXFP4",
        _ => return format!("number {id}"),
    };
    name.to_owned()
}
