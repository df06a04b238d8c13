//! The whole way on the base that ships with the project, with few steps: train, export, inspect, run a pipeline.
//! How well the result does its task is the quickstart's subject; here it is that every stage meets the next.

mod harness;

use harness::{Folder, recipe, tune};
use std::process::Output;

fn must(folder: &Folder, arguments: &[&str]) -> String {
    let output: Output = tune(arguments).output().expect("tune");
    let shown = folder.shown(&output);
    assert!(output.status.success(), "tune {arguments:?}\n{shown}");
    shown
}

#[test]
fn recipe_to_pipeline() {
    let folder = Folder::new();
    let recipe_path = folder.write("few.toml", recipe(&[]));
    let run = folder.text("run");

    let shown = must(&folder, &["train", &recipe_path, "--run-dir", &run]);
    for word in [
        "plan ",
        "step 6/6",
        "validation loss",
        "exact match of the base",
        "exact match of the adapter",
        "wrote ",
    ] {
        assert!(shown.contains(word), "`{word}` is missing in\n{shown}");
    }
    let metrics = std::fs::read_to_string(folder.path("run/metrics.jsonl")).expect("metrics");
    let steps: Vec<serde_json::Value> =
        metrics.lines().map(|l| serde_json::from_str(l).expect("JSON")).collect();
    assert!(
        steps.iter().any(|s| s["step"] == 6 && s["loss"].as_f64().is_some_and(f64::is_finite)),
        "{metrics}"
    );

    // Six steps teach nothing yet, so the gate's comparison with the adapter holds trivially; that the engine
    // sees the ids of training and that the file loads is checked all the same.
    let shown = must(&folder, &["export", &run, "--quant", "q4_k_m"]);
    for word in [
        "read back",
        "llama.cpp loaded it",
        "exact match of the exported file",
        "Q4_K",
        "Q6_K",
        "receipt.json",
    ] {
        assert!(shown.contains(word), "`{word}` is missing in\n{shown}");
    }
    let gguf = folder.text("run/export/run-q4_k_m.gguf");
    let shown = must(&folder, &["inspect", &gguf]);
    for word in ["tokenizer.ggml.pre", "qwen2", "blk.0.attn_q.weight", "tokenizer.chat_template", "im_start"]
    {
        assert!(shown.contains(word), "`{word}` is missing in\n{shown}");
    }
    for path in ["run", "run/adapter", "run/export/receipt.json"] {
        must(&folder, &["inspect", &folder.text(path)]);
    }
    must(&folder, &["inspect", "recipes/pocket"]);

    let pipeline = folder.write("p.toml", pipeline(&gguf));
    let input = folder.write("in.txt", "Anna bought three apples in Paris.\nTom sold two lamps in Rome.\n");
    let output =
        tune(&["run", &pipeline, "--input", &input, "--runs", &folder.text("pipe")]).output().expect("tune");
    let shown = folder.shown(&output);
    assert!(shown.contains("loaded") && shown.contains("unloaded"), "{shown}");
}

fn pipeline(gguf: &str) -> String {
    format!(
        "name = \"two-steps\"\n\
         [experts.a]\nfile = \"{gguf}\"\nnum_ctx = 512\n\
         [[steps]]\nname = \"first\"\nexpert = \"a\"\nmap = \"lines\"\nprompt = \"copy: {{{{ input }}}}\"\nmax_tokens = 24\n\
         [[steps]]\nname = \"second\"\nexpert = \"a\"\nprompt = \"copy: {{{{ steps.first.output }}}}\"\nmax_tokens = 24\n"
    )
}
