//! Eight lanes in plain arithmetic, which every processor has: the oracle of the others.

use std::ops::{Add, Div, Mul, Sub};

use super::super::rounding::nearest;
use super::{Lanes, Pair, Register};

const N: usize = 8;

/// Eight numbers.
#[derive(Clone, Copy)]
pub(in super::super) struct Portable([f32; N]);

macro_rules! operator {
    ($trait:ident, $name:ident) => {
        impl $trait for Portable {
            type Output = Self;

            #[inline(always)]
            fn $name(mut self, other: Self) -> Self {
                for (x, y) in self.0.iter_mut().zip(other.0) {
                    *x = x.$name(y);
                }
                self
            }
        }
    };
}

operator!(Add, add);
operator!(Sub, sub);
operator!(Mul, mul);
operator!(Div, div);

impl Lanes for Portable {
    const N: usize = N;

    type Mask = [bool; N];

    type Register = Self;

    type InStep = Pair<Self>;

    #[inline(always)]
    fn splat(x: f32) -> Self {
        Portable([x; N])
    }

    #[inline(always)]
    fn load(from: &[f32]) -> Self {
        Portable(*from.first_chunk().expect("as many numbers as lanes"))
    }

    #[inline(always)]
    fn store(self, to: &mut [f32]) {
        to[..N].copy_from_slice(&self.0);
    }

    #[inline(always)]
    fn load_bytes(from: &[u8]) -> Self {
        let mut lanes = [0.0; N];
        for (lane, &byte) in lanes.iter_mut().zip(&from[..N]) {
            *lane = f32::from(byte);
        }
        Portable(lanes)
    }

    #[inline(always)]
    fn store_bytes(self, to: &mut [u8]) {
        for (to, x) in to[..N].iter_mut().zip(self.0) {
            *to = x as i32 as u8;
        }
    }

    #[inline(always)]
    fn abs(mut self) -> Self {
        self.0.iter_mut().for_each(|x| *x = x.abs());
        self
    }

    #[inline(always)]
    fn sqrt(mut self) -> Self {
        self.0.iter_mut().for_each(|x| *x = x.sqrt());
        self
    }

    #[inline(always)]
    fn below(self, other: Self) -> [bool; N] {
        let mut mask = [false; N];
        for (k, mask) in mask.iter_mut().enumerate() {
            *mask = self.0[k] < other.0[k];
        }
        mask
    }

    #[inline(always)]
    fn both(mut a: [bool; N], b: [bool; N]) -> [bool; N] {
        a.iter_mut().zip(b).for_each(|(a, b)| *a &= b);
        a
    }

    #[inline(always)]
    fn either(mut a: [bool; N], b: [bool; N]) -> [bool; N] {
        a.iter_mut().zip(b).for_each(|(a, b)| *a |= b);
        a
    }

    #[inline(always)]
    fn except(mut a: [bool; N], b: [bool; N]) -> [bool; N] {
        a.iter_mut().zip(b).for_each(|(a, b)| *a &= !b);
        a
    }

    #[inline(always)]
    fn choose(mask: [bool; N], yes: Self, mut no: Self) -> Self {
        for (k, x) in no.0.iter_mut().enumerate() {
            if mask[k] {
                *x = yes.0[k];
            }
        }
        no
    }

    #[inline(always)]
    fn nearest(mut self, least: i32, most: i32) -> Self {
        self.0.iter_mut().for_each(|x| *x = nearest(*x).clamp(least, most) as f32);
        self
    }

    #[inline(always)]
    fn store_nearest(self, (least, most): (i32, i32), shift: i32, to: &mut [u8]) {
        for (to, x) in to[..N].iter_mut().zip(self.0) {
            *to = (nearest(x).clamp(least, most) + shift) as u8;
        }
    }

    #[inline(always)]
    fn rounded(mut self) -> Self {
        self.0.iter_mut().for_each(|x| *x = nearest(*x) as f32);
        self
    }

    #[inline(always)]
    fn limited(mut self, least: Self, most: Self) -> Self {
        for (k, x) in self.0.iter_mut().enumerate() {
            let raised = if *x > least.0[k] { *x } else { least.0[k] };
            *x = if raised < most.0[k] { raised } else { most.0[k] };
        }
        self
    }

    #[inline(always)]
    fn lesser(self, other: Self) -> Self {
        Self::choose(self.below(other), self, other)
    }

    #[inline(always)]
    fn within(self, most: Self) -> Self {
        self.limited(Portable([0.0; N]), most)
    }

    #[inline(always)]
    fn first_least(self) -> (f32, usize) {
        let mut least = (self.0[0], 0);
        for (lane, &x) in self.0.iter().enumerate() {
            if x < least.0 {
                least = (x, lane);
            }
        }
        least
    }

    #[inline(always)]
    fn none(mask: [bool; N]) -> bool {
        !mask.contains(&true)
    }

    #[inline(always)]
    fn all(mask: [bool; N]) -> bool {
        mask.iter().all(|&yes| yes)
    }

    #[inline(always)]
    fn register(&self, _index: usize) -> Self {
        *self
    }

    #[inline(always)]
    fn set_register(&mut self, _index: usize, register: Self) {
        *self = register;
    }
}

impl Register for Portable {
    #[inline(always)]
    fn transpose_square(rows: &mut [Self]) {
        let mut transposed = [[0.0; N]; N];
        for (i, row) in rows.iter().enumerate() {
            for (k, to) in transposed.iter_mut().enumerate() {
                to[i] = row.0[k];
            }
        }
        for (row, transposed) in rows.iter_mut().zip(transposed) {
            row.0 = transposed;
        }
    }
}
