//! Blocks unpacked to bf16, for products that take their factors so: what [`super::dispatch::decode`] gives, rounded to
//! nearest even, with subnormals taken for zeros.
//!
//! With AVX-512 most formats come without f32 between: a group's few values are rounded once, in a table that a register
//! holds, and its codes look them up. `unsafe` as in `dispatch`.
#![allow(unsafe_code)]

use std::ops::Range;

use super::{BlockType, dispatch, plain};

/// Columns that pass through f32 at a time: whole blocks of every format.
const SPAN: usize = 256;

/// Decodes some columns of rows, lengths and columns having been checked.
pub(super) fn decode(
    ty: BlockType,
    rows: &[u8],
    (row_bytes, cols): (usize, usize),
    columns: Range<usize>,
    out: &mut [u16],
) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;
        if has!("avx512bf16") && has!("avx512f") && has!("avx512vl") && has!("avx512bw") && has!("avx512dq") {
            // SAFETY: the processor has just said that it has these extensions.
            let is_done = unsafe { avx512::decode(ty, rows, (row_bytes, cols), columns.clone(), out) };
            if is_done {
                return;
            }
        }
    }
    for (row, out) in rows.chunks_exact(row_bytes).zip(out.chunks_exact_mut(columns.len())) {
        match ty {
            BlockType::BF16 => copy(&row[2 * columns.start..], out),
            _ => through_f32(ty, row, cols, columns.clone(), out),
        }
    }
}

fn copy(row: &[u8], out: &mut [u16]) {
    let bits = row.as_chunks::<2>().0;
    out.iter_mut().zip(bits).for_each(|(out, bits)| *out = u16::from_le_bytes(*bits));
}

/// Any format on any processor.
fn through_f32(ty: BlockType, row: &[u8], cols: usize, columns: Range<usize>, out: &mut [u16]) {
    let mut floats = [0.0; SPAN];
    let has_header = matches!(ty, BlockType::Nf4 | BlockType::Nf4Ic);
    for first in (columns.start / SPAN * SPAN..columns.end).step_by(SPAN) {
        let span = first..(first + SPAN).min(cols);
        let blocks =
            if has_header { row } else { &row[first * row.len() / cols..span.end * row.len() / cols] };
        dispatch::decode(ty, blocks, (cols, first), &mut floats[..span.len()]);
        let wanted = columns.start.max(span.start)..columns.end.min(span.end);
        let floats = &floats[wanted.start - first..wanted.end - first];
        let out = &mut out[wanted.start - columns.start..][..wanted.len()];
        out.iter_mut().zip(floats).for_each(|(out, x)| *out = rounded(*x));
    }
}

/// To nearest even; subnormals to zero; what is no number stays none.
fn rounded(x: f32) -> u16 {
    plain::bf16_bits(if x.is_subnormal() { 0f32.copysign(x) } else { x })
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;
    use std::ops::Range;

    use super::super::{BlockType, K_BLOCK, float16, k_scales, nf4, nf4_ic, q4_0, q4_k, q5_k, q6_k, q8_0};

    /// Whether the format was one of those that come directly.
    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx512bf16")]
    pub(super) fn decode(
        ty: BlockType,
        rows: &[u8],
        (row_bytes, cols): (usize, usize),
        columns: Range<usize>,
        out: &mut [u16],
    ) -> bool {
        let rows = rows.chunks_exact(row_bytes).zip(out.chunks_exact_mut(columns.len()));
        match ty {
            BlockType::Q4K => rows.for_each(|(row, out)| decode_q4_k(row, columns.start, out)),
            BlockType::Q5K => rows.for_each(|(row, out)| decode_q5_k(row, columns.start, out)),
            BlockType::Q6K => rows.for_each(|(row, out)| decode_q6_k(row, columns.start, out)),
            BlockType::Q4_0 => rows.for_each(|(row, out)| decode_q4_0(row, columns.start, out)),
            BlockType::Q8_0 => rows.for_each(|(row, out)| decode_q8_0(row, columns.start, out)),
            BlockType::Nf4 => rows.for_each(|(row, out)| {
                nf4::each_block(row, cols, columns.start, columns.len(), |index, table, codes| {
                    decode_pairs(table, codes, &mut out[index * nf4::LEN..][..nf4::LEN]);
                });
            }),
            BlockType::Nf4Ic => rows.for_each(|(row, out)| {
                nf4_ic::each_block(row, cols, columns.start, columns.len(), |index, table, codes| {
                    decode_pairs(table, codes, &mut out[index * nf4::LEN..][..nf4::LEN]);
                });
            }),
            _ => return false,
        }
        true
    }

    /// Calls `each` with every block that has some of the columns from `start` on, which groups of 32 of it these are,
    /// and where they go.
    #[inline(always)]
    fn each_k_block<const BYTES: usize>(
        row: &[u8],
        start: usize,
        out: &mut [u16],
        mut each: impl FnMut(&[u8; BYTES], usize, &mut [[u16; 32]]),
    ) {
        let (mut column, mut rest) = (start, out.as_chunks_mut::<32>().0);
        let blocks = row.as_chunks::<BYTES>().0;
        while !rest.is_empty() {
            let group = column % K_BLOCK / 32;
            let n = (K_BLOCK / 32 - group).min(rest.len());
            let (part, later) = rest.split_at_mut(n);
            each(&blocks[column / K_BLOCK], group, part);
            (column, rest) = (column + 32 * n, later);
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn ramp() -> __m512 {
        _mm512_setr_ps(0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.)
    }

    /// Sixteen floats as the first entries of a table.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vl,avx512bf16")]
    fn table(values: __m512) -> __m512i {
        // SAFETY: a vector of bf16 and one of integers are the same bits.
        _mm512_castsi256_si512(unsafe {
            std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(values))
        })
    }

    /// 32 floats as bf16.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn rounded(low: __m512, high: __m512) -> __m512i {
        // SAFETY: as above.
        unsafe { std::mem::transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low)) }
    }

    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn store(line: __m512i, to: &mut [u16; 32]) {
        // SAFETY: 32 numbers take the vector.
        unsafe { _mm512_storeu_epi16(to.as_mut_ptr().cast(), line) };
    }

    #[inline]
    #[target_feature(enable = "avx")]
    fn bytes(from: &[u8; 32]) -> __m256i {
        // SAFETY: the array has 32 bytes.
        unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn low_codes(bytes: __m256i) -> __m256i {
        _mm256_and_si256(bytes, _mm256_set1_epi8(15))
    }

    #[inline]
    #[target_feature(enable = "avx2")]
    fn high_codes(bytes: __m256i) -> __m256i {
        low_codes(_mm256_srli_epi16::<4>(bytes))
    }

    /// The entries of 32 codes.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn look_up(table: __m512i, codes: __m256i) -> __m512i {
        _mm512_permutexvar_epi16(_mm512_cvtepu8_epi16(codes), table)
    }

    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx512bf16")]
    fn decode_q4_k(row: &[u8], start: usize, out: &mut [u16]) {
        each_k_block::<{ q4_k::BYTES }>(row, start, out, |block, first, out| {
            let scales = k_scales::of_block(block);
            let codes = block[16..].as_chunks::<32>().0;
            for (j, out) in (first..).zip(out) {
                let codes = bytes(&codes[j / 2]);
                let codes = if j % 2 == 0 { low_codes(codes) } else { high_codes(codes) };
                let (scale, min) = scales[j];
                let scaled = _mm512_mul_ps(_mm512_set1_ps(scale), ramp());
                store(look_up(table(_mm512_sub_ps(scaled, _mm512_set1_ps(min))), codes), out);
            }
        });
    }

    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx512bf16")]
    fn decode_q5_k(row: &[u8], start: usize, out: &mut [u16]) {
        each_k_block::<{ q5_k::BYTES }>(row, start, out, |block, first, out| {
            let scales = k_scales::of_block(block);
            let (fifth, low) = block[16..].split_at(32);
            let fifth = bytes(fifth.first_chunk().expect("split at 32"));
            let low = low.as_chunks::<32>().0;
            for (j, out) in (first..).zip(out) {
                let codes = bytes(&low[j / 2]);
                let codes = if j % 2 == 0 { low_codes(codes) } else { high_codes(codes) };
                let has_fifth = _mm256_test_epi8_mask(fifth, _mm256_set1_epi8((1u8 << j).cast_signed()));
                let codes = _mm256_mask_add_epi8(codes, has_fifth, codes, _mm256_set1_epi8(16));
                let (scale, min) = (_mm512_set1_ps(scales[j].0), _mm512_set1_ps(scales[j].1));
                let value = |code| _mm512_sub_ps(_mm512_mul_ps(scale, code), min);
                let upper = _mm512_add_ps(ramp(), _mm512_set1_ps(16.0));
                store(look_up(rounded(value(ramp()), value(upper)), codes), out);
            }
        });
    }

    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx512bf16")]
    fn decode_q6_k(row: &[u8], start: usize, out: &mut [u16]) {
        each_k_block::<{ q6_k::BYTES }>(row, start, out, |block, first, out| {
            let d = float16::from_bytes([block[208], block[209]]);
            let (low, high) = (block[q6_k::LOW].as_chunks::<32>().0, block[q6_k::HIGH].as_chunks::<32>().0);
            let scales = &block[q6_k::SCALES];
            for (group, out) in (first..).zip(out) {
                let (half, row) = (group / 4, group % 4);
                let low = bytes(&low[2 * half + row % 2]);
                let low = if row < 2 { low_codes(low) } else { high_codes(low) };
                let shift = _mm_cvtsi32_si128(2 * row as i32);
                let high = _mm256_and_si256(_mm256_srl_epi16(bytes(&high[half]), shift), _mm256_set1_epi8(3));
                let codes = _mm256_or_si256(low, _mm256_slli_epi16::<4>(high));
                let codes = _mm256_sub_epi8(codes, _mm256_set1_epi8(32));
                let scale = |i: usize| _mm512_set1_ps(d * f32::from(scales[2 * group + i].cast_signed()));
                store(scaled(codes, scale(0), scale(1)), out);
            }
        });
    }

    /// 32 signed bytes times a scale each half.
    #[inline]
    #[target_feature(enable = "avx512f,avx512vl,avx512bf16")]
    fn scaled(codes: __m256i, low: __m512, high: __m512) -> __m512i {
        let floats = |codes| _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(codes));
        let lower = _mm512_mul_ps(low, floats(_mm256_castsi256_si128(codes)));
        rounded(lower, _mm512_mul_ps(high, floats(_mm256_extracti128_si256::<1>(codes))))
    }

    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx512bf16")]
    fn decode_q4_0(row: &[u8], start: usize, out: &mut [u16]) {
        let blocks = &row.as_chunks::<{ q4_0::BYTES }>().0[start / 32..];
        for (block, out) in blocks.iter().zip(out.as_chunks_mut::<32>().0) {
            let [d0, d1, codes @ ..] = block;
            let scale = _mm512_set1_ps(float16::from_bytes([*d0, *d1]));
            let values = _mm512_mul_ps(_mm512_sub_ps(ramp(), _mm512_set1_ps(8.0)), scale);
            // SAFETY: a block has 16 bytes of codes.
            let pairs = unsafe { _mm_loadu_si128(codes.as_ptr().cast()) };
            let codes = _mm256_set_m128i(_mm_srli_epi16::<4>(pairs), pairs);
            store(look_up(table(values), low_codes(codes)), out);
        }
    }

    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx512bf16")]
    fn decode_q8_0(row: &[u8], start: usize, out: &mut [u16]) {
        let blocks = &row.as_chunks::<{ q8_0::BYTES }>().0[start / 32..];
        for (block, out) in blocks.iter().zip(out.as_chunks_mut::<32>().0) {
            let [d0, d1, codes @ ..] = block;
            let scale = _mm512_set1_ps(float16::from_bytes([*d0, *d1]));
            store(scaled(bytes(codes), scale, scale), out);
        }
    }

    /// 64 codes, two a byte, the first in the lower half.
    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx512bf16")]
    fn decode_pairs(values: &[f32; 16], codes: &[u8; 32], out: &mut [u16]) {
        // SAFETY: the array has sixteen floats.
        let table = table(unsafe { _mm512_loadu_ps(values.as_ptr()) });
        for (codes, out) in codes.as_chunks::<16>().0.iter().zip(out.as_chunks_mut::<32>().0) {
            // SAFETY: the array has sixteen bytes.
            let pairs = _mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(codes.as_ptr().cast()) });
            // The permutation reads five bits of each half, of which the fifth must be zero.
            let low = _mm512_and_si512(pairs, _mm512_set1_epi32(15));
            let codes = _mm512_or_si512(low, _mm512_slli_epi32::<16>(_mm512_srli_epi32::<4>(pairs)));
            store(_mm512_permutexvar_epi16(codes, table), out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{decode_rows_to_bf16, encode};
    use super::*;

    #[test]
    fn every_format_comes_as_its_floats_rounded() {
        let mut state = 5u64;
        let mut uniform = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        let (n, cols) = (3, 1536);
        // Some groups tiny, some large: scales of every size.
        let weight = |i: usize| uniform() * 10f32.powi((i / 96 % 7) as i32 - 3);
        let weights: Vec<f32> = (0..n * cols).map(weight).collect();
        for ty in BlockType::ALL {
            let row_bytes = ty.row_bytes(cols).unwrap();
            let mut rows = vec![0; n * row_bytes];
            let importance = ty.needs_importance().then(|| vec![1.0; cols]);
            encode(ty, &weights, cols, importance.as_deref(), &mut rows).unwrap();
            let mut floats = vec![0.0; n * cols];
            for (row, floats) in rows.chunks(row_bytes).zip(floats.chunks_mut(cols)) {
                super::super::decode(ty, row, floats).unwrap();
            }
            for columns in [0..cols, 256..1280, 512..768, 128..384, 896..1024, 640..1536] {
                let mut out = vec![0; n * columns.len()];
                decode_rows_to_bf16(ty, &rows, cols, columns.clone(), &mut out).unwrap();
                let part = floats.chunks(cols).flat_map(|row| &row[columns.clone()]);
                let expected: Vec<u16> = part.map(|x| rounded(*x)).collect();
                assert_eq!(out, expected, "{ty}");
                let mut slow = vec![0; columns.len()];
                through_f32(ty, &rows[..row_bytes], cols, columns.clone(), &mut slow);
                assert_eq!(slow, expected[..slow.len()], "{ty}");
            }
        }
        assert!(decode_rows_to_bf16(BlockType::Q4K, &[0; 144], 256, 64..256, &mut [0; 192]).is_err());
        assert!(decode_rows_to_bf16(BlockType::Q4K, &[0; 144], 256, 0..512, &mut [0; 512]).is_err());
        assert!(decode_rows_to_bf16(BlockType::Q4K, &[0; 143], 256, 0..256, &mut [0; 256]).is_err());
        assert_eq!(rounded(f32::from_bits(0x3F80_8000)), 0x3F80);
        assert_eq!(rounded(f32::from_bits(0x3F81_8000)), 0x3F82);
        assert_eq!(rounded(-1e-40), 0x8000);
        assert!(f32::from_bits(u32::from(rounded(f32::NAN)) << 16).is_nan());
    }
}
