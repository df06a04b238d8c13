//! Dropout of the low-rank path's input: masks that follow from a seed and are never stored.
//!
//! drop(x) = x ⊙ mask / (1 - p), each element of the mask 1 with probability 1 - p. One mask serves all linear layers
//! that read the same input (PEFT draws one for each); it is a function of seed, layer, group, row and column, so that
//! a layer that runs again, or in tiles, drops the same elements. Source: Srivastava et al. 2014, JMLR 15.

use super::Group;
use crate::random::splitmix;

/// The dropout of one micro-step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    /// p, 0 to below 1.
    pub probability: f32,
    /// Different for each micro-step of a run.
    pub seed: u64,
}

impl Dropout {
    /// The seed of one micro-step of a run.
    pub fn seed_of(run_seed: u64, step: u64, micro_step: u64) -> u64 {
        splitmix(splitmix(run_seed, step), micro_step)
    }

    /// The seed of the mask of one group of one layer.
    pub(crate) fn mask_seed(&self, layer: usize, group: Group) -> u64 {
        splitmix(self.seed, (layer * Group::ALL.len() + group as usize) as u64)
    }
}
