//! A base model of a few thousand random weights with a byte-level tokenizer, written anew by each test.

use std::path::{Path, PathBuf};

use formats::checkpoint::{Data, write_safetensors};
use model::device::Precision;
use serde_json::{Map, Value, json};
use trainer::options::{AdapterOptions, DataOptions, EvalOptions, ModelOptions, Options, TrainOptions};
use trainer::{Event, Length, Outcome};

/// How large the weights are.
#[derive(Clone, Copy)]
pub struct Widths {
    pub hidden: usize,
    pub intermediate: usize,
    pub n_layers: usize,
}

pub const TINY: Widths = Widths { hidden: 64, intermediate: 96, n_layers: 2 };
const N_HEADS: usize = 4;
const N_KV_HEADS: usize = 2;
const HEAD_DIM: usize = 16;
const CONTROL_TOKENS: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
/// Bytes and control tokens, rounded up to a whole number of blocks.
const VOCAB_SIZE: usize = 288;

const CHATML: &str = "{%- for message in messages %}{{- '<|im_start|>' + message.role + '\n' + message.content + \
                      '<|im_end|>\n' }}{%- endfor %}{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}";

/// A folder with a base, data and runs; gone when dropped.
pub struct Workplace {
    dir: tempfile::TempDir,
}

impl Workplace {
    pub fn new() -> Self {
        Self::with_base(TINY)
    }

    pub fn with_base(widths: Widths) -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        write_base_of(&place.base(), widths, 1.0);
        place.write_data("train.jsonl", &rows(0..40));
        place.write_data("test.jsonl", &rows(100..106));
        place
    }

    pub fn base(&self) -> PathBuf {
        self.dir.path().join("base")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn write_data(&self, name: &str, content: &str) {
        std::fs::write(self.path(name), content).unwrap();
    }

    /// Twelve steps of four rows on `train.jsonl`.
    pub fn options(&self, run: &str) -> Options {
        Options {
            run_dir: self.path(run),
            model: ModelOptions {
                base: self.base(),
                quant: Some("q8_0".into()),
                // The same on every processor, and however few tokens a batch has.
                compute: Some(Precision::F32),
                ..ModelOptions::default()
            },
            adapter: AdapterOptions { rank: 4, alpha: 8.0, ..AdapterOptions::default() },
            data: DataOptions {
                train: vec![self.path("train.jsonl").into()],
                val_split: 0.1,
                max_seq_len: 256,
                ..DataOptions::default()
            },
            train: TrainOptions {
                length: Length::MaxSteps(12),
                batch_size: 2,
                gradient_accumulation_steps: 2,
                learning_rate: 5e-3,
                eval_every: 3,
                checkpoint_every: 2,
                ..TrainOptions::default()
            },
            eval: EvalOptions { samples: 0, max_new_tokens: 8, ..EvalOptions::default() },
            ..Options::default()
        }
    }
}

/// Conversations whose answer is the question's number.
pub fn rows(numbers: std::ops::Range<u32>) -> String {
    let row = |n: u32| {
        let question = json!({"role": "user", "content": format!("number {n}?")});
        let answer = json!({"role": "assistant", "content": format!("it is {n}")});
        json!({"messages": [question, answer]}).to_string() + "\n"
    };
    numbers.map(row).collect()
}

/// Trains without interruption and gives back the events.
pub fn train(options: &Options) -> (trainer::Result<Outcome>, Vec<Event>) {
    let (mut events, cancel) = (Vec::new(), std::sync::atomic::AtomicBool::new(false));
    let outcome = trainer::train(options, &mut |event| events.push(event), &cancel);
    (outcome, events)
}

/// A tiny Qwen3 with random weights, all of them times `scale`.
pub fn write_base(dir: &Path, scale: f32) {
    write_base_of(dir, TINY, scale);
}

fn write_base_of(dir: &Path, widths: Widths, scale: f32) {
    std::fs::create_dir_all(dir).unwrap();
    let config = json!({
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": VOCAB_SIZE,
        "hidden_size": widths.hidden,
        "intermediate_size": widths.intermediate,
        "num_hidden_layers": widths.n_layers,
        "num_attention_heads": N_HEADS,
        "num_key_value_heads": N_KV_HEADS,
        "head_dim": HEAD_DIM,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": true,
        "max_position_embeddings": 256,
        "hidden_act": "silu",
        "torch_dtype": "float32",
        "bos_token_id": null,
        "eos_token_id": 258,
    });
    write_json(&dir.join("config.json"), &config);
    write_json(&dir.join("tokenizer.json"), &tokenizer());
    let tokenizer_config = json!({
        "tokenizer_class": "Qwen2Tokenizer",
        "bos_token": null,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "add_bos_token": false,
        "chat_template": CHATML,
    });
    write_json(&dir.join("tokenizer_config.json"), &tokenizer_config);
    write_weights(dir, widths, scale);
}

fn write_json(path: &Path, value: &Value) {
    std::fs::write(path, serde_json::to_vec_pretty(value).unwrap()).unwrap();
}

/// One token a byte, no merges, Qwen's pre-tokenizer.
fn tokenizer() -> Value {
    let mut vocabulary = Map::new();
    for (id, name) in byte_names().into_iter().enumerate() {
        vocabulary.insert(name.to_string(), json!(id));
    }
    let control = CONTROL_TOKENS.iter().enumerate().map(|(index, content)| {
        json!({"id": 256 + index, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    });
    const QWEN: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+";
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    json!({
        "version": "1.0",
        "truncation": null,
        "padding": null,
        "added_tokens": control.collect::<Vec<_>>(),
        "normalizer": {"type": "NFC"},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
            {"type": "Split", "pattern": {"Regex": QWEN}, "behavior": "Isolated", "invert": false},
            byte_level,
        ]},
        "post_processor": byte_level,
        "decoder": byte_level,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": "",
                  "end_of_word_suffix": "", "fuse_unk": false, "byte_fallback": false, "vocab": vocabulary, "merges": []},
    })
}

/// GPT-2's printable stand-ins for the 256 bytes.
fn byte_names() -> Vec<char> {
    let is_printable = |byte: u32| matches!(byte, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    let mut next = 256;
    let name = |byte: u32| {
        if !is_printable(byte) {
            next += 1;
        }
        char::from_u32(if is_printable(byte) { byte } else { next - 1 }).unwrap()
    };
    (0..256).map(name).collect()
}

fn write_weights(dir: &Path, Widths { hidden, intermediate, n_layers }: Widths, scale: f32) {
    let (q, kv) = (N_HEADS * HEAD_DIM, N_KV_HEADS * HEAD_DIM);
    let mut shapes = vec![("model.embed_tokens.weight".to_owned(), vec![VOCAB_SIZE, hidden])];
    for layer in 0..n_layers {
        let mut push = |name: &str, shape: &[usize]| {
            shapes.push((format!("model.layers.{layer}.{name}.weight"), shape.to_vec()));
        };
        push("input_layernorm", &[hidden]);
        push("self_attn.q_proj", &[q, hidden]);
        push("self_attn.k_proj", &[kv, hidden]);
        push("self_attn.v_proj", &[kv, hidden]);
        push("self_attn.o_proj", &[hidden, q]);
        push("self_attn.q_norm", &[HEAD_DIM]);
        push("self_attn.k_norm", &[HEAD_DIM]);
        push("post_attention_layernorm", &[hidden]);
        push("mlp.gate_proj", &[intermediate, hidden]);
        push("mlp.up_proj", &[intermediate, hidden]);
        push("mlp.down_proj", &[hidden, intermediate]);
    }
    shapes.push(("model.norm.weight".to_owned(), vec![hidden]));
    let mut random = 1_u64;
    let weights: Vec<Vec<f32>> = shapes.iter().map(|(_, shape)| values(shape, scale, &mut random)).collect();
    let tensors: Vec<_> = shapes
        .into_iter()
        .zip(&weights)
        .map(|((name, shape), values)| (name, shape, Data::F32(values)))
        .collect();
    write_safetensors(&dir.join("model.safetensors"), &tensors).unwrap();
}

/// Norms are 1; other weights uniform in ±sqrt(3 / columns), which keeps the width of the stream.
fn values(shape: &[usize], scale: f32, random: &mut u64) -> Vec<f32> {
    if shape.len() == 1 {
        return vec![scale; shape[0]];
    }
    let bound = scale * (3.0 / shape[1] as f32).sqrt();
    let mut next = || {
        *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (*random >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..shape[0] * shape[1]).map(|_| bound * next()).collect()
}
