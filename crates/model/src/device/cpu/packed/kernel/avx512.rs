//! Vectors of 16 words: pairs of bf16 multiplied and added to f32 sums by one instruction, or f32 by fused
//! multiply-add.
//!
//! Source of the first: Intel's Software Developer's Manual, VDPBF16PS; products and sums are rounded to nearest even,
//! subnormals count as zero.

use std::arch::x86_64::*;

use super::super::pack::{self, LANES, Pair, Single};
use super::super::rows::Rows;
use super::super::vectors::Avx512;
use super::{DenseKernel, Kernel, Out, Strips, blocks, by_rows, dense_packing, line_words, packing, write};

/// Rows of a tile: with two vectors of the right side their sums fill 28 of 32 registers.
const TILE: usize = 14;
/// Columns of a panel: two vectors.
const PANEL: usize = 2 * LANES;

/// Whether the processor multiplies f32 so.
pub(in super::super) fn has_f32() -> bool {
    use std::arch::is_x86_feature_detected as has;
    has!("avx512f") && has!("avx512bw") && has!("avx512vl") && has!("avx512dq")
}

/// Whether it multiplies bf16 so.
pub(in super::super) fn has_bf16() -> bool {
    has_f32() && std::arch::is_x86_feature_detected!("avx512bf16")
}

/// Pairs of bf16.
pub(in super::super) enum Avx512Bf16 {}

/// f32.
pub(in super::super) enum Avx512F32 {}

/// sum + a · b, word by word
trait MultiplyAdd {
    /// # Safety
    /// The processor has the instruction.
    unsafe fn add(sum: __m512, a: __m512i, b: __m512i) -> __m512;
}

impl MultiplyAdd for Avx512Bf16 {
    #[inline(always)]
    unsafe fn add(sum: __m512, a: __m512i, b: __m512i) -> __m512 {
        // SAFETY: the caller's promise; words and pairs of bf16 are the same bits.
        unsafe {
            let pairs = |words| std::mem::transmute::<__m512i, __m512bh>(words);
            _mm512_dpbf16_ps(sum, pairs(a), pairs(b))
        }
    }
}

impl MultiplyAdd for Avx512F32 {
    #[inline(always)]
    unsafe fn add(sum: __m512, a: __m512i, b: __m512i) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe { _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), sum) }
    }
}

macro_rules! kernel {
    ($kernel:ty, $features:literal, $words:ty, $weight:ty, $terms:literal) => {
        impl DenseKernel for $kernel {
            const TERMS: usize = $terms;
            type Vectors = Avx512;
            const GRAIN: usize = $terms;

            dense_packing!($features, $words, pack::lines_of_columns::<f32, $words, TILE>);
        }

        impl Kernel for $kernel {
            const TILE: usize = TILE;
            const PANEL: usize = PANEL;

            fn words(terms: usize) -> usize {
                terms.div_ceil($terms)
            }

            packing!($features, $words, $weight, pack::lines_of_rows::<f32, $words, TILE>);

            #[target_feature(enable = $features)]
            unsafe fn multiply(
                words: usize,
                a: Strips<'_>,
                b: Strips<'_>,
                (rows, cols): (usize, usize),
                out: Out,
            ) {
                for (index, rows) in blocks(rows, TILE) {
                    let a = a.strip(index, words * TILE).as_ptr();
                    for panel in 0..cols.div_ceil(PANEL) {
                        let (column, b) = (panel * PANEL, b.strip(panel, words * PANEL));
                        // SAFETY: the caller's promises; a and b hold `words`.
                        unsafe {
                            let start = out.start.add(index * TILE * out.stride + column);
                            let (b, cols, out) = (b.as_ptr(), cols - column, Out { start, ..out });
                            by_rows!(
                                rows,
                                [14 13 12 11 10 9 8 7 6 5 4 3 2 1],
                                N => block::<N, Self>(words, a, b, cols, out)
                            );
                        }
                    }
                }
            }
        }
    };
}

kernel!(Avx512Bf16, "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16", Pair, u16, 2);
kernel!(Avx512F32, "avx512f,avx512bw,avx512vl,avx512dq", Single, f32, 1);

/// One block of the result from a tile of a and a panel of b      a (words, TILE), b (words, PANEL)
///
/// # Safety
/// AVX-512; a and b hold `words`; `out` has N rows and the columns.
#[inline(always)]
unsafe fn block<const N: usize, M: MultiplyAdd>(
    words: usize,
    a: *const u32,
    b: *const u32,
    cols: usize,
    out: Out,
) {
    // SAFETY: p is below `words`, i below TILE; the rest is the caller's promise.
    unsafe {
        let mut sums = [[_mm512_setzero_ps(); 2]; N];
        for p in 0..words {
            let at = b.add(p * PANEL).cast::<__m512i>();
            let (b0, b1) = (_mm512_loadu_si512(at), _mm512_loadu_si512(at.add(1)));
            for (i, sum) in sums.iter_mut().enumerate() {
                let word = _mm512_set1_epi32(*a.add(p * TILE + i) as i32);
                sum[0] = M::add(sum[0], word, b0);
                sum[1] = M::add(sum[1], word, b1);
            }
        }
        write::<Avx512, N>(sums, cols, out);
    }
}
