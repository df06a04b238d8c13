//! Packing for the 16-bit kernel: f32 rounded to bf16, in pairs along the dimension that is summed over.

use std::arch::x86_64::*;

use super::{PANEL, TILE};

/// Packs rows of x into tiles (tiles, pairs, TILE), pair p holding columns 2p and 2p + 1; missing ones are zeros.
///
/// # Safety
/// The processor has AVX-512 with BF16.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub(super) unsafe fn tiles(x: &[f32], stride: usize, cols: usize, rows: usize, to: &mut [u32]) {
    let pairs = cols.div_ceil(2);
    for (tile, to) in to.chunks_mut(pairs * TILE).take(rows.div_ceil(TILE)).enumerate() {
        let n = TILE.min(rows - tile * TILE);
        let x = &x[tile * TILE * stride..];
        for chunk in 0..cols / 32 {
            // SAFETY: the features are the caller's promise; row j has 32 more floats from here.
            let lines = unsafe { pairs_of_rows(x, stride, 32 * chunk, n) };
            for (line, to) in lines.into_iter().zip(to[16 * chunk * TILE..].chunks_exact_mut(TILE)) {
                // SAFETY: as many words as the mask has lanes.
                unsafe { _mm512_mask_storeu_epi32(to.as_mut_ptr().cast(), (1 << TILE) - 1, line) };
            }
        }
        let whole = cols / 32 * 32;
        for i in 0..n {
            for (p, pair) in x[i * stride..][whole..cols].chunks(2).enumerate() {
                to[(whole / 2 + p) * TILE + i] =
                    u32::from(bits(pair[0])) | u32::from(pair.get(1).map_or(0, |x| bits(*x))) << 16;
            }
        }
    }
}

/// The pairs of up to 16 rows, `stride` apart, 32 columns from `column` on: a line for each pair, a lane for each row.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn pairs_of_rows(rows: &[f32], stride: usize, column: usize, n: usize) -> [__m512i; 16] {
    let mut lines = [_mm512_setzero_si512(); 16];
    for (j, line) in lines.iter_mut().enumerate().take(n) {
        // SAFETY: the slice has 32 floats.
        *line = unsafe { rounded(rows[j * stride + column..][..32].as_ptr()) };
    }
    transposed(lines)
}

/// 32 floats as bf16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn rounded(from: *const f32) -> __m512i {
    // SAFETY: the caller has 32 floats there; a vector of bf16 and one of integers are the same bits.
    unsafe {
        let (low, high) = (_mm512_loadu_ps(from), _mm512_loadu_ps(from.add(16)));
        std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low))
    }
}

/// A float rounded to bf16, to nearest even; what is no number stays none.
fn bits(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        return (bits >> 16) as u16 | 0x40;
    }
    ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16) as u16
}

/// Packs the columns of x (rows, ·) into tiles (tiles, pairs, TILE), pair p holding rows 2p and 2p + 1.
///
/// # Safety
/// As [`tiles`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub(super) unsafe fn tiles_down(x: &[f32], (stride, cols): (usize, usize), rows: usize, to: &mut [u32]) {
    let pairs = rows.div_ceil(2);
    for (tile, to) in to.chunks_mut(pairs * TILE).take(cols.div_ceil(TILE)).enumerate() {
        let first = tile * TILE;
        let lanes = (1u16 << TILE.min(cols - first)) - 1;
        for p in 0..pairs {
            let upper = &x[2 * p * stride + first..][..TILE.min(cols - first)];
            // SAFETY: only the lanes of the columns that are there are read; TILE words take the others as zeros.
            unsafe {
                let low = narrowed(_mm512_maskz_loadu_ps(lanes, upper.as_ptr()));
                let mut line = low;
                if 2 * p + 1 < rows {
                    let lower = &x[(2 * p + 1) * stride + first..][..TILE.min(cols - first)];
                    let high = narrowed(_mm512_maskz_loadu_ps(lanes, lower.as_ptr()));
                    line = _mm512_or_si512(low, _mm512_slli_epi32::<16>(high));
                }
                let at = &mut to[p * TILE..][..TILE];
                _mm512_mask_storeu_epi32(at.as_mut_ptr().cast(), (1 << TILE) - 1, line);
            }
        }
    }
}

/// 16 floats as bf16, each in the lower half of a word.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
fn narrowed(x: __m512) -> __m512i {
    // SAFETY: a vector of bf16 and one of integers are the same bits.
    _mm512_cvtepu16_epi32(unsafe { std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x)) })
}

/// Packs up to 16 rows, `stride` apart, cols a multiple of 32, into half a panel: pair p of row j at p · PANEL + j.
///
/// # Safety
/// As [`tiles`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub(super) unsafe fn rows_into_panel(rows: &[f32], (stride, cols): (usize, usize), n: usize, to: &mut [u32]) {
    for chunk in 0..cols / 32 {
        // SAFETY: row j has 32 more floats from here.
        let lines = unsafe { pairs_of_rows(rows, stride, 32 * chunk, n) };
        for (p, line) in lines.into_iter().enumerate() {
            let at = &mut to[(16 * chunk + p) * PANEL..][..16];
            // SAFETY: sixteen words take the vector.
            unsafe { _mm512_storeu_si512(at.as_mut_ptr().cast(), line) };
        }
    }
}

/// 16 x 16 words.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
fn transposed(rows: [__m512i; 16]) -> [__m512i; 16] {
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

/// Packs two rows of 32 columns into a line of a panel: column j of both at j.
///
/// # Safety
/// As [`tiles`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub(super) unsafe fn pair_of_rows(upper: &[f32], lower: &[f32], to: &mut [u32]) {
    for half in 0..2 {
        // SAFETY: both have 32 floats.
        let part = |from: &[f32]| unsafe { _mm512_loadu_ps(from[16 * half..][..16].as_ptr()) };
        let (low, high) = (narrowed(part(upper)), narrowed(part(lower)));
        let line = _mm512_or_si512(low, _mm512_slli_epi32::<16>(high));
        let at = &mut to[16 * half..][..16];
        // SAFETY: sixteen words take the vector.
        unsafe { _mm512_storeu_si512(at.as_mut_ptr().cast(), line) };
    }
}
