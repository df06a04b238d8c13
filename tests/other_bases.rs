//! Models that are no plain decoders on the whole way: a Mamba-2 and a DeepSeek-V2-Lite in their published layouts, random,
//! with the tokenizer and the template of the base that ships with the project.

mod harness;

use formats::checkpoint::{Data, write_safetensors};
use formats::config::HfConfig;
use harness::{Folder, recipe, root, tune};
use model::ModelConfig;
use model::family::{self, Naming, Role, TensorSpec};
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// Mamba-Codestral's configuration with smaller sizes: its inner width 2 · 256 is 8 heads of 64.
const MAMBA2: &str = r#"{
    "architectures": ["Mamba2ForCausalLM"], "model_type": "mamba2", "torch_dtype": "bfloat16",
    "vocab_size": 2048, "hidden_size": 256, "num_hidden_layers": 2, "expand": 2, "num_heads": 8, "head_dim": 64,
    "n_groups": 2, "state_size": 64, "conv_kernel": 4, "chunk_size": 256, "hidden_act": "silu",
    "layer_norm_epsilon": 1e-05, "norm_before_gate": true, "rms_norm": true, "residual_in_fp32": true,
    "use_bias": false, "use_conv_bias": true, "tie_word_embeddings": false, "time_step_limit": [0.0, Infinity],
    "bos_token_id": null, "eos_token_id": 2047, "pad_token_id": 2045
}"#;

/// DeepSeek-V2-Lite's configuration with smaller sizes: a dense layer and one of routed experts.
const DEEPSEEK2: &str = r#"{
    "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "torch_dtype": "bfloat16",
    "vocab_size": 2048, "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 4, "q_lora_rank": null, "kv_lora_rank": 128,
    "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64, "first_k_dense_replace": 1,
    "moe_layer_freq": 1, "n_routed_experts": 8, "n_shared_experts": 2, "num_experts_per_tok": 2, "n_group": 1,
    "topk_group": 1, "moe_intermediate_size": 128, "norm_topk_prob": false, "routed_scaling_factor": 1.0,
    "scoring_func": "softmax", "topk_method": "greedy", "rms_norm_eps": 1e-06, "rope_theta": 10000,
    "max_position_embeddings": 4096, "tie_word_embeddings": false, "attention_bias": false, "hidden_act": "silu",
    "rope_scaling": {"type": "yarn", "factor": 40, "beta_fast": 32, "beta_slow": 1, "mscale": 0.707,
        "mscale_all_dim": 0.707, "original_max_position_embeddings": 64},
    "bos_token_id": null, "eos_token_id": 2047, "pad_token_id": 2045
}"#;

/// For the first steps of a run on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The folder of a model of this configuration.
fn base(folder: &Folder, config: &str) -> String {
    let dir = folder.copy(&root().join("recipes/pocket"), "base");
    std::fs::write(dir.join("config.json"), config).expect("a file");
    let config = ModelConfig::from_hf(&HfConfig::from_dir(&dir).expect("a file")).expect("a configuration");
    let mut random = 1;
    let mut tensors = Vec::new();
    // Keys and values of a latent are parts of one tensor.
    for spec in family::tensors(&config).iter().filter(|spec| spec.role != Role::LatentValues) {
        for name in spec.hf_names() {
            let shape = spec.shape(Naming::Hf);
            let values = values(&shape, bound(spec), &mut random);
            tensors.push((name, shape, values));
        }
    }
    let tensors: Vec<_> = tensors
        .iter()
        .map(|(name, shape, values)| (name.clone(), shape.clone(), Data::Bf16(values)))
        .collect();
    write_safetensors(&dir.join("model.safetensors"), &tensors).expect("weights");
    dir.to_string_lossy().into_owned()
}

/// What a tensor's values lie within; 0 where all are 1.
fn bound(spec: &TensorSpec) -> f32 {
    match spec.role {
        Role::Embedding => 0.03,
        Role::SsmConv => 0.5,
        Role::SsmConvBias => 0.1,
        Role::SsmStepBias | Role::SsmDecay | Role::SsmSkip => 1.0,
        role if role.is_vector() => 0.0,
        _ => 0.05,
    }
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
    check_recipe_to_pipeline(
        MAMBA2,
        "2 layers · width 256 · 8 state-space heads of 64, state 64",
        "2 merged",
    );
    let layers =
        "2 layers · width 256 · 4 heads, keys and values from a latent of 128 · 8 experts, 2 a token";
    check_recipe_to_pipeline(DEEPSEEK2, layers, "16 merged");
}

fn check_recipe_to_pipeline(config: &str, layers: &str, merged: &str) {
    let folder = Folder::new();
    let base = base(&folder, config);
    let shown = must(&folder, &["inspect", &base]);
    assert!(shown.contains(layers), "{shown}");

    let recipe_path = recipe_on(&folder, &base, "r.toml");
    let run = folder.text("run");
    must(&folder, &["train", &recipe_path, "--run-dir", &run]);
    let record = std::fs::read(folder.path("run/run.json")).expect("a record");
    let outcome = &serde_json::from_slice::<serde_json::Value>(&record).expect("JSON")["outcome"];
    let [before, after] = ["base_validation_loss", "validation_loss"].map(|key| outcome[key].as_f64());
    assert!(after.expect("a loss") < before.expect("a loss") - 0.1, "{before:?} became {after:?}");

    let shown = must(&folder, &["export", &run, "--quant", "q4_k_m"]);
    for word in [merged, "llama.cpp loaded it", "exact match of the exported file", "Q4_K"] {
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
    check_file_and_folder(MAMBA2);
    check_file_and_folder(DEEPSEEK2);
}

fn check_file_and_folder(config: &str) {
    let folder = Folder::new();
    let base = base(&folder, config);
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
    check_resume(MAMBA2);
    check_resume(DEEPSEEK2);
}

fn check_resume(config: &str) {
    let folder = Folder::new();
    let recipe_path = recipe_on(&folder, &base(&folder, config), "r.toml");
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
