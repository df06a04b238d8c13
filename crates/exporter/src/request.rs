//! What an export is asked to do.

use std::path::PathBuf;

use model::policy::Quant;
use serde::{Deserialize, Serialize};
use text::Message;

/// One export: one base, at most one adapter, one quantisation.
#[derive(Clone, Debug)]
pub struct Request {
    /// The 16-bit base: a directory in Hugging Face layout.
    pub base: PathBuf,
    /// The adapter to merge, a directory in PEFT layout; `None` exports the base itself.
    pub adapter: Option<PathBuf>,
    /// The types of the tensors.
    pub quant: Quant,
    /// A file with the importance of the columns, for the quantisers to weigh errors by.
    pub imatrix: Option<PathBuf>,
    /// The directory that receives `<name>-<quant>.gguf`, `Modelfile` and `receipt.json`; made when missing.
    pub output: PathBuf,
    /// The name of the expert.
    pub name: String,
    /// The directory with `tokenizer.json` (or `tokenizer.model` alone) and what stands beside it; usually the base.
    pub tokenizer: PathBuf,
    /// The chat template that goes into the file.
    pub template: Template,
    /// The context length, in tokens, that the Modelfile asks for.
    pub num_ctx: usize,
    /// The system prompt that the Modelfile sets.
    pub system: Option<String>,
    /// Held-out conversations. The last message of each is the assistant's and holds the expected answer.
    pub evaluation: Vec<Vec<Message>>,
    /// What the run measured, to compare with.
    pub reference: Reference,
    /// What the exported file must reach.
    pub limits: Limits,
    /// Where base, data and recipe come from; goes into the file's metadata and the receipt.
    pub provenance: Provenance,
}

impl Request {
    /// The name of the file that is to appear in the output directory.
    pub fn file_name(&self) -> String {
        format!("{}-{}.gguf", self.name, self.quant.name())
    }
}

/// Which chat template the file carries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Template {
    /// The one beside the tokenizer, where there is one.
    FromTokenizer,
    /// The source of one that replaces it.
    Source(String),
}

/// What was measured of one model on the held-out rows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Figures {
    /// The rows measured.
    pub n_rows: usize,
    /// How many of them were answered exactly.
    pub n_exact: usize,
    /// Mean negative log-likelihood of a target token, in nats; `None` when it was not measured.
    pub mean_nll: Option<f64>,
}

impl Figures {
    /// The share of rows answered exactly, 0 to 1; `None` without rows.
    pub fn exact_share(&self) -> Option<f64> {
        (self.n_rows > 0).then(|| self.n_exact as f64 / self.n_rows as f64)
    }
}

/// What the run recorded about the same held-out rows before the export.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Reference {
    /// The base without adapter.
    pub base: Option<Figures>,
    /// The base with the adapter, as trained.
    pub adapter: Option<Figures>,
}

/// What the exported file must reach on the held-out rows; each `None` is not asked.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    /// How many points (of 100) the exact match may lie below the adapter's.
    pub max_exact_drop_points: Option<f64>,
    /// The least share, 0 to 1, of answers that end by the end-of-turn token.
    pub min_stopped_share: Option<f64>,
    /// The least share, 0 to 1, of the adapter's improvement of the mean NLL over the base that is kept.
    pub min_retained: Option<f64>,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits { max_exact_drop_points: Some(2.0), min_stopped_share: Some(0.9), min_retained: None }
    }
}

impl Limits {
    /// Nothing is asked beyond what makes a file usable at all; for a base that was never taught to stop.
    pub const NONE: Limits =
        Limits { max_exact_drop_points: None, min_stopped_share: None, min_retained: None };
}

/// Where the parts come from. Hashes are BLAKE3, lower-case hex.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    /// What the recipe calls the base, such as `Qwen/Qwen3-4B`.
    pub base_name: Option<String>,
    /// Who trained or exports; `general.author`.
    pub author: Option<String>,
    /// The licence of the result, as an SPDX identifier; `general.license`.
    pub license: Option<String>,
    /// The recipe file.
    pub recipe_blake3: Option<String>,
    /// What the recipe calls the training data.
    pub dataset_name: Option<String>,
    /// The training data.
    pub dataset_blake3: Option<String>,
    /// The optimiser steps that the adapter was trained for.
    pub steps: Option<u64>,
}
