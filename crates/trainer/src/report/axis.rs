//! An axis: which values it spans, and the round numbers that are written beside it.

use super::numbers;

/// Ticks that are aimed at.
const N_TICKS: f64 = 5.0;

/// Values that differ by more than this factor are drawn by their logarithms.
const LEAST_LOG_RATIO: f64 = 60.0;

/// Beyond it ticks could overflow, and no figure of a run means anything.
const LARGEST: f64 = 1e300;

/// How values become places.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// Equal differences are equally far.
    Linear,
    /// Equal ratios are equally far.
    Log,
}

/// What an axis is to show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Values and zero.
    FromZero,
    /// Values, by their logarithms where they differ by orders of magnitude.
    Automatic,
    /// Steps: exactly from the first to the last.
    Steps,
}

/// An axis that was fitted to values.
#[derive(Debug, Clone, PartialEq)]
pub struct Axis {
    /// How values become places.
    pub scale: Scale,
    /// The value at its beginning.
    pub low: f64,
    /// The value at its end.
    pub high: f64,
    /// Values that are marked, and how they are written.
    pub ticks: Vec<(f64, String)>,
}

impl Axis {
    /// An axis that all finite values fit on.
    pub fn fit(values: impl Iterator<Item = f64>, kind: Kind) -> Self {
        let mut values: Vec<f64> = values.filter(|value| value.abs() < LARGEST).collect();
        values.sort_by(f64::total_cmp);
        let (low, high) = match (values.first(), values.last()) {
            (Some(&low), Some(&high)) => (low, high),
            _ => (0.0, 1.0),
        };
        match kind {
            Kind::Steps => Self::steps(low, high),
            Kind::FromZero => Self::linear(low.min(0.0), high.max(0.0)),
            Kind::Automatic => match log_range(&values) {
                Some((low, high)) => Self::log(low, high),
                None if low > 0.0 && low < 0.4 * high => Self::linear(0.0, high),
                None => Self::linear(low, high),
            },
        }
    }

    fn linear(low: f64, high: f64) -> Self {
        let (low, high) = if low == high { around(low) } else { (low, high) };
        let step = round_step((high - low) / N_TICKS);
        // A little beyond the values counts as reached: 0.3 is not 0.30000000000000004.
        let (first, last) = ((low / step + 1e-9).floor(), (high / step - 1e-9).ceil());
        let ticks = (0..=(last - first) as usize).map(|index| (first + index as f64) * step);
        let ticks = ticks.map(|value| (value, numbers::tick(value, step))).collect();
        Self { scale: Scale::Linear, low: first * step, high: last * step, ticks }
    }

    fn steps(low: f64, high: f64) -> Self {
        let high = if high > low { high } else { low + 1.0 };
        let step = round_step((high - low) / N_TICKS).max(1.0);
        let (first, last) = ((low / step).ceil(), (high / step + 1e-9).floor());
        let ticks = (0..=(last - first).max(0.0) as usize).map(|index| (first + index as f64) * step);
        let ticks = ticks.map(|value| (value, numbers::tick(value, step))).collect();
        Self { scale: Scale::Linear, low, high, ticks }
    }

    fn log(low: f64, high: f64) -> Self {
        let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
        let decades = (high / low).log10();
        let every = (decades / 6.0) as i32 + 1;
        let within: &[f64] = if decades < 2.5 { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let mut ticks = Vec::new();
        for decade in (first..=last).filter(|decade| decade.rem_euclid(every) == 0) {
            for value in within.iter().map(|factor| factor * 10_f64.powi(decade)) {
                if (low * 0.999..=high * 1.001).contains(&value) {
                    ticks.push((value, numbers::tick(value, value)));
                }
            }
        }
        Self { scale: Scale::Log, low, high, ticks }
    }

    /// Where a value stands: 0 at the beginning, 1 at the end; what lies beyond stands at the edge.
    pub fn place(&self, value: f64) -> f64 {
        let place = match self.scale {
            Scale::Linear => (value - self.low) / (self.high - self.low),
            Scale::Log => (value.max(f64::MIN_POSITIVE) / self.low).ln() / (self.high / self.low).ln(),
        };
        place.clamp(0.0, 1.0)
    }
}

/// The range of a logarithmic axis, where one shows more: nearly all values are above zero, and they differ widely.
fn log_range(sorted: &[f64]) -> Option<(f64, f64)> {
    let positive = &sorted[sorted.partition_point(|&value| value <= 0.0)..];
    let is_mostly_positive = positive.len() * 20 >= sorted.len() * 19;
    let (&low, &high) = (positive.first()?, positive.last()?);
    let ratio = high / low;
    (is_mostly_positive && ratio >= LEAST_LOG_RATIO && ratio.is_finite()).then(|| {
        // Some room above and below, so that no line runs along the edge.
        let room = ratio.powf(0.03);
        (low / room, high * room)
    })
}

/// Values around one that stands alone.
fn around(value: f64) -> (f64, f64) {
    if value == 0.0 { (0.0, 1.0) } else { (value - 0.1 * value.abs(), value + 0.1 * value.abs()) }
}

/// The next of 1, 2, 5, 10, … times a power of ten.
fn round_step(step: f64) -> f64 {
    let power = 10_f64.powf(step.log10().floor());
    let factor = [1.0, 2.0, 5.0].into_iter().find(|factor| step <= factor * power * (1.0 + 1e-9));
    factor.unwrap_or(10.0) * power
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(values: &[f64], kind: Kind, expected: &str) {
        let axis = Axis::fit(values.iter().copied(), kind);
        let ticks: Vec<_> = axis.ticks.iter().map(|(_, text)| text.as_str()).collect();
        assert_eq!(ticks.join(" "), expected, "{values:?} {axis:?}");
        for (value, text) in &axis.ticks {
            assert!((axis.low * 0.99..=axis.high * 1.01).contains(value), "{text} of {axis:?}");
        }
        for value in values.iter().filter(|value| value.is_finite()) {
            assert!((0.0..=1.0).contains(&axis.place(*value)));
        }
    }

    #[test]
    fn ticks_are_round_numbers() {
        check(&[0.0, 8700.0], Kind::FromZero, "0 2,000 4,000 6,000 8,000 10,000");
        check(&[190.3, 210.3], Kind::FromZero, "0 50 100 150 200 250");
        check(&[0.0, 2e-4], Kind::FromZero, "0 5e-5 1e-4 1.5e-4 2e-4");
        check(&[0.9, 2.3], Kind::Automatic, "0 0.5 1.0 1.5 2.0 2.5");
        check(&[1.9, 2.3], Kind::Automatic, "1.9 2.0 2.1 2.2 2.3");
        check(&[1.0, 238.0], Kind::Steps, "50 100 150 200");
        check(&[0.0, 3.0], Kind::Steps, "0 1 2 3");
    }

    #[test]
    fn orders_of_magnitude_are_drawn_by_their_logarithms() {
        check(&[0.0003, 6.7], Kind::Automatic, "0.001 0.01 0.1 1");
        check(&[0.01, 0.9], Kind::Automatic, "0.01 0.02 0.05 0.1 0.2 0.5 1");
        check(&[1e-9, 1.0], Kind::Automatic, "1e-8 1e-6 1e-4 0.01 1");
        let axis = Axis::fit([1e-3, 1.0].into_iter(), Kind::Automatic);
        assert!((axis.place(10_f64.powf(-1.5)) - 0.5).abs() < 1e-9);
        assert_eq!(axis.place(0.0), 0.0, "what has no logarithm stands at the edge");
    }

    #[test]
    fn nothing_and_one_value_and_nonsense_have_an_axis_too() {
        check(&[], Kind::Automatic, "0 0.2 0.4 0.6 0.8 1.0");
        check(&[f64::NAN, f64::INFINITY], Kind::FromZero, "0 0.2 0.4 0.6 0.8 1.0");
        check(&[2.0, 2.0], Kind::Automatic, "1.8 1.9 2.0 2.1 2.2");
        check(&[0.0], Kind::FromZero, "0 0.2 0.4 0.6 0.8 1.0");
        check(&[7.0], Kind::Steps, "7 8");
        check(&[f64::MAX, 1.0], Kind::FromZero, "0 0.2 0.4 0.6 0.8 1.0");
    }
}
