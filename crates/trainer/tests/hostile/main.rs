//! Data files with the right structure and lies in it: every row is read or refused by file and line.

#[path = "../../../formats/tests/hostile/counting.rs"]
mod counting;
#[path = "../../../formats/tests/hostile/fuzz/harness.rs"]
mod harness;
#[path = "../../../formats/tests/hostile/fuzz/liar.rs"]
mod liar;

use std::collections::BTreeMap;
use std::path::Path;

use harness::{Target, fuzz};
use liar::Liar;
use trainer::Error;
use trainer::data::reader::RowReader;
use trainer::data::row::Row;
use trainer::options::{Format, Source};

/// What a value may be instead.
const ODD: [&str; 16] = [
    "null",
    "1",
    "-0.5",
    "1e400",
    "true",
    "[]",
    "{}",
    "\"\"",
    "\"\\ud800\"",
    "\"<|im_end|>\\u0000\"",
    "[{}]",
    "[null]",
    "[[[[[[[[[[[[[[[[\"x\"]]]]]]]]]]]]]]]]",
    "{\"a\":{\"a\":{\"a\":{\"a\":1}}}}",
    "\"\u{fffe}\u{202e}\"",
    "18446744073709551616",
];
const ROLES: [&str; 7] = ["user", "assistant", "system", "tool", "human", "gpt", "narrator"];
const TEXTS: [&str; 6] =
    ["\"hello\"", "\"4 + 4 is 8.\"", "\"é\\n\\t\\\"\"", "\"\"", "\" \"", "\"<think>a</think> b\""];

#[test]
fn any_rows() {
    // A row costs its values, which are larger than their text by a small factor (an empty object is 3 bytes of it).
    let allowed = |file_bytes| 96 * file_bytes + (1 << 20);
    fuzz(&Target { make, open, look: |_, _| {}, allowed, kind, names_file: true });
}

/// All rows of a file, read as each format and by the row's own keys.
fn open(path: &Path) -> Result<usize, Error> {
    let mut n_rows = 0;
    let fields = BTreeMap::from([("prompt".to_owned(), "question".to_owned())]);
    let named = Source { format: Format::PromptCompletion, fields, ..Source::new(path) };
    let by_keys = Source::new(path);
    let mut reader = RowReader::open(path)?;
    while let Some((place, bytes)) = reader.next_row()? {
        let _ = Row::parse(&named, place, bytes);
        Row::parse(&by_keys, place, bytes)?;
        n_rows += 1;
    }
    Ok(n_rows)
}

/// Errors by their variant, rows by what is said of them but for names and numbers.
fn kind(error: &Error) -> String {
    let Error::Row { reason, .. } = error else { return harness::variant(error) };
    let words = reason.split('`').step_by(2).collect::<Vec<_>>().join("…");
    words.chars().filter(|c| !c.is_ascii_digit()).take(40).collect()
}

fn make(liar: &mut Liar) -> Vec<u8> {
    let n_rows = if liar.once_in(200) { 50 } else { liar.below(4) };
    // Files hold rows of one kind, but for lies.
    let kind = liar.below(6);
    let rows: Vec<String> = (0..n_rows)
        .map(|_| {
            let kind = if liar.lies() { liar.below(6) } else { kind };
            row(liar, kind)
        })
        .collect();
    let mut file = match liar.below(4) {
        0 => format!("[{}]", rows.join(",\n")),
        1 => rows.join("\r\n"),
        _ => rows.iter().map(|row| format!("{row}\n")).collect(),
    };
    if liar.once_in(20) {
        file.insert(0, '\u{feff}');
    }
    let mut file = file.into_bytes();
    liar.damage(&mut file);
    file
}

fn row(liar: &mut Liar, kind: usize) -> String {
    let mut fields = match kind {
        0 => vec![("messages", messages(liar, "role", "content"))],
        1 => vec![("conversations", messages(liar, "from", "value")), ("system", text(liar))],
        2 => {
            let history = format!("[[{},{}]]", text(liar), text(liar));
            let history = odd_or(liar, history);
            vec![
                ("instruction", text(liar)),
                ("input", text(liar)),
                ("output", text(liar)),
                ("history", history),
            ]
        }
        3 => vec![("prompt", text_or_messages(liar)), ("completion", text_or_messages(liar))],
        4 => vec![("text", text(liar))],
        _ => vec![
            ("prompt", text_or_messages(liar)),
            ("chosen", text_or_messages(liar)),
            ("rejected", text_or_messages(liar)),
        ],
    };
    if liar.once_in(4) {
        fields.push(("tools", tools(liar)));
    }
    while liar.lies() {
        let name =
            *liar.pick(&["messages", "text", "weight", "question", "x", "", "chosen", "tools", "content"]);
        fields.push((name, odd(liar)));
    }
    while liar.lies() && !fields.is_empty() {
        fields.remove(liar.below(fields.len()));
    }
    object(&fields)
}

fn messages(liar: &mut Liar, role: &str, content: &str) -> String {
    let n = if liar.once_in(100) { 200 } else { 1 + liar.below(5) };
    let all: Vec<String> = (0..n)
        .map(|at| {
            let usual = if at % 2 == 0 { "user" } else { "assistant" };
            let who = if liar.lies() { *liar.pick(&ROLES) } else { usual };
            let mut fields = vec![(role, format!("\"{who}\"")), (content, text(liar))];
            if liar.once_in(8) {
                fields.push(("weight", odd_or(liar, "0.5".into())));
            }
            if liar.once_in(8) {
                fields.push(("tool_calls", calls(liar)));
            }
            while liar.lies() && !fields.is_empty() {
                let at = liar.below(fields.len());
                if liar.once_in(2) { fields[at].1 = odd(liar) } else { drop(fields.remove(at)) }
            }
            object(&fields)
        })
        .collect();
    odd_or(liar, format!("[{}]", all.join(",")))
}

fn calls(liar: &mut Liar) -> String {
    let arguments = if liar.once_in(2) { "\"{\\\"a\\\":1}\"" } else { "{\"a\":1}" };
    let arguments = odd_or(liar, arguments.into());
    let function = format!("{{\"name\":{},\"arguments\":{arguments}}}", text(liar));
    let call = match liar.once_in(2) {
        true => format!("{{\"type\":\"function\",\"id\":\"1\",\"function\":{function}}}"),
        false => function,
    };
    odd_or(liar, format!("[{call}]"))
}

fn tools(liar: &mut Liar) -> String {
    let parameters = odd_or(liar, "{\"type\":\"object\",\"properties\":{}}".into());
    let function = format!("{{\"name\":{},\"parameters\":{parameters}}}", text(liar));
    odd_or(liar, format!("[{{\"type\":\"function\",\"function\":{function}}}]"))
}

fn text_or_messages(liar: &mut Liar) -> String {
    if liar.once_in(4) { messages(liar, "role", "content") } else { text(liar) }
}

fn text(liar: &mut Liar) -> String {
    if liar.lies() {
        return odd(liar);
    }
    if liar.once_in(500) {
        return format!("\"{}\"", "long ".repeat(5000));
    }
    (*liar.pick(&TEXTS)).to_owned()
}

fn odd(liar: &mut Liar) -> String {
    (*liar.pick(&ODD)).to_owned()
}

fn odd_or(liar: &mut Liar, truth: String) -> String {
    if liar.lies() { odd(liar) } else { truth }
}

fn object(fields: &[(&str, String)]) -> String {
    let fields: Vec<String> = fields.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
    format!("{{{}}}", fields.join(","))
}
