//! Published chat templates, rendered as transformers renders them.
//!
//! Goldens: scripts/golden/text_templates.py.

mod shared;

use serde_json::Value;
use sha2::{Digest, Sha256};
use shared::asset;
use text::{ChatTemplate, GenerationPrompt, Message};

const GOLDEN: &str = include_str!("golden/templates.json");

/// Templates and conversations in which this engine is known to differ.
const KNOWN: &[(&str, &str)] = &[
    // They iterate over `tools` that are None, which Python refuses and this engine takes for no tools.
    ("llama.cpp/CohereForAI-c4ai-command-r-plus-tool_use", ""),
    ("llama.cpp/NousResearch-Hermes-", ""),
    // The same with the content of a message that is None.
    ("trl/lfm2_2_5", "tool"),
    ("trl/qwen2_5_vl", "tool"),
    ("trl/qwen3_vl", "tool"),
    // `safe` makes jinja2 escape what is joined to it (`&#34;name&#34;`), which no model was trained on.
    ("mistral-common/", "tool"),
];

fn is_known(name: &str, title: &str) -> bool {
    let name = name.trim_start_matches("chat-templates/");
    KNOWN.iter().any(|(template, conversation)| name.starts_with(template) && title.starts_with(conversation))
}

fn source(name: &str) -> Option<String> {
    let text = std::fs::read_to_string(asset(name)?).unwrap();
    if name.ends_with(".jinja") {
        return Some(text);
    }
    let config: Value = serde_json::from_str(&text).unwrap();
    Some(config["chat_template"].as_str().unwrap().to_owned())
}

fn digest(text: &str) -> String {
    Sha256::digest(text).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn published_templates() {
    let golden: Value = serde_json::from_str(GOLDEN).unwrap();
    let (mut checked, mut wrong) = (0, Vec::new());
    for (name, cases) in golden["rendered"].as_object().unwrap() {
        let Some(source) = source(name) else { continue };
        let template =
            ChatTemplate::from_source(&source, "<s>", "</s>").map(|t| t.at(golden["now"].as_i64().unwrap()));
        for (title, expected) in cases.as_object().unwrap() {
            let conversation = &golden["conversations"][title.trim_end_matches(" +")];
            let messages: Vec<Message> = serde_json::from_value(conversation.clone()).unwrap();
            let prompt = if title.ends_with(" +") { GenerationPrompt::Add } else { GenerationPrompt::Omit };
            let rendered = template.as_ref().map(|template| template.render(&messages, prompt));
            let (got, shown) = match rendered {
                Ok(Ok(text)) => (digest(&text), text),
                Ok(Err(error)) => ("error".to_owned(), error.to_string()),
                Err(error) => ("error".to_owned(), error.to_string()),
            };
            checked += 1;
            if got != expected.as_str().unwrap() && !is_known(name, title) {
                wrong.push(format!(
                    "{name} · {title} · {} · {shown:?}",
                    if expected == "error" { "raises" } else { "renders" }
                ));
            }
        }
    }
    let is_there = asset("chat-templates").is_some();
    assert!(checked > 1000 || !is_there, "only {checked} renderings");
    assert!(wrong.is_empty(), "{} of {checked} differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[track_caller]
fn fails(source: &str) -> String {
    let messages = [Message::new("user", "hi")];
    let template = ChatTemplate::from_source(source, "", "").unwrap();
    template.render(&messages, GenerationPrompt::Omit).unwrap_err().to_string()
}

#[test]
fn templates_say_why_they_fail() {
    assert_eq!(
        fails("{{ raise_exception('only tools: ' + messages[0].role) }}"),
        "chat template: only tools: user"
    );
    let broken = ChatTemplate::from_source("{% for %}", "", "").unwrap_err().to_string();
    assert!(broken.starts_with("chat template: line 1: syntax error"), "{broken}");
}

#[test]
fn templates_are_bounded() {
    assert!(
        fails("{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}")
            .contains("fuel")
    );
    let flood = "{% for i in range(100000) %}{{ 'abcdefghij' * 100 }}{% endfor %}";
    assert!(fails(flood).contains("grows beyond"), "{}", fails(flood));
    assert!(fails("{{ 'a\nb' | indent(2000000000) }}").contains("indentation"));
    assert!(fails("{{ {'a': 1} | tojson(indent=2000000000) }}").contains("indentation"));
    assert!(fails("{{ '{:2000000000}'.format(1) }}").contains("format"));
    assert!(ChatTemplate::from_source(&" ".repeat(1 << 20), "", "").is_err());
}

#[test]
fn text_that_doubles_is_refused() {
    for source in [
        &format!("{{% set x = 'ab' %}}{}", "{% set x = x ~ x %}".repeat(50)),
        "{% for m in messages %}{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
        "{% set ns = namespace(a='a', b='b') %}{% for i in range(99) %}{% set ns.a = ns.a ~ ns.b %}{% set ns.b = ns.a %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x.replace('a', ns.x) %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] | join(',') %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set y %}{{ ns.x }}{{ ns.x }}{% endset %}{% set ns.x = y %}{% endfor %}",
        "{% macro twice(x) %}{{ x }}{{ x }}{% endmacro %}{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = twice(ns.x) %}{% endfor %}",
        "{% macro grow(n, x) %}{% if n %}{{ grow(n - 1, x ~ x) }}{% endif %}{% endmacro %}{{ grow(60, 'ab') }}",
        "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% if i %}{% set ns.x = ns.x ~ ns.x %}{% else %}{% set ns.x = '' %}{% endif %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x | replace('a', 'aaaa') %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = ns.x | join('ab') %}{% endfor %}",
        "{% set ns = namespace(x='\"') %}{% for i in range(60) %}{% set ns.x = ns.x | tojson %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x = (ns.x | trim) | batch(2) | list %}{% endfor %}",
        "{% set ns = namespace(x='ab') %}{% for i in range(60) %}{% set ns.x %}{% filter replace('a', 'aaaa') %}{{ ns.x }}{% endfilter %}{% endset %}{% endfor %}",
    ] {
        let refused = ChatTemplate::from_source(source, "", "").map(|_| source).unwrap_err().to_string();
        assert!(refused.contains("grows without bound"), "{source}: {refused}");
    }
    for (source, reason) in [
        ("{{ 'a' * 100000000 }}", "a product with `*`"),
        ("{% macro unused() %}{{ 'a' * 100000000 }}{% endmacro %}", "a product with `*`"),
        ("{{ '-' * ('100000000' | int) }}", "a product with `*`"),
        ("{% set ns = namespace(x='') %}{% set ns.x = ns %}{{ ns.x }}", "`ns` is used as a whole"),
        ("{% set ns = namespace(x='') %}{% set ns.x = [ns] %}{{ ns.x }}", "`ns` is used as a whole"),
    ] {
        let refused = ChatTemplate::from_source(source, "", "").map(|_| source).unwrap_err().to_string();
        assert!(refused.contains(reason), "{source}: {refused}");
    }
    ChatTemplate::from_source("{{ '-' * 80 }}{{ '    ' * (messages | length) }}", "", "").unwrap();
    let grows_with_messages = "{% set ns = namespace(a='', b='') %}{% for m in messages %}{% set ns.a = ns.a ~ m.content ~ '\\n' %}\
        {% set ns.b = ns.b ~ ns.a if m.role == 'user' else ns.b %}{% endfor %}{{ ns.b }}";
    ChatTemplate::from_source(grows_with_messages, "", "").unwrap();
}
