//! How the formats of 32 weights are encoded that have one scale a block: Q4_0 and Q5_0 with codes around zero, Q4_1 and
//! Q5_1 with codes from a minimum. Without importance block by block, with it as many blocks as lanes in step.

use super::lanes::{Lanes, MOST_LANES, array};
use super::rows::{batches, blocks};
use super::search::{ClampThenRound, WEIGHTED_TRIALS, affine, plain_symmetric, range, symmetric};

/// A format of weights d·(c - h).
pub(super) trait AroundZero<const BYTES: usize> {
    /// h, the code of 0; all codes are below twice that.
    const HALF: i8;

    /// Lays out a block of d and c.
    fn store(scale: f32, codes: &[u8; 32], block: &mut [u8; BYTES]);
}

/// A format of weights d·c + m.
pub(super) trait FromMinimum<const BYTES: usize> {
    /// The greatest code.
    const LEVELS: u8;

    /// The code of a weight without importance, from (x - m) / d.
    fn plain_code(scaled: f32) -> u8;

    /// Lays out a block of d, m and c.
    fn store(scale: f32, min: f32, codes: &[u8; 32], block: &mut [u8; BYTES]);
}

#[inline(always)]
pub(super) fn encode_around_zero<F: AroundZero<BYTES>, V: Lanes, const BYTES: usize>(
    weights: &[f32],
    imatrix: Option<&[f32]>,
    out: &mut [u8],
) {
    let Some(columns) = imatrix else {
        for (x, block) in blocks(weights, out) {
            let (scale, codes) = plain_symmetric(x, F::HALF);
            F::store(scale, &codes, block);
        }
        return;
    };
    for (batch, blocks) in batches(weights, columns, out, V::N) {
        let (x, counts) = batch.counted::<V>();
        let found = symmetric(&x, &counts, &mut [V::splat(0.0); 32], F::HALF);
        let (scales, mut codes) = (array::<_, MOST_LANES>(found.scale), [[0; 32]; MOST_LANES]);
        found.codes(&x, F::HALF, &mut codes[..blocks.len()]);
        for ((block, scale), codes) in blocks.iter_mut().zip(scales).zip(&codes) {
            F::store(scale, codes, block);
        }
    }
}

#[inline(always)]
pub(super) fn encode_from_minimum<F: FromMinimum<BYTES>, V: Lanes, const BYTES: usize>(
    weights: &[f32],
    imatrix: Option<&[f32]>,
    out: &mut [u8],
) {
    let Some(columns) = imatrix else {
        for (x, block) in blocks(weights, out) {
            let (scale, min, codes) = plain_codes::<F, BYTES>(x);
            F::store(scale, min, &codes, block);
        }
        return;
    };
    for (batch, blocks) in batches(weights, columns, out, V::N) {
        let (x, counts) = batch.counted::<V>();
        let found = affine::<ClampThenRound, V, 32>(
            &x,
            &counts,
            &mut [V::splat(0.0); 32],
            F::LEVELS,
            WEIGHTED_TRIALS,
        );
        let (scales, mins, mut codes) =
            (array::<_, MOST_LANES>(found.scale), array::<_, MOST_LANES>(found.min), [[0; 32]; MOST_LANES]);
        found.codes::<ClampThenRound, 32>(&x, F::LEVELS, &mut codes[..blocks.len()]);
        for (k, block) in blocks.iter_mut().enumerate() {
            F::store(scales[k], -mins[k], &codes[k], block);
        }
    }
}

/// The least weight gets code 0, the greatest the last one.
#[inline(always)]
fn plain_codes<F: FromMinimum<BYTES>, const BYTES: usize>(x: &[f32; 32]) -> (f32, f32, [u8; 32]) {
    let (min, max) = range(x);
    let scale = (max - min) / f32::from(F::LEVELS);
    let factor = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let mut codes = [0; 32];
    for (code, x) in codes.iter_mut().zip(x) {
        *code = F::plain_code((x - min) * factor);
    }
    (scale, min, codes)
}
