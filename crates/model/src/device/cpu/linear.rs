//! Frozen linear layers: unpack a tile of rows into the one dense tile, multiply, go on to the next tile.

use std::ops::Range;

use super::few_rows;
use super::memory::{DenseTile, HostBlocks};
use super::product::{Mat, MatMut, Threads, multiply};
use crate::Result;
use crate::device::{BlockMatrix, Write};

/// y (=|+=) x · W[rows]ᵀ      x (n, cols), y (n, |rows|)
pub(super) fn forward(
    tile: &DenseTile,
    x: &[f32],
    weights: &HostBlocks,
    rows: Range<usize>,
    write: Write,
    y: &mut [f32],
) -> Result<()> {
    if few_rows::suits(x.len() / weights.cols(), weights.cols()) {
        return few_rows::forward(tile, x, weights, rows, write, y);
    }
    tiled_forward(tile, x, weights, rows, write, y)
}

/// [`forward`] for any number of tokens, and the oracle of the path for few.
pub(super) fn tiled_forward(
    tile: &DenseTile,
    x: &[f32],
    weights: &HostBlocks,
    rows: Range<usize>,
    write: Write,
    y: &mut [f32],
) -> Result<()> {
    let (cols, width) = (weights.cols(), rows.len());
    let n = x.len() / cols;
    let x = Mat::new(x, n, cols, cols);
    for part in tiles(rows.clone(), DenseTile::rows(cols)) {
        let dense = tile.unpack(weights, part.clone())?;
        let w = Mat::new(dense.floats(), part.len(), cols, cols);
        let y = MatMut::new(&mut y[part.start - rows.start..], n, part.len(), width);
        multiply(1.0, x, w.t(), write, y, Threads::All);
    }
    Ok(())
}

/// dx (=|+=) dy · W[rows]      dy (n, |rows|), dx (n, cols)
pub(super) fn backward(
    tile: &DenseTile,
    d_y: &[f32],
    weights: &HostBlocks,
    rows: Range<usize>,
    write: Write,
    d_x: &mut [f32],
) -> Result<()> {
    let (cols, width) = (weights.cols(), rows.len());
    let n = d_x.len() / cols;
    let mut write = write;
    for part in tiles(rows.clone(), DenseTile::rows(cols)) {
        let dense = tile.unpack(weights, part.clone())?;
        let w = Mat::new(dense.floats(), part.len(), cols, cols);
        let d_y = Mat::new(&d_y[part.start - rows.start..], n, part.len(), width);
        multiply(1.0, d_y, w, write, MatMut::new(d_x, n, cols, cols), Threads::All);
        write = Write::Add;
    }
    Ok(())
}

fn tiles(rows: Range<usize>, tile_rows: usize) -> impl Iterator<Item = Range<usize>> {
    rows.clone().step_by(tile_rows).map(move |start| start..(start + tile_rows).min(rows.end))
}
