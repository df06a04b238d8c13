//! Groups of weights side by side: lane k of every vector belongs to group k.
//!
//! The trick of the fast encoders: ggml's sums must run in order within a group, so a group cannot be spread
//! over a vector, but eight or sixteen groups can walk in step. Each lane does exactly what a loop over its group would
//! do: every operation rounds as the scalar one, none multiplies and adds in one step.
//!
//! Vectors are named, not left to the compiler: it finds them in a loop or does not, from one version to the next.

mod pair;
mod portable;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::ops::{Add, Div, Mul, Sub};

pub(super) use pair::Pair;
pub(super) use portable::Portable;
#[cfg(target_arch = "x86_64")]
pub(super) use x86::{Avx2, Avx512};

/// Lanes of the widest vector.
pub(super) const MOST_LANES: usize = 16;

/// Most groups that walk in step: four of the widest vectors.
pub(super) const MOST_IN_STEP: usize = 4 * MOST_LANES;

/// One number of each of N groups.
pub(super) trait Lanes:
    Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self>
{
    /// 8 to [`MOST_IN_STEP`].
    const N: usize;

    /// A yes or no of each group.
    type Mask: Copy;

    /// What it is made of.
    type Register: Register;

    /// Several such vectors in step, as many as there are registers for the sums of: while one waits, others go on.
    type InStep: Lanes;

    fn splat(x: f32) -> Self;

    /// The first N numbers.
    fn load(from: &[f32]) -> Self;

    /// To the first N places.
    fn store(self, to: &mut [f32]);

    /// The first N bytes as numbers.
    fn load_bytes(from: &[u8]) -> Self;

    /// Whole numbers' low bytes, to the first N places.
    fn store_bytes(self, to: &mut [u8]);

    fn abs(self) -> Self;

    fn sqrt(self) -> Self;

    /// self < other; no where one is no number.
    fn below(self, other: Self) -> Self::Mask;

    fn both(a: Self::Mask, b: Self::Mask) -> Self::Mask;

    fn either(a: Self::Mask, b: Self::Mask) -> Self::Mask;

    /// `a` and not `b`.
    fn except(a: Self::Mask, b: Self::Mask) -> Self::Mask;

    fn choose(mask: Self::Mask, yes: Self, no: Self) -> Self;

    /// [`super::rounding::nearest`], within limits.
    fn nearest(self, least: i32, most: i32) -> Self;

    /// The same plus `shift`, its low byte, to the first N places.
    fn store_nearest(self, limits: (i32, i32), shift: i32, to: &mut [u8]);

    /// The nearest whole number, ties to even: what [`Lanes::nearest`] gives where that is less than 2²², in fewer steps.
    fn rounded(self) -> Self;

    /// self, but no less than `least` and no more than `most`; those where it equals them, whatever its zeros' signs.
    fn limited(self, least: Self, most: Self) -> Self;

    /// The lesser of two numbers; no matter which of two zeros.
    fn lesser(self, other: Self) -> Self;

    /// self, but no less than 0 and no more than `most`, which is greater; for numbers only, whatever a zero's sign.
    ///
    /// Floats of one sign are ordered as their bits are, and whole numbers are compared where sums do not wait for it.
    fn within(self, most: Self) -> Self;

    /// The least number and its lane, the first of several; for numbers only.
    fn first_least(self) -> (f32, usize);

    fn all(mask: Self::Mask) -> bool;

    fn none(mask: Self::Mask) -> bool;

    /// One of its registers, the first lanes' first.
    fn register(&self, index: usize) -> Self::Register;

    fn set_register(&mut self, index: usize, register: Self::Register);
}

/// The lanes of one register.
pub(super) trait Register: Lanes {
    /// Lane k of vector i becomes lane i of vector k, of N vectors.
    fn transpose_square(rows: &mut [Self]);
}

/// The lanes of a vector, and zeros beyond.
#[inline(always)]
pub(super) fn array<V: Lanes, const N: usize>(lanes: V) -> [f32; N] {
    let mut array = [0.0; N];
    lanes.store(&mut array);
    array
}

/// x = 0; no where it is no number.
#[inline(always)]
pub(super) fn is_zero<V: Lanes>(x: V) -> V::Mask {
    x.abs().below(V::splat(f32::from_bits(1)))
}

/// Groups of N weights as N vectors; missing groups are zeros.
#[inline(always)]
pub(super) fn transpose<V: Lanes, const N: usize>(groups: &[[f32; N]]) -> [V; N] {
    let mut rows = [V::splat(0.0); N];
    transpose_into(groups, &mut rows);
    rows
}

/// [`transpose`], the groups that are missing left as they are.
#[inline(always)]
pub(super) fn transpose_into<V: Lanes, const N: usize>(groups: &[[f32; N]], rows: &mut [V; N]) {
    for (index, groups) in groups.chunks(V::Register::N).enumerate() {
        for (tile, rows) in rows.chunks_exact_mut(V::Register::N).enumerate() {
            let mut square = [V::Register::splat(0.0); MOST_LANES];
            for (row, group) in square.iter_mut().zip(groups) {
                *row = V::Register::load(&group[tile * V::Register::N..]);
            }
            V::Register::transpose_square(&mut square[..V::Register::N]);
            for (row, register) in rows.iter_mut().zip(square) {
                row.set_register(index, register);
            }
        }
    }
}

/// N vectors of codes as groups of N bytes.
#[inline(always)]
pub(super) fn codes_of_groups<V: Lanes, const N: usize>(rows: &[V; N], groups: &mut [[u8; N]]) {
    for (index, groups) in groups.chunks_mut(V::Register::N).enumerate() {
        for (tile, rows) in rows.chunks_exact(V::Register::N).enumerate() {
            let mut square = [V::Register::splat(0.0); MOST_LANES];
            for (register, row) in square.iter_mut().zip(rows) {
                *register = row.register(index);
            }
            V::Register::transpose_square(&mut square[..V::Register::N]);
            for (row, group) in square.iter().zip(&mut *groups) {
                row.store_bytes(&mut group[tile * V::Register::N..]);
            }
        }
    }
}

/// Codes of a group's weights for its scale: (x + add) / scale, rounded, within limits, plus `shift`.
#[inline(always)]
pub(super) fn codes_for_scale<V: Lanes>(
    x: &[f32],
    (add, scale): (f32, f32),
    limits: (i32, i32),
    shift: i32,
    codes: &mut [u8],
) {
    let (add, scale) = (V::splat(add), V::splat(scale));
    for (x, codes) in x.chunks_exact(V::N).zip(codes.chunks_exact_mut(V::N)) {
        ((V::load(x) + add) / scale).store_nearest(limits, shift, codes);
    }
}

/// The sum of each lane, in the order of the vectors.
#[inline(always)]
pub(super) fn totals<V: Lanes, const N: usize>(x: &[V; N]) -> V {
    let mut totals = V::splat(0.0);
    for x in x {
        totals = totals + *x;
    }
    totals
}

/// What an expression gives for each vector of an array. No function: a closure that is called for each is left a
/// function of its own, compiled for the least of processors.
macro_rules! rows {
    ($x:expr, |$row:ident| $one:expr) => {{
        let mut results = *$x;
        for result in &mut results {
            let $row = *result;
            *result = $one;
        }
        results
    }};
}

pub(super) use rows;
