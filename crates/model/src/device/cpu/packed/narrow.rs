//! Products of a wide matrix and a narrow one, a few times sixteen numbers, as an adapter's ranks are, in f32 with AVX-512:
//! the wide one is read where it lies, once, and never packed.

use std::arch::x86_64::*;
use std::ops::Range;

use rayon::prelude::*;

use super::dense::Side;
use super::kernel::{Out, put};
use super::pack::{LANES, floats, lanes};
use super::rows::Rows;
use super::{ACTIVATION_WORDS, Panels, Target, parts};
use crate::device::Operand;

/// Most columns of a narrow matrix: four vectors.
const MOST: usize = 4 * LANES;
/// Columns of a narrow matrix at the least: fewer multiplications for each number of the wide one are not worth it.
const LEAST: usize = 8;
/// Columns of the wide matrix that a task takes: sums of all ranks beside them stay in a first-level cache.
const STRIP: usize = 4 * CHUNK;
/// Columns that meet eight of the narrow matrix at once: their sums fill 24 of 32 registers.
const CHUNK: usize = 3 * LANES;
/// Columns of the narrow matrix at once.
const EIGHT: usize = 8;
/// Rows of both that are summed before the next columns: with a strip they stay in a second-level cache.
const DEPTH: usize = 64;

/// Whether a side of so many rows or columns is narrow.
fn is_narrow(size: usize) -> bool {
    (LEAST..=MOST).contains(&size)
}

/// c (=|+=) alpha · a · b where one side is narrow; whether it was made.
pub(super) fn matmul(panels: &Panels, alpha: f32, a: Side<'_>, b: Side<'_>, target: Target) -> bool {
    match (a.operand, b.operand) {
        (Operand::Plain, _) if is_narrow(target.cols) && a.x.cols * MOST <= ACTIVATION_WORDS => {
            along(panels, alpha, a.x, b, target);
        }
        (Operand::Transposed, Operand::Plain) if is_narrow(target.rows) => {
            down(alpha, b.x, a.x, target, Order::NarrowFirst);
        }
        (Operand::Transposed, Operand::Plain) if is_narrow(target.cols) => {
            down(alpha, a.x, b.x, target, Order::WideFirst);
        }
        _ => return false,
    }
    true
}

/// Sums along the rows of the wide matrix, which is the left one.
fn along(panels: &Panels, alpha: f32, wide: Rows<'_, f32>, narrow: Side<'_>, target: Target) {
    let vectors = target.cols.div_ceil(LANES);
    let width = vectors * LANES;
    let mut room = panels.activations();
    let lines: &mut [f32] = bytemuck::cast_slice_mut(&mut room.words()[..wide.cols * width]);
    lay_lines(alpha, narrow, width, lines);
    let lines = &*lines;
    let rows_at_once = [24, 12, 8, 6][vectors - 1];
    (0..wide.rows.div_ceil(rows_at_once)).into_par_iter().for_each(|task| {
        let rows = task * rows_at_once..((task + 1) * rows_at_once).min(wide.rows);
        let out = target.out(&rows, &(0..target.cols), true);
        let part = wide.part(rows, 0..wide.cols);
        // SAFETY: `Panels` of this kernel are made only where the processor has AVX-512; the rows are this task's.
        unsafe {
            match vectors {
                1 => along_rows::<24, 1>(part, lines, target.cols, out),
                2 => along_rows::<12, 2>(part, lines, target.cols, out),
                3 => along_rows::<8, 3>(part, lines, target.cols, out),
                _ => along_rows::<6, 4>(part, lines, target.cols, out),
            }
        }
    });
}

/// alpha · narrow as lines of `width`, one for each term.
fn lay_lines(alpha: f32, narrow: Side<'_>, width: usize, to: &mut [f32]) {
    let x = narrow.x;
    let by_terms = |term: usize, to: &mut [f32]| {
        to.fill(0.0);
        match narrow.operand {
            Operand::Plain => x.row(term).iter().zip(to).for_each(|(x, to)| *to = alpha * x),
            Operand::Transposed => (0..x.rows).zip(to).for_each(|(i, to)| *to = alpha * x.row(i)[term]),
        }
    };
    to.par_chunks_mut(64 * width).enumerate().for_each(|(part, to)| {
        to.chunks_exact_mut(width).enumerate().for_each(|(i, to)| by_terms(64 * part + i, to));
    });
}

/// Up to N rows of the wide matrix      lines (terms, 16 V)
///
/// # Safety
/// The processor has AVX-512; `out` has the rows and columns and is the caller's alone.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn along_rows<const N: usize, const V: usize>(
    wide: Rows<'_, f32>,
    lines: &[f32],
    cols: usize,
    out: Out,
) {
    let mut sums = [[_mm512_setzero_ps(); V]; N];
    // Rows past the last are the last again, and their sums are left out.
    let rows: [*const f32; N] = std::array::from_fn(|i| wide.row(i.min(wide.rows - 1)).as_ptr());
    for (p, line) in lines.chunks_exact(V * LANES).enumerate().take(wide.cols) {
        // SAFETY: p is below the rows' length; a line has V vectors.
        unsafe {
            let line: [__m512; V] = std::array::from_fn(|v| _mm512_loadu_ps(line.as_ptr().add(v * LANES)));
            for (row, sums) in rows.iter().zip(&mut sums) {
                let x = _mm512_set1_ps(*row.add(p));
                for (sum, line) in sums.iter_mut().zip(line) {
                    *sum = _mm512_fmadd_ps(x, line, *sum);
                }
            }
        }
    }
    for (i, sums) in sums.into_iter().enumerate().take(wide.rows) {
        for (v, sum) in sums.into_iter().enumerate() {
            // SAFETY: only the columns of a row of `out` are touched.
            unsafe { put(sum, lanes(cols.saturating_sub(v * LANES)), out, i, v * LANES) };
        }
    }
}

/// Which side the rows of the result are of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Order {
    NarrowFirst,
    WideFirst,
}

/// Sums down the rows of both matrices, which are as many.
fn down(alpha: f32, wide: Rows<'_, f32>, narrow: Rows<'_, f32>, target: Target, order: Order) {
    (0..wide.cols.div_ceil(STRIP)).into_par_iter().for_each(|task| {
        let columns = task * STRIP..((task + 1) * STRIP).min(wide.cols);
        let mut sums = [0.0f32; MOST * STRIP];
        for rows in parts(0..wide.rows, DEPTH) {
            let (wide, narrow) =
                (wide.part(rows.clone(), columns.clone()), narrow.part(rows, 0..narrow.cols));
            // SAFETY: as in `along`.
            unsafe { add_down(wide, narrow, &mut sums) };
        }
        write_down(alpha, &sums, columns, narrow.cols, target, order);
    });
}

/// sums += narrowᵀ · wide      sums (columns of narrow, STRIP)
///
/// # Safety
/// The processor has AVX-512.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn add_down(wide: Rows<'_, f32>, narrow: Rows<'_, f32>, sums: &mut [f32; MOST * STRIP]) {
    for chunk in parts(0..wide.cols, CHUNK) {
        for few in parts(0..narrow.cols, EIGHT) {
            let at = few.start * STRIP + chunk.start;
            let sums = &mut sums[at..];
            let wide = wide.part(0..wide.rows, chunk.clone());
            if few.len() == EIGHT {
                // SAFETY: eight columns are there.
                unsafe { add_chunk::<EIGHT>(wide, narrow.part(0..narrow.rows, few), sums) };
            } else {
                for (i, one) in few.enumerate() {
                    // SAFETY: one column is there.
                    unsafe {
                        add_chunk::<1>(
                            wide,
                            narrow.part(0..narrow.rows, one..one + 1),
                            &mut sums[i * STRIP..],
                        )
                    };
                }
            }
        }
    }
}

/// N columns of the narrow matrix and up to 48 of the wide one.
///
/// # Safety
/// The processor has AVX-512.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
unsafe fn add_chunk<const N: usize>(wide: Rows<'_, f32>, narrow: Rows<'_, f32>, sums: &mut [f32]) {
    let part = |v: usize| (v * LANES).min(wide.cols);
    let mut totals = [[_mm512_setzero_ps(); 3]; N];
    for row in 0..wide.rows {
        let (x, of_narrow) = (wide.row(row), narrow.row(row));
        let x = [floats(&x[part(0)..]), floats(&x[part(1)..]), floats(&x[part(2)..])];
        for (total, factor) in totals.iter_mut().zip(of_narrow) {
            let factor = _mm512_set1_ps(*factor);
            for (total, x) in total.iter_mut().zip(x) {
                *total = _mm512_fmadd_ps(x, factor, *total);
            }
        }
    }
    for (total, sums) in totals.into_iter().zip(sums.chunks_mut(STRIP)) {
        for (v, total) in total.into_iter().enumerate() {
            let sums = &mut sums[v * LANES..][..LANES];
            // SAFETY: a chunk's sums have three vectors.
            unsafe {
                _mm512_storeu_ps(sums.as_mut_ptr(), _mm512_add_ps(total, _mm512_loadu_ps(sums.as_ptr())))
            };
        }
    }
}

/// Writes the sums of some columns of the wide matrix.
fn write_down(
    alpha: f32,
    sums: &[f32; MOST * STRIP],
    columns: Range<usize>,
    ranks: usize,
    target: Target,
    order: Order,
) {
    let all = 0..ranks;
    let (rows, cols) =
        if order == Order::NarrowFirst { (all, columns.clone()) } else { (columns.clone(), all) };
    let out = target.out(&rows, &cols, true);
    for i in 0..rows.len() {
        // SAFETY: `out` has the rows and columns, which are this task's alone.
        let to = unsafe { std::slice::from_raw_parts_mut(out.start.add(i * out.stride), cols.len()) };
        for (j, to) in to.iter_mut().enumerate() {
            let (rank, column) = if order == Order::NarrowFirst { (i, j) } else { (j, i) };
            let sum = alpha * sums[rank * STRIP + column];
            *to = if out.adds { *to + sum } else { sum };
        }
    }
}
