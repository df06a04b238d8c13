//! The searches for the scale (and minimum) of a group of weights that the formats share.
//!
//! All sums run over a group's weights in order in f32, without fused multiply-add: ggml's bytes depend on
//! each rounding. Groups are searched in step, one a lane; see [`super::lanes`].

use super::lanes::{Lanes, codes_of_groups, is_zero, rows};
use super::rounding::truncated_byte;

/// Below this a group counts as all zero.
pub(super) const ZERO_GROUP: f32 = 1e-15;

/// Scale factors that a search tries: (levels + first + delta·i) / range for i in 0..=last.
#[derive(Clone, Copy)]
pub(super) struct Trials {
    pub first: f32,
    pub delta: f32,
    pub last: u16,
}

impl Trials {
    /// levels + first + delta·trial
    #[inline(always)]
    fn stretched<V: Lanes>(&self, trial: u16, levels: u8) -> V {
        V::splat(self.first + self.delta * f32::from(trial) + f32::from(levels))
    }
}

/// The trials of every format when there is an importance matrix.
pub(super) const WEIGHTED_TRIALS: Trials = Trials { first: -0.9, delta: 0.05, last: 36 };

/// What [`symmetric`] finds of each group.
#[derive(Clone, Copy)]
pub(super) struct Symmetric<V: Lanes> {
    /// d
    pub scale: V,
    factor: V,
    vanishes: V::Mask,
}

/// The scale d and codes c in 0..2·`half` of each group which make Σ w·(x - d·(c - half))² small (ggml's
/// `make_qx_quants`).
///
/// The first trial maps the weight of largest magnitude to the most negative code; 18 more stretch that by
/// up to ±0.9 codes. For a given set of codes the best scale is Σwxl / Σwl². `counted` is memory to work in.
#[inline(always)]
pub(super) fn symmetric<V: Lanes, const N: usize>(
    x: &[V; N],
    importance: &[V; N],
    counted: &mut [V; N],
    half: i8,
) -> Symmetric<V> {
    for (counted, (x, w)) in counted.iter_mut().zip(x.iter().zip(importance)) {
        *counted = *w * *x;
    }
    let largest = largest_of_groups(x);
    // Scaled, the largest of a group is less than its levels and one more; but what is infinite, or no number, stays so.
    let group = (x, importance, &*counted);
    if V::all(largest.abs().below(V::splat(f32::MAX))) {
        symmetric_by::<AboveLeast, Small, V, N>(group, largest, half)
    } else {
        symmetric_by::<Any, Any, V, N>(group, largest, half)
    }
}

/// x, w and w·x of each group.
type Counted<'a, V, const N: usize> = (&'a [V; N], &'a [V; N], &'a [V; N]);

/// The last trial that rounds the largest to its code, and none below it.
const LITTLE_STRETCH: i8 = 4;

/// With what is known of scaled numbers up to [`LITTLE_STRETCH`], and of all.
#[inline(always)]
fn symmetric_by<L: KnownSymmetric, K: KnownSymmetric, V: Lanes, const N: usize>(
    group: Counted<'_, V, N>,
    largest: V,
    half: i8,
) -> Symmetric<V> {
    let zero = V::splat(0.0);
    let levels = f32::from(half);
    let mut factor = V::splat(-levels) / largest;
    let (sum_xl, sum_ll) = symmetric_sums::<L, V, N>(group, factor, half);
    let mut scale = V::choose(is_zero(sum_ll), zero, sum_xl / sum_ll);
    let mut best = scale * sum_xl;
    for trial in (-9i8..=9).filter(|&trial| trial != 0) {
        let stretched = -(levels + 0.1 * f32::from(trial));
        let this_factor = V::splat(stretched) / largest;
        let (sum_xl, sum_ll) = if trial <= LITTLE_STRETCH {
            symmetric_sums::<L, V, N>(group, this_factor, half)
        } else {
            symmetric_sums::<K, V, N>(group, this_factor, half)
        };
        let better = V::both(zero.below(sum_ll), (best * sum_ll).below(sum_xl * sum_xl));
        scale = V::choose(better, sum_xl / sum_ll, scale);
        best = V::choose(better, scale * sum_xl, best);
        factor = V::choose(better, this_factor, factor);
    }
    let vanishes = largest.abs().below(V::splat(ZERO_GROUP));
    Symmetric { scale: V::choose(vanishes, zero, scale), factor, vanishes }
}

impl<V: Lanes> Symmetric<V> {
    /// The codes of the groups.
    #[inline(always)]
    pub(super) fn codes<const N: usize>(&self, x: &[V; N], half: i8, groups: &mut [[u8; N]]) {
        let (zero, shift) = (V::splat(0.0), V::splat(f32::from(half)));
        let codes = rows!(x, |x| {
            let code = symmetric_code(self.factor * x, half) + shift;
            V::choose(self.vanishes, zero, code)
        });
        codes_of_groups(&codes, groups);
    }
}

/// The value of largest magnitude of each group, with its sign, the first of several; one that is NaN does not count.
#[inline(always)]
pub(super) fn largest_of_groups<V: Lanes, const N: usize>(x: &[V; N]) -> V {
    let mut largest = V::splat(0.0);
    for x in x {
        largest = V::choose(largest.abs().below(x.abs()), *x, largest);
    }
    largest
}

/// The scale of largest magnitude with its sign, the first of several; one that is NaN does not count.
#[inline(always)]
pub(super) fn largest_scale(scales: &[f32]) -> f32 {
    scales.iter().fold(0.0, |largest: f32, &scale| if largest.abs() < scale.abs() { scale } else { largest })
}

#[inline(always)]
fn symmetric_code<V: Lanes>(scaled: V, half: i8) -> V {
    scaled.nearest(-i32::from(half), i32::from(half) - 1)
}

/// What is known of the numbers that become codes around zero. A type and no closure, see [`super::rows`].
trait KnownSymmetric {
    fn code<V: Lanes>(scaled: V, half: i8) -> V;
}

/// Each rounds to the least level or above it.
struct AboveLeast;

impl KnownSymmetric for AboveLeast {
    #[inline(always)]
    fn code<V: Lanes>(scaled: V, half: i8) -> V {
        scaled.rounded().lesser(V::splat(f32::from(half) - 1.0))
    }
}

impl KnownSymmetric for Small {
    #[inline(always)]
    fn code<V: Lanes>(scaled: V, half: i8) -> V {
        let half = f32::from(half);
        scaled.rounded().limited(V::splat(-half), V::splat(half - 1.0))
    }
}

impl KnownSymmetric for Any {
    #[inline(always)]
    fn code<V: Lanes>(scaled: V, half: i8) -> V {
        symmetric_code(scaled, half)
    }
}

/// Σwxl and Σwl² for the codes that a factor gives, from x, w and w·x.
#[inline(always)]
fn symmetric_sums<K: KnownSymmetric, V: Lanes, const N: usize>(
    (x, importance, counted): Counted<'_, V, N>,
    factor: V,
    half: i8,
) -> (V, V) {
    let (mut sum_xl, mut sum_ll) = (V::splat(0.0), V::splat(0.0));
    for (x, (w, wx)) in x.iter().zip(importance.iter().zip(counted)) {
        let l = K::code(factor * *x, half);
        sum_xl = sum_xl + *wx * l;
        sum_ll = sum_ll + *w * l * l;
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
    let mut codes = [0; 32];
    for (to, &x) in codes.iter_mut().zip(x) {
        *to = code(x).cast_unsigned();
    }
    (scale, codes)
}

/// How a trial of [`affine`] turns (x - min)·factor into a code, and what a difference costs. Codes differ only out of
/// range, which a minimum found by an earlier trial can cause.
pub(super) trait Trial {
    fn code<V: Lanes>(scaled: V, levels: u8) -> V;

    /// The same of numbers of less than 2²², the number of levels at hand.
    fn small_code<V: Lanes>(scaled: V, most: V) -> V;

    #[inline(always)]
    fn cost<V: Lanes>(difference: V) -> V {
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
    fn code<V: Lanes>(scaled: V, levels: u8) -> V {
        scaled.nearest(0, levels.into())
    }

    #[inline(always)]
    fn small_code<V: Lanes>(scaled: V, most: V) -> V {
        scaled.rounded().within(most)
    }
}

impl Trial for RoundThenClampByMagnitude {
    #[inline(always)]
    fn code<V: Lanes>(scaled: V, levels: u8) -> V {
        RoundThenClamp::code(scaled, levels)
    }

    #[inline(always)]
    fn small_code<V: Lanes>(scaled: V, most: V) -> V {
        RoundThenClamp::small_code(scaled, most)
    }

    #[inline(always)]
    fn cost<V: Lanes>(difference: V) -> V {
        difference.abs()
    }
}

impl Trial for ClampThenRound {
    #[inline(always)]
    fn code<V: Lanes>(scaled: V, levels: u8) -> V {
        let (zero, most) = (V::splat(0.0), V::splat(f32::from(levels)));
        let clamped = V::choose(scaled.below(most), scaled, most);
        // Also 0 for NaN, whose comparison is false.
        V::choose(zero.below(scaled), clamped, zero).nearest(0, levels.into())
    }

    #[inline(always)]
    fn small_code<V: Lanes>(scaled: V, most: V) -> V {
        scaled.within(most).rounded()
    }
}

/// What [`affine`] finds of each group.
#[derive(Clone, Copy)]
pub(super) struct Affine<V: Lanes> {
    /// d
    pub scale: V,
    /// m
    pub min: V,
    factor: V,
    base: V,
    is_first: V::Mask,
    is_flat: V::Mask,
}

/// The scale d, minimum m ≥ 0 and codes c in 0..=`levels` of each group which make Σ w·(d·c - m - x)² small, or Σ w·|…|
/// (ggml's `make_qkx2_quants` and `make_qkx3_quants`).
///
/// For the codes of each trial, scale and minimum come from the 2×2 normal equations; a better minimum is
/// the base of the trials after it. `codes` is memory to work in.
#[inline(always)]
pub(super) fn affine<C: Trial, V: Lanes, const N: usize>(
    x: &[V; N],
    importance: &[V; N],
    codes: &mut [V; N],
    levels: u8,
    trials: Trials,
) -> Affine<V> {
    let zero = V::splat(0.0);
    let (lowest, highest) = ranges(x);
    let min = V::choose(zero.below(lowest), zero, lowest);
    let first_min = min;
    let is_wide = min.below(highest);
    let is_flat = V::except(zero.below(V::splat(1.0)), is_wide);
    let (sum_w, sum_x) = weighted_sums(x, importance);
    let first_factor = V::splat(f32::from(levels)) / (highest - min);
    let scale = V::splat(1.0) / first_factor;
    for (l, x) in codes.iter_mut().zip(x) {
        *l = RoundThenClamp::code(first_factor * (*x - min), levels);
    }
    let error = weighted_errors::<C, V, N>(x, importance, codes, scale, min);
    let is_first = zero.below(V::splat(1.0));
    let range = (lowest, highest);
    let mut best =
        Best { range, sums: (sum_w, sum_x), scale, min, error, factor: first_factor, base: min, is_first };
    let mut factor = trials.stretched::<V>(0, levels) / (highest - min);
    for trial in 0..=trials.last {
        let (min, (lowest, highest)) = (in_memory(&mut best).min, best.range);
        // Rounding is monotonic: what lies between the ends has a number between theirs.
        let ends = (factor * (lowest - min), factor * (highest - min));
        let group = (x, importance, &mut *codes);
        let sums = if are_levels(ends, levels) {
            trial_sums::<Levels, C, V, N>(group, (factor, min), levels)
        } else if are_small(ends) {
            trial_sums::<Small, C, V, N>(group, (factor, min), levels)
        } else {
            trial_sums::<Any, C, V, N>(group, (factor, min), levels)
        };
        let (this_scale, this_min, is_solved) = solve(in_memory(&mut best).sums, sums);
        // Both ways that the next trial may go, so that it need not wait for a division.
        let next = trials.stretched::<V>(trial + 1, levels);
        let (from_min, from_this_min) = (next / (highest - min), next / (highest - this_min));
        let error = weighted_errors::<C, V, N>(x, importance, codes, this_scale, this_min);
        let best = in_memory(&mut best);
        let better = V::both(is_solved, error.below(best.error));
        best.factor = V::choose(better, factor, best.factor);
        best.base = V::choose(better, min, best.base);
        best.is_first = V::except(best.is_first, better);
        best.error = V::choose(better, error, best.error);
        best.scale = V::choose(better, this_scale, best.scale);
        best.min = V::choose(better, this_min, min);
        factor = V::choose(better, from_this_min, from_min);
    }
    // Codes are made again from the best trial, which is cheaper than keeping them.
    Affine {
        scale: V::choose(is_flat, zero, best.scale),
        min: negated(V::choose(is_flat, first_min, best.min)),
        factor: best.factor,
        base: best.base,
        is_first: best.is_first,
        is_flat,
    }
}

/// What is not needed in the loops over a group stands in memory meanwhile: held in registers, it would push a sum out of
/// them, and each step of the loop would wait for it.
#[inline(always)]
fn in_memory<T>(value: &mut T) -> &mut T {
    std::hint::black_box(value)
}

/// What a search knows from trial to trial.
struct Best<V: Lanes> {
    /// Least and greatest of each group.
    range: (V, V),
    /// Σw and Σwx.
    sums: (V, V),
    scale: V,
    min: V,
    error: V,
    factor: V,
    base: V,
    is_first: V::Mask,
}

/// Numbers of less magnitude have their nearest whole number in a float, with room to spare.
const SMALL: f32 = (1 << 21) as f32;

/// Whether all that lies between two numbers rounds to a level, so that nothing need be limited.
#[inline(always)]
fn are_levels<V: Lanes>((lowest, highest): (V, V), levels: u8) -> bool {
    let is_in = highest.below(V::splat(f32::from(levels) + 0.5));
    V::all(V::except(is_in, lowest.below(V::splat(-0.5))))
}

#[inline(always)]
fn are_small<V: Lanes>((lowest, highest): (V, V)) -> bool {
    let small = V::splat(SMALL);
    V::all(V::both(lowest.abs().below(small), highest.abs().below(small)))
}

/// What is known of the numbers that become codes. A type and no closure, see [`super::rows`].
trait Known {
    fn code<C: Trial, V: Lanes>(scaled: V, levels: u8, most: V) -> V;
}

/// Each rounds to a level; to -0 where it rounds to that, which no sum tells from 0.
struct Levels;

/// They are less than [`SMALL`].
struct Small;

/// Nothing.
struct Any;

impl Known for Levels {
    #[inline(always)]
    fn code<C: Trial, V: Lanes>(scaled: V, _levels: u8, _most: V) -> V {
        scaled.rounded()
    }
}

impl Known for Small {
    #[inline(always)]
    fn code<C: Trial, V: Lanes>(scaled: V, _levels: u8, most: V) -> V {
        C::small_code(scaled, most)
    }
}

impl Known for Any {
    #[inline(always)]
    fn code<C: Trial, V: Lanes>(scaled: V, levels: u8, _most: V) -> V {
        C::code(scaled, levels)
    }
}

/// The codes of a trial for the weights of a group and what each counts, and Σwl, Σwl² and Σwxl of them.
#[inline(always)]
fn trial_sums<K: Known, C: Trial, V: Lanes, const N: usize>(
    (x, importance, codes): (&[V; N], &[V; N], &mut [V; N]),
    (factor, min): (V, V),
    levels: u8,
) -> (V, V, V) {
    let (zero, most) = (V::splat(0.0), V::splat(f32::from(levels)));
    let (mut sum_l, mut sum_ll, mut sum_xl) = (zero, zero, zero);
    for ((x, w), l) in x.iter().zip(importance).zip(codes) {
        *l = K::code::<C, V>(factor * (*x - min), levels, most);
        let wl = *w * *l;
        sum_l = sum_l + wl;
        sum_ll = sum_ll + wl * *l;
        sum_xl = sum_xl + wl * *x;
    }
    (sum_l, sum_ll, sum_xl)
}

/// -x, -0 of 0.
#[inline(always)]
fn negated<V: Lanes>(x: V) -> V {
    x * V::splat(-1.0)
}

impl<V: Lanes> Affine<V> {
    /// The codes of the groups.
    #[inline(always)]
    pub(super) fn codes<C: Trial, const N: usize>(&self, x: &[V; N], levels: u8, groups: &mut [[u8; N]]) {
        let codes = rows!(x, |x| {
            let scaled = self.factor * (x - self.base);
            let first = RoundThenClamp::code(scaled, levels);
            let code = V::choose(self.is_first, first, C::code(scaled, levels));
            V::choose(self.is_flat, V::splat(0.0), code)
        });
        codes_of_groups(&codes, groups);
    }
}

/// Scale and minimum that fit given codes best, and whether the equations have a solution: from Σw and Σwx, and from Σwl,
/// Σwl² and Σwxl of the codes.
#[inline(always)]
fn solve<V: Lanes>((sum_w, sum_x): (V, V), (sum_l, sum_ll, sum_xl): (V, V, V)) -> (V, V, V::Mask) {
    let zero = V::splat(0.0);
    let determinant = sum_w * sum_ll - sum_l * sum_l;
    let scale = (sum_w * sum_xl - sum_x * sum_l) / determinant;
    let min = (sum_ll * sum_x - sum_l * sum_xl) / determinant;
    // A minimum above zero cannot be stored: the line then goes through zero.
    let (is_above, is_solved) = (zero.below(min), zero.below(determinant));
    if V::none(is_above) {
        return (scale, min, is_solved);
    }
    let scale = V::choose(is_above, sum_xl / sum_ll, scale);
    (scale, V::choose(is_above, zero, min), is_solved)
}

/// The least and greatest of each group.
#[inline(always)]
fn ranges<V: Lanes, const N: usize>(x: &[V; N]) -> (V, V) {
    let (mut lowest, mut highest) = (x[0], x[0]);
    for x in x {
        lowest = V::choose(x.below(lowest), *x, lowest);
        highest = V::choose(highest.below(*x), *x, highest);
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
fn weighted_sums<V: Lanes, const N: usize>(x: &[V; N], importance: &[V; N]) -> (V, V) {
    // The first term starts the sum instead of being added to 0: -0.0 must stay -0.0.
    let mut sums = (importance[0], importance[0] * x[0]);
    for (x, w) in x.iter().zip(importance).skip(1) {
        sums = (sums.0 + *w, sums.1 + *w * *x);
    }
    sums
}

#[inline(always)]
fn weighted_errors<C: Trial, V: Lanes, const N: usize>(
    x: &[V; N],
    importance: &[V; N],
    codes: &[V; N],
    scale: V,
    min: V,
) -> V {
    let mut error = V::splat(0.0);
    for ((x, w), l) in x.iter().zip(importance).zip(codes) {
        error = error + *w * C::cost(scale * *l + min - *x);
    }
    error
}
