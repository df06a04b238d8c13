//! Rules for outputs: a record satisfies its schema, each of its values occurs in a text; a text has a form and a length.

use regex::Regex;
use serde_json::Value;

use super::check::Source;
use super::schema::Schema;

/// Bytes a compiled pattern may take.
const PATTERN_BYTES: usize = 1 << 20;

/// What an output must be like.
#[derive(Debug, Clone, Default)]
pub(super) struct Rules {
    /// It is JSON under this.
    pub schema: Option<Schema>,
    /// It is JSON, and each of its values occurs in this text.
    pub values_in: Option<Source>,
    /// This is found in it.
    pub matches: Option<Regex>,
    /// This is not.
    pub forbids: Option<Regex>,
    /// It has so many characters at least.
    pub min_chars: Option<usize>,
    /// And so many at most.
    pub max_chars: Option<usize>,
}

impl Rules {
    /// Whether there is no rule at all.
    pub(super) fn is_empty(&self) -> bool {
        let of_record = self.schema.is_some() || self.values_in.is_some();
        let of_text = self.matches.is_some() || self.forbids.is_some();
        !(of_record || of_text || self.min_chars.is_some() || self.max_chars.is_some())
    }

    /// What is wrong with an output; `source` is the text of `values_in`.
    pub(super) fn objections(&self, output: &str, source: Option<&str>) -> Vec<String> {
        let mut all = Vec::new();
        if self.schema.is_some() || source.is_some() {
            all.extend(objections(output, self.schema.as_ref(), source));
        }
        if let Some(pattern) = self.matches.as_ref().filter(|pattern| !pattern.is_match(output)) {
            all.push(format!("it does not match `{pattern}`"));
        }
        if let Some(found) = self.forbids.as_ref().and_then(|pattern| pattern.find(output)) {
            let shown: String = found.as_str().chars().take(80).collect();
            all.push(format!("it has what it must not have: `{shown}`"));
        }
        let n = output.trim().chars().count();
        if let Some(least) = self.min_chars.filter(|&least| n < least) {
            all.push(format!("it has {n} characters, at least {least} are asked for"));
        }
        if let Some(most) = self.max_chars.filter(|&most| n > most) {
            all.push(format!("it has {n} characters, at most {most} are allowed"));
        }
        all
    }
}

/// A regular expression; matching takes time in proportion to the text, whatever the pattern.
pub(super) fn pattern(source: &str) -> Result<Regex, String> {
    let built = regex::RegexBuilder::new(source).size_limit(PATTERN_BYTES).build();
    built.map_err(|error| error.to_string())
}

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
pub(super) fn words(text: &str) -> Vec<String> {
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

    use super::super::step::SchemaSpec;
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
    fn texts_have_form_and_length() {
        let rules = Rules {
            matches: Some(pattern("^Dear ").unwrap()),
            forbids: Some(pattern("(?i)as an ai").unwrap()),
            min_chars: Some(12),
            max_chars: Some(20),
            ..Rules::default()
        };
        assert!(rules.objections("Dear Anna, hello.", None).is_empty());
        let objections = rules.objections("As an AI", None).join("\n");
        expect![[r#"
            it does not match `^Dear `
            it has what it must not have: `As an AI`
            it has 8 characters, at least 12 are asked for"#]]
        .assert_eq(&objections);
        assert!(pattern("(").is_err());
        assert!(pattern("(a{1000}){1000}").unwrap_err().contains("size limit"));
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
