//! Rows of a matrix, as packing reads them.

use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

/// Bytes of a line of a cache.
const LINE_BYTES: usize = 64;

/// Rows, `stride` numbers apart, each of `cols` numbers.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a, T> {
    data: &'a [T],
    stride: usize,
    pub rows: usize,
    pub cols: usize,
}

impl<'a, T: Copy> Rows<'a, T> {
    /// The first `rows` rows of `data`, and of each the first `cols` numbers.
    ///
    /// # Panics
    /// When `data` is too short.
    pub(super) fn new(data: &'a [T], stride: usize, rows: usize, cols: usize) -> Self {
        assert!(rows == 0 || (rows - 1) * stride + cols <= data.len(), "rows outside of their matrix");
        Self { data, stride, rows, cols }
    }

    /// Row `i`.
    #[inline(always)]
    pub(super) fn row(&self, i: usize) -> &'a [T] {
        &self.data[i * self.stride..][..self.cols]
    }

    /// Asks for row `i` ahead of its use: rows that lie pages apart are not foreseen by processors.
    #[inline(always)]
    pub(super) fn prefetch(&self, i: usize) {
        if i < self.rows {
            for line in self.row(i).chunks(LINE_BYTES / size_of::<T>()) {
                // SAFETY: every x86-64 processor has the instruction, and it reads nothing.
                unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
            }
        }
    }

    /// Some of the rows, and of each some numbers.
    pub(super) fn part(&self, rows: std::ops::Range<usize>, cols: std::ops::Range<usize>) -> Self {
        Self::new(&self.data[rows.start * self.stride + cols.start..], self.stride, rows.len(), cols.len())
    }
}

impl Rows<'_, f32> {
    /// All of them times a factor, in `to`.
    pub(super) fn scaled<'b>(&self, factor: f32, to: &'b mut [f32]) -> Rows<'b, f32> {
        for (i, to) in to.chunks_exact_mut(self.cols).enumerate().take(self.rows) {
            self.row(i).iter().zip(to).for_each(|(x, to)| *to = factor * x);
        }
        Rows::new(to, self.cols, self.rows, self.cols)
    }
}
