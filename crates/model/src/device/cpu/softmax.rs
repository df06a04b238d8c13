//! Softmax over the vocabulary, a tile of logits at a time.

#![allow(unsafe_code)] // the instruction-set dispatch of `multiversion!`

use rayon::prelude::*;

use super::isa::{exp, lane_max, lane_sum, multiversion};

/// Running state of M softmaxes.
pub(super) struct Fold<'a> {
    pub(super) max: &'a mut [f32],
    pub(super) sum: &'a mut [f32],
    pub(super) target_logit: &'a mut [f32],
}

/// Folds logits (M, width) of the vocabulary rows from `first_row` on into the running state.
pub(super) fn fold(logits: &[f32], first_row: usize, targets: &[u32], state: Fold<'_>) {
    let width = logits.len() / targets.len();
    logits
        .par_chunks_exact(width)
        .zip(targets)
        .zip(state.max)
        .zip(state.sum)
        .zip(state.target_logit)
        .for_each(|((((logits, &target), max), sum), target_logit)| {
            fold_row(logits, max, sum);
            if let Some(&logit) = in_tile(target, first_row).and_then(|i| logits.get(i)) {
                *target_logit = logit;
            }
        });
}

/// Folds as [`fold`] does and leaves the terms of the sums, 0 for the target's; `shrink` is what earlier terms are
/// multiplied by.
pub(super) fn fold_terms(
    logits: &mut [f32],
    first_row: usize,
    targets: &[u32],
    state: Fold<'_>,
    shrink: &mut [f32],
) {
    let width = logits.len() / targets.len();
    let rows = logits.par_chunks_exact_mut(width).zip(targets).zip(state.max).zip(state.sum);
    rows.zip(state.target_logit).zip(shrink).for_each(
        |(((((logits, &target), max), sum), target_logit), shrink)| {
            let place = in_tile(target, first_row).filter(|&place| place < width);
            if let Some(place) = place {
                *target_logit = logits[place];
            }
            *shrink = terms_row(logits, max, sum);
            if let Some(place) = place {
                logits[place] = 0.0;
            }
        },
    );
}

/// The target's column in a tile, if it does not lie before it.
fn in_tile(target: u32, first_row: usize) -> Option<usize> {
    (target as usize).checked_sub(first_row)
}

multiversion! {
    fn fold_row(logits: &[f32], max: &mut f32, sum: &mut f32) {
        let new_max = lane_max(logits).max(*max);
        let added = lane_sum([logits], |[logit]| exp(logit - new_max));
        *sum = *sum * exp(*max - new_max) + added;
        *max = new_max;
    }
}

multiversion! {
    fn terms_row(logits: &mut [f32], max: &mut f32, sum: &mut f32) -> f32 {
        let new_max = lane_max(logits).max(*max);
        for logit in logits.iter_mut() {
            *logit = exp(*logit - new_max);
        }
        let shrink = exp(*max - new_max);
        *sum = *sum * shrink + lane_sum([logits], |[term]| term);
        *max = new_max;
        shrink
    }
}
