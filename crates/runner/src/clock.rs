//! Times of day in UTC, for run ids and for answers that carry a date.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use formats::date::Date;

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

fn fields(seconds: u64) -> [i64; 6] {
    let date = Date::of(i64::try_from(seconds).unwrap_or(0));
    let [hour, minute, second] = date.time();
    [date.year, date.month.into(), date.day.into(), hour.into(), minute.into(), second.into()]
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
