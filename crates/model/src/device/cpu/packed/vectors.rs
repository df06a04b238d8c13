//! Vectors of 32-bit words, 16 or 8 of them: what packing and products need that are written once for both.
//!
//! Functions are inlined into ones that enable the instructions; by themselves they enable none.

use std::arch::x86_64::*;

use super::kernel::Out;
use super::pack;

/// Vectors of one instruction set.
///
/// # Safety
/// Of all functions: the processor has the instructions. Pointers are valid for what is read or written there.
pub(super) trait Vectors {
    /// Words of a vector.
    const LANES: usize;
    /// Registers: what a product keeps in them is sized by it.
    const REGISTERS: usize;
    type Floats: Copy;
    type Words: Copy;
    /// Some of the lanes, from the first on.
    type Lanes: Copy;

    unsafe fn lanes(n: usize) -> Self::Lanes;

    unsafe fn set_float(x: f32) -> Self::Floats;
    unsafe fn load_floats(from: *const f32) -> Self::Floats;
    unsafe fn store_floats(x: Self::Floats, to: *mut f32);
    /// Up to a vector of floats, then zeros.
    unsafe fn floats(from: &[f32]) -> Self::Floats;
    /// x · y + z
    unsafe fn multiply_add(x: Self::Floats, y: Self::Floats, z: Self::Floats) -> Self::Floats;
    unsafe fn add_floats(x: Self::Floats, y: Self::Floats) -> Self::Floats;
    unsafe fn multiply(x: Self::Floats, y: Self::Floats) -> Self::Floats;
    unsafe fn divide(x: Self::Floats, y: Self::Floats) -> Self::Floats;
    /// The larger one; y where either is no number.
    unsafe fn larger_float(x: Self::Floats, y: Self::Floats) -> Self::Floats;
    /// The smaller one; y where either is no number.
    unsafe fn smaller_float(x: Self::Floats, y: Self::Floats) -> Self::Floats;
    unsafe fn largest_float(x: Self::Floats) -> f32;
    unsafe fn sum_floats(x: Self::Floats) -> f32;
    /// x where y is not below z, zero where it is.
    unsafe fn unless_below(x: Self::Floats, y: Self::Floats, z: Self::Floats) -> Self::Floats;
    /// Sets or adds some lanes at a row and column of the result.
    unsafe fn put(sum: Self::Floats, lanes: Self::Lanes, out: Out, row: usize, column: usize);

    unsafe fn set_word(x: i32) -> Self::Words;
    unsafe fn load_words(from: *const u32) -> Self::Words;
    unsafe fn store_words(x: Self::Words, to: *mut u32);
    unsafe fn words_of(x: Self::Floats) -> Self::Words;
    unsafe fn floats_of(x: Self::Words) -> Self::Floats;
    /// Whole numbers, to nearest even.
    unsafe fn rounded(x: Self::Floats) -> Self::Words;
    unsafe fn to_floats(x: Self::Words) -> Self::Floats;
    unsafe fn and(x: Self::Words, y: Self::Words) -> Self::Words;
    unsafe fn or(x: Self::Words, y: Self::Words) -> Self::Words;
    unsafe fn xor(x: Self::Words, y: Self::Words) -> Self::Words;
    unsafe fn shifted_left(x: Self::Words, bits: i32) -> Self::Words;
    unsafe fn add(x: Self::Words, y: Self::Words) -> Self::Words;
    unsafe fn multiply_words(x: Self::Words, y: Self::Words) -> Self::Words;
    /// The larger of unsigned numbers.
    unsafe fn larger(x: Self::Words, y: Self::Words) -> Self::Words;
    /// The largest of a vector's unsigned numbers.
    unsafe fn largest(x: Self::Words) -> u32;
    unsafe fn sum(x: Self::Words) -> i32;
    /// Whole numbers of two vectors as 16 bits each, in order, as many as fit.
    unsafe fn to_halves(x: [Self::Words; 2]) -> Self::Words;
    /// Those of four as 8 bits each.
    unsafe fn to_bytes(x: [Self::Words; 4]) -> Self::Words;
    /// Turns a square of words, LANES x LANES, whose rows are `stride` apart, into one whose rows are `to_stride` apart.
    unsafe fn turn(from: *const u32, stride: usize, to: *mut u32, to_stride: usize);
}

/// 16 words.
pub(super) enum Avx512 {}

/// 8 words.
pub(super) enum Avx2 {}

/// Writes the functions of a trait: each is one expression of intrinsics.
macro_rules! functions {
    ($(fn $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)? = $body:expr;)*) => {
        $(
            #[inline(always)]
            unsafe fn $name($($arg: $ty),*) $(-> $ret)? {
                // SAFETY: the caller's promise.
                unsafe { $body }
            }
        )*
    };
}

impl Vectors for Avx512 {
    const LANES: usize = pack::LANES;
    const REGISTERS: usize = 32;
    type Floats = __m512;
    type Words = __m512i;
    type Lanes = u16;

    #[inline(always)]
    unsafe fn lanes(n: usize) -> u16 {
        pack::lanes(n)
    }

    functions! {
        fn set_float(x: f32) -> __m512 = _mm512_set1_ps(x);
        fn load_floats(from: *const f32) -> __m512 = _mm512_loadu_ps(from);
        fn store_floats(x: __m512, to: *mut f32) = _mm512_storeu_ps(to, x);
        fn floats(from: &[f32]) -> __m512 = pack::floats(from);
        fn multiply_add(x: __m512, y: __m512, z: __m512) -> __m512 = _mm512_fmadd_ps(x, y, z);
        fn add_floats(x: __m512, y: __m512) -> __m512 = _mm512_add_ps(x, y);
        fn multiply(x: __m512, y: __m512) -> __m512 = _mm512_mul_ps(x, y);
        fn divide(x: __m512, y: __m512) -> __m512 = _mm512_div_ps(x, y);
        fn larger_float(x: __m512, y: __m512) -> __m512 = _mm512_max_ps(x, y);
        fn smaller_float(x: __m512, y: __m512) -> __m512 = _mm512_min_ps(x, y);
        fn largest_float(x: __m512) -> f32 = _mm512_reduce_max_ps(x);
        fn sum_floats(x: __m512) -> f32 = _mm512_reduce_add_ps(x);
        fn unless_below(x: __m512, y: __m512, z: __m512) -> __m512 =
            _mm512_maskz_mov_ps(!_mm512_cmp_ps_mask::<_CMP_LT_OQ>(y, z), x);
        fn put(sum: __m512, lanes: u16, out: Out, row: usize, column: usize) = {
            let at = out.start.add(row * out.stride).wrapping_add(column);
            let sum = if out.adds { _mm512_add_ps(sum, _mm512_maskz_loadu_ps(lanes, at)) } else { sum };
            _mm512_mask_storeu_ps(at, lanes, sum)
        };
        fn set_word(x: i32) -> __m512i = _mm512_set1_epi32(x);
        fn load_words(from: *const u32) -> __m512i = _mm512_loadu_si512(from.cast());
        fn store_words(x: __m512i, to: *mut u32) = _mm512_storeu_si512(to.cast(), x);
        fn words_of(x: __m512) -> __m512i = _mm512_castps_si512(x);
        fn floats_of(x: __m512i) -> __m512 = _mm512_castsi512_ps(x);
        fn rounded(x: __m512) -> __m512i = _mm512_cvtps_epi32(x);
        fn to_floats(x: __m512i) -> __m512 = _mm512_cvtepi32_ps(x);
        fn and(x: __m512i, y: __m512i) -> __m512i = _mm512_and_si512(x, y);
        fn or(x: __m512i, y: __m512i) -> __m512i = _mm512_or_si512(x, y);
        fn xor(x: __m512i, y: __m512i) -> __m512i = _mm512_xor_si512(x, y);
        fn shifted_left(x: __m512i, bits: i32) -> __m512i = _mm512_sllv_epi32(x, _mm512_set1_epi32(bits));
        fn add(x: __m512i, y: __m512i) -> __m512i = _mm512_add_epi32(x, y);
        fn multiply_words(x: __m512i, y: __m512i) -> __m512i = _mm512_mullo_epi32(x, y);
        fn larger(x: __m512i, y: __m512i) -> __m512i = _mm512_max_epu32(x, y);
        fn largest(x: __m512i) -> u32 = _mm512_reduce_max_epu32(x);
        fn sum(x: __m512i) -> i32 = _mm512_reduce_add_epi32(x);
        fn to_halves(x: [__m512i; 2]) -> __m512i = {
            // Of each quarter of the packed vector the first half is of x[0].
            let order = _mm512_setr_epi32(0, 1, 4, 5, 8, 9, 12, 13, 2, 3, 6, 7, 10, 11, 14, 15);
            _mm512_permutexvar_epi32(order, _mm512_packs_epi32(x[0], x[1]))
        };
        fn to_bytes(x: [__m512i; 4]) -> __m512i = {
            let bytes = _mm512_packs_epi16(_mm512_packs_epi32(x[0], x[1]), _mm512_packs_epi32(x[2], x[3]));
            // Word 4 q + p of what was packed is word q of part p.
            let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            _mm512_permutexvar_epi32(order, bytes)
        };
        fn turn(from: *const u32, stride: usize, to: *mut u32, to_stride: usize) = {
            let mut square = [_mm512_setzero_si512(); 16];
            for (i, row) in square.iter_mut().enumerate() {
                *row = _mm512_loadu_si512(from.add(i * stride).cast());
            }
            for (i, row) in pack::transposed(square).into_iter().enumerate() {
                _mm512_storeu_si512(to.add(i * to_stride).cast(), row);
            }
        };
    }
}

impl Vectors for Avx2 {
    const LANES: usize = 8;
    const REGISTERS: usize = 16;
    type Floats = __m256;
    type Words = __m256i;
    type Lanes = __m256i;

    functions! {
        fn lanes(n: usize) -> __m256i =
            _mm256_cmpgt_epi32(_mm256_set1_epi32(n.min(8) as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
        fn set_float(x: f32) -> __m256 = _mm256_set1_ps(x);
        fn load_floats(from: *const f32) -> __m256 = _mm256_loadu_ps(from);
        fn store_floats(x: __m256, to: *mut f32) = _mm256_storeu_ps(to, x);
        fn floats(from: &[f32]) -> __m256 = match from.len() {
            8.. => _mm256_loadu_ps(from.as_ptr()),
            n => _mm256_maskload_ps(from.as_ptr(), Self::lanes(n)),
        };
        fn multiply_add(x: __m256, y: __m256, z: __m256) -> __m256 = _mm256_fmadd_ps(x, y, z);
        fn add_floats(x: __m256, y: __m256) -> __m256 = _mm256_add_ps(x, y);
        fn multiply(x: __m256, y: __m256) -> __m256 = _mm256_mul_ps(x, y);
        fn divide(x: __m256, y: __m256) -> __m256 = _mm256_div_ps(x, y);
        fn larger_float(x: __m256, y: __m256) -> __m256 = _mm256_max_ps(x, y);
        fn smaller_float(x: __m256, y: __m256) -> __m256 = _mm256_min_ps(x, y);
        fn largest_float(x: __m256) -> f32 = {
            let four = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
        };
        fn sum_floats(x: __m256) -> f32 = {
            let four = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps::<1>(x));
            let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
        };
        fn unless_below(x: __m256, y: __m256, z: __m256) -> __m256 =
            _mm256_andnot_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(y, z), x);
        fn put(sum: __m256, lanes: __m256i, out: Out, row: usize, column: usize) = {
            let at = out.start.add(row * out.stride).wrapping_add(column);
            let sum = if out.adds { _mm256_add_ps(sum, _mm256_maskload_ps(at, lanes)) } else { sum };
            _mm256_maskstore_ps(at, lanes, sum)
        };
        fn set_word(x: i32) -> __m256i = _mm256_set1_epi32(x);
        fn load_words(from: *const u32) -> __m256i = _mm256_loadu_si256(from.cast());
        fn store_words(x: __m256i, to: *mut u32) = _mm256_storeu_si256(to.cast(), x);
        fn words_of(x: __m256) -> __m256i = _mm256_castps_si256(x);
        fn floats_of(x: __m256i) -> __m256 = _mm256_castsi256_ps(x);
        fn rounded(x: __m256) -> __m256i = _mm256_cvtps_epi32(x);
        fn to_floats(x: __m256i) -> __m256 = _mm256_cvtepi32_ps(x);
        fn and(x: __m256i, y: __m256i) -> __m256i = _mm256_and_si256(x, y);
        fn or(x: __m256i, y: __m256i) -> __m256i = _mm256_or_si256(x, y);
        fn xor(x: __m256i, y: __m256i) -> __m256i = _mm256_xor_si256(x, y);
        fn shifted_left(x: __m256i, bits: i32) -> __m256i = _mm256_sllv_epi32(x, _mm256_set1_epi32(bits));
        fn add(x: __m256i, y: __m256i) -> __m256i = _mm256_add_epi32(x, y);
        fn multiply_words(x: __m256i, y: __m256i) -> __m256i = _mm256_mullo_epi32(x, y);
        fn larger(x: __m256i, y: __m256i) -> __m256i = _mm256_max_epu32(x, y);
        fn largest(x: __m256i) -> u32 = {
            let four = _mm_max_epu32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
            let two = _mm_max_epu32(four, _mm_shuffle_epi32::<0b1110>(four));
            _mm_cvtsi128_si32(_mm_max_epu32(two, _mm_shuffle_epi32::<1>(two))) as u32
        };
        fn sum(x: __m256i) -> i32 = {
            let four = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256::<1>(x));
            let two = _mm_add_epi32(four, _mm_shuffle_epi32::<0b1110>(four));
            _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<1>(two)))
        };
        fn to_halves(x: [__m256i; 2]) -> __m256i =
            _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(x[0], x[1]));
        fn to_bytes(x: [__m256i; 4]) -> __m256i = {
            let bytes = _mm256_packs_epi16(_mm256_packs_epi32(x[0], x[1]), _mm256_packs_epi32(x[2], x[3]));
            _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))
        };
        fn turn(from: *const u32, stride: usize, to: *mut u32, to_stride: usize) = {
            let mut square = [_mm256_setzero_ps(); 8];
            for (i, row) in square.iter_mut().enumerate() {
                *row = _mm256_loadu_ps(from.add(i * stride).cast());
            }
            for (i, row) in transposed(square).into_iter().enumerate() {
                _mm256_storeu_ps(to.add(i * to_stride).cast(), row);
            }
        };
    }
}

/// 8 x 8 words.
#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn transposed(rows: [__m256; 8]) -> [__m256; 8] {
    let mut pairs = rows;
    for i in (0..8).step_by(2) {
        pairs[i] = _mm256_unpacklo_ps(rows[i], rows[i + 1]);
        pairs[i + 1] = _mm256_unpackhi_ps(rows[i], rows[i + 1]);
    }
    let mut quads = pairs;
    for i in (0..8).step_by(4) {
        quads[i] = _mm256_shuffle_ps::<0x44>(pairs[i], pairs[i + 2]);
        quads[i + 1] = _mm256_shuffle_ps::<0xEE>(pairs[i], pairs[i + 2]);
        quads[i + 2] = _mm256_shuffle_ps::<0x44>(pairs[i + 1], pairs[i + 3]);
        quads[i + 3] = _mm256_shuffle_ps::<0xEE>(pairs[i + 1], pairs[i + 3]);
    }
    // Half h of quads[4 g + c] holds column 4 h + c of rows 4 g to 4 g + 3.
    let mut columns = quads;
    for c in 0..4 {
        columns[c] = _mm256_permute2f128_ps::<0x20>(quads[c], quads[4 + c]);
        columns[4 + c] = _mm256_permute2f128_ps::<0x31>(quads[c], quads[4 + c]);
    }
    columns
}
