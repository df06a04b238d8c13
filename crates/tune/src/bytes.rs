//! Sizes as people write and read them.  A card sold as 8 GB has 8 GiB: `8GB` and `8GiB` are the same here.

pub use trainer::report::numbers::bytes as show;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Parses `8GB`, `7.2 GiB`, `900MB`, `4096` (bytes).
pub fn parse(text: &str) -> Result<u64, String> {
    let trimmed = text.trim();
    let digits = trimmed.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits);
    let factor = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" | "kib" => KIB,
        "m" | "mb" | "mib" => MIB,
        "g" | "gb" | "gib" => GIB,
        "t" | "tb" | "tib" => GIB << 10,
        _ => return Err(format!("`{text}` is not a size")),
    };
    let number: f64 = number.parse().map_err(|_| format!("`{text}` is not a size"))?;
    let bytes = number * factor as f64;
    if bytes >= (1u64 << 53) as f64 { Err(format!("`{text}` is too large")) } else { Ok(bytes as u64) }
}

/// A size where a budget is meant: `8 GB`, `7.5 GB`.
pub fn show_round(bytes: u64) -> String {
    let (unit, name) = if bytes >= GIB { (GIB, "GB") } else { (MIB, "MB") };
    format!("{} {name}", (10.0 * bytes as f64 / unit as f64).round() / 10.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_cards_are_sold() {
        assert_eq!(parse("8GB"), Ok(8 * GIB));
        assert_eq!(parse(" 7.5 GiB "), Ok(15 * GIB / 2));
        assert_eq!(parse("900 mb"), Ok(900 * MIB));
        assert_eq!(parse("4096"), Ok(4096));
        for wrong in ["", "GB", "8 potatoes", "1.2.3GB", "-1GB", "99999999TB"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_are_shown_with_a_fitting_unit() {
        assert_eq!(show(12), "12 B");
        assert_eq!(show(4 * KIB), "4.0 KiB");
        assert_eq!(show(19_818_086), "18.9 MiB");
        assert_eq!(show(8 * GIB), "8.00 GiB");
        assert_eq!((show_round(8 * GIB), show_round(900 * MIB)), ("8 GB".into(), "900 MB".into()));
        assert_eq!(show_round(15 * GIB / 2), "7.5 GB");
    }
}
