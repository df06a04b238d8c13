//! Times of day in UTC, for run ids and for answers that carry a date.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Time since 1970.
pub(crate) fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// `20261121-013000`.
pub(crate) fn compact(age: Duration) -> String {
    let [year, month, day, hour, minute, second] = fields(age.as_secs());
    format!("{year:04}{month:02}{day:02}-{hour:02}{minute:02}{second:02}")
}

/// `2026-11-21T01:30:00.123456789Z`, RFC 3339.
pub(crate) fn rfc3339(age: Duration) -> String {
    let [year, month, day, hour, minute, second] = fields(age.as_secs());
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:09}Z", age.subsec_nanos())
}

fn fields(seconds: u64) -> [u64; 6] {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let (year, month, day) = date(days);
    [year, month, day, rest / 3600, rest / 60 % 60, rest % 60]
}

/// The Gregorian date of a day counted from 1970-01-01; years are counted from March so that a leap day is last.
fn date(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day_of_month = day - (153 * month + 2) / 5 + 1;
    let (month, carry) = if month < 10 { (month + 3, 0) } else { (month - 9, 1) };
    (era * 400 + year + carry, month, day_of_month)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, expected) in
            [(0, "19700101-000000"), (951_826_154, "20000229-120914"), (1_795_224_600, "20261121-013000")]
        {
            assert_eq!(compact(Duration::from_secs(seconds)), expected);
        }
        assert_eq!(rfc3339(Duration::new(1_795_224_600, 5)), "2026-11-21T01:30:00.000000005Z");
    }
}
