//! The inner products: a tile of a left side against panels of a right side, and how both are packed for it.

mod amx;
mod avx2;
mod avx512;
mod whole;

pub(super) use amx::AmxBf16;
pub(super) use avx2::Avx2F32;
pub(super) use avx512::{Avx512Bf16, Avx512F32};
pub(super) use whole::{Avx2Int16, Avx512Int8, Avx512Int16, AvxVnniInt8, AvxVnniInt16};

use std::ops::Range;

use formats::block::{BF16_GRAIN, K_BLOCK};

use super::super::memory::HostBlocks;
use super::super::products::ProductKernel;
use super::attention::Rowwise;
use super::room::GROUP;
use super::rows::Rows;
use super::vectors::Vectors;
use crate::Result;

/// Where a product is written: row i begins at i · stride. Its rows and columns are the caller's alone.
#[derive(Clone, Copy)]
pub(super) struct Out {
    pub start: *mut f32,
    pub stride: usize,
    /// Whether the sums are added to what stands there.
    pub adds: bool,
}

/// What weights are unpacked to.
pub(super) trait Weight: bytemuck::Pod {
    /// Columns of a task begin at a multiple of this, or of a block where that is shorter.
    const GRAIN: usize;

    /// Unpacks some columns of rows.
    fn unpack(
        weights: &HostBlocks,
        rows: Range<usize>,
        columns: Range<usize>,
        out: &mut [Self],
    ) -> Result<()>;
}

impl Weight for f32 {
    const GRAIN: usize = K_BLOCK;

    fn unpack(
        weights: &HostBlocks,
        rows: Range<usize>,
        columns: Range<usize>,
        out: &mut [f32],
    ) -> Result<()> {
        let mut rows = rows.zip(out.chunks_exact_mut(columns.len()));
        rows.try_for_each(|(row, out)| weights.decode_columns(row, columns.clone(), out))
    }
}

/// As bf16.
impl Weight for u16 {
    const GRAIN: usize = BF16_GRAIN;

    fn unpack(
        weights: &HostBlocks,
        rows: Range<usize>,
        columns: Range<usize>,
        out: &mut [u16],
    ) -> Result<()> {
        weights.decode_to_bf16(rows, columns, out)
    }
}

/// A kernel for one kind of processor. What a function packs is sized for it: whole tiles and panels of [`Kernel::words`].
///
/// # Safety
/// Of all functions: the processor has the kernel's instructions.
pub(super) trait Kernel {
    /// Rows of a tile of the left side.
    const TILE: usize;
    /// Columns of a panel of the right side.
    const PANEL: usize;
    /// Rows of weights that are packed together where sums go along the rows.
    const LINES: usize = GROUP;
    /// What weights are unpacked to.
    type Weight: Weight;
    /// What multiplies the terms that are added.
    type Added: DenseKernel;

    /// Words that hold the terms of a sum.
    fn words(terms: usize) -> usize;

    /// Packs a left side whose rows are x's.
    unsafe fn tiles(x: Rows<'_, f32>, to: &mut [u32]);

    /// Packs a right side whose columns from `first` on, a multiple of 16, are x's rows.
    unsafe fn weight_columns(x: Rows<'_, Self::Weight>, first: usize, to: &mut [u32]);

    /// Packs a right side of `terms` terms, of which those from `first` on, a multiple of [`Kernel::LINES`], are x's rows.
    unsafe fn weight_lines(x: Rows<'_, Self::Weight>, first: usize, terms: usize, to: &mut [u32]);

    /// out (=|+=) a · b      a (tiles, words, TILE), b (panels, words, PANEL), out (rows, cols)
    ///
    /// # Safety
    /// As all; and `out` has the rows and columns.
    unsafe fn multiply(words: usize, a: Strips<'_>, b: Strips<'_>, size: (usize, usize), out: Out);
}

/// A kernel that multiplies dense matrices too.
///
/// # Safety
/// As of [`Kernel`].
pub(super) trait DenseKernel: Kernel {
    /// Terms of a sum that one word holds.
    const TERMS: usize;
    /// Vectors of the processors that have the kernel.
    type Vectors: Rowwise;
    /// A multiple of so many terms can be left out at the beginning.
    const GRAIN: usize;

    /// Packs a left side whose rows are x's columns.
    unsafe fn tiles_down(x: Rows<'_, f32>, to: &mut [u32]);

    /// As [`Kernel::weight_columns`].
    unsafe fn columns(x: Rows<'_, f32>, first: usize, to: &mut [u32]);

    /// As [`Kernel::weight_lines`], `first` being an even number.
    unsafe fn lines(x: Rows<'_, f32>, first: usize, terms: usize, to: &mut [u32]);
}

/// One side of a product, or some words of each of its tiles or panels.
#[derive(Clone, Copy)]
pub(super) struct Strips<'a> {
    /// From the first one's first word on.
    pub words: &'a [u32],
    /// Words from one to the next.
    pub stride: usize,
}

impl<'a> Strips<'a> {
    /// `n` words of tile or panel `index`.
    fn strip(&self, index: usize, n: usize) -> &'a [u32] {
        &self.words[index * self.stride..][..n]
    }
}

/// A block of the result for each tile: its index and how many rows it has.
fn blocks(rows: usize, tile: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..rows.div_ceil(tile)).map(move |index| (index, tile.min(rows - index * tile)))
}

/// Writes the sums of a block, two vectors for each row.
///
/// # Safety
/// The processor has the vectors; `out` has N rows and the columns, of which those past the second vector are left alone.
#[inline(always)]
unsafe fn write<V: Vectors, const N: usize>(mut sums: [[V::Floats; 2]; N], cols: usize, out: Out) {
    // SAFETY: only lanes inside of the block's columns are named.
    unsafe {
        if cols < 2 * V::LANES {
            let lanes = [V::lanes(cols), V::lanes(cols.saturating_sub(V::LANES))];
            for (i, sums) in sums.into_iter().enumerate() {
                V::put(sums[0], lanes[0], out, i, 0);
                V::put(sums[1], lanes[1], out, i, V::LANES);
            }
            return;
        }
        // All is read before anything is written: in rows a power of two apart each read would seem to be of what the
        // one before has just written, and wait for it.
        if out.adds {
            for (i, [left, right]) in sums.iter_mut().enumerate() {
                let row = out.start.add(i * out.stride);
                *left = V::add_floats(*left, V::load_floats(row));
                *right = V::add_floats(*right, V::load_floats(row.add(V::LANES)));
            }
        }
        for (i, [left, right]) in sums.into_iter().enumerate() {
            let row = out.start.add(i * out.stride);
            V::store_floats(left, row);
            V::store_floats(right, row.add(V::LANES));
        }
    }
}

/// Calls a block's function for its number of rows, a constant by the name that is given.
macro_rules! by_rows {
    ($rows:expr, [$($n:literal)*], $name:ident => $call:expr) => {
        match $rows {
            $($n => {
                const $name: usize = $n;
                $call
            })*
            rows => unreachable!("a block of {rows} rows"),
        }
    };
}
use by_rows;

/// Clears the last panel of a right side where its columns do not fill it: what stands there is multiplied too, and
/// whole numbers read as f32 are subnormal, which processors multiply a hundred times more slowly.
pub(super) fn clear_beside<K: Kernel>(cols: usize, terms: usize, to: &mut [u32]) {
    let panel = K::words(terms) * K::PANEL;
    if !cols.is_multiple_of(K::PANEL) {
        to[cols / K::PANEL * panel..][..panel].fill(0);
    }
}

/// Of a right side of `terms` terms those from `first` on, `n` of them: all its words, and the end of those to write.
fn line_words<K: DenseKernel>(first: usize, n: usize, terms: usize) -> (usize, usize) {
    let words = K::words(terms);
    (words, if first + n == terms { words } else { (first + n) / K::TERMS })
}

/// The packing functions of a [`Kernel`] of floats with AVX-512, for its words and its squares or lines.
macro_rules! packing {
    ($features:literal, $words:ty, $weight:ty, $tiles:expr) => {
        type Weight = $weight;
        type Added = Self;

        #[target_feature(enable = $features)]
        unsafe fn tiles(x: Rows<'_, f32>, to: &mut [u32]) {
            // SAFETY: the caller's promise is the callee's, here and below.
            unsafe { $tiles(x, Self::words(x.cols), to) };
        }

        #[target_feature(enable = $features)]
        unsafe fn weight_columns(x: Rows<'_, $weight>, first: usize, to: &mut [u32]) {
            // SAFETY: as above.
            unsafe {
                pack::panels_of_rows::<$weight, $words, { Self::PANEL }>(x, first, Self::words(x.cols), to)
            };
        }

        #[target_feature(enable = $features)]
        unsafe fn weight_lines(x: Rows<'_, $weight>, first: usize, terms: usize, to: &mut [u32]) {
            let words = line_words::<Self>(first, x.rows, terms);
            // SAFETY: as above.
            unsafe { pack::panels_of_columns::<$weight, $words, { Self::PANEL }>(x, first, words, to) };
        }
    };
}
use packing;

/// Those of a [`DenseKernel`].
macro_rules! dense_packing {
    ($features:literal, $words:ty, $tiles_down:expr) => {
        #[target_feature(enable = $features)]
        unsafe fn tiles_down(x: Rows<'_, f32>, to: &mut [u32]) {
            // SAFETY: the caller's promise is the callee's, here and below.
            unsafe { $tiles_down(x, Self::words(x.rows), to) };
        }

        #[target_feature(enable = $features)]
        unsafe fn columns(x: Rows<'_, f32>, first: usize, to: &mut [u32]) {
            // SAFETY: as above.
            unsafe {
                pack::panels_of_rows::<f32, $words, { Self::PANEL }>(x, first, Self::words(x.cols), to)
            };
        }

        #[target_feature(enable = $features)]
        unsafe fn lines(x: Rows<'_, f32>, first: usize, terms: usize, to: &mut [u32]) {
            let words = line_words::<Self>(first, x.rows, terms);
            // SAFETY: as above.
            unsafe { pack::panels_of_columns::<f32, $words, { Self::PANEL }>(x, first, words, to) };
        }
    };
}
use dense_packing;

/// What multiplies dense matrices and attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dense {
    AmxBf16,
    Avx512Bf16,
    Avx512F32,
    Avx2F32,
    Avx512Int16,
    AvxVnniInt16,
    Avx2Int16,
}

/// What multiplies with frozen weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Frozen {
    Dense(Dense),
    Avx512Int8,
    AvxVnniInt8,
}

impl Dense {
    /// # Panics
    /// When the kernel packs nothing, or multiplies with frozen weights only.
    pub(super) fn of(kernel: ProductKernel) -> Self {
        match kernel {
            ProductKernel::AmxBf16 => Self::AmxBf16,
            ProductKernel::Avx512Bf16 => Self::Avx512Bf16,
            ProductKernel::Avx512F32 => Self::Avx512F32,
            ProductKernel::Avx2F32 => Self::Avx2F32,
            ProductKernel::Avx512Int16 => Self::Avx512Int16,
            ProductKernel::AvxVnniInt16 => Self::AvxVnniInt16,
            ProductKernel::Avx2Int16 => Self::Avx2Int16,
            ProductKernel::Avx512Int8 | ProductKernel::AvxVnniInt8 | ProductKernel::Portable => {
                panic!("{kernel:?} packs no dense matrices")
            }
        }
    }
}

impl Frozen {
    /// # Panics
    /// When the kernel packs nothing.
    pub(super) fn of(kernel: ProductKernel) -> Self {
        match kernel {
            ProductKernel::Avx512Int8 => Self::Avx512Int8,
            ProductKernel::AvxVnniInt8 => Self::AvxVnniInt8,
            dense => Self::Dense(Dense::of(dense)),
        }
    }
}

/// Whether the processor has a kernel's instructions.
pub(in super::super) fn is_possible(kernel: ProductKernel) -> bool {
    match kernel {
        ProductKernel::AmxBf16 => amx::is_possible(),
        ProductKernel::Avx512Bf16 => avx512::has_bf16(),
        ProductKernel::Avx512F32 => avx512::has_f32(),
        ProductKernel::Avx2F32 | ProductKernel::Avx2Int16 => avx2::is_possible(),
        ProductKernel::Avx512Int8 | ProductKernel::Avx512Int16 => whole::has_avx512(),
        ProductKernel::AvxVnniInt8 | ProductKernel::AvxVnniInt16 => whole::has_avx_vnni(),
        ProductKernel::Portable => false,
    }
}
