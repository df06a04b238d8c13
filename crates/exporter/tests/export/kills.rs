//! Exports killed at many moments: the final name never shows a file that is not whole.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use formats::gguf::Reader;
use model::policy::Quant;

use crate::checkpoint::Tiny;
use crate::{exported, names, request};

/// Set in the child: the directory that it is to export.
const CHILD: &str = "EXPORT_KILLS_CHILD";

const N_KILLS: u32 = 20;

/// A base that takes long enough to write for kills to fall into every part.
fn larger() -> Tiny {
    Tiny::new(serde_json::json!({
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu",
        "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 3, "num_attention_heads": 8,
        "num_key_value_heads": 4, "head_dim": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "max_position_embeddings": 256, "tie_word_embeddings": true, "vocab_size": 272,
    }))
}

/// Not a test of its own: what the killed processes run.
#[test]
fn child() {
    let Ok(dir) = std::env::var(CHILD) else { return };
    let tiny = Tiny::in_directory(dir.as_ref());
    exported(&request(&tiny, Quant::Q4KM));
}

fn spawn(tiny: &Tiny) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["kills::child", "--exact"])
        .env(CHILD, tiny.dir.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
fn a_killed_export_never_shows_a_broken_file() {
    let tiny = larger();
    tiny.write_adapter(|_| {});
    let started = Instant::now();
    assert!(spawn(&tiny).wait().unwrap().success());
    let whole = started.elapsed();
    let file = tiny.output().join("tiny-q4_k_m.gguf");
    let expected = formats::hash::blake3_file(&file).unwrap();
    let mut seen = [0; 2];
    for kill in 0..N_KILLS {
        std::fs::remove_file(&file).unwrap_or_default();
        let mut child = spawn(&tiny);
        std::thread::sleep(whole.mul_f64(1.1) * kill / N_KILLS + Duration::from_micros(u64::from(kill) * 37));
        child.kill().unwrap();
        child.wait().unwrap();
        seen[usize::from(file.exists())] += 1;
        if file.exists() {
            assert_eq!(formats::hash::blake3_file(&file).unwrap(), expected, "after kill {kill}");
            Reader::open(&file).unwrap();
        }
        let others = names(&tiny.output());
        let known = ["Modelfile", "receipt.json", "tiny-q4_k_m.gguf", "tiny-q4_k_m.gguf.tmp"];
        assert!(
            others.iter().all(|name| known.contains(&name.as_str()) || name.ends_with(".tmp")),
            "{others:?}"
        );
    }
    assert!(seen[0] > 0, "no kill came before the end");
    let (receipt, _) = exported(&request(&tiny, Quant::Q4KM));
    assert_eq!(receipt.blake3, expected);
    assert_eq!(names(&tiny.output()), ["Modelfile", "receipt.json", "tiny-q4_k_m.gguf"]);
}
