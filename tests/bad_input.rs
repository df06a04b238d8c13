//! Wrong input of every kind: a message that names file, place and way out, the right exit code, and nothing half-written.

mod harness;

use expect_test::{Expect, expect};
use harness::{Folder, recipe, root, tune};
use std::path::Path;

/// Trains by a recipe that is wrong somewhere; no run may come of it.
fn check_train(folder: &Folder, recipe_text: &str, expected: Expect) {
    let path = folder.write("wrong.toml", recipe_text);
    let run_dir = folder.text("run");
    let output = tune(&["train", &path, "--run-dir", &run_dir]).output().expect("tune");
    expected.assert_eq(&errors(&folder.shown(&output)));
    assert!(!folder.path("run/adapter").exists(), "an adapter was written");
    assert!(!folder.path("run/checkpoints").exists(), "a checkpoint was written");
}

/// The error, its hint and the exit code; what was reported before them is not the subject here.
fn errors(shown: &str) -> String {
    let from = shown.find("error").unwrap_or(0);
    shown[from..].to_owned()
}

fn row(text: &str) -> String {
    format!("{{\"messages\":[{{\"role\":\"user\",\"content\":\"{text}\"}},{{\"role\":\"assistant\",\"content\":\"yes\"}}]}}\n")
}

#[test]
fn recipes() {
    let folder = Folder::new();
    check_train(&folder, &recipe(&[("learning_rate", "lerning_rate = 1e-3")]), expect![[""]]);
    check_train(&folder, &recipe(&[("batch_size", "micro_batch_size = 4")]), expect![[""]]);
    check_train(&folder, &recipe(&[("batch_size", "batch_size = \"four\"")]), expect![[""]]);
    check_train(&folder, &recipe(&[("max_steps", "max_steps = 0")]), expect![[""]]);
    check_train(&folder, &recipe(&[("base", "base = \"recipes/pocket\"\nquant = \"q4_k_n\"")]), expect![[""]]);
    check_train(&folder, &recipe(&[("memory", "memory = \"9MB\""), ("reserve", "reserve = \"1MB\"")]), expect![[""]]);
    let output = tune(&["train", &folder.text("none.toml")]).output().expect("tune");
    expect![[""]].assert_eq(&errors(&folder.shown(&output)));
}

#[test]
fn bases() {
    let folder = Folder::new();
    check_train(&folder, &recipe(&[("base", "base = \"recipes/nothing\"")]), expect![[""]]);

    let base_line = |folder: &Folder| format!("base = \"{}\"", folder.text("base"));
    let base = folder.copy(&root().join("recipes/pocket"), "base");
    let weights = std::fs::read(base.join("model.safetensors")).expect("weights");
    std::fs::write(base.join("model.safetensors"), &weights[..weights.len() / 2]).expect("a truncated file");
    check_train(&folder, &recipe(&[("base", &base_line(&folder))]), expect![[""]]);
    std::fs::write(base.join("model.safetensors"), &weights).expect("the whole file");

    change(&base.join("config.json"), "\"intermediate_size\": 768", "\"intermediate_size\": 512");
    check_train(&folder, &recipe(&[("base", &base_line(&folder))]), expect![[""]]);
    change(&base.join("config.json"), "\"intermediate_size\": 512", "\"intermediate_size\": 768");

    change(&base.join("config.json"), "Qwen3ForCausalLM", "BertModel");
    check_train(&folder, &recipe(&[("base", &base_line(&folder))]), expect![[""]]);
    change(&base.join("config.json"), "BertModel", "Qwen3ForCausalLM");

    if let Some(other) = harness::shared("assets/models/Qwen3-0.6B/tokenizer.json") {
        std::fs::copy(other, base.join("tokenizer.json")).expect("another tokenizer");
        check_train(&folder, &recipe(&[("base", &base_line(&folder))]), expect![[""]]);
    }
}

fn change(path: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(path).expect("a text file");
    assert!(text.contains(from), "{} has no {from}", path.display());
    std::fs::write(path, text.replace(from, to)).expect("a changed file");
}

#[test]
fn datasets() {
    let folder = Folder::new();
    let mut check = |content: &str, expected: Expect| {
        let data = folder.write("data.jsonl", content);
        let line = format!("train = \"{data}\"");
        check_train(&folder, &recipe(&[("train =", &line)]), expected);
    };
    check("", expect![[""]]);
    check(&format!("{}{{\"messages\":[{{\"role\":\"user\",\"content\":\"hi\"}}]}}\n", row("a")), expect![[""]]);
    check(&format!("{}{{\"messages\":[\n", row("a")), expect![[""]]);
    check(&format!("{}{{\"colour\":\"red\"}}\n", row("a")), expect![[""]]);
    check(&format!("{}{}", row("a"), row(&"word ".repeat(400))), expect![[""]]);
}

#[test]
fn exports() {
    let folder = Folder::new();
    let check = |arguments: &[&str], expected: Expect| {
        let output = tune(arguments).output().expect("tune");
        expected.assert_eq(&errors(&folder.shown(&output)));
        assert!(!folder.path("out").exists() || std::fs::read_dir(folder.path("out")).expect("a folder").next().is_none());
    };
    let out = folder.text("out");
    check(&["export", "recipes/pocket", "--quant", "q4_k_n", "--out", &out], expect![[""]]);
    check(&["export", &folder.text("nothing"), "--out", &out], expect![[""]]);
    check(&["export", "datasets", "--out", &out], expect![[""]]);
}

#[test]
fn an_adapter_of_another_base_is_refused() {
    let folder = Folder::new();
    let recipe_path = folder.write("r.toml", recipe(&[]));
    let run = folder.text("run");
    let trained = tune(&["train", &recipe_path, "--run-dir", &run]).output().expect("tune");
    assert!(trained.status.success(), "{}", folder.shown(&trained));
    let other = folder.copy(&root().join("recipes/pocket"), "other");
    let mut weights = std::fs::read(other.join("model.safetensors")).expect("weights");
    let last = weights.len() - 1;
    weights[last] ^= 1;
    std::fs::write(other.join("model.safetensors"), weights).expect("another base");
    change(&folder.path("run/recipe.toml"), "recipes/pocket", &other.display().to_string());
    let output = tune(&["export", &run]).output().expect("tune");
    expect![[""]].assert_eq(&errors(&folder.shown(&output)));
    assert!(!folder.path("run/export").join("run-q4_k_m.gguf").exists());
}

#[test]
fn pipelines_and_ports() {
    let folder = Folder::new();
    let input = folder.write("in.txt", "hello\n");
    let pipeline = folder.write(
        "p.toml",
        "name = \"p\"\n[experts.a]\nfile = \"nowhere.gguf\"\n[[steps]]\nname = \"s\"\nexpert = \"b\"\nprompt = \"{{ input }}\"\n",
    );
    let output = tune(&["run", &pipeline, "--input", &input]).output().expect("tune");
    expect![[""]].assert_eq(&errors(&folder.shown(&output)));

    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let output = tune(&["serve", "--port", &port]).output().expect("tune");
    expect![[""]].assert_eq(&errors(&folder.shown(&output)).replace(&port, "PORT"));
}
