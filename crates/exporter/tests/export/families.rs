//! Every family's exported file through llama.cpp: its logits are those of our forward on the same blocks.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use formats::gguf::Reader;
use formats::imatrix::Entry;
use formats::observe::Silent;
use model::arena::Arena;
use model::device::Precision;
use model::importance::Importance;
use model::policy::Quant;
use model::step::{IGNORE, StepPlan};
use model::{Base, Batch, Cpu, TrainStep};
use serde_json::{Value, json};

use crate::checkpoint::Tiny;
use crate::{exported, forward, request};

#[path = "../../examples/llama_cpp_peer/logits.rs"]
pub mod logits;

/// Nats. Both sides read the same blocks; llama.cpp rounds activations to 8 bits before a product with 4-bit blocks,
/// keys and values to 16 bits, and reads GELU from a table of 16-bit floats.
const MAX_MEAN_KL: f64 = 1e-3;
/// With 32-bit weights only the keys, the values and GELU are rounded.
const MAX_MEAN_KL_EXACT: f64 = 1e-6;
/// Of a sum of squares, relative to itself and the mean of its matrix; llama.cpp reads GELU from a table.
const MAX_IMPORTANCE_ERROR: f32 = 1e-3;
const N_TOKENS: usize = 512;

/// A configuration with what all families share, changed by `keys`.
pub fn config(keys: Value) -> Value {
    let mut config = json!({
        "hidden_act": "silu", "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "max_position_embeddings": 1024, "tie_word_embeddings": true, "vocab_size": 272,
    });
    for (key, value) in keys.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

/// 512 tokens of text, from a tokenizer of single bytes.
pub fn text() -> Vec<u32> {
    let text = include_str!("../../../../README.md");
    text.bytes().take(N_TOKENS).map(u32::from).collect()
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
    logits.iter().map(|&x| f64::from(x - max) - sum.ln()).collect()
}

/// Σ p · ln(p / q), a mean over the rows.
pub fn mean_kl(p: &[Vec<f32>], q: &[Vec<f32>]) -> f64 {
    let row = |(p, q): (&Vec<f32>, &Vec<f32>)| {
        let (p, q) = (log_softmax(p), log_softmax(q));
        p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>()
    };
    p.iter().zip(q).map(row).sum::<f64>() / p.len() as f64
}

fn check(name: &str, keys: Value) {
    check_base(name, &Tiny::new(config(keys)));
}

fn check_base(name: &str, tiny: &Tiny) {
    for (quant, limit) in [(Quant::F32, MAX_MEAN_KL_EXACT), (Quant::Q4KM, MAX_MEAN_KL)] {
        let (receipt, _) = exported(&request(tiny, quant));
        let tokens = text();
        let logits::Run { logits: theirs, importance } = logits::run(&receipt.file, None, &tokens);
        if quant == Quant::F32 {
            check_importance(name, &receipt.file, &tokens, &importance);
        }
        let ours = forward::logits(&Reader::open(&receipt.file).unwrap(), &tokens);
        assert_eq!((ours.len(), theirs.len()), (N_TOKENS, N_TOKENS));
        let kl = mean_kl(&ours, &theirs);
        // What the same measure gives for a model that is another one: logits that differ by row.
        let unrelated = mean_kl(&ours, &[&theirs[1..], &theirs[..1]].concat());
        eprintln!("{name} {quant}: mean KL {kl:.2e} ({unrelated:.2e} against the next token's)");
        assert!(kl.abs() < limit, "{name} {quant}: mean KL {kl:e}");
        assert!(unrelated > 20.0 * limit, "{name} {quant}: the measure tells nothing apart ({unrelated:e})");
    }
}

/// What the matrices are multiplied with is what llama.cpp multiplies them with.
fn check_importance(name: &str, file: &Path, tokens: &[u32], theirs: &BTreeMap<String, Entry>) {
    let device = Cpu::with_precision(Arena::unlimited(), Precision::F32).unwrap();
    let base = Arc::new(Base::from_gguf(&device, &Reader::open(file).unwrap(), &mut Silent).unwrap());
    let importance = Importance::new(&device, &base.config).unwrap();
    let (plan, n) = (StepPlan::new(&base.config, tokens.len()), tokens.len());
    let mut step = TrainStep::new(base, None, plan).unwrap();
    let (targets, positions): (Vec<u32>, Vec<u32>) = (vec![IGNORE; n], (0..n as u32).collect());
    let batch =
        Batch { tokens, targets: &targets, weights: None, positions: &positions, sequence_starts: &[0] };
    step.measure(None, &batch, &importance).unwrap();
    let ours = importance.entries().unwrap();
    assert_eq!(ours.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>(), "{name}");
    let mut worst: f32 = 0.0;
    for (tensor, ours) in &ours {
        let theirs = &theirs[tensor];
        assert_eq!(ours.sums.len(), theirs.sums.len(), "{name}: {tensor}");
        // Values of the latent are measured where they are made, llama.cpp makes them after the attention.
        if tensor.ends_with("attn_v_b.weight") {
            continue;
        }
        assert_eq!(ours.counts, theirs.counts, "{name}: {tensor}");
        let mean = theirs.sums.iter().sum::<f32>() / theirs.sums.len() as f32;
        let errors = ours.sums.iter().zip(&theirs.sums).map(|(a, b)| (a - b).abs() / (b + mean));
        worst = errors.fold(worst, f32::max);
        assert!(worst < MAX_IMPORTANCE_ERROR, "{name}: {tensor}: {worst}");
    }
    eprintln!("{name}: importance within {worst:.1e}");
}

#[test]
fn llama() {
    let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 64});
    check(
        "llama",
        json!({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "rope_scaling": scaling}),
    );
}

#[test]
fn mistral() {
    check(
        "mistral",
        json!({"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": null,
               "head_dim": 32, "tie_word_embeddings": false}),
    );
}

#[test]
fn qwen2() {
    check("qwen2", json!({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2"}));
}

/// Longer than the original context; a part of the frequencies lies on the ramp.
#[test]
fn qwen2_with_yarn() {
    let scaling = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128,
                         "beta_fast": 16.0, "attention_factor": 1.25});
    check(
        "qwen2 yarn",
        json!({"architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "rope_scaling": scaling}),
    );
}

#[test]
fn qwen3() {
    check("qwen3", json!({"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "head_dim": 64}));
}

/// Longer than the original context, so that both sides take the long factors; a part of each head is rotated.
#[test]
fn phi3() {
    let factors = |stretch: f64| (0..24).map(|i| 1.0 + stretch * f64::from(i)).collect::<Vec<_>>();
    check(
        "phi3",
        json!({"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "partial_rotary_factor": 0.75,
               "original_max_position_embeddings": 256, "sliding_window": null,
               "rope_scaling": {"type": "longrope", "short_factor": factors(0.1), "long_factor": factors(0.5)}}),
    );
}

/// A window far below the text's length, layers with and without it.
#[test]
fn gemma3() {
    check(
        "gemma3",
        json!({"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "head_dim": 64,
               "num_hidden_layers": 7, "hidden_activation": "gelu_pytorch_tanh", "hidden_act": null,
               "sliding_window": 48, "sliding_window_pattern": 6, "query_pre_attn_scalar": 64,
               "rope_local_base_freq": 500.0, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
    );
}

/// Longer than the original context.
#[test]
fn deepseek2() {
    check_base("deepseek2", &Tiny::deepseek2(6));
}

/// So many layers that llama.cpp takes it for the published one, without yarn, other scales of the experts.
#[test]
fn deepseek2_of_27_layers() {
    let tiny = Tiny::deepseek2(8);
    tiny.change_config(|config| {
        config["num_hidden_layers"] = 27.into();
        config["routed_scaling_factor"] = 1.5.into();
        config["rope_scaling"] = Value::Null;
    });
    check_base("deepseek2 of 27 layers", &tiny);
}

#[test]
fn starcoder2() {
    check(
        "starcoder2",
        json!({"architectures": ["Starcoder2ForCausalLM"], "model_type": "starcoder2", "use_bias": true,
               "hidden_act": "gelu_pytorch_tanh", "norm_epsilon": 1e-5, "sliding_window": 1024}),
    );
}

/// Several groups of heads; the last tokens are many steps of the decay away from the first.
#[test]
fn mamba2() {
    for (n_groups, tied) in [(2, false), (1, true)] {
        check(
            "mamba2",
            json!({"architectures": ["Mamba2ForCausalLM"], "model_type": "mamba2", "num_heads": 8, "head_dim": 64,
                   "state_size": 32, "n_groups": n_groups, "conv_kernel": 4, "tie_word_embeddings": tied}),
        );
    }
}
