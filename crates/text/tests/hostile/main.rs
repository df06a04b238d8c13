//! Chat templates with the right structure and lies in it: each renders or is refused, within bounds of time and memory.

#[path = "../../../formats/tests/hostile/counting.rs"]
mod counting;
#[path = "../../../formats/tests/hostile/fuzz/harness.rs"]
mod harness;
#[path = "../../../formats/tests/hostile/fuzz/liar.rs"]
mod liar;

use std::path::Path;

use harness::{Target, fuzz};
use liar::Liar;
use text::{ChatTemplate, Error, GenerationPrompt, Message};

/// How deep statements lie in statements.
const DEPTH: usize = 4;

/// Values and parts of them, as published templates name them.
const NAMES: [&str; 22] = [
    "messages",
    "message",
    "message.content",
    "message['role']",
    "messages[0].content",
    "messages[-1]",
    "messages[1:]",
    "messages[::-1]",
    "loop.index",
    "loop.first",
    "loop.previtem.role",
    "ns.found",
    "ns.x",
    "bos_token",
    "eos_token",
    "add_generation_prompt",
    "tools",
    "enable_thinking",
    "x",
    "none",
    "[1, 'a', {}]",
    "{'a': {'b': 1}}",
];
const LITERALS: [&str; 18] = [
    "'<|im_start|>'",
    "'user'",
    "'assistant'",
    "'\\n'",
    "''",
    "'</think>'",
    "0",
    "1",
    "-1",
    "3.5",
    "true",
    "false",
    "1000000000",
    "9223372036854775807",
    "'%99999999d'",
    "'%.99999999f'",
    "'{:>99999999}'",
    "'\"<&>\\\\'",
];
/// What a value is put through.
const CALLS: [&str; 34] = [
    "|trim",
    "|length",
    "|tojson",
    "|tojson(indent=4)",
    "|upper",
    "|string",
    "|list",
    "|first",
    "|last",
    "|join(', ')",
    "|default('d')",
    "|map(attribute='role')|list",
    "|selectattr('role', 'equalto', 'user')|list",
    "|rejectattr('role')|list",
    "|items",
    "|replace('a', 'aaaaaaaa')",
    "|indent(8)",
    "|batch(2)|list",
    ".split('\\n')",
    ".strip()",
    ".startswith('a')",
    ".rstrip('\\n')",
    ".get('x', 'y')",
    ".items()",
    "[0]",
    ".nothing",
    "|join('aaaaaaaa')",
    "|replace('', x)",
    "|format(1, 2)",
    "|tojson|tojson",
    ".format(1)",
    ".replace('<', bos_token)",
    "|escape",
    "*50",
];
/// What would take all time or memory, if it were let.
const GREEDY: [&str; 10] = [
    "ns",
    "[ns]",
    "'a' * 100000000",
    "messages * 900",
    "range(100000)|list|length",
    "'%99999999d'|format(1)",
    "'{:>99999999}'.format(1)",
    "ns.x|replace('a', 'aaaaaaaa')",
    "ns.x|tojson",
    "('9' * 8)|int * '-'",
];
const OPERATORS: [&str; 16] =
    ["+", "-", "*", "~", "/", "//", "%", "**", "==", "!=", "<", ">=", "in", "not in", "and", "or"];
const TESTS: [&str; 9] =
    ["defined", "not defined", "none", "string", "mapping", "iterable", "true", "number", "sequence"];

#[test]
fn any_template() {
    // The bound of all that is put out, twice while it grows, and what a small conversation costs.
    let allowed = |source_bytes| (640 << 20) + 256 * source_bytes;
    fuzz(&Target { make, open, look, allowed, kind, names_file: false });
}

/// Compiles a template and renders a conversation; the length of what comes of it.
fn open(path: &Path) -> Result<usize, Error> {
    let bytes = std::fs::read(path).unwrap();
    let source = String::from_utf8_lossy(&bytes);
    let template = ChatTemplate::from_source(&source, "<s>", "</s>")?;
    let conversation = [
        Message::new("system", "Be brief."),
        Message::new("user", "How much is 4 + 4? <|im_end|>"),
        Message::new("assistant", "<think>\nadd\n</think>\n\n8"),
        Message::new("user", "And 5 + 5?"),
    ];
    template.render(&conversation[..], GenerationPrompt::Add).map(|rendered| rendered.len())
}

fn look(rendered_bytes: &usize, _: &mut Liar) {
    assert!(*rendered_bytes <= 32 << 20, "{rendered_bytes} bytes");
}

/// Errors by the first words of what the engine says.
fn kind(error: &Error) -> String {
    let text = error.to_string();
    let words: Vec<&str> = text.split(|c: char| !c.is_alphabetic()).filter(|word| !word.is_empty()).collect();
    format!("{}: {}", harness::variant(error), words[..words.len().min(4)].join(" "))
}

fn make(liar: &mut Liar) -> Vec<u8> {
    let mut source = String::new();
    if liar.once_in(2) {
        source += "{%- set ns = namespace(x='', found=false) -%}";
    }
    if liar.once_in(4) {
        source += &format!("{{% macro say(x) %}}{}{{% endmacro %}}", body(liar, 1));
    }
    source += &body(liar, 0);
    let mut source = source.into_bytes();
    liar.damage(&mut source);
    source
}

fn body(liar: &mut Liar, depth: usize) -> String {
    let n = 1 + liar.below(3);
    (0..n).map(|_| statement(liar, depth)).collect()
}

fn statement(liar: &mut Liar, depth: usize) -> String {
    let dash = if liar.once_in(2) { "-" } else { "" };
    let kind = if depth >= DEPTH { liar.below(4) } else { liar.below(10) };
    match kind {
        0 => (*liar.pick(&["<|im_start|>", "\n", "text {# comment #}", "é", "{{ '{{' }}", "  "])).to_owned(),
        1 | 2 => format!("{{{{{dash} {} }}}}", expression(liar, 0)),
        3 => {
            let name = *liar.pick(&["x", "ns.x", "message", "ns.found"]);
            format!("{{%{dash} set {name} = {} %}}", expression(liar, 0))
        }
        4 | 5 => {
            let over = if liar.lies() { expression(liar, 0) } else { "messages".to_owned() };
            format!("{{%{dash} for message in {over} {dash}%}}{}{{% endfor %}}", body(liar, depth + 1))
        }
        6 | 7 => {
            let other = if liar.once_in(2) {
                format!("{{% else %}}{}", body(liar, depth + 1))
            } else {
                String::new()
            };
            format!(
                "{{%{dash} if {} %}}{}{other}{{%{dash} endif %}}",
                expression(liar, 0),
                body(liar, depth + 1)
            )
        }
        8 => format!("{{% generation %}}{}{{% endgeneration %}}", body(liar, depth + 1)),
        _ => {
            let call = *liar.pick(&[
                "say('a')",
                "raise_exception('no')",
                "strftime_now('%d %b %Y')",
                "range(10)|list|length",
                "range(3)|list",
                "namespace(a=1).a if x is mapping else ''",
                "cycler('a').next()",
                "dict(a=1)",
                "say(say('b'))",
            ]);
            // Refusing is rarely the first thing that a template does.
            let call = if call.starts_with("raise") && !liar.lies() { "''" } else { call };
            format!("{{{{ {call} }}}}")
        }
    }
}

fn expression(liar: &mut Liar, depth: usize) -> String {
    if liar.lies() && liar.once_in(4) {
        return (*liar.pick(&GREEDY)).to_owned();
    }
    let kind = if depth > 3 { liar.below(2) } else { liar.below(8) };
    match kind {
        0 => (*liar.pick(&LITERALS)).to_owned(),
        1 => (*liar.pick(&NAMES)).to_owned(),
        2 | 3 => format!("{}{}", liar.pick(&NAMES), liar.pick(&CALLS)),
        4 => format!("({}){}", expression(liar, depth + 1), liar.pick(&CALLS)),
        5 => {
            // What is added is mostly of one kind, else nothing renders.
            let operator =
                if liar.lies() { *liar.pick(&OPERATORS) } else { *liar.pick(&["~", "==", "and", "or"]) };
            format!("({} {operator} {})", expression(liar, depth + 1), expression(liar, depth + 1))
        }
        6 => format!("({} is {})", liar.pick(&NAMES), liar.pick(&TESTS)),
        _ => format!(
            "({} if {} else {})",
            expression(liar, depth + 1),
            expression(liar, depth + 1),
            liar.pick(&NAMES)
        ),
    }
}
