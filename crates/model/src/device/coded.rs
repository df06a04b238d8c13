//! Values in eight bits: blocks of 256 that share a scale, each value a place in a list of levels.
//!
//! The levels are those of dynamic tree quantisation: each decade below the largest value of a block has half as many
//! as the one above it, so that small values keep digits. Source: Dettmers et al. 2021, arXiv:2110.02861, section 1.3.
//!
//! Three things differ from there, since a moment of an optimiser moves by a few thousandths a step, which is less than
//! half the distance of two levels: rounded to the nearest, it would never move.
//!
//! - A value is rounded to the level below or above it, by chance, so that it is right in the mean. What chance decides
//!   follows from seed, update and place ([`crate::random`]), so a resumed run has the same bits.
//! - Levels are the ends of the tree's intervals, not their middles, and the same for both signs, so that every value
//!   has a level on each side and the largest of a block is exact.
//! - Second moments are coded by their roots, which is what divides an update, and only zero becomes zero: what is
//!   smaller than the least level becomes that level, which makes an update smaller, never larger.

use std::sync::OnceLock;

use super::ViewMut;

/// Values that share a scale.
pub const CODED_BLOCK: usize = 256;
/// Words of four codes in a block.
pub const CODED_WORDS: usize = CODED_BLOCK / 4;

/// Some blocks of values in eight bits, for writing.
#[derive(Debug)]
pub struct CodedMut<'a, I, B> {
    /// [`CODED_WORDS`] words a block, the first code in the lowest bits.
    pub codes: ViewMut<'a, I>,
    /// The largest value of each block.
    pub scales: ViewMut<'a, B>,
}

/// Decades of the tree.
const DECADES: i32 = 7;
/// Bits of an f32 that choose where a search for its level begins: sign, exponent, six of the mantissa.
const KEY_SHIFT: u32 = 17;
/// The bit of a code that says that the value is below zero.
const SIGN: u8 = 0x80;

/// Numbers from 0 to 1, ascending, that codes stand for.
pub(crate) struct Levels {
    values: Vec<f32>,
    /// The place of the last level that is no larger than the smallest number of a key, from the key of the first
    /// level above zero on.
    places: Vec<u8>,
}

impl Levels {
    /// Zero and 127 levels, which with a sign fill eight bits.
    pub fn of_magnitudes() -> &'static Self {
        static LEVELS: OnceLock<Levels> = OnceLock::new();
        LEVELS.get_or_init(|| Self::new(tree(64)))
    }

    /// The squares of zero and 254 levels.
    pub fn of_squares() -> &'static Self {
        static LEVELS: OnceLock<Levels> = OnceLock::new();
        LEVELS.get_or_init(|| Self::new(tree(128).into_iter().map(|level| level * level).collect()))
    }

    fn new(values: Vec<f64>) -> Self {
        let values: Vec<f32> = values.into_iter().map(|value| value as f32).collect();
        let keys = values[1].to_bits() >> KEY_SHIFT..=1.0f32.to_bits() >> KEY_SHIFT;
        let place = |key: u32| {
            let smallest = f32::from_bits(key << KEY_SHIFT);
            values.partition_point(|&level| level <= smallest).saturating_sub(1) as u8
        };
        Self { places: keys.map(place).collect(), values }
    }

    /// The place of the last level that is no larger than `x`, which is at most 1.
    #[inline(always)]
    fn below(&self, x: f32) -> usize {
        // What is not a number has no level either.
        if x.is_nan() || x < self.values[1] {
            return 0;
        }
        let key = (x.to_bits() >> KEY_SHIFT) - (self.values[1].to_bits() >> KEY_SHIFT);
        let mut place = usize::from(self.places[(key as usize).min(self.places.len() - 1)]);
        while place + 1 < self.values.len() && self.values[place + 1] <= x {
            place += 1;
        }
        place
    }

    /// The level below `x` or the one above it, the nearer it is the likelier, as `chance`, from 0 to below 1, decides.
    #[inline(always)]
    fn round(&self, x: f32, chance: f32) -> usize {
        let below = self.below(x);
        let Some(&above) = self.values.get(below + 1) else { return below };
        let part = (x - self.values[below]) / (above - self.values[below]);
        below + usize::from(chance < part)
    }
}

/// Zero, then the levels of each decade from the least on; the highest decade has `n`.
fn tree(n: usize) -> Vec<f64> {
    let mut levels = vec![0.0];
    for decade in (0..DECADES).rev() {
        let (top, n) = (10f64.powi(-decade), n >> decade);
        levels.extend((1..=n).map(|i| top * (0.1 + 0.9 * i as f64 / n as f64)));
    }
    levels
}

/// What is kept of the values of a block; `chance` is asked for each by its place.
pub(crate) trait Code {
    /// Fills `values` from codes.
    fn decode(self, codes: &[u32], scale: f32, values: &mut [f32; CODED_BLOCK]);

    /// Fills `codes` from values; the scale.
    fn encode(self, values: &[f32; CODED_BLOCK], chances: &[f32; CODED_BLOCK], codes: &mut [u32]) -> f32;
}

/// Values of either sign: first moments.
#[derive(Clone, Copy)]
pub(crate) struct Signed(pub &'static Levels);

/// Values of zero or above, coded by their roots: second moments.
#[derive(Clone, Copy)]
pub(crate) struct Squared(pub &'static Levels);

impl Code for Signed {
    #[inline(always)]
    fn decode(self, codes: &[u32], scale: f32, values: &mut [f32; CODED_BLOCK]) {
        for (i, value) in values.iter_mut().enumerate() {
            let code = code_at(codes, i);
            let magnitude = self.0.values[usize::from(code & !SIGN)] * scale;
            *value = if code & SIGN == 0 { magnitude } else { -magnitude };
        }
    }

    #[inline(always)]
    fn encode(self, values: &[f32; CODED_BLOCK], chances: &[f32; CODED_BLOCK], codes: &mut [u32]) -> f32 {
        let scale = values.iter().fold(0.0f32, |largest, value| larger(largest, value.abs()));
        put(codes, |i| match scale {
            0.0 => 0,
            _ => {
                let place = self.0.round(values[i].abs() / scale, chances[i]) as u8;
                if values[i] < 0.0 { place | SIGN } else { place }
            }
        });
        scale
    }
}

impl Code for Squared {
    #[inline(always)]
    fn decode(self, codes: &[u32], scale: f32, values: &mut [f32; CODED_BLOCK]) {
        for (i, value) in values.iter_mut().enumerate() {
            *value = self.0.values[usize::from(code_at(codes, i))] * scale;
        }
    }

    #[inline(always)]
    fn encode(self, values: &[f32; CODED_BLOCK], chances: &[f32; CODED_BLOCK], codes: &mut [u32]) -> f32 {
        let scale = values.iter().fold(0.0f32, |largest, value| larger(largest, *value));
        put(codes, |i| match (scale, values[i]) {
            (0.0, _) | (_, 0.0) => 0,
            (_, value) => self.0.round(value / scale, chances[i]).max(1) as u8,
        });
        scale
    }
}

/// The larger one; what is not a number is larger than all, so that it shows in a scale.
#[inline(always)]
fn larger(largest: f32, value: f32) -> f32 {
    if largest.is_nan() || value <= largest { largest } else { value }
}

#[inline(always)]
fn code_at(codes: &[u32], i: usize) -> u8 {
    (codes[i / 4] >> (8 * (i % 4))) as u8
}

#[inline(always)]
fn put(codes: &mut [u32], code: impl Fn(usize) -> u8) {
    for (word, four) in codes.iter_mut().enumerate() {
        *four = u32::from_le_bytes([0, 1, 2, 3].map(|i| code(4 * word + i)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::SplitMix64;

    #[test]
    fn levels_are_those_of_the_tree() {
        for (levels, n, squared) in [(Levels::of_magnitudes(), 128, false), (Levels::of_squares(), 255, true)]
        {
            assert_eq!(levels.values.len(), n);
            assert!(levels.values.is_sorted_by(|a, b| a < b));
            for decade in 0..DECADES {
                let (root, top) = (10f64.powi(-decade), 10f64.powi(-2 * decade));
                let expected = if squared { top } else { root } as f32;
                assert!(levels.values.contains(&expected), "{expected}");
            }
        }
        let in_top_decade = Levels::of_magnitudes().values.iter().filter(|&&level| level > 0.1).count();
        assert_eq!(in_top_decade, 64);
    }

    #[test]
    fn a_level_is_found_as_by_looking_at_all() {
        let mut random = SplitMix64(3);
        for levels in [Levels::of_magnitudes(), Levels::of_squares()] {
            let slow = |x: f32| levels.values.iter().rposition(|&level| level <= x).unwrap();
            for &level in &levels.values {
                for x in [level, level.next_up().min(1.0), level.next_down().max(0.0)] {
                    assert_eq!(levels.below(x), slow(x), "{x}");
                }
            }
            for _ in 0..20_000 {
                let x = 10f64.powf(-16.0 * random.unit()) as f32;
                assert_eq!(levels.below(x), slow(x), "{x}");
            }
            assert_eq!(levels.below(f32::NAN), 0);
        }
    }

    /// Codes the same values many times; the mean of what comes back, and the largest relative error of a single one.
    fn mean_of(code: impl Code + Copy, values: &[f32; CODED_BLOCK], n: usize) -> (Vec<f64>, f64) {
        let (mut random, mut sums, mut worst) = (SplitMix64(9), vec![0.0; CODED_BLOCK], 0.0f64);
        for _ in 0..n {
            let chances = std::array::from_fn(|_| random.unit() as f32);
            let (mut codes, mut back) = ([0; CODED_WORDS], [0.0; CODED_BLOCK]);
            let scale = code.encode(values, &chances, &mut codes);
            code.decode(&codes, scale, &mut back);
            for ((sum, &back), &value) in sums.iter_mut().zip(&back).zip(values) {
                *sum += f64::from(back) / n as f64;
                if value.abs() > 0.1 * scale {
                    worst = worst.max(f64::from((back - value).abs() / value.abs()));
                }
            }
        }
        (sums, worst)
    }

    #[test]
    fn values_are_right_in_the_mean() {
        let mut random = SplitMix64(4);
        let signed: [f32; CODED_BLOCK] =
            std::array::from_fn(|i| random.symmetric() * 10f32.powi(-((i % 4) as i32)));
        let squared = signed.map(|x| x * x);
        for (found, values, step) in [
            (mean_of(Signed(Levels::of_magnitudes()), &signed, 20_000), signed, 0.9 / 64.0),
            (mean_of(Squared(Levels::of_squares()), &squared, 20_000), squared, 2.0 * 0.9 / 128.0),
        ] {
            let (means, worst) = found;
            // Steps are up to half of a value; the mean of so many is known to some thousandths of that.
            for (mean, value) in means.iter().zip(values) {
                let error = (mean - f64::from(value)).abs();
                assert!(error <= 0.02 * f64::from(value.abs()) + 1e-7, "{mean} for {value}");
            }
            assert!(worst <= 10.0 * step, "{worst}");
        }
    }

    #[test]
    fn the_largest_is_exact_and_only_zero_becomes_zero() {
        let mut values = [0.0f32; CODED_BLOCK];
        (values[7], values[8], values[9]) = (-3.7, 1e-9, 0.5);
        let (mut codes, mut back) = ([0; CODED_WORDS], [1.0; CODED_BLOCK]);
        let chances = [0.999; CODED_BLOCK];
        let scale = Signed(Levels::of_magnitudes()).encode(&values, &chances, &mut codes);
        Signed(Levels::of_magnitudes()).decode(&codes, scale, &mut back);
        assert_eq!((back[7], back[0]), (-3.7, 0.0));

        let squares = values.map(|x| x * x);
        let scale = Squared(Levels::of_squares()).encode(&squares, &chances, &mut codes);
        Squared(Levels::of_squares()).decode(&codes, scale, &mut back);
        assert_eq!((back[7], back[0]), (squares[7], 0.0));
        assert!(back[8] > 0.0);
        assert_eq!(back.iter().filter(|&&value| value != 0.0).count(), 3);
    }

    #[test]
    fn what_is_not_finite_shows_in_the_scale() {
        for broken in [f32::NAN, f32::INFINITY] {
            let mut values = [1.0f32; CODED_BLOCK];
            values[3] = broken;
            let mut codes = [0; CODED_WORDS];
            for scale in [
                Signed(Levels::of_magnitudes()).encode(&values, &[0.0; CODED_BLOCK], &mut codes),
                Squared(Levels::of_squares()).encode(&values, &[0.0; CODED_BLOCK], &mut codes),
            ] {
                assert!(!scale.is_finite(), "{scale}");
            }
        }
    }
}
