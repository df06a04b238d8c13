//! Processes that are killed: a training run resumes to the same bits, an export never leaves a bad file.
//! The same at random moments of the whole quickstart: scripts/check/kill_train.sh and kill_export.sh.

mod harness;

use harness::{Folder, recipe, tune};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Moments of the kill, in milliseconds after the start; the last is past the end of so short a run.
const TRAIN_KILLS_MS: [u64; 5] = [150, 400, 700, 1100, 1600];
/// For the first steps of a run on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const EXPORT_KILLS_MS: [u64; 4] = [40, 120, 250, 500];

fn kill_after(arguments: &[&str], moment: Duration) {
    let mut child = tune(arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("tune");
    let started = Instant::now();
    while started.elapsed() < moment {
        if child.try_wait().expect("a child").is_some() {
            return;
        }
        std::thread::yield_now();
    }
    // The child may have ended in this very moment.
    drop(child.kill());
    child.wait().expect("a child");
}

/// A kill may come before there is a run to resume.
fn start_or_resume<'a>(recipe: &'a str, run: &'a str) -> Vec<&'a str> {
    let mut arguments = vec!["train", recipe, "--run-dir", run];
    if Path::new(run).exists() {
        arguments.push("--resume");
    }
    arguments
}

fn adapter_bytes(run: &Path) -> Vec<u8> {
    std::fs::read(run.join("adapter/adapter_model.safetensors")).expect("an adapter")
}

#[test]
fn a_killed_run_resumes_to_the_same_bits() {
    let folder = Folder::new();
    let recipe_path =
        folder.write("r.toml", recipe(&[("max_steps", "max_steps = 16"), ("rows", "rows = 1")]));
    let whole = folder.text("whole");
    let output = tune(&["train", &recipe_path, "--run-dir", &whole]).output().expect("tune");
    assert!(output.status.success(), "{}", folder.shown(&output));

    let killed = folder.text("killed");
    for moment in TRAIN_KILLS_MS {
        kill_after(&start_or_resume(&recipe_path, &killed), Duration::from_millis(moment));
    }
    let output = tune(&start_or_resume(&recipe_path, &killed)).output().expect("tune");
    assert!(output.status.success(), "{}", folder.shown(&output));
    assert!(adapter_bytes(Path::new(&whole)) == adapter_bytes(Path::new(&killed)), "the adapters differ");
    let metrics =
        |run: &str| steps(&std::fs::read_to_string(Path::new(run).join("metrics.jsonl")).expect("metrics"));
    assert_eq!(metrics(&whole), metrics(&killed));
}

/// Step numbers and losses, which must not depend on how often a run was killed; times do, and so do the lines that say
/// when it went on.
fn steps(metrics: &str) -> Vec<(u64, String)> {
    let lines = metrics.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"));
    lines.filter_map(|l| Some((l["step"].as_u64()?, l.get("loss")?.to_string()))).collect()
}

#[test]
fn ctrl_c_saves_and_says_how_to_go_on() {
    let folder = Folder::new();
    let text = recipe(&[("max_steps", "max_steps = 400"), ("checkpoint_every", "checkpoint_every = 1000")]);
    let recipe_path = folder.write("r.toml", text);
    let run = folder.text("run");
    let arguments = ["train", &recipe_path, "--run-dir", &run];
    let child = tune(&arguments).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("tune");
    let started = Instant::now();
    let has_begun =
        || std::fs::read_to_string(folder.path("run/metrics.jsonl")).is_ok_and(|m| m.contains("\"step\":3"));
    while !has_begun() && started.elapsed() < PATIENCE {
        std::thread::yield_now();
    }
    let interrupted = Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(interrupted.expect("kill").success());
    let output = child.wait_with_output().expect("a child");
    let shown = folder.shown(&output);
    assert_eq!(output.status.code(), Some(130), "{shown}");
    assert!(shown.contains("--run-dir DIR/run --resume"), "{shown}");
    let checkpoints = std::fs::read_dir(folder.path("run/checkpoints")).expect("checkpoints").count();
    assert_eq!(checkpoints, 1, "{shown}");
}

#[test]
fn a_killed_export_leaves_no_bad_file() {
    let folder = Folder::new();
    let out = folder.text("out");
    for moment in EXPORT_KILLS_MS {
        kill_after(
            &["export", "recipes/pocket", "--quant", "q4_k_m", "--out", &out],
            Duration::from_millis(moment),
        );
        check_exports(&folder, &out);
    }
    let output = tune(&["export", "recipes/pocket", "--quant", "q4_k_m", "--out", &out, "--force"])
        .output()
        .expect("tune");
    assert!(output.status.success(), "{}", folder.shown(&output));
    let left: Vec<_> = std::fs::read_dir(&out).expect("a folder").flatten().map(|e| e.file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().contains(".tmp")), "{left:?}");
    assert!(check_exports(&folder, &out) > 0);
}

/// Every GGUF under a final name is whole; returns how many there are.
fn check_exports(folder: &Folder, out: &str) -> usize {
    let Ok(entries) = std::fs::read_dir(out) else { return 0 };
    let files = entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "gguf"));
    files
        .map(|file| {
            let output = tune(&["inspect", &file.to_string_lossy()]).output().expect("tune");
            assert!(output.status.success(), "{}", folder.shown(&output));
        })
        .count()
}
