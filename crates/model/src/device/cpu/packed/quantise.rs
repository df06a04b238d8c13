//! Packing to whole numbers of eight bits: 64 neighbours along a sum share a scale, their largest magnitude over 127.
//!
//! A group takes 18 words of a tile or a panel: a correction, sixteen words of four terms each, the scale. The left side is
//! signed; the right side is moved up by 128, since the processor multiplies unsigned by signed, and what that adds to the
//! sums is the left side's correction, −128 · Σ q.
//! A number that is not finite makes its group's scale so, and with it all sums that the group is part of.

use std::arch::x86_64::*;

use super::pack::{LANES, floats, store, transposed};
use super::rows::Rows;

/// Terms that share a scale.
pub(super) const GROUP: usize = 64;
/// Words of their terms.
pub(super) const DATA: usize = GROUP / 4;
/// Words of a group: its correction, its terms, its scale.
pub(super) const WORDS: usize = DATA + 2;
/// Place of the scale.
pub(super) const SCALE: usize = DATA + 1;
/// The largest whole number.
const MOST: f32 = 127.0;

/// Scale of a group and what its numbers are multiplied by, from the bits of its largest magnitude.
#[inline(always)]
fn scale(largest: u32) -> (f32, f32) {
    let largest = f32::from_bits(largest);
    let factor = if largest < f32::MIN_POSITIVE * MOST { 0.0 } else { MOST / largest };
    (largest / MOST, factor)
}

/// A group along a row, zeros past its end: its terms as bytes, and its scale.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn along(x: &[f32]) -> (__m512i, f32) {
    let part = |i: usize| floats(&x[(i * LANES).min(x.len())..]);
    let parts = [part(0), part(1), part(2), part(3)];
    let [a, b, c, d] = parts.map(|x| magnitude(x));
    let largest = _mm512_max_epu32(_mm512_max_epu32(a, b), _mm512_max_epu32(c, d));
    let (scale, factor) = scale(_mm512_reduce_max_epu32(largest));
    let [a, b, c, d] = parts.map(|x| _mm512_cvtps_epi32(_mm512_mul_ps(x, _mm512_set1_ps(factor))));
    let bytes = _mm512_packs_epi16(_mm512_packs_epi32(a, b), _mm512_packs_epi32(c, d));
    // Word 4 q + p of what was packed is word q of part p.
    let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    (_mm512_permutexvar_epi32(order, bytes), scale)
}

/// |x| as bits, in the order of the numbers, and above all of them what is none.
#[inline]
#[target_feature(enable = "avx512f")]
fn magnitude(x: __m512) -> __m512i {
    _mm512_and_si512(_mm512_castps_si512(x), _mm512_set1_epi32(i32::MAX))
}

/// A left side whose rows are x's: tiles of (groups, [`WORDS`], TILE).
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
pub(super) fn tiles<const TILE: usize>(x: Rows<'_, f32>, to: &mut [u32]) {
    let words = x.cols.div_ceil(GROUP) * WORDS;
    for (tile, to) in to.chunks_mut(words * TILE).take(x.rows.div_ceil(TILE)).enumerate() {
        for i in 0..TILE.min(x.rows - tile * TILE) {
            for (x, to) in x.row(tile * TILE + i).chunks(GROUP).zip(to.chunks_exact_mut(WORDS * TILE)) {
                let (bytes, scale) = along(x);
                let sums = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), bytes);
                let mut terms = [0; DATA];
                store(bytes, &mut terms);
                to[i] = (-128 * _mm512_reduce_add_epi32(sums)) as u32;
                for (word, to) in terms.into_iter().zip(to[TILE..].chunks_exact_mut(TILE)) {
                    to[i] = word;
                }
                to[SCALE * TILE + i] = scale.to_bits();
            }
        }
    }
}

/// A right side whose columns from `first` on, a multiple of 16, are x's rows: panels of (groups, [`WORDS`], PANEL).
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(super) fn panels_of_rows<const PANEL: usize>(x: Rows<'_, f32>, first: usize, to: &mut [u32]) {
    let words = x.cols.div_ceil(GROUP) * WORDS;
    for row in (0..x.rows).step_by(LANES) {
        let column = first + row;
        let half = &mut to[column / PANEL * words * PANEL + column % PANEL..];
        for (group, start) in (0..x.cols).step_by(GROUP).enumerate() {
            let terms = start..(start + GROUP).min(x.cols);
            let (mut square, mut scales) = ([_mm512_setzero_si512(); LANES], [0; LANES]);
            for (i, (line, to)) in square.iter_mut().zip(&mut scales).enumerate().take(x.rows - row) {
                let (bytes, scale) = along(&x.row(row + i)[terms.clone()]);
                (*line, *to) = (unsigned(bytes), scale.to_bits());
            }
            let of_group = &mut half[group * WORDS * PANEL..];
            for (word, line) in transposed(square).into_iter().enumerate() {
                store(line, &mut of_group[(1 + word) * PANEL..][..LANES]);
            }
            of_group[SCALE * PANEL..][..LANES].copy_from_slice(&scales);
        }
    }
}

/// The part of a right side whose terms from `first` on, a multiple of [`GROUP`], are x's rows, of `terms` terms in all.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
pub(super) fn panels_of_columns<const PANEL: usize>(
    x: Rows<'_, f32>,
    first: usize,
    terms: usize,
    to: &mut [u32],
) {
    let words = terms.div_ceil(GROUP) * WORDS;
    for (group, row) in (0..x.rows).step_by(GROUP).enumerate() {
        let rows = row..(row + GROUP).min(x.rows);
        for column in (0..x.cols).step_by(LANES) {
            let columns = column..(column + LANES).min(x.cols);
            let at =
                column / PANEL * words * PANEL + (first / GROUP + group) * WORDS * PANEL + column % PANEL;
            group_of_columns(x.part(rows.clone(), columns), PANEL, &mut to[at..]);
        }
    }
}

/// A group of up to sixteen columns.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn group_of_columns(x: Rows<'_, f32>, stride: usize, to: &mut [u32]) {
    let row = |i: usize| if i < x.rows { floats(x.row(i)) } else { _mm512_setzero_ps() };
    let mut largest = _mm512_setzero_si512();
    for i in 0..x.rows {
        largest = _mm512_max_epu32(largest, magnitude(row(i)));
    }
    let largest = _mm512_castsi512_ps(largest);
    let scale = _mm512_div_ps(largest, _mm512_set1_ps(MOST));
    let is_tiny = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(largest, _mm512_set1_ps(f32::MIN_POSITIVE * MOST));
    let factor = _mm512_maskz_div_ps(!is_tiny, _mm512_set1_ps(MOST), largest);
    let whole = |i: usize| {
        _mm512_and_si512(_mm512_cvtps_epi32(_mm512_mul_ps(row(i), factor)), _mm512_set1_epi32(0xFF))
    };
    for (word, to) in to[stride..].chunks_mut(stride).enumerate().take(DATA) {
        let i = 4 * word;
        let low = _mm512_or_si512(whole(i), _mm512_slli_epi32::<8>(whole(i + 1)));
        let high = _mm512_or_si512(whole(i + 2), _mm512_slli_epi32::<8>(whole(i + 3)));
        store(unsigned(_mm512_or_si512(low, _mm512_slli_epi32::<16>(high))), &mut to[..LANES]);
    }
    store(_mm512_castps_si512(scale), &mut to[SCALE * stride..][..LANES]);
}

/// Signed bytes moved up by 128.
#[inline]
#[target_feature(enable = "avx512f")]
fn unsigned(bytes: __m512i) -> __m512i {
    _mm512_xor_si512(bytes, _mm512_set1_epi8(i8::MIN))
}
