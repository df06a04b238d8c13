//! The tables of tensors against the names and shapes of published checkpoints, and configurations gone wrong.

mod shared;

use std::collections::HashMap;
use std::ops::Range;

use formats::TensorSource;
use formats::config::HfConfig;
use formats::gguf::Metadata;
use model::config::{ModelConfig, RopeScaling, gguf_metadata};
use model::family::{self, Naming};
use shared::shared;

type Table = HashMap<String, Vec<usize>>;

/// Names and shapes without weights.
#[derive(Clone)]
struct Shapes(Table);

impl Shapes {
    fn of(config: &ModelConfig, naming: Naming) -> Shapes {
        Shapes(
            family::tensors(config)
                .iter()
                .map(|spec| (spec.name(naming).to_owned(), spec.shape(naming)))
                .collect(),
        )
    }
}

impl TensorSource for Shapes {
    fn tensor_names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.0.get(name).cloned()
    }

    fn read_rows(&self, name: &str, _: Range<usize>, _: &mut Vec<f32>) -> formats::Result<()> {
        panic!("{name} was read, but only shapes are known")
    }

    fn content_hash(&self) -> formats::Result<String> {
        Ok(String::new())
    }
}

fn hf_config(json: &str) -> HfConfig {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), json).unwrap();
    HfConfig { path: "config.json".into(), ..HfConfig::from_dir(dir.path()).unwrap() }
}

const TINY_LLAMA: &str = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64,
    "intermediate_size": 172, "num_hidden_layers": 2, "num_attention_heads": 8, "num_key_value_heads": 4,
    "rms_norm_eps": 1e-5, "vocab_size": 512, "tie_word_embeddings": true, "max_position_embeddings": 512}"#;

fn tiny_llama() -> ModelConfig {
    ModelConfig::from_hf(&hf_config(TINY_LLAMA)).unwrap()
}

/// [`TINY_LLAMA`] with some keys set.
fn tiny_with(changes: &str) -> String {
    let mut config: serde_json::Value = serde_json::from_str(TINY_LLAMA).unwrap();
    let changes: serde_json::Value = serde_json::from_str(changes).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    config.to_string()
}

#[test]
fn tables_equal_published_checkpoints() {
    for name in [
        "Qwen3-0.6B",
        "Qwen3-4B",
        "Qwen2.5-1.5B-Instruct",
        "Llama-3.1-8B-Instruct",
        "Llama-3.2-1B-Instruct",
        "SmolLM2-135M",
        "Mistral-7B-Instruct-v0.3",
        "Phi-4-mini-instruct",
        "gemma-3-1b-it",
        "gemma-3-4b-it",
    ] {
        let Some(dir) = shared(&format!("assets/models/{name}")) else { continue };
        let config = ModelConfig::from_hf(&HfConfig::from_dir(&dir).unwrap()).unwrap();
        let listed = std::fs::read_to_string(dir.join("tensors.json")).unwrap();
        let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
        let tensor = |entry: &serde_json::Value| {
            let shape = entry[1].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect();
            (entry[0].as_str().unwrap().to_owned(), shape)
        };
        let published = Shapes(listed["tensors"].as_array().unwrap().iter().map(tensor).collect());
        family::check(&config, &published, Naming::Hf).unwrap();
        let n_bytes = 2 * config.n_weights() as u64;
        // A head that is shipped although the model is tied, and a vision tower.
        let known: Vec<String> = family::tensors(&config).into_iter().map(|spec| spec.hf).collect();
        let spare = published.0.iter().filter(|(name, _)| !known.contains(name));
        let spare_bytes: u64 = spare.map(|(_, shape)| 2 * shape.iter().product::<usize>() as u64).sum();
        assert_eq!(n_bytes + spare_bytes, listed["total_bytes"].as_u64().unwrap(), "{name}");
    }
}

#[test]
fn gguf_metadata_reads_back() {
    let scaled = tiny_with(r#"{"rope_scaling": {"type": "linear", "factor": 2.0}, "head_dim": 32}"#);
    let qwen = TINY_LLAMA.replace("LlamaForCausalLM", "Qwen3ForCausalLM").replace("\"llama\"", "\"qwen3\"");
    for json in [TINY_LLAMA, &scaled, &qwen] {
        let config = ModelConfig::from_hf(&hf_config(json)).unwrap();
        let mut metadata: Metadata = gguf_metadata(&config).into_iter().collect();
        metadata.push("general.architecture", config.family.gguf_architecture());
        let read = ModelConfig::from_gguf(&metadata, &Shapes::of(&config, Naming::Gguf)).unwrap();
        assert_eq!(read, config);
    }
}

#[test]
fn llama3_scaling_becomes_a_factor_for_each_frequency() {
    let json = tiny_with(
        r#"{"rope_theta": 500000.0, "head_dim": 64, "rope_scaling": {"rope_type": "llama3", "factor": 32.0,
        "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}"#,
    );
    let config = ModelConfig::from_hf(&hf_config(&json)).unwrap();
    let (name, factors) = config.rope.gguf_tensors().remove(0);
    assert_eq!(name, "rope_freqs.weight");
    assert_eq!((factors.len(), factors[0], factors[31]), (32, 1.0, 32.0));
    let mut from_file = config.rope.clone();
    from_file.scaling = RopeScaling::Factors(factors);
    assert_eq!(from_file.inverse_frequencies(), config.rope.inverse_frequencies());
}

#[test]
fn a_gguf_row_comes_from_its_head() {
    let config = tiny_llama();
    let specs = family::tensors(&config);
    let keys = specs.iter().find(|spec| spec.gguf == "blk.1.attn_k.weight").unwrap();
    let rows: Vec<usize> = (0..12).map(|row| keys.hf_row(row)).collect();
    assert_eq!(rows, [0, 4, 1, 5, 2, 6, 3, 7, 8, 12, 9, 13]);
    let values = specs.iter().find(|spec| spec.gguf == "blk.1.attn_v.weight").unwrap();
    assert_eq!(values.hf_row(5), 5);
}

#[test]
fn gguf_order_is_by_layer_then_name() {
    let mut specs = family::tensors(&tiny_llama());
    family::sort_for_gguf(&mut specs);
    let names: Vec<&str> = specs.iter().take(6).map(|spec| spec.gguf.as_str()).collect();
    let expected =
        ["output_norm.weight", "token_embd.weight", "blk.0.attn_k.weight", "blk.0.attn_norm.weight"];
    assert_eq!(names[..4], expected);
    assert_eq!(specs.last().unwrap().gguf, "blk.1.ffn_up.weight");
}

#[test]
fn wrong_configurations_name_file_key_and_what_would_be_right() {
    let check = |changes: &str, expected: &str| {
        let error = ModelConfig::from_hf(&hf_config(&tiny_with(changes))).unwrap_err();
        assert_eq!(error.to_string(), expected);
    };
    check(
        r#"{"architectures": ["GemmaForCausalLM"]}"#,
        "config.json: architecture `GemmaForCausalLM` is not supported (supported: LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, Phi3ForCausalLM, Gemma3ForCausalLM, Gemma3ForConditionalGeneration, Starcoder2ForCausalLM)",
    );
    check(r#"{"attention_bias": true}"#, "config.json: `attention_bias` is true, supported: false");
    check(
        r#"{"hidden_act": "gelu"}"#,
        "config.json: `hidden_act` is gelu, supported: silu, gelu_pytorch_tanh",
    );
    check(
        r#"{"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}"#,
        "config.json: `rope_scaling.rope_type` is yarn, supported: default, linear, llama3, longrope",
    );
    check(
        r#"{"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}"#,
        "config.json: `rope_scaling.low_freq_factor` is missing, expected a positive number",
    );
    check(
        r#"{"num_key_value_heads": 3}"#,
        "config.json: `num_key_value_heads` is 3, expected a divisor of num_attention_heads 8",
    );
    check(r#"{"vocab_size": 20000000}"#, "config.json: `vocab_size` is 20000000, expected 1 to 16777216");
}

#[test]
fn wrong_tensors_are_named() {
    let config = tiny_llama();
    let right = Shapes::of(&config, Naming::Hf);
    let check = |change: &dyn Fn(&mut Table), expected: Option<&str>| {
        let mut shapes = right.clone();
        change(&mut shapes.0);
        let found = family::check(&config, &shapes, Naming::Hf).err().map(|error| error.to_string());
        assert_eq!(found.as_deref(), expected);
    };
    let key = "model.layers.1.self_attn.k_proj.weight";
    check(&|_| (), None);
    check(
        &|shapes| drop(shapes.remove(key)),
        Some("tensor `model.layers.1.self_attn.k_proj.weight` is missing (1 of 20 tensors are)"),
    );
    check(
        &|shapes| drop(shapes.insert(key.to_owned(), vec![64, 64])),
        Some("tensor `model.layers.1.self_attn.k_proj.weight` has shape [64, 64], expected [32, 64]"),
    );
    check(
        &|shapes| drop(shapes.insert("model.layers.2.mlp.up_proj.weight".to_owned(), vec![172, 64])),
        Some(
            "tensor `model.layers.2.mlp.up_proj.weight` has no place in a LlamaForCausalLM model (1 such tensors)",
        ),
    );
    check(&|shapes| drop(shapes.insert("lm_head.weight".to_owned(), vec![512, 64])), None);
    check(
        &|shapes| drop(shapes.insert("lm_head.weight".to_owned(), vec![500, 64])),
        Some("tensor `lm_head.weight` has shape [500, 64], expected [512, 64]"),
    );
}

/// A tied Llama's embedding, and a head that differs from it in one row, or in none.
struct Heads {
    odd_row: Option<usize>,
}

impl TensorSource for Heads {
    fn tensor_names(&self) -> Vec<String> {
        vec!["model.embed_tokens.weight".to_owned(), "lm_head.weight".to_owned()]
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.tensor_names().contains(&name.to_owned()).then(|| vec![512, 64])
    }

    fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut Vec<f32>) -> formats::Result<()> {
        let odd = |row| name == "lm_head.weight" && self.odd_row == Some(row);
        out.clear();
        out.extend(
            rows.flat_map(|row| (0..64).map(move |col| (row, col)))
                .map(|(row, col)| if odd(row) && col == 63 { -1.0 } else { (row * 64 + col) as f32 }),
        );
        Ok(())
    }

    fn content_hash(&self) -> formats::Result<String> {
        Ok(String::new())
    }
}

#[test]
fn a_tied_model_with_another_head_is_refused() {
    let config = tiny_llama();
    family::check_tied_head(&config, &Heads { odd_row: None }).unwrap();
    let error = family::check_tied_head(&config, &Heads { odd_row: Some(300) }).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the model is tied, but `lm_head.weight` and `model.embed_tokens.weight` differ from row 300 on (set \
         `tie_word_embeddings` to false to use the head, or remove it)"
    );
    let untied = ModelConfig { tied: false, ..config };
    family::check_tied_head(&untied, &Heads { odd_row: Some(300) }).unwrap();
}
