//! A LoRA adapter of a card: a GGUF that is set over its base, checked against the file that it is to be set over.
//!
//! Format: llama.cpp's `convert_lora_to_gguf.py`, and what `llama-adapter.cpp` makes of it. That loader passes over
//! norms and knows no base but by shape; here the first is refused, and the second held against recorded hashes.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use formats::{TensorSource, gguf, hash};
use serde::{Deserialize, Serialize};

use super::file::stamp;
use crate::{Error, Result};

/// A scale beyond this is a slip: what was trained is 1.
const MAX_SCALE: f32 = 100.0;

/// The hash of the base that `tune export --as adapter` and every merged file record.
const BASE_KEY: &str = "tune.base_blake3";

/// The hash of the adapter that a merged file records.
const ADAPTER_KEY: &str = "tune.adapter_blake3";

/// The matrix whose rows are looked up.
const EMBEDDING: &str = "token_embd.weight";

/// Matrices that llama.cpp multiplies with by themselves: a pair for one would be loaded and never used.
const UNSET: [&str; 3] = [".attn_k_b.weight", ".attn_v_b.weight", ".ssm_conv1d.weight"];

/// An adapter, and how much of it counts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Adapter {
    /// The GGUF file.
    pub file: PathBuf,
    /// BLAKE3 of the file, hex.
    pub blake3: String,
    /// Length of the file.
    pub file_bytes: u64,
    /// Last change of the file, nanoseconds since 1970.
    pub file_modified: u64,
    /// What its update is multiplied with; 1: as it was trained.
    pub scale: f32,
    /// Bytes of its matrices, as a buffer holds them.
    pub tensor_bytes: u64,
    /// Hash of the base that it says it was trained on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base_blake3: Option<String>,
    /// How sure it is that this is its base.
    pub base: BaseMatch,
}

/// How an adapter was found to belong to a base.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BaseMatch {
    /// By the hash that it records.
    Hash,
    /// By architecture and shapes alone: one of both records no hash.
    Shapes,
}

/// An adapter as a caller names it.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterOptions {
    /// The GGUF file.
    pub file: PathBuf,
    /// What its update is multiplied with.
    pub scale: f32,
}

/// The file that adapters are to be set over.
pub(super) struct BaseFile<'a> {
    pub reader: &'a gguf::Reader,
    pub blake3: &'a str,
}

impl Adapter {
    /// Checks all adapters of a card.
    pub(super) fn all(expert: &str, options: &[AdapterOptions], base: &BaseFile<'_>) -> Result<Vec<Self>> {
        let mut adapters: Vec<Self> = Vec::with_capacity(options.len());
        for one in options {
            let adapter = Self::new(expert, one, base)?;
            // The engine would take the first and pass over the second.
            if adapters.iter().any(|other| other.blake3 == adapter.blake3) {
                let reason = "it is given twice: give it once, with the sum of both scales".to_owned();
                return Err(Error::Adapter { expert: expert.to_owned(), path: adapter.file, reason });
            }
            adapters.push(adapter);
        }
        Ok(adapters)
    }

    /// Checks an adapter for the base of an expert: architecture, each pair's shapes, finite numbers, recorded hashes.
    fn new(expert: &str, options: &AdapterOptions, base: &BaseFile<'_>) -> Result<Self> {
        let wrong =
            |reason: String| Error::Adapter { expert: expert.to_owned(), path: options.file.clone(), reason };
        let scale = options.scale;
        if !scale.is_finite() || scale.abs() > MAX_SCALE {
            return Err(wrong(format!("its scale is {scale}, allowed is -{MAX_SCALE} to {MAX_SCALE}")));
        }
        let file = std::path::absolute(&options.file).map_err(Error::io(&options.file))?;
        let (file_bytes, file_modified) = stamp(&file)?;
        let reader = gguf::Reader::open(&file)?;
        check_kind(reader.metadata(), base.reader.metadata()).map_err(wrong)?;
        let base_match = check_base(reader.metadata(), base).map_err(wrong)?;
        check_pairs(&reader, base.reader).map_err(wrong)?;
        check_numbers(&reader)?.map_err(wrong)?;
        Ok(Self {
            blake3: hash::blake3_file(&file)?,
            file_bytes,
            file_modified,
            scale,
            tensor_bytes: reader.tensors().iter().map(|tensor| padded(tensor.bytes)).sum(),
            base_blake3: reader.metadata().get_str(BASE_KEY).map(str::to_owned),
            base: base_match,
            file,
        })
    }
}

/// A matrix and what a buffer leaves free after it.
fn padded(bytes: u64) -> u64 {
    bytes.next_multiple_of(gguf::DEFAULT_ALIGNMENT)
}

fn check_kind(adapter: &gguf::Metadata, base: &gguf::Metadata) -> std::result::Result<(), String> {
    let text = |metadata: &gguf::Metadata, key: &str| metadata.get_str(key).unwrap_or("absent").to_owned();
    for (key, expected) in [("general.type", "adapter"), ("adapter.type", "lora")] {
        let found = text(adapter, key);
        if found != expected {
            return Err(format!("it is no LoRA adapter: `{key}` is {found}, expected {expected}"));
        }
    }
    let key = "general.architecture";
    let (own, of_base) = (text(adapter, key), text(base, key));
    if own != of_base {
        return Err(format!("it is for the architecture {own}, its base is {of_base}"));
    }
    if adapter.get("adapter.alora.invocation_tokens").is_some() {
        return Err("it is to act from certain tokens on (aLoRA), which the engine does not do".to_owned());
    }
    match adapter.get_f32("adapter.lora.alpha") {
        Some(alpha) if alpha.is_finite() => Ok(()),
        Some(alpha) => Err(format!("`adapter.lora.alpha` is {alpha}")),
        None => Err("it has no `adapter.lora.alpha`".to_owned()),
    }
}

/// A file that was merged from a base records that base too, but is another.
fn check_base(adapter: &gguf::Metadata, base: &BaseFile<'_>) -> std::result::Result<BaseMatch, String> {
    let Some(wanted) = adapter.get_str(BASE_KEY) else { return Ok(BaseMatch::Shapes) };
    if wanted == base.blake3 {
        return Ok(BaseMatch::Hash);
    }
    let metadata = base.reader.metadata();
    if let Some(merged) = metadata.get_str(ADAPTER_KEY) {
        return Err(format!(
            "it was trained on base {wanted}, and the file it is to be set over has adapter {merged} merged into it"
        ));
    }
    match metadata.get_str(BASE_KEY) {
        None => Ok(BaseMatch::Shapes),
        Some(found) if found == wanted => Ok(BaseMatch::Hash),
        Some(found) => {
            Err(format!("it was trained on base {wanted}, the file it is to be set over was made of {found}"))
        }
    }
}

fn check_pairs(adapter: &gguf::Reader, base: &gguf::Reader) -> std::result::Result<(), String> {
    let mut adapted: BTreeMap<&str, BTreeSet<char>> = BTreeMap::new();
    for tensor in adapter.tensors() {
        let pair = ['a', 'b']
            .into_iter()
            .find_map(|side| Some((tensor.name.strip_suffix(&format!(".lora_{side}"))?, side)));
        let Some((name, side)) = pair else {
            let shown = &tensor.name;
            return Err(format!(
                "the engine can't set its tensor `{shown}`: it is no side of a pair `.lora_a`, `.lora_b`"
            ));
        };
        adapted.entry(name).or_default().insert(side);
    }
    if adapted.is_empty() {
        return Err("it has no tensors".to_owned());
    }
    for (name, sides) in adapted {
        if sides.len() < 2 {
            return Err(format!("of the pair for `{name}` one side is missing"));
        }
        let Some(matrix) = base.tensor(name) else {
            return Err(format!("its base has no tensor `{name}`"));
        };
        let side = |side: char| adapter.tensor(&format!("{name}.lora_{side}")).map(|tensor| &tensor.shape);
        let (Some(a), Some(b)) = (side('a'), side('b')) else { continue };
        if UNSET.iter().any(|part| name.ends_with(part)) {
            return Err(format!("the engine sets nothing over `{name}`"));
        }
        if name == EMBEDDING && base.tensor("output.weight").is_none() {
            return Err(format!("`{name}` makes the logits too, and over both the engine can't set it"));
        }
        if !fits(name, a, b, &matrix.shape) {
            return Err(format!(
                "its pair for `{name}` has shapes {a:?} and {b:?}, the matrix of the base {:?}",
                matrix.shape
            ));
        }
    }
    Ok(())
}

/// A (C_in, R), B (R, C_out) over W (C_in, C_out), in ggml's order; of an embedding, whose rows are looked up, A and B
/// lie the other way.
fn fits(name: &str, a: &[u64], b: &[u64], matrix: &[u64]) -> bool {
    let (&[a0, a1, ..], &[b0, b1, ..], &[columns, rows, ..]) = (a, b, matrix) else { return false };
    let rest = |shape: &[u64]| shape[2..].iter().product::<u64>();
    let same_rest = rest(a) == rest(matrix) && rest(b) == rest(matrix);
    let (rank, sides) = if name == EMBEDDING { (a0, (b1, a1)) } else { (a1, (a0, b1)) };
    sides == (columns, rows) && b0 == rank && same_rest && rank > 0
}

fn check_numbers(adapter: &gguf::Reader) -> Result<std::result::Result<(), String>> {
    let mut values = Vec::new();
    for tensor in adapter.tensors() {
        adapter.read(&tensor.name, &mut values)?;
        if let Some(value) = values.iter().find(|value| !value.is_finite()) {
            return Ok(Err(format!("tensor `{}` holds {value}", tensor.name)));
        }
    }
    Ok(Ok(()))
}
