//! Q2_K: 256 weights in 16 groups as d·s·c - dm·m, c of 2 bits, s and m of 4.
//!
//! A block: s and m of each group in the low and high half of a byte (16 bytes), codes (64 bytes), d (f16), dm (f16).

use super::lanes::{Lanes, codes_for_scale, rows, totals, transpose};
use super::rounding::nearest;
use super::rows::{Sixteens, in_sixteens};
use super::scale_search::positive;
use super::search::{ClampThenRound, RoundThenClampByMagnitude, Trials, WEIGHTED_TRIALS, affine};
use super::{K_BLOCK, float16, importance, two_bits};

pub(super) const BYTES: usize = 84;
const GROUPS: usize = 16;
const LEVELS: u8 = 3;
/// Of scales and minima.
const SCALE_LEVELS: u8 = 15;
const TRIALS: Trials = Trials { first: -0.5, delta: 0.1, last: 15 };

/// A block as found: d and dm before their rounding to 16 bits, s and m, codes.
struct Found {
    scale: f32,
    min_scale: f32,
    scales: [u8; GROUPS],
    codes: [[u8; 16]; GROUPS],
}

#[inline(always)]
pub(super) fn encode<V: Lanes>(weights: &[f32], imatrix: Option<&[f32]>, out: &mut [u8]) {
    for (x, columns, block) in in_sixteens(weights, imatrix, out) {
        encode_block::<V>(x, columns, block);
    }
}

#[inline(always)]
fn encode_block<V: Lanes>(x: &Sixteens, columns: Option<&Sixteens>, block: &mut [u8; BYTES]) {
    let found = match columns {
        None => find::<V>(x),
        Some(columns) => find_weighted::<V>(x, columns),
    };
    store::<V>(x, found, block);
}

/// Each group's own search, then 15 levels of the largest scale and minimum.
#[inline(always)]
fn find<V: Lanes>(x: &Sixteens) -> Found {
    let (mut scales, mut mins, mut codes) = ([0.0; GROUPS], [0.0; GROUPS], [[0; 16]; GROUPS]);
    for first in (0..GROUPS).step_by(V::N) {
        let lanes = transpose::<V, 16>(&x[first..first + V::N]);
        let counts = rows!(&lanes, |x| x.abs());
        let found = affine::<RoundThenClampByMagnitude, V, 16>(
            &lanes,
            &counts,
            &mut [V::splat(0.0); 16],
            LEVELS,
            TRIALS,
        );
        found.scale.store(&mut scales[first..]);
        found.min.store(&mut mins[first..]);
        found.codes::<RoundThenClampByMagnitude, 16>(&lanes, LEVELS, &mut codes[first..first + V::N]);
    }
    let (scale, of_scales) = to_four_bits(&scales);
    let (min_scale, of_mins) = to_four_bits(&mins);
    // A negative scale has wrapped; ggml lets its bits spill.
    let packed = std::array::from_fn(|j| of_scales[j] | of_mins[j] << 4);
    Found { scale, min_scale, scales: packed, codes }
}

/// A fifteenth of the largest value (0 if none is positive), and each value as that many of it.
#[inline(always)]
fn to_four_bits(values: &[f32; GROUPS]) -> (f32, [u8; GROUPS]) {
    let largest = values.iter().fold(0.0, |largest, &value| if value > largest { value } else { largest });
    if largest > 0.0 {
        let levels = f32::from(SCALE_LEVELS);
        let factor = levels / largest;
        (largest / levels, values.map(|value| nearest(factor * value) as u8))
    } else {
        (0.0, [0; GROUPS])
    }
}

/// With the importance of the columns; scales and minima get a search of their own.
#[inline(always)]
fn find_weighted<V: Lanes>(x: &Sixteens, columns: &Sixteens) -> Found {
    let variance = importance::sum_of_squares(x.as_flattened()) / K_BLOCK as f32;
    let (mut scales, mut mins, mut codes) = ([0.0; GROUPS], [0.0; GROUPS], [[0; 16]; GROUPS]);
    let mut sums = [0.0; GROUPS];
    for first in (0..GROUPS).step_by(V::N) {
        let lanes = transpose::<V, 16>(&x[first..first + V::N]);
        let columns = transpose(&columns[first..first + V::N]);
        let counts = importance::from_matrix(&lanes, &columns, V::splat(variance));
        let found = affine::<ClampThenRound, V, 16>(
            &lanes,
            &counts,
            &mut [V::splat(0.0); 16],
            LEVELS,
            WEIGHTED_TRIALS,
        );
        found.scale.store(&mut scales[first..]);
        found.min.store(&mut mins[first..]);
        found.codes::<ClampThenRound, 16>(&lanes, LEVELS, &mut codes[first..first + V::N]);
        totals(&counts).store(&mut sums[first..]);
    }
    let (mut of_scales, mut of_mins) = ([0; GROUPS], [0; GROUPS]);
    let scale = positive(&scales, &sums, SCALE_LEVELS, &mut of_scales);
    let min_scale = positive(&mins, &sums, SCALE_LEVELS, &mut of_mins);
    let packed = std::array::from_fn(|j| of_scales[j] | of_mins[j] << 4);
    Found { scale, min_scale, scales: packed, codes }
}

/// Codes follow from the rounded scales; where a group's scale rounds to 0, those of the search stay.
#[inline(always)]
fn store<V: Lanes>(x: &Sixteens, found: Found, block: &mut [u8; BYTES]) {
    let Found { scale, min_scale, scales, mut codes } = found;
    let (d, dm) = (float16::rounded(scale), float16::rounded(min_scale));
    for (j, x) in x.iter().enumerate() {
        let scale = d * f32::from(scales[j] & 15);
        let min = dm * f32::from(scales[j] >> 4);
        if scale != 0.0 {
            codes_for_scale::<V>(x, (min, scale), (0, LEVELS.into()), 0, &mut codes[j]);
        }
    }
    let [packed @ .., d0, d1, m0, m1] = block;
    [*d0, *d1] = float16::to_bytes(scale);
    [*m0, *m1] = float16::to_bytes(min_scale);
    packed[..GROUPS].copy_from_slice(&scales);
    let codes: &[u8; K_BLOCK] = codes.as_flattened().first_chunk().expect("a code for each weight");
    packed[GROUPS..].copy_from_slice(&two_bits::pack(codes));
}

#[inline(always)]
pub(super) fn decode(blocks: &[u8], out: &mut [f32]) {
    for (block, x) in blocks.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<K_BLOCK>().0) {
        let [packed @ .., d0, d1, m0, m1] = block;
        let (d, dm) = (float16::from_bytes([*d0, *d1]), float16::from_bytes([*m0, *m1]));
        let (scales, codes) = packed.split_at(GROUPS);
        let codes: &[u8; two_bits::BYTES] = codes.first_chunk().expect("a block has all codes");
        for (row, x) in x.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let codes = two_bits::row(codes, row);
            for (half, x) in x.as_chunks_mut::<16>().0.iter_mut().enumerate() {
                let of_group = scales[2 * row + half];
                let (scale, min) = (d * f32::from(of_group & 15), dm * f32::from(of_group >> 4));
                for (x, code) in x.iter_mut().zip(&codes[16 * half..]) {
                    *x = scale * f32::from(*code) - min;
                }
            }
        }
    }
}
