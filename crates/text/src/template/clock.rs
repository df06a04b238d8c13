//! `strftime_now`: the date as templates ask for it.

use std::fmt::Write;

use formats::date::Date;

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

fn day_of_year(date: &Date) -> i64 {
    let leap = date.year % 4 == 0 && (date.year % 100 != 0 || date.year % 400 == 0);
    let before = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334][date.month as usize - 1];
    before + i64::from(date.day) + i64::from(leap && date.month > 2)
}

/// Formats a moment after `format`. Directives that are not known stay as they are.
pub(super) fn strftime(unix_seconds: i64, format: &str) -> String {
    let date = Date::of(unix_seconds);
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
        write_directive(&mut text, &date, directive, unpadded);
    }
    text
}

fn write_directive(text: &mut String, date: &Date, directive: Option<char>, unpadded: bool) {
    let [hour, minute, second] = date.time().map(i64::from);
    let (month, weekday) = (MONTHS[date.month as usize - 1], DAYS[date.weekday as usize]);
    let padded = |number: i64, width: usize| {
        if unpadded { number.to_string() } else { format!("{number:0width$}") }
    };
    let written = match directive {
        Some('Y') => date.year.to_string(),
        Some('y') => padded(date.year.rem_euclid(100), 2),
        Some('m') => padded(date.month.into(), 2),
        Some('B') => month.to_owned(),
        Some('b' | 'h') => month[..3].to_owned(),
        Some('d') => padded(date.day.into(), 2),
        Some('e') => format!("{:2}", date.day),
        Some('j') => padded(day_of_year(date), 3),
        Some('A') => weekday.to_owned(),
        Some('a') => weekday[..3].to_owned(),
        Some('H') => padded(hour, 2),
        Some('I') => padded((hour + 11) % 12 + 1, 2),
        Some('p') => if hour < 12 { "AM" } else { "PM" }.to_owned(),
        Some('M') => padded(minute, 2),
        Some('S') => padded(second, 2),
        Some('F') => format!("{}-{:02}-{:02}", date.year, date.month, date.day),
        Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
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
