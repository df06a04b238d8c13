//! A GGUF made on the spot which the real engine runs: a Qwen3 whose every next token depends on the last alone.
//!
//! Attention and feed-forward are zero, embeddings are one-hot, and the head's row for token `n` has a one where
//! the embedding of its predecessor has it. So after the generation prompt, which ends with a newline, the model
//! says exactly the pieces it was built with and then ends its turn.
#![allow(dead_code, reason = "each test file uses its own part of it")]

pub mod noise;

use std::fs::File;
use std::path::Path;

use formats::BlockType;
use formats::gguf::{Array, Metadata, Planned, Value, Writer};

/// Token of an answer's first piece; the byte tokens stand before it, the control tokens after the pieces.
const FIRST_PIECE: usize = 259;

const TEMPLATE: &str = "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";

/// What the model says.
pub enum Says<'a> {
    /// These pieces, then it ends its turn.
    Once(&'a [&'a str]),
    /// These pieces, again and again.
    Forever(&'a [&'a str]),
}

/// The file's chat template.
pub enum Template<'a> {
    Chat,
    Source(&'a str),
    None,
}

/// Writes such a model with a context of 512 tokens.
pub fn write(path: &Path, says: &Says<'_>) {
    write_with(path, says, &Template::Chat);
}

/// The same with a chat template of that source.
pub fn write_template(path: &Path, says: &Says<'_>, source: &str) {
    write_with(path, says, &Template::Source(source));
}

pub fn write_with(path: &Path, says: &Says<'_>, template: &Template<'_>) {
    write_saying_more(path, says, template, &[]);
}

/// The same, with more keys in its metadata.
pub fn write_saying_more(path: &Path, says: &Says<'_>, template: &Template<'_>, more: &[(&str, Value)]) {
    let (pieces, forever) = match says {
        Says::Once(pieces) => (*pieces, false),
        Says::Forever(pieces) => (*pieces, true),
    };
    let (tokens, types) = vocabulary(pieces);
    let rows = tokens.len();
    let width = rows.next_multiple_of(64);
    let end = rows - 1;
    let newline = tokens.iter().position(|token| token == "Ċ").unwrap();
    let mut next: Vec<(usize, usize)> = vec![(newline, FIRST_PIECE)];
    next.extend((1..pieces.len()).map(|i| (FIRST_PIECE + i - 1, FIRST_PIECE + i)));
    next.push((FIRST_PIECE + pieces.len() - 1, if forever { FIRST_PIECE } else { end }));

    let mut embedding = vec![0.0; rows * width];
    for token in 0..rows {
        embedding[token * width + token] = 1.0;
    }
    let mut head = vec![0.0; rows * width];
    for (token, successor) in next {
        head[successor * width + token] = 1.0;
    }
    let mut metadata = metadata(width, tokens, types, end, template);
    for (key, value) in more {
        metadata.push(*key, value.clone());
    }
    let tensors = tensors(width, rows);
    let mut writer = Writer::begin(File::create(path).unwrap(), &metadata, &planned(&tensors)).unwrap();
    for (name, shape) in &tensors {
        let n: usize = shape.iter().product();
        let values = match name.as_str() {
            "token_embd.weight" => embedding.clone(),
            "output.weight" => head.clone(),
            name if name.contains("norm") => vec![1.0; n],
            _ => vec![0.0; n],
        };
        writer.write_tensor(&little_endian(&values)).unwrap();
    }
    writer.finish().unwrap();
}

/// Writes an adapter over such a model of these pieces, which makes it begin with another piece: a pair over the
/// head, of rank 1, that moves the newline's successor. It names a base by its hash, or none.
pub fn write_adapter(path: &Path, pieces: &[&str], first: usize, base_blake3: Option<&str>) {
    let (tokens, _) = vocabulary(pieces);
    let (rows, newline) = (tokens.len(), tokens.iter().position(|token| token == "Ċ").unwrap());
    let width = rows.next_multiple_of(64);
    let mut a = vec![0.0; width];
    a[newline] = 1.0;
    let mut b = vec![0.0; rows];
    b[FIRST_PIECE] = -1.0;
    b[FIRST_PIECE + first] += 1.0;
    write_pairs(path, 1.0, base_blake3, &[("output.weight", [width, 1, rows], a, b)]);
}

/// A tensor's name, its rank and widths, and its two matrices.
type Pair<'a> = (&'a str, [usize; 3], Vec<f32>, Vec<f32>);

/// Writes an adapter of such pairs: matrix, [C_in, R, C_out], A and B.
pub fn write_pairs(path: &Path, alpha: f32, base_blake3: Option<&str>, pairs: &[Pair<'_>]) {
    let mut metadata = Metadata::new();
    metadata.push("general.architecture", "qwen3");
    metadata.push("general.type", "adapter");
    metadata.push("adapter.type", "lora");
    metadata.push("adapter.lora.alpha", alpha);
    if let Some(hash) = base_blake3 {
        metadata.push("tune.base_blake3", hash);
    }
    let sides = |(name, [columns, rank, rows], _, _): &(&str, [usize; 3], Vec<f32>, Vec<f32>)| {
        [(format!("{name}.lora_a"), vec![*columns, *rank]), (format!("{name}.lora_b"), vec![*rank, *rows])]
    };
    let shapes: Vec<(String, Vec<usize>)> = pairs.iter().flat_map(sides).collect();
    let mut writer = Writer::begin(File::create(path).unwrap(), &metadata, &planned(&shapes)).unwrap();
    for (_, _, a, b) in pairs {
        writer.write_tensor(&little_endian(a)).unwrap();
        writer.write_tensor(&little_endian(b)).unwrap();
    }
    writer.finish().unwrap();
}

fn little_endian(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn planned(tensors: &[(String, Vec<usize>)]) -> Vec<Planned> {
    let shape = |shape: &[usize]| shape.iter().map(|&n| n as u64).collect();
    tensors.iter().map(|(name, dims)| (name.clone(), shape(dims), BlockType::F32)).collect()
}

fn tensors(width: usize, rows: usize) -> Vec<(String, Vec<usize>)> {
    let block = |name: &str, shape: &[usize]| (format!("blk.0.{name}.weight"), shape.to_vec());
    vec![
        ("token_embd.weight".to_owned(), vec![width, rows]),
        ("output_norm.weight".to_owned(), vec![width]),
        ("output.weight".to_owned(), vec![width, rows]),
        block("attn_norm", &[width]),
        block("attn_q", &[width, 32]),
        block("attn_k", &[width, 32]),
        block("attn_v", &[width, 32]),
        block("attn_output", &[32, width]),
        block("attn_q_norm", &[32]),
        block("attn_k_norm", &[32]),
        block("ffn_norm", &[width]),
        block("ffn_gate", &[width, 32]),
        block("ffn_up", &[width, 32]),
        block("ffn_down", &[32, width]),
    ]
}

fn metadata(
    width: usize,
    tokens: Vec<String>,
    types: Vec<i32>,
    end: usize,
    template: &Template<'_>,
) -> Metadata {
    let mut metadata = Metadata::new();
    metadata.push("general.architecture", Value::String("qwen3".to_owned()));
    metadata.push("general.name", Value::String("tiny".to_owned()));
    for (key, value) in [
        ("context_length", 512),
        ("embedding_length", width),
        ("block_count", 1),
        ("feed_forward_length", 32),
        ("attention.head_count", 1),
        ("attention.head_count_kv", 1),
        ("attention.key_length", 32),
        ("attention.value_length", 32),
    ] {
        metadata.push(format!("qwen3.{key}"), Value::U32(u32::try_from(value).unwrap()));
    }
    metadata.push("qwen3.rope.freq_base", Value::F32(10_000.0));
    metadata.push("qwen3.attention.layer_norm_rms_epsilon", Value::F32(1e-6));
    metadata.push("tokenizer.ggml.model", Value::String("gpt2".to_owned()));
    metadata.push("tokenizer.ggml.pre", Value::String("qwen2".to_owned()));
    metadata.push("tokenizer.ggml.tokens", tokens);
    metadata.push("tokenizer.ggml.token_type", Value::Array(Array::I32(types)));
    let merges = ["h e", "Ġ t", "i n"].map(str::to_owned).to_vec();
    metadata.push("tokenizer.ggml.merges", merges);
    metadata.push("tokenizer.ggml.eos_token_id", Value::U32(u32::try_from(end).unwrap()));
    metadata.push("tokenizer.ggml.add_bos_token", Value::Bool(false));
    let source = match template {
        Template::Chat => Some(TEMPLATE),
        Template::Source(source) => Some(*source),
        Template::None => None,
    };
    if let Some(source) = source {
        metadata.push("tokenizer.chat_template", Value::String(source.to_owned()));
    }
    metadata
}

/// All bytes, three merged tokens, the pieces, and three control tokens of which the last ends a turn.
fn vocabulary(pieces: &[&str]) -> (Vec<String>, Vec<i32>) {
    const NORMAL: i32 = 1;
    const CONTROL: i32 = 3;
    let mut tokens: Vec<String> = (0..=255).map(|byte| byte_character(byte).to_string()).collect();
    tokens.extend(["he", "Ġt", "in"].map(str::to_owned));
    assert_eq!(tokens.len(), FIRST_PIECE);
    tokens.extend(pieces.iter().map(|piece| piece.bytes().map(byte_character).collect::<String>()));
    let normal = tokens.len();
    tokens.extend(["<|endoftext|>", "<|im_start|>", "<|im_end|>"].map(str::to_owned));
    let types = (0..tokens.len()).map(|i| if i < normal { NORMAL } else { CONTROL }).collect();
    (tokens, types)
}

/// GPT-2's printable character for a byte.
fn byte_character(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let n = (0..byte).filter(|&byte| !printable(byte)).count();
    char::from_u32(256 + u32::try_from(n).unwrap()).unwrap()
}
