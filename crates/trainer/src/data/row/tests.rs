//! Rows of every format, and what is said of those that are none.

use std::collections::BTreeMap;

use expect_test::{Expect, expect};

use super::*;

fn parsed(source: &Source, row: &str) -> String {
    let place = Place { line: 7, offset: 0, bytes: row.len() as u32 };
    match Row::parse(source, place, row.as_bytes()) {
        Ok(Row::Text(text)) => format!("text {text:?}"),
        Ok(Row::Chat(chat)) => shown(&chat),
        Ok(Row::Preference(preference)) => {
            let [chosen, rejected] = preference.both().map(|all| said(&all.messages));
            format!("after {}: {chosen} > {rejected}", preference.prompt.messages.len())
        }
        Err(error) => error.to_string(),
    }
}

fn shown(chat: &Chat) -> String {
    let mut text = said(&chat.conversation.messages);
    if let Some(tools) = &chat.conversation.tools {
        text += &format!(" tools {tools}");
    }
    if !chat.weights.is_empty() {
        text += &format!(" weights {:?}", chat.weights);
    }
    if chat.learned_from > 0 {
        text += &format!(" from {}", chat.learned_from);
    }
    text
}

fn said(messages: &[Message]) -> String {
    let one = |message: &Message| {
        let extra = if message.extra.is_empty() {
            String::new()
        } else {
            serde_json::to_string(&message.extra).unwrap()
        };
        format!("{}:{}{extra}", message.role, message.content)
    };
    messages.iter().map(one).collect::<Vec<_>>().join(" | ")
}

fn check(row: &str, expected: Expect) {
    expected.assert_eq(&parsed(&Source::new("x.jsonl"), row));
}

fn check_as(format: Format, fields: &[(&str, &str)], row: &str, expected: Expect) {
    let own = |(key, name): &(&str, &str)| ((*key).to_owned(), (*name).to_owned());
    let fields: BTreeMap<String, String> = fields.iter().map(own).collect();
    expected.assert_eq(&parsed(&Source { format, fields, ..Source::new("x.jsonl") }, row));
}

#[test]
fn formats_are_told_apart_by_their_keys() {
    check(
        r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"b","weight":0.5}]}"#,
        expect!["user:a | assistant:b weights [1.0, 0.5]"],
    );
    check(r#"{"text":"once","id":3}"#, expect![[r#"text "once""#]]);
    check(
        r#"{"conversations":[{"from":"human","value":"a"},{"from":"gpt","value":"b"}],"system":"s","tools":""}"#,
        expect!["system:s | user:a | assistant:b"],
    );
    check(
        r#"{"instruction":"a","input":"b","output":"c"}"#,
        expect![[r#"
        user:a
        b | assistant:c"#]],
    );
    check(
        r#"{"instruction":"a","input":"","output":"c","system":"s","history":[["q","r"]]}"#,
        expect!["system:s | user:q | assistant:r | user:a | assistant:c"],
    );
    check(r#"{"prompt":"a","completion":"b"}"#, expect!["user:a | assistant:b from 1"]);
    check(
        r#"{"prompt":[{"role":"user","content":"a"},{"role":"assistant","content":"b"},{"role":"user","content":"c"}],"completion":[{"role":"assistant","content":"d"}]}"#,
        expect!["user:a | assistant:b | user:c | assistant:d from 3"],
    );
}

#[test]
fn preferences_say_what_both_answer_in_any_of_the_known_ways() {
    check(
        r#"{"prompt":"p","chosen":"c","rejected":"r"}"#,
        expect!["after 1: user:p | assistant:c > user:p | assistant:r"],
    );
    check(
        r#"{"conversations":[{"from":"human","value":"p"}],"chosen":{"from":"gpt","value":"c"},"rejected":{"from":"gpt","value":"r"}}"#,
        expect!["after 1: user:p | assistant:c > user:p | assistant:r"],
    );
    let whole =
        |answer| format!(r#"[{{"role":"user","content":"p"}},{{"role":"assistant","content":"{answer}"}}]"#);
    check(
        &format!(r#"{{"chosen":{},"rejected":{}}}"#, whole("c"), whole("r")),
        expect!["after 1: user:p | assistant:c > user:p | assistant:r"],
    );
    check(
        &format!(r#"{{"prompt":"p","chosen":{},"rejected":{}}}"#, whole("c"), whole("r")),
        expect!["after 1: user:p | assistant:c > user:p | assistant:r"],
    );
    check(
        r#"{"instruction":"p","chosen":"c","rejected":"r"}"#,
        expect!["after 1: user:p | assistant:c > user:p | assistant:r"],
    );
    check(
        r#"{"prompt":"p","chosen":"c","rejected":"c"}"#,
        expect!["x.jsonl:7: `chosen` and `rejected` are the same"],
    );
    check(
        r#"{"chosen":"c","rejected":"r"}"#,
        expect![
            "x.jsonl:7: the row does not say what both answer: there is no `prompt`, and they begin differently"
        ],
    );
}

#[test]
fn calls_of_tools_come_in_the_form_that_templates_expect() {
    check(
        r#"{"conversations":[{"from":"human","value":"a"},{"from":"function_call","value":"{\"name\":\"f\",\"arguments\":{\"x\":1}}"},{"from":"observation","value":"2"},{"from":"gpt","value":"b"}],"tools":"[{\"name\":\"f\"}]"}"#,
        expect![[
            r#"user:a | assistant:{"tool_calls":[{"type":"function","function":{"name":"f","arguments":{"x":1}}}]} | tool:2 | assistant:b tools [{"type":"function","function":{"name":"f"}}]"#
        ]],
    );
    check(
        r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":null,"tool_calls":[{"type":"function","function":{"name":"f","arguments":{}}}]}],"tools":[{"type":"function","function":{"name":"f"}}]}"#,
        expect![[
            r#"user:a | assistant:{"tool_calls":[{"type":"function","function":{"name":"f","arguments":{}}}]} tools [{"type":"function","function":{"name":"f"}}]"#
        ]],
    );
    check(
        r#"{"conversations":[{"from":"human","value":"a"},{"from":"function_call","value":"call it"}]}"#,
        expect![
            "x.jsonl:7: message 2 calls a tool with something that is not JSON: expected value at line 1 column 1"
        ],
    );
    check(
        r#"{"messages":[{"role":"user","content":"a"}],"tools":"{"}"#,
        expect!["x.jsonl:7: `tools` holds broken JSON: EOF while parsing an object at line 1 column 1"],
    );
}

#[test]
fn other_keys_are_found_where_the_recipe_names_them() {
    let question = r#"{"question":"a","answer":"b"}"#;
    check(question, expect!["x.jsonl:7: the row's keys tell of no known format: `question`, `answer`"]);
    let names = [("prompt", "question"), ("completion", "answer")];
    check_as(Format::Auto, &names, question, expect!["user:a | assistant:b from 1"]);
    check_as(
        Format::PromptCompletion,
        &names,
        r#"{"question":"a"}"#,
        expect!["x.jsonl:7: the row has no `answer`"],
    );
    check_as(
        Format::Messages,
        &[("weight", "loss_weight")],
        r#"{"messages":[{"role":"user","content":[{"type":"text","value":"hi"}],"loss_weight":0.0},{"role":"assistant","content":[{"type":"text","text":"b"}],"loss_weight":1.0}]}"#,
        expect!["user:hi | assistant:b weights [0.0, 1.0]"],
    );
    let both = r#"{"instruction":"a","output":"b","text":"c"}"#;
    check(
        both,
        expect!["x.jsonl:7: the row has both `instruction` and `output` and `text`: say which with `format`"],
    );
    check_as(Format::Alpaca, &[], both, expect!["user:a | assistant:b"]);
    check_as(Format::Text, &[], both, expect![[r#"text "c""#]]);
}

#[test]
fn what_is_wrong_is_said_with_its_line() {
    check(r#"{"text":"#, expect!["x.jsonl:7: broken JSON at column 8: EOF while parsing a value"]);
    check("{\n\"text\": }", expect!["x.jsonl:8: broken JSON at column 9: expected value"]);
    check("[]", expect!["x.jsonl:7: expected an object, found a list"]);
    check("{}", expect!["x.jsonl:7: the row is empty"]);
    check(r#"{"a":1,"b":2}"#, expect!["x.jsonl:7: the row's keys tell of no known format: `a`, `b`"]);
    check(r#"{"text":4}"#, expect!["x.jsonl:7: `text` is a number, expected a string"]);
    check(r#"{"messages":[]}"#, expect!["x.jsonl:7: `messages` is empty"]);
    check(r#"{"messages":"x"}"#, expect!["x.jsonl:7: `messages` is a string, expected a list"]);
    check(r#"{"messages":[{"role":"user"}]}"#, expect!["x.jsonl:7: message 1 has no `content`"]);
    check(
        r#"{"messages":[{"role":"user","content":3}]}"#,
        expect!["x.jsonl:7: message 1 has a `content` that is a number, expected a string"],
    );
    check(
        r#"{"messages":[{"role":"user","content":[{"type":"image_url","image_url":"x"}]}]}"#,
        expect!["x.jsonl:7: message 1 has a part of `content` that is `image_url`; only text can be learned"],
    );
    check(
        r#"{"messages":[{"role":"assistant","content":"a","weight":-1}]}"#,
        expect!["x.jsonl:7: message 1 has a `weight` that is not between 0 and 1000"],
    );
    check(
        r#"{"messages":[{"role":"assistant","content":null}]}"#,
        expect!["x.jsonl:7: message 1 has no `content`"],
    );
    check(
        r#"{"messages":[{"role":"user","content":"a"}]}"#,
        expect!["x.jsonl:7: the conversation has no assistant turn"],
    );
    check(
        r#"{"conversations":[{"from":"narrator","value":"a"}]}"#,
        expect![
            "x.jsonl:7: message 1 is from `narrator`; known are human, gpt, system, function_call, observation"
        ],
    );
}
