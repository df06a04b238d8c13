//! The rules of a check step: a record satisfies its schema, and each of its values occurs in a text.

use serde_json::Value;

use super::schema::Schema;

/// What is wrong with an output that should be a record; empty if nothing is.
pub(super) fn objections(output: &str, schema: Option<&Schema>, source: Option<&str>) -> Vec<String> {
    let record: Value = match serde_json::from_str(output.trim()) {
        Ok(record) => record,
        Err(error) => return vec![format!("not JSON: {error}")],
    };
    let mut objections = schema.map_or_else(Vec::new, |schema| schema.objections(&record));
    if let Some(source) = source {
        let words = words(source);
        leaves(&record, &mut String::new(), &mut |place, value| {
            if !occurs(value, &words) {
                objections.push(format!("`{place}`: {value} does not occur in the text"));
            }
        });
    }
    objections
}

/// Calls `each` with every string and number of a record and its place, as a JSON pointer.
fn leaves(value: &Value, place: &mut String, each: &mut dyn FnMut(&str, &Value)) {
    let length = place.len();
    match value {
        Value::Object(fields) => {
            for (key, field) in fields {
                place.push('/');
                place.push_str(key);
                leaves(field, place, each);
                place.truncate(length);
            }
        }
        Value::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                place.push_str(&format!("/{i}"));
                leaves(item, place, each);
                place.truncate(length);
            }
        }
        Value::String(_) | Value::Number(_) => each(place, value),
        Value::Null | Value::Bool(_) => {}
    }
}

/// Whether a value stands in a text as whole words, whatever their case; a number also as an English word.
fn occurs(value: &Value, text: &[String]) -> bool {
    let wanted = match value {
        Value::String(value) => words(value),
        number => words(&number.to_string()),
    };
    if wanted.is_empty() {
        return true;
    }
    let as_written = text.windows(wanted.len()).any(|part| part == wanted.as_slice());
    let as_word = || {
        let word = value.as_u64().and_then(number_word).map(|word| words(&word));
        word.is_some_and(|word| text.windows(word.len()).any(|part| part == word.as_slice()))
    };
    as_written || as_word()
}

/// Runs of letters and digits, in lower case.
fn words(text: &str) -> Vec<String> {
    let parts = text.split(|c: char| !c.is_alphanumeric());
    parts.filter(|part| !part.is_empty()).map(str::to_lowercase).collect()
}

/// `seven`, `forty-two`: numbers below 100.
fn number_word(n: u64) -> Option<String> {
    const BELOW_20: [&str; 20] = [
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
        "eight",
        "nine",
        "ten",
        "eleven",
        "twelve",
        "thirteen",
        "fourteen",
        "fifteen",
        "sixteen",
        "seventeen",
        "eighteen",
        "nineteen",
    ];
    const TENS: [&str; 8] = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"];
    let index = usize::try_from(n).ok()?;
    if let Some(word) = BELOW_20.get(index) {
        return Some((*word).to_owned());
    }
    let tens = TENS.get((index / 10).checked_sub(2)?)?;
    Some(if index % 10 == 0 { (*tens).to_owned() } else { format!("{tens}-{}", BELOW_20[index % 10]) })
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use serde_json::json;

    use super::super::spec::SchemaSpec;
    use super::*;

    const TEXT: &str = "Anna Berg ordered seven blue lamps in Lisbon on 4 May 2021.";

    fn check(output: &str, expected: Expect) {
        let schema = json!({
            "type": "object",
            "properties": {"name": {"type": "string"}, "count": {"type": "integer", "minimum": 2}},
            "required": ["name", "count"],
        });
        let Value::Object(schema) = schema else { unreachable!() };
        let schema = Schema::new(&SchemaSpec::Inline(schema), std::path::Path::new(".")).unwrap();
        expected.assert_eq(&objections(output, Some(&schema), Some(TEXT)).join("\n"));
    }

    #[test]
    fn a_good_record_passes() {
        check(r#"{"name": "anna berg", "count": 7, "date": "4 May 2021", "note": ""}"#, expect![""]);
    }

    #[test]
    fn each_fault_is_named() {
        check("{\"name\": \"Anna\"", expect!["not JSON: EOF while parsing an object at line 1 column 15"]);
        check(
            r#"{"name": "Ann Berg", "count": 1, "places": ["Lisbon", "Rome"]}"#,
            expect![[r#"
                `/count`: 1 is less than the minimum of 2
                `/name`: "Ann Berg" does not occur in the text
                `/count`: 1 does not occur in the text
                `/places/1`: "Rome" does not occur in the text"#]],
        );
        check(r#"{"name": "Berg"}"#, expect![[r#"the record: "count" is a required property"#]]);
    }

    #[test]
    fn whole_words_only_and_numbers_in_words() {
        assert!(!occurs(&json!(2), &words("24 mirrors")));
        assert!(occurs(&json!(42), &words("Forty-two mirrors")));
        assert!(!occurs(&json!(40), &words("fourteen mirrors")));
        assert!(occurs(&json!(3.5), &words("costs 3.5 crowns")));
        assert!(!occurs(&json!("ann"), &words("Hannah")));
    }
}
