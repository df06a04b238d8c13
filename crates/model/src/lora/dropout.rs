//! Dropout of the low-rank path's input: masks that follow from a seed and are never stored.
//!
//! drop(x) = x ⊙ mask / (1 - p), each element of the mask 1 with probability 1 - p. One mask serves all linear layers
//! that read the same input (PEFT draws one for each); it is a function of seed, layer, group, row and column, so that
//! a layer that runs again, or in tiles, drops the same elements. Source: Srivastava et al. 2014, JMLR 15.

use super::Group;

/// The dropout of one micro-step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// p, 0 to below 1.
    pub probability: f32,
    /// Different for each micro-step of a run.
    pub seed: u64,
}

impl Dropout {
    /// The seed of the mask of one group of one layer.
    pub(crate) fn mask_seed(&self, layer: usize, group: Group) -> u64 {
        let place = 1 + (layer * Group::ALL.len() + group as usize) as u64;
        self.seed ^ place.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }
}
