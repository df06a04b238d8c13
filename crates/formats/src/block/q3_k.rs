//! Q3_K: 256 weights in 16 groups as d·(s - 32)·(c - 4), c of 3 bits, s of 6.
//!
//! A block: third bits (32 bytes, bit r of byte i is of weight 32·r + i), low bits (64 bytes), s (12 bytes), d (f16).

use super::lanes::{Lanes, MOST_LANES, array, codes_for_scale, codes_of_groups, rows, totals, transpose};
use super::rounding::nearest;
use super::rows::{Sixteens, in_sixteens};
use super::search::{ZERO_GROUP, largest_of_groups, largest_scale, symmetric};
use super::{K_BLOCK, float16, importance, two_bits};

pub(super) const BYTES: usize = 110;
const GROUPS: usize = 16;
const HALF: i8 = 4;
/// Of scales.
const SCALE_HALF: i8 = 32;
/// Passes over the codes of a group.
const PASSES: usize = 5;

/// A block as found: d before its rounding to 16 bits, s, codes.
struct Found {
    scale: f32,
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

#[inline(always)]
fn find<V: Lanes>(x: &Sixteens) -> Found {
    let (mut scales, mut codes) = ([0.0; GROUPS], [[0; 16]; GROUPS]);
    for first in (0..GROUPS).step_by(V::N) {
        let lanes = transpose::<V, 16>(&x[first..first + V::N]);
        improved(&lanes, &mut codes[first..first + V::N]).store(&mut scales[first..]);
    }
    let largest = largest_scale(&scales);
    if largest == 0.0 {
        return Found { scale: 0.0, scales: [0; GROUPS], codes };
    }
    let factor = -f32::from(SCALE_HALF) / largest;
    let six_bit =
        |scale: f32| (nearest(factor * scale) as i8).clamp(-SCALE_HALF, SCALE_HALF - 1) + SCALE_HALF;
    Found { scale: 1.0 / factor, scales: scales.map(|scale| six_bit(scale).cast_unsigned()), codes }
}

/// The scale d and codes c in 0..8 of each group which make Σ x²·(x - d·(c - 4))² small (ggml's `make_q3_quants`): codes
/// that map the weight of largest magnitude to the most negative one, of which passes then move single ones while that
/// lowers the error.
///
/// A pass that moves nothing is the last: those after it would move nothing either, so lanes need not stop.
#[inline(always)]
fn improved<V: Lanes>(x: &[V; 16], groups: &mut [[u8; 16]]) -> V {
    let (largest, zero) = (largest_of_groups(x), V::splat(0.0));
    let is_zero = largest.abs().below(V::splat(ZERO_GROUP));
    let (least, most) = (-i32::from(HALF), i32::from(HALF) - 1);
    let factor = V::splat(-f32::from(HALF)) / largest;
    let mut codes = rows!(x, |x| (factor * x).nearest(least, most));
    let (mut sum_xl, mut sum_ll) = (zero, zero);
    for (x, l) in x.iter().zip(&codes) {
        let w = *x * *x;
        sum_xl = sum_xl + w * *x * *l;
        sum_ll = sum_ll + w * *l * *l;
    }
    for _pass in 0..PASSES {
        for (x, l) in x.iter().zip(&mut codes) {
            let w = *x * *x;
            let xl = sum_xl - w * *x * *l;
            let ll = sum_ll - w * *l * *l;
            let new = (*x * ll / xl).nearest(least, most);
            let new_xl = xl + w * *x * new;
            let new_ll = ll + w * new * new;
            let gains = (sum_xl * sum_xl * new_ll).below(new_xl * new_xl * sum_ll);
            let differs = zero.below((new - *l).abs());
            let is_better = V::both(V::both(zero.below(xl), differs), V::both(zero.below(new_ll), gains));
            *l = V::choose(is_better, new, *l);
            sum_xl = V::choose(is_better, new_xl, sum_xl);
            sum_ll = V::choose(is_better, new_ll, sum_ll);
        }
    }
    let shift = V::splat(f32::from(HALF));
    codes_of_groups(&rows!(&codes, |l| V::choose(is_zero, zero, l + shift)), groups);
    V::choose(V::except(zero.below(sum_ll), is_zero), sum_xl / sum_ll, zero)
}

/// With the importance of the columns; scales get a search of their own.
#[inline(always)]
fn find_weighted<V: Lanes>(x: &Sixteens, columns: &Sixteens) -> Found {
    let variance = 2.0 * importance::sum_of_squares(x.as_flattened()) / K_BLOCK as f32;
    let (mut scales, mut codes) = ([0.0; GROUPS], [[0; 16]; GROUPS]);
    let mut sums = [0.0; GROUPS];
    for first in (0..GROUPS).step_by(V::N) {
        let lanes = transpose::<V, 16>(&x[first..first + V::N]);
        let columns = transpose(&columns[first..first + V::N]);
        let counts = importance::from_matrix(&lanes, &columns, V::splat(variance));
        let found = symmetric(&lanes, &counts, &mut [V::splat(0.0); 16], HALF);
        found.scale.store(&mut scales[first..]);
        found.codes(&lanes, HALF, &mut codes[first..first + V::N]);
        totals(&counts).store(&mut sums[first..]);
    }
    // One group of scales, in the first lane.
    let (scales, sums) = (transpose::<V, GROUPS>(&[scales]), transpose(&[sums]));
    let found = symmetric(&scales, &sums, &mut [V::splat(0.0); GROUPS], SCALE_HALF);
    let mut of_scales = [[0; GROUPS]];
    found.codes(&scales, SCALE_HALF, &mut of_scales);
    Found { scale: array::<_, MOST_LANES>(found.scale)[0], scales: of_scales[0], codes }
}

/// Codes follow from the rounded scales; where a group's scale rounds to 0, those of the search stay.
#[inline(always)]
fn store<V: Lanes>(x: &Sixteens, found: Found, block: &mut [u8; BYTES]) {
    let Found { scale, scales, mut codes } = found;
    let d = float16::rounded(scale);
    for (j, x) in x.iter().enumerate() {
        let scale = d * (f32::from(scales[j]) - f32::from(SCALE_HALF));
        if scale != 0.0 {
            let (least, most) = (-i32::from(HALF), i32::from(HALF) - 1);
            codes_for_scale::<V>(x, (0.0, scale), (least, most), HALF.into(), &mut codes[j]);
        }
    }
    let codes: &[u8; K_BLOCK] = codes.as_flattened().first_chunk().expect("a code for each weight");
    for (i, byte) in block[..32].iter_mut().enumerate() {
        *byte = (0..8).fold(0, |bits, row| bits | u8::from(codes[32 * row + i] > 3) << row);
    }
    block[32..96].copy_from_slice(&two_bits::pack(codes));
    block[96..108].copy_from_slice(&pack_scales(&scales));
    block[108..].copy_from_slice(&float16::to_bytes(scale));
}

/// The four low bits of scales j and j + 8 share byte j, the two high ones of four scales, four apart, another.
#[inline(always)]
fn pack_scales(scales: &[u8; GROUPS]) -> [u8; 12] {
    std::array::from_fn(|j| match j {
        0..8 => (scales[j] & 15) | (scales[j + 8] & 15) << 4,
        _ => (0..4).fold(0, |bits, part| bits | (scales[4 * part + j - 8] >> 4 & 3) << (2 * part)),
    })
}

#[inline(always)]
fn unpack_scale(packed: &[u8], j: usize) -> u8 {
    (packed[j % 8] >> (j / 8 * 4) & 15) | (packed[8 + j % 4] >> (j / 4 * 2) & 3) << 4
}

#[inline(always)]
pub(super) fn decode(blocks: &[u8], out: &mut [f32]) {
    for (block, x) in blocks.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<K_BLOCK>().0) {
        let d = float16::from_bytes([block[108], block[109]]);
        let (third, scales) = (&block[..32], &block[96..108]);
        let codes: &[u8; two_bits::BYTES] = block[32..].first_chunk().expect("a block has all codes");
        for (row, x) in x.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let codes = two_bits::row(codes, row);
            for i in 0..32 {
                let code = codes[i] | (third[i] >> row & 1) << 2;
                let scale = unpack_scale(scales, 2 * row + i / 16);
                let scale = d * (f32::from(scale) - f32::from(SCALE_HALF));
                x[i] = scale * (f32::from(code) - f32::from(HALF));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packing_of_scales_loses_nothing() {
        let scales: [u8; GROUPS] = std::array::from_fn(|j| (j * 29 % 64) as u8);
        let packed = pack_scales(&scales);
        for (j, scale) in scales.iter().enumerate() {
            assert_eq!(unpack_scale(&packed, j), *scale, "scale {j}");
        }
    }
}
