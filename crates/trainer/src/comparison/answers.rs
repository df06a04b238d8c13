//! How good an answer is beside the reference: exactly it, the same JSON, or how much of it.

use serde::Serialize;
use serde_json::Value;

/// An answer beside its reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Marks {
    /// Equal to the reference but for white space around both.
    pub exact: bool,
    /// Ended by itself rather than by the limit.
    pub ended: bool,
    /// Where the reference is a JSON object or list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub json: Option<JsonMarks>,
}

/// An answer that was to be JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct JsonMarks {
    /// It is JSON, with nothing around it.
    pub valid: bool,
    /// The same value; objects in any order, 1 and 1.0 the same.
    pub equal: bool,
    /// Where the reference is an object.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<ObjectMarks>,
}

/// An answer that was to be a JSON object.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct ObjectMarks {
    /// It has the keys of the reference and no others.
    pub same_keys: bool,
    /// Fields of the reference that it has with the same value.
    pub right_fields: usize,
    /// Fields of the reference.
    pub fields: usize,
}

impl Marks {
    /// Judges an answer.
    pub fn of(answer: &str, expected: &str, ended: bool) -> Marks {
        let (answer, expected) = (answer.trim(), expected.trim());
        Marks { exact: answer == expected, ended, json: json(answer, expected) }
    }
}

fn json(answer: &str, expected: &str) -> Option<JsonMarks> {
    let expected: Value = serde_json::from_str(expected).ok()?;
    // Words and numbers are JSON by accident.
    if !expected.is_object() && !expected.is_array() {
        return None;
    }
    let answer: Option<Value> = serde_json::from_str(answer).ok();
    let object = expected.as_object().map(|fields| {
        let found = answer.as_ref().and_then(Value::as_object);
        let is_right = |(key, value): &(&String, &Value)| {
            found.and_then(|found| found.get(*key)).is_some_and(|v| same(v, value))
        };
        ObjectMarks {
            same_keys: found.is_some_and(|found| {
                found.len() == fields.len() && fields.keys().all(|key| found.contains_key(key))
            }),
            right_fields: fields.iter().filter(is_right).count(),
            fields: fields.len(),
        }
    });
    let equal = answer.as_ref().is_some_and(|answer| same(answer, &expected));
    Some(JsonMarks { valid: answer.is_some(), equal, object })
}

/// Equal as values: numbers by what they are, not by how they are written.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a == b || a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        _ => a == b,
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(answer: &str, expected: &str, marks: Expect) {
        marks.assert_eq(&serde_json::to_string(&Marks::of(answer, expected, true)).unwrap());
    }

    #[test]
    fn words_are_compared_and_json_is_understood() {
        check(" yes\n", "yes", expect![[r#"{"exact":true,"ended":true}"#]]);
        check("42", "43", expect![[r#"{"exact":false,"ended":true}"#]]);
        check(
            r#"{"b": 2.0, "a": "x"}"#,
            r#"{"a":"x","b":2}"#,
            expect![[
                r#"{"exact":false,"ended":true,"json":{"valid":true,"equal":true,"object":{"same_keys":true,"right_fields":2,"fields":2}}}"#
            ]],
        );
        check(
            r#"{"a":"y","b":[1],"c":0}"#,
            r#"{"a":"x","b":[1]}"#,
            expect![[
                r#"{"exact":false,"ended":true,"json":{"valid":true,"equal":false,"object":{"same_keys":false,"right_fields":1,"fields":2}}}"#
            ]],
        );
        check(
            "Sure: [1]",
            "[1]",
            expect![[r#"{"exact":false,"ended":true,"json":{"valid":false,"equal":false}}"#]],
        );
    }
}
