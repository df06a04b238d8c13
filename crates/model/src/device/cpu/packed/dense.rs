//! Products of two dense matrices, as adapters ask for them: the right side is packed once for all tasks.

use std::ops::Range;

use rayon::prelude::*;

use super::{
    ACTIVATION_WORDS, AmxBf16, Avx2F32, Avx2Int16, Avx512Bf16, Avx512F32, Avx512Int16, AvxVnniInt16, Dense,
    DenseKernel, Panels, ROW_FLOATS, Rows, Scratch, Strips, Target, clear_beside, narrow, parts, with_dense,
};
use crate::device::{Operand, Write};

/// Terms of a sum that are packed at once.
const DEPTH: usize = 1024;
/// Products of fewer multiplications are not worth packing.
const LEAST: usize = 1 << 16;
/// Columns that a task packs.
const STRIP: usize = 128;

/// A matrix as it lies, and how it is read.
#[derive(Clone, Copy)]
pub(in super::super) struct Side<'a> {
    pub(super) x: Rows<'a, f32>,
    pub(super) operand: Operand,
}

impl<'a> Side<'a> {
    pub(in super::super) fn new(
        data: &'a [f32],
        stride: usize,
        (rows, cols): (usize, usize),
        operand: Operand,
    ) -> Self {
        Self { x: Rows::new(data, stride, rows, cols), operand }
    }

    /// Rows and columns as it is read.
    fn shape(&self) -> (usize, usize) {
        match self.operand {
            Operand::Plain => (self.x.rows, self.x.cols),
            Operand::Transposed => (self.x.cols, self.x.rows),
        }
    }

    /// A part, rows and columns as it is read, as it lies.
    fn part(&self, rows: Range<usize>, cols: Range<usize>) -> Rows<'a, f32> {
        match self.operand {
            Operand::Plain => self.x.part(rows, cols),
            Operand::Transposed => self.x.part(cols, rows),
        }
    }
}

/// Whether a product (m, k) · (k, n) is made here: large enough to be worth packing, the right side narrow enough for its
/// room.
pub(in super::super) fn suits(m: usize, n: usize, k: usize) -> bool {
    let is_large = m.saturating_mul(n).saturating_mul(k) >= LEAST && m > 8 && n > 1 && k > 1;
    is_large && n.next_multiple_of(STRIP) * 64 <= ACTIVATION_WORDS
}

/// c (=|+=) alpha · a · b      c with its stride
pub(in super::super) fn matmul(
    panels: &Panels,
    alpha: f32,
    a: Side<'_>,
    b: Side<'_>,
    write: Write,
    (c, stride): (&mut [f32], usize),
) {
    let target = Target::new(c, a.shape().0, b.shape().1, stride, write);
    if narrow::matmul(panels, alpha, a, b, target) {
        return;
    }
    with_dense!(panels.dense, multiply(panels, alpha, a, b, target));
}

fn multiply<K: DenseKernel>(panels: &Panels, alpha: f32, a: Side<'_>, b: Side<'_>, target: Target) {
    let ((m, k), (_, n)) = (a.shape(), b.shape());
    let room = ACTIVATION_WORDS / n.next_multiple_of(STRIP) / K::words(64) * 64;
    let tasks = Tasks::new::<K>(m, n);
    let mut right = panels.activations();
    for depth in parts(0..k, DEPTH.min(room)) {
        let words = K::words(depth.len());
        let right = &mut right.words()[..words * n.next_multiple_of(K::PANEL)];
        right.par_chunks_mut(words * STRIP).enumerate().for_each(|(strip, to)| {
            let columns = strip * STRIP..((strip + 1) * STRIP).min(n);
            pack_right::<K>(alpha, b, depth.clone(), columns, &mut panels.scratch(), to);
        });
        let right = &*right;
        (0..tasks.count()).into_par_iter().for_each(|task| {
            let (rows, columns) = tasks.part(task);
            let scratch = &mut *panels.scratch();
            let (left, _) = scratch.panels_and_rows::<f32>();
            let of_columns = Strips { words: &right[columns.start * words..], stride: words * K::PANEL };
            for rows in parts(rows, K::TILE) {
                let out = target.out(&rows, &columns, depth.start == 0);
                let size = (rows.len(), columns.len());
                let (left, part) = (&mut left[..words * K::TILE], a.part(rows, depth.clone()));
                // SAFETY: `Panels` are made only where the kernel is possible; the part of the target is this task's.
                unsafe {
                    match a.operand {
                        Operand::Plain => K::tiles(part, left),
                        Operand::Transposed => K::tiles_down(part, left),
                    }
                    let left = Strips { words: left, stride: left.len() };
                    K::multiply(words, left, of_columns, size, out);
                }
            }
        });
    }
}

/// Packs some columns of alpha · b.
fn pack_right<K: DenseKernel>(
    alpha: f32,
    b: Side<'_>,
    depth: Range<usize>,
    columns: Range<usize>,
    scratch: &mut Scratch,
    to: &mut [u32],
) {
    clear_beside::<K>(columns.len(), depth.len(), to);
    let part = b.part(depth.clone(), columns);
    let (_, scaled) = scratch.panels_and_rows::<f32>();
    let at_once =
        if alpha == 1.0 { part.rows } else { (ROW_FLOATS / part.cols / K::LINES * K::LINES).max(1) };
    for rows in parts(0..part.rows, at_once) {
        let mut some = part.part(rows.clone(), 0..part.cols);
        if alpha != 1.0 {
            some = some.scaled(alpha, scaled);
        }
        // SAFETY: `Panels` are made only where the kernel is possible.
        unsafe {
            match b.operand {
                Operand::Plain => K::lines(some, rows.start, depth.len(), to),
                Operand::Transposed => K::columns(some, rows.start, to),
            }
        }
    }
}

/// Parts of a result, each its own.
#[derive(Clone, Copy)]
struct Tasks {
    m: usize,
    n: usize,
    rows: usize,
    columns: usize,
}

impl Tasks {
    /// About eight for each thread: tall results are cut into rows, wide ones into columns.
    fn new<K: DenseKernel>(m: usize, n: usize) -> Self {
        let wanted = 8 * rayon::current_num_threads();
        let tiles = m.div_ceil(K::TILE);
        let rows = tiles.div_ceil(wanted) * K::TILE;
        let along = n.div_ceil(K::PANEL).div_ceil(wanted.div_ceil(m.div_ceil(rows)));
        Self { m, n, rows, columns: (along * K::PANEL).next_multiple_of(STRIP) }
    }

    fn count(&self) -> usize {
        self.m.div_ceil(self.rows) * self.n.div_ceil(self.columns)
    }

    fn part(&self, task: usize) -> (Range<usize>, Range<usize>) {
        let across = self.n.div_ceil(self.columns);
        let of = |index: usize, size: usize, all: usize| index * size..((index + 1) * size).min(all);
        (of(task / across, self.rows, self.m), of(task % across, self.columns, self.n))
    }
}
