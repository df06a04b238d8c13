//! IQ2_XXS, IQ2_XS and IQ2_S: eight weights are a point of a grid, d·(s + ½)/4 times one of three numbers each, and signs.

use std::sync::LazyLock;

use super::super::lanes::Lanes;
use super::super::rows::k_blocks;
use super::super::scale_search::positive;
use super::super::{K_BLOCK, float16, importance};
use super::grid;
use super::search::{
    Params, Refined, counts, find, four_bits, make_even, of_pairs, split, with_eighth, write_pairs,
    write_point,
};

/// What coordinates stand for.
const VALUES: [f32; 3] = [8.0, 25.0, 43.0];
const LEVELS: u8 = 3;
const SMALL: Params = Params { levels: LEVELS, last: 9, step: 0.1, zero: 1e-15, refined: Refined::Moved };

/// 256 weights: d (f16), for every 32 four point numbers (4 bytes), and four times seven signs and s (4 bytes).
pub(in super::super) mod xxs {
    use super::*;

    pub(in super::super::super) const BYTES: usize = 66;
    const PARAMS: Params = Params { levels: LEVELS, last: 6, step: 0.1, zero: 1e-15, refined: Refined::All };

    /// The importance of the columns is needed.
    #[inline(always)]
    pub(in super::super::super) fn encode<V: Lanes>(
        weights: &[f32],
        imatrix: Option<&[f32]>,
        out: &mut [u8],
    ) {
        for (x, columns, block) in k_blocks(weights, imatrix, out) {
            encode_block::<V>(x, columns, block);
        }
    }

    #[inline(always)]
    fn encode_block<V: Lanes>(x: &[f32; K_BLOCK], columns: Option<&[f32; K_BLOCK]>, block: &mut [u8; BYTES]) {
        let (grid, columns) = (LazyLock::force(&grid::IQ2_XXS), columns.expect("checked before"));
        let variance = importance::sum_of_squares(x) / K_BLOCK as f32;
        let (mut words, mut scales) = ([[0u32; 2]; 8], [0.0f32; 8]);
        for (j, x) in x.as_chunks::<32>().0.iter().enumerate() {
            let weights = counts(x, Some(&columns[32 * j..]), variance, |x| x * x);
            let (mut magnitudes, mut signs) = split(x);
            make_even(&mut magnitudes, &mut signs, &weights);
            let scale = positive(&magnitudes, &weights, LEVELS + 1, &mut [0; 32]);
            let largest = scale * f32::from(LEVELS);
            if largest <= 0.0 {
                continue;
            }
            let first = Some((scale, largest));
            let Some(found) = find::<V, _, _, _>(PARAMS, grid, &magnitudes, &weights, first) else {
                continue;
            };
            for (k, signs) in signs.into_iter().enumerate() {
                words[j][0] |= u32::from(grid.number(&found.coordinates[8 * k..])) << (8 * k);
                words[j][1] |= u32::from(found.signs(signs) & 127) << (7 * k);
            }
            scales[j] = found.scale;
        }
        block.fill(0);
        let Some((d, four_bits)) = four_bits(&scales) else { return };
        block[..2].copy_from_slice(&float16::to_bytes(d));
        for ((words, scale), bytes) in words.iter().zip(four_bits).zip(block[2..].as_chunks_mut::<8>().0) {
            let last = words[1] | u32::from(scale) << 28;
            bytes[..4].copy_from_slice(&words[0].to_le_bytes());
            bytes[4..].copy_from_slice(&last.to_le_bytes());
        }
    }

    pub(in super::super::super) fn decode(blocks: &[u8], out: &mut [f32]) {
        let grid = LazyLock::force(&grid::IQ2_XXS);
        for (block, out) in blocks.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<K_BLOCK>().0) {
            let d = float16::from_bytes([block[0], block[1]]);
            let groups = block[2..].as_chunks::<8>().0.iter().zip(out.as_chunks_mut::<32>().0);
            for ([points @ .., a, b, c, e], out) in groups {
                let last = u32::from_le_bytes([*a, *b, *c, *e]);
                let scale = d * (0.5 + (last >> 28) as f32) * 0.25;
                for (k, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                    let signs = with_eighth((last >> (7 * k) & 127) as u8);
                    write_point(grid.point(usize::from(points[k])), &VALUES, signs, scale, out);
                }
            }
        }
    }
}

/// 256 weights: d (f16), point numbers of nine bits and seven signs (64 bytes), s (8 bytes).
pub(in super::super) mod xs {
    use super::*;

    pub(in super::super::super) const BYTES: usize = 74;

    /// The importance of the columns is needed.
    #[inline(always)]
    pub(in super::super::super) fn encode<V: Lanes>(
        weights: &[f32],
        imatrix: Option<&[f32]>,
        out: &mut [u8],
    ) {
        for (x, columns, block) in k_blocks(weights, imatrix, out) {
            encode_block::<V>(x, columns, block);
        }
    }

    #[inline(always)]
    fn encode_block<V: Lanes>(x: &[f32; K_BLOCK], columns: Option<&[f32; K_BLOCK]>, block: &mut [u8; BYTES]) {
        let (grid, columns) = (LazyLock::force(&grid::IQ2_XS), columns.expect("checked before"));
        let variance = importance::sum_of_squares(x) / K_BLOCK as f32;
        let (mut points, mut scales) = ([0u16; 32], [0.0f32; 16]);
        for (j, x) in x.as_chunks::<16>().0.iter().enumerate() {
            let weights = counts(x, Some(&columns[16 * j..]), variance, |x| x * x);
            let (mut magnitudes, mut signs) = split(x);
            make_even(&mut magnitudes, &mut signs, &weights);
            let Some(found) = find::<V, _, _, _>(SMALL, grid, &magnitudes, &weights, None) else { continue };
            for (k, signs) in signs.into_iter().enumerate().take(2) {
                let number = grid.number(&found.coordinates[8 * k..]);
                points[2 * j + k] = number | u16::from(found.signs(signs) & 127) << 9;
            }
            scales[j] = found.scale;
        }
        block.fill(0);
        let Some((d, four_bits)) = four_bits(&scales) else { return };
        block[..2].copy_from_slice(&float16::to_bytes(d));
        for (point, bytes) in points.iter().zip(block[2..66].as_chunks_mut::<2>().0) {
            *bytes = point.to_le_bytes();
        }
        write_pairs(&four_bits, &mut block[66..]);
    }

    pub(in super::super::super) fn decode(blocks: &[u8], out: &mut [f32]) {
        let grid = LazyLock::force(&grid::IQ2_XS);
        for (block, out) in blocks.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<K_BLOCK>().0) {
            let d = float16::from_bytes([block[0], block[1]]);
            let points = block[2..66].as_chunks::<2>().0.iter().zip(out.as_chunks_mut::<8>().0);
            for (i, (point, out)) in points.enumerate() {
                let point = u16::from_le_bytes(*point);
                let scale = scale_of(d, &block[66..], i / 2);
                let signs = with_eighth((point >> 9) as u8);
                write_point(grid.point(usize::from(point & 511)), &VALUES, signs, scale, out);
            }
        }
    }
}

/// 256 weights: d (f16), low bits of point numbers (32 bytes), signs (32 bytes), high bits (8 bytes), s (8 bytes).
pub(in super::super) mod s {
    use super::*;

    pub(in super::super::super) const BYTES: usize = 82;
    const PARAMS: Params = Params { zero: 1e-8, ..SMALL };
    /// The scale is made a little smaller than what was found.
    const SHRINK: f32 = 0.9875;

    #[inline(always)]
    pub(in super::super::super) fn encode<V: Lanes>(
        weights: &[f32],
        imatrix: Option<&[f32]>,
        out: &mut [u8],
    ) {
        for (x, columns, block) in k_blocks(weights, imatrix, out) {
            encode_block::<V>(x, columns, block);
        }
    }

    #[inline(always)]
    fn encode_block<V: Lanes>(x: &[f32; K_BLOCK], columns: Option<&[f32; K_BLOCK]>, block: &mut [u8; BYTES]) {
        let grid = LazyLock::force(&grid::IQ2_S);
        let variance = 2.0 * importance::sum_of_squares(x) / K_BLOCK as f32;
        let mut scales = [0.0f32; 16];
        block.fill(0);
        for (j, x) in x.as_chunks::<16>().0.iter().enumerate() {
            let columns = columns.map(|columns| &columns[16 * j..]);
            let weights = counts(x, columns, variance, |x| 0.25 * variance + x * x);
            let (magnitudes, signs) = split(x);
            let Some(found) = find::<V, _, _, _>(PARAMS, grid, &magnitudes, &weights, None) else { continue };
            for (k, signs) in signs.into_iter().enumerate().take(2) {
                let (at, number) = (2 * j + k, grid.number(&found.coordinates[8 * k..]));
                block[2 + at] = number as u8;
                block[34 + at] = found.signs(signs);
                block[66 + at / 4] |= ((number >> 8) as u8) << (2 * (at % 4));
            }
            scales[j] = found.scale;
        }
        let Some((d, four_bits)) = four_bits(&scales) else { return };
        block[..2].copy_from_slice(&float16::to_bytes(d * SHRINK));
        write_pairs(&four_bits, &mut block[74..]);
    }

    pub(in super::super::super) fn decode(blocks: &[u8], out: &mut [f32]) {
        let grid = LazyLock::force(&grid::IQ2_S);
        for (block, out) in blocks.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<K_BLOCK>().0) {
            let d = float16::from_bytes([block[0], block[1]]);
            for (i, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                let high = usize::from(block[66 + i / 4] >> (2 * (i % 4)) & 3);
                let number = usize::from(block[2 + i]) | high << 8;
                let scale = scale_of(d, &block[74..], i / 2);
                write_point(grid.point(number), &VALUES, block[34 + i], scale, out);
            }
        }
    }
}

/// d·(s + ½)/4 of a group of sixteen.
fn scale_of(d: f32, packed: &[u8], group: usize) -> f32 {
    d * (0.5 + f32::from(of_pairs(packed, group))) * 0.25
}
