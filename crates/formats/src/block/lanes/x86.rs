//! Lanes in the registers of AVX2 and AVX-512. `unsafe`, since an instruction may be used only where the processor has it.
//!
//! A value of these types is made nowhere but under [`super::super::dispatch`], in functions that are called only where
//! the processor has said that it has the extension; that is the reason of every `unsafe` here.
#![allow(unsafe_code)]

use std::arch::x86_64::*;
use std::ops::{Add, Div, Mul, Sub};

use super::{Lanes, Pair, Register};

/// Eight numbers in a register of AVX2.
#[derive(Clone, Copy)]
pub(in super::super) struct Avx2(__m256);

/// Sixteen numbers in a register of AVX-512.
#[derive(Clone, Copy)]
pub(in super::super) struct Avx512(__m512);

/// What [`super::super::rounding::nearest`] adds, masks and takes away.
const ROUND_TO_INTEGER: f32 = 12_582_912.0;
const INTEGER_BITS: i32 = 0x007f_ffff;
const INTEGER_ZERO: i32 = 0x0040_0000;

macro_rules! operators {
    ($type:ident: $($trait:ident $name:ident $instruction:ident,)*) => {$(
        impl $trait for $type {
            type Output = Self;

            #[inline(always)]
            fn $name(self, other: Self) -> Self {
                // SAFETY: see above.
                $type(unsafe { $instruction(self.0, other.0) })
            }
        }
    )*};
}

operators! { Avx2: Add add _mm256_add_ps, Sub sub _mm256_sub_ps, Mul mul _mm256_mul_ps, Div div _mm256_div_ps, }
operators! { Avx512: Add add _mm512_add_ps, Sub sub _mm512_sub_ps, Mul mul _mm512_mul_ps, Div div _mm512_div_ps, }

/// The nearest whole numbers, within limits.
#[inline(always)]
fn nearest_avx2(x: __m256, (least, most): (i32, i32)) -> __m256i {
    // SAFETY: see above.
    unsafe {
        let rounded = _mm256_castps_si256(_mm256_add_ps(x, _mm256_set1_ps(ROUND_TO_INTEGER)));
        let whole = _mm256_and_si256(rounded, _mm256_set1_epi32(INTEGER_BITS));
        let whole = _mm256_sub_epi32(whole, _mm256_set1_epi32(INTEGER_ZERO));
        _mm256_min_epi32(_mm256_max_epi32(whole, _mm256_set1_epi32(least)), _mm256_set1_epi32(most))
    }
}

#[inline(always)]
fn nearest_avx512(x: __m512, (least, most): (i32, i32)) -> __m512i {
    // SAFETY: see above.
    unsafe {
        let rounded = _mm512_castps_si512(_mm512_add_ps(x, _mm512_set1_ps(ROUND_TO_INTEGER)));
        let whole = _mm512_and_si512(rounded, _mm512_set1_epi32(INTEGER_BITS));
        let whole = _mm512_sub_epi32(whole, _mm512_set1_epi32(INTEGER_ZERO));
        _mm512_min_epi32(_mm512_max_epi32(whole, _mm512_set1_epi32(least)), _mm512_set1_epi32(most))
    }
}

/// The low bytes of eight whole numbers, to as many places.
#[inline(always)]
fn low_bytes_avx2(whole: __m256i, to: &mut [u8]) {
    let to = &mut to[..Avx2::N];
    // SAFETY: see above; the slice has as many places.
    unsafe {
        let whole = _mm256_and_si256(whole, _mm256_set1_epi32(255));
        let words = _mm_packus_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
        _mm_storel_epi64(to.as_mut_ptr().cast(), _mm_packus_epi16(words, words));
    }
}

/// Of sixteen.
#[inline(always)]
fn low_bytes_avx512(whole: __m512i, to: &mut [u8]) {
    let to = &mut to[..Avx512::N];
    // SAFETY: see above; the slice has as many places.
    unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(whole)) }
}

impl Lanes for Avx2 {
    const N: usize = 8;

    type Mask = __m256;

    type Register = Self;

    type InStep = Pair<Self>;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        // SAFETY: see above.
        Avx2(unsafe { _mm256_set1_ps(x) })
    }

    #[inline(always)]
    fn load(from: &[f32]) -> Self {
        // SAFETY: see above; the slice has as many numbers.
        Avx2(unsafe { _mm256_loadu_ps(from[..Self::N].as_ptr()) })
    }

    #[inline(always)]
    fn store(self, to: &mut [f32]) {
        // SAFETY: see above; the slice has as many places.
        unsafe { _mm256_storeu_ps(to[..Self::N].as_mut_ptr(), self.0) }
    }

    #[inline(always)]
    fn load_bytes(from: &[u8]) -> Self {
        // SAFETY: see above; the slice has as many bytes.
        Avx2(unsafe {
            _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(from[..Self::N].as_ptr().cast())))
        })
    }

    #[inline(always)]
    fn store_bytes(self, to: &mut [u8]) {
        // SAFETY: see above.
        low_bytes_avx2(unsafe { _mm256_cvtps_epi32(self.0) }, to);
    }

    #[inline(always)]
    fn abs(self) -> Self {
        // SAFETY: see above.
        Avx2(unsafe { _mm256_andnot_ps(_mm256_set1_ps(-0.0), self.0) })
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        // SAFETY: see above.
        Avx2(unsafe { _mm256_sqrt_ps(self.0) })
    }

    #[inline(always)]
    fn below(self, other: Self) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_cmp_ps(self.0, other.0, _CMP_LT_OQ) }
    }

    #[inline(always)]
    fn both(a: __m256, b: __m256) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_and_ps(a, b) }
    }

    #[inline(always)]
    fn either(a: __m256, b: __m256) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_or_ps(a, b) }
    }

    #[inline(always)]
    fn except(a: __m256, b: __m256) -> __m256 {
        // SAFETY: see above.
        unsafe { _mm256_andnot_ps(b, a) }
    }

    #[inline(always)]
    fn choose(mask: __m256, yes: Self, no: Self) -> Self {
        // SAFETY: see above.
        Avx2(unsafe { _mm256_blendv_ps(no.0, yes.0, mask) })
    }

    #[inline(always)]
    fn nearest(self, least: i32, most: i32) -> Self {
        // SAFETY: see above.
        Avx2(unsafe { _mm256_cvtepi32_ps(nearest_avx2(self.0, (least, most))) })
    }

    #[inline(always)]
    fn store_nearest(self, limits: (i32, i32), shift: i32, to: &mut [u8]) {
        // SAFETY: see above.
        low_bytes_avx2(
            unsafe { _mm256_add_epi32(nearest_avx2(self.0, limits), _mm256_set1_epi32(shift)) },
            to,
        );
    }

    #[inline(always)]
    fn rounded(self) -> Self {
        // SAFETY: see above.
        Avx2(unsafe { _mm256_round_ps(self.0, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC) })
    }

    #[inline(always)]
    fn limited(self, least: Self, most: Self) -> Self {
        // SAFETY: see above. Of two zeros the instructions take the second.
        Avx2(unsafe { _mm256_min_ps(_mm256_max_ps(self.0, least.0), most.0) })
    }

    #[inline(always)]
    fn lesser(self, other: Self) -> Self {
        // SAFETY: see above.
        Avx2(unsafe { _mm256_min_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn within(self, most: Self) -> Self {
        // SAFETY: see above.
        unsafe {
            let bits = _mm256_max_epi32(_mm256_castps_si256(self.0), _mm256_setzero_si256());
            Avx2(_mm256_castsi256_ps(_mm256_min_epi32(bits, _mm256_castps_si256(most.0))))
        }
    }

    /// The halves, then what is two lanes apart, then neighbours.
    #[inline(always)]
    fn first_least(self) -> (f32, usize) {
        // SAFETY: see above.
        unsafe {
            let least = _mm256_min_ps(self.0, _mm256_permute2f128_ps(self.0, self.0, 1));
            let least = _mm256_min_ps(least, _mm256_permute_ps(least, 0b01_00_11_10));
            let least = _mm256_min_ps(least, _mm256_permute_ps(least, 0b10_11_00_01));
            let lanes = _mm256_movemask_ps(_mm256_cmp_ps(self.0, least, _CMP_EQ_OQ));
            (_mm256_cvtss_f32(least), lanes.trailing_zeros() as usize)
        }
    }

    #[inline(always)]
    fn none(mask: __m256) -> bool {
        // SAFETY: see above.
        unsafe { _mm256_movemask_ps(mask) == 0 }
    }

    #[inline(always)]
    fn all(mask: __m256) -> bool {
        // SAFETY: see above.
        unsafe { _mm256_movemask_ps(mask) == 0xff }
    }

    #[inline(always)]
    fn register(&self, _index: usize) -> Self {
        *self
    }

    #[inline(always)]
    fn set_register(&mut self, _index: usize, register: Self) {
        *self = register;
    }
}

impl Register for Avx2 {
    /// Pairs of rows, then of pairs, then halves.
    #[inline(always)]
    fn transpose_square(rows: &mut [Self]) {
        let rows: &mut [Self; 8] = rows.first_chunk_mut().expect("as many vectors as lanes");
        // SAFETY: see above.
        unsafe {
            let mut a = [_mm256_setzero_ps(); 8];
            for i in 0..4 {
                a[2 * i] = _mm256_unpacklo_ps(rows[2 * i].0, rows[2 * i + 1].0);
                a[2 * i + 1] = _mm256_unpackhi_ps(rows[2 * i].0, rows[2 * i + 1].0);
            }
            let mut b = [_mm256_setzero_ps(); 8];
            for half in 0..2 {
                for i in 0..2 {
                    let (x, y) = (a[4 * half + i], a[4 * half + i + 2]);
                    b[4 * half + 2 * i] = _mm256_shuffle_ps(x, y, 0b01_00_01_00);
                    b[4 * half + 2 * i + 1] = _mm256_shuffle_ps(x, y, 0b11_10_11_10);
                }
            }
            for i in 0..4 {
                rows[i].0 = _mm256_permute2f128_ps(b[i], b[i + 4], 0x20);
                rows[i + 4].0 = _mm256_permute2f128_ps(b[i], b[i + 4], 0x31);
            }
        }
    }
}

impl Lanes for Avx512 {
    const N: usize = 16;

    type Mask = __mmask16;

    type Register = Self;

    type InStep = Pair<Pair<Self>>;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        // SAFETY: see above.
        Avx512(unsafe { _mm512_set1_ps(x) })
    }

    #[inline(always)]
    fn load(from: &[f32]) -> Self {
        // SAFETY: see above; the slice has as many numbers.
        Avx512(unsafe { _mm512_loadu_ps(from[..Self::N].as_ptr()) })
    }

    #[inline(always)]
    fn store(self, to: &mut [f32]) {
        // SAFETY: see above; the slice has as many places.
        unsafe { _mm512_storeu_ps(to[..Self::N].as_mut_ptr(), self.0) }
    }

    #[inline(always)]
    fn load_bytes(from: &[u8]) -> Self {
        // SAFETY: see above; the slice has as many bytes.
        Avx512(unsafe {
            _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(from[..Self::N].as_ptr().cast())))
        })
    }

    #[inline(always)]
    fn store_bytes(self, to: &mut [u8]) {
        // SAFETY: see above.
        low_bytes_avx512(unsafe { _mm512_cvtps_epi32(self.0) }, to);
    }

    #[inline(always)]
    fn abs(self) -> Self {
        // SAFETY: see above.
        Avx512(unsafe { _mm512_abs_ps(self.0) })
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        // SAFETY: see above.
        Avx512(unsafe { _mm512_sqrt_ps(self.0) })
    }

    #[inline(always)]
    fn below(self, other: Self) -> __mmask16 {
        // SAFETY: see above.
        unsafe { _mm512_cmp_ps_mask(self.0, other.0, _CMP_LT_OQ) }
    }

    #[inline(always)]
    fn both(a: __mmask16, b: __mmask16) -> __mmask16 {
        a & b
    }

    #[inline(always)]
    fn either(a: __mmask16, b: __mmask16) -> __mmask16 {
        a | b
    }

    #[inline(always)]
    fn except(a: __mmask16, b: __mmask16) -> __mmask16 {
        a & !b
    }

    #[inline(always)]
    fn choose(mask: __mmask16, yes: Self, no: Self) -> Self {
        // SAFETY: see above.
        Avx512(unsafe { _mm512_mask_blend_ps(mask, no.0, yes.0) })
    }

    #[inline(always)]
    fn nearest(self, least: i32, most: i32) -> Self {
        // SAFETY: see above.
        Avx512(unsafe { _mm512_cvtepi32_ps(nearest_avx512(self.0, (least, most))) })
    }

    #[inline(always)]
    fn store_nearest(self, limits: (i32, i32), shift: i32, to: &mut [u8]) {
        // SAFETY: see above.
        low_bytes_avx512(
            unsafe { _mm512_add_epi32(nearest_avx512(self.0, limits), _mm512_set1_epi32(shift)) },
            to,
        );
    }

    #[inline(always)]
    fn rounded(self) -> Self {
        // SAFETY: see above.
        Avx512(unsafe { _mm512_roundscale_ps(self.0, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC) })
    }

    #[inline(always)]
    fn limited(self, least: Self, most: Self) -> Self {
        // SAFETY: see above. Of two zeros the instructions take the second.
        Avx512(unsafe { _mm512_min_ps(_mm512_max_ps(self.0, least.0), most.0) })
    }

    #[inline(always)]
    fn lesser(self, other: Self) -> Self {
        // SAFETY: see above.
        Avx512(unsafe { _mm512_min_ps(self.0, other.0) })
    }

    #[inline(always)]
    fn within(self, most: Self) -> Self {
        // SAFETY: see above.
        unsafe {
            let bits = _mm512_max_epi32(_mm512_castps_si512(self.0), _mm512_setzero_si512());
            Avx512(_mm512_castsi512_ps(_mm512_min_epi32(bits, _mm512_castps_si512(most.0))))
        }
    }

    #[inline(always)]
    fn first_least(self) -> (f32, usize) {
        // SAFETY: see above.
        unsafe {
            let least = _mm512_reduce_min_ps(self.0);
            let lanes = _mm512_cmp_ps_mask(self.0, _mm512_set1_ps(least), _CMP_EQ_OQ);
            (least, lanes.trailing_zeros() as usize)
        }
    }

    #[inline(always)]
    fn none(mask: __mmask16) -> bool {
        mask == 0
    }

    #[inline(always)]
    fn all(mask: __mmask16) -> bool {
        mask == !0
    }

    #[inline(always)]
    fn register(&self, _index: usize) -> Self {
        *self
    }

    #[inline(always)]
    fn set_register(&mut self, _index: usize, register: Self) {
        *self = register;
    }
}

impl Register for Avx512 {
    /// Pairs of rows, then of pairs, then quarters of the register, then halves.
    #[inline(always)]
    fn transpose_square(rows: &mut [Self]) {
        let rows: &mut [Self; 16] = rows.first_chunk_mut().expect("as many vectors as lanes");
        // SAFETY: see above.
        unsafe {
            let mut a = [_mm512_setzero_ps(); 16];
            for i in 0..8 {
                a[2 * i] = _mm512_unpacklo_ps(rows[2 * i].0, rows[2 * i + 1].0);
                a[2 * i + 1] = _mm512_unpackhi_ps(rows[2 * i].0, rows[2 * i + 1].0);
            }
            let mut b = [_mm512_setzero_ps(); 16];
            for four in 0..4 {
                for i in 0..2 {
                    let (x, y) = (a[4 * four + i], a[4 * four + i + 2]);
                    b[4 * four + 2 * i] = _mm512_shuffle_ps(x, y, 0b01_00_01_00);
                    b[4 * four + 2 * i + 1] = _mm512_shuffle_ps(x, y, 0b11_10_11_10);
                }
            }
            // Column 4q + i of rows 4f.. is quarter q of b[4f + i].
            for i in 0..4 {
                let (x, y) = (b[i], b[4 + i]);
                let (z, w) = (b[8 + i], b[12 + i]);
                let (low_xy, high_xy) = (_mm512_shuffle_f32x4(x, y, 0x88), _mm512_shuffle_f32x4(x, y, 0xdd));
                let (low_zw, high_zw) = (_mm512_shuffle_f32x4(z, w, 0x88), _mm512_shuffle_f32x4(z, w, 0xdd));
                rows[i].0 = _mm512_shuffle_f32x4(low_xy, low_zw, 0x88);
                rows[8 + i].0 = _mm512_shuffle_f32x4(low_xy, low_zw, 0xdd);
                rows[4 + i].0 = _mm512_shuffle_f32x4(high_xy, high_zw, 0x88);
                rows[12 + i].0 = _mm512_shuffle_f32x4(high_xy, high_zw, 0xdd);
            }
        }
    }
}
