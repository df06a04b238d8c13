//! What Q4_K and Q5_K share: eight groups of 32 weights as d·s·c - dm·m, their 6-bit scales s and minima m
//! packed into 12 bytes, and how these are found.

use super::lanes::{Lanes, MOST_IN_STEP, array, codes_for_scale, totals, transpose_into};
use super::rows::{BatchColumns, k_batches};
use super::scale_search::positive;
use super::search::{Affine, ClampThenRound, RoundThenClamp, Trial, Trials, WEIGHTED_TRIALS, affine};
use super::{K_BLOCK, float16, importance, rounding::nearest};

/// Groups in a block: one a lane.
pub(super) const GROUPS: usize = 8;

/// Blocks in the largest batch.
const MOST_BLOCKS: usize = MOST_IN_STEP / GROUPS;

/// Scales and minima of a block as found, and the codes of the search.
#[derive(Clone, Copy)]
pub(super) struct Scales {
    /// d and dm, before their rounding to 16 bits.
    pub scale: f32,
    pub min_scale: f32,
    /// The 6-bit scales and minima, packed.
    pub packed: [u8; 12],
    /// Final codes.
    pub codes: [[u8; 32]; GROUPS],
}

impl Scales {
    const NONE: Scales = Scales { scale: 0.0, min_scale: 0.0, packed: [0; 12], codes: [[0; 32]; GROUPS] };
}

/// A format of eight groups of 32 weights.
pub(super) trait EightGroups<const BYTES: usize> {
    /// The greatest code.
    const LEVELS: u8;
    /// Without importance.
    const TRIALS: Trials;
    /// The greatest 6-bit scale with importance: a negative one has wrapped.
    const MOST_SCALE: u8;

    /// Lays out a block.
    fn store(found: &Scales, block: &mut [u8; BYTES]);
}

#[inline(always)]
pub(super) fn encode<F: EightGroups<BYTES>, V: Lanes, const BYTES: usize>(
    weights: &[f32],
    imatrix: Option<&[f32]>,
    out: &mut [u8],
) {
    let mut work = Work::<V::InStep>::new();
    for (x, columns, blocks) in k_batches::<BYTES>(weights, imatrix, out, V::InStep::N / GROUPS) {
        match columns {
            None => find::<V>(x, F::LEVELS, F::TRIALS, &mut work),
            Some(columns) => find_weighted::<V>(x, columns, F::LEVELS, F::MOST_SCALE, &mut work),
        }
        for (block, found) in blocks.iter_mut().zip(&work.found) {
            F::store(found, block);
        }
    }
}

/// What a batch is searched in, and what is found: memory that one batch after another uses.
struct Work<V> {
    /// Weights, what each counts, and codes.
    x: [V; 32],
    counts: [V; 32],
    codes: [V; 32],
    found: [Scales; MOST_BLOCKS],
}

impl<V: Lanes> Work<V> {
    #[inline(always)]
    fn new() -> Self {
        let zeros = [V::splat(0.0); 32];
        Self { x: zeros, counts: zeros, codes: zeros, found: [Scales::NONE; MOST_BLOCKS] }
    }
}

/// A block's weights.
pub(super) type Block = [[f32; 32]; GROUPS];

/// Finds scales and codes of up to N / 8 blocks without importance: each group's own search, then 63 levels of the largest.
#[inline(always)]
fn find<V: Lanes>(x: &[Block], levels: u8, trials: Trials, work: &mut Work<V::InStep>) {
    transpose_into(x.as_flattened(), &mut work.x);
    importance::from_weights(&work.x, &mut work.counts);
    let affine = affine::<RoundThenClamp, _, 32>(&work.x, &work.counts, &mut work.codes, levels, trials);
    let (scales, mins) = (array(affine.scale), array(affine.min));
    for (i, found) in work.found.iter_mut().enumerate().take(x.len()) {
        let (max_scale, six_bit_scales) = to_six_bits(&of_block_of(&scales, i));
        let (max_min, six_bit_mins) = to_six_bits(&of_block_of(&mins, i));
        found.packed = pack(&six_bit_scales, &six_bit_mins);
        (found.scale, found.min_scale) = (max_scale / 63.0, max_min / 63.0);
    }
    final_codes::<RoundThenClamp, V>(x, &work.x, &affine, levels, &mut work.found);
}

/// The same with the importance of the columns, one block's for each block; scales and minima get a search of their own,
/// and are limited to `most_scale`.
#[inline(always)]
fn find_weighted<V: Lanes>(
    x: &[Block],
    columns: BatchColumns<'_>,
    levels: u8,
    most_scale: u8,
    work: &mut Work<V::InStep>,
) {
    transpose_into(x.as_flattened(), &mut work.x);
    let variances = of_blocks(x, |x| 2.0 * importance::sum_of_squares(x.as_flattened()) / K_BLOCK as f32);
    lanes_of_columns(x.len(), columns, &mut work.counts);
    importance::with_weights(&work.x, variances, &mut work.counts);
    let sums = array(totals(&work.counts));
    let affine =
        affine::<ClampThenRound, _, 32>(&work.x, &work.counts, &mut work.codes, levels, WEIGHTED_TRIALS);
    let (scales, mins) = (array(affine.scale), array(affine.min));
    for (i, found) in work.found.iter_mut().enumerate().take(x.len()) {
        let sums = of_block_of(&sums, i);
        let (mut six_bit_scales, mut six_bit_mins) = ([0; GROUPS], [0; GROUPS]);
        found.scale = positive(&of_block_of(&scales, i), &sums, 63, &mut six_bit_scales);
        found.min_scale = positive(&of_block_of(&mins, i), &sums, 63, &mut six_bit_mins);
        for scale in six_bit_scales.iter_mut().chain(&mut six_bit_mins) {
            *scale = (*scale).min(most_scale);
        }
        found.packed = pack(&six_bit_scales, &six_bit_mins);
    }
    final_codes::<ClampThenRound, V>(x, &work.x, &affine, levels, &mut work.found);
}

/// The importance of the columns of `n` blocks, a group's in each lane.
#[inline(always)]
pub(super) fn lanes_of_columns<V: Lanes, const G: usize>(
    n: usize,
    columns: BatchColumns<'_>,
    lanes: &mut [V; G],
) {
    let mut groups = [[0.0; G]; MOST_IN_STEP];
    for (groups, columns) in groups.as_flattened_mut().chunks_exact_mut(K_BLOCK).zip(columns).take(n) {
        groups.copy_from_slice(columns.as_flattened());
    }
    transpose_into(&groups[..V::N], lanes);
}

/// A number of each block, in the lanes of its groups.
#[inline(always)]
pub(super) fn of_blocks<V: Lanes>(blocks: &[Block], number: impl Fn(&Block) -> f32) -> V {
    let mut lanes = [0.0; MOST_IN_STEP];
    for (lanes, x) in lanes.chunks_exact_mut(GROUPS).zip(blocks) {
        lanes.fill(number(x));
    }
    V::load(&lanes)
}

/// What belongs to a block's groups.
#[inline(always)]
fn of_block_of(lanes: &[f32; MOST_IN_STEP], block: usize) -> [f32; GROUPS] {
    *lanes[GROUPS * block..].first_chunk().expect("lanes of whole blocks")
}

/// The largest value (0 if none is positive), and each value as that many 63rds of it.
#[inline(always)]
fn to_six_bits(values: &[f32; GROUPS]) -> (f32, [u8; GROUPS]) {
    let largest = values.iter().fold(0.0, |largest, &value| if value > largest { value } else { largest });
    let factor = if largest > 0.0 { 63.0 / largest } else { 0.0 };
    let mut six_bit = [0; GROUPS];
    for (six_bit, value) in six_bit.iter_mut().zip(values) {
        *six_bit = (nearest(factor * value) as u8).min(63);
    }
    (largest, six_bit)
}

/// The codes that go with the rounded scales; where a group's scale rounds to 0, those of the search.
#[inline(always)]
fn final_codes<C: Trial, V: Lanes>(
    x: &[Block],
    lanes: &[V::InStep; 32],
    affine: &Affine<V::InStep>,
    levels: u8,
    found: &mut [Scales; MOST_BLOCKS],
) {
    let mut searched = None;
    for (i, (x, found)) in x.iter().zip(found).enumerate() {
        let (d, dm) = (float16::rounded(found.scale), float16::rounded(found.min_scale));
        for (j, x) in x.iter().enumerate() {
            let (scale, min) = unpack(&found.packed, j);
            let (scale, min) = (d * f32::from(scale), dm * f32::from(min));
            if scale != 0.0 {
                codes_for_scale::<V>(x, (min, scale), (0, levels.into()), 0, &mut found.codes[j]);
                continue;
            }
            let searched = searched.get_or_insert_with(|| {
                let mut codes = [[0; 32]; MOST_IN_STEP];
                affine.codes::<C, 32>(lanes, levels, &mut codes[..V::InStep::N]);
                codes
            });
            found.codes[j] = searched[GROUPS * i + j];
        }
    }
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
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = (pair[0][i] & 15) | (pair[1][i] & 15) << 4;
        }
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
