//! `strftime_now`: the date as templates ask for it.

use std::fmt::Write;

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// A moment, in UTC.
struct Moment {
    year: i64,
    month: usize,
    day: i64,
    weekday: usize,
    second_of_day: i64,
}

impl Moment {
    /// Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
    fn new(unix_seconds: i64) -> Moment {
        let days = unix_seconds.div_euclid(86_400);
        let from_march_0000 = days + 719_468;
        let era = from_march_0000.div_euclid(146_097);
        let day_of_era = from_march_0000.rem_euclid(146_097);
        let year_of_era =
            (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * day_of_year + 2) / 153;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        Moment {
            year: year_of_era + era * 400 + i64::from(month <= 2),
            month: month as usize,
            day: day_of_year - (153 * month_from_march + 2) / 5 + 1,
            weekday: (days + 4).rem_euclid(7) as usize,
            second_of_day: unix_seconds.rem_euclid(86_400),
        }
    }

    fn day_of_year(&self) -> i64 {
        let leap = self.year % 4 == 0 && (self.year % 100 != 0 || self.year % 400 == 0);
        let before = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334][self.month - 1];
        before + self.day + i64::from(leap && self.month > 2)
    }
}

/// Formats a moment after `format`. Directives that are not known stay as they are.
pub(super) fn strftime(unix_seconds: i64, format: &str) -> String {
    let moment = Moment::new(unix_seconds);
    let mut text = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        let mut directive = characters.next();
        let unpadded = directive == Some('-');
        if unpadded {
            directive = characters.next();
        }
        write_directive(&mut text, &moment, directive, unpadded);
    }
    text
}

fn write_directive(text: &mut String, moment: &Moment, directive: Option<char>, unpadded: bool) {
    let (hour, minute) = (moment.second_of_day / 3_600, moment.second_of_day / 60 % 60);
    let (month, weekday) = (MONTHS[moment.month - 1], DAYS[moment.weekday]);
    let padded = |number: i64, width: usize| {
        if unpadded { number.to_string() } else { format!("{number:0width$}") }
    };
    let written = match directive {
        Some('Y') => moment.year.to_string(),
        Some('y') => padded(moment.year.rem_euclid(100), 2),
        Some('m') => padded(moment.month as i64, 2),
        Some('B') => month.to_owned(),
        Some('b' | 'h') => month[..3].to_owned(),
        Some('d') => padded(moment.day, 2),
        Some('e') => format!("{:2}", moment.day),
        Some('j') => padded(moment.day_of_year(), 3),
        Some('A') => weekday.to_owned(),
        Some('a') => weekday[..3].to_owned(),
        Some('H') => padded(hour, 2),
        Some('I') => padded((hour + 11) % 12 + 1, 2),
        Some('p') => if hour < 12 { "AM" } else { "PM" }.to_owned(),
        Some('M') => padded(minute, 2),
        Some('S') => padded(moment.second_of_day % 60, 2),
        Some('F') => format!("{}-{:02}-{:02}", moment.year, moment.month, moment.day),
        Some('T') => format!("{hour:02}:{minute:02}:{:02}", moment.second_of_day % 60),
        Some('Z') => "UTC".to_owned(),
        Some('z') => "+0000".to_owned(),
        Some('%') => "%".to_owned(),
        Some(other) => format!("%{other}"),
        None => "%".to_owned(),
    };
    // Writing into a String cannot fail.
    let _ = text.write_str(&written);
}

#[cfg(test)]
mod tests {
    use super::strftime;

    #[track_caller]
    fn check(unix_seconds: i64, format: &str, expected: &str) {
        assert_eq!(strftime(unix_seconds, format), expected);
    }

    #[test]
    fn dates_as_python_writes_them() {
        check(0, "%Y-%m-%d %H:%M:%S %A %j", "1970-01-01 00:00:00 Thursday 001");
        check(
            951_826_154,
            "%d %b %Y, %-d %B %y, %a, %I:%M %p, %j",
            "29 Feb 2000, 29 February 00, Tue, 12:09 PM, 060",
        );
        check(1_795_223_999, "%F %T%%%q", "2026-11-21 01:19:59%%q");
        check(-1, "%F", "1969-12-31");
    }
}
