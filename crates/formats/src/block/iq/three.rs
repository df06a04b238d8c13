//! IQ3_XXS and IQ3_S: four weights are a point of a grid, and signs.

use std::sync::LazyLock;

use super::super::lanes::Lanes;
use super::super::rows::k_blocks;
use super::super::{K_BLOCK, float16, importance};
use super::grid;
use super::search::{
    Params, Refined, counts, find, four_bits, make_even, of_pairs, split, with_eighth, write_pairs,
    write_point,
};

const LEVELS: u8 = 8;

/// 256 weights as d·(s + ½)/2·v: d (f16), point numbers (64 bytes), for every 32 four times seven signs and s (4 bytes).
pub(in super::super) mod xxs {
    use super::*;

    pub(in super::super::super) const BYTES: usize = 98;
    const VALUES: [f32; 8] = [4.0, 12.0, 20.0, 28.0, 36.0, 44.0, 52.0, 62.0];
    const PARAMS: Params =
        Params { levels: LEVELS, last: 15, step: 0.2, zero: 1e-8, refined: Refined::Moved };
    /// The scale is made a little larger than what was found.
    const STRETCH: f32 = 1.0125;

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
        let grid = LazyLock::force(&grid::IQ3_XXS);
        let variance = 2.0 * importance::sum_of_squares(x) / K_BLOCK as f32;
        let (mut last, mut scales) = ([0u32; 8], [0.0f32; 8]);
        block.fill(0);
        for (j, x) in x.as_chunks::<32>().0.iter().enumerate() {
            let weights = counts(x, columns.map(|columns| &columns[32 * j..]), variance, |x| x * x);
            let (mut magnitudes, mut signs) = split(x);
            make_even(&mut magnitudes, &mut signs, &weights);
            let Some(found) = find::<V, _, _, _>(PARAMS, grid, &magnitudes, &weights, None) else { continue };
            for k in 0..8 {
                block[2 + 8 * j + k] = grid.number(&found.coordinates[4 * k..]) as u8;
            }
            for (k, signs) in signs.into_iter().enumerate() {
                last[j] |= u32::from(found.signs(signs) & 127) << (7 * k);
            }
            scales[j] = found.scale;
        }
        let Some((d, four_bits)) = four_bits(&scales) else {
            block.fill(0);
            return;
        };
        block[..2].copy_from_slice(&float16::to_bytes(d * STRETCH));
        for ((last, scale), bytes) in last.iter().zip(four_bits).zip(block[66..].as_chunks_mut::<4>().0) {
            *bytes = (last | u32::from(scale) << 28).to_le_bytes();
        }
    }

    pub(in super::super::super) fn decode(blocks: &[u8], out: &mut [f32]) {
        let grid = LazyLock::force(&grid::IQ3_XXS);
        for (block, out) in blocks.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<K_BLOCK>().0) {
            let d = float16::from_bytes([block[0], block[1]]);
            let groups = block[66..].as_chunks::<4>().0.iter().zip(out.as_chunks_mut::<32>().0);
            for (j, (last, out)) in groups.enumerate() {
                let last = u32::from_le_bytes(*last);
                let scale = d * (0.5 + (last >> 28) as f32) * 0.5;
                for (k, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                    let signs = with_eighth((last >> (7 * (k / 2)) & 127) as u8) >> (4 * (k % 2));
                    let point = grid.point(usize::from(block[2 + 8 * j + k]));
                    write_point(point, &VALUES, signs, scale, out);
                }
            }
        }
    }
}

/// ggml's encoder writes what follows a group of zeros one group too early; here every group stands in its place.
///
/// 256 weights as d·(2·s + 1)·v: d (f16), low bits of point numbers (64 bytes), ninth bits (8 bytes), signs (32 bytes), s (4
/// bytes).
pub(in super::super) mod s {
    use super::*;

    pub(in super::super::super) const BYTES: usize = 110;
    const VALUES: [f32; 8] = [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0, 15.0];
    const PARAMS: Params =
        Params { levels: LEVELS, last: 9, step: 0.2, zero: 0.0, refined: Refined::AllWhereMoved };
    /// The scale is made a little larger than what was found.
    const STRETCH: f32 = 1.033;

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
        let grid = LazyLock::force(&grid::IQ3_S);
        let variance = 2.0 * importance::sum_of_squares(x) / K_BLOCK as f32;
        let mut scales = [0.0f32; 8];
        block.fill(0);
        for (j, x) in x.as_chunks::<32>().0.iter().enumerate() {
            let weights = counts(x, columns.map(|columns| &columns[32 * j..]), variance, |x| x * x);
            let (magnitudes, signs) = split(x);
            let Some(found) = find::<V, _, _, _>(PARAMS, grid, &magnitudes, &weights, None) else { continue };
            for k in 0..8 {
                let number = grid.number(&found.coordinates[4 * k..]);
                block[2 + 8 * j + k] = number as u8;
                block[66 + j] |= ((number >> 8) as u8) << k;
            }
            for (k, signs) in signs.into_iter().enumerate() {
                block[74 + 4 * j + k] = found.signs(signs);
            }
            scales[j] = found.scale;
        }
        let Some((d, four_bits)) = four_bits(&scales) else { return };
        block[..2].copy_from_slice(&float16::to_bytes(d * STRETCH));
        write_pairs(&four_bits, &mut block[106..]);
    }

    pub(in super::super::super) fn decode(blocks: &[u8], out: &mut [f32]) {
        let grid = LazyLock::force(&grid::IQ3_S);
        for (block, out) in blocks.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<K_BLOCK>().0) {
            let d = float16::from_bytes([block[0], block[1]]);
            for (j, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                let scale = d * (1.0 + 2.0 * f32::from(of_pairs(&block[106..], j)));
                for (k, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                    let ninth = usize::from(block[66 + j] >> k & 1);
                    let point = grid.point(usize::from(block[2 + 8 * j + k]) | ninth << 8);
                    let signs = block[74 + 4 * j + k / 2] >> (4 * (k % 2));
                    write_point(point, &VALUES, signs, scale, out);
                }
            }
        }
    }
}
