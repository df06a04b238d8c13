//! Vectors of whole numbers: multiplied, and added to whole sums, by one instruction or two. What a group of 64 terms adds
//! up to is exact; its scales bring it to the f32 sums.
//!
//! Source: Intel's Software Developer's Manual, VPDPBUSD, VPDPWSSD and, where processors have neither, VPMADDWD.

use std::arch::is_x86_feature_detected as has;
use std::arch::x86_64::*;

use super::super::quantise::{self, GROUP, Int8, Int16, Left, Right, Side, Whole};
use super::super::rows::Rows;
use super::super::vectors::{Avx2, Avx512, Vectors};
use super::{Avx2F32, Avx512F32, DenseKernel, Kernel, Out, Strips, avx2, avx512, blocks, by_rows, write};

/// Blocks of rows that meet a panel one after another.
const AT_ONCE: usize = 64;

/// Whether the processor has what `Avx512Int8` and `Avx512Int16` are made of.
pub(in super::super) fn has_avx512() -> bool {
    avx512::has_f32() && has!("avx512vnni")
}

/// What `AvxVnniInt8` and `AvxVnniInt16` are made of.
pub(in super::super) fn has_avx_vnni() -> bool {
    avx2::is_possible() && has!("avxvnni")
}

/// What a kernel of whole numbers is made of.
trait Dots {
    type Vectors: Vectors;
    type Whole: Whole;
    /// Rows of a block: with two vectors of the right side their whole sums fill half the registers or more.
    const BLOCK: usize = if Self::Vectors::REGISTERS == 32 { 8 } else { 6 };

    /// sums + right · left, word by word
    ///
    /// # Safety
    /// The processor has the kernel's instructions.
    unsafe fn dot(sums: Words<Self>, right: Words<Self>, left: Words<Self>) -> Words<Self>;
}

type Words<D> = <<D as Dots>::Vectors as Vectors>::Words;

macro_rules! kernel {
    ($(#[$meta:meta])* $kernel:ident, $features:literal, $vectors:ty, $whole:ty, $added:ty, $dot:expr) => {
        $(#[$meta])*
        pub(in super::super) enum $kernel {}

        impl Dots for $kernel {
            type Vectors = $vectors;
            type Whole = $whole;

            #[inline(always)]
            unsafe fn dot(sums: Words<Self>, right: Words<Self>, left: Words<Self>) -> Words<Self> {
                // SAFETY: the caller's promise.
                unsafe { $dot(sums, right, left) }
            }
        }

        impl Kernel for $kernel {
            const TILE: usize = Left::<$vectors>::WIDTH;
            const PANEL: usize = Right::<$vectors>::WIDTH;
            const LINES: usize = GROUP;
            type Weight = f32;
            type Added = $added;

            fn words(terms: usize) -> usize {
                terms.div_ceil(GROUP) * <$whole>::WORDS
            }

            #[target_feature(enable = $features)]
            unsafe fn tiles(x: Rows<'_, f32>, to: &mut [u32]) {
                // SAFETY: the caller's promise is the callee's, here and below.
                unsafe { quantise::of_rows::<$whole, Left<$vectors>>(x, 0, to) };
            }

            #[target_feature(enable = $features)]
            unsafe fn weight_columns(x: Rows<'_, f32>, first: usize, to: &mut [u32]) {
                // SAFETY: as above.
                unsafe { quantise::of_rows::<$whole, Right<$vectors>>(x, first, to) };
            }

            #[target_feature(enable = $features)]
            unsafe fn weight_lines(x: Rows<'_, f32>, first: usize, terms: usize, to: &mut [u32]) {
                // SAFETY: as above.
                unsafe { quantise::of_columns::<$whole, Right<$vectors>>(x, first, terms, to) };
            }

            #[target_feature(enable = $features)]
            unsafe fn multiply(words: usize, a: Strips<'_>, b: Strips<'_>, size: (usize, usize), out: Out) {
                // SAFETY: as above.
                unsafe { multiply::<Self, { Self::TILE }, { Self::PANEL }>(words, a, b, size, out) };
            }
        }
    };
}

/// Those that multiply dense matrices too.
macro_rules! dense_kernel {
    ($kernel:ident, $features:literal, $vectors:ty) => {
        impl DenseKernel for $kernel {
            const TERMS: usize = Int16::TERMS;
            type Vectors = $vectors;
            const GRAIN: usize = GROUP;

            #[target_feature(enable = $features)]
            unsafe fn tiles_down(x: Rows<'_, f32>, to: &mut [u32]) {
                // SAFETY: the caller's promise is the callee's, here and below.
                unsafe { quantise::of_columns::<Int16, Left<$vectors>>(x, 0, x.rows, to) };
            }

            #[target_feature(enable = $features)]
            unsafe fn columns(x: Rows<'_, f32>, first: usize, to: &mut [u32]) {
                // SAFETY: as above.
                unsafe { quantise::of_rows::<Int16, Right<$vectors>>(x, first, to) };
            }

            #[target_feature(enable = $features)]
            unsafe fn lines(x: Rows<'_, f32>, first: usize, terms: usize, to: &mut [u32]) {
                // SAFETY: as above.
                unsafe { quantise::of_columns::<Int16, Right<$vectors>>(x, first, terms, to) };
            }
        }
    };
}

kernel!(
    /// Whole numbers of eight bits, vectors of 16 words.
    Avx512Int8, "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni", Avx512, Int8, Avx512F32, _mm512_dpbusd_epi32
);
kernel!(
    /// Of thirteen bits.
    Avx512Int16, "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni", Avx512, Int16, Avx512F32, _mm512_dpwssd_epi32
);
kernel!(
    /// Whole numbers of eight bits, vectors of 8 words.
    AvxVnniInt8, "avx2,fma,avxvnni", Avx2, Int8, Avx2F32, _mm256_dpbusd_avx_epi32
);
kernel!(
    /// Of thirteen bits.
    AvxVnniInt16, "avx2,fma,avxvnni", Avx2, Int16, Avx2F32, _mm256_dpwssd_avx_epi32
);
kernel!(
    /// Of thirteen bits, by two instructions.
    Avx2Int16, "avx2,fma", Avx2, Int16, Avx2F32,
    |sums, right, left| _mm256_add_epi32(sums, _mm256_madd_epi16(right, left))
);
dense_kernel!(Avx512Int16, "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni", Avx512);
dense_kernel!(AvxVnniInt16, "avx2,fma,avxvnni", Avx2);
dense_kernel!(Avx2Int16, "avx2,fma", Avx2);

/// [`Kernel::multiply`]
#[inline(always)]
unsafe fn multiply<D: Dots, const TILE: usize, const PANEL: usize>(
    words: usize,
    a: Strips<'_>,
    b: Strips<'_>,
    (rows, cols): (usize, usize),
    out: Out,
) {
    let groups = words / D::Whole::WORDS;
    // Many rows meet all panels in parts whose tiles and sums stay in a second-level cache.
    for part in (0..rows.div_ceil(D::BLOCK)).step_by(AT_ONCE) {
        for panel in 0..cols.div_ceil(PANEL) {
            let (column, b) = (panel * PANEL, b.strip(panel, words * PANEL));
            for (index, rows) in blocks(rows, D::BLOCK).skip(part).take(AT_ONCE) {
                let (tile, row) = (index * D::BLOCK / TILE, index * D::BLOCK % TILE);
                let a = &a.strip(tile, words * TILE)[row..];
                // SAFETY: the caller's promises; a and b hold the groups.
                unsafe {
                    let start = out.start.add(index * D::BLOCK * out.stride + column);
                    let (a, b, cols) = (a.as_ptr(), b.as_ptr(), cols - column);
                    let out = Out { start, ..out };
                    by_rows!(rows, [8 7 6 5 4 3 2 1], N => block::<N, D, TILE, PANEL>(groups, a, b, cols, out));
                }
            }
        }
    }
}

/// One block of the result      a (groups, words, TILE), b (groups, words, PANEL)
///
/// # Safety
/// The kernel's instructions; a and b hold the groups; `out` has N rows and the columns.
#[inline(always)]
unsafe fn block<const N: usize, D: Dots, const TILE: usize, const PANEL: usize>(
    groups: usize,
    a: *const u32,
    b: *const u32,
    cols: usize,
    out: Out,
) {
    type V<D> = <D as Dots>::Vectors;
    let (n_words, scale_at) = (D::Whole::WORDS, D::Whole::SCALE);
    // SAFETY: the group is below `groups`, the word below WORDS, i below the block's rows.
    unsafe {
        let mut sums = [[V::<D>::set_float(0.0); 2]; N];
        for group in 0..groups {
            let left = |word: usize, i: usize| *a.add((group * n_words + word) * TILE + i);
            let right = |word: usize, half: usize| {
                V::<D>::load_words(b.add((group * n_words + word) * PANEL + half * V::<D>::LANES))
            };
            let mut whole = [[V::<D>::set_word(0); 2]; N];
            for (i, whole) in whole.iter_mut().enumerate() {
                *whole = [V::<D>::set_word(left(0, i) as i32); 2];
            }
            for word in 1..scale_at {
                let (b0, b1) = (right(word, 0), right(word, 1));
                for (i, whole) in whole.iter_mut().enumerate() {
                    let x = V::<D>::set_word(left(word, i) as i32);
                    whole[0] = D::dot(whole[0], b0, x);
                    whole[1] = D::dot(whole[1], b1, x);
                }
            }
            let scales = [V::<D>::floats_of(right(scale_at, 0)), V::<D>::floats_of(right(scale_at, 1))];
            for (i, (sum, whole)) in sums.iter_mut().zip(whole).enumerate() {
                let scale = V::<D>::set_float(f32::from_bits(left(scale_at, i)));
                for ((sum, whole), of_column) in sum.iter_mut().zip(whole).zip(scales) {
                    let of_column = V::<D>::multiply(V::<D>::to_floats(whole), of_column);
                    *sum = V::<D>::multiply_add(of_column, scale, *sum);
                }
            }
        }
        write::<V<D>, N>(sums, cols, out);
    }
}
