//! What an export is asked to do.

use std::path::PathBuf;

use formats::BlockType;
use model::policy::Quant;
use serde::{Deserialize, Serialize};
use text::Conversation;

/// One export: one base, adapters to merge, one quantisation.
#[derive(Clone, Debug)]
pub struct Request {
    /// The base: a directory in Hugging Face layout, or a GGUF.
    pub base: PathBuf,
    /// What is merged into it; nothing exports the base itself.
    pub adapters: Vec<AdapterSource>,
    /// Whether a GGUF may be quantised once more whose weights have been rounded to fewer than 16 bits already.
    pub allow_requantising: bool,
    /// The types of the tensors.
    pub quant: Quant,
    /// Other types than the policy's for tensors whose name matches; the first that does counts.
    pub types: Vec<TypeOverride>,
    /// Where the importance of the columns comes from, by which the quantisers weigh errors.
    pub importance: ImportanceSource,
    /// The directory that receives `<name>-<quant>.gguf`, `Modelfile` and `receipt.json`; made when missing.
    pub output: PathBuf,
    /// The directory that keeps a measured importance matrix, which files of several quantisations share.
    pub matrix_dir: PathBuf,
    /// The name of the expert.
    pub name: String,
    /// The directory with `tokenizer.json` (or `tokenizer.model` alone) and what stands beside it; usually the base, and always
    /// where that is a GGUF.
    pub tokenizer: PathBuf,
    /// The chat template that goes into the file.
    pub template: Template,
    /// The context length, in tokens, that the Modelfile asks for.
    pub num_ctx: usize,
    /// The system prompt that the Modelfile sets.
    pub system: Option<String>,
    /// Held-out conversations. The last message of each is the assistant's and holds the expected answer.
    pub evaluation: Vec<Conversation>,
    /// Tokens of held-out rows, and as many of a general text, on which the file's predictions are compared with those of
    /// the merged model; 0 leaves that out.
    pub comparison_tokens: usize,
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

    /// Whether another asks for the same model, measured and judged by the same.
    pub(crate) fn is_of_the_same(&self, other: &Request) -> bool {
        (&self.base, &self.adapters, &self.tokenizer, &self.template)
            == (&other.base, &other.adapters, &other.tokenizer, &other.template)
            && self.importance.is_some() == other.importance.is_some()
            && (self.num_ctx, self.comparison_tokens) == (other.num_ctx, other.comparison_tokens)
            && self.evaluation == other.evaluation
    }
}

/// An adapter, and how much of it is merged.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterSource {
    /// A directory in PEFT layout.
    pub dir: PathBuf,
    /// What its update is multiplied with; not 0.
    pub weight: f32,
}

impl AdapterSource {
    /// All of it.
    pub fn whole(dir: impl Into<PathBuf>) -> AdapterSource {
        AdapterSource { dir: dir.into(), weight: 1.0 }
    }
}

/// A type for some tensors: what `llama-quantize --tensor-type` takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TypeOverride {
    /// A regular expression that is found somewhere in a tensor's name in the GGUF.
    pub pattern: String,
    /// Its type.
    pub ty: BlockType,
}

/// Where an importance matrix comes from.
#[derive(Clone, Debug, Default)]
pub enum ImportanceSource {
    /// There is none.
    #[default]
    None,
    /// A file as llama.cpp writes it, in either layout.
    File(PathBuf),
    /// It is measured on the merged model, and kept as `imatrix.gguf` in [`Request::matrix_dir`].
    Measured(Calibration),
}

impl ImportanceSource {
    /// Whether there is a matrix.
    pub fn is_some(&self) -> bool {
        !matches!(self, ImportanceSource::None)
    }
}

/// What a model is run over for its importance matrix, beside a general text that comes with the program.
#[derive(Clone, Debug, Default)]
pub struct Calibration {
    /// What the texts are called.
    pub dataset: String,
    /// Conversations, by the chat template.
    pub conversations: Vec<Conversation>,
    /// Plain texts.
    pub texts: Vec<String>,
    /// Tokens of them at most; the general text is not counted.
    pub most_tokens: usize,
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
    /// The largest mean divergence, in nats, from the predictions of the merged model.
    #[serde(default)]
    pub max_kl: Option<f64>,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            max_exact_drop_points: Some(2.0),
            min_stopped_share: Some(0.9),
            min_retained: None,
            max_kl: None,
        }
    }
}

impl Limits {
    /// Nothing is asked beyond what makes a file usable at all; for a base that was never taught to stop.
    pub const NONE: Limits =
        Limits { max_exact_drop_points: None, min_stopped_share: None, min_retained: None, max_kl: None };
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
