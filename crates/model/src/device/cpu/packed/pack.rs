//! Packing with AVX-512: rows of numbers to the words that kernels multiply, along the dimension that is summed over.
//!
//! A word holds one f32, or a pair of bf16 that are neighbours along the sum. A right side is packed into panels
//! (panels, words, PANEL), a left side into lines (tiles, words, TILE) or, for tile registers, into squares of 16 rows by
//! 16 words. Words past the last term are zeros; rows and columns past the last are whatever stood there, and end in rows
//! and columns of the product that nobody stores.

use std::arch::x86_64::*;

use super::rows::Rows;

/// Words that a vector holds, rows that are packed together.
pub(super) const LANES: usize = 16;

/// How numbers become words.
pub(super) trait Words<T> {
    /// Terms of a sum in a word.
    const TERMS: usize;

    /// Sixteen words along a row; terms past its end are zeros.
    ///
    /// # Safety
    /// The processor has AVX-512 with BF16 where words are pairs.
    unsafe fn along(row: &[T]) -> __m512i;

    /// A word for each of up to sixteen columns, of rows that are neighbours along the sum; `lower` may be empty.
    ///
    /// # Safety
    /// As [`Words::along`].
    unsafe fn across(upper: &[T], lower: &[T]) -> __m512i;

    /// The same of 32 columns.
    ///
    /// # Safety
    /// As [`Words::along`].
    #[inline(always)]
    unsafe fn across_two(upper: &[T], lower: &[T]) -> [__m512i; 2] {
        let part =
            |row: &[T], half: usize| (half * LANES).min(row.len())..((half + 1) * LANES).min(row.len());
        // SAFETY: the caller's promise.
        unsafe {
            [
                Self::across(&upper[part(upper, 0)], &lower[part(lower, 0)]),
                Self::across(&upper[part(upper, 1)], &lower[part(lower, 1)]),
            ]
        }
    }
}

/// Words that are one f32.
pub(super) enum Single {}

/// Words that are two bf16.
pub(super) enum Pair {}

impl Words<f32> for Single {
    const TERMS: usize = 1;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn along(row: &[f32]) -> __m512i {
        _mm512_castps_si512(floats(row))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn across(upper: &[f32], _: &[f32]) -> __m512i {
        _mm512_castps_si512(floats(upper))
    }
}

impl Words<f32> for Pair {
    const TERMS: usize = 2;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn along(row: &[f32]) -> __m512i {
        let (low, high) = row.split_at(row.len().min(LANES));
        // SAFETY: a vector of bf16 and one of integers are the same bits.
        unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(floats(high), floats(low))) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
    unsafe fn across(upper: &[f32], lower: &[f32]) -> __m512i {
        joined(narrowed(floats(upper)), narrowed(floats(lower)))
    }
}

/// Numbers that are bf16 already.
impl Words<u16> for Pair {
    const TERMS: usize = 2;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn along(row: &[u16]) -> __m512i {
        thirty_two(row)
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn across(upper: &[u16], lower: &[u16]) -> __m512i {
        joined(halves(upper), halves(lower))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn across_two(upper: &[u16], lower: &[u16]) -> [__m512i; 2] {
        let (upper, lower) = (thirty_two(upper), thirty_two(lower));
        let first =
            _mm512_cvtepu16_epi32(_mm256_setr_epi16(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
        // The word of column j takes entry j of both, the second from the other register.
        let first =
            _mm512_or_si512(first, _mm512_slli_epi32::<16>(_mm512_add_epi32(first, _mm512_set1_epi32(32))));
        let second = _mm512_add_epi16(first, _mm512_set1_epi16(16));
        [_mm512_permutex2var_epi16(upper, first, lower), _mm512_permutex2var_epi16(upper, second, lower)]
    }
}

/// Up to sixteen floats, then zeros.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(super) fn floats(from: &[f32]) -> __m512 {
    // SAFETY: only as many floats as there are are read.
    unsafe { _mm512_maskz_loadu_ps(lanes(from.len()), from.as_ptr()) }
}

/// Up to 32 bf16, then zeros.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn thirty_two(from: &[u16]) -> __m512i {
    let lanes = if from.len() >= 32 { u32::MAX } else { (1 << from.len()) - 1 };
    // SAFETY: only as many numbers as there are are read.
    unsafe { _mm512_maskz_loadu_epi16(lanes, from.as_ptr().cast()) }
}

/// Up to sixteen bf16, each in the lower half of a word.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn halves(from: &[u16]) -> __m512i {
    // SAFETY: only as many numbers as there are are read.
    _mm512_cvtepu16_epi32(unsafe { _mm256_maskz_loadu_epi16(lanes(from.len()), from.as_ptr().cast()) })
}

/// The first `n` lanes.
#[inline(always)]
pub(super) fn lanes(n: usize) -> u16 {
    if n >= LANES { u16::MAX } else { (1 << n) - 1 }
}

/// 16 floats as bf16, each in the lower half of a word.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
fn narrowed(x: __m512) -> __m512i {
    // SAFETY: a vector of bf16 and one of integers are the same bits.
    _mm512_cvtepu16_epi32(unsafe { std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x)) })
}

#[inline]
#[target_feature(enable = "avx512f")]
fn joined(low: __m512i, high: __m512i) -> __m512i {
    _mm512_or_si512(low, _mm512_slli_epi32::<16>(high))
}

#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn store(line: __m512i, to: &mut [u32]) {
    // SAFETY: only as many words as there are are written.
    unsafe { _mm512_mask_storeu_epi32(to.as_mut_ptr().cast(), lanes(to.len()), line) };
}

/// Sixteen words, from word `first` on, of up to sixteen rows from `row` on: a vector for each row.
#[inline(always)]
unsafe fn square_along<T: Copy, W: Words<T>>(x: Rows<'_, T>, row: usize, first: usize) -> [__m512i; LANES] {
    // SAFETY: the features are the caller's promise.
    let zero = unsafe { _mm512_setzero_si512() };
    let mut square = [zero; LANES];
    let terms = (first * W::TERMS).min(x.cols)..((first + LANES) * W::TERMS).min(x.cols);
    for (i, line) in square.iter_mut().enumerate().take(x.rows - row) {
        // SAFETY: the features are the caller's promise.
        *line = unsafe { W::along(&x.row(row + i)[terms.clone()]) };
    }
    square
}

/// Sixteen words, from word `first` on, of up to sixteen columns from `column` on: a vector for each word.
#[inline(always)]
unsafe fn square_across<T: Copy, W: Words<T>>(
    x: Rows<'_, T>,
    column: usize,
    first: usize,
) -> [__m512i; LANES] {
    // SAFETY: the features are the caller's promise.
    let zero = unsafe { _mm512_setzero_si512() };
    let mut square = [zero; LANES];
    for (i, line) in square.iter_mut().enumerate() {
        // SAFETY: the features are the caller's promise.
        *line = unsafe { word_across::<T, W>(x, column..(column + LANES).min(x.cols), first + i) };
    }
    square
}

/// One word of up to sixteen columns; zeros past the last row.
#[inline(always)]
unsafe fn word_across<T: Copy, W: Words<T>>(
    x: Rows<'_, T>,
    columns: std::ops::Range<usize>,
    word: usize,
) -> __m512i {
    let row = |i: usize| if i < x.rows { &x.row(i)[columns.clone()] } else { &[] };
    // SAFETY: the features are the caller's promise.
    unsafe { W::across(row(word * W::TERMS), if W::TERMS == 2 { row(2 * word + 1) } else { &[] }) }
}

/// A left side whose rows are x's, as lines.
///
/// # Safety
/// As [`Words::along`].
#[inline(always)]
pub(super) unsafe fn lines_of_rows<T: Copy, W: Words<T>, const TILE: usize>(
    x: Rows<'_, T>,
    words: usize,
    to: &mut [u32],
) {
    for (tile, to) in to.chunks_mut(words * TILE).take(x.rows.div_ceil(TILE)).enumerate() {
        for first in (0..words).step_by(LANES) {
            // SAFETY: the features are the caller's promise.
            let square = unsafe { transposed(square_along::<T, W>(x, tile * TILE, first)) };
            for (line, to) in square.into_iter().zip(to[first * TILE..].chunks_exact_mut(TILE)) {
                // SAFETY: as above.
                unsafe { store(line, to) };
            }
        }
    }
}

/// A left side whose rows are x's columns, as lines.
///
/// # Safety
/// As [`Words::along`].
#[inline(always)]
pub(super) unsafe fn lines_of_columns<T: Copy, W: Words<T>, const TILE: usize>(
    x: Rows<'_, T>,
    words: usize,
    to: &mut [u32],
) {
    for (tile, to) in to.chunks_mut(words * TILE).take(x.cols.div_ceil(TILE)).enumerate() {
        let columns = tile * TILE..((tile + 1) * TILE).min(x.cols);
        for (word, to) in to.chunks_exact_mut(TILE).enumerate() {
            // SAFETY: the features are the caller's promise.
            unsafe { store(word_across::<T, W>(x, columns.clone(), word), to) };
        }
    }
}

/// A left side whose rows are x's, as squares: those of 32 rows beside each other.
///
/// # Safety
/// As [`Words::along`].
#[inline(always)]
pub(super) unsafe fn squares_of_rows<T: Copy, W: Words<T>>(x: Rows<'_, T>, words: usize, to: &mut [u32]) {
    for (place, to) in to.chunks_exact_mut(LANES * LANES).enumerate() {
        let (row, word) = square_place(place, words);
        if row < x.rows {
            // SAFETY: the features are the caller's promise.
            let square = unsafe { square_along::<T, W>(x, row, word) };
            for (line, to) in square.into_iter().zip(to.chunks_exact_mut(LANES)) {
                // SAFETY: as above.
                unsafe { store(line, to) };
            }
        }
    }
}

/// A left side whose rows are x's columns, as squares.
///
/// # Safety
/// As [`Words::along`].
#[inline(always)]
pub(super) unsafe fn squares_of_columns<T: Copy, W: Words<T>>(x: Rows<'_, T>, words: usize, to: &mut [u32]) {
    for (place, to) in to.chunks_exact_mut(LANES * LANES).enumerate() {
        let (column, word) = square_place(place, words);
        if column < x.cols {
            // SAFETY: the features are the caller's promise.
            let square = unsafe { transposed(square_across::<T, W>(x, column, word)) };
            for (line, to) in square.into_iter().zip(to.chunks_exact_mut(LANES)) {
                // SAFETY: as above.
                unsafe { store(line, to) };
            }
        }
    }
}

/// First row and first word of a square: two of one word, then those of the next, then those of the next 32 rows.
fn square_place(place: usize, words: usize) -> (usize, usize) {
    let of_tile = 2 * words / LANES;
    (place / of_tile * 2 * LANES + place % 2 * LANES, place % of_tile / 2 * LANES)
}

/// A right side whose columns from `first` on, a multiple of 16, are x's rows.
///
/// # Safety
/// As [`Words::along`].
#[inline(always)]
pub(super) unsafe fn panels_of_rows<T: Copy, W: Words<T>, const PANEL: usize>(
    x: Rows<'_, T>,
    first: usize,
    words: usize,
    to: &mut [u32],
) {
    for row in (0..x.rows).step_by(LANES) {
        let column = first + row;
        let half = &mut to[column / PANEL * words * PANEL + column % PANEL..];
        for word in (0..words).step_by(LANES) {
            // SAFETY: the features are the caller's promise.
            let square = unsafe { transposed(square_along::<T, W>(x, row, word)) };
            for (i, line) in square.into_iter().enumerate().take(words - word) {
                // SAFETY: as above.
                unsafe { store(line, &mut half[(word + i) * PANEL..][..LANES]) };
            }
        }
    }
}

/// A right side whose terms from `first` on, a multiple of [`Words::TERMS`], are x's rows, and up to word `end` zeros.
///
/// # Safety
/// As [`Words::along`].
#[inline(always)]
pub(super) unsafe fn panels_of_columns<T: Copy, W: Words<T>, const PANEL: usize>(
    x: Rows<'_, T>,
    first: usize,
    (words, end): (usize, usize),
    to: &mut [u32],
) {
    let begin = first / W::TERMS;
    for column in (0..x.cols).step_by(PANEL) {
        let columns = column..(column + PANEL).min(x.cols);
        let panel = &mut to[column * words + begin * PANEL..];
        for (word, to) in panel.chunks_exact_mut(PANEL).enumerate().take(end - begin) {
            let row = |i: usize| if i < x.rows { &x.row(i)[columns.clone()] } else { &[] };
            let lower = if W::TERMS == 2 { row(2 * word + 1) } else { &[] };
            // SAFETY: the features are the caller's promise.
            unsafe {
                let lines = W::across_two(row(word * W::TERMS), lower);
                let (left, right) = to.split_at_mut(LANES);
                store(lines[0], left);
                store(lines[1], right);
            }
        }
    }
}

/// 16 x 16 words.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(super) fn transposed(rows: [__m512i; 16]) -> [__m512i; 16] {
    let mut words = rows;
    for i in (0..16).step_by(2) {
        let (a, b) = (rows[i], rows[i + 1]);
        (words[i], words[i + 1]) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
    }
    let mut quads = words;
    for i in (0..16).step_by(4) {
        let (a, b, c, d) = (words[i], words[i + 1], words[i + 2], words[i + 3]);
        quads[i] = _mm512_unpacklo_epi64(a, c);
        quads[i + 1] = _mm512_unpackhi_epi64(a, c);
        quads[i + 2] = _mm512_unpacklo_epi64(b, d);
        quads[i + 3] = _mm512_unpackhi_epi64(b, d);
    }
    // Quarter q of quads[4g + c] holds column 4q + c of rows 4g to 4g + 3.
    let mut columns = quads;
    for c in 0..4 {
        let (a, b, e, f) = (quads[c], quads[4 + c], quads[8 + c], quads[12 + c]);
        let (low, high) = (_mm512_shuffle_i32x4::<0x44>(a, b), _mm512_shuffle_i32x4::<0xEE>(a, b));
        let (low2, high2) = (_mm512_shuffle_i32x4::<0x44>(e, f), _mm512_shuffle_i32x4::<0xEE>(e, f));
        columns[c] = _mm512_shuffle_i32x4::<0x88>(low, low2);
        columns[4 + c] = _mm512_shuffle_i32x4::<0xDD>(low, low2);
        columns[8 + c] = _mm512_shuffle_i32x4::<0x88>(high, high2);
        columns[12 + c] = _mm512_shuffle_i32x4::<0xDD>(high, high2);
    }
    columns
}
