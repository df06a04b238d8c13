//! Frozen linear layers in 16 bits: weights are unpacked from their blocks straight into panels of bf16, activations are
//! rounded to bf16, products are summed in f32.
//!
//! What is unpacked is used for all tokens at once and then overwritten. Each task has outputs of its own (rows of W
//! forward, columns backward), so that every block is unpacked once and no sum crosses a task.
//! The error against f32: each factor is off by at most 2^-9 of itself, so a sum by at most 2^-8 of Σ |x·w|.
//!
//! `unsafe` because of the processor's instructions and because tasks write disjoint parts of one matrix.

#![allow(unsafe_code)]

pub(super) mod attention;
mod kernel;
mod pack;

use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rayon::prelude::*;

use super::memory::HostBlocks;
use crate::Result;
use crate::arena::{Arena, Drawn};
use crate::device::{BlockMatrix, DenseCopy, DenseCounter, Write};
use kernel::Out;

/// Rows of the activations that a kernel multiplies at once: with two vectors of weights their sums fill 28 of 32
/// registers.
const TILE: usize = 14;
/// Columns of the result that a kernel makes: two vectors.
const PANEL: usize = 32;
/// Terms of a sum that are packed at once: a tile of activations (14 KiB) stays in a first-level cache.
const DEPTH: usize = 512;
/// Columns of the result that a task makes: its packed weights (256 KiB) stay in a second-level cache.
const TASK: usize = 256;
/// Words of packed activations: 2 million pairs.
const ACTIVATION_WORDS: usize = 2 << 20;

/// Rows that are unpacked together.
const GROUP: usize = 16;
/// Words that a thread packs right sides of products into, and what else they are packed with: twice a task's weights,
/// for heads of 256 in attention.
const PANEL_WORDS: usize = TASK * DEPTH;
/// Floats of a thread: rows of weights, or scores of attention and their gradients.
const ROW_FLOATS: usize = 2 * GROUP * DEPTH;

/// What one task packs weights into.
#[derive(Debug)]
struct Scratch {
    panels: Vec<u32>,
    rows: Vec<f32>,
}

/// Room for packed activations and, for each thread, packed weights.
#[derive(Debug)]
pub(super) struct Panels {
    activations: Mutex<Vec<u32>>,
    scratch: Vec<Mutex<Scratch>>,
    _drawn: Drawn,
}

/// Whether the processor has the instructions.
pub(super) fn is_possible() -> bool {
    use std::arch::is_x86_feature_detected as has;
    has!("avx512f") && has!("avx512bw") && has!("avx512vl") && has!("avx512dq") && has!("avx512bf16")
}

/// Whether a product with a matrix is made here: of more than a few tokens, from blocks that are read by columns, with
/// room for a tile of its sums' terms.
pub(super) fn suits(n_tokens: usize, n_terms: usize, weights: &HostBlocks) -> bool {
    let has_room = n_terms.div_ceil(2) * TILE <= ACTIVATION_WORDS;
    let is_read_by_columns =
        weights.cols().is_multiple_of(PANEL) && weights.block_type() != formats::BlockType::F32;
    n_tokens > 8 && has_room && is_read_by_columns
}

/// Bytes that [`Panels::new`] draws in this thread pool.
pub(super) fn panel_bytes() -> u64 {
    let of_thread = PANEL_WORDS + ROW_FLOATS;
    4 * (ACTIVATION_WORDS + rayon::current_num_threads() * of_thread) as u64
}

impl Panels {
    pub(super) fn new(arena: &Arena) -> Result<Self> {
        let threads = rayon::current_num_threads();
        let drawn = arena.draw("packed panels", panel_bytes())?;
        let scratch = || Mutex::new(Scratch { panels: vec![0; PANEL_WORDS], rows: vec![0.0; ROW_FLOATS] });
        Ok(Self {
            activations: Mutex::new(vec![0; ACTIVATION_WORDS]),
            scratch: (0..threads).map(|_| scratch()).collect(),
            _drawn: drawn,
        })
    }

    /// Counts what is unpacked while an op runs.
    fn counted(&self, counter: &DenseCounter) -> DenseCopy {
        counter.count((2 * TASK * DEPTH * self.scratch.len()) as u64)
    }

    fn scratch(&self) -> MutexGuard<'_, Scratch> {
        let index = rayon::current_thread_index().unwrap_or(0) % self.scratch.len();
        self.scratch[index].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A matrix that tasks write, each its own columns.
#[derive(Clone, Copy)]
struct Target {
    start: *mut f32,
    stride: usize,
    write: Write,
}

// SAFETY: tasks write disjoint columns, which `multiply` checks to be inside.
unsafe impl Send for Target {}
// SAFETY: as above.
unsafe impl Sync for Target {}

/// y (=|+=) x · W[rows]ᵀ      x (n, cols), y (n, |rows|)
pub(super) fn forward(
    panels: &Panels,
    counter: &DenseCounter,
    x: &[f32],
    weights: &HostBlocks,
    rows: Range<usize>,
    write: Write,
    y: &mut [f32],
) -> Result<()> {
    let (cols, width) = (weights.cols(), rows.len());
    let _copy = panels.counted(counter);
    each_chunk(panels, x, cols, |tiles, tokens| {
        let start = y[tokens.start * width..tokens.end * width].as_mut_ptr();
        let target = Target { start, stride: width, write };
        let columns = task_columns(width);
        (0..width.div_ceil(columns)).into_par_iter().try_for_each(|task| {
            let of_task = task * columns..((task + 1) * columns).min(width);
            let scratch = &mut *panels.scratch();
            for depth in parts(0..cols, DEPTH) {
                let source = rows.start + of_task.start..rows.start + of_task.end;
                pack_rows(weights, source, depth.clone(), scratch)?;
                multiply(tiles, cols, tokens.len(), &scratch.panels, depth, of_task.clone(), target);
            }
            Ok(())
        })
    })
}

/// dx (=|+=) dy · W[rows]      dy (n, |rows|), dx (n, cols)
pub(super) fn backward(
    panels: &Panels,
    counter: &DenseCounter,
    d_y: &[f32],
    weights: &HostBlocks,
    rows: Range<usize>,
    write: Write,
    d_x: &mut [f32],
) -> Result<()> {
    let (cols, width) = (weights.cols(), rows.len());
    let _copy = panels.counted(counter);
    each_chunk(panels, d_y, width, |tiles, tokens| {
        let start = d_x[tokens.start * cols..tokens.end * cols].as_mut_ptr();
        let target = Target { start, stride: cols, write };
        (0..cols.div_ceil(TASK)).into_par_iter().try_for_each(|task| {
            let of_task = task * TASK..((task + 1) * TASK).min(cols);
            let scratch = &mut *panels.scratch();
            for depth in parts(0..width, DEPTH) {
                let source = rows.start + depth.start..rows.start + depth.end;
                pack_columns(weights, source, of_task.clone(), scratch)?;
                multiply(tiles, width, tokens.len(), &scratch.panels, depth, of_task.clone(), target);
            }
            Ok(())
        })
    })
}

/// Columns of a task: all threads get some, in whole panels.
fn task_columns(width: usize) -> usize {
    let fair = width.div_ceil(2 * rayon::current_num_threads()).next_multiple_of(PANEL);
    fair.min(TASK)
}

fn parts(range: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    range.clone().step_by(size).map(move |start| start..(start + size).min(range.end))
}

/// Packs the activations (n, cols), as many tokens at a time as there is room for.
fn each_chunk(
    panels: &Panels,
    x: &[f32],
    cols: usize,
    mut run: impl FnMut(&[u32], Range<usize>) -> Result<()>,
) -> Result<()> {
    let (n, pairs) = (x.len() / cols, cols.div_ceil(2));
    let chunk = (ACTIVATION_WORDS / pairs / TILE).max(1) * TILE;
    let mut activations = panels.activations.lock().unwrap_or_else(PoisonError::into_inner);
    for tokens in parts(0..n, chunk) {
        let tiles = &mut activations[..tokens.len().div_ceil(TILE) * TILE * pairs];
        tiles.par_chunks_mut(pairs * TILE).enumerate().for_each(|(tile, to)| {
            let first = tokens.start + tile * TILE;
            let rows = TILE.min(tokens.end - first);
            // SAFETY: these ops are only called where `is_possible`.
            unsafe { pack::tiles(&x[first * cols..], cols, cols, rows, to) };
        });
        run(tiles, tokens)?;
    }
    Ok(())
}

/// Unpacks rows of W, some columns of each, for sums along the columns.
fn pack_rows(weights: &HostBlocks, rows: Range<usize>, depth: Range<usize>, to: &mut Scratch) -> Result<()> {
    let (cols, pairs) = (depth.len(), depth.len() / 2);
    for (panel, group) in parts(rows, GROUP).enumerate() {
        let n = group.len();
        for (row, out) in group.zip(to.rows.chunks_exact_mut(cols)) {
            weights.decode_columns(row, depth.clone(), out)?;
        }
        let half = &mut to.panels[panel / 2 * pairs * PANEL + panel % 2 * GROUP..];
        // SAFETY: these ops are only called where `is_possible`.
        unsafe { pack::rows_into_panel(&to.rows, (cols, cols), n, half) };
    }
    Ok(())
}

/// Unpacks rows of W, some columns of each, for sums along the rows.
fn pack_columns(
    weights: &HostBlocks,
    rows: Range<usize>,
    columns: Range<usize>,
    to: &mut Scratch,
) -> Result<()> {
    let (cols, pairs) = (columns.len(), rows.len().div_ceil(2));
    let (upper, rest) = to.rows.split_at_mut(cols);
    let lower = &mut rest[..cols];
    for (p, pair) in parts(rows, 2).enumerate() {
        weights.decode_columns(pair.start, columns.clone(), upper)?;
        match pair.len() {
            2 => weights.decode_columns(pair.start + 1, columns.clone(), lower)?,
            _ => lower.fill(0.0),
        }
        for panel in 0..cols / PANEL {
            let part = panel * PANEL..(panel + 1) * PANEL;
            let line = &mut to.panels[(panel * pairs + p) * PANEL..][..PANEL];
            // SAFETY: these ops are only called where `is_possible`.
            unsafe { pack::pair_of_rows(&upper[part.clone()], &lower[part], line) };
        }
    }
    Ok(())
}

/// All tokens against packed weights: some columns of the result, some terms of their sums.
fn multiply(
    tiles: &[u32],
    terms: usize,
    n_tokens: usize,
    panels: &[u32],
    depth: Range<usize>,
    columns: Range<usize>,
    target: Target,
) {
    let (all_pairs, pairs) = (terms.div_ceil(2), depth.len().div_ceil(2));
    assert!(columns.end <= target.stride && n_tokens <= tiles.len() / all_pairs);
    let adds = depth.start > 0 || target.write == Write::Add;
    for first in (0..n_tokens).step_by(TILE) {
        let tile = &tiles[first * all_pairs + depth.start / 2 * TILE..][..pairs * TILE];
        let rows = TILE.min(n_tokens - first);
        // SAFETY: the first row and column are inside of the target; the columns are this task's; see `is_possible`.
        unsafe {
            let start = target.start.add(first * target.stride + columns.start);
            row_of_blocks(tile, panels, pairs, (rows, columns.len()), (start, target.stride), adds);
        }
    }
}

/// out (=|+=) a · b      a: tiles of (rows, terms), b: panels of (terms, cols), out with its stride
///
/// # Safety
/// `is_possible`; `out` is the caller's alone, for all rows and columns.
unsafe fn products(
    a: &[u32],
    b: &[u32],
    terms: usize,
    (rows, cols): (usize, usize),
    (out, stride): (*mut f32, usize),
    adds: bool,
) {
    let pairs = terms.div_ceil(2);
    for first in (0..rows).step_by(TILE) {
        let size = (TILE.min(rows - first), cols);
        // SAFETY: the caller's promises are the callee's.
        unsafe {
            row_of_blocks(&a[first * pairs..], b, pairs, size, (out.add(first * stride), stride), adds)
        };
    }
}

/// One tile against all panels.
///
/// # Safety
/// As [`products`].
unsafe fn row_of_blocks(
    tile: &[u32],
    panels: &[u32],
    pairs: usize,
    (rows, cols): (usize, usize),
    (out, stride): (*mut f32, usize),
    adds: bool,
) {
    let tile = &tile[..pairs * TILE];
    for (panel, column) in (0..cols).step_by(PANEL).enumerate() {
        let panel = &panels[panel * pairs * PANEL..][..pairs * PANEL];
        // SAFETY: tile and panel hold `pairs` rows; the rest is the caller's promise.
        unsafe {
            let out = Out { start: out.add(column), stride, rows, cols: PANEL.min(cols - column), adds };
            kernel::multiply(pairs, tile.as_ptr(), panel.as_ptr(), out);
        }
    }
}
