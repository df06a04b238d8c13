//! IQ3_XXS and IQ3_S: four weights are a point of a grid, and signs.

use std::sync::LazyLock;

use super::super::{K_BLOCK, float16, importance};
use super::grid::{self, Grid3};
use super::search::{Found, Group, Params, Refined, find, four_bits, make_even, split, with_eighth};

const LEVELS: u8 = 8;

/// Four weights of a point; `signs` has theirs lowest.
#[inline(always)]
fn write_point(point: [u8; 4], values: &[f32; 8], signs: u8, scale: f32, out: &mut [f32; 4]) {
    for (i, (out, l)) in out.iter_mut().zip(point).enumerate() {
        let sign = if signs >> i & 1 == 1 { -1.0 } else { 1.0 };
        *out = scale * values[usize::from(l)] * sign;
    }
}

#[inline(always)]
fn number(grid: &Grid3, coordinates: &[u8]) -> u16 {
    let coordinates = coordinates.first_chunk().expect("four coordinates");
    grid.number(coordinates).expect("coordinates that were moved to the grid")
}

/// Eight points; `None` for a group of zeros, which `is_zero` tells from the largest magnitude.
#[inline(always)]
fn find_group(params: Params, grid: &Grid3, x: &[f32; 32], weights: &[f32; 32]) -> Option<Found<32>> {
    let largest = x.iter().fold(x[0], |largest, &x| if largest > x { largest } else { x });
    // A limit of 0 leaves out exact zeros alone.
    if largest < params.zero || largest == 0.0 {
        return None;
    }
    let roots = weights.map(f32::sqrt);
    Some(find(params, grid, Group { x, weights, roots: &roots }, None))
}

/// How much weights count: x² without a matrix.
#[inline(always)]
fn counts(x: &[f32; 32], columns: Option<&[f32]>, variance: f32) -> [f32; 32] {
    match columns {
        Some(columns) => std::array::from_fn(|i| columns[i] * (variance + x[i] * x[i]).sqrt()),
        None => x.map(|x| x * x),
    }
}

/// 256 weights as d·(s + ½)/2·v: d (f16), point numbers (64 bytes), for every 32 four times seven signs and s (4 bytes).
pub(in super::super) mod xxs {
    use super::*;

    pub(in super::super::super) const BYTES: usize = 98;
    const VALUES: [f32; 8] = [4.0, 12.0, 20.0, 28.0, 36.0, 44.0, 52.0, 62.0];
    const PARAMS: Params =
        Params { levels: LEVELS, last: 15, step: 0.2, zero: 1e-8, refined: Refined::Moved };
    /// The scale is made a little larger than what was found.
    const STRETCH: f32 = 1.0125;

    pub(in super::super::super) fn encode(
        weights: &[f32],
        cols: usize,
        imatrix: Option<&[f32]>,
        out: &mut [u8],
    ) {
        let blocks = weights.as_chunks::<K_BLOCK>().0.iter().zip(out.as_chunks_mut().0);
        for (i, (x, block)) in blocks.enumerate() {
            let columns = imatrix.map(|columns| &columns.as_chunks().0[i % (cols / K_BLOCK)]);
            encode_block(&grid::IQ3_XXS, x, columns, block);
        }
    }

    fn encode_block(
        grid: &Grid3,
        x: &[f32; K_BLOCK],
        columns: Option<&[f32; K_BLOCK]>,
        block: &mut [u8; BYTES],
    ) {
        let variance = 2.0 * importance::sum_of_squares(x) / K_BLOCK as f32;
        let (mut last, mut scales) = ([0u32; 8], [0.0f32; 8]);
        block.fill(0);
        for (j, x) in x.as_chunks::<32>().0.iter().enumerate() {
            let weights = counts(x, columns.map(|columns| &columns[32 * j..]), variance);
            let (mut magnitudes, mut signs) = split(x);
            make_even(&mut magnitudes, &mut signs, &weights);
            let Some(found) = find_group(PARAMS, grid, &magnitudes, &weights) else { continue };
            for k in 0..8 {
                block[2 + 8 * j + k] = number(grid, &found.coordinates[4 * k..]) as u8;
            }
            for (k, signs) in signs.into_iter().enumerate() {
                last[j] |= u32::from(if found.is_turned { !signs & 127 } else { signs }) << (7 * k);
            }
            scales[j] = found.scale;
        }
        let largest =
            scales.iter().fold(0.0f32, |largest, &scale| if largest > scale { largest } else { scale });
        if largest == 0.0 {
            block.fill(0);
            return;
        }
        let d = largest / 31.0;
        block[..2].copy_from_slice(&float16::to_bytes(d * STRETCH));
        for ((last, scale), bytes) in last.iter().zip(scales).zip(block[66..].as_chunks_mut::<4>().0) {
            *bytes = (last | u32::from(four_bits(scale, 1.0 / d)) << 28).to_le_bytes();
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

    pub(in super::super::super) fn encode(
        weights: &[f32],
        cols: usize,
        imatrix: Option<&[f32]>,
        out: &mut [u8],
    ) {
        let blocks = weights.as_chunks::<K_BLOCK>().0.iter().zip(out.as_chunks_mut().0);
        for (i, (x, block)) in blocks.enumerate() {
            let columns = imatrix.map(|columns| &columns.as_chunks().0[i % (cols / K_BLOCK)]);
            encode_block(&grid::IQ3_S, x, columns, block);
        }
    }

    fn encode_block(
        grid: &Grid3,
        x: &[f32; K_BLOCK],
        columns: Option<&[f32; K_BLOCK]>,
        block: &mut [u8; BYTES],
    ) {
        let variance = 2.0 * importance::sum_of_squares(x) / K_BLOCK as f32;
        let mut scales = [0.0f32; 8];
        block.fill(0);
        for (j, x) in x.as_chunks::<32>().0.iter().enumerate() {
            let weights = counts(x, columns.map(|columns| &columns[32 * j..]), variance);
            let (magnitudes, signs) = split(x);
            let Some(found) = find_group(PARAMS, grid, &magnitudes, &weights) else { continue };
            for k in 0..8 {
                let number = number(grid, &found.coordinates[4 * k..]);
                block[2 + 8 * j + k] = number as u8;
                block[66 + j] |= ((number >> 8) as u8) << k;
            }
            for (k, signs) in signs.into_iter().enumerate() {
                block[74 + 4 * j + k] = if found.is_turned { !signs } else { signs };
            }
            scales[j] = found.scale;
        }
        let largest =
            scales.iter().fold(0.0f32, |largest, &scale| if largest > scale { largest } else { scale });
        if largest == 0.0 {
            return;
        }
        let d = largest / 31.0;
        block[..2].copy_from_slice(&float16::to_bytes(d * STRETCH));
        for (pair, byte) in scales.as_chunks::<2>().0.iter().zip(&mut block[106..]) {
            *byte = four_bits(pair[0], 1.0 / d) | four_bits(pair[1], 1.0 / d) << 4;
        }
    }

    pub(in super::super::super) fn decode(blocks: &[u8], out: &mut [f32]) {
        let grid = LazyLock::force(&grid::IQ3_S);
        for (block, out) in blocks.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<K_BLOCK>().0) {
            let d = float16::from_bytes([block[0], block[1]]);
            for (j, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
                let scale = d * (1.0 + 2.0 * f32::from(block[106 + j / 2] >> (j % 2 * 4) & 15));
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
