//! Two vectors in step: while the sums of one wait for each other, those of the other go on.

use std::ops::{Add, Div, Mul, Sub};

use super::Lanes;

/// The lanes of two vectors.
#[derive(Clone, Copy)]
pub(in super::super) struct Pair<V>(V, V);

macro_rules! operator {
    ($trait:ident, $name:ident, $op:tt) => {
        impl<V: Lanes> $trait for Pair<V> {
            type Output = Self;

            #[inline(always)]
            fn $name(self, other: Self) -> Self {
                Pair(self.0 $op other.0, self.1 $op other.1)
            }
        }
    };
}

operator!(Add, add, +);
operator!(Sub, sub, -);
operator!(Mul, mul, *);
operator!(Div, div, /);

impl<V: Lanes> Lanes for Pair<V> {
    const N: usize = 2 * V::N;

    type Mask = (V::Mask, V::Mask);

    type Register = V::Register;

    type InStep = Self;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        Pair(V::splat(x), V::splat(x))
    }

    #[inline(always)]
    fn load(from: &[f32]) -> Self {
        Pair(V::load(from), V::load(&from[V::N..]))
    }

    #[inline(always)]
    fn store(self, to: &mut [f32]) {
        self.0.store(to);
        self.1.store(&mut to[V::N..]);
    }

    #[inline(always)]
    fn load_bytes(from: &[u8]) -> Self {
        Pair(V::load_bytes(from), V::load_bytes(&from[V::N..]))
    }

    #[inline(always)]
    fn store_bytes(self, to: &mut [u8]) {
        self.0.store_bytes(to);
        self.1.store_bytes(&mut to[V::N..]);
    }

    #[inline(always)]
    fn abs(self) -> Self {
        Pair(self.0.abs(), self.1.abs())
    }

    #[inline(always)]
    fn sqrt(self) -> Self {
        Pair(self.0.sqrt(), self.1.sqrt())
    }

    #[inline(always)]
    fn below(self, other: Self) -> Self::Mask {
        (self.0.below(other.0), self.1.below(other.1))
    }

    #[inline(always)]
    fn both(a: Self::Mask, b: Self::Mask) -> Self::Mask {
        (V::both(a.0, b.0), V::both(a.1, b.1))
    }

    #[inline(always)]
    fn either(a: Self::Mask, b: Self::Mask) -> Self::Mask {
        (V::either(a.0, b.0), V::either(a.1, b.1))
    }

    #[inline(always)]
    fn except(a: Self::Mask, b: Self::Mask) -> Self::Mask {
        (V::except(a.0, b.0), V::except(a.1, b.1))
    }

    #[inline(always)]
    fn choose(mask: Self::Mask, yes: Self, no: Self) -> Self {
        Pair(V::choose(mask.0, yes.0, no.0), V::choose(mask.1, yes.1, no.1))
    }

    #[inline(always)]
    fn nearest(self, least: i32, most: i32) -> Self {
        Pair(self.0.nearest(least, most), self.1.nearest(least, most))
    }

    #[inline(always)]
    fn store_nearest(self, limits: (i32, i32), shift: i32, to: &mut [u8]) {
        self.0.store_nearest(limits, shift, to);
        self.1.store_nearest(limits, shift, &mut to[V::N..]);
    }

    #[inline(always)]
    fn rounded(self) -> Self {
        Pair(self.0.rounded(), self.1.rounded())
    }

    #[inline(always)]
    fn limited(self, least: Self, most: Self) -> Self {
        Pair(self.0.limited(least.0, most.0), self.1.limited(least.1, most.1))
    }

    #[inline(always)]
    fn lesser(self, other: Self) -> Self {
        Pair(self.0.lesser(other.0), self.1.lesser(other.1))
    }

    #[inline(always)]
    fn within(self, most: Self) -> Self {
        Pair(self.0.within(most.0), self.1.within(most.1))
    }

    #[inline(always)]
    fn first_least(self) -> (f32, usize) {
        let (first, second) = (self.0.first_least(), self.1.first_least());
        if second.0 < first.0 { (second.0, V::N + second.1) } else { first }
    }

    #[inline(always)]
    fn none(mask: Self::Mask) -> bool {
        V::none(V::either(mask.0, mask.1))
    }

    #[inline(always)]
    fn all(mask: Self::Mask) -> bool {
        V::all(V::both(mask.0, mask.1))
    }

    #[inline(always)]
    fn register(&self, index: usize) -> V::Register {
        let of_first = V::N / V::Register::N;
        if index < of_first { self.0.register(index) } else { self.1.register(index - of_first) }
    }

    #[inline(always)]
    fn set_register(&mut self, index: usize, register: V::Register) {
        let of_first = V::N / V::Register::N;
        if index < of_first {
            self.0.set_register(index, register);
        } else {
            self.1.set_register(index - of_first, register);
        }
    }
}
