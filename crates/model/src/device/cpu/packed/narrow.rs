//! Products of a wide matrix and a narrow one, a few times sixteen numbers, as an adapter's ranks are, in f32 with AVX-512
//! or AVX2: the wide one is read once, and parts of it are copied beside each other. Where its rows lie, often a power of two
//! apart, few of them would stay in a first-level cache together.

use std::ops::Range;

use rayon::prelude::*;

use super::dense::Side;
use super::kernel::{Dense, Out};
use super::rows::Rows;
use super::vectors::{Avx2, Avx512, Vectors};
use super::{ACTIVATION_WORDS, Panels, Target, parts};
use crate::device::Operand;

/// Most columns of a narrow matrix.
const MOST: usize = 64;
/// Columns of a narrow matrix at the least: fewer multiplications for each number of the wide one are not worth it.
const LEAST: usize = 8;
/// Columns of the wide matrix that a task takes: sums of all ranks beside them stay in a first-level cache.
const STRIP: usize = 192;
/// Rows of both that are summed before the next columns: a strip of them stays in a first-level cache.
const DEPTH: usize = 32;
/// Terms of rows that are copied together, for sums along them.
const TERMS: usize = 256;

/// Some rows of a strip of the wide matrix, beside each other.
type Strip = [f32; DEPTH * STRIP];
/// Sums of a strip: (columns of the narrow matrix, STRIP).
type Sums = [f32; MOST * STRIP];

/// Whether a side of so many rows or columns is narrow.
fn is_narrow(size: usize) -> bool {
    (LEAST..=MOST).contains(&size)
}

/// c (=|+=) alpha · a · b where one side is narrow and the processor multiplies floats so; whether it was made. Where vectors
/// multiply bf16 too, f32 that need no packing are as fast.
pub(super) fn matmul(panels: &Panels, alpha: f32, a: Side<'_>, b: Side<'_>, target: Target) -> bool {
    match panels.dense {
        Dense::Avx512F32 | Dense::Avx512Bf16 => matmul_with::<Avx512>(panels, alpha, a, b, target),
        Dense::Avx2F32 => matmul_with::<Avx2>(panels, alpha, a, b, target),
        _ => false,
    }
}

fn matmul_with<I: Instructions>(
    panels: &Panels,
    alpha: f32,
    a: Side<'_>,
    b: Side<'_>,
    target: Target,
) -> bool {
    match (a.operand, b.operand) {
        (Operand::Plain, _) if is_narrow(target.cols) && a.x.cols * MOST <= ACTIVATION_WORDS => {
            along::<I>(panels, alpha, a.x, b, target);
        }
        (Operand::Transposed, Operand::Plain) if is_narrow(target.rows) => {
            down::<I>(alpha, b.x, a.x, target, Order::NarrowFirst);
        }
        (Operand::Transposed, Operand::Plain) if is_narrow(target.cols) => {
            down::<I>(alpha, a.x, b.x, target, Order::WideFirst);
        }
        _ => return false,
    }
    true
}

/// Compiled for one instruction set.
///
/// # Safety
/// The processor has the instructions.
trait Instructions: Vectors {
    /// Vectors of the narrow matrix's columns that meet the wide one at once.
    const ALONG: usize;
    /// Up to so many rows of the wide matrix do, by the number of vectors, less one: sums fill most registers.
    const ROWS: &'static [usize];

    /// Rows of the wide matrix, as many as [`Instructions::ROWS`] says or fewer, and `cols` columns of lines (terms, width).
    unsafe fn along_rows(wide: Rows<'_, f32>, lines: &[f32], width: usize, cols: usize, out: Out);

    /// sums += narrowᵀ · wide      wide (rows of narrow, STRIP), of which `cols` count
    unsafe fn add_down(wide: &Strip, narrow: Rows<'_, f32>, cols: usize, sums: &mut Sums);
}

impl Instructions for Avx512 {
    const ALONG: usize = 4;
    const ROWS: &'static [usize] = &[24, 12, 8, 6];

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn along_rows(wide: Rows<'_, f32>, lines: &[f32], width: usize, cols: usize, out: Out) {
        // SAFETY: the caller's promise, here and below.
        unsafe {
            match cols.div_ceil(Self::LANES) {
                1 => along_rows::<Self, 24, 1>(wide, lines, width, cols, out),
                2 => along_rows::<Self, 12, 2>(wide, lines, width, cols, out),
                3 => along_rows::<Self, 8, 3>(wide, lines, width, cols, out),
                _ => along_rows::<Self, 6, 4>(wide, lines, width, cols, out),
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn add_down(wide: &Strip, narrow: Rows<'_, f32>, cols: usize, sums: &mut Sums) {
        // SAFETY: as above.
        unsafe { add_down::<Self, 8>(wide, narrow, cols, sums) };
    }
}

impl Instructions for Avx2 {
    const ALONG: usize = 2;
    const ROWS: &'static [usize] = &[12, 6];

    #[target_feature(enable = "avx2,fma")]
    unsafe fn along_rows(wide: Rows<'_, f32>, lines: &[f32], width: usize, cols: usize, out: Out) {
        // SAFETY: as above.
        unsafe {
            match cols.div_ceil(Self::LANES) {
                1 => along_rows::<Self, 12, 1>(wide, lines, width, cols, out),
                _ => along_rows::<Self, 6, 2>(wide, lines, width, cols, out),
            }
        }
    }

    #[target_feature(enable = "avx2,fma")]
    unsafe fn add_down(wide: &Strip, narrow: Rows<'_, f32>, cols: usize, sums: &mut Sums) {
        // SAFETY: as above.
        unsafe { add_down::<Self, 4>(wide, narrow, cols, sums) };
    }
}

/// Sums along the rows of the wide matrix, which is the left one.
fn along<I: Instructions>(
    panels: &Panels,
    alpha: f32,
    wide: Rows<'_, f32>,
    narrow: Side<'_>,
    target: Target,
) {
    let vectors = target.cols.div_ceil(I::LANES);
    let width = vectors * I::LANES;
    let mut room = panels.activations();
    let lines: &mut [f32] = bytemuck::cast_slice_mut(&mut room.words()[..wide.cols * width]);
    lay_lines(alpha, narrow, width, lines);
    let lines = &*lines;
    let rows_at_once = I::ROWS[vectors.min(I::ALONG) - 1];
    (0..wide.rows.div_ceil(rows_at_once)).into_par_iter().for_each(|task| {
        let rows = task * rows_at_once..((task + 1) * rows_at_once).min(wide.rows);
        let part = wide.part(rows.clone(), 0..wide.cols);
        for columns in parts(0..target.cols, I::ALONG * I::LANES) {
            let out = target.out(&rows, &columns, true);
            // SAFETY: `Panels` of this kernel are made only where the processor has it; the rows are this task's.
            unsafe { I::along_rows(part, &lines[columns.start..], width, columns.len(), out) };
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

/// Up to N rows of the wide matrix      lines (terms, width), of which V vectors count
///
/// # Safety
/// The processor has the instructions; `out` has the rows and columns and is the caller's alone.
#[inline(always)]
unsafe fn along_rows<I: Vectors, const N: usize, const V: usize>(
    wide: Rows<'_, f32>,
    lines: &[f32],
    width: usize,
    cols: usize,
    out: Out,
) {
    assert!(wide.cols == 0 || lines.len() >= (wide.cols - 1) * width + V * I::LANES, "a line for each term");
    // Rows past the last are zeros, and their sums are left out.
    let mut copied = [[0.0f32; TERMS]; N];
    // SAFETY: p is below the terms of a part; a line has V vectors.
    unsafe {
        let mut sums = [[I::set_float(0.0); V]; N];
        for terms in parts(0..wide.cols, TERMS) {
            for (i, to) in copied.iter_mut().enumerate().take(wide.rows) {
                to[..terms.len()].copy_from_slice(&wide.row(i)[terms.clone()]);
            }
            let lines = lines.as_ptr().add(terms.start * width);
            for p in 0..terms.len() {
                let mut line = [I::set_float(0.0); V];
                for (v, line) in line.iter_mut().enumerate() {
                    *line = I::load_floats(lines.add(p * width + v * I::LANES));
                }
                for (row, sums) in copied.iter().zip(&mut sums) {
                    let x = I::set_float(*row.as_ptr().add(p));
                    for (sum, line) in sums.iter_mut().zip(line) {
                        *sum = I::multiply_add(x, line, *sum);
                    }
                }
            }
        }
        for (i, sums) in sums.into_iter().enumerate().take(wide.rows) {
            for (v, sum) in sums.into_iter().enumerate() {
                I::put(sum, I::lanes(cols.saturating_sub(v * I::LANES)), out, i, v * I::LANES);
            }
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
fn down<I: Instructions>(
    alpha: f32,
    wide: Rows<'_, f32>,
    narrow: Rows<'_, f32>,
    target: Target,
    order: Order,
) {
    (0..wide.cols.div_ceil(STRIP)).into_par_iter().for_each(|task| {
        let columns = task * STRIP..((task + 1) * STRIP).min(wide.cols);
        let (mut sums, mut strip): (Sums, Strip) = ([0.0; MOST * STRIP], [0.0; DEPTH * STRIP]);
        for rows in parts(0..wide.rows, DEPTH) {
            for (row, strip) in rows.clone().zip(strip.chunks_exact_mut(STRIP)) {
                strip[..columns.len()].copy_from_slice(&wide.row(row)[columns.clone()]);
            }
            let narrow = narrow.part(rows, 0..narrow.cols);
            // SAFETY: as in `along`.
            unsafe { I::add_down(&strip, narrow, columns.len(), &mut sums) };
        }
        write_down(alpha, &sums, columns, narrow.cols, target, order);
    });
}

/// N columns of the narrow matrix at a time meet three vectors of the wide one: their sums fill three quarters of the
/// registers.
#[inline(always)]
unsafe fn add_down<I: Vectors, const N: usize>(
    wide: &Strip,
    narrow: Rows<'_, f32>,
    cols: usize,
    sums: &mut Sums,
) {
    for column in (0..cols).step_by(3 * I::LANES) {
        for few in parts(0..narrow.cols, N) {
            // SAFETY: a strip is a multiple of three vectors; the rest is the caller's promise.
            unsafe {
                if few.len() == N {
                    add_chunk::<I, N>(
                        &wide[column..],
                        narrow,
                        few.start,
                        &mut sums[few.start * STRIP + column..],
                    );
                } else {
                    for one in few {
                        add_chunk::<I, 1>(&wide[column..], narrow, one, &mut sums[one * STRIP + column..]);
                    }
                }
            }
        }
    }
}

/// N columns of the narrow matrix from `first` on and three vectors of the wide one.
#[inline(always)]
unsafe fn add_chunk<I: Vectors, const N: usize>(
    wide: &[f32],
    narrow: Rows<'_, f32>,
    first: usize,
    sums: &mut [f32],
) {
    let has_room = |rows: usize, len: usize| rows == 0 || (rows - 1) * STRIP + 3 * I::LANES <= len;
    assert!(has_room(narrow.rows, wide.len()), "three vectors of each row");
    assert!(has_room(N, sums.len()), "three vectors for each column");
    // SAFETY: rows and sums have three vectors, as asserted; the rest is the caller's promise.
    unsafe {
        let mut totals = [[I::set_float(0.0); 3]; N];
        for row in 0..narrow.rows {
            let x = |v: usize| I::load_floats(wide.as_ptr().add(row * STRIP + v * I::LANES));
            let x = [x(0), x(1), x(2)];
            // An array, and no slice: the sums stay in registers only where the loop over them has a known end.
            let factors: &[f32; N] = narrow.row(row)[first..].first_chunk().expect("as many columns");
            for (total, factor) in totals.iter_mut().zip(factors) {
                let factor = I::set_float(*factor);
                for (total, x) in total.iter_mut().zip(x) {
                    *total = I::multiply_add(x, factor, *total);
                }
            }
        }
        for (i, total) in totals.into_iter().enumerate() {
            for (v, total) in total.into_iter().enumerate() {
                let to = sums.as_mut_ptr().add(i * STRIP + v * I::LANES);
                I::store_floats(I::add_floats(total, I::load_floats(to)), to);
            }
        }
    }
}

/// Writes the sums of some columns of the wide matrix.
fn write_down(alpha: f32, sums: &Sums, columns: Range<usize>, ranks: usize, target: Target, order: Order) {
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
