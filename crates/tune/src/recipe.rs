//! `recipe.toml`: everything a run is told, in one file.  Unknown keys are errors.

use crate::bytes;
use crate::cache_dir::cache_dir;
use crate::failure::Failure;
use crate::toml_file::{self, Aliases};
use model::device::Precision;
use model::optimizer::MomentForm;
use serde::{Deserialize, Deserializer};
use std::path::{Path, PathBuf};
use trainer::options::{
    AdapterOptions, BudgetOptions, DataOptions, EvalOptions, ModelOptions, Offload, Source, TrainOptions,
};
use trainer::{
    CacheOptions, Init, Length, Method, OnTooLong, Options, ResultAdapter, Scheduler, Start, TrainOn, Warmup,
};

/// The whole recipe, one field a table.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    pub model: ModelTable,
    #[serde(default)]
    pub adapter: AdapterTable,
    pub data: DataTable,
    #[serde(default)]
    pub train: TrainTable,
    #[serde(default)]
    pub eval: EvalTable,
    #[serde(default)]
    pub budget: BudgetTable,
    #[serde(default)]
    pub export: ExportTable,
    #[serde(default)]
    pub expert: ExpertTable,
}

/// `[model]`: the base, and how its weights lie in memory while the adapter learns.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelTable {
    pub base: PathBuf,
    pub quant: Option<String>,
    /// Precision of products with its weights: the fastest of the processor unless told otherwise.
    pub compute: Option<Precision>,
    /// Whether the quantised base is kept on disk, to be mapped the next time.
    #[serde(default = "yes")]
    pub cache: bool,
}

fn yes() -> bool {
    true
}

/// A smaller base is quantised in a second or two.
pub const LEAST_KEPT_BYTES: u64 = 64 << 20;
/// Fewer rows are tokenised in a second or two.
pub const LEAST_KEPT_DATA_BYTES: u64 = 8 << 20;

/// `[adapter]`: LoRA's shape.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdapterTable {
    pub rank: usize,
    pub alpha: f32,
    pub dropout: f32,
    pub rslora: bool,
    pub dora: bool,
    pub elastic: bool,
    pub init: Init,
    pub loftq_iterations: usize,
    pub targets: Targets,
    /// Ranks of layers that differ, the first pattern that matches: `{ "down_proj" = 32 }`.
    #[serde(deserialize_with = "in_order")]
    pub ranks: Vec<(String, usize)>,
    /// The same for `alpha`.
    #[serde(deserialize_with = "in_order")]
    pub alphas: Vec<(String, f32)>,
}

/// `"all-linear"` or a list of module names as `["q_proj", "v_proj"]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum Targets {
    Named(String),
    List(Vec<String>),
}

/// `[data]`: rows and what of them is learnt.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataTable {
    pub train: OneOrMore,
    pub validation: Option<OneOrMore>,
    #[serde(default = "val_split")]
    pub val_split: f32,
    #[serde(default = "max_seq_len")]
    pub max_seq_len: usize,
    #[serde(default)]
    pub on_too_long: OnTooLong,
    #[serde(default)]
    pub train_on: TrainOn,
    #[serde(default)]
    pub packing: bool,
    /// What the chat template is told of thinking.
    pub thinking: Option<bool>,
    /// A file with a chat template in place of the base's.
    pub chat_template: Option<PathBuf>,
    #[serde(default)]
    pub max_bad_rows: u64,
}

/// One source or a list of them: a path, or `{ path, weight, format, fields }`.
#[derive(Debug, Clone, Deserialize)]
#[serde(
    untagged,
    expecting = "expected a path, a list of paths, or tables of `path`, `weight`, `format`, `fields`"
)]
pub enum OneOrMore {
    One(Source),
    More(Vec<Source>),
}

/// `[train]`: the optimiser's road.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainTable {
    pub method: Method,
    pub beta: Option<f64>,
    pub label_smoothing: Option<f64>,
    pub rpo_alpha: Option<f64>,
    pub epochs: Option<u32>,
    pub max_steps: Option<u64>,
    pub batch_size: usize,
    pub gradient_accumulation_steps: usize,
    pub learning_rate: f32,
    pub lora_plus_ratio: f32,
    pub scheduler: Scheduler,
    pub min_learning_rate: f32,
    /// Below 1 a share of all steps, from 1 on a number of steps.
    pub warmup: f32,
    /// Share of all steps in which `wsd` lets the rate fall.
    pub decay: f32,
    pub weight_decay: f32,
    pub moments: MomentForm,
    pub max_grad_norm: f32,
    /// How many times the usual loss or gradient norm makes a step that is skipped; 0: none is.
    pub max_spike: f32,
    pub seed: u64,
    pub eval_every: u64,
    pub checkpoint_every: u64,
    pub keep_checkpoints: usize,
    /// Measurements of the validation loss without a lower one that end the run; 0: none do.
    pub early_stopping: u64,
    /// Which adapter is the result: the last, unless the run is stopped early.
    pub result: Option<ResultAdapter>,
    /// Whether event files for TensorBoard are written beside the run's own records.
    pub tensorboard: bool,
}

/// `[eval]`: held-out rows whose answers are generated and compared, for the base, the adapter and the export.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EvalTable {
    pub test: Option<OneOrMore>,
    pub rows: usize,
    pub max_new_tokens: usize,
    /// Answers generated and shown at each evaluation.
    pub samples: usize,
}

/// `[budget]`: the memory a run may use.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BudgetTable {
    #[serde(deserialize_with = "size")]
    pub memory: u64,
    #[serde(deserialize_with = "size")]
    pub reserve: u64,
    /// What need not stay in memory.
    pub offload: Offload,
}

/// `[export]`: what `tune export` writes when it is not told otherwise, and what it refuses.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ExportTable {
    pub quant: String,
    /// Types of tensors whose names match a pattern.
    #[serde(deserialize_with = "in_order")]
    pub types: Vec<(String, String)>,
    /// `train`, `general`, `off`, or a file with the importance of the columns, as llama.cpp writes it.
    pub imatrix: Option<PathBuf>,
    /// Tokens of the training data that `train` measures.
    pub imatrix_tokens: usize,
    /// Tokens on which the exported file is compared with the merged model; 0 leaves that out.
    pub comparison_tokens: usize,
    /// The largest mean divergence, in nats, from the merged model's predictions.
    pub max_kl: Option<f64>,
    /// The least percentage of the adapter's gain in likelihood that must be kept.
    pub min_retained: f64,
    /// The most points of exact match that the exported file may lose against the adapter.
    pub max_exact_match_drop: f64,
    /// The least percentage of the exported file's answers that must end by the end-of-turn token.
    pub min_ended_answers: f64,
}

/// Tokens that are compared where no recipe says how many.
pub const COMPARISON_TOKENS: usize = 1024;

/// `[expert]`: how the result is run.
#[derive(Debug, Clone, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct ExpertTable {
    pub name: Option<String>,
    pub num_ctx: Option<u32>,
    pub system: Option<String>,
}

impl Default for AdapterTable {
    fn default() -> AdapterTable {
        AdapterTable {
            rank: 16,
            alpha: 32.0,
            dropout: 0.0,
            rslora: false,
            dora: false,
            elastic: false,
            init: Init::Default,
            loftq_iterations: 5,
            targets: Targets::Named("all-linear".into()),
            ranks: Vec::new(),
            alphas: Vec::new(),
        }
    }
}

impl Default for TrainTable {
    fn default() -> TrainTable {
        TrainTable {
            method: Method::Sft,
            beta: None,
            label_smoothing: None,
            rpo_alpha: None,
            epochs: None,
            max_steps: None,
            batch_size: 8,
            gradient_accumulation_steps: 1,
            learning_rate: 2e-4,
            lora_plus_ratio: 1.0,
            scheduler: Scheduler::Cosine,
            min_learning_rate: 0.0,
            warmup: 0.03,
            decay: 0.2,
            weight_decay: 0.0,
            moments: MomentForm::F32,
            max_grad_norm: 1.0,
            max_spike: 0.0,
            seed: 42,
            eval_every: 50,
            checkpoint_every: 50,
            keep_checkpoints: 2,
            early_stopping: 0,
            result: None,
            tensorboard: false,
        }
    }
}

impl Default for EvalTable {
    fn default() -> EvalTable {
        EvalTable { test: None, rows: 200, max_new_tokens: 128, samples: 0 }
    }
}

impl Default for BudgetTable {
    fn default() -> BudgetTable {
        BudgetTable { memory: 8 << 30, reserve: 800 << 20, offload: Offload::Auto }
    }
}

impl Default for ExportTable {
    fn default() -> ExportTable {
        ExportTable {
            quant: q4_k_m(),
            types: Vec::new(),
            imatrix: None,
            imatrix_tokens: 32_768,
            comparison_tokens: COMPARISON_TOKENS,
            max_kl: None,
            min_retained: 50.0,
            max_exact_match_drop: 2.0,
            min_ended_answers: 90.0,
        }
    }
}

fn q4_k_m() -> String {
    "q4_k_m".into()
}
fn val_split() -> f32 {
    0.05
}
fn max_seq_len() -> usize {
    2048
}

/// A table as pairs, in the order of the file.
fn in_order<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Vec<(String, T)>, D::Error> {
    struct Pairs<T>(std::marker::PhantomData<T>);
    impl<'de, T: Deserialize<'de>> serde::de::Visitor<'de> for Pairs<T> {
        type Value = Vec<(String, T)>;

        fn expecting(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
            f.write_str("a table of patterns and numbers")
        }

        fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut pairs = Vec::new();
            while let Some(pair) = map.next_entry()? {
                pairs.push(pair);
            }
            Ok(pairs)
        }
    }
    deserializer.deserialize_map(Pairs(std::marker::PhantomData))
}

fn size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Size {
        Bytes(u64),
        Text(String),
    }
    match Size::deserialize(deserializer)? {
        Size::Bytes(bytes) => Ok(bytes),
        Size::Text(text) => bytes::parse(&text).map_err(serde::de::Error::custom),
    }
}

/// Keys of axolotl, torchtune, mlx-lm, LLaMA-Factory and Unsloth, and where the same is said here.
const ALIASES: Aliases = &[
    ("base_model", "model.base"),
    ("model_name_or_path", "model.base"),
    ("load_in_4bit", "model.quant"),
    ("bnb_4bit_compute_dtype", "model.compute"),
    ("quantization_bit", "model.quant"),
    ("datasets", "data.train"),
    ("dataset", "data.train"),
    ("sequence_len", "data.max_seq_len"),
    ("max_seq_length", "data.max_seq_len"),
    ("cutoff_len", "data.max_seq_len"),
    ("val_set_size", "data.val_split"),
    ("val_size", "data.val_split"),
    ("eval_split", "data.val_split"),
    ("excess_length_strategy", "data.on_too_long"),
    ("train_on_inputs", "data.train_on (with the opposite meaning)"),
    ("train_on_prompt", "data.train_on (with the opposite meaning)"),
    ("mask_prompt", "data.train_on"),
    ("roles_to_train", "data.train_on (a list of roles)"),
    ("sample_packing", "data.packing"),
    ("packed", "data.packing"),
    ("enable_thinking", "data.thinking"),
    ("template", "data.chat_template"),
    ("prompt_template", "data.chat_template"),
    ("lora_r", "adapter.rank"),
    ("lora_rank", "adapter.rank"),
    ("r", "adapter.rank"),
    ("lora_alpha", "adapter.alpha"),
    ("lora_dropout", "adapter.dropout"),
    ("use_rslora", "adapter.rslora"),
    ("peft_use_rslora", "adapter.rslora"),
    ("use_dora", "adapter.dora"),
    ("peft_use_dora", "adapter.dora"),
    ("rank_pattern", "adapter.ranks"),
    ("alpha_pattern", "adapter.alphas"),
    ("layers_to_transform", "adapter.targets (a pattern such as 'layers\\.(0|1)\\..*')"),
    ("peft_layers_to_transform", "adapter.targets (a pattern such as 'layers\\.(0|1)\\..*')"),
    ("init_lora_weights", "adapter.init"),
    ("peft_init_lora_weights", "adapter.init"),
    ("pissa_init", "adapter.init"),
    ("loftq_iter", "adapter.loftq_iterations"),
    ("loraplus_lr_ratio", "train.lora_plus_ratio"),
    ("scale", "adapter.alpha (alpha = scale x rank)"),
    ("lora_target", "adapter.targets"),
    ("target_modules", "adapter.targets"),
    ("lora_target_modules", "adapter.targets"),
    ("micro_batch_size", "train.batch_size"),
    ("per_device_train_batch_size", "train.batch_size"),
    ("grad_accumulation_steps", "train.gradient_accumulation_steps"),
    ("num_epochs", "train.epochs"),
    ("num_train_epochs", "train.epochs"),
    ("iters", "train.max_steps"),
    ("lr", "train.learning_rate"),
    ("lr_scheduler", "train.scheduler"),
    ("lr_scheduler_type", "train.scheduler"),
    ("lr_schedule", "train.scheduler"),
    ("rl", "train.method"),
    ("pref_loss", "train.method"),
    ("pref_beta", "train.beta"),
    ("rl_beta", "train.beta"),
    ("dpo_beta", "train.beta"),
    ("orpo_alpha", "train.beta"),
    ("dpo_label_smoothing", "train.label_smoothing"),
    ("pref_ftx", "train.rpo_alpha"),
    ("report_to", "train.tensorboard (true or false)"),
    ("use_tensorboard", "train.tensorboard"),
    ("warmup_ratio", "train.warmup (below 1: a ratio, from 1: steps)"),
    ("warmup_steps", "train.warmup (below 1: a ratio, from 1: steps)"),
    ("early_stopping_patience", "train.early_stopping"),
    ("early_stopping_steps", "train.early_stopping"),
    ("load_best_model_at_end", "train.result (\"best\")"),
    ("cosine_min_lr_ratio", "train.min_learning_rate (a rate, not a ratio)"),
    ("min_lr", "train.min_learning_rate"),
    ("optimizer", "train.moments (\"int8\" for optimisers of eight bits)"),
    ("optim", "train.moments (\"int8\" for optimisers of eight bits)"),
];

impl Recipe {
    /// Reads and checks the file.
    pub fn read(path: &Path) -> Result<Recipe, Failure> {
        toml_file::read(path, ALIASES)
    }

    /// Checks a text that is to be the file.
    pub fn parse(path: &Path, text: &str) -> Result<Recipe, Failure> {
        toml_file::parse(path, text, ALIASES)
    }

    /// Whether a recipe may have a key such as `train.epochs`.
    pub fn has_key(dotted: &str) -> bool {
        let Some((table, key)) = dotted.split_once('.') else { return false };
        // Any value will do: what is wrong with a known key's value is not that the key is unknown.
        let text = format!("[{table}]\n{key} = 1\n");
        match toml::from_str::<Recipe>(&text) {
            Ok(_) => true,
            Err(error) => !error.message().starts_with("unknown field"),
        }
    }

    /// The trainer's options; what the recipe leaves open is decided here. The base is named, not located yet.
    ///
    /// # Errors
    /// Both `epochs` and `max_steps` are given.
    pub fn options(&self, run_dir: PathBuf, start: Start) -> Result<Options, Failure> {
        Ok(Options {
            run_dir,
            start,
            model: ModelOptions {
                base: self.model.base.clone(),
                hub: None,
                quant: self.model.quant.clone(),
                compute: self.model.compute,
            },
            adapter: self.adapter.options(),
            data: self.data.options(self.eval.sources()),
            train: self.train.options()?,
            budget: BudgetOptions {
                memory_bytes: Some(self.budget.memory),
                reserve_bytes: self.budget.reserve,
                offload: self.budget.offload,
            },
            cache: CacheOptions {
                dir: cache_dir().filter(|_| self.model.cache),
                least_bytes: LEAST_KEPT_BYTES,
                least_data_bytes: LEAST_KEPT_DATA_BYTES,
            },
            eval: EvalOptions {
                exact_match_rows: if self.eval.test.is_some() { self.eval.rows } else { 0 },
                max_new_tokens: self.eval.max_new_tokens,
                samples_each: self.eval.samples,
                ..EvalOptions::default()
            },
        })
    }

    /// `recipes/poet.toml` trains into `runs/poet`.
    pub fn run_name(path: &Path) -> String {
        path.file_stem().map_or_else(|| "run".into(), |stem| stem.to_string_lossy().into_owned())
    }
}

impl AdapterTable {
    fn options(&self) -> AdapterOptions {
        let targets = match &self.targets {
            Targets::Named(name) => vec![name.clone()],
            Targets::List(names) => names.clone(),
        };
        AdapterOptions {
            rank: self.rank,
            alpha: self.alpha,
            dropout: self.dropout,
            rslora: self.rslora,
            dora: self.dora,
            elastic: self.elastic,
            init: self.init,
            loftq_iterations: self.loftq_iterations,
            targets,
            ranks: self.ranks.clone(),
            alphas: self.alphas.clone(),
        }
    }
}

impl OneOrMore {
    fn sources(&self) -> Vec<Source> {
        match self {
            OneOrMore::One(source) => vec![source.clone()],
            OneOrMore::More(sources) => sources.clone(),
        }
    }
}

impl EvalTable {
    /// The test files.
    pub fn sources(&self) -> Vec<Source> {
        self.test.as_ref().map(OneOrMore::sources).unwrap_or_default()
    }
}

impl DataTable {
    /// The training files.
    pub fn sources(&self) -> Vec<Source> {
        self.train.sources()
    }

    fn options(&self, test: Vec<Source>) -> DataOptions {
        DataOptions {
            train: self.sources(),
            validation: self.validation.as_ref().map(OneOrMore::sources).unwrap_or_default(),
            test,
            val_split: self.val_split,
            max_seq_len: self.max_seq_len,
            on_too_long: self.on_too_long,
            train_on: self.train_on.clone(),
            packing: self.packing,
            chat_template: self.chat_template.clone(),
            thinking: self.thinking,
            max_bad_rows: self.max_bad_rows,
        }
    }
}

impl TrainTable {
    fn options(&self) -> Result<TrainOptions, Failure> {
        let length = match (self.epochs, self.max_steps) {
            (Some(_), Some(_)) => {
                return Err(
                    Failure::new("`train.epochs` and `train.max_steps` are both given").hint("keep one")
                );
            }
            (Some(epochs), None) => Length::Epochs(epochs),
            (None, Some(steps)) => Length::MaxSteps(steps),
            (None, None) => Length::Epochs(1),
        };
        let warmup =
            if self.warmup < 1.0 { Warmup::Ratio(self.warmup) } else { Warmup::Steps(self.warmup as u64) };
        Ok(TrainOptions {
            method: self.method,
            beta: self.beta,
            label_smoothing: self.label_smoothing,
            rpo_alpha: self.rpo_alpha,
            length,
            batch_size: self.batch_size,
            gradient_accumulation_steps: self.gradient_accumulation_steps,
            learning_rate: self.learning_rate,
            lora_plus_ratio: self.lora_plus_ratio,
            scheduler: self.scheduler,
            min_learning_rate: self.min_learning_rate,
            warmup,
            decay: self.decay,
            weight_decay: self.weight_decay,
            moments: self.moments,
            clip: self.max_grad_norm,
            max_spike: self.max_spike,
            seed: self.seed,
            eval_every: self.eval_every,
            checkpoint_every: self.checkpoint_every,
            keep: self.keep_checkpoints,
            early_stopping: self.early_stopping,
            result: self.result,
            tensorboard: self.tensorboard,
        })
    }
}

#[cfg(test)]
mod fuzz;

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn check(text: &str, expected: Expect) {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("r.toml");
        std::fs::write(&path, text).expect("a file in a temporary folder");
        let shown = match Recipe::read(&path) {
            Ok(recipe) => format!(
                "{} rank {} lr {}",
                recipe.model.base.display(),
                recipe.adapter.rank,
                recipe.train.learning_rate
            ),
            Err(f) => format!("{}\nhint: {}", f.message, f.hint.unwrap_or_default()),
        };
        expected.assert_eq(&shown.replace(&folder.path().display().to_string(), "DIR"));
    }

    const GOOD: &str = "[model]\nbase = \"b\"\n[data]\ntrain = \"t\"\n";

    #[test]
    fn defaults_are_what_people_expect() {
        check(GOOD, expect!["b rank 16 lr 0.0002"]);
    }

    #[test]
    fn an_unknown_key_names_line_and_nearest_key() {
        check(
            &format!("{GOOD}[train]\nlerning_rate = 1.0\n"),
            expect![[r#"
            DIR/r.toml:6: unknown field `lerning_rate`, expected one of `method`, `beta`, `label_smoothing`, `rpo_alpha`, `epochs`, `max_steps`, `batch_size`, `gradient_accumulation_steps`, `learning_rate`, `lora_plus_ratio`, `scheduler`, `min_learning_rate`, `warmup`, `decay`, `weight_decay`, `moments`, `max_grad_norm`, `max_spike`, `seed`, `eval_every`, `checkpoint_every`, `keep_checkpoints`, `early_stopping`, `result`, `tensorboard`
            hint: did you mean `learning_rate`?"#]],
        );
        check(
            &format!("{GOOD}[train]\nmicro_batch_size = 1\n"),
            expect![[r#"
            DIR/r.toml:6: unknown field `micro_batch_size`, expected one of `method`, `beta`, `label_smoothing`, `rpo_alpha`, `epochs`, `max_steps`, `batch_size`, `gradient_accumulation_steps`, `learning_rate`, `lora_plus_ratio`, `scheduler`, `min_learning_rate`, `warmup`, `decay`, `weight_decay`, `moments`, `max_grad_norm`, `max_spike`, `seed`, `eval_every`, `checkpoint_every`, `keep_checkpoints`, `early_stopping`, `result`, `tensorboard`
            hint: here it is called `train.batch_size`"#]],
        );
        check(
            "[modle]\nbase = \"b\"\n",
            expect![[r#"
            DIR/r.toml:1: unknown field `modle`, expected one of `model`, `adapter`, `data`, `train`, `eval`, `budget`, `export`, `expert`
            hint: did you mean `model`?"#]],
        );
    }

    #[test]
    fn keys_are_known_whatever_their_values() {
        for known in ["model.base", "data.train", "data.max_seq_len", "train.scheduler", "expert.name"] {
            assert!(Recipe::has_key(known), "{known}");
        }
        for unknown in ["data.trian", "trian.epochs", "epochs"] {
            assert!(!Recipe::has_key(unknown), "{unknown}");
        }
    }

    #[test]
    fn a_wrong_type_names_line_and_what_is_expected() {
        check(
            &format!("{GOOD}[adapter]\nrank = \"sixteen\"\n"),
            expect![[r#"
                DIR/r.toml:6: `rank`: invalid type: string "sixteen", expected a whole number
                hint: "#]],
        );
        check(
            &format!("{GOOD}[budget]\nmemory = \"8 potatoes\"\n"),
            expect![[r#"
            DIR/r.toml:6: `8 potatoes` is not a size
            hint: "#]],
        );
        check(
            "[model\n",
            expect![[r#"
            DIR/r.toml:1: unclosed table, expected `]`
            hint: "#]],
        );
        check(
            "[model]\nbase = \"b\"\n",
            expect![[r#"
            DIR/r.toml:1: missing field `data`
            hint: "#]],
        );
    }
}
