//! The searches for the scale (and minimum) of a group of weights that the formats share.
//!
//! All sums run over a group's weights in order in f32, without fused multiply-add: ggml's bytes depend on
//! each rounding. Groups are searched in step, one a lane; see [`super::lanes`].

use super::lanes::{Lane, codes_of_groups, each, rows};
use super::rounding::{nearest, truncated_byte};

/// Below this a group counts as all zero.
pub(super) const ZERO_GROUP: f32 = 1e-15;

/// Scale factors that a search tries: (levels + first + delta·i) / range for i in 0..=last.
#[derive(Clone, Copy)]
pub(super) struct Trials {
    pub first: f32,
    pub delta: f32,
    pub last: u16,
}

/// The trials of every format when there is an importance matrix.
pub(super) const WEIGHTED_TRIALS: Trials = Trials { first: -0.9, delta: 0.05, last: 36 };

/// Codes of L groups.
pub(super) type Codes<const N: usize, const L: usize> = [[u8; N]; L];

/// The scale d and codes c in 0..2·`half` of each group which make Σ w·(x - d·(c - half))² small (ggml's
/// `make_qx_quants`).
///
/// The first trial maps the weight of largest magnitude to the most negative code; 18 more stretch that by
/// up to ±0.9 codes. For a given set of codes the best scale is Σwxl / Σwl².
#[inline(always)]
pub(super) fn symmetric<const N: usize, const L: usize>(
    x: &[Lane<L>; N],
    importance: &[Lane<L>; N],
    half: i8,
) -> (Lane<L>, Codes<N, L>) {
    let largest = largest_of_groups(x);
    let levels = f32::from(half);
    let mut best_factor: [_; L] = each(|k| -levels / largest[k]);
    let (sum_xl, sum_ll) = symmetric_sums(x, importance, half, &best_factor);
    let mut scale: [_; L] = each(|k| if sum_ll[k] == 0.0 { 0.0 } else { sum_xl[k] / sum_ll[k] });
    let mut best: [_; L] = each(|k| scale[k] * sum_xl[k]);
    for trial in (-9i8..=9).filter(|&trial| trial != 0) {
        let stretched = -(levels + 0.1 * f32::from(trial));
        let factor: [_; L] = each(|k| stretched / largest[k]);
        let (sum_xl, sum_ll) = symmetric_sums(x, importance, half, &factor);
        let better: [_; L] = each(|k| sum_ll[k] > 0.0 && sum_xl[k] * sum_xl[k] > best[k] * sum_ll[k]);
        scale = each(|k| if better[k] { sum_xl[k] / sum_ll[k] } else { scale[k] });
        best = each(|k| if better[k] { scale[k] * sum_xl[k] } else { best[k] });
        best_factor = each(|k| if better[k] { factor[k] } else { best_factor[k] });
    }
    let is_zero: [_; L] = each(|k| largest[k].abs() < ZERO_GROUP);
    let code_rows = rows(x, |x| {
        each(|k| if is_zero[k] { 0 } else { symmetric_code(best_factor[k] * x[k], half) + i32::from(half) })
    });
    (each(|k| if is_zero[k] { 0.0 } else { scale[k] }), codes_of_groups(&code_rows))
}

/// The value of largest magnitude of each group, with its sign, the first of several; one that is NaN does not count.
#[inline(always)]
pub(super) fn largest_of_groups<const N: usize, const L: usize>(x: &[Lane<L>; N]) -> Lane<L> {
    let mut largest: Lane<L> = [0.0; L];
    for row in x {
        largest = each(|k| if largest[k].abs() < row[k].abs() { row[k] } else { largest[k] });
    }
    largest
}

/// The scale of largest magnitude with its sign, the first of several; one that is NaN does not count.
#[inline(always)]
pub(super) fn largest_scale(scales: &[f32]) -> f32 {
    scales.iter().fold(0.0, |largest: f32, &scale| if largest.abs() < scale.abs() { scale } else { largest })
}

#[inline(always)]
fn symmetric_code(scaled: f32, half: i8) -> i32 {
    nearest(scaled).clamp(-i32::from(half), i32::from(half) - 1)
}

/// Σwxl and Σwl² for the codes that a factor gives.
#[inline(always)]
fn symmetric_sums<const N: usize, const L: usize>(
    x: &[Lane<L>; N],
    importance: &[Lane<L>; N],
    half: i8,
    factor: &Lane<L>,
) -> (Lane<L>, Lane<L>) {
    let (mut sum_xl, mut sum_ll) = ([0.0; L], [0.0; L]);
    for (x, w) in x.iter().zip(importance) {
        let l: [_; L] = each(|k| symmetric_code(factor[k] * x[k], half) as f32);
        sum_xl = each(|k| sum_xl[k] + w[k] * x[k] * l[k]);
        sum_ll = each(|k| sum_ll[k] + w[k] * l[k] * l[k]);
    }
    (sum_xl, sum_ll)
}

/// The value of largest magnitude with its sign, the first of several; 0 for a group of zeros.
///
/// Magnitudes are compared as bits, which order as the numbers do: the compiler may then reduce in any order.
#[inline(always)]
pub(super) fn largest_magnitude<const N: usize>(x: &[f32; N]) -> f32 {
    let magnitude = x.iter().fold(0, |largest: u32, x| largest.max(x.abs().to_bits()));
    if magnitude == 0 {
        return 0.0;
    }
    x.iter().copied().find(|x| x.abs().to_bits() == magnitude).unwrap_or(0.0)
}

/// Scale and codes of a group without a search: the weight of largest magnitude gets the most negative of the
/// codes 0..2·half, stored with `half` added.
#[inline(always)]
pub(super) fn plain_symmetric(x: &[f32; 32], half: i8) -> (f32, [u8; 32]) {
    let most = 2 * half - 1;
    let half = f32::from(half);
    let scale = largest_magnitude(x) / -half;
    let factor = if scale == 0.0 { 0.0 } else { 1.0 / scale };
    let code = |x: f32| truncated_byte(x * factor + (half + 0.5)).cast_signed().min(most);
    (scale, x.map(|x| code(x).cast_unsigned()))
}

/// How a trial of [`affine`] turns (x - min)·factor into a code, and what a difference costs. Codes differ only out of
/// range, which a minimum found by an earlier trial can cause.
pub(super) trait Trial {
    fn code(scaled: f32, levels: u8) -> i32;

    #[inline(always)]
    fn cost(difference: f32) -> f32 {
        difference * difference
    }
}

/// Rounds, then clamps: the encoders without importance.
pub(super) struct RoundThenClamp;

/// The same, with the magnitude of a difference as its cost.
pub(super) struct RoundThenClampByMagnitude;

/// Clamps, then rounds: the encoders with importance.
pub(super) struct ClampThenRound;

impl Trial for RoundThenClamp {
    #[inline(always)]
    fn code(scaled: f32, levels: u8) -> i32 {
        nearest(scaled).clamp(0, levels.into())
    }
}

impl Trial for RoundThenClampByMagnitude {
    #[inline(always)]
    fn code(scaled: f32, levels: u8) -> i32 {
        RoundThenClamp::code(scaled, levels)
    }

    #[inline(always)]
    fn cost(difference: f32) -> f32 {
        difference.abs()
    }
}

impl Trial for ClampThenRound {
    #[inline(always)]
    fn code(scaled: f32, levels: u8) -> i32 {
        let levels = f32::from(levels);
        let clamped = if scaled < levels { scaled } else { levels };
        // Also 0 for NaN, whose comparison is false.
        nearest(if scaled > 0.0 { clamped } else { 0.0 })
    }
}

/// The scale d, minimum m ≥ 0 and codes c in 0..=`levels` of each group which make Σ w·(d·c - m - x)² small, or Σ w·|…|
/// (ggml's `make_qkx2_quants` and `make_qkx3_quants`).
///
/// For the codes of each trial, scale and minimum come from the 2×2 normal equations; a better minimum is
/// the base of the trials after it.
#[inline(always)]
pub(super) fn affine<C: Trial, const N: usize, const L: usize>(
    x: &[Lane<L>; N],
    importance: &[Lane<L>; N],
    levels: u8,
    trials: Trials,
) -> (Lane<L>, Lane<L>, Codes<N, L>) {
    let (lowest, highest) = ranges(x);
    let mut min: [_; L] = each(|k| if lowest[k] > 0.0 { 0.0 } else { lowest[k] });
    let first_min = min;
    let is_flat: [_; L] = each(|k| highest[k] <= min[k]);
    let (sum_w, sum_x) = weighted_sums(x, importance);
    let levels_f32 = f32::from(levels);
    let first_factor: [_; L] = each(|k| levels_f32 / (highest[k] - min[k]));
    let mut scale: [_; L] = each(|k| 1.0 / first_factor[k]);
    let codes = rows(x, |x| each(|k| RoundThenClamp::code(first_factor[k] * (x[k] - min[k]), levels) as f32));
    let mut best_error = weighted_errors::<C, N, L>(x, importance, &codes, &scale, &min);
    // Codes are made again from the best trial at the end, which is cheaper than keeping them.
    let (mut best_factor, mut best_base, mut is_first) = (first_factor, min, [true; L]);
    for trial in 0..=trials.last {
        let stretched = trials.first + trials.delta * f32::from(trial) + levels_f32;
        let factor: [_; L] = each(|k| stretched / (highest[k] - min[k]));
        let codes = rows(x, |x| each(|k| C::code(factor[k] * (x[k] - min[k]), levels) as f32));
        let (this_scale, this_min, is_solved) = solve(x, importance, &codes, &sum_w, &sum_x);
        let error = weighted_errors::<C, N, L>(x, importance, &codes, &this_scale, &this_min);
        let better: [_; L] = each(|k| is_solved[k] && error[k] < best_error[k]);
        best_factor = each(|k| if better[k] { factor[k] } else { best_factor[k] });
        best_base = each(|k| if better[k] { min[k] } else { best_base[k] });
        is_first = each(|k| is_first[k] && !better[k]);
        best_error = each(|k| if better[k] { error[k] } else { best_error[k] });
        scale = each(|k| if better[k] { this_scale[k] } else { scale[k] });
        min = each(|k| if better[k] { this_min[k] } else { min[k] });
    }
    let code_rows = rows(x, |x| {
        each(|k| {
            let scaled = best_factor[k] * (x[k] - best_base[k]);
            let code =
                if is_first[k] { RoundThenClamp::code(scaled, levels) } else { C::code(scaled, levels) };
            if is_flat[k] { 0 } else { code }
        })
    });
    let scale: [_; L] = each(|k| if is_flat[k] { 0.0 } else { scale[k] });
    let min: [_; L] = each(|k| if is_flat[k] { -first_min[k] } else { -min[k] });
    (scale, min, codes_of_groups(&code_rows))
}

/// Scale and minimum that fit given codes best, and whether the equations have a solution.
#[inline(always)]
fn solve<const N: usize, const L: usize>(
    x: &[Lane<L>; N],
    importance: &[Lane<L>; N],
    codes: &[Lane<L>; N],
    sum_w: &Lane<L>,
    sum_x: &Lane<L>,
) -> (Lane<L>, Lane<L>, [bool; L]) {
    let (mut sum_l, mut sum_ll, mut sum_xl) = ([0.0; L], [0.0; L], [0.0; L]);
    for ((x, w), l) in x.iter().zip(importance).zip(codes) {
        let wl: [_; L] = each(|k| w[k] * l[k]);
        sum_l = each(|k| sum_l[k] + wl[k]);
        sum_ll = each(|k| sum_ll[k] + wl[k] * l[k]);
        sum_xl = each(|k| sum_xl[k] + wl[k] * x[k]);
    }
    let determinant: [_; L] = each(|k| sum_w[k] * sum_ll[k] - sum_l[k] * sum_l[k]);
    let scale: [_; L] = each(|k| (sum_w[k] * sum_xl[k] - sum_x[k] * sum_l[k]) / determinant[k]);
    let min: [_; L] = each(|k| (sum_ll[k] * sum_x[k] - sum_l[k] * sum_xl[k]) / determinant[k]);
    // A minimum above zero cannot be stored: the line then goes through zero.
    let scale: [_; L] = each(|k| if min[k] > 0.0 { sum_xl[k] / sum_ll[k] } else { scale[k] });
    let min: [_; L] = each(|k| if min[k] > 0.0 { 0.0 } else { min[k] });
    (scale, min, each(|k| determinant[k] > 0.0))
}

/// The least and greatest of each group.
#[inline(always)]
fn ranges<const N: usize, const L: usize>(x: &[Lane<L>; N]) -> (Lane<L>, Lane<L>) {
    let (mut lowest, mut highest) = (x[0], x[0]);
    for x in x {
        lowest = each(|k| if x[k] < lowest[k] { x[k] } else { lowest[k] });
        highest = each(|k| if x[k] > highest[k] { x[k] } else { highest[k] });
    }
    (lowest, highest)
}

/// The least and greatest of one group.
#[inline(always)]
pub(super) fn range<const N: usize>(x: &[f32; N]) -> (f32, f32) {
    x.iter().fold((x[0], x[0]), |(lowest, highest), &x| {
        (if x < lowest { x } else { lowest }, if x > highest { x } else { highest })
    })
}

#[inline(always)]
fn weighted_sums<const N: usize, const L: usize>(
    x: &[Lane<L>; N],
    importance: &[Lane<L>; N],
) -> (Lane<L>, Lane<L>) {
    // The first term starts the sum instead of being added to 0: -0.0 must stay -0.0.
    let mut sums = (importance[0], each(|k| importance[0][k] * x[0][k]));
    for (x, w) in x.iter().zip(importance).skip(1) {
        sums.0 = each(|k| sums.0[k] + w[k]);
        sums.1 = each(|k| sums.1[k] + w[k] * x[k]);
    }
    sums
}

#[inline(always)]
fn weighted_errors<C: Trial, const N: usize, const L: usize>(
    x: &[Lane<L>; N],
    importance: &[Lane<L>; N],
    codes: &[Lane<L>; N],
    scale: &Lane<L>,
    min: &Lane<L>,
) -> Lane<L> {
    let mut error = [0.0; L];
    for ((x, w), l) in x.iter().zip(importance).zip(codes) {
        let difference: [_; L] = each(|k| scale[k] * l[k] + min[k] - x[k]);
        error = each(|k| error[k] + w[k] * C::cost(difference[k]));
    }
    error
}
