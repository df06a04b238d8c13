//! Spikes: steps whose loss or gradient is far beyond what has been usual; such a step is skipped.
//!
//! What is usual is the median of the last steps, spikes included: one among many does not move it, and a run whose
//! loss has really changed goes on after half a window.

use serde::{Deserialize, Serialize};

/// Steps that the median is taken over.
const WINDOW: usize = 64;
/// Fewer steps tell nothing about what is usual.
const FEWEST: usize = 16;

/// Losses and gradient norms of the last steps, the oldest first: part of a run's state.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Usual {
    losses: Vec<f64>,
    grad_norms: Vec<f64>,
}

/// What is too large in a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spike {
    /// `loss` or `gradient norm`.
    pub what: &'static str,
    /// Its value.
    pub value: f64,
    /// The median of the steps before.
    pub median: f64,
}

impl Usual {
    /// Takes in a step, finite as it must be, and tells whether it is beyond `max_spike` times what was usual before.
    pub fn take(&mut self, loss: f64, grad_norm: f64, max_spike: f64) -> Option<Spike> {
        let judge = |what, value, before: &[f64]| {
            let median = median(before).filter(|&median| before.len() >= FEWEST && median > 0.0)?;
            (value > max_spike * median).then_some(Spike { what, value, median })
        };
        let spike =
            judge("loss", loss, &self.losses).or_else(|| judge("gradient norm", grad_norm, &self.grad_norms));
        for (values, value) in [(&mut self.losses, loss), (&mut self.grad_norms, grad_norm)] {
            if values.len() == WINDOW {
                values.remove(0);
            }
            values.push(value);
        }
        spike
    }
}

fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (low, high) = (sorted.get(values.len().checked_sub(1)? / 2)?, sorted.get(values.len() / 2)?);
    Some((low + high) / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_of_the_values() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[4.0, 1.0, 9.0, 2.0]), Some(3.0));
    }

    #[test]
    fn a_spike_is_what_is_far_beyond_the_steps_before() {
        let mut usual = Usual::default();
        // Too early to tell.
        assert_eq!(usual.take(900.0, 1.0, 4.0), None);
        for _ in 1..FEWEST {
            assert_eq!(usual.take(1.0, 0.5, 4.0), None);
        }
        assert_eq!(usual.take(3.9, 1.9, 4.0), None);
        assert_eq!(usual.take(4.1, 0.5, 4.0), Some(Spike { what: "loss", value: 4.1, median: 1.0 }));
        assert_eq!(usual.take(1.0, 2.1, 4.0), Some(Spike { what: "gradient norm", value: 2.1, median: 0.5 }));
        assert_eq!(usual.take(1.0, 0.5, 4.0), None);
    }

    #[test]
    fn a_loss_that_has_changed_for_good_becomes_usual() {
        let mut usual = Usual::default();
        for _ in 0..WINDOW {
            usual.take(1.0, 1.0, 4.0);
        }
        let skipped = (0..200).filter(|_| usual.take(10.0, 1.0, 4.0).is_some()).count();
        // At half a window the median is the mean of both, which ten are not four times beyond.
        assert_eq!(skipped, WINDOW / 2);
        assert_eq!(usual.losses.len(), WINDOW);
    }
}
