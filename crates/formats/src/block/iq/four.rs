//! IQ4_NL and IQ4_XS: weights as d·v, v one of sixteen whole numbers that lie closer to each other near zero.
//!
//! Source of the numbers: `kvalues_iq4nl` of ggml-common.h; they are a part of the format.

use super::super::k_scales::{Block, GROUPS, lanes_of_columns, of_blocks};
use super::super::lanes::{Lanes, MOST_LANES, array, codes_of_groups, is_zero, rows, transpose};
use super::super::rounding::nearest;
use super::super::rows::{BatchColumns, k_batches};
use super::super::search::{ZERO_GROUP, largest_of_groups, largest_scale};
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
fn nearest_values<V: Lanes>(x: V) -> V {
    let (mut values, zero) = (V::splat(VALUES[0]), V::splat(0.0));
    for i in 0..15 {
        let step = V::splat(VALUES[i + 1] - VALUES[i]);
        values = values + V::choose(x.below(V::splat(middle(i))), zero, step);
    }
    values
}

#[inline(always)]
fn nearest_codes<V: Lanes>(x: V) -> V {
    let (mut codes, zero, one) = (V::splat(0.0), V::splat(0.0), V::splat(1.0));
    for i in 0..15 {
        codes = codes + V::choose(x.below(V::splat(middle(i))), zero, one);
    }
    codes
}

/// The scale of each group that makes Σ w·(x - d·v)² small (a part of ggml's `quantize_row_iq4_nl_impl`).
#[inline(always)]
fn scales<V: Lanes>(x: &[V; 32], importance: &[V; 32]) -> V {
    let (largest, zero) = (largest_of_groups(x), V::splat(0.0));
    let factor = V::splat(1.0) / (largest * V::splat(-1.0) / V::splat(VALUES[0]));
    let (sum_xv, sum_vv) = sums(x, importance, factor);
    let mut scale = V::choose(zero.below(sum_vv), sum_xv / sum_vv, zero);
    let mut best = scale * sum_xv;
    for trial in -MOST_TRIAL..=MOST_TRIAL {
        let factor = V::splat(f32::from(trial) + VALUES[0]) / largest;
        let (sum_xv, sum_vv) = sums(x, importance, factor);
        let is_better = V::both(zero.below(sum_vv), (best * sum_vv).below(sum_xv * sum_xv));
        scale = V::choose(is_better, sum_xv / sum_vv, scale);
        best = V::choose(is_better, scale * sum_xv, best);
    }
    V::choose(largest.abs().below(V::splat(ZERO_GROUP)), zero, scale)
}

/// Σwxv and Σwv² for the values that a factor gives.
#[inline(always)]
fn sums<V: Lanes>(x: &[V; 32], importance: &[V; 32], factor: V) -> (V, V) {
    let (mut sum_xv, mut sum_vv) = (V::splat(0.0), V::splat(0.0));
    for (x, w) in x.iter().zip(importance) {
        let v = nearest_values(factor * *x);
        let wv = *w * v;
        sum_xv = sum_xv + wv * *x;
        sum_vv = sum_vv + wv * v;
    }
    (sum_xv, sum_vv)
}

/// Codes for given scales; those of 0 for a scale of 0.
#[inline(always)]
fn codes<V: Lanes>(x: &[V; 32], scale: V, groups: &mut [[u8; 32]]) {
    let zero = V::splat(0.0);
    let factor = V::choose(is_zero(scale), zero, V::splat(1.0) / scale);
    codes_of_groups(&rows!(x, |x| nearest_codes(factor * x)), groups);
}

/// How much weights count: x² without a matrix.
#[inline(always)]
fn counts<V: Lanes>(x: &[V; 32], columns: Option<[V; 32]>, variance: V) -> [V; 32] {
    match columns {
        None => rows!(x, |x| x * x),
        Some(columns) => importance::from_matrix(x, &columns, variance),
    }
}

/// 32 weights: d (f16), codes (16 bytes).
pub(in super::super) mod nl {
    use super::*;

    pub(in super::super::super) const BYTES: usize = 18;

    #[inline(always)]
    pub(in super::super::super) fn encode<V: Lanes>(
        weights: &[f32],
        cols: usize,
        imatrix: Option<&[f32]>,
        out: &mut [u8],
    ) {
        let row_blocks = cols / SMALL_BLOCK;
        let rows = weights.as_chunks::<32>().0.chunks_exact(row_blocks);
        for (row, out) in rows.zip(out.as_chunks_mut::<BYTES>().0.chunks_exact_mut(row_blocks)) {
            for (batch, (x, blocks)) in row.chunks(V::N).zip(out.chunks_mut(V::N)).enumerate() {
                let columns = imatrix.map(|columns| &columns.as_chunks::<32>().0[batch * V::N..][..x.len()]);
                encode_batch::<V>(x, columns, blocks);
            }
        }
    }

    #[inline(always)]
    fn encode_batch<V: Lanes>(x: &[[f32; 32]], columns: Option<&[[f32; 32]]>, blocks: &mut [[u8; BYTES]]) {
        let lanes = transpose::<V, 32>(x);
        let mut variances = [0.0; MOST_LANES];
        for (variance, x) in variances.iter_mut().zip(x) {
            *variance = importance::sum_of_squares(x) * (2.0 / SMALL_BLOCK as f32);
        }
        let columns = columns.map(|columns| transpose(columns));
        let scale = scales(&lanes, &counts(&lanes, columns, V::load(&variances)));
        let (scales, mut found) = (array::<_, MOST_LANES>(scale), [[0; 32]; MOST_LANES]);
        codes(&lanes, scale, &mut found[..blocks.len()]);
        for (k, block) in blocks.iter_mut().enumerate() {
            block[..2].copy_from_slice(&float16::to_bytes(scales[k]));
            block[2..].copy_from_slice(&nibbles::pack(&found[k]));
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
    pub(in super::super::super) fn encode<V: Lanes>(
        weights: &[f32],
        imatrix: Option<&[f32]>,
        out: &mut [u8],
    ) {
        for (x, columns, blocks) in k_batches::<BYTES>(weights, imatrix, out, V::N / GROUPS) {
            encode_batch::<V>(x, columns, blocks);
        }
    }

    #[inline(always)]
    fn encode_batch<V: Lanes>(x: &[Block], columns: Option<BatchColumns<'_>>, blocks: &mut [[u8; BYTES]]) {
        let lanes = transpose::<V, 32>(x.as_flattened());
        let variances =
            of_blocks(x, |x| importance::sum_of_squares(x.as_flattened()) * (2.0 / K_BLOCK as f32));
        let columns = columns.map(|columns| {
            let mut lanes = [V::splat(0.0); 32];
            lanes_of_columns(x.len(), columns, &mut lanes);
            lanes
        });
        let scales = array::<_, MOST_LANES>(scales::<V>(&lanes, &counts(&lanes, columns, variances)));
        let (mut rounded, mut six_bit) = ([0.0; MOST_LANES], [0; MOST_LANES]);
        let mut scales_of_blocks = [0.0; MOST_LANES / GROUPS];
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
        let mut found = [[0; 32]; MOST_LANES];
        codes(&lanes, V::load(&rounded), &mut found[..V::N]);
        for (i, block) in blocks.iter_mut().enumerate() {
            let at = GROUPS * i..GROUPS * (i + 1);
            store(scales_of_blocks[i], &six_bit[at.clone()], &found[at], block);
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
