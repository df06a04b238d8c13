//! IQ2_XXS, IQ2_XS and IQ2_S: eight weights are a point of a grid, d·(s + ½)/4 times one of three numbers each, and signs.

use std::sync::LazyLock;

use super::super::scale_search::positive;
use super::super::{K_BLOCK, float16, importance};
use super::grid::{self, Grid2};
use super::search::{Found, Group, Params, Refined, find, four_bits, make_even, split, with_eighth};

/// What coordinates stand for.
const VALUES: [f32; 3] = [8.0, 25.0, 43.0];
const LEVELS: u8 = 3;
const SMALL: Params = Params { levels: LEVELS, last: 9, step: 0.1, zero: 1e-15, refined: Refined::Moved };

/// Eight weights of a point.
#[inline(always)]
fn write_point(grid: &Grid2, number: usize, signs: u8, scale: f32, out: &mut [f32; 8]) {
    for (i, (out, l)) in out.iter_mut().zip(grid.point(number)).enumerate() {
        let sign = if signs >> i & 1 == 1 { -1.0 } else { 1.0 };
        *out = scale * VALUES[usize::from(l)] * sign;
    }
}

#[inline(always)]
fn number(grid: &Grid2, coordinates: &[u8]) -> u16 {
    let coordinates = coordinates.first_chunk().expect("eight coordinates");
    grid.number(coordinates).expect("coordinates that were moved to the grid")
}

/// How much weights count: importance · sqrt(variance + x²).
#[inline(always)]
fn counts<const G: usize>(x: &[f32], columns: &[f32], variance: f32) -> [f32; G] {
    std::array::from_fn(|i| columns[i] * (variance + x[i] * x[i]).sqrt())
}

/// 256 weights: d (f16), for every 32 four point numbers (4 bytes), and four times seven signs and s (4 bytes).
pub(in super::super) mod xxs {
    use super::*;

    pub(in super::super::super) const BYTES: usize = 66;
    const PARAMS: Params = Params { levels: LEVELS, last: 6, step: 0.1, zero: 1e-15, refined: Refined::All };

    /// The importance of the columns is needed.
    pub(in super::super::super) fn encode(weights: &[f32], columns: &[f32], out: &mut [u8]) {
        let blocks = weights.as_chunks::<K_BLOCK>().0.iter().zip(out.as_chunks_mut().0);
        for ((x, block), columns) in blocks.zip(columns.as_chunks::<K_BLOCK>().0.iter().cycle()) {
            encode_block(&grid::IQ2_XXS, x, columns, block);
        }
    }

    fn encode_block(grid: &Grid2, x: &[f32; K_BLOCK], columns: &[f32; K_BLOCK], block: &mut [u8; BYTES]) {
        let variance = importance::sum_of_squares(x) / K_BLOCK as f32;
        let (mut words, mut scales) = ([[0u32; 2]; 8], [0.0f32; 8]);
        for (j, x) in x.as_chunks::<32>().0.iter().enumerate() {
            let weights: [f32; 32] = counts(x, &columns[32 * j..], variance);
            let (mut magnitudes, mut signs) = split(x);
            make_even(&mut magnitudes, &mut signs, &weights);
            let largest =
                magnitudes.iter().fold(magnitudes[0], |largest, &x| if largest > x { largest } else { x });
            if largest < PARAMS.zero {
                continue;
            }
            let scale = positive(&magnitudes, &weights, LEVELS + 1, &mut [0; 32]);
            let largest = scale * f32::from(LEVELS);
            if largest <= 0.0 {
                continue;
            }
            let roots = weights.map(f32::sqrt);
            let group = Group { x: &magnitudes, weights: &weights, roots: &roots };
            let found: Found<32> = find(PARAMS, grid, group, Some((scale, largest)));
            for k in 0..4 {
                let signs = if found.is_turned { !signs[k] & 127 } else { signs[k] };
                words[j][0] |= u32::from(number(grid, &found.coordinates[8 * k..])) << (8 * k);
                words[j][1] |= u32::from(signs) << (7 * k);
            }
            scales[j] = found.scale;
        }
        let largest =
            scales.iter().fold(0.0f32, |largest, &scale| if largest > scale { largest } else { scale });
        block.fill(0);
        if largest == 0.0 {
            return;
        }
        let d = largest / 31.0;
        block[..2].copy_from_slice(&float16::to_bytes(d));
        for ((words, scale), bytes) in words.iter().zip(scales).zip(block[2..].as_chunks_mut::<8>().0) {
            let last = words[1] | u32::from(four_bits(scale, 1.0 / d)) << 28;
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
                    write_point(grid, usize::from(points[k]), signs, scale, out);
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
    pub(in super::super::super) fn encode(weights: &[f32], columns: &[f32], out: &mut [u8]) {
        let blocks = weights.as_chunks::<K_BLOCK>().0.iter().zip(out.as_chunks_mut().0);
        for ((x, block), columns) in blocks.zip(columns.as_chunks::<K_BLOCK>().0.iter().cycle()) {
            encode_block(&grid::IQ2_XS, x, columns, block);
        }
    }

    fn encode_block(grid: &Grid2, x: &[f32; K_BLOCK], columns: &[f32; K_BLOCK], block: &mut [u8; BYTES]) {
        let variance = importance::sum_of_squares(x) / K_BLOCK as f32;
        let (mut points, mut scales) = ([0u16; 32], [0.0f32; 16]);
        for (j, x) in x.as_chunks::<16>().0.iter().enumerate() {
            let weights: [f32; 16] = counts(x, &columns[16 * j..], variance);
            let (mut magnitudes, mut signs) = split(x);
            make_even(&mut magnitudes, &mut signs, &weights);
            let Some(found) = find_small(SMALL, grid, &magnitudes, &weights) else { continue };
            for k in 0..2 {
                let signs = if found.is_turned { !signs[k] & 127 } else { signs[k] };
                points[2 * j + k] = number(grid, &found.coordinates[8 * k..]) | u16::from(signs) << 9;
            }
            scales[j] = found.scale;
        }
        block.fill(0);
        let Some((d, four_bits)) = packed_scales(&scales) else { return };
        block[..2].copy_from_slice(&float16::to_bytes(d));
        for (point, bytes) in points.iter().zip(block[2..66].as_chunks_mut::<2>().0) {
            *bytes = point.to_le_bytes();
        }
        block[66..].copy_from_slice(&four_bits);
    }

    pub(in super::super::super) fn decode(blocks: &[u8], out: &mut [f32]) {
        let grid = LazyLock::force(&grid::IQ2_XS);
        for (block, out) in blocks.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<K_BLOCK>().0) {
            let d = float16::from_bytes([block[0], block[1]]);
            let points = block[2..66].as_chunks::<2>().0.iter().zip(out.as_chunks_mut::<8>().0);
            for (i, (point, out)) in points.enumerate() {
                let point = u16::from_le_bytes(*point);
                let scale = scale_of(d, &block[66..], i / 2);
                write_point(grid, usize::from(point & 511), with_eighth((point >> 9) as u8), scale, out);
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

    pub(in super::super::super) fn encode(
        weights: &[f32],
        cols: usize,
        imatrix: Option<&[f32]>,
        out: &mut [u8],
    ) {
        let blocks = weights.as_chunks::<K_BLOCK>().0.iter().zip(out.as_chunks_mut().0);
        for (i, (x, block)) in blocks.enumerate() {
            let columns = imatrix.map(|columns| &columns.as_chunks().0[i % (cols / K_BLOCK)]);
            encode_block(&grid::IQ2_S, x, columns, block);
        }
    }

    fn encode_block(
        grid: &Grid2,
        x: &[f32; K_BLOCK],
        columns: Option<&[f32; K_BLOCK]>,
        block: &mut [u8; BYTES],
    ) {
        let variance = 2.0 * importance::sum_of_squares(x) / K_BLOCK as f32;
        let mut scales = [0.0f32; 16];
        block.fill(0);
        for (j, x) in x.as_chunks::<16>().0.iter().enumerate() {
            let weights: [f32; 16] = match columns {
                Some(columns) => counts(x, &columns[16 * j..], variance),
                None => x.map(|x| 0.25 * variance + x * x),
            };
            let (magnitudes, signs) = split(x);
            let Some(found) = find_small(PARAMS, grid, &magnitudes, &weights) else { continue };
            for (k, signs) in signs.into_iter().enumerate().take(2) {
                let (at, number) = (2 * j + k, number(grid, &found.coordinates[8 * k..]));
                block[2 + at] = number as u8;
                block[34 + at] = if found.is_turned { !signs } else { signs };
                block[66 + at / 4] |= ((number >> 8) as u8) << (2 * (at % 4));
            }
            scales[j] = found.scale;
        }
        let Some((d, four_bits)) = packed_scales(&scales) else { return };
        block[..2].copy_from_slice(&float16::to_bytes(d * SHRINK));
        block[74..].copy_from_slice(&four_bits);
    }

    pub(in super::super::super) fn decode(blocks: &[u8], out: &mut [f32]) {
        let grid = LazyLock::force(&grid::IQ2_S);
        for (block, out) in blocks.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<K_BLOCK>().0) {
            let d = float16::from_bytes([block[0], block[1]]);
            for (i, out) in out.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                let high = usize::from(block[66 + i / 4] >> (2 * (i % 4)) & 3);
                let number = usize::from(block[2 + i]) | high << 8;
                write_point(grid, number, block[34 + i], scale_of(d, &block[74..], i / 2), out);
            }
        }
    }
}

/// Two points; `None` for a group of zeros.
#[inline(always)]
fn find_small(params: Params, grid: &Grid2, x: &[f32; 16], weights: &[f32; 16]) -> Option<Found<16>> {
    let largest = x.iter().fold(x[0], |largest, &x| if largest > x { largest } else { x });
    if largest < params.zero {
        return None;
    }
    let roots = weights.map(f32::sqrt);
    Some(find(params, grid, Group { x, weights, roots: &roots }, None))
}

/// d and the packed s of sixteen groups; `None` when all are zeros.
fn packed_scales(scales: &[f32; 16]) -> Option<(f32, [u8; 8])> {
    let largest = scales.iter().fold(0.0f32, |largest, &scale| if largest > scale { largest } else { scale });
    let d = largest / 31.0;
    let four_bits = |j: usize| four_bits(scales[j], 1.0 / d);
    (largest != 0.0).then(|| (d, std::array::from_fn(|j| four_bits(2 * j) | four_bits(2 * j + 1) << 4)))
}

fn scale_of(d: f32, packed: &[u8], group: usize) -> f32 {
    d * (0.5 + f32::from(packed[group / 2] >> (group % 2 * 4) & 15)) * 0.25
}
