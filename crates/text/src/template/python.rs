//! Values as Python writes them: `str()`, `repr()` and `json.dumps`.

use std::fmt::Write;

use minijinja::value::{Value, ValueKind};

/// How a value is written.
#[derive(Clone, Copy)]
enum Style {
    /// `{'a': True, 'b': None}`
    Repr,
    /// `{"a": true, "b": null}`
    Json { indent: Option<usize> },
}

/// `str(value)`, what `{{ value }}` puts out.
pub(super) fn str_of(value: &Value) -> String {
    match value.as_str() {
        Some(text) => text.to_owned(),
        None if value.is_undefined() => String::new(),
        None => {
            let mut text = String::new();
            write_value(&mut text, value, Style::Repr, 0);
            text
        }
    }
}

/// `json.dumps(value, ensure_ascii=False)`, with `indent` if any.
pub(super) fn json_of(value: &Value, indent: Option<usize>) -> String {
    let mut text = String::new();
    write_value(&mut text, value, Style::Json { indent }, 0);
    text
}

/// Longer than any output may be; a list of lists that share their items writes more than it holds.
const LIMIT_BYTES: usize = 64 << 20;

fn write_value(text: &mut String, value: &Value, style: Style, depth: usize) {
    if text.len() > LIMIT_BYTES {
        return;
    }
    let json = matches!(style, Style::Json { .. });
    match value.kind() {
        ValueKind::Undefined | ValueKind::None => text.push_str(if json { "null" } else { "None" }),
        ValueKind::Bool => text.push_str(match (value.is_true(), json) {
            (true, true) => "true",
            (true, false) => "True",
            (false, true) => "false",
            (false, false) => "False",
        }),
        ValueKind::Number if value.is_integer() => write(text, format_args!("{value}")),
        ValueKind::Number => text.push_str(&float(f64::try_from(value.clone()).unwrap_or(f64::NAN))),
        ValueKind::Map => write_all(text, value, style, depth, ['{', '}'], |text, key| {
            let entry = value.get_item(key).unwrap_or_default();
            match (key.as_str(), json) {
                (None, true) => write_string(text, &json_of(key, None), style),
                _ => write_value(text, key, style, depth + 1),
            }
            text.push_str(": ");
            write_value(text, &entry, style, depth + 1);
        }),
        ValueKind::Seq | ValueKind::Iterable => {
            write_all(text, value, style, depth, ['[', ']'], |text, item| {
                write_value(text, item, style, depth + 1)
            });
        }
        _ => match value.as_str() {
            Some(string) => write_string(text, string, style),
            None => write(text, format_args!("{value}")),
        },
    }
}

fn write(text: &mut String, arguments: std::fmt::Arguments) {
    // Writing into a String cannot fail.
    let _ = text.write_fmt(arguments);
}

fn write_all(
    text: &mut String,
    value: &Value,
    style: Style,
    depth: usize,
    [open, close]: [char; 2],
    mut write_item: impl FnMut(&mut String, &Value),
) {
    let line = |text: &mut String, depth: usize| {
        if let Style::Json { indent: Some(width) } = style {
            text.push('\n');
            text.extend(std::iter::repeat_n(' ', width * depth));
        }
    };
    let separator = if matches!(style, Style::Json { indent: Some(_) }) { "," } else { ", " };
    text.push(open);
    let mut is_empty = true;
    for item in value.try_iter().into_iter().flatten() {
        if !is_empty {
            text.push_str(separator);
        }
        is_empty = false;
        line(text, depth + 1);
        write_item(text, &item);
    }
    if !is_empty {
        line(text, depth);
    }
    text.push(close);
}

fn write_string(text: &mut String, string: &str, style: Style) {
    let json = matches!(style, Style::Json { .. });
    let quote = if json || (string.contains('\'') && !string.contains('"')) { '"' } else { '\'' };
    text.push(quote);
    for character in string.chars() {
        match character {
            '\n' => text.push_str("\\n"),
            '\r' => text.push_str("\\r"),
            '\t' => text.push_str("\\t"),
            '\\' => text.push_str("\\\\"),
            '\u{8}' if json => text.push_str("\\b"),
            '\u{c}' if json => text.push_str("\\f"),
            _ if character == quote => text.extend(['\\', quote]),
            '\0'..='\u{1f}' if json => write(text, format_args!("\\u{:04x}", character as u32)),
            '\0'..='\u{1f}' | '\u{7f}' => write(text, format_args!("\\x{:02x}", character as u32)),
            _ => text.push(character),
        }
    }
    text.push(quote);
}

/// `repr` of a float: the shortest digits that read back the same, with an exponent where Python has one.
fn float(number: f64) -> String {
    if !number.is_finite() {
        return if number.is_nan() { "nan" } else { ["inf", "-inf"][usize::from(number < 0.0)] }.to_owned();
    }
    let scientific = format!("{number:e}");
    let (digits, exponent) = scientific.split_once('e').unwrap_or((&scientific, "0"));
    match exponent.parse::<i32>() {
        Ok(exponent) if number != 0.0 && !(-4..16).contains(&exponent) => {
            format!("{digits}e{}{:02}", if exponent < 0 { '-' } else { '+' }, exponent.abs())
        }
        _ => format!("{number:?}"),
    }
}

#[cfg(test)]
mod tests {
    use minijinja::value::Serde;

    use super::*;

    #[track_caller]
    fn check(json: &str, repr: &str, dumped: &str) {
        let value = Value::from(Serde(serde_json::from_str::<serde_json::Value>(json).unwrap()));
        assert_eq!(str_of(&value), repr);
        assert_eq!(json_of(&value, None), dumped);
    }

    #[test]
    fn values_as_python_writes_them() {
        check(
            r#"{"a": [1, 2.0, null, true], "ü\n": "it's \"q\"", "e": {}}"#,
            r#"{'a': [1, 2.0, None, True], 'ü\n': 'it\'s "q"', 'e': {}}"#,
            r#"{"a": [1, 2.0, null, true], "ü\n": "it's \"q\"", "e": {}}"#,
        );
        check(
            "[1e-5, 1e16, 123456789.125, 1e22, -0.0001]",
            "[1e-05, 1e+16, 123456789.125, 1e+22, -0.0001]",
            "[1e-05, 1e+16, 123456789.125, 1e+22, -0.0001]",
        );
        check(r#""\u0001'""#, "\u{1}'", r#""\u0001'""#);
    }

    #[test]
    fn json_with_indent() {
        let value = Value::from(Serde(serde_json::json!({"a": [1, {}], "b": []})));
        assert_eq!(json_of(&value, Some(2)), "{\n  \"a\": [\n    1,\n    {}\n  ],\n  \"b\": []\n}");
    }
}
