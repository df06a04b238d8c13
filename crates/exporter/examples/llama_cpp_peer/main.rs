//! Compares an export with what llama.cpp's converter and quantiser make of the same checkpoint.
//!
//!     llama_cpp_peer CHECKPOINT CONVERTED.gguf QUANT OUT_DIR [IMATRIX]
//!
//! CONVERTED.gguf is the converter's 16- or 32-bit file of CHECKPOINT. Prints each key whose value or place differs,
//! each tensor whose type or bytes differ, and both times; exits with 1 where a tensor differs or a key that is not
//! among the known differences. `scripts/check/export_peer.sh` makes the inputs and calls this.

mod quantise;
mod ungated;

use std::path::{Path, PathBuf};
use std::time::Instant;

use exporter::{ImportanceSource, Request, export};
use formats::BlockType;
use formats::gguf::{Reader, TensorInfo, Value};
use formats::observe::Silent;
use model::policy::Quant;
use ungated::NoEngine;

/// Keys that differ by intention, and why.
const KNOWN: [(&str, &str); 14] = [
    ("general.name", "ours is the expert's name, the converter's is made from the directory's name"),
    ("general.basename", "guessed by the converter from the directory's name"),
    ("general.finetune", "guessed by the converter from the directory's name"),
    ("general.version", "guessed by the converter from the directory's name"),
    ("general.size_label", "the converter prefers a size that it finds in the directory's name"),
    ("llama.attention.key_length", HEAD_WIDTH),
    ("llama.attention.value_length", HEAD_WIDTH),
    (
        "tokenizer.ggml.scores",
        "the converter scores all tokens of a tokenizer.json alike; ours are the order of its merges",
    ),
    (
        "tokenizer.ggml.add_space_prefix",
        "ours where only the very first text gets a space: llama.cpp's default would put one behind each control token",
    ),
    ("deepseek2.rope.scaling.yarn_beta_fast", YARN_BETA),
    ("deepseek2.rope.scaling.yarn_beta_slow", YARN_BETA),
    (
        "deepseek2.expert_gating_func",
        "ours: the converter writes it where config.json states `scoring_func`, as the published one does",
    ),
    (
        "starcoder2.attention.sliding_window",
        "ours: whoever trains on the file is to see what the base saw; the engine does not read it",
    ),
    ("tune.base_blake3", "ours: which base the file was made from"),
];

/// Keys whose place says nothing: the converter writes the first before all others, having met it among the tensors, and the
/// second before the tokens or behind them, from one family to the next; the third is ours alone where its quantiser is not
/// told of it, see `quantise.rs`.
const ANYWHERE: [&str; 3] =
    ["phi3.rope.scaling.attn_factor", "tokenizer.ggml.add_space_prefix", "deepseek2.attention.q_lora_rank"];

const YARN_BETA: &str = "the converter's: it is what llama.cpp assumes anyway";

const EXP: &str =
    "-exp of the checkpoint's number: torch's exp is MKL's, of which one in eighty is not the nearest";

const HEAD_WIDTH: &str = "transformers, through which the converter reads config.json, fills in the width that llama.cpp assumes anyway";

fn main() {
    let arguments: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let (inputs, matrix) = match &arguments[..] {
        [inputs @ .., matrix] if inputs.len() == 4 => (inputs, Some(matrix.as_path())),
        inputs => (inputs, None),
    };
    let [checkpoint, converted, quant, out_dir] = inputs else {
        eprintln!("usage: llama_cpp_peer CHECKPOINT CONVERTED.gguf QUANT OUT_DIR [IMATRIX]");
        std::process::exit(2);
    };
    let quant = Quant::parse(&quant.to_string_lossy()).expect("a known quantisation");
    let ours = exported(checkpoint, quant, matrix, out_dir);
    let started = Instant::now();
    let theirs = out_dir.join("llama_cpp.gguf");
    quantise::quantise(converted, &theirs, quant.file_type().expect("a type of files"), matrix, &[]);
    println!("llama-quantize {:.2} s (after the converter)", started.elapsed().as_secs_f64());
    let (ours, theirs) = (Reader::open(&ours).expect("our file"), Reader::open(&theirs).expect("their file"));
    let n_keys = differing_keys(&ours, &theirs);
    let n_tensors = differing_tensors(&ours, &theirs);
    println!("{quant}: {n_tensors} of {} tensors differ, {n_keys} unexpected keys", theirs.tensors().len());
    std::process::exit(i32::from(n_keys + n_tensors > 0));
}

fn exported(checkpoint: &Path, quant: Quant, matrix: Option<&Path>, out_dir: &Path) -> PathBuf {
    let request = Request {
        importance: matrix.map_or(ImportanceSource::None, |path| ImportanceSource::File(path.to_owned())),
        ..ungated::request(checkpoint, quant, out_dir, "peer")
    };
    let receipt = export(&request, &NoEngine, &mut Silent).expect("our export");
    println!("ours {:.2} s: {:?}", receipt.times.total_s, receipt.times);
    receipt.file
}

fn differing_keys(ours: &Reader, theirs: &Reader) -> usize {
    let is_known = |key: &str| KNOWN.iter().find(|(known, _)| *known == key);
    let mut n = 0;
    let mut differs = |key: &str, what: String| match is_known(key) {
        Some((_, reason)) => println!("  known: {key}: {what} ({reason})"),
        None => {
            println!("  DIFFERS: {key}: {what}");
            n += 1;
        }
    };
    for (key, value) in theirs.metadata().entries() {
        match ours.metadata().get(key) {
            None => differs(key, format!("theirs only: {}", short(value))),
            Some(found) if found != value => {
                differs(key, format!("{} against {}", short(found), short(value)))
            }
            Some(_) => {}
        }
    }
    for (key, value) in ours.metadata().entries() {
        if theirs.metadata().get(key).is_none() {
            differs(key, format!("ours only: {}", short(value)));
        }
    }
    let shared = |of: &Reader, other: &Reader| -> Vec<String> {
        let keys = of.metadata().entries().iter().map(|(key, _)| key.clone());
        keys.filter(|key| other.metadata().get(key).is_some() && !ANYWHERE.contains(&key.as_str())).collect()
    };
    let (a, b) = (shared(ours, theirs), shared(theirs, ours));
    if let Some((found, expected)) = a.iter().zip(&b).find(|(found, expected)| found != expected) {
        differs("order", format!("{found} where {expected} is expected"));
    }
    n
}

fn differing_tensors(ours: &Reader, theirs: &Reader) -> usize {
    let order = |file: &Reader| file.tensors().iter().map(|t| (t.name.clone(), t.offset)).collect::<Vec<_>>();
    let mut n = 0;
    if order(ours) != order(theirs) {
        println!("  DIFFERS: order or places of the tensors");
        n += 1;
    }
    for tensor in theirs.tensors() {
        let found = ours.tensor(&tensor.name);
        let is_equal = found.is_some_and(|found| found == tensor && ours.data(found) == theirs.data(tensor));
        let is_known = found.is_some_and(|found| {
            found == tensor && is_known_rounding(tensor, [(ours, found), (theirs, tensor)])
        });
        if is_known && !is_equal {
            println!("  known: {}: last bits of some numbers ({EXP})", tensor.name);
        } else if !is_equal {
            let found = found.map_or("absent".to_owned(), |found| format!("{:?} {}", found.shape, found.ty));
            println!("  DIFFERS: {}: {found} against {:?} {}", tensor.name, tensor.shape, tensor.ty);
            n += 1;
        }
    }
    n
}

/// Whether a tensor is one that is computed from the checkpoint's, by a function that libraries round differently, and its
/// numbers are neighbours at most.
fn is_known_rounding(tensor: &TensorInfo, both: [(&Reader, &TensorInfo); 2]) -> bool {
    let bits = |(file, tensor): (&Reader, &TensorInfo)| -> Vec<i64> {
        let values = file.data(tensor).as_chunks::<4>().0.iter();
        values.map(|value| i64::from(u32::from_le_bytes(*value))).collect()
    };
    let [ours, theirs] = both.map(bits);
    tensor.name.ends_with(".ssm_a")
        && tensor.ty == BlockType::F32
        && ours.iter().zip(&theirs).all(|(a, b)| a.abs_diff(*b) <= 1)
}

fn short(value: &Value) -> String {
    let text = format!("{value:?}");
    text.chars().take(80).collect()
}
