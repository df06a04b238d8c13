//! A model without attention on the whole way: a Mamba-2 of the published layout, random, with the tokenizer and the
//! template of the base that ships with the project.

mod harness;

use formats::checkpoint::{Data, write_safetensors};
use harness::{Folder, recipe, root, tune};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Mamba-Codestral's configuration with smaller sizes: its inner width 2 · 256 is 8 heads of 64.
const CONFIG: &str = r#"{
    "architectures": ["Mamba2ForCausalLM"], "model_type": "mamba2", "torch_dtype": "bfloat16",
    "vocab_size": 2048, "hidden_size": 256, "num_hidden_layers": 2, "expand": 2, "num_heads": 8, "head_dim": 64,
    "n_groups": 2, "state_size": 64, "conv_kernel": 4, "chunk_size": 256, "hidden_act": "silu",
    "layer_norm_epsilon": 1e-05, "norm_before_gate": true, "rms_norm": true, "residual_in_fp32": true,
    "use_bias": false, "use_conv_bias": true, "tie_word_embeddings": false, "time_step_limit": [0.0, Infinity],
    "bos_token_id": null, "eos_token_id": 2047, "pad_token_id": 2045
}"#;
const N_LAYERS: usize = 2;
const HIDDEN: usize = 256;
const INNER: usize = 512;
const N_HEADS: usize = 8;
const VOCABULARY: usize = 2048;
/// What the convolution mixes: the input and, for each of 2 groups, what enters and what leaves a state of 64.
const MIXED: usize = INNER + 2 * 2 * 64;
/// For the first steps of a run on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The folder of the model.
fn base(folder: &Folder) -> String {
    let dir = folder.copy(&root().join("recipes/pocket"), "base");
    std::fs::write(dir.join("config.json"), CONFIG).expect("a file");
    let mut tensors = vec![("embeddings.weight".to_owned(), vec![VOCABULARY, HIDDEN], 0.03)];
    for layer in 0..N_LAYERS {
        let mut push = |name: &str, shape: &[usize], bound: f32| {
            tensors.push((format!("layers.{layer}.{name}"), shape.to_vec(), bound));
        };
        push("norm.weight", &[HIDDEN], 0.0);
        push("mixer.in_proj.weight", &[INNER + MIXED + N_HEADS, HIDDEN], 0.05);
        push("mixer.conv1d.weight", &[MIXED, 1, 4], 0.5);
        push("mixer.conv1d.bias", &[MIXED], 0.1);
        for name in ["dt_bias", "A_log", "D"] {
            push(&format!("mixer.{name}"), &[N_HEADS], 1.0);
        }
        push("mixer.norm.weight", &[INNER], 0.0);
        push("mixer.out_proj.weight", &[HIDDEN, INNER], 0.05);
    }
    tensors.push(("norm_f.weight".to_owned(), vec![HIDDEN], 0.0));
    let mut tensors: Vec<_> = tensors.into_iter().map(|(n, s, b)| (format!("backbone.{n}"), s, b)).collect();
    tensors.push(("lm_head.weight".to_owned(), vec![VOCABULARY, HIDDEN], 0.05));
    let mut random = 1;
    let values: Vec<_> = tensors.iter().map(|(_, shape, bound)| values(shape, *bound, &mut random)).collect();
    let written: Vec<_> = tensors
        .into_iter()
        .zip(&values)
        .map(|((name, shape, _), values)| (name, shape, Data::Bf16(values)))
        .collect();
    write_safetensors(&dir.join("model.safetensors"), &written).expect("weights");
    dir.to_string_lossy().into_owned()
}

/// Uniform in ±`bound`; 1 where that is 0.
fn values(shape: &[usize], bound: f32, random: &mut u64) -> Vec<f32> {
    let mut next = || {
        *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        if bound == 0.0 { 1.0 } else { bound * ((*random >> 40) as f32 / (1 << 23) as f32 - 1.0) }
    };
    (0..shape.iter().product()).map(|_| next()).collect()
}

fn must(folder: &Folder, arguments: &[&str]) -> String {
    let output = tune(arguments).output().expect("tune");
    let shown = folder.shown(&output);
    assert!(output.status.success(), "tune {arguments:?}\n{shown}");
    shown
}

fn recipe_on(folder: &Folder, base: &str, name: &str) -> String {
    let base = format!("base = \"{base}\"");
    let text = recipe(&[("base", &base), ("learning_rate", "learning_rate = 4e-3")]);
    // So few steps teach random weights no end of a turn.
    folder.write(name, format!("{text}[export]\nmin_ended_answers = 0\n"))
}

fn adapter(folder: &Folder, run: &str) -> Vec<u8> {
    std::fs::read(folder.path(&format!("{run}/adapter/adapter_model.safetensors"))).expect("an adapter")
}

/// Every training and validation loss of a run as it was written, all digits.
fn losses(folder: &Folder, run: &str) -> Vec<String> {
    let metrics = std::fs::read_to_string(folder.path(&format!("{run}/metrics.jsonl"))).expect("metrics");
    let lines = metrics.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
    let of_line = |line: serde_json::Value| ["loss", "validation_loss"].map(|key| line.get(key).cloned());
    lines.flat_map(of_line).flatten().map(|loss| loss.to_string()).collect()
}

#[test]
fn recipe_to_pipeline() {
    let folder = Folder::new();
    let base = base(&folder);
    let shown = must(&folder, &["inspect", &base]);
    assert!(shown.contains("2 layers · width 256 · 8 state-space heads of 64, state 64"), "{shown}");

    let recipe_path = recipe_on(&folder, &base, "r.toml");
    let run = folder.text("run");
    must(&folder, &["train", &recipe_path, "--run-dir", &run]);
    let record = std::fs::read(folder.path("run/run.json")).expect("a record");
    let outcome = &serde_json::from_slice::<serde_json::Value>(&record).expect("JSON")["outcome"];
    let [before, after] = ["base_validation_loss", "validation_loss"].map(|key| outcome[key].as_f64());
    assert!(after.expect("a loss") < before.expect("a loss") - 0.1, "{before:?} became {after:?}");

    let shown = must(&folder, &["export", &run, "--quant", "q4_k_m"]);
    for word in ["2 merged", "llama.cpp loaded it", "exact match of the exported file", "Q4_K"] {
        assert!(shown.contains(word), "`{word}` is missing in\n{shown}");
    }
    let gguf = folder.text("run/export/run-q4_k_m.gguf");
    let pipeline = format!(
        "name = \"one\"\n[experts.a]\nfile = \"{gguf}\"\nnum_ctx = 512\n\
         [[steps]]\nname = \"first\"\nexpert = \"a\"\nprompt = \"{{{{ input }}}}\"\nmax_tokens = 24\n"
    );
    let (pipeline, input) = (folder.write("p.toml", pipeline), folder.write("in.txt", "four lamps"));
    let shown = must(&folder, &["run", &pipeline, "--input", &input, "--runs", &folder.text("pipe")]);
    assert!(shown.contains("loaded a") && shown.contains("unloaded a"), "{shown}");
}

#[test]
fn the_exported_file_trains_as_the_folder_does() {
    let folder = Folder::new();
    let base = base(&folder);
    must(&folder, &["export", &base, "--quant", "q4_k_m", "--out", &folder.text("export")]);
    let gguf = folder.text("export/base-q4_k_m.gguf");
    for (base, run) in [(&base, "from-folder"), (&gguf, "from-gguf")] {
        let recipe_path = recipe_on(&folder, base, &format!("{run}.toml"));
        must(&folder, &["train", &recipe_path, "--run-dir", &folder.text(run)]);
    }
    assert!(losses(&folder, "from-folder").len() >= 8, "{:?}", losses(&folder, "from-folder"));
    assert_eq!(losses(&folder, "from-gguf"), losses(&folder, "from-folder"));
    assert!(adapter(&folder, "from-gguf") == adapter(&folder, "from-folder"), "the adapters differ");
}

#[test]
fn a_killed_run_resumes_to_the_same_bits() {
    let folder = Folder::new();
    let recipe_path = recipe_on(&folder, &base(&folder), "r.toml");
    must(&folder, &["train", &recipe_path, "--run-dir", &folder.text("whole")]);

    let killed = folder.text("killed");
    let mut child = tune(&["train", &recipe_path, "--run-dir", &killed])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("tune");
    let (started, checkpoint) = (Instant::now(), Path::new(&killed).join("checkpoints/step-2"));
    while !checkpoint.exists() && started.elapsed() < PATIENCE {
        std::thread::yield_now();
    }
    // So short a run may have ended on a machine that is busy with others.
    drop(child.kill());
    child.wait().expect("a child");
    must(&folder, &["train", &recipe_path, "--run-dir", &killed, "--resume"]);
    assert_eq!(losses(&folder, "killed"), losses(&folder, "whole"));
    assert!(adapter(&folder, "killed") == adapter(&folder, "whole"), "the adapters differ");
}
