//! An export that was killed goes on where it was, if it is to be the same file, and what stands is sound.

use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};

use exporter::{Event, Receipt, Request, export};
use model::policy::Quant;

use crate::checkpoint::Tiny;
use crate::{FakeEngine, exported, names, request};

/// Set in the child: the directory that it is to export.
const CHILD: &str = "EXPORT_RESUME_CHILD";

/// Tensors after which the child is no more.
const LAST_TENSOR: usize = 60;

/// As F32 more than two lines of a journal.
fn large() -> Tiny {
    Tiny::new(serde_json::json!({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
        "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "num_attention_heads": 8,
        "num_key_value_heads": 4, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "max_position_embeddings": 256, "tie_word_embeddings": true, "vocab_size": 272,
    }))
}

/// Not a test of its own: what the killed process runs.
#[test]
fn child() {
    let Ok(dir) = std::env::var(CHILD) else { return };
    let tiny = Tiny::in_directory(dir.as_ref());
    let _ = export(&request(&tiny, Quant::F32), &FakeEngine::sound(), &mut |event| {
        if let Event::Tensor { index: LAST_TENSOR, .. } = event {
            std::process::abort();
        }
    });
}

fn interrupted(tiny: &Tiny) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["resume::child", "--exact"])
        .env(CHILD, tiny.dir.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    assert!(!child.wait().unwrap().success());
    assert_eq!(names(&tiny.output()), ["tiny-f32.gguf.journal.tmp", "tiny-f32.gguf.tmp"]);
}

/// The receipt, the bytes that were kept, and the tensors that were written.
fn gone_on(request: &Request) -> (Receipt, u64, usize) {
    let (receipt, events) = exported(request);
    let n_written = events.iter().filter(|event| matches!(event, Event::Tensor { .. })).count();
    let kept = events.iter().find_map(|event| match event {
        Event::Planned { kept_bytes, .. } => Some(*kept_bytes),
        _ => None,
    });
    (receipt, kept.unwrap(), n_written)
}

#[test]
fn an_export_goes_on_after_the_last_tensor_that_is_sure() {
    let tiny = large();
    tiny.write_adapter(|_| {});
    let (whole, kept, n_tensors) = gone_on(&request(&tiny, Quant::F32));
    assert_eq!(kept, 0);
    let expected = std::fs::read(&whole.file).unwrap();
    let clear = || std::fs::remove_dir_all(tiny.output()).unwrap();

    clear();
    interrupted(&tiny);
    let (receipt, kept, n_written) = gone_on(&request(&tiny, Quant::F32));
    assert!(kept > 64 << 20 && n_written < n_tensors / 2, "{kept}, {n_written} of {n_tensors}");
    assert!(std::fs::read(&receipt.file).unwrap() == expected);
    assert_eq!(receipt.blake3, whole.blake3);
    assert_eq!(names(&tiny.output()), ["Modelfile", "receipt.json", "tiny-f32.gguf"]);

    // A byte that has changed: what stands before it counts.
    clear();
    interrupted(&tiny);
    let file = std::fs::OpenOptions::new().write(true).open(tiny.output().join("tiny-f32.gguf.tmp")).unwrap();
    file.write_all_at(&[0xa5; 16], 40 << 20).unwrap();
    let (receipt, kept, _) = gone_on(&request(&tiny, Quant::F32));
    assert!((1..40 << 20).contains(&kept), "{kept}");
    assert_eq!(receipt.blake3, whole.blake3);

    // Another adapter: nothing of it counts.
    clear();
    interrupted(&tiny);
    tiny.write_adapter(|files| files.tensors[0].b[0] += 1.0);
    let (receipt, kept, n_written) = gone_on(&request(&tiny, Quant::F32));
    assert_eq!((kept, n_written), (0, n_tensors));
    assert_ne!(receipt.blake3, whole.blake3);
}
