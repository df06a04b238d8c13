//! How fast the last few steps went.

use std::collections::VecDeque;

/// Steps that the mean is taken over: enough to be steady, few enough to follow.
const WINDOW: usize = 16;

/// Tokens and seconds of the last steps.
#[derive(Debug, Default)]
pub struct Speed(VecDeque<(u64, f64)>);

impl Speed {
    /// Adds a step.
    pub fn add(&mut self, tokens: u64, seconds: f64) {
        if self.0.len() == WINDOW {
            self.0.pop_front();
        }
        self.0.push_back((tokens, seconds));
    }

    /// Tokens a second over the window.
    pub fn tokens_per_second(&self) -> f64 {
        let tokens: u64 = self.0.iter().map(|(tokens, _)| tokens).sum();
        tokens as f64 / self.seconds().max(f64::MIN_POSITIVE)
    }

    /// Mean time of a step.
    pub fn seconds_per_step(&self) -> f64 {
        self.seconds() / self.0.len().max(1) as f64
    }

    fn seconds(&self) -> f64 {
        self.0.iter().map(|(_, seconds)| seconds).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_steps_leave_the_mean() {
        let mut speed = Speed::default();
        assert_eq!(speed.seconds_per_step(), 0.0);
        speed.add(1_000_000, 1.0);
        for _ in 0..WINDOW {
            speed.add(100, 0.5);
        }
        assert_eq!((speed.tokens_per_second(), speed.seconds_per_step()), (200.0, 0.5));
    }
}
