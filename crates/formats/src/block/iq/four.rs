//! IQ4_NL and IQ4_XS: weights as d·v, v one of sixteen whole numbers that lie closer to each other near zero.
//!
//! Source of the numbers: `kvalues_iq4nl` of ggml-common.h; they are a part of the format.

use super::super::k_scales::{Block, GROUPS, lanes_of_columns, of_blocks};
use super::super::lanes::{Lane, codes_of_groups, each, padded, rows, transpose};
use super::super::rounding::nearest;
use super::super::rows::{BatchColumns, for_each_k_batch};
use super::super::search::{Codes, ZERO_GROUP, largest_of_groups, largest_scale};
use super::super::{K_BLOCK, SMALL_BLOCK, float16, importance, nibbles};

/// What the codes stand for.
const VALUES: [f32; 16] = [
    -127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0,
];
/// Factors that a search tries: (-127 + t) / largest for t in -7..=7.
const MOST_TRIAL: i8 = 7;

/// Halfway from value i to the next.
const fn middle(i: usize) -> f32 {
    (VALUES[i] + VALUES[i + 1]) / 2.0
}

/// The value nearest to each lane, and its code.
///
/// ggml chooses by x - v < v' - x, which is the same as x < (v + v')/2: near there both differences are exact. What is no
/// number gets the last code, as there.
#[inline(always)]
fn nearest_values<const L: usize>(x: &Lane<L>) -> Lane<L> {
    let mut values = [VALUES[0]; L];
    for i in 0..15 {
        values = each(|k| values[k] + if x[k] < middle(i) { 0.0 } else { VALUES[i + 1] - VALUES[i] });
    }
    values
}

#[inline(always)]
fn nearest_codes<const L: usize>(x: &Lane<L>) -> [i32; L] {
    let mut codes = [0; L];
    for i in 0..15 {
        codes = each(|k| codes[k] + if x[k] < middle(i) { 0 } else { 1 });
    }
    codes
}

/// The scale of each group that makes Σ w·(x - d·v)² small (a part of ggml's `quantize_row_iq4_nl_impl`).
#[inline(always)]
fn scales<const L: usize>(x: &[Lane<L>; 32], importance: &[Lane<L>; 32]) -> Lane<L> {
    let largest = largest_of_groups(x);
    let factor: [_; L] = each(|k| 1.0 / (-largest[k] / VALUES[0]));
    let (sum_xv, sum_vv) = sums(x, importance, &factor);
    let mut scale: [_; L] = each(|k| if sum_vv[k] > 0.0 { sum_xv[k] / sum_vv[k] } else { 0.0 });
    let mut best: [_; L] = each(|k| scale[k] * sum_xv[k]);
    for trial in -MOST_TRIAL..=MOST_TRIAL {
        let factor: [_; L] = each(|k| (f32::from(trial) + VALUES[0]) / largest[k]);
        let (sum_xv, sum_vv) = sums(x, importance, &factor);
        let is_better: [_; L] = each(|k| sum_vv[k] > 0.0 && sum_xv[k] * sum_xv[k] > best[k] * sum_vv[k]);
        scale = each(|k| if is_better[k] { sum_xv[k] / sum_vv[k] } else { scale[k] });
        best = each(|k| if is_better[k] { scale[k] * sum_xv[k] } else { best[k] });
    }
    each(|k| if largest[k].abs() < ZERO_GROUP { 0.0 } else { scale[k] })
}

/// Σwxv and Σwv² for the values that a factor gives.
#[inline(always)]
fn sums<const L: usize>(
    x: &[Lane<L>; 32],
    importance: &[Lane<L>; 32],
    factor: &Lane<L>,
) -> (Lane<L>, Lane<L>) {
    let (mut sum_xv, mut sum_vv) = ([0.0; L], [0.0; L]);
    for (x, w) in x.iter().zip(importance) {
        let v: Lane<L> = nearest_values(&each(|k| factor[k] * x[k]));
        let wv: [_; L] = each(|k| w[k] * v[k]);
        sum_xv = each(|k| sum_xv[k] + wv[k] * x[k]);
        sum_vv = each(|k| sum_vv[k] + wv[k] * v[k]);
    }
    (sum_xv, sum_vv)
}

/// Codes for given scales; those of 0 for a scale of 0.
#[inline(always)]
fn codes<const L: usize>(x: &[Lane<L>; 32], scale: &Lane<L>) -> Codes<32, L> {
    let factor: Lane<L> = each(|k| if scale[k] == 0.0 { 0.0 } else { 1.0 / scale[k] });
    codes_of_groups(&rows(x, |x| nearest_codes(&each(|k| factor[k] * x[k]))))
}

/// How much weights count: x² without a matrix.
#[inline(always)]
fn counts<const L: usize>(
    x: &[Lane<L>; 32],
    columns: Option<[Lane<L>; 32]>,
    variance: &Lane<L>,
) -> [Lane<L>; 32] {
    match columns {
        None => rows(x, |x| each(|k| x[k] * x[k])),
        Some(columns) => importance::from_matrix(x, &columns, variance),
    }
}

/// 32 weights: d (f16), codes (16 bytes).
pub(in super::super) mod nl {
    use super::*;

    pub(in super::super::super) const BYTES: usize = 18;

    #[inline(always)]
    pub(in super::super::super) fn encode<const L: usize>(
        weights: &[f32],
        cols: usize,
        imatrix: Option<&[f32]>,
        out: &mut [u8],
    ) {
        let row_blocks = cols / SMALL_BLOCK;
        let rows = weights.as_chunks::<32>().0.chunks_exact(row_blocks);
        for (row, out) in rows.zip(out.as_chunks_mut::<BYTES>().0.chunks_exact_mut(row_blocks)) {
            for (batch, (x, blocks)) in row.chunks(L).zip(out.chunks_mut(L)).enumerate() {
                let columns = imatrix.map(|columns| &columns.as_chunks::<32>().0[batch * L..][..x.len()]);
                let columns = columns.map(|columns| transpose(&padded(columns)));
                encode_batch::<L>(&padded(x), columns, blocks);
            }
        }
    }

    #[inline(always)]
    fn encode_batch<const L: usize>(
        x: &[[f32; 32]; L],
        columns: Option<[Lane<L>; 32]>,
        blocks: &mut [[u8; BYTES]],
    ) {
        let lanes = transpose(x);
        let variance: [_; L] = each(|k| importance::sum_of_squares(&x[k]) * (2.0 / SMALL_BLOCK as f32));
        let scales = scales(&lanes, &counts(&lanes, columns, &variance));
        let codes = codes(&lanes, &scales);
        for (k, block) in blocks.iter_mut().enumerate() {
            block[..2].copy_from_slice(&float16::to_bytes(scales[k]));
            block[2..].copy_from_slice(&nibbles::pack(&codes[k]));
        }
    }

    #[inline(always)]
    pub(in super::super::super) fn decode(blocks: &[u8], out: &mut [f32]) {
        for (block, x) in blocks.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<32>().0) {
            let [d0, d1, codes @ ..] = block;
            let scale = float16::from_bytes([*d0, *d1]);
            *x = nibbles::unpack(codes).map(|code| scale * VALUES[usize::from(code)]);
        }
    }
}

/// 256 weights in 8 groups, d·(s - 32)·v, s of 6 bits: d (f16), high bits of s (2 bytes), low bits (4 bytes), codes (128).
pub(in super::super) mod xs {
    use super::*;

    pub(in super::super::super) const BYTES: usize = 136;
    const SCALE_HALF: i32 = 32;

    #[inline(always)]
    pub(in super::super::super) fn encode<const L: usize>(
        weights: &[f32],
        imatrix: Option<&[f32]>,
        out: &mut [u8],
    ) {
        for_each_k_batch::<BYTES, L>(weights, imatrix, out, encode_batch::<L>);
    }

    #[inline(always)]
    fn encode_batch<const L: usize>(
        x: &[Block],
        columns: Option<BatchColumns<'_>>,
        blocks: &mut [[u8; BYTES]],
    ) {
        let groups: [[f32; 32]; L] = padded(x.as_flattened());
        let lanes = transpose(&groups);
        let variances =
            of_blocks(x, |x| importance::sum_of_squares(x.as_flattened()) * (2.0 / K_BLOCK as f32));
        let columns = columns.map(|columns| lanes_of_columns(x.len(), columns));
        let scales = scales(&lanes, &counts(&lanes, columns, &variances));
        let (mut rounded, mut six_bit, mut scales_of_blocks) = ([0.0; L], [0; L], [0.0; L]);
        for (i, of_block) in scales_of_blocks.iter_mut().enumerate().take(x.len()) {
            let at = GROUPS * i..GROUPS * (i + 1);
            let d = -largest_scale(&scales[at.clone()]) / SCALE_HALF as f32;
            let factor = if d == 0.0 { 0.0 } else { 1.0 / d };
            for k in at {
                six_bit[k] = nearest(factor * scales[k]).clamp(-SCALE_HALF, SCALE_HALF - 1);
                rounded[k] = d * six_bit[k] as f32;
            }
            *of_block = d;
        }
        let codes = codes(&lanes, &rounded);
        for (i, block) in blocks.iter_mut().enumerate() {
            let at = GROUPS * i..GROUPS * (i + 1);
            store(scales_of_blocks[i], &six_bit[at.clone()], &codes[at], block);
        }
    }

    #[inline(always)]
    fn store(d: f32, six_bit: &[i32], codes: &[[u8; 32]], block: &mut [u8; BYTES]) {
        let (mut high, mut low) = (0u16, [0u8; 4]);
        for (j, scale) in six_bit.iter().enumerate() {
            let scale = (scale + SCALE_HALF) as u8;
            high |= u16::from(scale >> 4) << (2 * j);
            low[j / 2] |= (scale & 15) << (j % 2 * 4);
        }
        block[..2].copy_from_slice(&float16::to_bytes(d));
        block[2..4].copy_from_slice(&high.to_le_bytes());
        block[4..8].copy_from_slice(&low);
        for (codes, bytes) in codes.iter().zip(block[8..].as_chunks_mut::<16>().0) {
            *bytes = nibbles::pack(codes);
        }
    }

    #[inline(always)]
    pub(in super::super::super) fn decode(blocks: &[u8], out: &mut [f32]) {
        for (block, x) in blocks.as_chunks::<BYTES>().0.iter().zip(out.as_chunks_mut::<K_BLOCK>().0) {
            let d = float16::from_bytes([block[0], block[1]]);
            let high = u16::from_le_bytes([block[2], block[3]]);
            let groups = block[8..].as_chunks::<16>().0.iter().zip(x.as_chunks_mut::<32>().0);
            for (j, (bytes, x)) in groups.enumerate() {
                let scale = (block[4 + j / 2] >> (j % 2 * 4) & 15) | ((high >> (2 * j) & 3) << 4) as u8;
                let scale = d * (f32::from(scale) - SCALE_HALF as f32);
                *x = nibbles::unpack(bytes).map(|code| scale * VALUES[usize::from(code)]);
            }
        }
    }
}
