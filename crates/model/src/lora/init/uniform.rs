//! First values of a fresh adapter, from a seed, the same on every machine.

use super::super::Layout;
use crate::random::SplitMix64;

/// A uniform in ±1/sqrt(C_in) (PyTorch's `kaiming_uniform_(a=sqrt(5))`, as PEFT does), B zero.
pub(in crate::lora) fn kaiming_uniform(layout: &Layout, seed: u64) -> Vec<f32> {
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
