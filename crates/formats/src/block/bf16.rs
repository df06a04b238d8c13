//! Blocks unpacked to bf16, for products that take their factors so: what [`super::dispatch::decode`] gives, rounded to
//! nearest even, with subnormals taken for zeros.
//!
//! With AVX-512 most formats come without f32 between: a group's few values are rounded once, in a table that a register
//! holds, and its codes look them up. `unsafe` as in `dispatch`.
#![allow(unsafe_code)]

use super::{BlockType, dispatch};

/// Weights that pass through f32 at a time.
const CHUNK: usize = 256;

/// Decodes whole blocks whose lengths have been checked; of NF4 those from column `start` on of a row of `cols`.
pub(super) fn decode(ty: BlockType, blocks: &[u8], (cols, start): (usize, usize), out: &mut [u16]) {
    if ty == BlockType::BF16 {
        let bits = blocks.as_chunks::<2>().0;
        return out.iter_mut().zip(bits).for_each(|(out, bits)| *out = u16::from_le_bytes(*bits));
    }
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::is_x86_feature_detected as has;
        if has!("avx512bf16") && has!("avx512f") && has!("avx512vl") && has!("avx512bw") && has!("avx512dq") {
            // SAFETY: the processor has just said that it has these extensions.
            let is_done = unsafe { avx512::decode(ty, blocks, (cols, start), out) };
            if is_done {
                return;
            }
        }
    }
    through_f32(ty, blocks, (cols, start), out);
}

/// Any format on any processor.
fn through_f32(ty: BlockType, blocks: &[u8], (cols, start): (usize, usize), out: &mut [u16]) {
    let mut floats = [0.0; CHUNK];
    let has_header = matches!(ty, BlockType::Nf4 | BlockType::Nf4Ic);
    let chunk_bytes = blocks.len() * CHUNK / out.len().max(1);
    for (index, out) in out.chunks_mut(CHUNK).enumerate() {
        let floats = &mut floats[..out.len()];
        let blocks = if has_header { blocks } else { &blocks[index * chunk_bytes..] };
        let blocks = if has_header { blocks } else { &blocks[..chunk_bytes.min(blocks.len())] };
        dispatch::decode(ty, blocks, (cols, start + index * CHUNK), floats);
        out.iter_mut().zip(&*floats).for_each(|(out, x)| *out = rounded(*x));
    }
}

/// To nearest even; subnormals to zero; what is no number stays none.
#[allow(clippy::cast_possible_truncation, reason = "the upper half is what is kept")]
fn rounded(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        (bits >> 16) as u16 | 0x40
    } else if x.is_subnormal() {
        (bits >> 16) as u16 & 0x8000
    } else {
        ((bits + (0x7fff + ((bits >> 16) & 1))) >> 16) as u16
    }
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::*;

    use super::super::{BlockType, K_BLOCK, float16, k_scales, nf4, nf4_ic, q4_0, q4_k, q5_k, q6_k, q8_0};

    /// Whether the format was one of those that come directly.
    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx512bf16")]
    pub(super) fn decode(
        ty: BlockType,
        blocks: &[u8],
        (cols, start): (usize, usize),
        out: &mut [u16],
    ) -> bool {
        match ty {
            BlockType::Q4K => decode_q4_k(blocks, out),
            BlockType::Q5K => decode_q5_k(blocks, out),
            BlockType::Q6K => decode_q6_k(blocks, out),
            BlockType::Q4_0 => decode_q4_0(blocks, out),
            BlockType::Q8_0 => decode_q8_0(blocks, out),
            BlockType::Nf4 => nf4::each_block(blocks, cols, start, out.len(), |index, table, codes| {
                decode_pairs(table, codes, &mut out[index * nf4::LEN..][..nf4::LEN]);
            }),
            BlockType::Nf4Ic => nf4_ic::each_block(blocks, cols, start, out.len(), |index, table, codes| {
                decode_pairs(table, codes, &mut out[index * nf4::LEN..][..nf4::LEN]);
            }),
            _ => return false,
        }
        true
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
    fn decode_q4_k(blocks: &[u8], out: &mut [u16]) {
        let blocks = blocks.as_chunks::<{ q4_k::BYTES }>().0;
        for (block, out) in blocks.iter().zip(out.as_chunks_mut::<K_BLOCK>().0) {
            let scales = k_scales::decoded(
                [block[0], block[1]],
                [block[2], block[3]],
                block[4..].first_chunk().expect("a block is longer"),
            );
            let pairs = out.as_chunks_mut::<64>().0.iter_mut().zip(block[16..].as_chunks::<32>().0);
            for ((out, codes), scales) in pairs.zip(scales.as_chunks::<2>().0) {
                let codes = bytes(codes);
                for (out, (codes, (scale, min))) in out
                    .as_chunks_mut::<32>()
                    .0
                    .iter_mut()
                    .zip([low_codes(codes), high_codes(codes)].into_iter().zip(scales))
                {
                    let scaled = _mm512_mul_ps(_mm512_set1_ps(*scale), ramp());
                    let values = _mm512_sub_ps(scaled, _mm512_set1_ps(*min));
                    store(look_up(table(values), codes), out);
                }
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx512bf16")]
    fn decode_q5_k(blocks: &[u8], out: &mut [u16]) {
        let blocks = blocks.as_chunks::<{ q5_k::BYTES }>().0;
        for (block, out) in blocks.iter().zip(out.as_chunks_mut::<K_BLOCK>().0) {
            let scales = k_scales::decoded(
                [block[0], block[1]],
                [block[2], block[3]],
                block[4..].first_chunk().expect("a block is longer"),
            );
            let (fifth, low) = block[16..].split_at(32);
            let fifth = bytes(fifth.first_chunk().expect("split at 32"));
            let low = low.as_chunks::<32>().0;
            for (j, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                let codes = bytes(&low[j / 2]);
                let codes = if j % 2 == 0 { low_codes(codes) } else { high_codes(codes) };
                let has_fifth = _mm256_test_epi8_mask(fifth, _mm256_set1_epi8((1u8 << j).cast_signed()));
                let codes = _mm256_mask_add_epi8(codes, has_fifth, codes, _mm256_set1_epi8(16));
                let (scale, min) = (_mm512_set1_ps(scales[j].0), _mm512_set1_ps(scales[j].1));
                let value = |code| _mm512_sub_ps(_mm512_mul_ps(scale, code), min);
                let upper = _mm512_add_ps(ramp(), _mm512_set1_ps(16.0));
                store(look_up(rounded(value(ramp()), value(upper)), codes), out);
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq,avx512bf16")]
    fn decode_q6_k(blocks: &[u8], out: &mut [u16]) {
        let blocks = blocks.as_chunks::<{ q6_k::BYTES }>().0;
        for (block, out) in blocks.iter().zip(out.as_chunks_mut::<K_BLOCK>().0) {
            let d = float16::from_bytes([block[208], block[209]]);
            let (low, high) = (block[q6_k::LOW].as_chunks::<32>().0, block[q6_k::HIGH].as_chunks::<32>().0);
            let scales = &block[q6_k::SCALES];
            for (row, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                let (half, row) = (row / 4, row % 4);
                let low = bytes(&low[2 * half + row % 2]);
                let low = if row < 2 { low_codes(low) } else { high_codes(low) };
                let shift = _mm_cvtsi32_si128(2 * row as i32);
                let high = _mm256_and_si256(_mm256_srl_epi16(bytes(&high[half]), shift), _mm256_set1_epi8(3));
                let codes = _mm256_or_si256(low, _mm256_slli_epi16::<4>(high));
                let codes = _mm256_sub_epi8(codes, _mm256_set1_epi8(32));
                let scale =
                    |i: usize| _mm512_set1_ps(d * f32::from(scales[8 * half + 2 * row + i].cast_signed()));
                store(scaled(codes, scale(0), scale(1)), out);
            }
        }
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
    fn decode_q4_0(blocks: &[u8], out: &mut [u16]) {
        let blocks = blocks.as_chunks::<{ q4_0::BYTES }>().0;
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
    fn decode_q8_0(blocks: &[u8], out: &mut [u16]) {
        let blocks = blocks.as_chunks::<{ q8_0::BYTES }>().0;
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
    use super::super::{decode_part_to_bf16, encode};
    use super::*;

    #[test]
    fn every_format_comes_as_its_floats_rounded() {
        let mut state = 5u64;
        let mut uniform = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1 << 23) as f32 - 1.0
        };
        let cols = 1536;
        // Some groups tiny, some large: scales of every size.
        let weights: Vec<f32> = (0..cols).map(|i| uniform() * 10f32.powi((i / 96 % 7) as i32 - 3)).collect();
        for ty in BlockType::ALL {
            let mut row = vec![0; ty.row_bytes(cols).unwrap()];
            encode(ty, &weights, cols, None, &mut row).unwrap();
            let mut floats = vec![0.0; cols];
            super::super::decode(ty, &row, &mut floats).unwrap();
            for columns in [0..cols, 256..1280, 512..768] {
                let mut out = vec![0; columns.len()];
                decode_part_to_bf16(ty, &row, cols, columns.clone(), &mut out).unwrap();
                let expected: Vec<u16> = floats[columns].iter().map(|x| rounded(*x)).collect();
                assert_eq!(out, expected, "{ty}");
            }
        }
        assert_eq!(rounded(f32::from_bits(0x3F80_8000)), 0x3F80);
        assert_eq!(rounded(f32::from_bits(0x3F81_8000)), 0x3F82);
        assert_eq!(rounded(-1e-40), 0x8000);
        assert!(f32::from_bits(u32::from(rounded(f32::NAN)) << 16).is_nan());
    }
}
