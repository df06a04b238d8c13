//! What Q4_K and Q5_K share: eight groups of 32 weights as d·s·c - dm·m, their 6-bit scales s and minima m
//! packed into 12 bytes, and how these are found.

use super::lanes::{LANES, each, transpose};
use super::scale_search::positive;
use super::search::{ClampThenRound, RoundThenClamp, Trials, WEIGHTED_TRIALS, affine};
use super::{float16, importance, rounding::nearest};

/// Groups in a block: one a lane.
pub(super) const GROUPS: usize = LANES;

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

/// Finds scales and codes without importance: each group's own search, then 63 levels of the largest.
#[inline(always)]
pub(super) fn find(x: &[[f32; 32]; GROUPS], levels: u8, trials: Trials) -> Scales {
    let lanes = transpose(x);
    let counts = importance::from_weights(&lanes);
    let (scales, mins, codes) = affine::<RoundThenClamp, 32>(&lanes, &counts, levels, trials);
    let (max_scale, six_bit_scales) = to_six_bits(&scales);
    let (max_min, six_bit_mins) = to_six_bits(&mins);
    let packed = pack(&six_bit_scales, &six_bit_mins);
    let found = Scales { scale: max_scale / 63.0, min_scale: max_min / 63.0, packed, codes };
    with_final_codes(x, levels, found)
}

/// Finds scales and codes with the importance of the columns; scales and minima get a search of their own.
#[inline(always)]
pub(super) fn find_weighted(
    x: &[[f32; 32]; GROUPS],
    columns: &[[f32; 32]; GROUPS],
    levels: u8,
    limit_scales: fn(u8) -> u8,
) -> Scales {
    let lanes = transpose(x);
    let variance = 2.0 * importance::sum_of_squares(x.as_flattened()) / 256.0;
    let counts = importance::from_matrix(&lanes, &transpose(columns), variance);
    let mut totals = [0.0; GROUPS];
    for counts in &counts {
        totals = each(|k| totals[k] + counts[k]);
    }
    let (scales, mins, codes) = affine::<ClampThenRound, 32>(&lanes, &counts, levels, WEIGHTED_TRIALS);
    let (mut six_bit_scales, mut six_bit_mins) = ([0; GROUPS], [0; GROUPS]);
    let scale = positive(&scales, &totals, 63, &mut six_bit_scales);
    let min_scale = positive(&mins, &totals, 63, &mut six_bit_mins);
    let packed = pack(&six_bit_scales.map(limit_scales), &six_bit_mins.map(limit_scales));
    with_final_codes(x, levels, Scales { scale, min_scale, packed, codes })
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
fn with_final_codes(x: &[[f32; 32]; GROUPS], levels: u8, mut found: Scales) -> Scales {
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
