//! Products of packed operands: weights are unpacked from their blocks straight into panels of the right side, activations
//! into tiles of the left, in bf16 or in f32; sums are in f32.
//!
//! What is unpacked is used for all tokens at once and then overwritten. Each task has outputs of its own (rows of W
//! forward, columns backward), so that every block is unpacked once and no sum crosses a task.
//! The error of bf16 against f32: each factor is off by at most 2^-9 of itself, so a sum by at most 2^-8 of Σ |x·w|.
//!
//! `unsafe` because of the processor's instructions and because tasks write disjoint parts of one matrix.

#![allow(unsafe_code)]

pub(super) mod attention;
mod dense;
mod kernel;
mod narrow;
mod pack;
mod quantise;
mod room;
mod rows;
mod vectors;

use std::ops::Range;

use rayon::prelude::*;

use super::memory::HostBlocks;
use crate::Result;
use crate::device::{BlockMatrix, DenseCounter, Write};
use kernel::{
    AmxBf16, Avx2F32, Avx2Int16, Avx512Bf16, Avx512F32, Avx512Int8, Avx512Int16, AvxVnniInt8, AvxVnniInt16,
    Dense, DenseKernel, Frozen, Kernel, Out, Strips, Weight, clear_beside,
};
use rows::Rows;

pub(super) use dense::{Side, matmul, suits as suits_dense};
pub(super) use kernel::is_possible;
use room::{ACTIVATION_WORDS, DEPTH, GROUP, LEAST, ROW_FLOATS, Scratch, TASK};
pub(super) use room::{Panels, panel_bytes};

/// Calls a generic function for what multiplies dense matrices or attention.
macro_rules! with_dense {
    ($kernel:expr, $function:ident($($argument:expr),* $(,)?)) => {
        match $kernel {
            Dense::AmxBf16 => $function::<AmxBf16>($($argument),*),
            Dense::Avx512Bf16 => $function::<Avx512Bf16>($($argument),*),
            Dense::Avx512F32 => $function::<Avx512F32>($($argument),*),
            Dense::Avx2F32 => $function::<Avx2F32>($($argument),*),
            Dense::Avx512Int16 => $function::<Avx512Int16>($($argument),*),
            Dense::AvxVnniInt16 => $function::<AvxVnniInt16>($($argument),*),
            Dense::Avx2Int16 => $function::<Avx2Int16>($($argument),*),
        }
    };
}
use with_dense;

/// Calls a generic function for what multiplies with frozen weights.
macro_rules! with_frozen {
    ($kernel:expr, $function:ident($($argument:expr),* $(,)?)) => {
        match $kernel {
            Frozen::Dense(dense) => with_dense!(dense, $function($($argument),*)),
            Frozen::Avx512Int8 => $function::<Avx512Int8>($($argument),*),
            Frozen::AvxVnniInt8 => $function::<AvxVnniInt8>($($argument),*),
        }
    };
}

/// Whether a product with a matrix is made here: of more than a few tokens, from blocks that are read by columns, with
/// room for a tile of its sums' terms.
pub(super) fn suits(n_tokens: usize, n_terms: usize, weights: &HostBlocks) -> bool {
    let has_room = (n_terms + ROW_FLOATS / TASK).next_multiple_of(64) * 32 <= ACTIVATION_WORDS;
    let is_read_by_columns =
        weights.cols().is_multiple_of(32) && weights.block_type() != formats::BlockType::F32;
    n_tokens > 8 && has_room && is_read_by_columns
}

/// A matrix that tasks write, each its own part.
#[derive(Clone, Copy)]
struct Target {
    start: *mut f32,
    rows: usize,
    cols: usize,
    stride: usize,
    write: Write,
}

// SAFETY: tasks write disjoint parts, which `out` checks to be inside.
unsafe impl Send for Target {}
// SAFETY: as above.
unsafe impl Sync for Target {}

impl Target {
    fn new(y: &mut [f32], rows: usize, cols: usize, stride: usize, write: Write) -> Self {
        assert!(rows == 0 || (rows - 1) * stride + cols <= y.len(), "the result is smaller than its shape");
        Self { start: y.as_mut_ptr(), rows, cols, stride, write }
    }

    /// Where a part begins, of which `is_first` says whether its sums have just begun.
    fn out(self, rows: &Range<usize>, columns: &Range<usize>, is_first: bool) -> Out {
        assert!(rows.end <= self.rows && columns.end <= self.cols, "a part outside of its matrix");
        // SAFETY: inside of the matrix by the assertion.
        let start = unsafe { self.start.add(rows.start * self.stride + columns.start) };
        Out { start, stride: self.stride, adds: !is_first || self.write == Write::Add }
    }
}

/// What is multiplied with, and what becomes of the result.
pub(super) struct Product<'a> {
    /// Counts what is unpacked.
    pub counter: &'a DenseCounter,
    pub weights: &'a HostBlocks,
    pub rows: Range<usize>,
    pub added: Option<Added<'a>>,
    pub write: Write,
}

/// A product of low rank that is added as further terms of the same sums.
#[derive(Clone, Copy)]
pub(super) struct Added<'a> {
    /// (n, R)
    u: Rows<'a, f32>,
    b: &'a [f32],
    b_stride: usize,
    scale: f32,
}

impl<'a> Added<'a> {
    /// u (n, R) and b, each with its stride
    pub(super) fn new(
        (u, u_stride): (&'a [f32], usize),
        (b, b_stride): (&'a [f32], usize),
        (n, rank): (usize, usize),
        scale: f32,
    ) -> Self {
        Self { u: Rows::new(u, u_stride, n, rank), b, b_stride, scale }
    }

    /// Some rows and columns of b, scaled into `to`.
    fn scaled<'b>(&self, rows: Range<usize>, cols: Range<usize>, to: &'b mut [f32]) -> Rows<'b, f32> {
        let from = &self.b[rows.start * self.b_stride + cols.start..];
        Rows::new(from, self.b_stride, rows.len(), cols.len()).scaled(self.scale, to)
    }
}

/// Whether a product of this rank can be added, 0 being none.
pub(super) fn has_room(rank: usize) -> bool {
    rank * TASK <= ROW_FLOATS
}

/// y (=|+=) x · W[rows]ᵀ + s · u · bᵀ      x (n, cols), y (n, |rows|), b (|rows|, R)
pub(super) fn forward(panels: &Panels, product: Product<'_>, x: &[f32], y: &mut [f32]) -> Result<()> {
    with_frozen!(panels.frozen, forward_with(panels, product, x, y))
}

fn forward_with<K: Kernel>(panels: &Panels, product: Product<'_>, x: &[f32], y: &mut [f32]) -> Result<()> {
    let Product { counter, weights, rows, added, write } = product;
    let (cols, width) = (weights.cols(), rows.len());
    let _copy = panels.counted::<K>(counter, width, cols);
    each_chunk::<K>(panels, x, cols, added, |tiles, tokens| {
        let n = tokens.len();
        let target = Target::new(&mut y[tokens.start * width..tokens.end * width], n, width, width, write);
        let columns = task_columns(width, LEAST);
        (0..width.div_ceil(columns)).into_par_iter().try_for_each(|task| {
            let of_task = task * columns..((task + 1) * columns).min(width);
            let scratch = &mut *panels.scratch();
            for depth in parts(0..cols, DEPTH) {
                let source = rows.start + of_task.start..rows.start + of_task.end;
                pack_rows::<K>(weights, source, depth.clone(), scratch)?;
                multiply::<K>(tiles, scratch.panels(), depth, of_task.clone(), target);
            }
            if let Some(added) = added {
                let (panels, scaled) = scratch.panels_and_rows::<f32>();
                let b = added.scaled(of_task.clone(), 0..added.u.cols, scaled);
                clear_beside::<K::Added>(b.rows, b.cols, panels);
                // SAFETY: see `pack_tiles`.
                unsafe { K::Added::columns(b, 0, panels) };
                multiply_added::<K::Added>(tiles, added.u.cols, panels, of_task, target);
            }
            Ok(())
        })
    })
}

/// dx (=|+=) dy · W[rows] + s · u · b      dy (n, |rows|), dx (n, cols), b (R, cols)
pub(super) fn backward(panels: &Panels, product: Product<'_>, d_y: &[f32], d_x: &mut [f32]) -> Result<()> {
    with_frozen!(panels.frozen, backward_with(panels, product, d_y, d_x))
}

fn backward_with<K: Kernel>(
    panels: &Panels,
    product: Product<'_>,
    d_y: &[f32],
    d_x: &mut [f32],
) -> Result<()> {
    let Product { counter, weights, rows, added, write } = product;
    let (cols, width) = (weights.cols(), rows.len());
    let _copy = panels.counted::<K>(counter, cols, width);
    each_chunk::<K>(panels, d_y, width, added, |tiles, tokens| {
        let n = tokens.len();
        let target = Target::new(&mut d_x[tokens.start * cols..tokens.end * cols], n, cols, cols, write);
        let columns = task_columns(cols, K::Weight::GRAIN);
        (0..cols.div_ceil(columns)).into_par_iter().try_for_each(|task| {
            let of_task = task * columns..((task + 1) * columns).min(cols);
            let scratch = &mut *panels.scratch();
            for depth in parts(0..width, DEPTH) {
                let source = rows.start + depth.start..rows.start + depth.end;
                pack_columns::<K>(weights, source, of_task.clone(), scratch)?;
                multiply::<K>(tiles, scratch.panels(), depth, of_task.clone(), target);
            }
            if let Some(added) = added {
                let (panels, scaled) = scratch.panels_and_rows::<f32>();
                let b = added.scaled(0..added.u.cols, of_task.clone(), scaled);
                // SAFETY: see `pack_tiles`.
                unsafe { K::Added::lines(b, 0, b.rows, panels) };
                multiply_added::<K::Added>(tiles, added.u.cols, panels, of_task, target);
            }
            Ok(())
        })
    })
}

/// Columns of a task, a multiple of `grain`: several tasks for each thread, since not all run equally fast.
fn task_columns(width: usize, grain: usize) -> usize {
    (width / (4 * rayon::current_num_threads())).next_multiple_of(grain).min(TASK)
}

fn parts(range: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    range.clone().step_by(size).map(move |start| start..(start + size).min(range.end))
}

/// Packed activations: the terms of the product, and those that are added.
#[derive(Clone, Copy)]
struct Activations<'a> {
    of_product: Strips<'a>,
    of_added: Strips<'a>,
}

/// Packs the activations (n, cols), as many tokens at a time as there is room for.
fn each_chunk<K: Kernel>(
    panels: &Panels,
    x: &[f32],
    cols: usize,
    added: Option<Added<'_>>,
    mut run: impl FnMut(Activations<'_>, Range<usize>) -> Result<()>,
) -> Result<()> {
    let (n, words) = (x.len() / cols, K::words(cols));
    let added_words = added.map_or(0, |added| K::Added::words(added.u.cols));
    let room = ACTIVATION_WORDS - K::Added::TILE * added_words;
    let most = (room / (words + added_words) / K::TILE).max(1) * K::TILE;
    let chunk = n.div_ceil(n.div_ceil(most).max(1)).next_multiple_of(K::TILE);
    let mut activations = panels.activations();
    for tokens in parts(0..n, chunk) {
        let words_of = |tile: usize, words: usize| tokens.len().next_multiple_of(tile) * words;
        let (of_product, rest) = activations.words().split_at_mut(words_of(K::TILE, words));
        let of_added = &mut rest[..words_of(K::Added::TILE, added_words)];
        let x = Rows::new(&x[tokens.start * cols..], cols, tokens.len(), cols);
        pack_tiles::<K>(x, of_product);
        if let Some(Added { u, .. }) = added {
            pack_tiles::<K::Added>(u.part(tokens.clone(), 0..u.cols), of_added);
        }
        let of_product = Strips { words: of_product, stride: words * K::TILE };
        let of_added = Strips { words: of_added, stride: added_words * K::Added::TILE };
        run(Activations { of_product, of_added }, tokens)?;
    }
    Ok(())
}

/// Packs a left side, each tile a task.
fn pack_tiles<K: Kernel>(x: Rows<'_, f32>, to: &mut [u32]) {
    to.par_chunks_mut(K::words(x.cols) * K::TILE).enumerate().for_each(|(tile, to)| {
        let rows = tile * K::TILE..((tile + 1) * K::TILE).min(x.rows);
        // SAFETY: `Panels` are made only where the kernel is possible.
        unsafe { K::tiles(x.part(rows, 0..x.cols), to) };
    });
}

/// Unpacks rows of W, some columns of each, for sums along the columns.
fn pack_rows<K: Kernel>(
    weights: &HostBlocks,
    rows: Range<usize>,
    depth: Range<usize>,
    to: &mut Scratch,
) -> Result<()> {
    let (cols, first) = (depth.len(), rows.start);
    let (panels, unpacked) = to.panels_and_rows::<K::Weight>();
    for group in parts(rows, GROUP) {
        let (n, column) = (group.len(), group.start - first);
        K::Weight::unpack(weights, group, depth.clone(), &mut unpacked[..n * cols])?;
        // SAFETY: see `pack_tiles`.
        unsafe { K::weight_columns(Rows::new(unpacked, cols, n, cols), column, panels) };
    }
    Ok(())
}

/// Unpacks rows of W, some columns of each, for sums along the rows.
fn pack_columns<K: Kernel>(
    weights: &HostBlocks,
    rows: Range<usize>,
    columns: Range<usize>,
    to: &mut Scratch,
) -> Result<()> {
    let (cols, terms, first) = (columns.len(), rows.len(), rows.start);
    let (panels, unpacked) = to.panels_and_rows::<K::Weight>();
    for group in parts(rows, K::LINES) {
        let (n, term) = (group.len(), group.start - first);
        K::Weight::unpack(weights, group, columns.clone(), &mut unpacked[..n * cols])?;
        // SAFETY: see `pack_tiles`.
        unsafe { K::weight_lines(Rows::new(unpacked, cols, n, cols), term, terms, panels) };
    }
    Ok(())
}

/// All tokens against packed weights: some columns of the result, some terms of their sums.
fn multiply<K: Kernel>(
    x: Activations<'_>,
    panels: &[u32],
    depth: Range<usize>,
    columns: Range<usize>,
    target: Target,
) {
    let Strips { words, stride } = x.of_product;
    let tiles = Strips { words: &words[K::words(depth.start) * K::TILE..], stride };
    let out = target.out(&(0..target.rows), &columns, depth.start == 0);
    let words = K::words(depth.len());
    let panels = Strips { words: panels, stride: words * K::PANEL };
    // SAFETY: the columns are this task's alone; see `pack_tiles`.
    unsafe { K::multiply(words, tiles, panels, (target.rows, columns.len()), out) };
}

/// The terms that are added to sums that have begun.
fn multiply_added<K: Kernel>(
    x: Activations<'_>,
    rank: usize,
    panels: &[u32],
    columns: Range<usize>,
    target: Target,
) {
    let out = target.out(&(0..target.rows), &columns, false);
    let words = K::words(rank);
    let panels = Strips { words: panels, stride: words * K::PANEL };
    // SAFETY: as in `multiply`.
    unsafe { K::multiply(words, x.of_added, panels, (target.rows, columns.len()), out) };
}
