//! The YAML of Unsloth's command line.

use super::axolotl::{four_bits, modules};
use super::data;
use super::draft::{Draft, Fate, Idle};
use super::source::Source;
use super::steps::{self, Sizes};
use crate::recipe_text::Value;

/// Keys that need none here, and why.
pub const IDLE: Idle = &[
    (&["training.gradient_checkpointing"], "the plan decides what is kept in memory, within `budget.memory`"),
    (&["logging"], "every step is in the run's metrics.jsonl; nothing is sent anywhere"),
    (&["training.output_dir"], "a run is kept in runs/<name of the recipe>"),
    (
        &["lora.vision_all_linear", "lora.finetune_vision_layers", "lora.finetune_language_layers"],
        "only language layers are trained",
    ),
];

pub fn convert(draft: &mut Draft) {
    data::base(draft, "model");
    match draft.source.take("training.load_in_4bit") {
        Some(setting) if setting.switch() == Some(false) => {
            draft.carry(&setting, "model.quant", "bf16".into())
        }
        Some(setting) => four_bits(draft, &setting),
        None => draft.default("training.load_in_4bit", "model.quant", "q4_k_m".into()),
    }
    adapter(draft);
    let rows = rows(draft);
    let micro = draft.whole("training.batch_size", "train.batch_size");
    draft.default("training.batch_size", "train.batch_size", Value::Whole(2));
    let accumulation = "train.gradient_accumulation_steps";
    let steps_in_one = draft.whole("training.gradient_accumulation_steps", accumulation);
    draft.default("training.gradient_accumulation_steps", accumulation, Value::Whole(4));
    steps::length(draft, "training.num_epochs", "training.max_steps", 3);
    draft.number("training.learning_rate", "train.learning_rate");
    draft.recipe.set("train.scheduler", "linear", "Unsloth's");
    steps::tensorboard(draft, "logging.enable_tensorboard");
    steps::warmup(draft, "training.warmup_steps", "training.warmup_ratio", None);
    draft.default("training.warmup_steps", "train.warmup", Value::Whole(5));
    draft.number("training.weight_decay", "train.weight_decay");
    draft.default("training.weight_decay", "train.weight_decay", Value::Number(0.01));
    draft.whole("training.random_seed", "train.seed");
    draft.default("training.random_seed", "train.seed", Value::Whole(3407));
    let rows = steps::unpacked(draft, "training.packing", rows);
    let sizes = Sizes { rows, rows_per_step: micro.unwrap_or(2) * steps_in_one.unwrap_or(4) };
    let names = ("training.save_steps", "training.saves_per_epoch", "training.save_strategy");
    steps::every(draft, names, "train.checkpoint_every", sizes);
}

fn adapter(draft: &mut Draft) {
    if let Some(setting) = draft.source.take("training.training_type")
        && setting.text().as_deref() != Some("lora")
    {
        draft.note(Fate::Left, &setting, "here an adapter is trained, not all weights");
    }
    draft.whole("lora.lora_r", "adapter.rank");
    draft.default("lora.lora_r", "adapter.rank", Value::Whole(64));
    draft.number("lora.lora_alpha", "adapter.alpha");
    draft.default("lora.lora_alpha", "adapter.alpha", Value::Whole(16));
    draft.number("lora.lora_dropout", "adapter.dropout");
    draft.switch("lora.use_rslora", "adapter.rslora");
    draft.switch("lora.use_dora", "adapter.dora");
    draft.where_on("lora.use_loftq", "adapter.init", "loftq".into());
    if let Some(setting) = draft.source.take("lora.target_modules") {
        modules(draft, &setting);
    }
    for key in ["lora.finetune_attention_modules", "lora.finetune_mlp_modules"] {
        match draft.source.take(key) {
            Some(setting) if setting.switch() == Some(false) => {
                draft.note(
                    Fate::Left,
                    &setting,
                    "name the layers that are to be trained in `adapter.targets`",
                );
            }
            Some(setting) => draft.note(Fate::Idle, &setting, "`adapter.targets` says it"),
            None => {}
        }
    }
}

fn rows(draft: &mut Draft) -> Option<u64> {
    let local = draft.source.take("data.local_dataset");
    let named = draft.source.take("data.dataset");
    let rows = match (local, named) {
        (Some(setting), beside) => {
            if let Some(beside) = beside {
                draft.note(Fate::Left, &beside, "`data.local_dataset` counts where both are given");
            }
            data::train_on(draft, &setting, &setting.texts().unwrap_or_default())
        }
        (None, Some(setting)) => {
            let name = setting.text().unwrap_or_default();
            data::train_on(draft, &setting, &[name])
        }
        (None, None) => {
            data::none_named(draft, "data.dataset");
            None
        }
    };
    if let Some(setting) = draft.source.take("data.format_type") {
        draft.note(Fate::Idle, &setting, "rows are told apart by their own keys");
    }
    draft.whole("training.max_seq_length", "data.max_seq_len");
    draft.recipe.set("data.on_too_long", "truncate", "as Unsloth does");
    draft.recipe.set("data.val_split", Value::Number(0.0), "Unsloth's command line sets no rows aside");
    match draft.source.take("training.train_on_completions") {
        Some(setting) if setting.switch() == Some(true) => {
            draft.carry(&setting, "data.train_on", "assistant".into())
        }
        Some(setting) => {
            let meaning =
                "questions are learnt with the answers, as there; \"assistant\" learns the answers alone";
            draft.change(&setting, "data.train_on", "all".into(), meaning);
        }
        None => draft.default("training.train_on_completions", "data.train_on", "all".into()),
    }
    super::packing(draft, "training.packing");
    rows
}

/// A script of Unsloth's notebooks, or another one in Python.
pub fn is_script(name: &str, text: &str) -> bool {
    let is_python = |line: &str| {
        let line = line.trim_start();
        (line.starts_with("import ") || line.starts_with("from ") && line.contains(" import "))
            && !line.contains(": ")
    };
    [".py", ".ipynb"].iter().any(|end| name.ends_with(end)) || text.lines().take(200).any(is_python)
}

/// Whether a file is of this tool: its sections are maps.
pub fn is_of(source: &Source) -> bool {
    let section = |name: &str| source.has(&format!("training.{name}")) || source.has(&format!("lora.{name}"));
    ["training_type", "max_seq_length", "num_epochs", "lora_r", "target_modules", "batch_size"]
        .iter()
        .any(|n| section(n))
}
