//! `receipt.json`: what an export made, of what, how large, and what it reached.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::{Error, Fidelity, Limits, Provenance, Reference, Result};

/// The version of the layout that this program writes.
pub(crate) const VERSION: u32 = 1;

const NAME: &str = "receipt.json";

/// The record of one export. Written last, so its presence says that the export is complete.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Receipt {
    /// The version of this layout.
    pub version: u32,
    /// The expert's name.
    pub name: String,
    /// The exported file; relative to the receipt in `receipt.json`, its full path in a returned value.
    pub file: PathBuf,
    /// Its size.
    pub file_bytes: u64,
    /// Its BLAKE3.
    pub blake3: String,
    /// Its SHA-256, by which Ollama knows it.
    pub sha256: String,
    /// The quantisation, as in `--quant`.
    pub quant: String,
    /// `general.architecture` of the file.
    pub architecture: String,
    /// Its parameters.
    pub n_parameters: u64,
    /// Mean bits of a parameter.
    pub bits_per_weight: f64,
    /// Tensors and bytes of each type.
    pub types: Vec<TypeCount>,
    /// What it was made of.
    pub sources: Sources,
    /// What the caller said about the origin.
    pub provenance: Provenance,
    /// What the file reached in the engine.
    pub gate: GateFigures,
    /// What the run had recorded.
    pub reference: Reference,
    /// What was asked of it.
    pub limits: Limits,
    /// How long each part took.
    pub times: Times,
    /// The version of this program.
    pub tune_version: String,
    /// When the export finished, in seconds since 1970.
    pub finished_unix_s: u64,
    /// The Modelfile's template: `go` (its own), `jinja` (the file's is to be used) or `none`.
    pub modelfile_template: String,
}

/// How many tensors have a type.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TypeCount {
    /// The type, as ggml names it.
    pub type_name: String,
    /// Tensors of that type.
    pub n_tensors: usize,
    /// Their bytes, padding not counted.
    pub bytes: u64,
}

/// Hashes of what a file was made of: BLAKE3, lower-case hex.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Sources {
    /// The base's directory.
    pub base: PathBuf,
    /// Its weights.
    pub base_blake3: String,
    /// The adapters that were merged.
    #[serde(default)]
    pub adapters: Vec<MergedAdapter>,
    /// The weights of the only adapter; of several, weights and hashes of all.
    pub adapter_blake3: Option<String>,
    /// The importance matrix.
    pub imatrix: Option<PathBuf>,
    /// Its file.
    pub imatrix_blake3: Option<String>,
    /// `tokenizer.json`, or the `tokenizer.model` of a folder that has no other.
    pub tokenizer_blake3: String,
    /// The source of the chat template.
    pub template_blake3: Option<String>,
}

/// An adapter that was merged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MergedAdapter {
    /// Its directory.
    pub path: PathBuf,
    /// What its update was multiplied with.
    pub weight: f32,
    /// Its weights.
    pub blake3: String,
    /// Whether it records the base it was trained on (and it is this one); false for an adapter made elsewhere, of which
    /// only the shapes could be checked.
    pub base_checked: bool,
}

/// What a file reached in the engine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct GateFigures {
    /// The engine and its version.
    pub engine: String,
    /// Bytes that the loaded model takes in it, with its context.
    #[serde(default)]
    pub memory_bytes: Option<u64>,
    /// Held-out rows.
    pub n_rows: usize,
    /// Rows answered exactly.
    pub n_exact: usize,
    /// Answers that the end-of-turn token ended.
    pub n_stopped: usize,
    /// Target tokens of the mean below.
    pub n_target_tokens: usize,
    /// Mean negative log-likelihood of a target token, in nats.
    pub mean_nll: Option<f64>,
    /// How near its predictions are to the merged model's; `None` where that was not asked.
    #[serde(default)]
    pub fidelity: Option<Fidelity>,
    /// The token that ends a turn.
    pub end_of_turn: Option<u32>,
}

/// Seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Times {
    /// Checking and hashing the inputs.
    pub plan_s: f64,
    /// Merging, quantising, writing.
    pub write_s: f64,
    /// Reading back.
    pub read_back_s: f64,
    /// The gate.
    pub gate_s: f64,
    /// All of it.
    pub total_s: f64,
}

/// Writes the receipt of an export whose file and Modelfile stand.
pub(crate) fn write(output: &Path, receipt: &Receipt) -> Result<()> {
    let file = receipt.file.file_name().map(PathBuf::from).unwrap_or_default();
    Ok(formats::json::write(&output.join(NAME), &Receipt { file, ..receipt.clone() })?)
}

/// Removes an older receipt, which must not speak for the file that is about to replace its own.
pub(crate) fn remove(output: &Path) -> Result<()> {
    let path = output.join(NAME);
    match std::fs::remove_file(&path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::Io { path, action: "remove", source })
        }
        _ => Ok(()),
    }
}
