//! The Gregorian date of a moment, UTC.

/// A date and a time of day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Date {
    /// The year.
    pub year: i64,
    /// 1 to 12.
    pub month: u32,
    /// 1 to 31.
    pub day: u32,
    /// Days since the last Sunday.
    pub weekday: u32,
    /// 0 to 86,399.
    pub second_of_day: u32,
}

impl Date {
    /// The date of a moment in seconds since 1970-01-01.
    ///
    /// Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
    #[must_use]
    pub const fn of(unix_seconds: i64) -> Self {
        let days = unix_seconds.div_euclid(86_400);
        // Years are counted from March, so that a leap day is the last one.
        let from_march_0000 = days + 719_468;
        let era = from_march_0000.div_euclid(146_097);
        let day_of_era = from_march_0000.rem_euclid(146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        Self {
            year: year_of_era + era * 400 + if month <= 2 { 1 } else { 0 },
            month: month as u32,
            day: (day_of_year - (153 * month_from_march + 2) / 5 + 1) as u32,
            weekday: (days + 4).rem_euclid(7) as u32,
            second_of_day: unix_seconds.rem_euclid(86_400) as u32,
        }
    }

    /// Hours, minutes and seconds.
    #[must_use]
    pub const fn time(self) -> [u32; 3] {
        [self.second_of_day / 3600, self.second_of_day / 60 % 60, self.second_of_day % 60]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, expected) in [
            (0, (1970, 1, 1, 4, [0, 0, 0])),
            (951_826_154, (2000, 2, 29, 2, [12, 9, 14])),
            (1_795_224_600, (2026, 11, 21, 6, [1, 30, 0])),
            (-1, (1969, 12, 31, 3, [23, 59, 59])),
        ] {
            let date = Date::of(seconds);
            assert_eq!((date.year, date.month, date.day, date.weekday, date.time()), expected);
        }
    }
}
