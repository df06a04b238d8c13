//! Reading a written file back: is it what was planned, and what was sent to the disk?

use std::io::Read;
use std::path::Path;

use formats::block;
use formats::gguf::{Planned, Reader};
use sha2::Digest;

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

/// Hashes of a file, hex.
pub(crate) struct Hashes {
    pub(crate) blake3: String,
    pub(crate) sha256: String,
}

/// Compares the file at `path` with the plan and with the hash of what was written; returns its hashes and how
/// many rows were compared.
pub(crate) fn read_back(plan: &Plan<'_>, path: &Path, written_blake3: &str) -> Result<(Hashes, usize)> {
    let hashes = hashes(path)?;
    expect("its BLAKE3", written_blake3, &hashes.blake3)?;
    let reader = Reader::open(path)?;
    check_metadata(plan, &reader)?;
    check_table(plan, &reader)?;
    let mut n_rows = 0;
    for tensor in &plan.tensors {
        n_rows += check_rows(plan, tensor, &reader)?;
    }
    Ok((hashes, n_rows))
}

/// Both hashes in one pass over the file.
fn hashes(path: &Path) -> Result<Hashes> {
    let failed = |source| Error::Io { path: path.to_owned(), action: "read", source };
    let mut file = std::fs::File::open(path).map_err(failed)?;
    let (mut blake3, mut sha256) = (blake3::Hasher::new(), sha2::Sha256::new());
    let mut chunk = vec![0; 1 << 20];
    loop {
        let n = file.read(&mut chunk).map_err(failed)?;
        if n == 0 {
            break;
        }
        let chunk = &chunk[..n];
        rayon::join(|| blake3.update(chunk), || sha256.update(chunk));
    }
    let sha256 = sha256.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(Hashes { blake3: blake3.finalize().to_hex().to_string(), sha256 })
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

/// Makes the first, the last and two rows between anew from the sources, each by itself, and compares bytes; then
/// decodes them and compares values, so that neither tiling nor permutation nor codec is its own witness.
fn check_rows(plan: &Plan<'_>, planned: &PlannedTensor<'_>, reader: &Reader) -> Result<usize> {
    let tensor = planned.tensor;
    let info = reader.tensor(&tensor.name).ok_or_else(|| Error::Written {
        place: "its table".to_owned(),
        expected: format!("tensor `{}`", tensor.name),
        actual: "without it".to_owned(),
    })?;
    let (data, row_bytes) = (reader.data(info), planned.row_bytes()?);
    let mut rows = [0, tensor.rows / 3, tensor.rows - tensor.rows / 3 - 1, tensor.rows - 1].to_vec();
    rows.dedup();
    let (mut weights, mut blocks) = (Vec::new(), vec![0; row_bytes]);
    let mut decoded = vec![0.0; tensor.cols];
    let is_coarse = 8 * row_bytes < COARSE_BITS * tensor.cols;
    let limit = if is_coarse { MAX_COARSE_ROW_ERROR } else { MAX_ROW_ERROR };
    for &row in &rows {
        let place = || format!("row {row} of `{}`", tensor.name);
        let source_row = planned.source_row(row);
        plan.merged.read_rows(tensor, source_row, 1, &mut weights)?;
        check_range(planned, source_row, &weights)?;
        match planned.stored {
            Some(stored) => blocks.copy_from_slice(&stored[row * row_bytes..(row + 1) * row_bytes]),
            None => planned.encode(source_row, &weights, &mut blocks)?,
        }
        let stored = &data[row * row_bytes..(row + 1) * row_bytes];
        if stored != blocks {
            return Err(differs(&place(), "the merged weights", "something else"));
        }
        block::decode(planned.ty, stored, &mut decoded)?;
        let error = relative_error(&weights, &decoded);
        if error > limit {
            let expected = format!("within {limit} of its weights");
            return Err(differs(&place(), &expected, &format!("{error} away")));
        }
    }
    Ok(rows.len())
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
