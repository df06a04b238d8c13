//! The search for the 6-bit scales of a block's eight groups when there is an importance matrix.

use super::rounding::nearest;
use super::search::ZERO_GROUP;

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
