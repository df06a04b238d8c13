//! Packing to whole numbers: 64 neighbours along a sum share a scale, their largest magnitude over the largest whole number.
//!
//! A group takes a correction, the words of its terms, and its scale: (groups, words, rows) of a tile, (groups, words,
//! columns) of a panel. Bytes of a right side are moved up by 128, since the processor multiplies unsigned by signed ones;
//! what that adds to the sums is the left side's correction, −128 · Σ q.
//! A number that is not finite makes its group's scale so, and with it all sums that the group is part of.

use std::arch::x86_64::*;

use super::pack::{LANES, floats, store, transposed};
use super::rows::Rows;

/// Terms that share a scale.
pub(super) const GROUP: usize = 64;

/// Whole numbers of some size.
pub(super) trait Whole {
    /// Numbers in a word.
    const TERMS: usize;
    /// The largest of them, the smallest being its negative: sums of a group's products stay below 2^31.
    const MOST: f32;
    /// What a right side's numbers are moved up by.
    const RISE: i32;
    /// Words of a group's terms.
    const DATA: usize = GROUP / Self::TERMS;
    /// Words of a group.
    const WORDS: usize = Self::DATA + 2;
    /// Place of its scale.
    const SCALE: usize = Self::DATA + 1;

    /// Four vectors, neighbours along the sum, as words: the first one or two are filled.
    ///
    /// # Safety
    /// The processor has AVX-512 with VNNI, here and below.
    unsafe fn narrowed(x: [__m512i; 4]) -> [__m512i; 2];

    /// Words as a right side has them.
    unsafe fn right(words: __m512i) -> __m512i;

    /// sums + right · left, word by word
    unsafe fn dot(sums: __m512i, right: __m512i, left: __m512i) -> __m512i;
}

/// Of eight bits.
pub(super) enum Int8 {}

/// Of thirteen bits, in sixteen.
pub(super) enum Int16 {}

impl Whole for Int8 {
    const TERMS: usize = 4;
    const MOST: f32 = 127.0;
    const RISE: i32 = 128;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    unsafe fn narrowed([a, b, c, d]: [__m512i; 4]) -> [__m512i; 2] {
        let bytes = _mm512_packs_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
        // Word 4 q + p of what was packed is word q of part p.
        let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        [_mm512_permutexvar_epi32(order, bytes), _mm512_setzero_si512()]
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    unsafe fn right(words: __m512i) -> __m512i {
        _mm512_xor_si512(words, _mm512_set1_epi8(i8::MIN))
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    unsafe fn dot(sums: __m512i, right: __m512i, left: __m512i) -> __m512i {
        _mm512_dpbusd_epi32(sums, right, left)
    }
}

impl Whole for Int16 {
    const TERMS: usize = 2;
    const MOST: f32 = 4095.0;
    const RISE: i32 = 0;

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    unsafe fn narrowed([a, b, c, d]: [__m512i; 4]) -> [__m512i; 2] {
        // Words 4 q to 4 q + 3 of what was packed are two of part one and two of part two.
        let order = _mm512_setr_epi32(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
        [
            _mm512_permutexvar_epi32(order, _mm512_packs_epi32(a, b)),
            _mm512_permutexvar_epi32(order, _mm512_packs_epi32(c, d)),
        ]
    }

    #[inline(always)]
    unsafe fn right(words: __m512i) -> __m512i {
        words
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    unsafe fn dot(sums: __m512i, right: __m512i, left: __m512i) -> __m512i {
        _mm512_dpwssd_epi32(sums, right, left)
    }
}

/// Which side of a product is packed.
pub(super) trait Side {
    /// Rows of a tile or columns of a panel: words of a line, a multiple of 16.
    const WIDTH: usize;
    /// Whether it is the right one.
    const IS_RIGHT: bool;
}

/// Strips of rows.
pub(super) enum Left {}

/// Panels of columns.
pub(super) enum Right {}

impl Side for Left {
    const WIDTH: usize = LANES;
    const IS_RIGHT: bool = false;
}

impl Side for Right {
    const WIDTH: usize = 2 * LANES;
    const IS_RIGHT: bool = true;
}

/// Scale of groups and what their numbers are multiplied by, from their largest magnitudes.
#[inline]
#[target_feature(enable = "avx512f")]
fn scales<F: Whole>(largest: __m512i) -> (__m512, __m512) {
    let (largest, most) = (_mm512_castsi512_ps(largest), _mm512_set1_ps(F::MOST));
    let is_tiny = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(largest, _mm512_set1_ps(f32::MIN_POSITIVE * F::MOST));
    (_mm512_div_ps(largest, most), _mm512_maskz_div_ps(!is_tiny, most, largest))
}

/// |x| as bits, in the order of the numbers, and above all of them what is none.
#[inline]
#[target_feature(enable = "avx512f")]
fn magnitude(x: __m512) -> __m512i {
    _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(i32::MAX))
}

/// What groups of a left side begin their sums with, from those of their numbers.
#[inline]
#[target_feature(enable = "avx512f")]
fn correction<F: Whole>(sums: __m512i) -> __m512i {
    _mm512_mullo_epi32(sums, _mm512_set1_epi32(-F::RISE))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn rounded(x: __m512, factor: __m512) -> __m512i {
    _mm512_cvtps_epi32(_mm512_mul_ps(x, factor))
}

/// A side whose rows or columns from `first` on, a multiple of 16, are x's rows.
///
/// # Safety
/// The processor has AVX-512 with VNNI.
#[inline(always)]
pub(super) unsafe fn of_rows<F: Whole, S: Side>(x: Rows<'_, f32>, first: usize, to: &mut [u32]) {
    let words = x.cols.div_ceil(GROUP) * F::WORDS;
    for row in (0..x.rows).step_by(LANES) {
        let (rows, place) = (row..(row + LANES).min(x.rows), first + row);
        let lines = &mut to[place / S::WIDTH * words * S::WIDTH + place % S::WIDTH..];
        for (group, start) in (0..x.cols).step_by(GROUP).enumerate() {
            let terms = start..(start + GROUP).min(x.cols);
            // SAFETY: the caller's promise.
            unsafe {
                group_of_rows::<F, S>(x.part(rows.clone(), terms), &mut lines[group * F::WORDS * S::WIDTH..])
            };
        }
    }
}

/// A group of up to sixteen rows.
#[inline(always)]
unsafe fn group_of_rows<F: Whole, S: Side>(x: Rows<'_, f32>, to: &mut [u32]) {
    // SAFETY: the caller's promise.
    unsafe {
        let parts = |i: usize| {
            let row = x.row(i);
            [0, 1, 2, 3].map(|part| floats(&row[(part * LANES).min(row.len())..]))
        };
        let mut largest = [0; LANES];
        for (i, largest) in largest.iter_mut().enumerate().take(x.rows) {
            let [a, b, c, d] = parts(i).map(|part| magnitude(part));
            let of_all = _mm512_max_epu32(_mm512_max_epu32(a, b), _mm512_max_epu32(c, d));
            *largest = _mm512_reduce_max_epu32(of_all);
        }
        let (scale, factor) = scales::<F>(_mm512_loadu_si512(largest.as_ptr().cast()));
        let mut factors = [0; LANES];
        store(_mm512_castps_si512(factor), &mut factors);
        let (mut squares, mut sums) = ([[_mm512_setzero_si512(); LANES]; 2], [0; LANES]);
        for i in 0..x.rows {
            let factor = _mm512_set1_ps(f32::from_bits(factors[i]));
            let [a, b, c, d] = parts(i).map(|part| rounded(part, factor));
            if !S::IS_RIGHT && F::RISE != 0 {
                let of_all = _mm512_add_epi32(_mm512_add_epi32(a, b), _mm512_add_epi32(c, d));
                sums[i] = _mm512_reduce_add_epi32(of_all);
            }
            let words = F::narrowed([a, b, c, d]);
            (squares[0][i], squares[1][i]) = (words[0], words[1]);
        }
        store(correction::<F>(_mm512_loadu_si512(sums.as_ptr().cast())), &mut to[..LANES]);
        for (half, square) in squares.into_iter().enumerate().take(F::DATA / LANES) {
            for (word, line) in transposed(square).into_iter().enumerate() {
                let line = if S::IS_RIGHT { F::right(line) } else { line };
                store(line, &mut to[(1 + half * LANES + word) * S::WIDTH..][..LANES]);
            }
        }
        store(_mm512_castps_si512(scale), &mut to[F::SCALE * S::WIDTH..][..LANES]);
    }
}

/// The part of a side whose terms from `first` on, a multiple of [`GROUP`], are x's rows, of `terms` terms in all.
///
/// # Safety
/// The processor has AVX-512 with VNNI.
#[inline(always)]
pub(super) unsafe fn of_columns<F: Whole, S: Side>(
    x: Rows<'_, f32>,
    first: usize,
    terms: usize,
    to: &mut [u32],
) {
    let words = terms.div_ceil(GROUP) * F::WORDS;
    for (group, row) in (0..x.rows).step_by(GROUP).enumerate() {
        let rows = row..(row + GROUP).min(x.rows);
        for column in (0..x.cols).step_by(LANES) {
            let columns = column..(column + LANES).min(x.cols);
            let line = column / S::WIDTH * words + (first / GROUP + group) * F::WORDS;
            let part = x.part(rows.clone(), columns);
            // SAFETY: the caller's promise.
            unsafe { group_of_columns::<F, S>(part, &mut to[line * S::WIDTH + column % S::WIDTH..]) };
        }
    }
}

/// A group of up to sixteen columns.
#[inline(always)]
unsafe fn group_of_columns<F: Whole, S: Side>(x: Rows<'_, f32>, to: &mut [u32]) {
    // SAFETY: the caller's promise.
    unsafe {
        let row = |i: usize| if i < x.rows { floats(x.row(i)) } else { _mm512_setzero_ps() };
        let mut largest = _mm512_setzero_si512();
        for i in 0..x.rows {
            largest = _mm512_max_epu32(largest, magnitude(row(i)));
        }
        let (scale, factor) = scales::<F>(largest);
        let bits = 32 / F::TERMS;
        let mask = _mm512_set1_epi32(((1u64 << bits) - 1) as i32);
        let mut sums = _mm512_setzero_si512();
        for word in 0..F::DATA {
            let mut line = _mm512_setzero_si512();
            for term in 0..F::TERMS {
                let whole = rounded(row(word * F::TERMS + term), factor);
                sums = _mm512_add_epi32(sums, whole);
                let place = _mm512_set1_epi32((term * bits) as i32);
                line = _mm512_or_si512(line, _mm512_sllv_epi32(_mm512_and_si512(whole, mask), place));
            }
            let line = if S::IS_RIGHT { F::right(line) } else { line };
            store(line, &mut to[(1 + word) * S::WIDTH..][..LANES]);
        }
        store(correction::<F>(sums), &mut to[..LANES]);
        store(_mm512_castps_si512(scale), &mut to[F::SCALE * S::WIDTH..][..LANES]);
    }
}
