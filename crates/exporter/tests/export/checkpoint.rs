//! Tiny models with random weights, made by the tests themselves in the layout of Hugging Face.

use std::path::{Path, PathBuf};

use formats::TensorSource;
use formats::adapter::{AdapterConfig, AdapterFiles, AdapterTensor, Provenance as Recorded, write_adapter};
use formats::checkpoint::{Checkpoint, Data, write_safetensors};
use formats::config::HfConfig;
use formats::imatrix::{Entry, ImportanceMatrix};
use model::ModelConfig;
use model::family::{self, Held, Naming, Role, TensorSpec};
use serde_json::{Value, json};

/// Plain ChatML.
pub const CHATML: &str = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}\
                          <|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// A directory with a base, and room beside it.
pub struct Tiny {
    pub dir: Directory,
}

/// Removed at the end, or another process's.
pub enum Directory {
    Own(tempfile::TempDir),
    Lent(PathBuf),
}

impl Directory {
    pub fn path(&self) -> &Path {
        match self {
            Directory::Own(dir) => dir.path(),
            Directory::Lent(path) => path,
        }
    }
}

impl Tiny {
    /// Qwen3, tied, rows that are whole K-blocks: the types of Q4_K_M proper.
    pub fn qwen3() -> Tiny {
        Tiny::new(json!({
            "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_act": "silu",
            "hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 2, "head_dim": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
            "max_position_embeddings": 256, "tie_word_embeddings": true, "vocab_size": 272,
            "attention_bias": false, "torch_dtype": "bfloat16",
        }))
    }

    /// Llama with a head of its own, scaled rotation, and rows that are no multiple of 256 (64) nor of 32 (172).
    pub fn llama() -> Tiny {
        Tiny::new(json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu",
            "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 2, "num_attention_heads": 8,
            "num_key_value_heads": 4, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
            "max_position_embeddings": 256, "tie_word_embeddings": false, "vocab_size": 259,
            "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                             "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
        }))
    }

    /// Llama with rows that are whole K-blocks.
    pub fn llama_of(hidden: usize) -> Tiny {
        let tiny = Tiny::llama();
        tiny.change_config(|config| {
            config["hidden_size"] = hidden.into();
            config["max_position_embeddings"] = 1024.into();
        });
        tiny
    }

    /// DeepSeek-V2-Lite: a dense layer, then routed experts; a latent, and a context that yarn stretched.
    pub fn deepseek2(n_experts: usize) -> Tiny {
        Tiny::new(json!({
            "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "hidden_act": "silu",
            "hidden_size": 256, "intermediate_size": 320, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 4, "q_lora_rank": null, "kv_lora_rank": 256, "qk_nope_head_dim": 64,
            "qk_rope_head_dim": 32, "v_head_dim": 48, "first_k_dense_replace": 1, "moe_layer_freq": 1,
            "n_routed_experts": n_experts, "n_shared_experts": 2, "num_experts_per_tok": 2, "n_group": 1,
            "topk_group": 1, "moe_intermediate_size": 96, "norm_topk_prob": false, "routed_scaling_factor": 1.0,
            "scoring_func": "softmax", "topk_method": "greedy", "rms_norm_eps": 1e-6, "rope_theta": 10000,
            "max_position_embeddings": 1024, "tie_word_embeddings": false, "vocab_size": 272,
            "attention_bias": false, "rope_scaling": {"type": "yarn", "factor": 16, "beta_fast": 32, "beta_slow": 1,
                "mscale": 0.707, "mscale_all_dim": 0.707, "original_max_position_embeddings": 64},
        }))
    }

    /// Mistral as its first version was: a window in every layer.
    pub fn mistral(window: usize) -> Tiny {
        Tiny::new(json!({
            "architectures": ["MistralForCausalLM"], "model_type": "mistral", "hidden_act": "silu",
            "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4,
            "num_key_value_heads": 2, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "sliding_window": window,
            "max_position_embeddings": 256, "tie_word_embeddings": false, "vocab_size": 259,
        }))
    }

    /// A base of this configuration.
    pub fn new(config: Value) -> Tiny {
        let tiny = Tiny { dir: Directory::Own(tempfile::tempdir().unwrap()) };
        std::fs::create_dir(tiny.base()).unwrap();
        write_json(&tiny.base().join("config.json"), &config);
        write_tokenizer(&tiny.base());
        tiny.write_weights(1);
        tiny
    }

    /// Another configuration, and weights for it.
    pub fn change_config(&self, change: impl FnOnce(&mut Value)) {
        let path = self.base().join("config.json");
        let mut config = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        change(&mut config);
        write_json(&path, &config);
        self.write_weights(1);
    }

    /// What another process has made.
    pub fn in_directory(path: &Path) -> Tiny {
        Tiny { dir: Directory::Lent(path.to_owned()) }
    }

    pub fn base(&self) -> PathBuf {
        self.dir.path().join("base")
    }

    pub fn adapter(&self) -> PathBuf {
        self.dir.path().join("adapter")
    }

    pub fn output(&self) -> PathBuf {
        self.dir.path().join("export")
    }

    pub fn config(&self) -> ModelConfig {
        ModelConfig::from_hf(&HfConfig::from_dir(&self.base()).unwrap()).unwrap()
    }

    pub fn specs(&self) -> Vec<TensorSpec> {
        family::tensors(&self.config())
    }

    /// Fresh weights of the same shapes.
    pub fn write_weights(&self, seed: u64) {
        self.write_changed(seed, |_, _| {});
    }

    /// Weights, each tensor changed before it is written.
    pub fn write_changed(&self, seed: u64, change: impl Fn(&TensorSpec, &mut [f32])) {
        let mut random = Random(seed);
        let tensors: Vec<(String, Vec<usize>, Vec<f32>)> = self
            .specs()
            .into_iter()
            // Keys and values of a latent come from one tensor, which is written with the first of the two.
            .filter(|spec| spec.role != Role::LatentValues)
            .map(|spec| {
                let (mean, spread) = match spec.role {
                    _ if spec.hf.ends_with(".bias") => (0.0, 0.1),
                    Role::SsmConv => (0.0, 0.5),
                    // Decays from slow to fast, at steps of about 0.3.
                    Role::SsmDecay => (0.0, 1.0),
                    Role::SsmStepBias => (-1.0, 0.5),
                    // Gains that are 1 when held, with what a family adds to them.
                    role if role.is_vector() => {
                        (if let Held::Plus(offset) = spec.held { 1.0 - offset } else { 1.0 }, 0.1)
                    }
                    _ => (0.0, 0.05),
                };
                let n_weights = spec.hf_names().len() * spec.shape(Naming::Hf).iter().product::<usize>();
                let mut values: Vec<f32> = (0..n_weights).map(|_| mean + spread * random.bell()).collect();
                change(&spec, &mut values);
                (spec, values)
            })
            .flat_map(|(spec, values)| in_checkpoint(spec, values))
            .collect();
        let data: Vec<_> =
            tensors.iter().map(|(name, shape, v)| (name.clone(), shape.clone(), Data::Bf16(v))).collect();
        write_safetensors(&self.base().join("model.safetensors"), &data).unwrap();
    }

    /// An importance matrix of all layers, in which the second of stacked matrices met nothing.
    pub fn importance(&self, seed: u64) -> ImportanceMatrix {
        let mut random = Random(seed);
        let has_entry = |spec: &TensorSpec| spec.layer.is_some() && spec.shape(Naming::Gguf).len() > 1;
        let entries = self.specs().into_iter().filter(has_entry).map(|spec| {
            let shape = spec.shape(Naming::Gguf);
            let n_matrices = if shape.len() == 3 { shape[0] } else { 1 };
            let counts: Vec<f32> = (0..n_matrices).map(|i| if i == 1 { 0.0 } else { 100.0 }).collect();
            let sum = |count: f32, x: f32| count * (0.01 + x * x);
            let of_matrix = counts.iter().flat_map(|&count| std::iter::repeat_n(count, spec.cols));
            let sums = of_matrix.map(|count| sum(count, random.bell())).collect();
            (spec.gguf, Entry { sums, counts })
        });
        let datasets = vec!["tiny.jsonl".to_owned()];
        let entries = entries.collect();
        ImportanceMatrix { datasets, n_chunks: 3, chunk_tokens: 512, made_of: None, entries }
    }

    /// An adapter of rank 4 over all linears, trained on this base, changed before it is written.
    pub fn write_adapter(&self, change: impl FnOnce(&mut AdapterFiles)) {
        let mut random = Random(7);
        let mut values = |n: usize| -> Vec<f32> { (0..n).map(|_| 0.1 * random.bell()).collect() };
        let r = 4;
        let tensors = family::linears(&self.config()).into_iter().map(|linear| AdapterTensor {
            module: linear.module,
            a: values(r * linear.cols),
            b: values(linear.rows * r),
            magnitude: None,
            r,
            in_features: linear.cols,
            out_features: linear.rows,
        });
        let names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
        let mut files = AdapterFiles {
            config: AdapterConfig::lora(r, 8.0, names.map(str::to_owned).to_vec()),
            tune: Some(Recorded {
                base_blake3: Checkpoint::open(&self.base()).unwrap().content_hash().unwrap(),
                base_path: self.base().display().to_string(),
                template_blake3: formats::hash::blake3_bytes(CHATML.as_bytes()),
                dataset_blake3: "d".repeat(64),
                steps: 12,
                extra: json!({
                    "base_config_blake3": formats::hash::blake3_file(&self.base().join("config.json")).unwrap(),
                    "tokenizer_blake3": text::files_blake3(&self.base()).unwrap(),
                })
                .as_object()
                .unwrap()
                .clone(),
                ..Recorded::default()
            }),
            tensors: tensors.collect(),
        };
        change(&mut files);
        write_adapter(&self.adapter(), &files).unwrap();
    }
}

/// Deterministic numbers; the sum of four uniform ones is bell-shaped enough.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 33
    }

    pub fn bell(&mut self) -> f32 {
        let uniform = |bits: u64| bits as f32 / (1u64 << 31) as f32 - 0.5;
        (0..4).map(|_| uniform(self.next())).sum::<f32>() * 1.7
    }
}

/// Names, shapes and values of a tensor, or of each of those that it is made of.
fn in_checkpoint(spec: TensorSpec, values: Vec<f32>) -> Vec<(String, Vec<usize>, Vec<f32>)> {
    let (names, shape) = (spec.hf_names(), spec.shape(Naming::Hf));
    let parts = values.chunks(values.len() / names.len()).map(<[f32]>::to_vec);
    names.into_iter().zip(parts).map(|(name, part)| (name, shape.clone(), part)).collect()
}

fn write_json(path: &Path, value: &Value) {
    std::fs::write(path, value.to_string()).unwrap();
}

/// Byte-level BPE of 256 bytes and three control tokens, cut up as Qwen2 does.
fn write_tokenizer(dir: &Path) {
    let mut vocabulary = serde_json::Map::new();
    for (id, symbol) in byte_symbols().into_iter().enumerate() {
        vocabulary.insert(symbol.to_string(), json!(id));
    }
    let specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
    let added: Vec<Value> = specials
        .iter()
        .enumerate()
        .map(|(i, content)| {
            json!({"id": 256 + i, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
                   "normalized": false, "special": true})
        })
        .collect();
    let pattern = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\
                   \\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
    let byte_level = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false,
                            "use_regex": false});
    let split =
        json!({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": false});
    write_json(
        &dir.join("tokenizer.json"),
        &json!({
            "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
            "normalizer": {"type": "NFC"},
            "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
            "post_processor": byte_level, "decoder": byte_level,
            "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
                      "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false,
                      "vocab": vocabulary, "merges": []},
        }),
    );
    let decoder: serde_json::Map<String, Value> =
        added.iter().map(|token| (token["id"].to_string(), token.clone())).collect();
    write_json(
        &dir.join("tokenizer_config.json"),
        &json!({
            "tokenizer_class": "Qwen2Tokenizer", "add_bos_token": false, "bos_token": null,
            "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": CHATML,
            "model_max_length": 256, "added_tokens_decoder": decoder,
        }),
    );
}

/// The printable character that stands for each byte, as GPT-2 chose them.
fn byte_symbols() -> Vec<char> {
    let is_printable = |byte: u32| matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    let mut next = 256;
    (0..256u32)
        .map(|byte| {
            let code = if is_printable(byte) {
                byte
            } else {
                next += 1;
                next - 1
            };
            char::from_u32(code).unwrap()
        })
        .collect()
}
