//! Q3_K: 256 weights in 16 groups as d·(s - 32)·(c - 4), c of 3 bits, s of 6.
//!
//! A block: third bits (32 bytes, bit r of byte i is of weight 32·r + i), low bits (64 bytes), s (12 bytes), d (f16).

use super::lanes::{Lane, codes_of_groups, each, padded, rows, totals, transpose};
use super::rounding::nearest;
use super::rows::{Sixteens, for_each_in_sixteens};
use super::search::{Codes, ZERO_GROUP, largest_of_groups, largest_scale, symmetric};
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
pub(super) fn encode<const L: usize>(weights: &[f32], imatrix: Option<&[f32]>, out: &mut [u8]) {
    for_each_in_sixteens(weights, imatrix, out, |x, columns, block| {
        let found = match columns {
            None => find::<L>(x),
            Some(columns) => find_weighted::<L>(x, columns),
        };
        store(x, found, block);
    });
}

#[inline(always)]
fn find<const L: usize>(x: &Sixteens) -> Found {
    let (mut scales, mut codes) = ([0.0; GROUPS], [[0; 16]; GROUPS]);
    for (batch, x) in x.as_chunks::<L>().0.iter().enumerate() {
        let (of_batch, codes_of_batch) = improved::<L>(&transpose(x));
        scales[L * batch..][..L].copy_from_slice(&of_batch);
        codes[L * batch..][..L].copy_from_slice(&codes_of_batch);
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
fn improved<const L: usize>(x: &[Lane<L>; 16]) -> (Lane<L>, Codes<16, L>) {
    let largest = largest_of_groups(x);
    let is_zero: [bool; L] = each(|k| largest[k].abs() < ZERO_GROUP);
    let factor: [_; L] = each(|k| -f32::from(HALF) / largest[k]);
    let code = |scaled: f32| nearest(scaled).clamp(-i32::from(HALF), i32::from(HALF) - 1) as f32;
    let mut codes: [Lane<L>; 16] = rows(x, |x| each(|k| code(factor[k] * x[k])));
    let (mut sum_xl, mut sum_ll) = ([0.0; L], [0.0; L]);
    for (x, l) in x.iter().zip(&codes) {
        let w: [_; L] = each(|k| x[k] * x[k]);
        sum_xl = each(|k| sum_xl[k] + w[k] * x[k] * l[k]);
        sum_ll = each(|k| sum_ll[k] + w[k] * l[k] * l[k]);
    }
    for _pass in 0..PASSES {
        for (x, l) in x.iter().zip(&mut codes) {
            let w: [_; L] = each(|k| x[k] * x[k]);
            let xl: [_; L] = each(|k| sum_xl[k] - w[k] * x[k] * l[k]);
            let ll: [_; L] = each(|k| sum_ll[k] - w[k] * l[k] * l[k]);
            let new: [_; L] = each(|k| code(x[k] * ll[k] / xl[k]));
            let new_xl: [_; L] = each(|k| xl[k] + w[k] * x[k] * new[k]);
            let new_ll: [_; L] = each(|k| ll[k] + w[k] * new[k] * new[k]);
            let is_better: [_; L] = each(|k| {
                let gains = new_xl[k] * new_xl[k] * sum_ll[k] > sum_xl[k] * sum_xl[k] * new_ll[k];
                xl[k] > 0.0 && new[k] != l[k] && new_ll[k] > 0.0 && gains
            });
            *l = each(|k| if is_better[k] { new[k] } else { l[k] });
            sum_xl = each(|k| if is_better[k] { new_xl[k] } else { sum_xl[k] });
            sum_ll = each(|k| if is_better[k] { new_ll[k] } else { sum_ll[k] });
        }
    }
    let scale: [_; L] = each(|k| if sum_ll[k] > 0.0 && !is_zero[k] { sum_xl[k] / sum_ll[k] } else { 0.0 });
    let code_rows = rows(&codes, |l| each(|k| if is_zero[k] { 0 } else { l[k] as i32 + i32::from(HALF) }));
    (scale, codes_of_groups(&code_rows))
}

/// With the importance of the columns; scales get a search of their own.
#[inline(always)]
fn find_weighted<const L: usize>(x: &Sixteens, columns: &Sixteens) -> Found {
    let variance = 2.0 * importance::sum_of_squares(x.as_flattened()) / K_BLOCK as f32;
    let (mut scales, mut codes) = ([0.0; GROUPS], [[0; 16]; GROUPS]);
    let mut sums = [0.0; GROUPS];
    let batches = x.as_chunks::<L>().0.iter().zip(columns.as_chunks::<L>().0);
    for (batch, (x, columns)) in batches.enumerate() {
        let lanes = transpose(x);
        let counts = importance::from_matrix(&lanes, &transpose(columns), &[variance; L]);
        let (scales_of_batch, codes_of_batch) = symmetric(&lanes, &counts, HALF);
        scales[L * batch..][..L].copy_from_slice(&scales_of_batch);
        codes[L * batch..][..L].copy_from_slice(&codes_of_batch);
        sums[L * batch..][..L].copy_from_slice(&totals(&counts));
    }
    // One group of scales, in the first lane.
    let (scales, sums) = (transpose(&padded::<GROUPS, L>(&[scales])), transpose(&padded(&[sums])));
    let (scale, of_scales) = symmetric(&scales, &sums, SCALE_HALF);
    Found { scale: scale[0], scales: of_scales[0], codes }
}

/// Codes follow from the rounded scales; where a group's scale rounds to 0, those of the search stay.
#[inline(always)]
fn store(x: &Sixteens, found: Found, block: &mut [u8; BYTES]) {
    let Found { scale, scales, mut codes } = found;
    let d = float16::rounded(scale);
    for (j, x) in x.iter().enumerate() {
        let scale = d * (f32::from(scales[j]) - f32::from(SCALE_HALF));
        if scale != 0.0 {
            let (least, most) = (-i32::from(HALF), i32::from(HALF) - 1);
            codes[j] = x.map(|x| (nearest(x / scale).clamp(least, most) + i32::from(HALF)) as u8);
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
