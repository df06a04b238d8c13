//! Vectors of 16 words of four whole numbers: multiplied, and added to whole sums, by one instruction. What a group of 64
//! terms adds up to is exact; its scales bring it to the f32 sums.
//!
//! Source: Intel's Software Developer's Manual, VPDPBUSD.

use std::arch::x86_64::*;

use super::super::pack::LANES;
use super::super::quantise::{self, DATA, GROUP, SCALE, WORDS};
use super::super::rows::Rows;
use super::avx512::{Avx512F32, has_f32, write};
use super::{Kernel, Out, Tiles, blocks};

/// Rows of a tile: with two vectors of the right side their whole and their f32 sums fill 24 of 32 registers.
const TILE: usize = 6;
/// Columns of a panel: two vectors.
const PANEL: usize = 2 * LANES;

/// Whether the processor has the instructions.
pub(in super::super) fn is_possible() -> bool {
    has_f32() && std::arch::is_x86_feature_detected!("avx512vnni")
}

/// Whole numbers of eight bits.
pub(in super::super) enum Avx512Int8 {}

impl Kernel for Avx512Int8 {
    const TILE: usize = TILE;
    const PANEL: usize = PANEL;
    const LINES: usize = GROUP;
    type Weight = f32;
    type Added = Avx512F32;

    fn words(terms: usize) -> usize {
        terms.div_ceil(GROUP) * WORDS
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    unsafe fn tiles(x: Rows<'_, f32>, to: &mut [u32]) {
        quantise::tiles::<TILE>(x, to);
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn weight_columns(x: Rows<'_, f32>, first: usize, to: &mut [u32]) {
        quantise::panels_of_rows::<PANEL>(x, first, to);
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq")]
    unsafe fn weight_lines(x: Rows<'_, f32>, first: usize, terms: usize, to: &mut [u32]) {
        quantise::panels_of_columns::<PANEL>(x, first, terms, to);
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    unsafe fn multiply(words: usize, a: Tiles<'_>, b: &[u32], (rows, cols): (usize, usize), out: Out) {
        for (panel, b) in b.chunks_exact(words * PANEL).take(cols.div_ceil(PANEL)).enumerate() {
            let column = panel * PANEL;
            for (index, rows) in blocks(rows, TILE) {
                let (a, b) = (a.tile(index, words * TILE).as_ptr(), b.as_ptr());
                let (groups, cols) = (words / WORDS, cols - column);
                // SAFETY: the caller's promises; a and b hold the groups.
                unsafe {
                    let out = Out { start: out.start.add(index * TILE * out.stride + column), ..out };
                    match rows {
                        6 => block::<6>(groups, a, b, cols, out),
                        5 => block::<5>(groups, a, b, cols, out),
                        4 => block::<4>(groups, a, b, cols, out),
                        3 => block::<3>(groups, a, b, cols, out),
                        2 => block::<2>(groups, a, b, cols, out),
                        _ => block::<1>(groups, a, b, cols, out),
                    }
                }
            }
        }
    }
}

/// One block of the result from a tile of a and a panel of b      a (groups, WORDS, TILE), b (groups, WORDS, PANEL)
///
/// # Safety
/// AVX-512 with VNNI; a and b hold the groups; `out` has N rows and the columns.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
unsafe fn block<const N: usize>(groups: usize, a: *const u32, b: *const u32, cols: usize, out: Out) {
    // SAFETY: the group is below `groups`, the word below WORDS, i below TILE.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); 2]; N];
        for group in 0..groups {
            let left = |word: usize, i: usize| *a.add((group * WORDS + word) * TILE + i);
            let right = |word: usize, half: usize| {
                _mm512_loadu_si512(b.add((group * WORDS + word) * PANEL + half * LANES).cast())
            };
            let mut whole = [[_mm512_setzero_si512(); 2]; N];
            for (i, whole) in whole.iter_mut().enumerate() {
                *whole = [_mm512_set1_epi32(left(0, i) as i32); 2];
            }
            for word in 1..=DATA {
                let (b0, b1) = (right(word, 0), right(word, 1));
                for (i, whole) in whole.iter_mut().enumerate() {
                    let x = _mm512_set1_epi32(left(word, i) as i32);
                    whole[0] = _mm512_dpbusd_epi32(whole[0], b0, x);
                    whole[1] = _mm512_dpbusd_epi32(whole[1], b1, x);
                }
            }
            let scales = [right(SCALE, 0), right(SCALE, 1)].map(|scale| _mm512_castsi512_ps(scale));
            for (i, (sum, whole)) in sums.iter_mut().zip(whole).enumerate() {
                let scale = _mm512_set1_ps(f32::from_bits(left(SCALE, i)));
                for ((sum, whole), of_column) in sum.iter_mut().zip(whole).zip(scales) {
                    let of_column = _mm512_mul_ps(_mm512_cvtepi32_ps(whole), of_column);
                    *sum = _mm512_fmadd_ps(of_column, scale, *sum);
                }
            }
        }
        write(sums, cols, out);
    }
}
