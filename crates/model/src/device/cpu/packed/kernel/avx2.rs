//! Vectors of 8 f32 with fused multiply-add.

use std::arch::x86_64::*;

use super::super::rows::Rows;
use super::super::vectors::{Avx2, Vectors, transposed};
use super::{DenseKernel, Kernel, Out, Strips, blocks, by_rows, line_words, write};

/// Rows of a tile: with two vectors of the right side their sums fill 12 of 16 registers.
const TILE: usize = 6;
/// Columns of a panel: two vectors.
const PANEL: usize = 16;
const LANES: usize = 8;

/// Whether the processor has the instructions.
pub(in super::super) fn is_possible() -> bool {
    use std::arch::is_x86_feature_detected as has;
    has!("avx2") && has!("fma")
}

/// f32.
pub(in super::super) enum Avx2F32 {}

impl Kernel for Avx2F32 {
    const TILE: usize = TILE;
    const PANEL: usize = PANEL;
    type Weight = f32;
    type Added = Self;

    fn words(terms: usize) -> usize {
        terms
    }

    #[target_feature(enable = "avx2,fma")]
    unsafe fn tiles(x: Rows<'_, f32>, to: &mut [u32]) {
        for (tile, to) in to.chunks_mut(x.cols * TILE).take(x.rows.div_ceil(TILE)).enumerate() {
            lay_down(x.part(tile * TILE..((tile + 1) * TILE).min(x.rows), 0..x.cols), TILE, to);
        }
    }

    #[target_feature(enable = "avx2,fma")]
    unsafe fn weight_columns(x: Rows<'_, f32>, first: usize, to: &mut [u32]) {
        // SAFETY: the caller's promise is the callee's.
        unsafe { Self::columns(x, first, to) };
    }

    #[target_feature(enable = "avx2,fma")]
    unsafe fn weight_lines(x: Rows<'_, f32>, first: usize, terms: usize, to: &mut [u32]) {
        // SAFETY: the caller's promise is the callee's.
        unsafe { Self::lines(x, first, terms, to) };
    }

    #[target_feature(enable = "avx2,fma")]
    unsafe fn multiply(words: usize, a: Strips<'_>, b: Strips<'_>, (rows, cols): (usize, usize), out: Out) {
        for (index, rows) in blocks(rows, TILE) {
            let a = a.strip(index, words * TILE).as_ptr();
            for panel in 0..cols.div_ceil(PANEL) {
                let (column, b) = (panel * PANEL, b.strip(panel, words * PANEL));
                // SAFETY: the caller's promises; a and b hold `words`.
                unsafe {
                    let start = out.start.add(index * TILE * out.stride + column);
                    let (b, cols, out) = (b.as_ptr(), PANEL.min(cols - column), Out { start, ..out });
                    by_rows!(rows, [6 5 4 3 2 1], N => block::<N>(words, a, b, cols, out));
                }
            }
        }
    }
}

impl DenseKernel for Avx2F32 {
    const TERMS: usize = 1;
    type Vectors = Avx2;
    const GRAIN: usize = 1;

    #[target_feature(enable = "avx2,fma")]
    unsafe fn tiles_down(x: Rows<'_, f32>, to: &mut [u32]) {
        for (tile, to) in to.chunks_mut(x.rows * TILE).take(x.cols.div_ceil(TILE)).enumerate() {
            let columns = tile * TILE..((tile + 1) * TILE).min(x.cols);
            for (i, to) in to.chunks_exact_mut(TILE).enumerate() {
                copy_bits(&x.row(i)[columns.clone()], to);
            }
        }
    }

    #[target_feature(enable = "avx2,fma")]
    unsafe fn columns(x: Rows<'_, f32>, first: usize, to: &mut [u32]) {
        for row in (0..x.rows).step_by(PANEL) {
            let panel = &mut to[(first + row) / PANEL * x.cols * PANEL..][..x.cols * PANEL];
            lay_down(x.part(row..(row + PANEL).min(x.rows), 0..x.cols), PANEL, panel);
        }
    }

    #[target_feature(enable = "avx2,fma")]
    unsafe fn lines(x: Rows<'_, f32>, first: usize, terms: usize, to: &mut [u32]) {
        let (words, _) = line_words::<Self>(first, x.rows, terms);
        for column in (0..x.cols).step_by(PANEL) {
            let panel = &mut to[column * words + first * PANEL..];
            for (i, to) in panel.chunks_exact_mut(PANEL).enumerate().take(x.rows) {
                copy_bits(&x.row(i)[column..(column + PANEL).min(x.cols)], to);
            }
        }
    }
}

/// A line of up to 16 numbers.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn copy_bits(from: &[f32], to: &mut [u32]) {
    if let (Some(from), Some(to)) = (from.first_chunk::<PANEL>(), to.first_chunk_mut::<PANEL>()) {
        // SAFETY: both have two vectors.
        unsafe {
            for half in [0, LANES] {
                let x = _mm256_loadu_ps(from.as_ptr().add(half));
                _mm256_storeu_ps(to.as_mut_ptr().add(half).cast(), x);
            }
        }
    } else {
        from.iter().zip(to).for_each(|(x, to)| *to = x.to_bits());
    }
}

/// Turns rows into columns of lines of `width`, 8 x 8 numbers at a time.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn lay_down(x: Rows<'_, f32>, width: usize, to: &mut [u32]) {
    for first in (0..x.rows).step_by(LANES) {
        let rows = LANES.min(x.rows - first);
        for column in (0..x.cols).step_by(LANES) {
            let columns = LANES.min(x.cols - column);
            let mut square = [_mm256_setzero_ps(); LANES];
            for (i, line) in square.iter_mut().enumerate().take(rows) {
                // SAFETY: the processor has the instructions.
                *line = unsafe { Avx2::floats(&x.row(first + i)[column..]) };
            }
            for (j, line) in transposed(square).into_iter().enumerate().take(columns) {
                let to = &mut to[(column + j) * width + first..][..rows];
                // SAFETY: only as many numbers as there are are written.
                unsafe { _mm256_maskstore_ps(to.as_mut_ptr().cast(), Avx2::lanes(rows), line) };
            }
        }
    }
}

/// One block of the result from a tile of a and a panel of b      a (words, TILE), b (words, PANEL)
///
/// # Safety
/// AVX2 and FMA; a and b hold `words`; `out` has N rows and the columns.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn block<const N: usize>(words: usize, a: *const u32, b: *const u32, cols: usize, out: Out) {
    let (a, b) = (a.cast::<f32>(), b.cast::<f32>());
    let mut sums = [[_mm256_setzero_ps(); 2]; N];
    for p in 0..words {
        // SAFETY: p is below `words`, i below TILE.
        unsafe {
            let at = b.add(p * PANEL);
            let (b0, b1) = (_mm256_loadu_ps(at), _mm256_loadu_ps(at.add(LANES)));
            for (i, sum) in sums.iter_mut().enumerate() {
                let x = _mm256_set1_ps(*a.add(p * TILE + i));
                sum[0] = _mm256_fmadd_ps(x, b0, sum[0]);
                sum[1] = _mm256_fmadd_ps(x, b1, sum[1]);
            }
        }
    }
    // SAFETY: the caller's promise.
    unsafe { write::<Avx2, N>(sums, cols, out) };
}
