//! W + s·B·A for some rows, each weight's sum over the ranks in their order and none multiplied and added in one step: all
//! processors, and however rows are shared out, give the same bits. Vectors are named, since a compiler that finds them by
//! itself may lose them again. `unsafe`, since an instruction may be used only where the processor has it.
#![allow(unsafe_code)]

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

#[cfg(target_arch = "x86_64")]
use formats::isa::Isa;

/// Adds to consecutive rows of W (n, C_in) the product of as many rows of s·B (n, R) and A (R, C_in).
pub(super) fn add_product(rows: &mut [f32], b: &[f32], a: &[f32], cols: usize, r: usize) {
    if cols == 0 || r == 0 {
        return;
    }
    #[cfg(target_arch = "x86_64")]
    match Isa::get() {
        // SAFETY: the processor has said that it has these extensions.
        Isa::Avx512 => return unsafe { add_avx512(rows, b, a, cols, r) },
        // SAFETY: as above.
        Isa::Avx2 => return unsafe { add_avx2(rows, b, a, cols, r) },
        Isa::Baseline => {}
    }
    add_with::<[f32; 4]>(rows, b, a, cols, r);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vl")]
fn add_avx512(rows: &mut [f32], b: &[f32], a: &[f32], cols: usize, r: usize) {
    add_with::<Avx512>(rows, b, a, cols, r);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn add_avx2(rows: &mut [f32], b: &[f32], a: &[f32], cols: usize, r: usize) {
    add_with::<Avx2>(rows, b, a, cols, r);
}

/// Numbers of a register.
trait Vector: Copy {
    const N: usize;

    /// The first N numbers.
    fn load(from: &[f32]) -> Self;

    /// To the first N places.
    fn store(self, to: &mut [f32]);

    /// self + factor·x, rounded twice.
    fn plus(self, factor: f32, x: Self) -> Self;
}

/// Rows whose sums stay in registers while all ranks go by; of each two vectors.
const HEIGHT: usize = 4;

/// Numbers of A that stay in a core's first cache while all rows go by.
const TILE: usize = 4096;

/// Inlined into each of the above. Columns by tiles, so that A is not read again for each row from afar, and a tile's copied
/// beside each other: rows of A that are a power of two apart would drive each other out of the cache.
#[inline(always)]
fn add_with<V: Vector>(rows: &mut [f32], b: &[f32], a: &[f32], cols: usize, r: usize) {
    let strip = 2 * V::N;
    let n_strips = (TILE / r / strip).max(1);
    let whole = cols - cols % strip;
    let (of_high, of_single) = b.split_at(b.len() - b.len() % (HEIGHT * r));
    let of_high = by_ranks(of_high, r);
    let mut tile = Vec::with_capacity(n_strips * strip * r);
    for first in (0..whole).step_by(n_strips * strip) {
        let columns = first..(first + n_strips * strip).min(whole);
        tile.clear();
        for start in columns.clone().step_by(strip) {
            for a in a.chunks_exact(cols) {
                tile.extend_from_slice(&a[start..start + strip]);
            }
        }
        let mut high = rows.chunks_exact_mut(HEIGHT * cols);
        for (rows, b) in high.by_ref().zip(of_high.chunks_exact(r)) {
            for (start, a) in columns.clone().step_by(strip).zip(tile.chunks_exact(strip * r)) {
                add_strip::<V, HEIGHT>(rows, cols, start, b, a);
            }
        }
        for (row, b) in high.into_remainder().chunks_exact_mut(cols).zip(of_single.chunks_exact(r)) {
            let b = b.as_chunks().0;
            for (start, a) in columns.clone().step_by(strip).zip(tile.chunks_exact(strip * r)) {
                add_strip::<V, 1>(row, cols, start, b, a);
            }
        }
    }
    for (row, b) in rows.chunks_exact_mut(cols).zip(b.chunks_exact(r)) {
        for (a, b) in a.chunks_exact(cols).zip(b) {
            for (w, a) in row[whole..].iter_mut().zip(&a[whole..]) {
                *w += b * a;
            }
        }
    }
}

/// B of each [`HEIGHT`] rows, rank by rank.
#[inline(always)]
fn by_ranks(b: &[f32], r: usize) -> Vec<[f32; HEIGHT]> {
    let mut by_ranks = vec![[0.0; HEIGHT]; b.len() / HEIGHT];
    for (by_ranks, b) in by_ranks.chunks_exact_mut(r).zip(b.chunks_exact(HEIGHT * r)) {
        for (row, b) in b.chunks_exact(r).enumerate() {
            for (of_rank, b) in by_ranks.iter_mut().zip(b) {
                of_rank[row] = *b;
            }
        }
    }
    by_ranks
}

/// Two vectors of H rows that are `cols` apart.
#[inline(always)]
fn add_strip<V: Vector, const H: usize>(
    rows: &mut [f32],
    cols: usize,
    start: usize,
    b: &[[f32; H]],
    a: &[f32],
) {
    let mut sums = [[V::load(&rows[start..]); 2]; H];
    for (row, sums) in sums.iter_mut().enumerate() {
        let row = &rows[row * cols + start..][..2 * V::N];
        *sums = [V::load(row), V::load(&row[V::N..])];
    }
    for (a, b) in a.chunks_exact(2 * V::N).zip(b) {
        let a = [V::load(a), V::load(&a[V::N..])];
        for (row, sums) in sums.iter_mut().enumerate() {
            let b = b[row];
            *sums = [sums[0].plus(b, a[0]), sums[1].plus(b, a[1])];
        }
    }
    for (row, sums) in sums.iter().enumerate() {
        let row = &mut rows[row * cols + start..][..2 * V::N];
        sums[0].store(row);
        sums[1].store(&mut row[V::N..]);
    }
}

impl Vector for [f32; 4] {
    const N: usize = 4;

    #[inline(always)]
    fn load(from: &[f32]) -> Self {
        *from.first_chunk().expect("as many numbers as lanes")
    }

    #[inline(always)]
    fn store(self, to: &mut [f32]) {
        to[..Self::N].copy_from_slice(&self);
    }

    #[inline(always)]
    fn plus(mut self, factor: f32, x: Self) -> Self {
        for (sum, x) in self.iter_mut().zip(x) {
            *sum += factor * x;
        }
        self
    }
}

/// The numbers of a register, by the instructions of an extension.
#[cfg(target_arch = "x86_64")]
macro_rules! vector {
    ($name:ident, $register:ident, $n:literal, $load:ident, $store:ident, $splat:ident, $add:ident, $mul:ident) => {
        #[derive(Clone, Copy)]
        struct $name($register);

        impl Vector for $name {
            const N: usize = $n;

            #[inline(always)]
            fn load(from: &[f32]) -> Self {
                // SAFETY: a value of this type is made only where the processor has it; the slice has as many numbers.
                $name(unsafe { $load(from[..Self::N].as_ptr()) })
            }

            #[inline(always)]
            fn store(self, to: &mut [f32]) {
                // SAFETY: as above.
                unsafe { $store(to[..Self::N].as_mut_ptr(), self.0) }
            }

            #[inline(always)]
            fn plus(self, factor: f32, x: Self) -> Self {
                // SAFETY: as above.
                $name(unsafe { $add(self.0, $mul($splat(factor), x.0)) })
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
vector!(Avx2, __m256, 8, _mm256_loadu_ps, _mm256_storeu_ps, _mm256_set1_ps, _mm256_add_ps, _mm256_mul_ps);
#[cfg(target_arch = "x86_64")]
vector!(Avx512, __m512, 16, _mm512_loadu_ps, _mm512_storeu_ps, _mm512_set1_ps, _mm512_add_ps, _mm512_mul_ps);
