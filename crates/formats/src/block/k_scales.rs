//! What Q4_K and Q5_K share: eight groups of 32 weights as d·s·c - dm·m, their 6-bit scales s and minima m
//! packed into 12 bytes, and how these are found.

use super::lanes::{Lane, padded, totals, transpose};
use super::rows::BatchColumns;
use super::scale_search::positive;
use super::search::{ClampThenRound, RoundThenClamp, Trials, WEIGHTED_TRIALS, affine};
use super::{K_BLOCK, float16, importance, rounding::nearest};

/// Groups in a block: one a lane.
pub(super) const GROUPS: usize = 8;

/// Scales and minima of a block as found, and the codes of the search.
pub(super) struct Scales {
    /// d and dm, before their rounding to 16 bits.
    pub scale: f32,
    pub min_scale: f32,
    /// The 6-bit scales and minima, packed.
    pub packed: [u8; 12],
    /// Final codes.
    pub codes: [[u8; 32]; GROUPS],
}

/// A block's weights.
pub(super) type Block = [[f32; 32]; GROUPS];

/// Finds scales and codes of up to L / 8 blocks without importance: each group's own search, then 63 levels of the largest.
/// Calls `each_block` with what was found.
#[inline(always)]
pub(super) fn find<const L: usize>(
    blocks: &[Block],
    levels: u8,
    trials: Trials,
    mut each_block: impl FnMut(usize, Scales),
) {
    let lanes = transpose(&padded::<32, L>(blocks.as_flattened()));
    let counts = importance::from_weights(&lanes);
    let (scales, mins, codes) = affine::<RoundThenClamp, 32, L>(&lanes, &counts, levels, trials);
    for (i, x) in blocks.iter().enumerate() {
        let (max_scale, six_bit_scales) = to_six_bits(&of_block_of(&scales, i));
        let (max_min, six_bit_mins) = to_six_bits(&of_block_of(&mins, i));
        let packed = pack(&six_bit_scales, &six_bit_mins);
        let (scale, min_scale, codes) = (max_scale / 63.0, max_min / 63.0, of_block_of(&codes, i));
        each_block(i, with_final_codes(x, levels, Scales { scale, min_scale, packed, codes }));
    }
}

/// The same with the importance of the columns, one block's for each block; scales and minima get a search of their own.
#[inline(always)]
pub(super) fn find_weighted<const L: usize>(
    blocks: &[Block],
    columns: BatchColumns<'_>,
    levels: u8,
    limit_scales: fn(u8) -> u8,
    mut each_block: impl FnMut(usize, Scales),
) {
    let lanes = transpose(&padded::<32, L>(blocks.as_flattened()));
    let variances =
        of_blocks(blocks, |x| 2.0 * importance::sum_of_squares(x.as_flattened()) / K_BLOCK as f32);
    let counts = importance::from_matrix(&lanes, &lanes_of_columns(blocks.len(), columns), &variances);
    let sums = totals(&counts);
    let (scales, mins, codes) = affine::<ClampThenRound, 32, L>(&lanes, &counts, levels, WEIGHTED_TRIALS);
    for (i, x) in blocks.iter().enumerate() {
        let sums = of_block_of(&sums, i);
        let (mut six_bit_scales, mut six_bit_mins) = ([0; GROUPS], [0; GROUPS]);
        let scale = positive(&of_block_of(&scales, i), &sums, 63, &mut six_bit_scales);
        let min_scale = positive(&of_block_of(&mins, i), &sums, 63, &mut six_bit_mins);
        let packed = pack(&six_bit_scales.map(limit_scales), &six_bit_mins.map(limit_scales));
        let codes = of_block_of(&codes, i);
        each_block(i, with_final_codes(x, levels, Scales { scale, min_scale, packed, codes }));
    }
}

/// The importance of the columns of `n` blocks, a group's in each lane.
#[inline(always)]
pub(super) fn lanes_of_columns<const L: usize>(n: usize, columns: BatchColumns<'_>) -> [Lane<L>; 32] {
    let mut groups = [[0.0; 32]; L];
    for (groups, columns) in groups.chunks_exact_mut(GROUPS).zip(columns).take(n) {
        groups.copy_from_slice(columns);
    }
    transpose(&groups)
}

/// A number of each block, in the lanes of its groups.
#[inline(always)]
pub(super) fn of_blocks<const L: usize>(blocks: &[Block], number: impl Fn(&Block) -> f32) -> Lane<L> {
    let mut lanes = [0.0; L];
    for (lanes, x) in lanes.chunks_exact_mut(GROUPS).zip(blocks) {
        lanes.fill(number(x));
    }
    lanes
}

/// What belongs to a block's groups.
#[inline(always)]
fn of_block_of<T: Copy, const L: usize>(lanes: &[T; L], block: usize) -> [T; GROUPS] {
    *lanes[GROUPS * block..].first_chunk().expect("lanes of whole blocks")
}

/// The largest value (0 if none is positive), and each value as that many 63rds of it.
#[inline(always)]
fn to_six_bits(values: &[f32; GROUPS]) -> (f32, [u8; GROUPS]) {
    let largest = values.iter().fold(0.0, |largest, &value| if value > largest { value } else { largest });
    let factor = if largest > 0.0 { 63.0 / largest } else { 0.0 };
    (largest, values.map(|value| (nearest(factor * value) as u8).min(63)))
}

/// The codes that go with the rounded scales; where a group's scale rounds to 0, those of the search stay.
#[inline(always)]
fn with_final_codes(x: &Block, levels: u8, mut found: Scales) -> Scales {
    let (d, dm) = (float16::rounded(found.scale), float16::rounded(found.min_scale));
    for (j, x) in x.iter().enumerate() {
        let (scale, min) = unpack(&found.packed, j);
        let (scale, min) = (d * f32::from(scale), dm * f32::from(min));
        if scale != 0.0 {
            found.codes[j] = x.map(|x| nearest((x + min) / scale).clamp(0, levels.into()) as u8);
        }
    }
    found
}

/// Packs eight scales and minima: the first four of each as bytes whose upper two bits hold the upper two
/// bits of the last four, whose lower four bits share the last four bytes.
#[inline(always)]
fn pack(scales: &[u8; GROUPS], mins: &[u8; GROUPS]) -> [u8; 12] {
    let mut packed = [0; 12];
    packed[..4].copy_from_slice(&scales[..4]);
    packed[4..8].copy_from_slice(&mins[..4]);
    for j in 4..GROUPS {
        packed[j + 4] = (scales[j] & 15) | ((mins[j] & 15) << 4);
        packed[j - 4] |= (scales[j] >> 4) << 6;
        packed[j] |= (mins[j] >> 4) << 6;
    }
    packed
}

/// Scale and minimum of group `j`.
#[inline(always)]
pub(super) fn unpack(packed: &[u8; 12], j: usize) -> (u8, u8) {
    if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        let low = packed[j + 4];
        ((low & 15) | ((packed[j - 4] >> 6) << 4), (low >> 4) | ((packed[j] >> 6) << 4))
    }
}

/// d·s and dm·m of the eight groups of a block, which begins with d, dm and the packed s and m.
#[inline(always)]
pub(super) fn of_block(block: &[u8]) -> [(f32, f32); GROUPS] {
    let (d, dm) = (float16::from_bytes([block[0], block[1]]), float16::from_bytes([block[2], block[3]]));
    let packed = block[4..].first_chunk().expect("a block is longer");
    std::array::from_fn(|j| {
        let (scale, min) = unpack(packed, j);
        (d * f32::from(scale), dm * f32::from(min))
    })
}

/// The four low bits of the codes: group 2k in the low halves of bytes 32k.., group 2k + 1 in the high ones.
#[inline(always)]
pub(super) fn pack_low_bits(codes: &[[u8; 32]; GROUPS], out: &mut [u8]) {
    for (pair, bytes) in codes.as_chunks::<2>().0.iter().zip(out.as_chunks_mut::<32>().0) {
        *bytes = std::array::from_fn(|i| (pair[0][i] & 15) | (pair[1][i] & 15) << 4);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_loses_nothing() {
        let scales = [0, 63, 17, 42, 1, 62, 33, 15];
        let mins = [63, 0, 5, 60, 48, 31, 16, 2];
        let packed = pack(&scales, &mins);
        for j in 0..GROUPS {
            assert_eq!(unpack(&packed, j), (scales[j], mins[j]), "group {j}");
        }
    }
}
