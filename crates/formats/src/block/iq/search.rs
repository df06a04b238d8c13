//! The search that IQ2 and IQ3 share: a scale, and for every few weights a point of the grid.
//!
//! Sums run in order, without fused multiply-add, as ggml's do: see `super::super::search`. Here it is the trials that walk in
//! step, one a lane, and the neighbours of a place; groups cannot, since each goes to places of its own.

use super::super::lanes::{Lanes, MOST_LANES, array};
use super::super::rounding::nearest;
use super::grid::Grid;

/// Most trials of a search.
const MOST_TRIALS: usize = 32;

/// What the formats differ in.
#[derive(Clone, Copy)]
pub(super) struct Params {
    /// Numbers of a coordinate.
    pub levels: u8,
    /// Factors that are tried: (2·levels - 1 + step·t) / largest for t in -last..=last.
    pub last: i8,
    pub step: f32,
    /// Groups whose largest weight is below this count as zeros.
    pub zero: f32,
    pub refined: Refined,
}

/// Which points are chosen again for the scale that was found.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Refined {
    /// Those that had to be moved to the grid.
    Moved,
    /// All of them, where one had to be moved or no trial was better than none.
    AllWhereMoved,
    /// All of them.
    All,
}

/// A group as found: its scale and the coordinates of its weights.
pub(super) struct Found<const G: usize> {
    pub scale: f32,
    pub coordinates: [u8; G],
    is_turned: bool,
}

impl<const G: usize> Found<G> {
    /// Signs as they are to be stored; they are turned where the scale was negative.
    #[inline(always)]
    pub(super) fn signs(&self, signs: u8) -> u8 {
        if self.is_turned { !signs } else { signs }
    }
}

/// Magnitudes of a group of G weights, of which single ones may be negative, what they count in sums, and the square roots
/// of that, what they count in the choice of a point.
struct Group<'a, const G: usize> {
    x: &'a [f32; G],
    weights: &'a [f32; G],
    roots: [f32; G],
}

/// The scale d and points which make Σ w·(x - d·(2·l + 1))² small; `None` for a group of zeros.
///
/// `first` is a scale and the magnitude for its largest coordinate where another search has found them.
#[inline(always)]
pub(super) fn find<V: Lanes, const G: usize, const D: usize, const BITS: u32>(
    params: Params,
    grid: &Grid<D, BITS>,
    x: &[f32; G],
    weights: &[f32; G],
    first: Option<(f32, f32)>,
) -> Option<Found<G>> {
    let largest = largest(x);
    // A limit of 0 leaves out exact zeros alone.
    if largest < params.zero || largest == 0.0 {
        return None;
    }
    let group = Group { x, weights, roots: roots(weights) };
    let most = f32::from(2 * params.levels - 1);
    let (mut scale, largest) = first.unwrap_or((largest / most, largest));
    let (mut best, mut coordinates) = (0.0, [0; G]);
    let mut moved = if params.refined == Refined::AllWhereMoved { u8::MAX } else { 0 };
    let mut factors = [0.0; MOST_TRIALS];
    let n_trials = 2 * params.last.cast_unsigned() + 1;
    for (trial, factor) in (-params.last..=params.last).zip(&mut factors) {
        *factor = (most + f32::from(trial) * params.step) / largest;
    }
    for factors in factors[..usize::from(n_trials)].chunks(V::N) {
        let tried = Tried::<G>::new::<V, D, BITS>(params, grid, &group, factors, |factor| 1.0 / factor);
        let (sums_xq, sums_qq) = tried.sums::<V>(&group);
        for trial in 0..factors.len() {
            let (sum_xq, sum_qq) = (sums_xq[trial], sums_qq[trial]);
            if sum_qq > 0.0 && sum_xq * sum_xq > best * sum_qq {
                scale = sum_xq / sum_qq;
                best = scale * sum_xq;
                tried.copy_coordinates(trial, 0..G, &mut coordinates);
                moved = tried.moved[trial];
            }
        }
    }
    let has_moved = moved & (u8::MAX >> (8 - G / D)) != 0;
    if (has_moved || params.refined == Refined::All) && scale > 0.0 {
        let again = Tried::<G>::new::<V, D, BITS>(params, grid, &group, &[1.0 / scale], |_| scale);
        for k in 0..G / D {
            if moved >> k & 1 == 1 || params.refined != Refined::Moved {
                again.copy_coordinates(0, D * k..D * (k + 1), &mut coordinates);
            }
        }
        let (sum_xq, sum_qq) = sums(&group, &coordinates);
        if sum_qq > 0.0 {
            scale = sum_xq / sum_qq;
        }
    }
    Some(Found { scale: scale.abs(), coordinates, is_turned: scale < 0.0 })
}

#[inline(always)]
fn roots<const G: usize>(weights: &[f32; G]) -> [f32; G] {
    let mut roots = *weights;
    for root in &mut roots {
        *root = root.sqrt();
    }
    roots
}

/// What some factors give: of each weight the coordinates, moved to points, and of each factor which points had to be, a
/// bit each.
struct Tried<const G: usize> {
    coordinates: [[u8; MOST_LANES]; G],
    moved: [u8; MOST_LANES],
}

impl<const G: usize> Tried<G> {
    /// As many factors as lanes at most, of which `scale` gives the scales of their points.
    #[inline(always)]
    fn new<V: Lanes, const D: usize, const BITS: u32>(
        params: Params,
        grid: &Grid<D, BITS>,
        group: &Group<'_, G>,
        factors: &[f32],
        scale: impl Fn(f32) -> f32,
    ) -> Self {
        let mut tried = Self { coordinates: [[0; MOST_LANES]; G], moved: [0; MOST_LANES] };
        let mut lanes = [0.0; MOST_LANES];
        lanes[..factors.len()].copy_from_slice(factors);
        let (factors_in_lanes, one, half) = (V::load(&lanes), V::splat(1.0), V::splat(0.5));
        let most = i32::from(params.levels) - 1;
        for k in 0..G / D {
            // Numbers of places are small enough to be exact.
            let mut places = V::splat(0.0);
            for i in 0..D {
                let x = V::splat(group.x[D * k + i]);
                let l = (half * (factors_in_lanes * x - one)).nearest(0, most);
                places = places + l * V::splat((1u32 << (BITS * i as u32)) as f32);
                l.store_bytes(&mut tried.coordinates[D * k + i]);
            }
            let places = array::<_, MOST_LANES>(places);
            let x: &[f32; D] = group.x[D * k..].first_chunk().expect("a coordinate for each weight");
            let roots: &[f32; D] = group.roots[D * k..].first_chunk().expect("a root for each weight");
            for (trial, &factor) in factors.iter().enumerate() {
                let place = places[trial] as usize;
                let Some(point) = grid.neighbour::<V>(place, x, roots, scale(factor)) else { continue };
                for (i, l) in point.into_iter().enumerate() {
                    tried.coordinates[D * k + i][trial] = l;
                }
                tried.moved[trial] |= 1 << k;
            }
        }
        tried
    }

    /// Σwxq and Σwq² of each factor, q = 2·l + 1
    #[inline(always)]
    fn sums<V: Lanes>(&self, group: &Group<'_, G>) -> ([f32; MOST_LANES], [f32; MOST_LANES]) {
        let (one, two) = (V::splat(1.0), V::splat(2.0));
        let (mut sum_xq, mut sum_qq) = (V::splat(0.0), V::splat(0.0));
        for ((&x, &w), l) in group.x.iter().zip(group.weights).zip(&self.coordinates) {
            let q = two * V::load_bytes(l) + one;
            sum_xq = sum_xq + V::splat(w * x) * q;
            sum_qq = sum_qq + V::splat(w) * q * q;
        }
        (array(sum_xq), array(sum_qq))
    }

    #[inline(always)]
    fn copy_coordinates(&self, trial: usize, weights: std::ops::Range<usize>, to: &mut [u8; G]) {
        for i in weights {
            to[i] = self.coordinates[i][trial];
        }
    }
}

/// Σwxq and Σwq², q = 2·l + 1
#[inline(always)]
fn sums<const G: usize>(group: &Group<'_, G>, coordinates: &[u8; G]) -> (f32, f32) {
    let (mut sum_xq, mut sum_qq) = (0.0, 0.0);
    for ((x, w), l) in group.x.iter().zip(group.weights).zip(coordinates) {
        let q = f32::from(2 * l + 1);
        sum_xq += w * x * q;
        sum_qq += w * q * q;
    }
    (sum_xq, sum_qq)
}

/// Magnitudes, and the signs of each eight weights as bits.
#[inline(always)]
pub(super) fn split<const G: usize>(weights: &[f32; G]) -> ([f32; G], [u8; 4]) {
    let (mut x, mut signs) = (*weights, [0; 4]);
    for (i, x) in x.iter_mut().enumerate() {
        // -0.0 is not below zero.
        if *x < 0.0 {
            *x = -*x;
            signs[i / 8] |= 1 << (i % 8);
        }
    }
    (x, signs)
}

/// Makes the number of signs of each eight weights even, so that seven tell the last: the weight that counts least gets the
/// other sign, and a negative magnitude.
#[inline(always)]
pub(super) fn make_even<const G: usize>(x: &mut [f32; G], signs: &mut [u8; 4], weights: &[f32; G]) {
    for (k, (x, weights)) in x.as_chunks_mut::<8>().0.iter_mut().zip(weights.as_chunks::<8>().0).enumerate() {
        if signs[k].count_ones() % 2 == 1 {
            let cost = |i: usize| weights[i] * x[i] * x[i];
            let (mut least, mut at) = (cost(0), 0);
            for i in 1..8 {
                if cost(i) < least {
                    (least, at) = (cost(i), i);
                }
            }
            x[at] = -x[at];
            signs[k] ^= 1 << at;
        }
        signs[k] &= 127;
    }
}

/// All eight signs from seven, whose number is even.
pub(super) fn with_eighth(seven: u8) -> u8 {
    seven | (seven.count_ones() as u8 % 2) << 7
}

/// The largest of some numbers, of which there is one.
#[inline(always)]
fn largest(x: &[f32]) -> f32 {
    x.iter().fold(x[0], |largest, &x| if largest > x { largest } else { x })
}

/// How much weights count: importance · sqrt(variance + x²), without a matrix what `plain` says.
#[inline(always)]
pub(super) fn counts<const G: usize>(
    x: &[f32; G],
    columns: Option<&[f32]>,
    variance: f32,
    plain: impl Fn(f32) -> f32,
) -> [f32; G] {
    let mut counts = *x;
    match columns {
        Some(columns) => {
            for (count, column) in counts.iter_mut().zip(columns) {
                *count = column * (variance + *count * *count).sqrt();
            }
        }
        None => {
            for count in &mut counts {
                *count = plain(*count);
            }
        }
    }
    counts
}

/// d, a 31st of the largest scale, and four bits s of each, (s + ½)·2·d; `None` when all are 0.
#[inline(always)]
pub(super) fn four_bits<const N: usize>(scales: &[f32; N]) -> Option<(f32, [u8; N])> {
    let largest = largest(scales);
    let d = largest / 31.0;
    let factor = 1.0 / d;
    let four_bits = |scale: f32| nearest(0.5 * (factor * scale - 1.0)).clamp(0, 15) as u8;
    (largest != 0.0).then(|| (d, scales.map(four_bits)))
}

/// Two of them a byte, the first lower.
#[inline(always)]
pub(super) fn write_pairs(four_bits: &[u8], out: &mut [u8]) {
    for (pair, byte) in four_bits.as_chunks::<2>().0.iter().zip(out) {
        *byte = pair[0] | pair[1] << 4;
    }
}

/// The one at a place of what [`write_pairs`] wrote.
#[inline(always)]
pub(super) fn of_pairs(bytes: &[u8], index: usize) -> u8 {
    bytes[index / 2] >> (index % 2 * 4) & 15
}

/// The weights of a point: what its coordinates stand for, times the scale; `signs` has theirs lowest.
#[inline(always)]
pub(super) fn write_point<const D: usize>(
    point: [u8; D],
    values: &[f32],
    signs: u8,
    scale: f32,
    out: &mut [f32; D],
) {
    for (i, (out, l)) in out.iter_mut().zip(point).enumerate() {
        let sign = if signs >> i & 1 == 1 { -1.0 } else { 1.0 };
        *out = scale * values[usize::from(l)] * sign;
    }
}
