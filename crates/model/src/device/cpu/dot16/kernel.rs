//! The inner product of 16-bit panels: pairs of bf16 multiplied and added to f32 sums by one instruction.
//!
//! out[i][j] (=|+=) Σ_p a[p][i] · b[p][j], each product of two pairs being two products. Source of the instruction: Intel's
//! Software Developer's Manual, VDPBF16PS; products and sums are rounded to nearest even, subnormals count as zero.

use std::arch::x86_64::*;

use super::{PANEL, TILE};

/// A block of the result: row i begins at i · stride.
#[derive(Clone, Copy)]
pub(super) struct Out {
    pub start: *mut f32,
    pub stride: usize,
    /// Rows, at most [`TILE`].
    pub rows: usize,
    /// Columns, at most [`PANEL`].
    pub cols: usize,
    /// Whether the sums are added to what stands there.
    pub adds: bool,
}

/// One block of the result from a tile of a and a panel of b      a (pairs, TILE), b (pairs, PANEL)
///
/// # Safety
/// The processor has AVX-512 with BF16; a and b hold `pairs` rows; `out` is this task's alone.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
pub(super) unsafe fn multiply(pairs: usize, a: *const u32, b: *const u32, out: Out) {
    // SAFETY: the caller's promises are the callee's.
    unsafe {
        match out.rows {
            14 => rows::<14>(pairs, a, b, out),
            13 => rows::<13>(pairs, a, b, out),
            12 => rows::<12>(pairs, a, b, out),
            11 => rows::<11>(pairs, a, b, out),
            10 => rows::<10>(pairs, a, b, out),
            9 => rows::<9>(pairs, a, b, out),
            8 => rows::<8>(pairs, a, b, out),
            7 => rows::<7>(pairs, a, b, out),
            6 => rows::<6>(pairs, a, b, out),
            5 => rows::<5>(pairs, a, b, out),
            4 => rows::<4>(pairs, a, b, out),
            3 => rows::<3>(pairs, a, b, out),
            2 => rows::<2>(pairs, a, b, out),
            _ => rows::<1>(pairs, a, b, out),
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn rows<const N: usize>(pairs: usize, a: *const u32, b: *const u32, out: Out) {
    // SAFETY: the caller of `multiply` promised `pairs` rows of a and b.
    let sums = unsafe { sums::<N>(pairs, a, b) };
    let lanes = |n: usize| if n >= 16 { u16::MAX } else { (1u16 << n) - 1 };
    let masks = [lanes(out.cols), lanes(out.cols.saturating_sub(16))];
    for (i, sums) in sums.into_iter().enumerate() {
        for (half, mut sum) in sums.into_iter().enumerate() {
            // SAFETY: only lanes inside of the block's columns are read or written.
            unsafe {
                let at = out.start.add(i * out.stride + 16 * half);
                if out.adds {
                    sum = _mm512_add_ps(sum, _mm512_maskz_loadu_ps(masks[half], at));
                }
                _mm512_mask_storeu_ps(at, masks[half], sum);
            }
        }
    }
}

/// The sums in registers: 2 · N of 32, two for b and one for a.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512bf16")]
unsafe fn sums<const N: usize>(pairs: usize, a: *const u32, b: *const u32) -> [[__m512; 2]; N] {
    let mut sums = [[_mm512_setzero_ps(); 2]; N];
    for p in 0..pairs {
        // SAFETY: p is below `pairs`.
        let (b0, b1) = unsafe {
            let at = b.add(p * PANEL).cast::<__m512i>();
            (_mm512_loadu_si512(at), _mm512_loadu_si512(at.add(1)))
        };
        let (b0, b1) = (as_bf16(b0), as_bf16(b1));
        for (i, sum) in sums.iter_mut().enumerate() {
            // SAFETY: as above; i is below TILE.
            let pair = as_bf16(unsafe { _mm512_set1_epi32(*a.add(p * TILE + i) as i32) });
            sum[0] = _mm512_dpbf16_ps(sum[0], pair, b0);
            sum[1] = _mm512_dpbf16_ps(sum[1], pair, b1);
        }
    }
    sums
}

/// Words as pairs of bf16.
#[inline]
#[target_feature(enable = "avx512f")]
fn as_bf16(words: __m512i) -> __m512bh {
    // SAFETY: both are the same bits.
    unsafe { std::mem::transmute::<__m512i, __m512bh>(words) }
}
