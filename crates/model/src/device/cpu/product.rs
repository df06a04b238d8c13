//! Matrix products in f32: bounds-checked operands in front of the `gemm` crate.
//!
//! `unsafe` because `gemm` takes raw pointers and because tasks write disjoint columns of one matrix. The bits do not
//! depend on timing: `gemm` splits over rows and columns only, never over the inner dimension.

#![allow(unsafe_code)]

use std::marker::PhantomData;

use gemm::Parallelism;

use crate::device::{Operand, Write};

/// A matrix for reading: element (i, j) at i · row_stride + j · col_stride.
#[derive(Clone, Copy)]
pub(crate) struct Mat<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Mat<'a> {
    /// A row-major matrix.
    ///
    /// # Panics
    /// When `data` is too short.
    pub(crate) fn new(data: &'a [f32], rows: usize, cols: usize, stride: usize) -> Self {
        assert!(extent(rows, cols, stride) <= data.len(), "({rows}, {cols}) by {stride} in {}", data.len());
        Self { data, rows, cols, row_stride: stride, col_stride: 1 }
    }

    /// The transposed matrix.
    pub(crate) fn t(self) -> Self {
        let Self { data, rows, cols, row_stride, col_stride } = self;
        Self { data, rows: cols, cols: rows, row_stride: col_stride, col_stride: row_stride }
    }

    /// As it lies or transposed.
    pub(crate) fn read_as(self, operand: Operand) -> Self {
        match operand {
            Operand::Plain => self,
            Operand::Transposed => self.t(),
        }
    }
}

/// A row-major matrix for writing; may be columns of a wider one that other tasks write beside it.
pub(crate) struct MatMut<'a> {
    start: *mut f32,
    rows: usize,
    cols: usize,
    stride: usize,
    life: PhantomData<&'a mut [f32]>,
}

impl<'a> MatMut<'a> {
    /// A row-major matrix.
    ///
    /// # Panics
    /// When `data` is too short.
    pub(crate) fn new(data: &'a mut [f32], rows: usize, cols: usize, stride: usize) -> Self {
        assert!(extent(rows, cols, stride) <= data.len(), "({rows}, {cols}) by {stride} in {}", data.len());
        Self { start: data.as_mut_ptr(), rows, cols, stride, life: PhantomData }
    }
}

/// How many floats a matrix spans.
fn extent(rows: usize, cols: usize, stride: usize) -> usize {
    assert!(cols <= stride || rows <= 1, "{cols} columns by {stride}");
    if rows == 0 || cols == 0 { 0 } else { (rows - 1) * stride + cols }
}

/// Whether a product may use all threads or runs inside a task that is one of many.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Threads {
    All,
    One,
}

/// c (=|+=) alpha · a · b
///
/// # Panics
/// When the shapes disagree.
pub(crate) fn multiply(alpha: f32, a: Mat<'_>, b: Mat<'_>, write: Write, c: MatMut<'_>, threads: Threads) {
    assert!((a.rows, b.cols, a.cols) == (c.rows, c.cols, b.rows), "shapes of a product disagree");
    let parallelism = match threads {
        Threads::All => Parallelism::Rayon(0),
        Threads::One => Parallelism::None,
    };
    // SAFETY: the constructors of `Mat` and `MatMut` checked that every element of each operand lies in memory that
    // the operand borrows; c is borrowed exclusively, so it overlaps neither a nor b.
    unsafe {
        gemm::gemm(
            c.rows,
            c.cols,
            a.cols,
            c.start,
            1,
            c.stride as isize,
            write == Write::Add,
            a.data.as_ptr(),
            a.col_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0,
            alpha,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// A matrix that tasks write in parallel, each its own rows and columns.
#[derive(Clone, Copy)]
pub(crate) struct Shared<'a> {
    start: *mut f32,
    rows: usize,
    stride: usize,
    life: PhantomData<&'a mut [f32]>,
}

// SAFETY: `Shared` gives access only through unsafe methods whose callers promise that tasks touch disjoint elements.
unsafe impl Send for Shared<'_> {}
// SAFETY: as above.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    /// Shares a dense row-major matrix of `stride` columns.
    pub(crate) fn new(data: &'a mut [f32], stride: usize) -> Self {
        Self { start: data.as_mut_ptr(), rows: data.len() / stride, stride, life: PhantomData }
    }

    /// The block (rows, cols) at (row, col), for writing.
    ///
    /// # Panics
    /// When it is not inside.
    ///
    /// # Safety
    /// No other access to these elements may happen while the result lives.
    pub(crate) unsafe fn block(&self, row: usize, rows: usize, col: usize, cols: usize) -> MatMut<'a> {
        assert!(row + rows <= self.rows && col + cols <= self.stride, "block outside of its matrix");
        // SAFETY: the assertion above keeps the offset inside the borrowed slice.
        let start = unsafe { self.start.add(row * self.stride + col) };
        MatMut { start, rows, cols, stride: self.stride, life: PhantomData }
    }

    /// The columns `col .. col + cols` of one row, for writing.
    ///
    /// # Panics
    /// When they are not inside.
    ///
    /// # Safety
    /// As [`Shared::block`].
    pub(crate) unsafe fn row(&self, row: usize, col: usize, cols: usize) -> &'a mut [f32] {
        assert!(row < self.rows && col + cols <= self.stride, "row outside of its matrix");
        // SAFETY: inside the borrowed slice by the assertion; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.stride + col), cols) }
    }
}
