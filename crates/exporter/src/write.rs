//! Writing the planned tensors: each is read, merged, quantised and written tile by tile.
//!
//! A tile is shared out over the threads in pieces of a few rows; each piece goes from the base's 16 bits to its
//! blocks without leaving a core's cache. In memory are a tile of blocks and one piece a thread, whatever the size
//! of the tensor.

use std::cell::Cell;
use std::io::{BufWriter, Write};

use formats::gguf::Writer;
use formats::{BlockType, Observer};
use rayon::prelude::*;

use crate::pending::Pending;
use crate::plan::{Content, Plan, PlannedTensor};
use crate::{Error, Event, Result};

/// Weights of a tile: large enough for long sequential writes.
const TILE_WEIGHTS: usize = 8 << 20;

/// Weights of a piece: in f32 they fit a core's second-level cache beside the adapter's A.
const PIECE_WEIGHTS: usize = 64 << 10;

/// The largest half-precision number. Scales of every block format are halves, and no sound weight is near it.
pub(crate) const HALF_MAX: f32 = 65504.0;

/// Writes the whole file and returns its BLAKE3, computed on the way.
pub(crate) fn write(plan: &Plan, pending: &Pending, observer: &mut dyn Observer<Event>) -> Result<String> {
    let written_bytes = Cell::new(0);
    let hashed = Hashed { out: pending.file(), hasher: blake3::Hasher::new(), bytes: &written_bytes };
    let out = BufWriter::with_capacity(1 << 20, hashed);
    let mut writer = Writer::begin(out, &plan.metadata, &plan.entries())?;
    for (index, tensor) in plan.tensors.iter().enumerate() {
        for_each_tile(plan, tensor, |blocks| Ok(writer.write_part(blocks)?))?;
        observer.observe(Event::Tensor {
            index,
            n_tensors: plan.tensors.len(),
            name: tensor.name.clone(),
            type_name: tensor.ty.name(),
            written_bytes: written_bytes.get(),
            file_bytes: plan.file_bytes,
        });
    }
    let mut out = writer.finish()?;
    out.flush().map_err(|source| Error::Io { path: pending.temp().to_owned(), action: "write", source })?;
    if written_bytes.get() != plan.file_bytes {
        return Err(Error::Written {
            place: "its size".to_owned(),
            expected: plan.file_bytes.to_string(),
            actual: written_bytes.get().to_string(),
        });
    }
    Ok(out.get_ref().hasher.finalize().to_hex().to_string())
}

fn for_each_tile(
    plan: &Plan,
    tensor: &PlannedTensor,
    mut take: impl FnMut(&[u8]) -> Result<()>,
) -> Result<()> {
    let row_bytes = tensor.row_bytes()?;
    let mut blocks = Vec::new();
    let mut permuted = Vec::new();
    for first_row in (0..tensor.rows).step_by(tile_rows(tensor)) {
        let n_rows = tile_rows(tensor).min(tensor.rows - first_row);
        blocks.resize(n_rows * row_bytes, 0);
        encode_rows(plan, tensor, first_row, &mut blocks)?;
        match &tensor.content {
            Content::Weight { spec, .. } if spec.permute.is_some() => {
                permuted.clear();
                for row in first_row..first_row + n_rows {
                    let at = (spec.hf_row(row) - first_row) * row_bytes;
                    permuted.extend_from_slice(&blocks[at..at + row_bytes]);
                }
                take(&permuted)?;
            }
            _ => take(&blocks)?,
        }
    }
    Ok(())
}

/// Rows of a tile: whole heads where rows move within a head.
fn tile_rows(tensor: &PlannedTensor) -> usize {
    let rows = (TILE_WEIGHTS / tensor.cols).max(1);
    match &tensor.content {
        Content::Weight { spec, .. } => match spec.permute {
            Some(n_heads) => {
                let head_rows = tensor.rows / n_heads;
                (rows / head_rows).max(1) * head_rows
            }
            None => rows,
        },
        Content::Computed(_) => rows,
    }
}

/// Fills `blocks` with consecutive rows in the order of the base.
fn encode_rows(plan: &Plan, tensor: &PlannedTensor, first_row: usize, blocks: &mut [u8]) -> Result<()> {
    let row_bytes = tensor.row_bytes()?;
    let piece_rows = (PIECE_WEIGHTS / tensor.cols).max(1);
    let pieces = blocks.par_chunks_mut(piece_rows * row_bytes).enumerate();
    pieces.try_for_each_init(Vec::new, |weights, (piece, blocks)| {
        let first_row = first_row + piece * piece_rows;
        merged_rows(plan, tensor, first_row, blocks.len() / row_bytes, weights)?;
        tensor.encode(first_row, weights, blocks)
    })
}

/// Rows of a tensor in the order of the base, with the adapter's update, checked to be numbers that the type holds.
pub(crate) fn merged_rows(
    plan: &Plan,
    tensor: &PlannedTensor,
    first_row: usize,
    n_rows: usize,
    out: &mut Vec<f32>,
) -> Result<()> {
    match &tensor.content {
        Content::Computed(values) => {
            out.clear();
            out.extend_from_slice(&values[first_row * tensor.cols..(first_row + n_rows) * tensor.cols]);
        }
        Content::Weight { spec, update } => {
            if spec.role.is_vector() {
                spec.read(&plan.base, out)?;
                out.truncate((first_row + n_rows) * tensor.cols);
                out.drain(..first_row * tensor.cols);
            } else {
                let merge = |rows: &mut [f32], first_row: usize| {
                    if let Some(update) = update {
                        update.add_to(rows, first_row);
                    }
                };
                spec.read_changed_rows(&plan.base, first_row..first_row + n_rows, &merge, out)?;
            }
            spec.held.of(out);
        }
    }
    check_range(tensor, first_row, out)
}

fn check_range(tensor: &PlannedTensor, first_row: usize, weights: &[f32]) -> Result<()> {
    let limit = match tensor.ty {
        BlockType::F32 | BlockType::BF16 => f32::MAX,
        _ => HALF_MAX,
    };
    // A comparison with NaN is false, so NaN does not fit either. The fold has no early exit and vectorises.
    let fits = |weight: f32| weight.abs() <= limit;
    if weights.iter().fold(true, |all, &weight| all & fits(weight)) {
        return Ok(());
    }
    let at = weights.iter().position(|&weight| !fits(weight)).expect("a weight did not fit above");
    Err(Error::OutOfRange {
        tensor: tensor.name.clone(),
        row: first_row + at / tensor.cols,
        column: at % tensor.cols,
        value: weights[at],
        type_name: tensor.ty.name(),
        limit,
    })
}

/// Passes bytes on, hashes and counts them.
struct Hashed<'a> {
    out: &'a std::fs::File,
    hasher: blake3::Hasher,
    bytes: &'a Cell<u64>,
}

impl Write for Hashed<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let n = self.out.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        self.bytes.set(self.bytes.get() + n as u64);
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.out.flush()
    }
}
