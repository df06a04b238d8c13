//! ggml's block formats: 32 or 256 weights stored as small integers with shared scales.
//!
//! Layouts and searches follow ggml of llama.cpp (ggml-common.h, ggml-quants.c); encoding gives the same bytes
//! as `ggml_quantize_chunk` of an x86-64 build without fused multiply-add. One file a format; the searches for
//! scales that formats share are in `search`; `dispatch` compiles all of it for wider vectors.

mod bf16;
mod dispatch;
mod float16;
mod importance;
mod iq;
mod k_scales;
mod lanes;
mod nf4;
mod nf4_ic;
mod nibbles;
mod one_scale;
mod plain;
mod q2_k;
mod q3_k;
mod q4_0;
mod q4_1;
mod q4_k;
mod q5_0;
mod q5_1;
mod q5_k;
mod q6_k;
mod q8_0;
mod rounding;
mod rows;
mod scale_search;
mod search;
mod two_bits;

use std::ops::Range;

use rayon::prelude::*;

use crate::{Error, Result};

/// How the weights of a tensor are stored; names and ids are ggml's, of those that ggml has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs, reason = "each is the ggml type of the same name")]
pub enum BlockType {
    F32,
    F16,
    BF16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q2K,
    Q3K,
    Q4K,
    Q5K,
    Q6K,
    IQ2XXS,
    IQ2XS,
    IQ2S,
    IQ3XXS,
    IQ3S,
    IQ4NL,
    IQ4XS,
    Nf4,
    Nf4Ic,
}

/// Weights in a block of the formats with one scale.
pub const SMALL_BLOCK: usize = 32;
/// Weights in a block of the K formats.
pub const K_BLOCK: usize = 256;

impl BlockType {
    /// Every type that files have, in the order of ggml's ids; the two NF4 are for memory alone.
    pub const ALL: [BlockType; 20] = [
        Self::F32,
        Self::F16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
        Self::IQ2XXS,
        Self::IQ2XS,
        Self::IQ3XXS,
        Self::IQ4NL,
        Self::IQ3S,
        Self::IQ2S,
        Self::IQ4XS,
        Self::BF16,
    ];

    /// Weights in one block.
    #[must_use]
    pub const fn block_len(self) -> usize {
        match self {
            Self::F32 | Self::F16 | Self::BF16 => 1,
            Self::Q4_0 | Self::Q4_1 | Self::Q5_0 | Self::Q5_1 | Self::Q8_0 | Self::IQ4NL => SMALL_BLOCK,
            Self::Q2K | Self::Q3K | Self::Q4K | Self::Q5K | Self::Q6K => K_BLOCK,
            Self::IQ2XXS | Self::IQ2XS | Self::IQ2S | Self::IQ3XXS | Self::IQ3S | Self::IQ4XS => K_BLOCK,
            Self::Nf4 | Self::Nf4Ic => nf4::LEN,
        }
    }

    /// Bytes of one block; of NF4, whose rows have a part in common, without that ([`BlockType::row_bytes`] has it).
    #[must_use]
    pub const fn block_bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 => q4_0::BYTES,
            Self::Q4_1 => q4_1::BYTES,
            Self::Q5_0 => q5_0::BYTES,
            Self::Q5_1 => q5_1::BYTES,
            Self::Q8_0 => q8_0::BYTES,
            Self::Q2K => q2_k::BYTES,
            Self::Q3K => q3_k::BYTES,
            Self::Q4K => q4_k::BYTES,
            Self::Q5K => q5_k::BYTES,
            Self::Q6K => q6_k::BYTES,
            Self::IQ2XXS => iq::two::xxs::BYTES,
            Self::IQ2XS => iq::two::xs::BYTES,
            Self::IQ2S => iq::two::s::BYTES,
            Self::IQ3XXS => iq::three::xxs::BYTES,
            Self::IQ3S => iq::three::s::BYTES,
            Self::IQ4NL => iq::four::nl::BYTES,
            Self::IQ4XS => iq::four::xs::BYTES,
            Self::Nf4 => 1 + nf4::LEN / 2,
            Self::Nf4Ic => 2 + nf4::LEN / 2,
        }
    }

    /// Bytes of a row of `cols` weights.
    ///
    /// # Errors
    /// [`Error::RowLength`] when `cols` is not a multiple of the block length or the size overflows.
    pub fn row_bytes(self, cols: usize) -> Result<usize> {
        let wrong = Error::RowLength { ty: self, expected: self.block_len(), actual: cols };
        if !cols.is_multiple_of(self.block_len()) {
            return Err(wrong);
        }
        let bytes = match self {
            Self::Nf4 => nf4::row_bytes(cols),
            Self::Nf4Ic => nf4_ic::row_bytes(cols),
            _ => (cols / self.block_len()).checked_mul(self.block_bytes()),
        };
        bytes.ok_or(wrong)
    }

    /// ggml's number for this type; `None` for one that no file has.
    #[must_use]
    pub const fn id(self) -> Option<u32> {
        Some(match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q4_1 => 3,
            Self::Q5_0 => 6,
            Self::Q5_1 => 7,
            Self::Q8_0 => 8,
            Self::Q2K => 10,
            Self::Q3K => 11,
            Self::Q4K => 12,
            Self::Q5K => 13,
            Self::Q6K => 14,
            Self::IQ2XXS => 16,
            Self::IQ2XS => 17,
            Self::IQ3XXS => 18,
            Self::IQ4NL => 20,
            Self::IQ3S => 21,
            Self::IQ2S => 22,
            Self::IQ4XS => 23,
            Self::BF16 => 30,
            Self::Nf4 | Self::Nf4Ic => return None,
        })
    }

    /// The type with ggml's number `id`, if it is one of ours.
    #[must_use]
    pub fn from_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|ty| ty.id() == Some(id))
    }

    /// Whether nothing good comes of encoding without the importance of the columns: ggml refuses to.
    #[must_use]
    pub const fn needs_importance(self) -> bool {
        matches!(self, Self::IQ2XXS | Self::IQ2XS)
    }

    /// ggml's name, such as `Q4_K`, or `NF4`, `NF4_IC`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q2K => "Q2_K",
            Self::Q3K => "Q3_K",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
            Self::IQ2XXS => "IQ2_XXS",
            Self::IQ2XS => "IQ2_XS",
            Self::IQ2S => "IQ2_S",
            Self::IQ3XXS => "IQ3_XXS",
            Self::IQ3S => "IQ3_S",
            Self::IQ4NL => "IQ4_NL",
            Self::IQ4XS => "IQ4_XS",
            Self::Nf4 => "NF4",
            Self::Nf4Ic => "NF4_IC",
        }
    }

    /// The type with the name `name`, in any case.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().chain([Self::Nf4, Self::Nf4Ic]).find(|ty| ty.name().eq_ignore_ascii_case(name))
    }
}

impl std::fmt::Display for BlockType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// Encodes whole rows of `cols` weights on this thread; byte-identical to `ggml_quantize_chunk`.
///
/// `imatrix` holds the importance of each of the `cols` columns; without it, ggml's own weights are used.
/// F32, F16 and BF16 ignore it.
///
/// # Errors
/// [`Error::RowLength`] or [`Error::BufferLength`] when lengths do not fit, [`Error::NotFinite`] when a block
/// format is given an infinity or NaN, [`Error::NeedsImportance`] where that is missing.
pub fn encode(
    ty: BlockType,
    weights: &[f32],
    cols: usize,
    imatrix: Option<&[f32]>,
    out: &mut [u8],
) -> Result<()> {
    check_encode(ty, weights, cols, imatrix, out)?;
    if cols == 0 {
        return Ok(());
    }
    check_finite(ty, weights, 0)?;
    dispatch::encode(ty, weights, cols, imatrix, out);
    Ok(())
}

/// As [`encode`], the rows shared out over rayon's threads; the bytes are the same.
///
/// # Errors
/// As [`encode`].
pub fn encode_par(
    ty: BlockType,
    weights: &[f32],
    cols: usize,
    imatrix: Option<&[f32]>,
    out: &mut [u8],
) -> Result<()> {
    check_encode(ty, weights, cols, imatrix, out)?;
    if cols == 0 {
        return Ok(());
    }
    let row_bytes = ty.row_bytes(cols)?;
    let rows = (PARALLEL_WEIGHTS / cols).max(1);
    let chunks = weights.par_chunks(rows * cols).zip(out.par_chunks_mut(rows * row_bytes)).enumerate();
    chunks.try_for_each(|(chunk, (weights, out))| {
        check_finite(ty, weights, chunk * rows * cols)?;
        dispatch::encode(ty, weights, cols, imatrix, out);
        Ok(())
    })
}

/// Decodes whole blocks to f32; of NF4 one row.
///
/// # Errors
/// [`Error::RowLength`] or [`Error::BufferLength`] when `blocks` and `out` do not hold the same blocks.
pub fn decode(ty: BlockType, blocks: &[u8], out: &mut [f32]) -> Result<()> {
    check_length(ty, "the blocks", blocks.len(), ty.row_bytes(out.len())?)?;
    dispatch::decode(ty, blocks, (out.len(), 0), out);
    Ok(())
}

/// Decodes some columns of a row of `cols` weights, from the beginning of a block to the end of one.
///
/// # Errors
/// [`Error::RowLength`] or [`Error::BufferLength`] when the parts do not fit one another.
pub fn decode_part(
    ty: BlockType,
    row: &[u8],
    cols: usize,
    columns: Range<usize>,
    out: &mut [f32],
) -> Result<()> {
    check_length(ty, "the row", row.len(), ty.row_bytes(cols)?)?;
    check_length(ty, "the output", out.len(), columns.len())?;
    let (start, end) = (ty.row_bytes(columns.start)?, ty.row_bytes(columns.end)?);
    check_length(ty, "the columns", columns.end.min(cols), columns.end)?;
    // A row of NF4 begins with what its blocks share.
    let has_header = matches!(ty, BlockType::Nf4 | BlockType::Nf4Ic);
    let blocks = if has_header { row } else { &row[start..end] };
    dispatch::decode(ty, blocks, (cols, columns.start), out);
    Ok(())
}

/// Columns that [`decode_rows_to_bf16`] begins and ends at: multiples of this, or of a block where that is shorter.
pub const BF16_GRAIN: usize = 128;

/// Decodes some columns of whole rows, rounded to bf16, to nearest even, subnormals taken for zeros
///
/// rows (n rows of blocks), out (n, |columns|); columns begin and end at multiples of [`BF16_GRAIN`], where blocks are no
/// longer than that at any block.
///
/// # Errors
/// [`Error::BufferLength`] when the lengths disagree; [`Error::RowLength`] for columns that begin or end inside of a part.
pub fn decode_rows_to_bf16(
    ty: BlockType,
    rows: &[u8],
    cols: usize,
    columns: Range<usize>,
    out: &mut [u16],
) -> Result<()> {
    let row_bytes = ty.row_bytes(cols)?;
    let n = rows.len().checked_div(row_bytes).unwrap_or(0);
    check_length(ty, "whole rows", rows.len(), n * row_bytes)?;
    check_length(ty, "the output", out.len(), n * columns.len())?;
    check_length(ty, "the columns", columns.end.min(cols), columns.end)?;
    let grain = ty.block_len().min(BF16_GRAIN);
    if let Some(actual) = [columns.start, columns.end].into_iter().find(|at| !at.is_multiple_of(grain)) {
        return Err(Error::RowLength { ty, expected: grain, actual });
    }
    if !columns.is_empty() {
        bf16::decode(ty, rows, (row_bytes, cols), columns, out);
    }
    Ok(())
}

/// Weights a thread takes at a time: far above the cost of a task, far below a tensor.
const PARALLEL_WEIGHTS: usize = 16 * 1024;

fn check_encode(
    ty: BlockType,
    weights: &[f32],
    cols: usize,
    imatrix: Option<&[f32]>,
    out: &[u8],
) -> Result<()> {
    let row_bytes = ty.row_bytes(cols)?;
    let rows = weights.len().checked_div(cols).unwrap_or(0);
    check_length(ty, "whole rows of weights", weights.len(), rows * cols)?;
    check_length(ty, "the output", out.len(), rows * row_bytes)?;
    match imatrix {
        Some(importance) => check_length(ty, "the importance of the columns", importance.len(), cols),
        None if ty.needs_importance() => Err(Error::NeedsImportance { ty }),
        None => Ok(()),
    }
}

fn check_length(ty: BlockType, what: &'static str, actual: usize, expected: usize) -> Result<()> {
    if actual == expected { Ok(()) } else { Err(Error::BufferLength { ty, what, expected, actual }) }
}

/// Whether no weight is of greater magnitude than `limit`, and each is a number.
#[must_use]
pub fn are_within(weights: &[f32], limit: f32) -> bool {
    dispatch::largest_magnitude_bits(weights) <= limit.to_bits()
}

/// A block shares its scale, so one infinity would spoil its neighbours without a trace.
fn check_finite(ty: BlockType, weights: &[f32], first_index: usize) -> Result<()> {
    if ty.block_len() == 1 {
        return Ok(());
    }
    if are_within(weights, f32::MAX) {
        return Ok(());
    }
    let at = weights.iter().position(|weight| !weight.is_finite()).expect("one of them is not");
    Err(Error::NotFinite { ty, index: first_index + at, value: weights[at] })
}
