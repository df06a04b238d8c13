//! First values of a fresh adapter, from a seed, the same on every machine.

use super::Layout;

/// A uniform in ±1/sqrt(C_in) (PyTorch's `kaiming_uniform_(a=sqrt(5))`, as PEFT does), B zero.
pub(super) fn kaiming_uniform(layout: &Layout, seed: u64) -> Vec<f32> {
    let mut weights = vec![0.0; layout.len()];
    let mut random = SplitMix64(seed);
    for (_, cols, member) in layout.members() {
        let bound = 1.0 / (cols as f32).sqrt();
        for weight in &mut weights[member.a.clone()] {
            *weight = random.symmetric() * bound;
        }
    }
    weights
}

/// Source: Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators".
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [-1, 1), on a grid of 2^-23 that f32 holds exactly.
    fn symmetric(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }
}
