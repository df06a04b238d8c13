//! Numbers as people read them.

use std::time::Duration;

pub use trainer::report::numbers::{count, duration as seconds};

/// [`seconds`] of a time.
pub fn duration(time: Duration) -> String {
    seconds(time.as_secs_f64())
}

/// Seconds of what may be over in no time: `0.05 ms`, `40 ms`, and [`seconds`] from a second on.
pub fn brief(time: f64) -> String {
    match time * 1e3 {
        ms if ms < 10.0 => format!("{ms:.2} ms"),
        ms if ms < 1000.0 => format!("{ms:.0} ms"),
        _ => seconds(time),
    }
}

/// `0.0514`, or `1.8e-5` of what that would show as nothing.
pub fn nats(nats: f64) -> String {
    if nats.abs() < 1e-3 { format!("{nats:.1e}") } else { format!("{nats:.4}") }
}

/// `97.5 % (195 of 200)`
pub fn share(part: usize, whole: usize) -> String {
    format!("{:.1} % ({part} of {whole})", 100.0 * part as f64 / whole.max(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped_and_times_rounded() {
        assert_eq!([count(0), count(999), count(1000), count(1_234_567)], ["0", "999", "1,000", "1,234,567"]);
        assert_eq!(seconds(0.4211), "0.42 s");
        assert_eq!([nats(0.05139), nats(0.00001834)], ["0.0514", "1.8e-5"]);
        assert_eq!([brief(0.000_049), brief(0.0404), brief(1.2)], ["0.05 ms", "40 ms", "1.20 s"]);
        assert_eq!(seconds(12.34), "12.3 s");
        assert_eq!(seconds(245.0), "4 min 05 s");
        assert_eq!(seconds(7380.0), "2 h 03 min");
        assert_eq!(seconds(f64::INFINITY), "?");
        assert_eq!(share(195, 200), "97.5 % (195 of 200)");
    }
}
