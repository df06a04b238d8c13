//! A model of random numbers: what it says means nothing, but every number of it depends on every token before.

use std::fs::File;
use std::path::Path;

use formats::gguf::{Metadata, Value, Writer};

use super::{little_endian, planned, vocabulary, write_pairs};

/// Layers.
pub const LAYERS: usize = 3;
const WIDTH: usize = 64;
const INNER: usize = 160;
const KEYS: usize = 32;
const QUERIES: usize = 64;

/// Writes such a model, of two heads that share one of keys and values, with a context of 512 tokens.
pub fn write(path: &Path, seed: u64) {
    let (tokens, types) = vocabulary(&["xyz"]);
    let rows = tokens.len();
    let end = rows - 1;
    let mut metadata: Metadata = super::metadata(WIDTH, tokens, types, end, &super::Template::Chat);
    for (key, value) in [("block_count", LAYERS), ("feed_forward_length", INNER), ("attention.head_count", 2)]
    {
        metadata.insert(format!("qwen3.{key}"), Value::U32(u32::try_from(value).unwrap()));
    }
    let shapes = shapes(rows);
    let mut random = Random(seed);
    let mut writer = Writer::begin(File::create(path).unwrap(), &metadata, &planned(&shapes)).unwrap();
    for (name, shape) in &shapes {
        let n: usize = shape.iter().product();
        let values = if name.contains("norm") { vec![1.0; n] } else { random.numbers(n, 0.4) };
        writer.write_tensor(&little_endian(&values)).unwrap();
    }
    writer.finish().unwrap();
}

/// Writes an adapter over every matrix of the layers and the head.
pub fn write_adapter(path: &Path, seed: u64, rank: usize) {
    let mut random = Random(seed);
    let rows = vocabulary(&["xyz"]).0.len();
    let matrices: Vec<(String, Vec<usize>)> = shapes(rows)
        .into_iter()
        .filter(|(name, _)| !name.contains("norm") && name != "token_embd.weight")
        .collect();
    let pairs: Vec<_> = matrices
        .iter()
        .map(|(name, shape)| {
            let (columns, rows) = (shape[0], shape[1]);
            let (a, b) = (random.numbers(columns * rank, 0.4), random.numbers(rank * rows, 0.4));
            (name.as_str(), [columns, rank, rows], a, b)
        })
        .collect();
    write_pairs(path, rank as f32, None, &pairs);
}

fn shapes(rows: usize) -> Vec<(String, Vec<usize>)> {
    let mut shapes = vec![
        ("token_embd.weight".to_owned(), vec![WIDTH, rows]),
        ("output_norm.weight".to_owned(), vec![WIDTH]),
        ("output.weight".to_owned(), vec![WIDTH, rows]),
    ];
    for layer in 0..LAYERS {
        for (name, shape) in [
            ("attn_norm", vec![WIDTH]),
            ("attn_q", vec![WIDTH, QUERIES]),
            ("attn_k", vec![WIDTH, KEYS]),
            ("attn_v", vec![WIDTH, KEYS]),
            ("attn_output", vec![QUERIES, WIDTH]),
            ("attn_q_norm", vec![KEYS]),
            ("attn_k_norm", vec![KEYS]),
            ("ffn_norm", vec![WIDTH]),
            ("ffn_gate", vec![WIDTH, INNER]),
            ("ffn_up", vec![WIDTH, INNER]),
            ("ffn_down", vec![INNER, WIDTH]),
        ] {
            shapes.push((format!("blk.{layer}.{name}.weight"), shape));
        }
    }
    shapes
}

/// The 64-bit generator of Knuth's MMIX.
struct Random(u64);

impl Random {
    /// Numbers between minus and plus `most`.
    fn numbers(&mut self, n: usize, most: f32) -> Vec<f32> {
        let mut next = || {
            self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((self.0 >> 40) as f32 / (1_u64 << 23) as f32 - 1.0) * most
        };
        (0..n).map(|_| next()).collect()
    }
}
