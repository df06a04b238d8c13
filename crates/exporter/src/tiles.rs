//! The blocks of a file, tile by tile: rows are read and merged once, and encoded for every file that is made of them.
//!
//! A tile is shared out over the threads in pieces of a few rows; each piece goes from the base's 16 bits to the blocks of
//! every file without leaving a core's cache.

use std::sync::Mutex;

use formats::BlockType;
use formats::block::are_within;
use rayon::prelude::*;

use crate::merged::{Merged, Tensor};
use crate::plan::{Plan, PlannedTensor};
use crate::{Error, Result};

/// Weights of a tile: large enough for long sequential writes.
const TILE_WEIGHTS: usize = 8 << 20;

/// Weights of a piece: in f32 they fit a core's second-level cache beside the adapter's A.
const PIECE_WEIGHTS: usize = 64 << 10;

/// The largest half-precision number. Scales of every block format are halves, and no sound weight is near it.
pub(crate) const HALF_MAX: f32 = 65504.0;

/// Some rows of a tensor.
#[derive(Clone, Copy)]
pub(crate) struct Tile {
    /// The tensor's number.
    pub(crate) tensor: usize,
    pub(crate) first_row: usize,
    pub(crate) n_rows: usize,
}

/// The most that tiles of one file take: in 32 bits, one being written and one being made.
pub(crate) fn tile_bytes(merged: &Merged) -> u64 {
    let weights = tiles(merged).map(|tile| tile.n_rows * merged.tensors[tile.tensor].cols).max();
    2 * 4 * weights.unwrap_or(0) as u64
}

/// All of a file, in its order.
pub(crate) fn tiles(merged: &Merged) -> impl Iterator<Item = Tile> + '_ {
    merged.tensors.iter().enumerate().flat_map(|(index, tensor)| {
        let at_once = tile_rows(tensor);
        (0..tensor.rows).step_by(at_once).map(move |first_row| {
            let n_rows = at_once.min(tensor.rows - first_row);
            Tile { tensor: index, first_row, n_rows }
        })
    })
}

/// A file of which a tile is made.
pub(crate) struct Making<'a> {
    pub(crate) plan: &'a Plan<'a>,
    pub(crate) blocks: Vec<u8>,
    /// Tensors that stood complete at the beginning.
    pub(crate) n_kept: usize,
    pub(crate) failure: Option<Error>,
}

impl Making<'_> {
    /// Whether a tile is to be made for it.
    pub(crate) fn wants(&self, tile: Tile) -> bool {
        self.failure.is_none() && tile.tensor >= self.n_kept
    }
}

/// Memory for the weights of pieces, as much as threads use at once, again and again.
#[derive(Default)]
pub(crate) struct Spare(Mutex<Vec<Vec<f32>>>);

impl Spare {
    fn lend<T>(&self, work: impl FnOnce(&mut Vec<f32>) -> T) -> T {
        let taken = self.0.lock().expect("no thread panics with it").pop();
        let mut weights = taken.unwrap_or_default();
        let done = work(&mut weights);
        self.0.lock().expect("no thread panics with it").push(weights);
        done
    }
}

/// The blocks of a tile, for each file in its order; a file for which they cannot be made says why.
///
/// # Errors
/// What reading meets.
pub(crate) fn make(merged: &Merged, tile: Tile, files: &mut [&mut Making<'_>], spare: &Spare) -> Result<()> {
    let mut made: Vec<&mut Making<'_>> = Vec::new();
    for file in files.iter_mut().filter(|file| file.wants(tile)) {
        let planned = &file.plan.tensors[tile.tensor];
        let row_bytes = planned.row_bytes()?;
        file.blocks.resize(tile.n_rows * row_bytes, 0);
        match planned.stored {
            Some(stored) => {
                let rows = tile.first_row * row_bytes..(tile.first_row + tile.n_rows) * row_bytes;
                file.blocks.copy_from_slice(&stored[rows]);
            }
            None => made.push(file),
        }
    }
    encode(merged, tile, &mut made, spare)?;
    for file in made {
        let planned = &file.plan.tensors[tile.tensor];
        if planned.tensor.spec().is_some_and(|spec| spec.permute.is_some()) {
            put_in_order(planned, tile, &mut file.blocks);
        }
    }
    Ok(())
}

/// Fills the blocks of each file with the tile's rows in the order of the base.
fn encode(merged: &Merged, tile: Tile, files: &mut [&mut Making<'_>], spare: &Spare) -> Result<()> {
    if files.is_empty() {
        return Ok(());
    }
    let tensor = &merged.tensors[tile.tensor];
    let piece_rows = (PIECE_WEIGHTS / tensor.cols).max(1);
    let n_pieces = tile.n_rows.div_ceil(piece_rows);
    // Of each piece, the blocks of each file.
    let mut pieces: Vec<Vec<(&PlannedTensor<'_>, &mut [u8])>> = (0..n_pieces).map(|_| Vec::new()).collect();
    for file in files.iter_mut() {
        let planned = &file.plan.tensors[tile.tensor];
        let row_bytes = file.blocks.len() / tile.n_rows;
        let of_file = file.blocks.chunks_mut((piece_rows * row_bytes).max(1));
        pieces.iter_mut().zip(of_file).for_each(|(piece, blocks)| piece.push((planned, blocks)));
    }
    // Down to single pieces: the last of a tile are what a thread waits for.
    let failures = pieces.into_par_iter().with_max_len(1).enumerate().map(|(piece, blocks)| {
        spare.lend(|weights| {
            let first = piece * piece_rows;
            let first_row = tile.first_row + first;
            merged.read_rows(tensor, first_row, piece_rows.min(tile.n_rows - first), weights)?;
            let encoded = blocks.into_iter().map(|(planned, blocks)| {
                check_range(planned, first_row, weights)?;
                planned.encode(first_row, weights, blocks)
            });
            Ok(encoded.map(Result::err).collect::<Vec<_>>())
        })
    });
    for of_piece in failures.collect::<Result<Vec<_>>>()? {
        for (file, failure) in files.iter_mut().zip(of_piece) {
            file.failure = file.failure.take().or(failure);
        }
    }
    Ok(())
}

/// Brings a tile's rows into the order of the file.
fn put_in_order(planned: &PlannedTensor<'_>, tile: Tile, blocks: &mut Vec<u8>) {
    let row_bytes = blocks.len() / tile.n_rows;
    let in_order = std::mem::take(blocks);
    blocks.reserve(in_order.len());
    for row in tile.first_row..tile.first_row + tile.n_rows {
        let at = (planned.source_row(row) - tile.first_row) * row_bytes;
        blocks.extend_from_slice(&in_order[at..at + row_bytes]);
    }
}

/// Rows of a tile: whole heads where rows move within a head.
fn tile_rows(tensor: &Tensor) -> usize {
    let rows = (TILE_WEIGHTS / tensor.cols).max(1);
    match tensor.spec().and_then(|spec| spec.permute) {
        Some(n_heads) => {
            let head_rows = tensor.rows / n_heads;
            (rows / head_rows).max(1) * head_rows
        }
        None => rows,
    }
}

/// Whether the type can hold the weights.
pub(crate) fn check_range(planned: &PlannedTensor<'_>, first_row: usize, weights: &[f32]) -> Result<()> {
    let limit = match planned.ty {
        BlockType::F32 | BlockType::BF16 => f32::MAX,
        _ => HALF_MAX,
    };
    if are_within(weights, limit) {
        return Ok(());
    }
    // A comparison with NaN is false, so NaN does not fit either.
    let is_within = |weight: &f32| weight.abs() <= limit;
    let at = weights.iter().position(|weight| !is_within(weight)).expect("a weight was not within above");
    let Tensor { name, cols, .. } = planned.tensor;
    Err(Error::OutOfRange {
        tensor: name.clone(),
        row: first_row + at / cols,
        column: at % cols,
        value: weights[at],
        type_name: planned.ty.name(),
        limit,
    })
}
