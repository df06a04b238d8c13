//! Numbers as people read them, in the report and on the terminal.

use formats::date::Date;

/// `12,345`
pub fn count(n: u64) -> String {
    grouped(&n.to_string())
}

/// Digits in groups of three.
fn grouped(digits: &str) -> String {
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `5.13 GiB`, `18.9 MiB`, `4.0 KiB`, `12 B`
pub fn bytes(bytes: u64) -> String {
    match bytes {
        0x4000_0000.. => format!("{:.2} GiB", bytes as f64 / f64::from(1 << 30)),
        0x10_0000.. => format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20)),
        0x400.. => format!("{:.1} KiB", bytes as f64 / 1024.0),
        _ => format!("{bytes} B"),
    }
}

/// `0.42 s`, `42.1 s`, `4 min 05 s`, `2 h 03 min`; what is no time at all is shown as `?`
pub fn duration(seconds: f64) -> String {
    if !(seconds.is_finite() && seconds >= 0.0) {
        return "?".into();
    }
    let whole = seconds as u64;
    match whole {
        0..10 => format!("{seconds:.2} s"),
        10..100 => format!("{seconds:.1} s"),
        100..3600 => format!("{} min {:02} s", whole / 60, whole % 60),
        _ => format!("{} h {:02} min", whole / 3600, whole % 3600 / 60),
    }
}

/// A loss, a norm or a rate with four digits that say something: `6.709`, `0.0003120`, `1.85e-5`.
pub fn figure(value: f64) -> String {
    if !value.is_finite() {
        return "not a number".into();
    }
    match value.abs() {
        0.0 => "0".into(),
        size if size < 1e-4 => format!("{value:.2e}"),
        size if size < 0.01 => format!("{value:.6}"),
        size if size < 10.0 => format!("{value:.4}"),
        size if size < 1000.0 => format!("{value:.1}"),
        _ => format!("{}{}", if value < 0.0 { "-" } else { "" }, count(value.abs().round() as u64)),
    }
}

/// A tick's value with as many decimals as the step between two ticks asks for.
pub fn tick(value: f64, step: f64) -> String {
    if value == 0.0 {
        return "0".into();
    }
    if step < 1e-3 {
        let shown = format!("{:e}", (value / step).round() * step);
        // What binary fractions leave behind: 1.5000000000000002e-4.
        let (digits, exponent) = shown.split_once('e').unwrap_or((&shown, "0"));
        let digits: f64 = digits.parse().unwrap_or(value);
        return format!("{}e{exponent}", (digits * 1000.0).round() / 1000.0);
    }
    let decimals = (-step.log10().floor()).max(0.0) as usize;
    let text = format!("{:.decimals$}", value.abs());
    let (whole, fraction) = text.split_once('.').unwrap_or((&text, ""));
    let sign = if value < 0.0 { "-" } else { "" };
    let point = if fraction.is_empty() { "" } else { "." };
    format!("{sign}{}{point}{fraction}", grouped(whole))
}

/// `2026-11-29 18:05 UTC` of seconds since 1970.
pub fn date_time(seconds: u64) -> String {
    let date = Date::of(i64::try_from(seconds).unwrap_or(0));
    let [hour, minute, _] = date.time();
    format!("{:04}-{:02}-{:02} {hour:02}:{minute:02} UTC", date.year, date.month, date.day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_the_digits_that_matter() {
        assert_eq!([count(0), count(999), count(1_234_567)], ["0", "999", "1,234,567"]);
        assert_eq!([bytes(12), bytes(4096), bytes(19_818_086)], ["12 B", "4.0 KiB", "18.9 MiB"]);
        assert_eq!(
            [duration(0.42), duration(245.0), duration(7380.0)],
            ["0.42 s", "4 min 05 s", "2 h 03 min"]
        );
        assert_eq!([duration(f64::NAN), figure(f64::NAN)], ["?", "not a number"]);
        assert_eq!([figure(6.70884), figure(0.000312), figure(1.85e-5)], ["6.7088", "0.000312", "1.85e-5"]);
        assert_eq!([figure(8800.4), figure(0.0), figure(123.45)], ["8,800", "0", "123.5"]);
    }

    #[test]
    fn ticks_agree_with_the_step_between_them() {
        assert_eq!([tick(0.0, 0.5), tick(1.5, 0.5), tick(20_000.0, 5000.0)], ["0", "1.5", "20,000"]);
        assert_eq!([tick(0.3, 0.1), tick(3.0 * 0.05, 0.05), tick(-2.0, 1.0)], ["0.3", "0.15", "-2"]);
        assert_eq!([tick(3.0 * 5e-5, 5e-5), tick(1e-4, 5e-5), tick(2e-7, 1e-7)], ["1.5e-4", "1e-4", "2e-7"]);
    }

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(date_time(951_826_154), "2000-02-29 12:09 UTC");
        assert_eq!(date_time(1_795_224_600), "2026-11-21 01:30 UTC");
        date_time(u64::MAX);
    }
}
