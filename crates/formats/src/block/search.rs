//! The searches for the scale (and minimum) of a group of weights that the formats share.
//!
//! All sums run over the weights in order in f32, without fused multiply-add: ggml's bytes depend on each
//! rounding. Groups are arrays, so that lengths are known to the compiler.

use super::rounding::nearest;

/// Below this a group counts as all zero.
pub(super) const ZERO_GROUP: f32 = 1e-15;

/// Scale factors that a search tries: (levels + first + delta·i) / range for i in 0..=last.
#[derive(Clone, Copy)]
pub(super) struct Trials {
    pub first: f32,
    pub delta: f32,
    pub last: u16,
}

/// The scale d and codes c in 0..2·`half` which make Σ w·(x - d·(c - half))² small (ggml's `make_qx_quants`).
///
/// The first trial maps the weight of largest magnitude to the most negative code; 18 more stretch that by
/// up to ±0.9 codes. For a given set of codes the best scale is Σwxl / Σwl².
pub(super) fn symmetric<const N: usize>(
    x: &[f32; N],
    importance: &[f32; N],
    half: i8,
    codes: &mut [u8; N],
) -> f32 {
    let largest = largest_magnitude(x);
    if largest.abs() < ZERO_GROUP {
        codes.fill(0);
        return 0.0;
    }
    let levels = f32::from(half);
    let fit = |factor: f32| -> ([i32; N], f32, f32) {
        let half = i32::from(half);
        let signed = x.map(|x| nearest(factor * x).clamp(-half, half - 1));
        let (mut sum_xl, mut sum_ll) = (0.0, 0.0);
        for ((&x, &w), &code) in x.iter().zip(importance).zip(&signed) {
            let l = code as f32;
            sum_xl += w * x * l;
            sum_ll += w * l * l;
        }
        (signed, sum_xl, sum_ll)
    };
    let (mut best_codes, sum_xl, sum_ll) = fit(-levels / largest);
    let mut scale = if sum_ll == 0.0 { 0.0 } else { sum_xl / sum_ll };
    let mut best = scale * sum_xl;
    for trial in (-9i8..=9).filter(|&trial| trial != 0) {
        let (signed, sum_xl, sum_ll) = fit(-(levels + 0.1 * f32::from(trial)) / largest);
        if sum_ll > 0.0 && sum_xl * sum_xl > best * sum_ll {
            scale = sum_xl / sum_ll;
            best = scale * sum_xl;
            best_codes = signed;
        }
    }
    for (code, signed) in codes.iter_mut().zip(best_codes) {
        *code = (signed + i32::from(half)) as u8;
    }
    scale
}

/// The value of largest magnitude with its sign, the first of several; 0 for a group of zeros.
pub(super) fn largest_magnitude(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |largest: f32, &x| if largest.abs() < x.abs() { x } else { largest })
}

/// How a trial of [`affine`] turns (x - min)·factor into a code; the two differ only out of range, which a
/// minimum found by an earlier trial can cause.
pub(super) trait ToCode {
    fn code(scaled: f32, levels: u8) -> i32;
}

/// Rounds, then clamps: the encoders without importance.
pub(super) struct RoundThenClamp;

/// Clamps, then rounds: the encoders with importance.
pub(super) struct ClampThenRound;

impl ToCode for RoundThenClamp {
    #[inline(always)]
    fn code(scaled: f32, levels: u8) -> i32 {
        nearest(scaled).clamp(0, levels.into())
    }
}

impl ToCode for ClampThenRound {
    #[inline(always)]
    fn code(scaled: f32, levels: u8) -> i32 {
        let levels = f32::from(levels);
        if scaled > 0.0 { nearest(if scaled < levels { scaled } else { levels }) } else { 0 }
    }
}

/// The scale d, minimum m ≥ 0 and codes c in 0..=`levels` which make Σ w·(d·c - m - x)² small (ggml's
/// `make_qkx2_quants` and `make_qkx3_quants`).
///
/// For the codes of each trial, scale and minimum come from the 2×2 normal equations; a better minimum is
/// the base of the trials after it.
pub(super) fn affine<C: ToCode, const N: usize>(
    x: &[f32; N],
    importance: &[f32; N],
    levels: u8,
    trials: Trials,
    codes: &mut [u8; N],
) -> (f32, f32) {
    let (lowest, highest) = range(x);
    let mut min = if lowest > 0.0 { 0.0 } else { lowest };
    if highest <= min {
        codes.fill(0);
        return (0.0, -min);
    }
    let (sum_w, sum_x) = weighted_sums(x, importance);
    let levels_f32 = f32::from(levels);
    let factor = levels_f32 / (highest - min);
    let mut scale = 1.0 / factor;
    let mut best_codes = x.map(|x| nearest(factor * (x - min)).clamp(0, levels.into()) as f32);
    let mut best_error = weighted_error(x, importance, &best_codes, scale, min);
    for trial in 0..=trials.last {
        let factor = (trials.first + trials.delta * f32::from(trial) + levels_f32) / (highest - min);
        let trial_codes = x.map(|x| C::code(factor * (x - min), levels) as f32);
        let (mut sum_l, mut sum_ll, mut sum_xl) = (0.0, 0.0, 0.0);
        for ((&x, &w), &l) in x.iter().zip(importance).zip(&trial_codes) {
            let wl = w * l;
            sum_l += wl;
            sum_ll += wl * l;
            sum_xl += wl * x;
        }
        let determinant: f32 = sum_w * sum_ll - sum_l * sum_l;
        if determinant > 0.0 {
            let mut this_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
            let mut this_min = (sum_ll * sum_x - sum_l * sum_xl) / determinant;
            if this_min > 0.0 {
                this_min = 0.0;
                this_scale = sum_xl / sum_ll;
            }
            let error = weighted_error(x, importance, &trial_codes, this_scale, this_min);
            if error < best_error {
                (best_codes, best_error, scale, min) = (trial_codes, error, this_scale, this_min);
            }
        }
    }
    for (code, best) in codes.iter_mut().zip(best_codes) {
        *code = best as u8;
    }
    (scale, -min)
}

/// The least and greatest of a group.
pub(super) fn range<const N: usize>(x: &[f32; N]) -> (f32, f32) {
    x.iter().fold((x[0], x[0]), |(lowest, highest), &x| {
        (if x < lowest { x } else { lowest }, if x > highest { x } else { highest })
    })
}

fn weighted_sums<const N: usize>(x: &[f32; N], importance: &[f32; N]) -> (f32, f32) {
    // The first term starts the sum instead of being added to 0: -0.0 must stay -0.0.
    let mut sums = (importance[0], importance[0] * x[0]);
    for (&x, &w) in x.iter().zip(importance).skip(1) {
        sums.0 += w;
        sums.1 += w * x;
    }
    sums
}

fn weighted_error<const N: usize>(
    x: &[f32; N],
    importance: &[f32; N],
    codes: &[f32; N],
    scale: f32,
    min: f32,
) -> f32 {
    let mut error = 0.0;
    for ((&x, &w), &l) in x.iter().zip(importance).zip(codes) {
        let difference = scale * l + min - x;
        error += w * (difference * difference);
    }
    error
}

/// The scale d and codes c in 0..=`levels` which make Σ w·(x - d·c)² small for x ≥ 0 (ggml's `make_qp_quants`).
///
/// Eight trials choose a factor; up to five passes then move single codes while that lowers the error.
/// Codes are kept as bytes even when an x is negative and its code wraps, because ggml's are.
pub(super) fn positive<const N: usize>(
    x: &[f32; N],
    importance: &[f32; N],
    levels: u8,
    codes: &mut [u8; N],
) -> f32 {
    let largest = x.iter().fold(0.0, |largest, &x| if largest > x { largest } else { x });
    if largest < ZERO_GROUP {
        codes.fill(0);
        return 0.0;
    }
    let factor = best_factor(x, importance, levels, largest);
    let (mut sum_xl, mut sum_ll) = (0.0, 0.0);
    for ((&x, &w), code) in x.iter().zip(importance).zip(&mut *codes) {
        let l = nearest(factor * x).min(levels.into());
        *code = l as u8;
        let l = l as f32;
        sum_xl += w * x * l;
        sum_ll += w * l * l;
    }
    for _pass in 0..5 {
        if !improve(x, importance, levels, codes, &mut sum_xl, &mut sum_ll) {
            break;
        }
    }
    if sum_ll > 0.0 { sum_xl / sum_ll } else { 0.0 }
}

fn best_factor<const N: usize>(x: &[f32; N], importance: &[f32; N], levels: u8, largest: f32) -> f32 {
    let error = |factor: f32, code: &dyn Fn(i32) -> f32| {
        let scale = 1.0 / factor;
        let mut error = 0.0;
        for (&x, &w) in x.iter().zip(importance) {
            let difference = x - scale * code(nearest(factor * x));
            error += w * difference * difference;
        }
        error
    };
    let levels_f32 = f32::from(levels);
    let mut best = levels_f32 / largest;
    let mut best_error: f32 = error(best, &|code| f32::from(code as u8));
    for trial in (-4i8..=4).filter(|&trial| trial != 0) {
        let factor = (0.1 * f32::from(trial) + levels_f32) / largest;
        let this_error = error(factor, &|code| code.min(levels.into()) as f32);
        if this_error < best_error {
            (best, best_error) = (factor, this_error);
        }
    }
    best
}

/// One pass over the codes; whether any moved.
fn improve<const N: usize>(
    x: &[f32; N],
    importance: &[f32; N],
    levels: u8,
    codes: &mut [u8; N],
    sum_xl: &mut f32,
    sum_ll: &mut f32,
) -> bool {
    let mut changed = false;
    for ((&x, &w), code) in x.iter().zip(importance).zip(codes) {
        let l = f32::from(*code);
        let (mut xl, mut ll) = (*sum_xl - w * x * l, *sum_ll - w * l * l);
        if xl > 0.0 && ll > 0.0 {
            let new_code = nearest(x * ll / xl).min(levels.into());
            if new_code != i32::from(*code) {
                let l = new_code as f32;
                xl += w * x * l;
                ll += w * l * l;
                if xl * xl * *sum_ll > *sum_xl * *sum_xl * ll {
                    (*code, *sum_xl, *sum_ll) = (new_code as u8, xl, ll);
                    changed = true;
                }
            }
        }
    }
    changed
}
