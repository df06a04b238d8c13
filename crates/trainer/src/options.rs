//! What a run is asked to do: plain values, already parsed, with the defaults people expect.

mod data;
mod method;

use std::path::PathBuf;

use model::device::Precision;
use model::lora::init;
use model::optimizer::MomentForm;
use serde::{Deserialize, Serialize};

use crate::base_cache::CacheOptions;
use crate::error::{Error, Result};
pub use data::{DataOptions, Format, OnTooLong, Source, TrainOn, Weight};
pub use method::Method;

/// Everything that decides a training run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Options {
    /// Folder of this run, such as `runs/quickstart`.
    pub run_dir: PathBuf,
    /// Whether the run is new or continues one; no part of what the run is compared by.
    #[serde(skip)]
    pub start: Start,
    /// The base model.
    pub model: ModelOptions,
    /// The adapter's shape.
    pub adapter: AdapterOptions,
    /// Where rows come from and what becomes of them.
    pub data: DataOptions,
    /// Steps, batches, rates.
    pub train: TrainOptions,
    /// The memory that may be used.
    pub budget: BudgetOptions,
    /// What is measured besides the loss.
    pub eval: EvalOptions,
    /// Where quantised bases are kept; no part of what the run is compared by.
    #[serde(skip)]
    pub cache: CacheOptions,
}

/// New run or continued one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Start {
    /// The run folder must not hold a run yet.
    #[default]
    Fresh,
    /// Continue from the newest sound checkpoint.
    Resume,
}

/// The base model and the form in which it is held.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelOptions {
    /// A folder in Hugging Face layout, or a GGUF file.
    pub base: PathBuf,
    /// Where on the hub the folder or file comes from, when it does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hub: Option<HubBase>,
    /// Name of the mixture of block types in which a folder's weights are held; without it `q4_k_m`. The blocks of a
    /// GGUF stay as they are.
    pub quant: Option<String>,
    /// Precision of products with the base's weights; without it the fastest that the processor has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub compute: Option<Precision>,
}

/// A base's origin on the Hugging Face hub: what a run needs to find the very same base again.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HubBase {
    /// The words of the recipe.
    pub asked: String,
    /// `OWNER/NAME`.
    pub repository: String,
    /// The commit that the words stood for when the run began.
    pub commit: String,
}

impl ModelOptions {
    /// The mixture in which a folder's weights are held.
    pub fn quant_name(&self) -> &str {
        self.quant.as_deref().unwrap_or("q4_k_m")
    }
}

/// The adapter's shape.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct AdapterOptions {
    /// R, the rank of the update.
    pub rank: usize,
    /// The update is scaled by alpha / R.
    pub alpha: f32,
    /// Probability of dropping an input of the adapter while training, 0 to below 1.
    pub dropout: f32,
    /// Whether the update is scaled by alpha / sqrt(R) instead: rank-stabilised LoRA, arXiv:2312.03732.
    pub rslora: bool,
    /// Whether each row of the adapted weights gets a trained length: DoRA, arXiv:2402.09353.
    pub dora: bool,
    /// Whether A and B also pass on what they read: the elastic connection of IR-QLoRA, arXiv:2402.05445.
    pub elastic: bool,
    /// Where A and B begin.
    pub init: Init,
    /// Turns of LoftQ, at least 1; the best is kept.
    pub loftq_iterations: usize,
    /// Linear layers, by name such as `q_proj`, or by a regular expression ([`formats::adapter::ModulePattern`]);
    /// `all-linear` stands for all.
    pub targets: Vec<String>,
    /// Ranks of layers that differ from `rank`: the first pattern that matches.
    pub ranks: Vec<(String, usize)>,
    /// The same for `alpha`.
    pub alphas: Vec<(String, f32)>,
}

/// Where A and B begin.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Init {
    /// A at random, B zero.
    #[default]
    Default,
    /// The leading part of the weights: arXiv:2404.02948.
    Pissa,
    /// What quantising loses: arXiv:2310.08659.
    LoftQ,
}

impl AdapterOptions {
    /// The method that takes A and B from the weights, if one does.
    pub fn method(&self) -> Option<init::Method> {
        match self.init {
            Init::Default => None,
            Init::Pissa => Some(init::Method::Pissa),
            Init::LoftQ => Some(init::Method::LoftQ { iterations: self.loftq_iterations }),
        }
    }
}

impl Default for AdapterOptions {
    fn default() -> Self {
        Self {
            rank: 16,
            alpha: 32.0,
            dropout: 0.0,
            rslora: false,
            dora: false,
            elastic: false,
            init: Init::Default,
            loftq_iterations: 5,
            targets: vec!["all-linear".into()],
            ranks: Vec::new(),
            alphas: Vec::new(),
        }
    }
}

/// Steps, batches, rates.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TrainOptions {
    /// What is minimised.
    #[serde(skip_serializing_if = "Method::is_default")]
    pub method: Method,
    /// β of a method that learns from preferences; without it 0.1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub beta: Option<f64>,
    /// Share of the pairs that DPO takes to be the wrong way round; without it 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub label_smoothing: Option<f64>,
    /// Weight that DPO gives to the better answers' own loss; without it 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rpo_alpha: Option<f64>,
    /// How long to train.
    pub length: Length,
    /// Rows in a micro-batch.
    pub batch_size: usize,
    /// Micro-batches in an optimiser step.
    pub gradient_accumulation_steps: usize,
    /// Highest learning rate.
    pub learning_rate: f32,
    /// How the rate falls after the warm-up.
    pub scheduler: Scheduler,
    /// The rate that it falls to.
    pub min_learning_rate: f32,
    /// How long the rate rises.
    pub warmup: Warmup,
    /// Share of all steps in which [`Scheduler::Wsd`] lets the rate fall.
    pub decay: f32,
    /// How many times the learning rate of A that of B is: 1 in LoRA, 16 say in LoRA+, arXiv:2402.12354.
    pub lora_plus_ratio: f32,
    /// AdamW's decoupled decay.
    pub weight_decay: f32,
    /// How AdamW holds its moments.
    pub moments: MomentForm,
    /// Largest norm of the gradient; 0 turns clipping off.
    pub clip: f32,
    /// A step is skipped whose loss or gradient norm is more than so many times the median of the last ones; 0: none is.
    pub max_spike: f32,
    /// Seed of adapter, order and dropout.
    pub seed: u64,
    /// Steps between two measurements of the validation loss; 0: only before the first and after the last.
    pub eval_every: u64,
    /// Steps between two checkpoints; 0: only at the end.
    pub checkpoint_every: u64,
    /// Checkpoints kept.
    pub keep: usize,
    /// Measurements of the validation loss in a row without a lower one that end the run; 0: none do.
    pub early_stopping: u64,
    /// Which adapter is the result; without it the last, or the best where the run was stopped early.
    pub result: Option<ResultAdapter>,
    /// Whether event files for TensorBoard are written.
    pub tensorboard: bool,
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            method: Method::Sft,
            beta: None,
            label_smoothing: None,
            rpo_alpha: None,
            length: Length::Epochs(1),
            batch_size: 8,
            gradient_accumulation_steps: 1,
            learning_rate: 2e-4,
            scheduler: Scheduler::Cosine,
            min_learning_rate: 0.0,
            warmup: Warmup::Ratio(0.03),
            decay: 0.2,
            lora_plus_ratio: 1.0,
            weight_decay: 0.0,
            moments: MomentForm::F32,
            clip: 1.0,
            max_spike: 0.0,
            seed: 42,
            eval_every: 100,
            checkpoint_every: 100,
            keep: 2,
            early_stopping: 0,
            result: None,
            tensorboard: false,
        }
    }
}

/// Which adapter of a run is its result.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ResultAdapter {
    /// That of the last step.
    #[default]
    Last,
    /// That with the lowest validation loss.
    Best,
}

/// How long to train.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Length {
    /// Passes over the training rows.
    Epochs(u32),
    /// Optimiser steps, over as many passes as that takes.
    MaxSteps(u64),
}

/// How the learning rate falls after the warm-up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scheduler {
    /// Half a cosine.
    #[default]
    Cosine,
    /// A straight line.
    Linear,
    /// Not at all.
    Constant,
    /// As one over the root of the step: arXiv:1706.03762, section 5.3.
    InverseSqrt,
    /// Not at all, and then in a straight line over the last steps: warm-up, stable, decay, arXiv:2404.06395.
    Wsd,
}

/// How long the learning rate rises from zero.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Warmup {
    /// Share of all steps, 0 to 1, rounded up.
    Ratio(f32),
    /// Number of steps.
    Steps(u64),
}

/// The memory that may be used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BudgetOptions {
    /// Bytes in all; `None`: whatever the plan needs.
    pub memory_bytes: Option<u64>,
    /// Bytes of these to leave to others.
    pub reserve_bytes: u64,
    /// What need not stay in memory.
    pub offload: Offload,
}

/// What need not stay in memory: the base's weights may pass through it, part by part, from the file that the quantised
/// base is kept in. The results are the same to the bit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Offload {
    /// As many layers as must, where not one row fits otherwise.
    #[default]
    Auto,
    /// All stays.
    None,
    /// All layers, embedding and head pass.
    Weights,
}

/// What is measured besides the loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct EvalOptions {
    /// Held-out rows whose greedy answer is compared with the reference; 0 turns it off.
    pub exact_match_rows: usize,
    /// Longest answer in tokens.
    pub max_new_tokens: usize,
    /// Answers shown before and after.
    pub samples: usize,
    /// Answers shown at each evaluation in between, and then as many before and after.
    pub samples_each: usize,
}

impl Default for EvalOptions {
    fn default() -> Self {
        Self { exact_match_rows: 0, max_new_tokens: 128, samples: 3, samples_each: 0 }
    }
}

impl Options {
    /// Checks every value that can be checked without opening a file.
    ///
    /// # Errors
    /// [`Error::Option`] names the first key whose value cannot be.
    pub fn validate(&self) -> Result<()> {
        let (adapter, data, train) = (&self.adapter, &self.data, &self.train);
        let share = |value: f32, top: f32| value.is_finite() && (0.0..=top).contains(&value);
        refuse(self.model.base.as_os_str().is_empty(), "model.base", "names no base model")?;
        refuse(self.run_dir.as_os_str().is_empty(), "run_dir", "names no folder")?;
        for (key, rank) in ranked("adapter.rank", adapter.rank, "adapter.ranks", &adapter.ranks) {
            refuse(!(1..=1024).contains(&rank), key, "must lie between 1 and 1024")?;
        }
        for (key, alpha) in ranked("adapter.alpha", adapter.alpha, "adapter.alphas", &adapter.alphas) {
            refuse(!(alpha.is_finite() && alpha > 0.0), key, "must be a number above 0")?;
        }
        let dropout = adapter.dropout;
        refuse(!(0.0..1.0).contains(&dropout), "adapter.dropout", "must lie between 0 and 1, 1 left out")?;
        refuse(
            adapter.elastic && self.train.weight_decay != 0.0,
            "train.weight_decay",
            "must be 0 with `adapter.elastic`, whose connections are kept inside A and B",
        )?;
        refuse(adapter.loftq_iterations == 0, "adapter.loftq_iterations", "must be at least 1")?;
        refuse(
            adapter.dora && adapter.init != Init::Default,
            "adapter.init",
            "must be \"default\" with `adapter.dora`: the result could not be written as an adapter of the published base",
        )?;
        refuse(adapter.targets.is_empty(), "adapter.targets", "names no layer")?;
        data.validate()?;
        train.validate_method()?;
        refuse(train.batch_size == 0, "train.batch_size", "must be at least 1")?;
        refuse(
            train.gradient_accumulation_steps == 0,
            "train.gradient_accumulation_steps",
            "must be at least 1",
        )?;
        let rate = train.learning_rate;
        refuse(!(rate.is_finite() && rate > 0.0), "train.learning_rate", "must be a number above 0")?;
        let ratio = train.lora_plus_ratio;
        refuse(!(ratio.is_finite() && ratio > 0.0), "train.lora_plus_ratio", "must be a number above 0")?;
        refuse(!share(train.weight_decay, 1.0), "train.weight_decay", "must lie between 0 and 1")?;
        refuse(!(train.clip.is_finite() && train.clip >= 0.0), "train.clip", "must be a number, 0 or above")?;
        let floor = train.min_learning_rate;
        refuse(
            !(floor.is_finite() && (0.0..=rate).contains(&floor)),
            "train.min_learning_rate",
            "must lie between 0 and `train.learning_rate`",
        )?;
        refuse(
            !share(train.decay, 1.0) || train.decay == 0.0,
            "train.decay",
            "must lie between 0 and 1, 0 left out",
        )?;
        let spike = train.max_spike;
        refuse(
            !(spike == 0.0 || spike.is_finite() && spike > 1.0),
            "train.max_spike",
            "must be a number above 1, or 0",
        )?;
        let has_validation = !data.validation.is_empty() || data.val_split > 0.0;
        refuse(
            train.early_stopping > 0 && !(has_validation && train.eval_every > 0),
            "train.early_stopping",
            "needs validation rows and `train.eval_every`",
        )?;
        refuse(
            train.result == Some(ResultAdapter::Best) && !has_validation,
            "train.result",
            "can be \"best\" only with validation rows, which tell what is best",
        )?;
        refuse(train.keep == 0, "train.keep", "must be at least 1")?;
        match train.length {
            Length::Epochs(n) => refuse(n == 0, "train.epochs", "must be at least 1")?,
            Length::MaxSteps(n) => refuse(n == 0, "train.max_steps", "must be at least 1")?,
        }
        if let Warmup::Ratio(ratio) = train.warmup {
            refuse(!share(ratio, 1.0), "train.warmup", "must lie between 0 and 1, or be a number of steps")?;
        }
        let answers = self.eval.exact_match_rows.max(self.eval.samples).max(self.eval.samples_each) > 0;
        refuse(answers && self.eval.max_new_tokens == 0, "eval.max_new_tokens", "must be at least 1")
    }
}

/// The value for all layers and those of single ones, each with its key.
fn ranked<T: Copy>(
    key: &'static str,
    value: T,
    single_key: &'static str,
    single: &[(String, T)],
) -> impl Iterator<Item = (&'static str, T)> {
    std::iter::once((key, value)).chain(single.iter().map(move |(_, value)| (single_key, *value)))
}

fn refuse(bad: bool, key: &'static str, reason: &'static str) -> Result<()> {
    if bad { Err(Error::Option { key, reason: reason.into() }) } else { Ok(()) }
}
