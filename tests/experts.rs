//! `tune register` and `tune experts` on what a run gave: merged, and as an adapter over its base; and a pipeline of
//! roles that share the base.

mod harness;

use harness::{Folder, recipe, root, tune};
use serde_json::Value;
use std::process::Output;

/// A run of a few steps, its result in both forms, and its base.
struct Place {
    folder: Folder,
    base: String,
    merged: String,
    adapter: String,
}

impl Place {
    fn new() -> Place {
        let folder = Folder::new();
        let absolute = |path: &str| root().join(path).display().to_string();
        let recipe = recipe(&[
            ("base", &format!("base = \"{}\"", absolute("recipes/pocket"))),
            ("train", &format!("train = \"{}\"", absolute("datasets/quickstart/train.jsonl"))),
            ("test", &format!("test = \"{}\"", absolute("datasets/quickstart/test.jsonl"))),
        ]);
        let (recipe, run) = (folder.write("few.toml", recipe), folder.text("runs/few"));
        let place = Place {
            base: folder.text("runs/pocket/export/pocket-q8_0.gguf"),
            merged: folder.text("runs/few/export/few-q8_0.gguf"),
            adapter: folder.text("runs/few/export/few-lora-f32.gguf"),
            folder,
        };
        place.must(&["train", &recipe, "--run-dir", &run]);
        place.must(&["export", &run, "--quant", "q8_0"]);
        place.must(&["export", &run, "--as", "adapter"]);
        place.must(&["export", &absolute("recipes/pocket"), "--quant", "q8_0"]);
        place
    }

    fn tune(&self, arguments: &[&str]) -> Output {
        tune(arguments).current_dir(self.folder.0.path()).output().expect("tune")
    }

    fn must(&self, arguments: &[&str]) -> String {
        let output = self.tune(arguments);
        let shown = self.folder.shown(&output);
        assert!(output.status.success(), "tune {arguments:?}\n{shown}");
        shown
    }

    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.tune(arguments);
        let shown = self.folder.shown(&output);
        assert_eq!(output.status.code(), Some(1), "tune {arguments:?}\n{shown}");
        shown
    }
}

fn has(shown: &str, words: &[&str]) {
    for word in words {
        assert!(shown.contains(word), "`{word}` is missing in\n{shown}");
    }
}

#[test]
fn experts_are_registered_after_checks_and_share_their_base() {
    let place = Place::new();
    let merged =
        place.must(&["register", "merged", &place.merged, "--num-ctx", "512", "--system", "Be brief."]);
    has(
        &merged,
        &[
            "expert   merged · ",
            "read as training read them, of DIR/runs/few",
            "answer   ",
            "wrote    runs/experts/merged.json",
        ],
    );
    assert!(!merged.contains("llama.cpp's own tokenizer"), "{merged}");
    let role =
        ["register", "role", &place.base, "--num-ctx", "512", "--adapter", &place.adapter, "--default"];
    has(&place.must(&role), &["its base, by hash", "read as training read them, of DIR/runs/few"]);
    has(
        &place.must(&["register", "base", &place.base, "--num-ctx", "512"]),
        &["not compared: the file lies in no run's folder"],
    );
    let half = format!("{}=0.5", place.adapter);
    has(
        &place.must(&["register", "half", &place.base, "--num-ctx", "512", "--adapter", &half]),
        &[" × 0.5 · "],
    );

    // What is wrong leaves the registry as it was.
    let wrong = place.refused(&["register", "wrong", &place.merged, "--adapter", &place.adapter]);
    has(&wrong, &["merged into it", "hint"]);
    has(&place.refused(&["register", "wrong", &place.adapter]), &["error"]);
    has(
        &place.refused(&["register", "role", &place.base]),
        &["there is an expert `role` already", "--force"],
    );
    has(&place.refused(&["register", "wrong", &place.base, "--num-ctx", "9999999"]), &["--num-ctx 9999999"]);
    has(&place.refused(&["register", "wrong", "nowhere.gguf"]), &["nowhere.gguf"]);
    assert!(!place.folder.path("runs/experts/wrong.json").exists());

    let listed = place.must(&["experts"]);
    has(&listed, &["* role ", "shared with base, half", "each file counted once"]);
    let json = place.tune(&["experts", "list", "--json"]);
    let json: Value = serde_json::from_slice(&json.stdout).expect("JSON");
    let size = |path: &str| std::fs::metadata(path).expect("a file").len();
    assert_eq!(json["total_bytes"], size(&place.base) + size(&place.merged) + size(&place.adapter));
    assert_eq!(json["default"], "role");
    has(
        &place.must(&["experts", "show", "half"]),
        &["× 0.5 · its base by hash", "as they were when it was registered"],
    );
    has(&place.refused(&["experts", "show", "hlf"]), &["did you mean `half`?"]);
    has(&place.must(&["experts", "default"]), &["role"]);
    place.must(&["experts", "default", "merged"]);
    has(&place.must(&["experts", "default"]), &["merged"]);
    place.must(&["experts", "remove", "merged"]);
    has(&place.must(&["experts", "default"]), &["none is chosen"]);
    assert!(std::path::Path::new(&place.merged).exists());

    pipeline_of_roles(&place);
}

/// Three roles over one base, two of them registered: it is loaded once.
fn pipeline_of_roles(place: &Place) {
    let pipeline = format!(
        "[experts.plain]\nexpert = \"base\"\n[experts.role]\nexpert = \"role\"\n\
         [experts.quiet]\nfile = \"{}\"\nnum_ctx = 512\nadapter = \"{}\"\nadapter_scale = 0.0\n\
         [[steps]]\nname = \"one\"\nexpert = \"plain\"\nmap = \"lines\"\nprompt = \"copy: {{{{ item }}}}\"\nmax_tokens = 8\n\
         [[steps]]\nname = \"two\"\nexpert = \"role\"\nmap = \"lines\"\nprompt = \"copy: {{{{ item }}}}\"\nmax_tokens = 8\n\
         [[steps]]\nname = \"three\"\nexpert = \"quiet\"\nmap = \"lines\"\nprompt = \"copy: {{{{ item }}}}\"\nmax_tokens = 8\n",
        place.base, place.adapter
    );
    let pipeline = place.folder.write("roles.toml", pipeline);
    let input = place.folder.write("in.txt", "a lamp\ntwo lamps\n");
    has(
        &place.must(&["plan", &pipeline]),
        &["one · loads plain", "two · switches to role, nothing is loaded"],
    );
    let output = place.tune(&["run", &pipeline, "--input", &input, "--json"]);
    assert!(output.status.success(), "{}", place.folder.shown(&output));
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let events: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let loads = events.iter().filter(|event| event["event"] == "loaded").count();
    assert_eq!(loads, 1, "{text}");
    let outputs = |step: &str| -> Vec<&Value> {
        let of_step = |event: &&Value| event["event"] == "item_finished" && event["step"] == step;
        events.iter().filter(of_step).map(|event| &event["output"]).collect()
    };
    // The first and the last are the same model asked the same.
    assert_eq!((outputs("one").len(), outputs("one")), (2, outputs("three")), "{text}");
    let wrong = place.folder.write(
        "wrong.toml",
        format!(
            "[experts.a]\nexpert = \"base\"\nadapter = \"{}\"\n[[steps]]\nname = \"s\"\nexpert = \"a\"\nprompt = \"x\"\n",
            place.adapter
        ),
    );
    has(&place.refused(&["plan", &wrong]), &["experts.a.adapter", "only with `file`"]);
}
