//! Parts of device buffers: what an op reads and what it writes.

use std::ops::Range;

/// Device memory of one element type, allocated once.
pub trait Buffer: Send + Sync + Sized {
    /// How many elements it holds.
    fn len(&self) -> usize;

    /// Whether it holds nothing.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of it, for reading.
    fn all(&self) -> View<'_, Self> {
        self.part(0..self.len())
    }

    /// A range of it, for reading.
    ///
    /// # Panics
    /// When the range is not inside the buffer, as slicing does.
    fn part(&self, range: Range<usize>) -> View<'_, Self> {
        check(&range, self.len());
        View { buffer: self, start: range.start, len: range.len() }
    }

    /// The first `len` elements, for reading.
    fn first(&self, len: usize) -> View<'_, Self> {
        self.part(0..len)
    }

    /// All of it, for writing.
    fn all_mut(&mut self) -> ViewMut<'_, Self> {
        let len = self.len();
        self.part_mut(0..len)
    }

    /// A range of it, for writing.
    ///
    /// # Panics
    /// As [`Buffer::part`].
    fn part_mut(&mut self, range: Range<usize>) -> ViewMut<'_, Self> {
        check(&range, self.len());
        ViewMut { buffer: self, start: range.start, len: range.len() }
    }

    /// The first `len` elements, for writing.
    fn first_mut(&mut self, len: usize) -> ViewMut<'_, Self> {
        self.part_mut(0..len)
    }
}

fn check(range: &Range<usize>, len: usize) {
    assert!(range.start <= range.end && range.end <= len, "range {range:?} of a buffer of {len}");
}

/// A range of a buffer, for reading.
#[derive(Debug)]
pub struct View<'a, B> {
    buffer: &'a B,
    start: usize,
    len: usize,
}

impl<B> Clone for View<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B> Copy for View<'_, B> {}

impl<'a, B> View<'a, B> {
    /// The buffer this is a range of.
    pub fn buffer(&self) -> &'a B {
        self.buffer
    }

    /// The range.
    pub fn range(&self) -> Range<usize> {
        self.start..self.start + self.len
    }

    /// How many elements it covers.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it covers nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// A range of this range.
    ///
    /// # Panics
    /// When it is not inside.
    pub fn part(self, range: Range<usize>) -> Self {
        check(&range, self.len);
        Self { buffer: self.buffer, start: self.start + range.start, len: range.len() }
    }

    /// This range as a dense (rows, cols) matrix.
    ///
    /// # Panics
    /// When it holds fewer elements.
    pub fn matrix(self, rows: usize, cols: usize) -> Matrix<'a, B> {
        Matrix { view: self.part(0..rows * cols), rows, cols, stride: cols }
    }
}

/// A range of a buffer, for writing.
#[derive(Debug)]
pub struct ViewMut<'a, B> {
    buffer: &'a mut B,
    start: usize,
    len: usize,
}

impl<'a, B> ViewMut<'a, B> {
    /// The buffer this is a range of.
    pub fn into_buffer(self) -> &'a mut B {
        self.buffer
    }

    /// The range.
    pub fn range(&self) -> Range<usize> {
        self.start..self.start + self.len
    }

    /// How many elements it covers.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it covers nothing.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The same range, for reading what was written.
    pub fn into_view(self) -> View<'a, B> {
        View { buffer: self.buffer, start: self.start, len: self.len }
    }

    /// The same range for a shorter time.
    pub fn reborrow(&mut self) -> ViewMut<'_, B> {
        ViewMut { buffer: self.buffer, start: self.start, len: self.len }
    }

    /// A range of this range.
    ///
    /// # Panics
    /// When it is not inside.
    pub fn part(self, range: Range<usize>) -> Self {
        check(&range, self.len);
        Self { buffer: self.buffer, start: self.start + range.start, len: range.len() }
    }

    /// This range as a dense (rows, cols) matrix.
    ///
    /// # Panics
    /// When it holds fewer elements.
    pub fn matrix(self, rows: usize, cols: usize) -> MatrixMut<'a, B> {
        MatrixMut { view: self.part(0..rows * cols), rows, cols, stride: cols }
    }
}

/// A matrix inside a buffer, for reading: row i begins at i · stride.
#[derive(Debug)]
pub struct Matrix<'a, B> {
    /// Where it lies.
    pub view: View<'a, B>,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Elements from one row to the next, at least `cols`.
    pub stride: usize,
}

impl<B> Clone for Matrix<'_, B> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<B> Copy for Matrix<'_, B> {}

impl<B> Matrix<'_, B> {
    /// Some of the columns.
    ///
    /// # Panics
    /// When they are not inside.
    pub fn columns(self, range: Range<usize>) -> Self {
        check(&range, self.cols);
        let (start, cols) = (range.start, range.len());
        let view = self.view.part(start.min(self.view.len)..self.view.len);
        Self { view, rows: self.rows, cols, stride: self.stride }
    }
}

/// A matrix inside a buffer, for writing: row i begins at i · stride.
#[derive(Debug)]
pub struct MatrixMut<'a, B> {
    /// Where it lies.
    pub view: ViewMut<'a, B>,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
    /// Elements from one row to the next, at least `cols`.
    pub stride: usize,
}

impl<B> MatrixMut<'_, B> {
    /// Some of the columns.
    ///
    /// # Panics
    /// When they are not inside.
    pub fn columns(self, range: Range<usize>) -> Self {
        check(&range, self.cols);
        let (start, cols, len) = (range.start, range.len(), self.view.len);
        Self { view: self.view.part(start.min(len)..len), rows: self.rows, cols, stride: self.stride }
    }
}
