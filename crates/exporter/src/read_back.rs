//! Reading a written file back: is it what was planned, and what was sent to the disk?

use std::path::Path;

use formats::block;
use formats::gguf::{Planned, Reader};
use formats::hash::{self, Hashes};
use rayon::prelude::*;

use crate::plan::{Plan, PlannedTensor};
use crate::tiles::check_range;
use crate::{Error, Result};

/// How far, relative to its root mean square, a decoded row may be from its weights: a row from elsewhere is about
/// 1.4 away, a bell-shaped one in 4 bits less than 0.1.
const MAX_ROW_ERROR: f64 = 0.5;

/// The same below so many bits a weight, where a column of no importance may come out as anything.
const MAX_COARSE_ROW_ERROR: f64 = 0.9;

const COARSE_BITS: usize = 3;

/// Rows smaller than this (root mean square) may vanish in the half-precision scales of the formats.
const TINY: f64 = 1e-5;

/// Compares the file at `path` with the plan and with the hash of what was written; returns its hashes and how
/// many rows were compared. The file is read once, and of what was hashed the rows are taken.
pub(crate) fn read_back(plan: &Plan<'_>, path: &Path, written_blake3: &str) -> Result<(Hashes, usize)> {
    let reader = Reader::open(path)?;
    check_metadata(plan, &reader)?;
    check_table(plan, &reader)?;
    let mut rows = samples(plan, &reader)?;
    let hashes = hash::from_disk(path, |position, bytes| {
        rows.iter_mut().for_each(|row| row.take(position, bytes));
    })?;
    expect("its BLAKE3", written_blake3, &hashes.blake3)?;
    rows.par_iter().try_for_each_init(Scratch::default, |scratch, row| row.check(plan, scratch))?;
    Ok((hashes, rows.len()))
}

fn check_metadata(plan: &Plan<'_>, reader: &Reader) -> Result<()> {
    let (planned, found) = (plan.metadata.entries(), reader.metadata().entries());
    expect("its number of keys", &planned.len().to_string(), &found.len().to_string())?;
    for ((key, value), (found_key, found_value)) in planned.iter().zip(found) {
        expect("a key", key, found_key)?;
        if value != found_value {
            return Err(differs(&format!("key `{key}`"), "as planned", "another value"));
        }
    }
    Ok(())
}

fn check_table(plan: &Plan<'_>, reader: &Reader) -> Result<()> {
    let found: Vec<Planned> =
        reader.tensors().iter().map(|info| (info.name.clone(), info.shape.clone(), info.ty)).collect();
    expect("its number of tensors", &plan.tensors.len().to_string(), &found.len().to_string())?;
    for (planned, found) in plan.entries().iter().zip(&found) {
        expect("a tensor", &format!("{planned:?}"), &format!("{found:?}"))?;
    }
    Ok(())
}

/// A row that is compared.
struct Sample<'a> {
    planned: &'a PlannedTensor<'a>,
    row: usize,
    /// Where it begins in the file.
    position: u64,
    /// What the file has there.
    stored: Vec<u8>,
}

/// Memory of a thread.
#[derive(Default)]
struct Scratch {
    weights: Vec<f32>,
    blocks: Vec<u8>,
    decoded: Vec<f32>,
}

/// The first, the last and two rows between of each tensor.
fn samples<'a>(plan: &'a Plan<'a>, reader: &Reader) -> Result<Vec<Sample<'a>>> {
    let mut samples = Vec::with_capacity(4 * plan.tensors.len());
    for planned in &plan.tensors {
        let tensor = planned.tensor;
        let info = reader
            .tensor(&tensor.name)
            .ok_or_else(|| differs("its table", &format!("tensor `{}`", tensor.name), "without it"))?;
        let (begin, row_bytes) = (reader.position(info), planned.row_bytes()?);
        let mut rows = [0, tensor.rows / 3, tensor.rows - tensor.rows / 3 - 1, tensor.rows - 1].to_vec();
        rows.dedup();
        samples.extend(rows.into_iter().map(|row| Sample {
            planned,
            row,
            position: begin + (row * row_bytes) as u64,
            stored: vec![0; row_bytes],
        }));
    }
    Ok(samples)
}

impl Sample<'_> {
    /// Keeps what is of it in some bytes of the file.
    fn take(&mut self, position: u64, bytes: &[u8]) {
        let end = (position + bytes.len() as u64).min(self.position + self.stored.len() as u64);
        let begin = position.max(self.position);
        if begin < end {
            let n_bytes = (end - begin) as usize;
            self.stored[(begin - self.position) as usize..][..n_bytes]
                .copy_from_slice(&bytes[(begin - position) as usize..][..n_bytes]);
        }
    }

    /// Makes the row anew from the sources, by itself, and compares bytes; then decodes it and compares values, so that
    /// neither tiling nor permutation nor codec is its own witness.
    fn check(&self, plan: &Plan<'_>, Scratch { weights, blocks, decoded }: &mut Scratch) -> Result<()> {
        let Sample { planned, row, stored, .. } = self;
        let (tensor, row_bytes, source_row) = (planned.tensor, stored.len(), planned.source_row(*row));
        let place = || format!("row {row} of `{}`", tensor.name);
        plan.merged.read_rows(tensor, source_row, 1, weights)?;
        check_range(planned, source_row, weights)?;
        blocks.resize(row_bytes, 0);
        match planned.stored {
            Some(kept) => blocks.copy_from_slice(&kept[row * row_bytes..(row + 1) * row_bytes]),
            None => planned.encode(source_row, weights, blocks)?,
        }
        if stored != blocks {
            return Err(differs(&place(), "the merged weights", "something else"));
        }
        decoded.resize(tensor.cols, 0.0);
        block::decode(planned.ty, stored, decoded)?;
        let is_coarse = 8 * row_bytes < COARSE_BITS * tensor.cols;
        let limit = if is_coarse { MAX_COARSE_ROW_ERROR } else { MAX_ROW_ERROR };
        let error = relative_error(weights, decoded);
        if error > limit {
            let expected = format!("within {limit} of its weights");
            return Err(differs(&place(), &expected, &format!("{error} away")));
        }
        Ok(())
    }
}

/// Root mean square of the differences over that of the weights; 0 for tiny weights.
fn relative_error(weights: &[f32], decoded: &[f32]) -> f64 {
    let square = |x: f64| x * x;
    let norm: f64 = weights.iter().map(|&w| square(w.into())).sum();
    let error: f64 = weights.iter().zip(decoded).map(|(&w, &d)| square(f64::from(w) - f64::from(d))).sum();
    if norm <= square(TINY) * weights.len() as f64 { 0.0 } else { (error / norm).sqrt() }
}

fn expect(place: &str, expected: &str, actual: &str) -> Result<()> {
    if expected == actual { Ok(()) } else { Err(differs(place, expected, actual)) }
}

fn differs(place: &str, expected: &str, actual: &str) -> Error {
    Error::Written { place: place.to_owned(), expected: expected.to_owned(), actual: actual.to_owned() }
}
