//! The learning rate of a step: a rise from zero, then a fall.

use std::f64::consts::PI;

use crate::options::{Scheduler, TrainOptions, Warmup};

/// Learning rate as a function of the step.
#[derive(Debug, Clone, Copy)]
pub struct Schedule {
    peak: f64,
    floor: f64,
    warmup_steps: u64,
    decay_steps: u64,
    total_steps: u64,
    scheduler: Scheduler,
}

impl Schedule {
    /// The schedule of a run of `total_steps`.
    pub fn new(options: &TrainOptions, total_steps: u64) -> Self {
        let warmup_steps = match options.warmup {
            Warmup::Steps(steps) => steps.min(total_steps),
            Warmup::Ratio(ratio) => (f64::from(ratio) * total_steps as f64).ceil() as u64,
        };
        let decay_steps = (f64::from(options.decay) * total_steps as f64).ceil() as u64;
        Self {
            peak: f64::from(options.learning_rate),
            floor: f64::from(options.min_learning_rate),
            warmup_steps,
            decay_steps: decay_steps.min(total_steps - warmup_steps),
            total_steps,
            scheduler: options.scheduler,
        }
    }

    /// The rate of a step, counted from 1; no step has rate zero, since it would be wasted.
    ///
    /// warm-up: lr = peak · step / W      then floor + (peak - floor) · f, with x = (step - W - 1) / (total - W) and
    /// cosine: f = (1 + cos πx) / 2       linear: f = 1 - x      inverse_sqrt: f = sqrt(W / (W + step - W - 1)), W ≥ 1
    /// wsd: f = 1, and in the last D steps 1 - k / (D + 1), k = 1 … D
    pub fn rate(&self, step: u64) -> f64 {
        if step <= self.warmup_steps {
            return self.peak * step as f64 / self.warmup_steps as f64;
        }
        let done = (step - self.warmup_steps - 1) as f64;
        let x = done / (self.total_steps - self.warmup_steps).max(1) as f64;
        let height = match self.scheduler {
            Scheduler::Cosine => 0.5 * (1.0 + (PI * x).cos()),
            Scheduler::Linear => 1.0 - x,
            Scheduler::Constant => 1.0,
            Scheduler::InverseSqrt => {
                let warmup = self.warmup_steps.max(1) as f64;
                (warmup / (warmup + done)).sqrt()
            }
            Scheduler::Wsd => {
                let decaying = (step + self.decay_steps).saturating_sub(self.total_steps);
                1.0 - decaying as f64 / (self.decay_steps + 1) as f64
            }
        };
        self.floor + (self.peak - self.floor) * height
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(scheduler: Scheduler, warmup: Warmup, expected: Expect) {
        check_with(TrainOptions { scheduler, warmup, ..TrainOptions::default() }, expected);
    }

    fn check_with(options: TrainOptions, expected: Expect) {
        let options = TrainOptions { learning_rate: 1.0, ..options };
        let schedule = Schedule::new(&options, 8);
        let rates: Vec<_> = (1..=8).map(|step| format!("{:.3}", schedule.rate(step))).collect();
        expected.assert_eq(&rates.join(" "));
    }

    #[test]
    fn rates_rise_then_fall_and_are_never_zero() {
        check(
            Scheduler::Cosine,
            Warmup::Steps(2),
            expect!["0.500 1.000 1.000 0.933 0.750 0.500 0.250 0.067"],
        );
        check(
            Scheduler::Linear,
            Warmup::Ratio(0.25),
            expect!["0.500 1.000 1.000 0.833 0.667 0.500 0.333 0.167"],
        );
        check(
            Scheduler::Constant,
            Warmup::Ratio(0.01),
            expect!["1.000 1.000 1.000 1.000 1.000 1.000 1.000 1.000"],
        );
        check(
            Scheduler::Linear,
            Warmup::Steps(0),
            expect!["1.000 0.875 0.750 0.625 0.500 0.375 0.250 0.125"],
        );
        check(
            Scheduler::Cosine,
            Warmup::Steps(99),
            expect!["0.125 0.250 0.375 0.500 0.625 0.750 0.875 1.000"],
        );
        check(
            Scheduler::InverseSqrt,
            Warmup::Steps(2),
            expect!["0.500 1.000 1.000 0.816 0.707 0.632 0.577 0.535"],
        );
        check(Scheduler::Wsd, Warmup::Steps(1), expect!["1.000 1.000 1.000 1.000 1.000 1.000 0.667 0.333"]);
    }

    #[test]
    fn rates_fall_to_the_least() {
        let of = |scheduler| TrainOptions {
            scheduler,
            warmup: Warmup::Steps(0),
            min_learning_rate: 0.2,
            decay: 0.5,
            ..TrainOptions::default()
        };
        check_with(of(Scheduler::Linear), expect!["1.000 0.900 0.800 0.700 0.600 0.500 0.400 0.300"]);
        check_with(of(Scheduler::Wsd), expect!["1.000 1.000 1.000 1.000 0.840 0.680 0.520 0.360"]);
        check_with(of(Scheduler::Constant), expect!["1.000 1.000 1.000 1.000 1.000 1.000 1.000 1.000"]);
    }
}
