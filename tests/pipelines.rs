//! Pipelines from the command line, on an export of the base that ships with the project.

mod harness;

use harness::{Folder, root, tune};
use serde_json::Value;
use std::path::Path;
use std::process::Output;

/// A folder with an export of the shipped base, and a pipeline.
struct Desk {
    folder: Folder,
}

impl Desk {
    fn new(experts: &[&str], steps: &str) -> Desk {
        let folder = Folder::new();
        let out = folder.text("export");
        let export = tune(&["export", "recipes/pocket", "--quant", "q8_0", "--out", &out]).output();
        let export = export.expect("tune");
        assert!(export.status.success(), "{}", folder.shown(&export));
        let experts: String = experts
            .iter()
            .map(|name| format!("[experts.{name}]\nfile = \"export/pocket-q8_0.gguf\"\nnum_ctx = 256\n"))
            .collect();
        folder.write("p.toml", format!("{experts}{steps}"));
        Desk { folder }
    }

    fn run(&self, arguments: &[&str]) -> Output {
        let output = tune(arguments).current_dir(self.folder.0.path()).output();
        output.expect("tune")
    }

    fn shown(&self, arguments: &[&str]) -> String {
        self.folder.shown(&self.run(arguments))
    }

    /// The id of the one run there is.
    fn id(&self) -> String {
        let runs = std::fs::read_dir(self.folder.path("runs/pipelines")).expect("runs");
        let names = runs.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        names.filter(|name| name != "index").max().expect("a run")
    }
}

const STEPS: &str = r#"
[[steps]]
name = "kind"
kind = "route"
map = "lines"
rules = [{ contains = "ordered", route = "order" }]
default = "other"

[[steps]]
name = "facts"
kind = "retrieve"
files = ["notes"]
query = "{{ item }}"
top = 1

[[steps]]
name = "clean"
expert = "small"
when = { kind = "order" }
prompt = "Clean up: {{ item }}"
max_tokens = 48
verify = { matches = "^[A-Z]", forbids = "  ", retries = 1 }

[[steps]]
name = "lint"
kind = "check"
of = "clean"
program = ["sh", "lint.sh"]
"#;

#[test]
fn a_run_is_told_and_shown_and_a_program_needs_leave() {
    let desk = Desk::new(&["small"], STEPS);
    desk.folder.write("notes/a.md", "Lamps are blue.\n");
    desk.folder.write("lint.sh", "grep -q oslo && { echo 'oslo is small'; exit 1; }; exit 0\n");
    desk.folder.write("in.txt", "tom  ordered 3 red   lamps in oslo\nhello there\n");
    let refused = desk.shown(&["run", "p.toml", "--input", "in.txt"]);
    assert!(refused.contains("step `lint` runs a program of this machine, `sh lint.sh`"), "{refused}");
    assert!(refused.contains("--allow-programs") && refused.ends_with("exit 1\n"), "{refused}");
    assert!(!desk.folder.path("runs/pipelines").exists(), "nothing ran");
    let served = desk.shown(&["serve", "p.toml", "--port", "0"]);
    assert!(served.contains("--allow-programs lets whoever can reach the server"), "{served}");

    let done = desk.shown(&["run", "p.toml", "--input", "in.txt", "--allow-programs"]);
    assert!(done.ends_with("exit 0\n"), "{done}");
    for told in ["1  → order", "2  → other", "notes/a.md:1 (", "clean: ", "1 skipped", "1 load "] {
        assert!(done.contains(told), "{told}: {done}");
    }
    let output = desk.run(&["run", "p.toml", "--input", "in.txt", "--allow-programs"]);
    let lines = String::from_utf8(output.stdout).expect("text");
    assert_eq!(lines.lines().count(), 2, "a line an item: {lines}");

    let id = desk.id();
    let shown = desk.shown(&["runs", "show", &id]);
    for told in [
        "finished",
        "loads    1 in",
        "memory",
        "tokens/s",
        "kind 1: → order",
        "clean 2: skipped: `kind` says `other`",
    ] {
        assert!(shown.contains(told), "{told}: {shown}");
    }
    assert!(desk.shown(&["runs", "show", &format!("runs/pipelines/{id}")]).contains("kind 1: → order"));
    assert!(desk.shown(&["runs"]).contains(&id));
    let json = desk.run(&["runs", "show", &id, "--json"]);
    let json: Value = serde_json::from_slice(&json.stdout).expect("JSON");
    assert_eq!(json["results"].as_array().map(Vec::len), Some(8));
    let missing = desk.shown(&["runs", "show", "20260101-000000-abcdef"]);
    assert!(missing.contains("there is no run `20260101-000000-abcdef`"), "{missing}");
}

/// What the README shows is a pipeline.
#[test]
fn the_example_of_the_readme_is_planned_and_runs() {
    let readme = std::fs::read_to_string(root().join("README.md")).expect("README.md");
    let begin = readme.find("    [[steps]]\n    name = \"kind\"").expect("the example");
    let example = readme[begin..].split("\n\nA step is").next().expect("its end");
    let example: String = example.lines().map(|line| format!("{}\n", line.trim_start())).collect();
    let desk = Desk::new(&["small", "large"], &example);
    desk.folder.write("in.txt", "i ordered a lamp\nit came broken\n");
    let planned = desk.shown(&["plan", "p.toml"]);
    assert!(planned.contains("step     kind") && planned.ends_with("exit 0\n"), "{planned}");
    let done = desk.shown(&["run", "p.toml", "--input", "in.txt"]);
    assert!(done.contains("step     sheet · expert small · 2 items") && done.ends_with("exit 0\n"), "{done}");
    assert!(Path::new(&desk.folder.text("runs/pipelines")).is_dir());
}

/// The mean of last hidden states in f32, as transformers and llama.cpp add it up.
const EMBEDDING_TOLERANCE: f64 = 2e-4;

/// A trained model's vectors are those that transformers gives, whether a text is read in one piece or in many.
#[test]
fn vectors_of_a_trained_base_are_those_of_transformers() {
    use runner::card::{CardOptions, Digests, LoadOptions};
    use runner::engine::llama::LlamaEngine;
    use runner::{Engine, ExpertCard};
    use std::ops::ControlFlow;

    let golden = root().join("crates/runner/tests/golden/pocket_embeddings.json");
    let golden: Value = serde_json::from_slice(&std::fs::read(golden).expect("the golden")).expect("JSON");
    let numbers = |value: &Value| -> Vec<f64> {
        value.as_array().expect("a list").iter().filter_map(Value::as_f64).collect()
    };
    let texts = golden["texts"]
        .as_array()
        .expect("texts")
        .iter()
        .map(|text| text.as_str().expect("a text").to_owned());
    let texts: Vec<String> = texts.collect();

    let folder = Folder::new();
    let out = folder.text("export");
    let export = tune(&["export", "recipes/pocket", "--quant", "f32", "--out", &out]).output().expect("tune");
    assert!(export.status.success(), "{}", folder.shown(&export));
    let file = folder.path("export/pocket-f32.gguf");
    for num_batch in [512, 7] {
        let load = LoadOptions { num_ctx: 256, num_batch, num_thread: 1, ..LoadOptions::default() };
        let options = CardOptions { load, ..CardOptions::default() };
        let card = ExpertCard::from_file("pocket", &file, &options, Digests::Blake3).expect("a card");
        let mut engine = LlamaEngine::new().expect("the engine");
        let mut expert = engine.load(&card, &mut |_| ControlFlow::Continue(())).expect("a model");
        let vectors = expert.embed(&texts, &mut |_| ControlFlow::Continue(())).expect("vectors");
        let mut farthest = 0.0_f64;
        for (i, vector) in vectors.iter().enumerate() {
            for (ours, theirs) in vector.iter().zip(numbers(&golden["first"][i])) {
                farthest = farthest.max((f64::from(*ours) - theirs).abs());
            }
            for (other, theirs) in vectors.iter().zip(numbers(&golden["products"][i])) {
                let ours: f64 = vector.iter().zip(other).map(|(a, b)| f64::from(a * b)).sum();
                farthest = farthest.max((ours - theirs).abs());
            }
        }
        println!("pieces of {num_batch}: at most {farthest:.1e} apart");
        assert!(farthest < EMBEDDING_TOLERANCE, "pieces of {num_batch}: {farthest}");
    }
}
