//! `config.json` and `generation_config.json`: published files, newer and older style, wrong fields.

use std::path::{Path, PathBuf};

use expect_test::{Expect, expect};
use formats::config::{GenerationConfig, HfConfig};
use formats::{Error, Result};
use serde_json::{Value, json};

fn base() -> Value {
    json!({
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": 256,
        "intermediate_size": 768,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "vocab_size": 2048,
    })
}

fn read_with(key: &str, value: Value) -> Result<HfConfig> {
    let mut config = base();
    config[key] = value;
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    HfConfig::from_dir(dir.path())
}

fn refuse(key: &str, value: Value, expected: &Expect) {
    let text = read_with(key, value).unwrap_err().to_string();
    let (_, message) = text.split_once("config.json").unwrap();
    expected.assert_eq(message);
}

#[test]
fn defaults_are_those_of_transformers() {
    let config = read_with("unknown_key", json!([1])).unwrap();
    assert_eq!((config.num_key_value_heads, config.head_dim), (8, 32));
    assert_eq!((config.rms_norm_eps, config.rope_theta), (1e-6, 10_000.0));
    assert_eq!((config.rope_scaling, config.tie_word_embeddings), (None, None));
    assert!(config.eos_token_ids.is_empty());
    assert_eq!(config.raw["unknown_key"], json!([1]));
}

/// What the published files of Mamba-2 leave out, and what they write that is no JSON.
#[test]
fn a_model_without_attention() {
    let dir = tempfile::tempdir().unwrap();
    let text = r#"{"model_type": "mamba2", "num_hidden_layers": 2, "time_step_limit": [0.0, Infinity]}"#;
    std::fs::write(dir.path().join("config.json"), text).unwrap();
    let config = HfConfig::from_dir(dir.path()).unwrap();
    assert_eq!((config.num_attention_heads, config.num_key_value_heads, config.intermediate_size), (0, 0, 0));
    assert_eq!((config.hidden_size, config.head_dim, config.vocab_size), (4096, 64, 32_768));
    assert_eq!(config.text("time_step_limit"), Some(&json!([0.0, "Infinity"])));
}

#[test]
fn both_styles_of_rope() {
    assert_eq!(read_with("rope_theta", json!(1_000_000)).unwrap().rope_theta, 1e6);
    let newer = read_with("rope_parameters", json!({"rope_theta": 5e5, "rope_type": "default"})).unwrap();
    assert_eq!((newer.rope_theta, newer.rope_scaling), (5e5, None));
    let llama3 = json!({"rope_theta": 5e5, "rope_type": "llama3", "factor": 8.0});
    let scaled = read_with("rope_parameters", llama3.clone()).unwrap();
    assert_eq!((scaled.rope_theta, scaled.rope_scaling), (5e5, Some(llama3)));
    let older = json!({"type": "linear", "factor": 2.0});
    assert_eq!(read_with("rope_scaling", older.clone()).unwrap().rope_scaling, Some(older));
    assert_eq!(read_with("rope_scaling", Value::Null).unwrap().rope_scaling, None);
}

#[test]
fn one_id_or_many() {
    assert_eq!(read_with("eos_token_id", json!(7)).unwrap().eos_token_ids, [7]);
    assert_eq!(read_with("eos_token_id", json!([7, 8])).unwrap().eos_token_ids, [7, 8]);
    assert_eq!(read_with("dtype", json!("bfloat16")).unwrap().torch_dtype.unwrap(), "bfloat16");
}

#[test]
fn wrong_fields_name_file_key_and_value() {
    refuse(
        "hidden_size",
        json!("256"),
        &expect![[r#": key `hidden_size` is "256", expected a whole number from 1 to 2³¹ - 1"#]],
    );
    refuse(
        "num_attention_heads",
        json!(0),
        &expect![": key `num_attention_heads` is 0, expected a whole number from 1 to 2³¹ - 1"],
    );
    refuse(
        "num_hidden_layers",
        json!(1u64 << 40),
        &expect![": key `num_hidden_layers` is 1099511627776, expected a whole number from 1 to 2³¹ - 1"],
    );
    refuse(
        "num_attention_heads",
        json!(7),
        &expect![
            ": key `num_attention_heads` is 7, expected a divisor of hidden_size 256, since there is no head_dim"
        ],
    );
    refuse(
        "vocab_size",
        Value::Null,
        &expect![": key `vocab_size` is missing, expected a whole number from 1 to 2³¹ - 1"],
    );
    refuse("rope_theta", json!(-1), &expect![": key `rope_theta` is -1, expected a positive number"]);
    refuse(
        "rope_parameters",
        json!({"rope_theta": "x"}),
        &expect![[r#": key `rope_parameters.rope_theta` is "x", expected a positive number"#]],
    );
    refuse(
        "eos_token_id",
        json!([1, -1]),
        &expect![": key `eos_token_id` is [1,-1], expected one or more token ids"],
    );
    refuse(
        "tie_word_embeddings",
        json!("yes"),
        &expect![[r#": key `tie_word_embeddings` is "yes", expected true or false"#]],
    );
}

#[test]
fn a_missing_or_broken_file() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(HfConfig::from_dir(dir.path()), Err(Error::MissingFile { .. })));
    assert!(GenerationConfig::from_dir(dir.path()).unwrap().is_none());
    for text in ["[]", "7"] {
        std::fs::write(dir.path().join("config.json"), text).unwrap();
        assert!(matches!(HfConfig::from_dir(dir.path()), Err(Error::MissingKey { .. })), "{text}");
    }
    // Deeper than any parser's stack is safe for.
    std::fs::write(dir.path().join("config.json"), "[".repeat(100_000)).unwrap();
    assert!(matches!(HfConfig::from_dir(dir.path()), Err(Error::Json { .. })));
}

fn assets() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(3).unwrap().join("shared");
    std::env::var_os("TUNE_SHARED").map_or(root, PathBuf::from).join("assets")
}

#[test]
fn published_files_are_read() {
    let dir = assets();
    if !dir.is_dir() {
        eprintln!("skipped: {} is absent", dir.display());
        return;
    }
    let qwen = HfConfig::from_dir(&dir.join("models/Qwen3-4B")).unwrap();
    assert_eq!((qwen.hidden_size, qwen.head_dim, qwen.num_key_value_heads), (2560, 128, 8));
    assert_eq!((qwen.rope_theta, qwen.tie_word_embeddings), (1e6, Some(true)));
    let llama = HfConfig::from_dir(&dir.join("models/Llama-3.1-8B-Instruct")).unwrap();
    assert_eq!(llama.eos_token_ids, [128_001, 128_008, 128_009]);
    assert_eq!(llama.rope_scaling.unwrap()["rope_type"], "llama3");
    let small = HfConfig::from_dir(&dir.join("lm/stories260K-hf")).unwrap();
    assert_eq!((small.head_dim, small.num_key_value_heads, small.rms_norm_eps), (8, 4, 1e-5));
    let gemma = HfConfig::from_dir(&dir.join("models/gemma-3-1b-it")).unwrap();
    assert_eq!(gemma.hidden_act.as_deref(), Some("gelu_pytorch_tanh"));
    let advice = GenerationConfig::from_dir(&dir.join("models/Qwen3-4B")).unwrap().unwrap();
    assert_eq!((advice.eos_token_ids, advice.top_k), (vec![151_645, 151_643], Some(20)));
    assert_eq!((advice.temperature, advice.top_p, advice.do_sample), (Some(0.6), Some(0.95), Some(true)));
}
