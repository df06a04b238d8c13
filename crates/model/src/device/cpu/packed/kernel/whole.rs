//! Vectors of 16 words of whole numbers: multiplied, and added to whole sums, by one instruction. What a group of 64 terms
//! adds up to is exact; its scales bring it to the f32 sums.
//!
//! Source: Intel's Software Developer's Manual, VPDPBUSD and VPDPWSSD.

use std::arch::x86_64::*;

use super::super::pack::LANES;
use super::super::quantise::{self, GROUP, Int8, Int16, Left, Right, Side, Whole};
use super::super::rows::Rows;
use super::avx512::{Avx512F32, has_f32, write};
use super::{DenseKernel, Kernel, Out, Strips, blocks, by_rows};

/// Rows of a block: with two vectors of the right side their whole sums fill 16 of 32 registers.
const BLOCK: usize = 8;
/// Blocks of rows that meet a panel one after another.
const AT_ONCE: usize = 64;

/// Whether the processor has the instructions.
pub(in super::super) fn is_possible() -> bool {
    has_f32() && std::arch::is_x86_feature_detected!("avx512vnni")
}

/// Whole numbers of eight bits.
pub(in super::super) enum Avx512Int8 {}

/// Whole numbers of thirteen bits.
pub(in super::super) enum Avx512Int16 {}

macro_rules! kernel {
    ($kernel:ty, $whole:ty) => {
        impl Kernel for $kernel {
            const TILE: usize = Left::WIDTH;
            const PANEL: usize = Right::WIDTH;
            const LINES: usize = GROUP;
            type Weight = f32;
            type Added = Avx512F32;

            fn words(terms: usize) -> usize {
                terms.div_ceil(GROUP) * <$whole>::WORDS
            }

            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
            unsafe fn tiles(x: Rows<'_, f32>, to: &mut [u32]) {
                // SAFETY: the caller's promise is the callee's, here and below.
                unsafe { quantise::of_rows::<$whole, Left>(x, 0, to) };
            }

            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
            unsafe fn weight_columns(x: Rows<'_, f32>, first: usize, to: &mut [u32]) {
                // SAFETY: as above.
                unsafe { quantise::of_rows::<$whole, Right>(x, first, to) };
            }

            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
            unsafe fn weight_lines(x: Rows<'_, f32>, first: usize, terms: usize, to: &mut [u32]) {
                // SAFETY: as above.
                unsafe { quantise::of_columns::<$whole, Right>(x, first, terms, to) };
            }

            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
            unsafe fn multiply(
                words: usize,
                a: Strips<'_>,
                b: Strips<'_>,
                (rows, cols): (usize, usize),
                out: Out,
            ) {
                let groups = words / <$whole>::WORDS;
                // Many rows meet all panels in parts whose tiles and sums stay in a second-level cache.
                for part in (0..rows.div_ceil(BLOCK)).step_by(AT_ONCE) {
                    for panel in 0..cols.div_ceil(Self::PANEL) {
                        let (column, b) = (panel * Self::PANEL, b.strip(panel, words * Self::PANEL));
                        for (index, rows) in blocks(rows, BLOCK).skip(part).take(AT_ONCE) {
                            let (tile, row) = (index * BLOCK / Self::TILE, index * BLOCK % Self::TILE);
                            let a = &a.strip(tile, words * Self::TILE)[row..];
                            // SAFETY: the caller's promises; a and b hold the groups.
                            unsafe {
                                let start = out.start.add(index * BLOCK * out.stride + column);
                                let (a, b, cols) = (a.as_ptr(), b.as_ptr(), cols - column);
                                let out = Out { start, ..out };
                                by_rows!(rows, [8 7 6 5 4 3 2 1], N => block::<N, $whole>(groups, a, b, cols, out));
                            }
                        }
                    }
                }
            }
        }
    };
}

kernel!(Avx512Int8, Int8);
kernel!(Avx512Int16, Int16);

impl DenseKernel for Avx512Int16 {
    const TERMS: usize = Int16::TERMS;
    const GRAIN: usize = GROUP;

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    unsafe fn tiles_down(x: Rows<'_, f32>, to: &mut [u32]) {
        // SAFETY: the caller's promise is the callee's, here and below.
        unsafe { quantise::of_columns::<Int16, Left>(x, 0, x.rows, to) };
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    unsafe fn columns(x: Rows<'_, f32>, first: usize, to: &mut [u32]) {
        // SAFETY: as above.
        unsafe { quantise::of_rows::<Int16, Right>(x, first, to) };
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni")]
    unsafe fn lines(x: Rows<'_, f32>, first: usize, terms: usize, to: &mut [u32]) {
        // SAFETY: as above.
        unsafe { quantise::of_columns::<Int16, Right>(x, first, terms, to) };
    }
}

/// One block of the result      a (groups, words, TILE), b (groups, words, PANEL)
///
/// # Safety
/// AVX-512 with VNNI; a and b hold the groups; `out` has N rows and the columns.
#[inline(always)]
unsafe fn block<const N: usize, F: Whole>(
    groups: usize,
    a: *const u32,
    b: *const u32,
    cols: usize,
    out: Out,
) {
    // SAFETY: the group is below `groups`, the word below WORDS, i below the block's rows.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); 2]; N];
        for group in 0..groups {
            let left = |word: usize, i: usize| *a.add((group * F::WORDS + word) * Left::WIDTH + i);
            let right = |word: usize, half: usize| {
                _mm512_loadu_si512(b.add((group * F::WORDS + word) * Right::WIDTH + half * LANES).cast())
            };
            let mut whole = [[_mm512_setzero_si512(); 2]; N];
            for (i, whole) in whole.iter_mut().enumerate() {
                *whole = [_mm512_set1_epi32(left(0, i) as i32); 2];
            }
            for word in 1..F::SCALE {
                let (b0, b1) = (right(word, 0), right(word, 1));
                for (i, whole) in whole.iter_mut().enumerate() {
                    let x = _mm512_set1_epi32(left(word, i) as i32);
                    whole[0] = F::dot(whole[0], b0, x);
                    whole[1] = F::dot(whole[1], b1, x);
                }
            }
            let scales = [right(F::SCALE, 0), right(F::SCALE, 1)].map(|scale| _mm512_castsi512_ps(scale));
            for (i, (sum, whole)) in sums.iter_mut().zip(whole).enumerate() {
                let scale = _mm512_set1_ps(f32::from_bits(left(F::SCALE, i)));
                for ((sum, whole), of_column) in sum.iter_mut().zip(whole).zip(scales) {
                    let of_column = _mm512_mul_ps(_mm512_cvtepi32_ps(whole), of_column);
                    *sum = _mm512_fmadd_ps(of_column, scale, *sum);
                }
            }
        }
        write(sums, cols, out);
    }
}
