//! The tables of tensors against the names and shapes of published checkpoints, and configurations gone wrong.

mod shared;

use std::collections::HashMap;
use std::ops::Range;

use formats::TensorSource;
use formats::config::HfConfig;
use formats::gguf::Metadata;
use model::config::{ModelConfig, RopeScaling, gguf_metadata};
use model::family::{self, Naming, TensorSpec};
use shared::shared;

type Table = HashMap<String, Vec<usize>>;

/// Names and shapes without weights.
#[derive(Clone)]
struct Shapes(Table, Naming);

impl Shapes {
    fn of(config: &ModelConfig, naming: Naming) -> Shapes {
        let named =
            |spec: TensorSpec| spec.names(naming).into_iter().map(move |name| (name, spec.shape(naming)));
        Shapes(family::tensors(config).into_iter().flat_map(named).collect(), naming)
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

    fn naming(&self) -> Naming {
        self.1
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
        let published =
            Shapes(listed["tensors"].as_array().unwrap().iter().map(tensor).collect(), Naming::Hf);
        family::check(&config, &published).unwrap();
        let n_bytes = 2 * config.n_weights() as u64;
        // A head that is shipped although the model is tied, and a vision tower.
        let known: Vec<String> = family::tensors(&config).into_iter().map(|spec| spec.hf).collect();
        let spare = published.0.iter().filter(|(name, _)| !known.contains(name));
        let spare_bytes: u64 = spare.map(|(_, shape)| 2 * shape.iter().product::<usize>() as u64).sum();
        assert_eq!(n_bytes + spare_bytes, listed["total_bytes"].as_u64().unwrap(), "{name}");
    }
}

/// Mamba-Codestral-7B-v0.1, as its `config.json` has it; `INFINITY` stands for the way in which it is written.
const CODESTRAL: &str = r#"{"architectures": ["Mamba2ForCausalLM"], "model_type": "mamba2", "hidden_size": 4096,
    "num_hidden_layers": 64, "num_heads": 128, "head_dim": 64, "n_groups": 8, "state_size": 128, "conv_kernel": 4,
    "expand": 2, "intermediate_size": 8192, "layer_norm_epsilon": 1e-05, "hidden_act": "silu", "chunk_size": 256,
    "use_bias": false, "use_conv_bias": true, "norm_before_gate": true, "rms_norm": true, "residual_in_fp32": true,
    "tie_word_embeddings": false, "time_step_limit": [0.0, INFINITY], "vocab_size": 32768}"#;

#[test]
fn mamba_codestral_has_its_published_tensors() {
    let written = ["Infinity", r#""Infinity""#, r#"{"__float__": "Infinity"}"#];
    let read = |infinity| ModelConfig::from_hf(&hf_config(&CODESTRAL.replace("INFINITY", infinity))).unwrap();
    let configs = written.map(read);
    assert!(configs.iter().all(|config| *config == configs[0]));
    let config = &configs[0];
    assert_eq!(config.n_weights(), 7_285_403_648);
    let specs = family::tensors(config);
    let shapes = |naming| {
        let of_layer = specs.iter().filter(|spec| spec.layer == Some(63) || spec.layer.is_none());
        of_layer.map(|spec| format!("{} {:?}\n", spec.name(naming), spec.shape(naming))).collect::<String>()
    };
    expect_test::expect![[r#"
        backbone.embeddings.weight [32768, 4096]
        backbone.layers.63.norm.weight [4096]
        backbone.layers.63.mixer.in_proj.weight [18560, 4096]
        backbone.layers.63.mixer.conv1d.weight [10240, 1, 4]
        backbone.layers.63.mixer.conv1d.bias [10240]
        backbone.layers.63.mixer.dt_bias [128]
        backbone.layers.63.mixer.A_log [128]
        backbone.layers.63.mixer.D [128]
        backbone.layers.63.mixer.norm.weight [8192]
        backbone.layers.63.mixer.out_proj.weight [4096, 8192]
        backbone.norm_f.weight [4096]
        lm_head.weight [32768, 4096]
    "#]]
    .assert_eq(&shapes(Naming::Hf));
    // What llama.cpp's `load_arch_tensors` asks for, outermost dimension first.
    expect_test::expect![[r#"
        token_embd.weight [32768, 4096]
        blk.63.attn_norm.weight [4096]
        blk.63.ssm_in.weight [18560, 4096]
        blk.63.ssm_conv1d.weight [10240, 4]
        blk.63.ssm_conv1d.bias [10240]
        blk.63.ssm_dt.bias [128]
        blk.63.ssm_a [128, 1]
        blk.63.ssm_d [128, 1]
        blk.63.ssm_norm.weight [8, 1024]
        blk.63.ssm_out.weight [4096, 8192]
        output_norm.weight [4096]
        output.weight [32768, 4096]
    "#]]
    .assert_eq(&shapes(Naming::Gguf));
}

/// llama.cpp's converter writes a norm of one group as a matrix of one row, its quantiser as a vector.
#[test]
fn one_group_may_be_a_row_or_a_vector() {
    let json = CODESTRAL.replace("INFINITY", "Infinity").replace("\"n_groups\": 8", "\"n_groups\": 1");
    let config = ModelConfig::from_hf(&hf_config(&json)).unwrap();
    let mut shapes = Shapes::of(&config, Naming::Gguf);
    let norm = "blk.3.ssm_norm.weight".to_owned();
    assert_eq!(shapes.0[&norm], [8192]);
    family::check(&config, &shapes).unwrap();
    shapes.0.insert(norm.clone(), vec![1, 8192]);
    family::check(&config, &shapes).unwrap();
    shapes.0.insert(norm, vec![2, 4096]);
    let error = family::check(&config, &shapes).unwrap_err().to_string();
    assert_eq!(error, "tensor `blk.3.ssm_norm.weight` has shape [2, 4096], expected [8192]");
}

#[test]
fn what_a_mixer_does_not_compute_is_refused() {
    let codestral = CODESTRAL.replace("INFINITY", "Infinity");
    let check = |from: &str, to: &str, expected: &str| {
        assert!(codestral.contains(from), "{from}");
        let error = ModelConfig::from_hf(&hf_config(&codestral.replace(from, to))).unwrap_err();
        assert_eq!(error.to_string(), format!("config.json: {expected}"));
    };
    check("\"use_bias\": false", "\"use_bias\": true", "`use_bias` is true, supported: false");
    check("\"use_conv_bias\": true", "\"use_conv_bias\": false", "`use_conv_bias` is false, supported: true");
    check("Infinity", "0.5", "`time_step_limit` is [0.0,0.5], supported: [0.0, Infinity]");
    check("silu", "gelu_pytorch_tanh", "`hidden_act` is gelu_pytorch_tanh, supported: silu");
    check(
        "\"num_heads\": 128",
        "\"num_heads\": 64",
        "`num_heads` is 64, expected expand · hidden_size / head_dim = 8192 / 64",
    );
    check(
        "\"intermediate_size\": 8192",
        "\"intermediate_size\": 4096",
        "`intermediate_size` is 4096, supported: expand · hidden_size = 8192",
    );
    check("\"n_groups\": 8", "\"n_groups\": 7", "`n_groups` is 7, expected a divisor of num_heads 128");
    check("\"conv_kernel\": 4", "\"conv_kernel\": 1", "`conv_kernel` is 1, expected 2 to 16");
    check("\"conv_kernel\": 4", "\"conv_kernel\": 99", "`conv_kernel` is 99, expected 1 to 16");
    check(
        "\"state_size\": 128",
        "\"state_size\": -1",
        "`state_size` is -1, expected a whole number below 65536",
    );
}

/// DeepSeek-V2-Lite's `config.json`.
const DEEPSEEK_V2_LITE: &str = r#"{"architectures": ["DeepseekV2ForCausalLM"], "attention_bias": false,
    "attention_dropout": 0.0, "aux_loss_alpha": 0.001, "bos_token_id": 100000, "eos_token_id": 100001,
    "first_k_dense_replace": 1, "hidden_act": "silu", "hidden_size": 2048, "initializer_range": 0.02,
    "intermediate_size": 10944, "kv_lora_rank": 512, "max_position_embeddings": 163840, "model_type": "deepseek_v2",
    "moe_intermediate_size": 1408, "moe_layer_freq": 1, "n_group": 1, "n_routed_experts": 64, "n_shared_experts": 2,
    "norm_topk_prob": false, "num_attention_heads": 16, "num_experts_per_tok": 6, "num_hidden_layers": 27,
    "num_key_value_heads": 16, "pretraining_tp": 1, "q_lora_rank": null, "qk_nope_head_dim": 128,
    "qk_rope_head_dim": 64, "rms_norm_eps": 1e-06, "rope_scaling": {"beta_fast": 32, "beta_slow": 1, "factor": 40,
    "mscale": 0.707, "mscale_all_dim": 0.707, "original_max_position_embeddings": 4096, "type": "yarn"},
    "rope_theta": 10000, "routed_scaling_factor": 1.0, "scoring_func": "softmax", "seq_aux": true,
    "tie_word_embeddings": false, "topk_group": 1, "topk_method": "greedy", "v_head_dim": 128,
    "vocab_size": 102400}"#;

#[test]
fn deepseek_v2_lite_has_its_published_tensors() {
    let config = ModelConfig::from_hf(&hf_config(DEEPSEEK_V2_LITE)).unwrap();
    // What its page states.
    assert_eq!(config.n_weights(), 15_706_484_224);
    let magnitude = 1.0 + 0.0707 * 40f32.ln();
    assert!((config.score_scale * 192f32.sqrt() / magnitude.powi(2) - 1.0).abs() < 1e-6);
    let specs = family::tensors(&config);
    let shapes = |naming| {
        let of_layers = specs.iter().filter(|spec| [None, Some(0), Some(26)].contains(&spec.layer));
        of_layers.map(|spec| format!("{} {:?}\n", spec.name(naming), spec.shape(naming))).collect::<String>()
    };
    expect_test::expect![[r#"
        model.embed_tokens.weight [102400, 2048]
        model.layers.0.input_layernorm.weight [2048]
        model.layers.0.self_attn.q_proj.weight [3072, 2048]
        model.layers.0.self_attn.kv_a_proj_with_mqa.weight [576, 2048]
        model.layers.0.self_attn.kv_a_layernorm.weight [512]
        model.layers.0.self_attn.kv_b_proj.weight [4096, 512]
        model.layers.0.self_attn.kv_b_proj.weight [4096, 512]
        model.layers.0.self_attn.o_proj.weight [2048, 2048]
        model.layers.0.post_attention_layernorm.weight [2048]
        model.layers.0.mlp.gate_proj.weight [10944, 2048]
        model.layers.0.mlp.up_proj.weight [10944, 2048]
        model.layers.0.mlp.down_proj.weight [2048, 10944]
        model.layers.26.input_layernorm.weight [2048]
        model.layers.26.self_attn.q_proj.weight [3072, 2048]
        model.layers.26.self_attn.kv_a_proj_with_mqa.weight [576, 2048]
        model.layers.26.self_attn.kv_a_layernorm.weight [512]
        model.layers.26.self_attn.kv_b_proj.weight [4096, 512]
        model.layers.26.self_attn.kv_b_proj.weight [4096, 512]
        model.layers.26.self_attn.o_proj.weight [2048, 2048]
        model.layers.26.post_attention_layernorm.weight [2048]
        model.layers.26.mlp.gate.weight [64, 2048]
        model.layers.26.mlp.experts.*.gate_proj.weight [1408, 2048]
        model.layers.26.mlp.experts.*.up_proj.weight [1408, 2048]
        model.layers.26.mlp.experts.*.down_proj.weight [2048, 1408]
        model.layers.26.mlp.shared_experts.gate_proj.weight [2816, 2048]
        model.layers.26.mlp.shared_experts.up_proj.weight [2816, 2048]
        model.layers.26.mlp.shared_experts.down_proj.weight [2048, 2816]
        model.norm.weight [2048]
        lm_head.weight [102400, 2048]
    "#]]
    .assert_eq(&shapes(Naming::Hf));
    // What llama.cpp's `load_arch_tensors` asks for, outermost dimension first.
    expect_test::expect![[r#"
        token_embd.weight [102400, 2048]
        blk.0.attn_norm.weight [2048]
        blk.0.attn_q.weight [3072, 2048]
        blk.0.attn_kv_a_mqa.weight [576, 2048]
        blk.0.attn_kv_a_norm.weight [512]
        blk.0.attn_k_b.weight [16, 512, 128]
        blk.0.attn_v_b.weight [16, 128, 512]
        blk.0.attn_output.weight [2048, 2048]
        blk.0.ffn_norm.weight [2048]
        blk.0.ffn_gate.weight [10944, 2048]
        blk.0.ffn_up.weight [10944, 2048]
        blk.0.ffn_down.weight [2048, 10944]
        blk.26.attn_norm.weight [2048]
        blk.26.attn_q.weight [3072, 2048]
        blk.26.attn_kv_a_mqa.weight [576, 2048]
        blk.26.attn_kv_a_norm.weight [512]
        blk.26.attn_k_b.weight [16, 512, 128]
        blk.26.attn_v_b.weight [16, 128, 512]
        blk.26.attn_output.weight [2048, 2048]
        blk.26.ffn_norm.weight [2048]
        blk.26.ffn_gate_inp.weight [64, 2048]
        blk.26.ffn_gate_exps.weight [64, 1408, 2048]
        blk.26.ffn_up_exps.weight [64, 1408, 2048]
        blk.26.ffn_down_exps.weight [64, 2048, 1408]
        blk.26.ffn_gate_shexp.weight [2816, 2048]
        blk.26.ffn_up_shexp.weight [2816, 2048]
        blk.26.ffn_down_shexp.weight [2048, 2816]
        output_norm.weight [2048]
        output.weight [102400, 2048]
    "#]]
    .assert_eq(&shapes(Naming::Gguf));
    let experts = specs.iter().find(|spec| spec.gguf == "blk.26.ffn_up_exps.weight").unwrap().hf_names();
    assert_eq!((experts.len(), experts[63].as_str()), (64, "model.layers.26.mlp.experts.63.up_proj.weight"));
    let missing = |name: &str| {
        let mut shapes = Shapes::of(&config, Naming::Hf);
        assert!(shapes.0.remove(name).is_some(), "{name}");
        family::check(&config, &shapes).unwrap_err().to_string()
    };
    expect_test::expect![
        "tensor `model.layers.3.mlp.experts.7.up_proj.weight` is missing (1 of 5291 tensors are)"
    ]
    .assert_eq(&missing("model.layers.3.mlp.experts.7.up_proj.weight"));
    expect_test::expect![
        "tensor `model.layers.3.self_attn.kv_b_proj.weight` is missing (1 of 5291 tensors are)"
    ]
    .assert_eq(&missing("model.layers.3.self_attn.kv_b_proj.weight"));
}

#[test]
fn what_a_deepseek_of_other_parts_asks_for_is_refused() {
    let check = |from: &str, to: &str, expected: &str| {
        assert!(DEEPSEEK_V2_LITE.contains(from), "{from}");
        let error = ModelConfig::from_hf(&hf_config(&DEEPSEEK_V2_LITE.replace(from, to))).unwrap_err();
        assert_eq!(error.to_string(), format!("config.json: {expected}"));
    };
    check(
        "\"q_lora_rank\": null",
        "\"q_lora_rank\": 1536",
        "`q_lora_rank` is 1536, supported: null, as in DeepSeek-V2-Lite",
    );
    check(
        "\"norm_topk_prob\": false",
        "\"norm_topk_prob\": true",
        "`norm_topk_prob` is true, supported: false",
    );
    check("greedy", "group_limited_greedy", "`topk_method` is \"group_limited_greedy\", supported: greedy");
    check("softmax", "sigmoid", "`scoring_func` is \"sigmoid\", supported: softmax");
    check("\"moe_layer_freq\": 1", "\"moe_layer_freq\": 2", "`moe_layer_freq` is 2, supported: 1");
    check("1e-06", "1e-05", "`rms_norm_eps` is 0.00001, supported: 0.000001");
    check(
        "\"mscale\": 0.707",
        "\"mscale\": 1.0",
        "`rope_scaling.mscale` is 1 beside an mscale_all_dim of 0.707, supported: the same positive number for both",
    );
    check(
        "\"num_experts_per_tok\": 6",
        "\"num_experts_per_tok\": 65",
        "`num_experts_per_tok` is 65, expected 1 to n_routed_experts 64",
    );
    check(
        "\"n_shared_experts\": 2",
        "\"n_shared_experts\": 0",
        "`n_shared_experts` is 0, expected 1 to 1024",
    );
    check(
        "\"qk_nope_head_dim\": 128",
        "\"qk_nope_head_dim\": 0",
        "`qk_nope_head_dim` is 0, expected a positive number",
    );
    check(
        "\"kv_lora_rank\": 512",
        "\"kv_lora_rank\": \"x\"",
        "`kv_lora_rank` is \"x\", expected a whole number",
    );
}

#[test]
fn gguf_metadata_reads_back() {
    let scaled = tiny_with(r#"{"rope_scaling": {"type": "linear", "factor": 2.0}, "head_dim": 32}"#);
    let qwen = TINY_LLAMA.replace("LlamaForCausalLM", "Qwen3ForCausalLM").replace("\"llama\"", "\"qwen3\"");
    let codestral = CODESTRAL.replace("INFINITY", "Infinity");
    let yarn = tiny_with(
        r#"{"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128,
        "beta_fast": 16, "mscale": 0.5, "mscale_all_dim": 0.5}}"#,
    );
    let two_layers = DEEPSEEK_V2_LITE.replace("\"num_hidden_layers\": 27", "\"num_hidden_layers\": 2");
    for json in [TINY_LLAMA, &scaled, &qwen, &codestral, &yarn, DEEPSEEK_V2_LITE, &two_layers] {
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
        "config.json: architecture `GemmaForCausalLM` is not supported (supported: LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, Phi3ForCausalLM, Gemma3ForCausalLM, Gemma3ForConditionalGeneration, Starcoder2ForCausalLM, Mamba2ForCausalLM, DeepseekV2ForCausalLM)",
    );
    check(r#"{"attention_bias": true}"#, "config.json: `attention_bias` is true, supported: false");
    check(
        r#"{"hidden_act": "gelu"}"#,
        "config.json: `hidden_act` is gelu, supported: silu, gelu_pytorch_tanh",
    );
    check(
        r#"{"rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}"#,
        "config.json: `rope_scaling.rope_type` is dynamic, supported: default, linear, llama3, yarn, longrope",
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
        let found = family::check(&config, &shapes).err().map(|error| error.to_string());
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

#[test]
fn a_gemma_3_that_also_sees_has_the_names_of_its_checkpoint() {
    let config = ModelConfig::from_hf(&hf_config(
        r#"{"architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "text_config": {
        "model_type": "gemma3_text", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 300,
        "query_pre_attn_scalar": 16, "sliding_window": 32, "tie_word_embeddings": true}}"#,
    ))
    .unwrap();
    let published = Shapes::of(&config, Naming::Hf);
    let mut renamed = published.clone();
    renamed.0 = published
        .0
        .iter()
        .map(|(name, shape)| {
            let rest = name.strip_prefix("language_model.model.").unwrap();
            (format!("model.language_model.{rest}"), shape.clone())
        })
        .collect();
    for (mut shapes, tower) in [(published, "vision_tower."), (renamed, "model.vision_tower.")] {
        shapes.0.insert(format!("{tower}embeddings.patch_embedding.bias"), vec![32]);
        let config = config.clone().named_as_in(&shapes);
        family::check(&config, &shapes).unwrap();
        // PEFT's names, on which its version of the model and not the file decides.
        assert_eq!(family::linears(&config)[0].module, "model.language_model.layers.0.self_attn.q_proj");
    }
}

/// Frequencies 4 of 16 by `ROPE_INIT_FUNCTIONS` of transformers 5.23, where the ramp is: base 10,000, 256 positions.
#[test]
fn the_context_of_pre_training_is_found_where_transformers_finds_it() {
    const YARN: &str = r#""rope_type": "yarn", "factor": 4.0"#;
    const LLAMA3: &str =
        r#""rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0"#;
    const IN_64: &str = r#", "original_max_position_embeddings": 64"#;
    const BESIDE_32: &str = r#", "original_max_position_embeddings": 32"#;
    for (scaling, within, beside, expected) in [
        (YARN, "", "", 0.057_142_9),
        (YARN, IN_64, "", 0.04),
        (YARN, "", BESIDE_32, 0.025),
        (YARN, IN_64, BESIDE_32, 0.025),
        (r#""rope_type": "yarn", "factor": null"#, IN_64, "", 0.04),
        (LLAMA3, "", "", 0.1),
        (LLAMA3, IN_64, BESIDE_32, 0.025),
    ] {
        let json = tiny_with(&format!(
            r#"{{"head_dim": 32, "max_position_embeddings": 256, "rope_theta": 10000.0,
            "rope_scaling": {{{scaling}{within}}}{beside}}}"#
        ));
        let found = ModelConfig::from_hf(&hf_config(&json)).unwrap().rope.inverse_frequencies()[4];
        assert!(
            (found / expected - 1.0).abs() < 1e-5,
            "{scaling}{within}{beside}: {found}, expected {expected}"
        );
    }
}

#[test]
fn a_phi_3_is_stretched_by_longrope_alone() {
    let read = |scaling: &str| {
        let json = tiny_with(&format!(
            r#"{{"architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "head_dim": 8,
            "original_max_position_embeddings": 64, "rope_scaling": {{{scaling}}}}}"#
        ));
        ModelConfig::from_hf(&hf_config(&json)).map(|config| config.rope.scaling).map_err(|e| e.to_string())
    };
    let factors = r#""short_factor": [1, 1, 1, 1], "long_factor": [2, 2, 2, 2]"#;
    let [longrope, yarn] = ["longrope", "yarn"].map(|kind| read(&format!(r#""type": "{kind}", {factors}"#)));
    assert!(matches!(longrope, Ok(RopeScaling::Long(_))), "{longrope:?}");
    assert_eq!(yarn, longrope);
    let error = read(r#""type": "yarn", "factor": 4.0"#).unwrap_err();
    assert_eq!(error, "config.json: `rope_scaling.short_factor` is missing, expected 4 positive numbers");
    let error = read(r#""type": "linear", "factor": 4.0"#).unwrap_err();
    assert_eq!(error, "config.json: `rope_scaling.rope_type` is linear, supported: longrope");
}
