//! The search that IQ2 and IQ3 share: a scale, and for every few weights a point of the grid.
//!
//! Sums run in order, without fused multiply-add, as ggml's do: see `super::super::search`.

use super::super::rounding::nearest;
use super::grid::Grid;

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
pub(super) fn find<const G: usize, const D: usize, const BITS: u32>(
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
    let group = Group { x, weights, roots: weights.map(f32::sqrt) };
    let most = f32::from(2 * params.levels - 1);
    let (mut scale, largest) = first.unwrap_or((largest / most, largest));
    let (mut best, mut coordinates) = (0.0, [0; G]);
    let begins_moved = params.refined == Refined::AllWhereMoved;
    let mut is_moved = [begins_moved; 8];
    for trial in -params.last..=params.last {
        let factor = (most + f32::from(trial) * params.step) / largest;
        let (of_trial, moved) = project(params, grid, &group, factor, 1.0 / factor);
        let (sum_xq, sum_qq) = sums(&group, &of_trial);
        if sum_qq > 0.0 && sum_xq * sum_xq > best * sum_qq {
            scale = sum_xq / sum_qq;
            best = scale * sum_xq;
            (coordinates, is_moved) = (of_trial, moved);
        }
    }
    let n = G / D;
    let has_moved = is_moved[..n].contains(&true);
    if (has_moved || params.refined == Refined::All) && scale > 0.0 {
        let (again, _) = project(params, grid, &group, 1.0 / scale, scale);
        for k in 0..n {
            if is_moved[k] || params.refined != Refined::Moved {
                coordinates[D * k..][..D].copy_from_slice(&again[D * k..][..D]);
            }
        }
        let (sum_xq, sum_qq) = sums(&group, &coordinates);
        if sum_qq > 0.0 {
            scale = sum_xq / sum_qq;
        }
    }
    Some(Found { scale: scale.abs(), coordinates, is_turned: scale < 0.0 })
}

/// The coordinates that a factor gives, moved to points; which had to be.
#[inline(always)]
fn project<const G: usize, const D: usize, const BITS: u32>(
    params: Params,
    grid: &Grid<D, BITS>,
    group: &Group<'_, G>,
    factor: f32,
    scale: f32,
) -> ([u8; G], [bool; 8]) {
    let mut coordinates = [0; G];
    for (l, x) in coordinates.iter_mut().zip(group.x) {
        *l = nearest(0.5 * (factor * x - 1.0)).clamp(0, i32::from(params.levels) - 1) as u8;
    }
    let mut is_moved = [false; 8];
    let parts = coordinates.as_chunks_mut::<D>().0.iter_mut();
    let magnitudes = group.x.as_chunks().0.iter().zip(group.roots.as_chunks().0);
    for ((part, (x, roots)), is_moved) in parts.zip(magnitudes).zip(&mut is_moved) {
        *is_moved = !grid.snap(part, x, roots, scale);
    }
    (coordinates, is_moved)
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
    match columns {
        Some(columns) => std::array::from_fn(|i| columns[i] * (variance + x[i] * x[i]).sqrt()),
        None => x.map(plain),
    }
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
