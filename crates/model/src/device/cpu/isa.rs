//! One body, compiled for several instruction sets; which one runs is found out once, at run time: [`formats::isa`].
//!
//! Bodies use plain f32 operations without fused multiply-add and reduce in [`LANES`] fixed lanes, so that AVX2,
//! AVX-512 and baseline give the same bits: the sets differ in speed alone.

/// Partial sums of a reduction; 16 f32 fill one AVX-512 register, two AVX2 registers.
pub(super) const LANES: usize = 16;

/// Defines a function whose body is compiled for each [`Isa`] and dispatched at run time.
macro_rules! multiversion {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx512f,avx512vl,avx512bw,avx512dq")]
                fn avx512($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
                match formats::isa::Isa::get() {
                    // SAFETY: `Isa::get` found the features of this arm on this processor.
                    formats::isa::Isa::Avx512 => return unsafe { avx512($($arg),*) },
                    // SAFETY: as above.
                    formats::isa::Isa::Avx2 => return unsafe { avx2($($arg),*) },
                    formats::isa::Isa::Baseline => {}
                }
            }
            body($($arg),*)
        }
    };
}

pub(super) use multiversion;

/// Σ f(x) in fixed lanes, over the numbers at each place of slices that are as long as the first.
///
/// # Panics
/// When one is shorter.
#[inline(always)]
pub(super) fn lane_sum<const N: usize>(slices: [&[f32]; N], f: impl Fn([f32; N]) -> f32) -> f32 {
    let n = slices[0].len();
    let slices = slices.map(|x| &x[..n]);
    let mut lanes = [0.0f32; LANES];
    let whole = n - n % LANES;
    let mut start = 0;
    while start < whole {
        // Arrays, so that nothing is checked lane by lane.
        let chunks = slices.map(|x| x[start..].first_chunk::<LANES>().expect("a whole chunk"));
        for (lane, sum) in lanes.iter_mut().enumerate() {
            *sum += f(chunks.map(|chunk| chunk[lane]));
        }
        start += LANES;
    }
    for i in whole..n {
        lanes[i - whole] += f(slices.map(|x| x[i]));
    }
    fold_lanes(lanes)
}

/// The sum of the lanes, in a fixed order.
#[inline(always)]
pub(super) fn fold_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            lanes[lane] += lanes[lane + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// The largest of `x`, -inf when it is empty.
#[inline(always)]
pub(super) fn lane_max(x: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let mut chunks = x.chunks_exact(LANES);
    for chunk in &mut chunks {
        for lane in 0..LANES {
            lanes[lane] = if chunk[lane] > lanes[lane] { chunk[lane] } else { lanes[lane] };
        }
    }
    for (lane, &value) in lanes.iter_mut().zip(chunks.remainder()) {
        *lane = if value > *lane { value } else { *lane };
    }
    lanes.iter().fold(f32::NEG_INFINITY, |a, &b| if b > a { b } else { a })
}

/// exp(x) to within 2 units in the last place; 0 below -87.3, capped at 88.3.
///
/// Source: the method of Cephes' `expf`: reduction by ln 2 in two parts, a polynomial of degree 6.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    const LOWEST: f32 = -87.336_55;
    const HIGHEST: f32 = 88.3;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Adding 1.5·2²³ leaves the rounded integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let clamped = x.clamp(LOWEST, HIGHEST);
    let rounded = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = clamped - n * LN2_HIGH - n * LN2_LOW;
    let mut p = 1.987_569_1e-4;
    for c in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 0.166_666_65, 0.5] {
        p = p * r + c;
    }
    let power = f32::from_bits(rounded.to_bits().wrapping_add(127) << 23);
    let result = (p * r * r + r + 1.0) * power;
    if x < LOWEST { 0.0 } else { result }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two units in the last place of f32.
    const TOLERANCE: f64 = 2.4e-7;

    #[test]
    fn exp_is_accurate_over_its_range() {
        let mut worst = 0.0f64;
        for i in -873_000..883_000 {
            let x = i as f32 * 1e-4;
            let expected = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) / expected - 1.0).abs());
        }
        assert!(worst < TOLERANCE, "{worst}");
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn reductions_take_every_element() {
        let x: Vec<f32> = (0..37).map(|i| i as f32).collect();
        assert_eq!(lane_sum([&x], |[x]| x), 666.0);
        assert_eq!(lane_max(&x), 36.0);
        assert_eq!(lane_max(&[]), f32::NEG_INFINITY);
    }
}
