//! Random numbers as a function of seed and place: the same on every machine, in any order, with nothing to store.

const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

/// The `place`-th number of the sequence that SplitMix64 gives from a seed.
///
/// Source: Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators".
pub(crate) fn splitmix(seed: u64, place: u64) -> u64 {
    let mut z = seed.wrapping_add(place.wrapping_add(1).wrapping_mul(GAMMA));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// The same sequence, one number after the other.
#[derive(Debug, Clone)]
pub(crate) struct SplitMix64(pub u64);

impl SplitMix64 {
    pub fn next(&mut self) -> u64 {
        let number = splitmix(self.0, 0);
        self.0 = self.0.wrapping_add(GAMMA);
        number
    }

    /// Uniform in [0, 1).
    pub fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in [-1, 1), on a grid of 2^-23 that f32 holds exactly.
    pub fn symmetric(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}
