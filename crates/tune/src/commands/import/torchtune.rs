//! torchtune's YAML.

use super::data;
use super::draft::{Draft, Fate, Idle};
use super::source::Setting;
use super::steps;
use super::yaml::Node;
use crate::recipe_text::Value;

/// Keys that need none here, and why.
pub const IDLE: Idle = &[
    (
        &["device", "dtype", "compile", "optimizer.fused", "enable_fp8_training", "loss"],
        "precision and kernels are chosen for the processor (`model.compute`)",
    ),
    (
        &[
            "enable_activation_checkpointing",
            "enable_activation_offloading",
            "low_cpu_ram",
            "memory_efficient_fsdp_wrap",
            "fsdp_cpu_offload",
            "custom_sharded_layers",
            "fsdp_reshard_after_forward",
        ],
        "the plan decides what is kept in memory, within `budget.memory`",
    ),
    (
        &["metric_logger", "log_every_n_steps", "log_peak_memory_stats", "log_level", "profiler"],
        "every step is in the run's metrics.jsonl; nothing is sent anywhere",
    ),
    (
        &[
            "output_dir",
            "checkpointer",
            "tokenizer",
            "shuffle",
            "save_adapter_weights_only",
            "save_last_epoch_only",
            "max_filenames",
        ],
        "done otherwise here, with the same result",
    ),
];

pub fn convert(draft: &mut Draft) {
    data::base(draft, "checkpointer.checkpoint_dir");
    model(draft);
    rows(draft);
    if draft.whole("batch_size", "train.batch_size").is_none() {
        draft.remark(Fate::Changed, "batch_size", "not set: the recipe's default, 8");
    }
    draft.whole("gradient_accumulation_steps", "train.gradient_accumulation_steps");
    length(draft);
    train(draft);
    if let Some(setting) = draft.source.take("resume_from_checkpoint")
        && setting.switch() == Some(true)
    {
        draft.note(Fate::Left, &setting, "go on with `tune train RECIPE --resume`");
    }
}

fn model(draft: &mut Draft) {
    let builder = draft.source.take("model._component_");
    let name = builder.as_ref().and_then(Setting::text).unwrap_or_default();
    let is_quantised = name.contains("qlora")
        || draft.source.take("model.quantize_base").is_some_and(|s| s.switch() == Some(true));
    match (&builder, is_quantised) {
        (Some(setting), true) => {
            let meaning = "the blocks that the export will have, instead of torchao's nf4 (\"nf4\" for such)";
            draft.change(setting, "model.quant", "q4_k_m".into(), meaning);
        }
        (Some(setting), false) if name.contains("lora") => {
            draft.carry(setting, "model.quant", "bf16".into());
            draft.note(
                Fate::Changed,
                setting,
                "the base is held in 16 bits, as there; \"q4_k_m\" takes a quarter of the memory",
            );
        }
        (Some(setting), false) => {
            draft.note(Fate::Left, setting, "here an adapter is trained, not all weights")
        }
        (None, _) => {}
    }
    draft.whole("model.lora_rank", "adapter.rank");
    draft.number("model.lora_alpha", "adapter.alpha");
    draft.number("model.lora_dropout", "adapter.dropout");
    draft.switch("model.use_dora", "adapter.dora");
    targets(draft);
}

fn targets(draft: &mut Draft) {
    let attention = draft.source.take("model.lora_attn_modules");
    let mlp = draft.source.take("model.apply_lora_to_mlp");
    if let Some(setting) = draft.source.take("model.apply_lora_to_output")
        && setting.switch() == Some(true)
    {
        draft.note(Fate::Left, &setting, "the head stays as it is");
    }
    let Some(setting) = attention else {
        return draft.default("model.lora_attn_modules", "adapter.targets", "all-linear".into());
    };
    let mut names: Vec<String> = setting
        .texts()
        .unwrap_or_default()
        .into_iter()
        .map(|name| if name == "output_proj" { "o_proj".into() } else { name })
        .collect();
    if let Some(mlp) = mlp.filter(|mlp| mlp.switch() == Some(true)) {
        draft.note(Fate::Idle, &mlp, "in `adapter.targets` as gate_proj, up_proj and down_proj");
        names.extend(["gate_proj", "up_proj", "down_proj"].map(str::to_owned));
    }
    draft.carry(&setting, "adapter.targets", Value::List(names));
}

fn rows(draft: &mut Draft) {
    let files = draft.source.take("dataset.data_files");
    let source = draft.source.take("dataset.source");
    let builder = draft.source.take("dataset._component_");
    match (files, source, &builder) {
        (Some(setting), source, _) => {
            if let Some(source) = source {
                draft.note(Fate::Idle, &source, "`data_files` names the rows");
            }
            let names = setting.texts().unwrap_or_default();
            data::train_on(draft, &setting, &names);
        }
        (None, Some(setting), _) => {
            let name = setting.text().unwrap_or_default();
            data::train_on(draft, &setting, &[name]);
        }
        (None, None, Some(setting)) => {
            let name = setting.text().unwrap_or_default();
            data::train_on(draft, setting, &[name.rsplit('.').next().unwrap_or_default().to_owned()]);
        }
        (None, None, None) => data::none_named(draft, "dataset"),
    }
    if let Some(setting) = builder {
        draft.note(Fate::Idle, &setting, "rows are told apart by their own keys");
    }
    if draft.whole("tokenizer.max_seq_len", "data.max_seq_len").is_some() {
        draft.recipe.set("data.on_too_long", "truncate", "as torchtune does");
    }
    match draft.source.take("dataset.train_on_input") {
        Some(setting) if setting.switch() == Some(true) => {
            draft.carry(&setting, "data.train_on", "all".into())
        }
        Some(setting) => draft.carry(&setting, "data.train_on", "assistant".into()),
        None => draft.recipe.set(
            "data.train_on",
            "assistant",
            "the answers; some of torchtune's data sets learn the questions too",
        ),
    }
    super::packing(draft, "dataset.packed");
    if let Some(setting) = draft.source.take("dataset.split") {
        draft.note(Fate::Idle, &setting, "a file has the rows of one split");
    }
    for key in [
        "dataset.conversation_column",
        "dataset.column_map",
        "dataset.conversation_style",
        "dataset.new_system_prompt",
    ] {
        if let Some(setting) = draft.source.take(key) {
            draft.note(
                Fate::Left,
                &setting,
                "rows are told apart by their own keys: rename them, or map them in `data.train`",
            );
        }
    }
    draft.recipe.set("data.val_split", Value::Number(0.0), "no rows are set aside, as there");
}

fn length(draft: &mut Draft) {
    let epochs = draft.source.peek("epochs").and_then(Setting::whole).unwrap_or(1);
    match draft.source.take("max_steps_per_epoch") {
        Some(setting) => match setting.whole() {
            Some(steps) => {
                let meaning = format!(
                    "{epochs} epochs of {steps} steps, the second of rows that the first did not reach"
                );
                draft.change(&setting, "train.max_steps", Value::Whole(steps * epochs), meaning);
                draft.source.take("epochs");
            }
            None => draft.note(Fate::Left, &setting, "a number of steps was expected"),
        },
        None => steps::length(draft, "epochs", "max_steps", 1),
    }
}

fn train(draft: &mut Draft) {
    draft.number("optimizer.lr", "train.learning_rate");
    draft.number("optimizer.weight_decay", "train.weight_decay");
    draft.default("optimizer.weight_decay", "train.weight_decay", Value::Number(0.01));
    steps::optimiser(draft, "optimizer._component_");
    let logger = draft.source.peek("metric_logger._component_").and_then(Setting::text);
    if logger.is_some_and(|name| name.ends_with("TensorBoardLogger"))
        && let Some(setting) = draft.source.take("metric_logger._component_")
    {
        draft.carry(&setting, "train.tensorboard", Value::Switch(true));
    }
    for part in ["betas", "eps"] {
        super::fixed_constant(draft, &format!("optimizer.{part}"));
    }
    if let Some(setting) = draft.source.take("lr_scheduler._component_") {
        match setting.text().is_some_and(|name| name.contains("cosine")) {
            true => draft.carry(&setting, "train.scheduler", "cosine".into()),
            false => draft.change(&setting, "train.scheduler", "cosine".into(), "a cosine is the nearest"),
        }
    } else {
        draft.recipe.set("train.scheduler", "constant", "no lr_scheduler is set");
    }
    steps::warmup(draft, "lr_scheduler.num_warmup_steps", "lr_scheduler.warmup_ratio", Some(0.0));
    match draft.source.peek("clip_grad_norm").map(|setting| setting.node.clone()) {
        Some(Node::Whole(_) | Node::Number(_) | Node::Text(_)) => {
            draft.number("clip_grad_norm", "train.max_grad_norm");
        }
        _ => draft.recipe.set(
            "train.max_grad_norm",
            Value::Number(0.0),
            "clip_grad_norm is not set: no clipping",
        ),
    }
    draft.whole("seed", "train.seed");
}
