//! Pipelines whose experts are on servers: what a file may say of them, and a run over two generations of servers.

use std::path::Path;

use expect_test::{Expect, expect};
use runner::pipeline::{Event, Pipeline, PipelineSpec, RunOptions, run};
use runner::{Error, Registry, Residency};
use serde_json::{Value, json};

use crate::double::{Asked, Double};
use crate::engine::engine;

pub fn checked(spec: Value, directory: &Path) -> Result<Pipeline, Error> {
    let spec: PipelineSpec = serde_json::from_value(spec).unwrap();
    spec.check("letters", directory, &Registry::at(directory.join("experts")))
}

fn refused(expert: Value, local: bool, expected: Expect) {
    let directory = tempfile::tempdir().unwrap();
    let spec = json!({
        "local": local,
        "experts": {"a": expert},
        "steps": [{"name": "s", "expert": "a", "prompt": "{{ input }}"}],
    });
    let error = checked(spec, directory.path()).map(drop).unwrap_err();
    expected.assert_eq(&error.to_string());
}

#[test]
fn an_expert_has_one_source_and_the_keys_of_it() {
    refused(
        json!({"file": "a.gguf", "ollama": "poet"}),
        false,
        expect!["pipeline `letters`: experts.a: give exactly one of `file`, `expert`, `ollama` and `openai`"],
    );
    refused(
        json!({"openai": "poet"}),
        false,
        expect![[
            r#"pipeline `letters`: experts.a.url: an `openai` model needs one, as in "http://127.0.0.1:8000/v1""#
        ]],
    );
    refused(
        json!({"ollama": "poet", "key_env": "KEY"}),
        false,
        expect!["pipeline `letters`: experts.a.key_env: it belongs to an expert of `openai`"],
    );
    refused(
        json!({"openai": "m", "url": "http://127.0.0.1:1/v1", "kv_type": "q8_0"}),
        false,
        expect!["pipeline `letters`: experts.a.kv_type: is fixed by the server"],
    );
    refused(
        json!({"openai": "m", "url": "http://example.com/v1", "key_env": "KEY"}),
        false,
        expect![
            "pipeline `letters`: experts.a.url: the key would be sent in the open to http://example.com/v1: use https"
        ],
    );
}

#[test]
fn a_local_pipeline_goes_nowhere_else() {
    refused(
        json!({"openai": "m", "url": "https://api.example.com/v1"}),
        true,
        expect![
            "pipeline `letters`: experts.a.url: https://api.example.com/v1 is not this machine, and the pipeline says `local = true`"
        ],
    );
    refused(
        json!({"ollama": "m", "host": "192.0.2.1"}),
        true,
        expect![
            "pipeline `letters`: experts.a.host: http://192.0.2.1:11434 is not this machine, and the pipeline says `local = true`"
        ],
    );
    let directory = tempfile::tempdir().unwrap();
    let loopback = json!({
        "local": true,
        "experts": {"a": {"openai": "m", "url": "http://localhost:1/v1"}},
        "steps": [{"name": "s", "expert": "a", "prompt": "{{ input }}"}],
    });
    checked(loopback, directory.path()).unwrap();
}

#[test]
fn a_context_that_would_reload_is_refused() {
    let double = Double::start("0.30.0");
    double.hold("poet:latest");
    let directory = tempfile::tempdir().unwrap();
    let spec = |num_ctx: u32| {
        json!({
            "experts": {"a": {"ollama": "poet", "host": double.url, "num_ctx": num_ctx}},
            "steps": [{"name": "s", "expert": "a", "prompt": "{{ input }}"}],
        })
    };
    checked(spec(512), directory.path()).unwrap();
    let error = checked(spec(1024), directory.path()).map(drop).unwrap_err().to_string();
    assert!(
        error.contains("experts.a.num_ctx: `poet:latest` has num_ctx 512 among its parameters"),
        "{error}"
    );
}

#[test]
fn experts_of_two_servers_and_a_file_take_turns() {
    let directory = tempfile::tempdir().unwrap();
    crate::tiny::write(&directory.path().join("here.gguf"), &crate::tiny::Says::Once(&["fine"]));
    let (old, new) = (Double::start("0.24.0"), Double::start("0.34.1"));
    old.hold("tidy:latest");
    new.hold("poet:latest");
    let spec = json!({
        "experts": {
            "tidy": {"ollama": "tidy", "host": old.url, "system": "Be tidy."},
            "poet": {"ollama": "poet", "host": new.url},
            "here": {"file": "here.gguf", "num_thread": 1},
        },
        "steps": [
            {"name": "clean", "expert": "tidy", "map": "lines", "prompt": "{{ item }}"},
            {"name": "sing", "expert": "poet", "prompt": "<{{ steps.clean.output }}>"},
            {"name": "judge", "expert": "here", "prompt": "{{ steps.sing.output }}"},
        ],
    });
    let pipeline = checked(spec, directory.path()).unwrap();
    let options = RunOptions { runs: directory.path().join("runs"), ..RunOptions::default() };
    let mut residency = Residency::new(Box::new(engine()));
    let mut events = Vec::new();
    let outcome = run(&pipeline, "a\nb\nc", &options, &mut residency, &|| false, &mut |event: Event| {
        events.push(event)
    })
    .unwrap();
    let outputs: Vec<&str> = outcome.results.iter().map(|result| result.output.as_str()).collect();
    assert_eq!(outputs, ["(a)", "(b)", "(c)", "(<(a)>)", "(<(b)>)", "(<(c)>)", "fine", "fine", "fine"]);
    assert_eq!(outcome.n_loads, 3, "as many loads as experts");
    assert_eq!((old.count(Asked::Load), new.count(Asked::Load)), (1, 1));
    assert_eq!((old.count(Asked::Unload), new.count(Asked::Unload)), (1, 1));
    let inside = old.inside();
    let chat = inside.log.iter().find(|logged| logged.asked == Asked::Chat).unwrap();
    assert_eq!(chat.body["messages"][0], json!({"role": "system", "content": "Be tidy."}));
}
