//! mlx-lm's YAML for `mlx_lm.lora`.

use super::axolotl::{modules, of_layers};
use super::data;
use super::draft::{Draft, Fate, Idle};
use super::source::Setting;
use super::yaml::Node;
use crate::recipe_text::Value;
use formats::config::HfConfig;
use model::ModelConfig;
use std::path::Path;

/// Keys that need none here, and why.
pub const IDLE: Idle = &[
    (&["grad_checkpoint"], "the plan decides what is kept in memory, within `budget.memory`"),
    (
        &["steps_per_report", "wandb", "project_name"],
        "every step is in the run's metrics.jsonl; nothing is sent anywhere",
    ),
    (&["adapter_path", "config", "train"], "done otherwise here, with the same result"),
    (&["val_batches", "test_batches"], "all rows that are set aside are measured"),
];

pub fn convert(draft: &mut Draft) {
    super::steps::tensorboard(draft, "report_to");
    data::base(draft, "model");
    draft.recipe.set("model.quant", "q4_k_m", "as the base is in MLX: the blocks that the export will have");
    let is_dora = fine_tune_type(draft);
    super::method(
        draft,
        "training_mode",
        "beta",
        &[("dpo", "dpo"), ("orpo", "orpo"), ("normal", "sft"), ("sft", "sft")],
    );
    super::method(
        draft,
        "train_mode",
        "beta",
        &[("dpo", "dpo"), ("orpo", "orpo"), ("normal", "sft"), ("sft", "sft")],
    );
    adapter(draft);
    if is_dora {
        draft.recipe.set("adapter.dora", Value::Switch(true), "fine_tune_type: dora");
    }
    layers(draft);
    rows(draft);
    let accumulation =
        draft.whole("grad_accumulation_steps", "train.gradient_accumulation_steps").unwrap_or(1).max(1);
    if draft.whole("batch_size", "train.batch_size").is_none() {
        draft.default("batch_size", "train.batch_size", Value::Whole(4));
    }
    for (theirs, ours, default) in [
        ("iters", "train.max_steps", 1000),
        ("steps_per_eval", "train.eval_every", 200),
        ("save_every", "train.checkpoint_every", 100),
    ] {
        iterations(draft, theirs, ours, default, accumulation);
    }
    rates(draft);
    optimiser(draft);
    if draft.whole("seed", "train.seed").is_none() {
        draft.default("seed", "train.seed", Value::Whole(0));
    }
    draft.recipe.set("train.max_grad_norm", Value::Number(0.0), "mlx-lm does not clip gradients");
    if let Some(setting) = draft.source.take("resume_adapter_file") {
        let meaning =
            "training does not begin from another adapter; a run here goes on with --resume, moments and all";
        draft.note(Fate::Left, &setting, meaning);
    }
}

fn fine_tune_type(draft: &mut Draft) -> bool {
    let Some(setting) = draft.source.take("fine_tune_type") else { return false };
    match setting.text().as_deref() {
        Some("lora") => {}
        Some("dora") => return true,
        _ => draft.note(Fate::Left, &setting, "here an adapter is trained, not all weights"),
    }
    false
}

fn adapter(draft: &mut Draft) {
    let rank = draft.whole("lora_parameters.rank", "adapter.rank").unwrap_or_else(|| {
        draft.default("lora_parameters.rank", "adapter.rank", Value::Whole(8));
        8
    });
    draft.number("lora_parameters.dropout", "adapter.dropout");
    // Their scale multiplies B·A as it is; ours is alpha / rank.
    match draft.source.take("lora_parameters.scale") {
        Some(setting) => match setting.number() {
            Some(scale) => {
                let meaning =
                    format!("it multiplies directly there; here alpha = scale x rank = {scale} x {rank}");
                let alpha = scale * rank as f64;
                let whole = alpha.fract() == 0.0 && alpha >= 1.0;
                let value = if whole { Value::Whole(alpha as u64) } else { Value::Number(alpha) };
                draft.change(&setting, "adapter.alpha", value, meaning);
            }
            None => draft.note(Fate::Left, &setting, "a number was expected"),
        },
        None => {
            let alpha = Value::Whole(20 * rank);
            draft.recipe.set("adapter.alpha", alpha, format!("scale is not set: mlx-lm's 20 x rank {rank}"));
        }
    }
    if let Some(setting) = draft.source.take("lora_parameters.alpha") {
        draft.note(Fate::Left, &setting, "mlx-lm itself reads `scale` alone");
    }
    match draft.source.take("lora_parameters.keys") {
        Some(setting) => modules(draft, &setting),
        None => {
            draft.recipe.set("adapter.targets", "all-linear", "keys are not set: mlx-lm's default");
            draft.remark(
                Fate::Changed,
                "lora_parameters.keys",
                "not set: all linear layers, as in mlx-lm today; older versions adapt q_proj and v_proj alone",
            );
        }
    }
}

/// Only the last layers are adapted there; which these are is known once the base is here.
fn layers(draft: &mut Draft) {
    let taken = draft.source.take("num_layers").or_else(|| draft.source.take("lora_layers"));
    let setting = taken.unwrap_or_else(|| Setting::at("num_layers", 0, Node::Whole(16)));
    let Some(wanted) = setting.number() else {
        return draft.note(Fate::Left, &setting, "a number of layers was expected: all are adapted");
    };
    if wanted < 0.0 {
        return draft.n_carried += 1;
    }
    match n_layers(draft) {
        Some(all) if wanted as usize >= all => draft.n_carried += 1,
        Some(all) => {
            let last: Vec<String> = (all - wanted as usize..all).map(|layer| layer.to_string()).collect();
            let targets = of_layers(&last, draft.recipe.get("adapter.targets"));
            let meaning = format!("the last {wanted} of {all} layers");
            draft.change(&setting, "adapter.targets", Value::List(vec![targets]), meaning);
        }
        None => {
            let meaning = format!(
                "mlx-lm adapts the last {wanted} layers alone, and how many the base has is not known before it is here: \
                 all are adapted (a pattern in `adapter.targets` chooses, or import again with the base's folder)"
            );
            draft.note(Fate::Left, &setting, meaning);
        }
    }
}

fn n_layers(draft: &Draft) -> Option<usize> {
    let Some(Value::Text(base)) = draft.recipe.get("model.base") else { return None };
    let config = HfConfig::from_dir(Path::new(base)).ok()?;
    Some(ModelConfig::from_hf(&config).ok()?.n_layers)
}

fn rows(draft: &mut Draft) {
    let hub = draft.source.left().any(|setting| setting.key.starts_with("hf_dataset"));
    let Some(setting) = draft.source.take("data") else {
        if hub {
            draft.remark(
                Fate::ToDo,
                "hf_dataset",
                "a data set of the hub: save its rows as JSON, one a line",
            );
        }
        data::none_named(draft, "data");
        return how(draft);
    };
    let name = setting.text().unwrap_or_default();
    let folder = Path::new(&name);
    let is_name = !folder.exists() && name.split('/').count() == 2 && !name.starts_with(['/', '.']);
    if is_name {
        data::train_on(draft, &setting, &[name]);
    } else {
        let file = |part: &str| folder.join(part).display().to_string();
        data::train_on(draft, &setting, &[file("train.jsonl")]);
        draft.recipe.set("data.validation", Value::Text(file("valid.jsonl")), "beside the training rows");
        if !folder.join("valid.jsonl").is_file() {
            draft.note(Fate::ToDo, &setting, format!("{} is not here: put it there", file("valid.jsonl")));
        }
        if draft.where_on("test", "eval.test", Value::Text(file("test.jsonl")))
            && !folder.join("test.jsonl").is_file()
        {
            draft.note(Fate::ToDo, &setting, format!("{} is not here: put it there", file("test.jsonl")));
        }
    }
    if let Some(setting) = draft.source.take("test") {
        draft.note(Fate::Idle, &setting, "`eval.test` names the rows of a test");
    }
    how(draft);
}

/// What is learnt of a row, and how much of it is read.
fn how(draft: &mut Draft) {
    mask(draft);
    if draft.whole("max_seq_length", "data.max_seq_len").is_none() {
        draft.default("max_seq_length", "data.max_seq_len", Value::Whole(2048));
    }
    draft.recipe.set("data.on_too_long", "truncate", "as mlx-lm does, with a warning");
    for key in ["prompt_feature", "completion_feature", "chat_feature", "text_feature"] {
        if let Some(setting) = draft.source.take(key) {
            draft.note(
                Fate::Left,
                &setting,
                "rows are told apart by their own keys: rename them, or map them in `data.train`",
            );
        }
    }
}

/// Their mask leaves the last answer alone to be learnt; without it every token is.
fn mask(draft: &mut Draft) {
    match draft.source.take("mask_prompt") {
        Some(setting) if setting.switch() == Some(true) => {
            draft.carry(&setting, "data.train_on", "last".into())
        }
        Some(setting) => draft.carry(&setting, "data.train_on", "all".into()),
        None => {
            draft.default("mask_prompt", "data.train_on", "all".into());
            let meaning = "not set: questions are learnt with the answers, as there; \"assistant\" learns the answers alone";
            draft.remark(Fate::Changed, "mask_prompt", meaning);
        }
    }
}

/// Their iterations are micro-batches.
fn iterations(draft: &mut Draft, theirs: &str, ours: &str, default: u64, accumulation: u64) {
    let setting = draft.source.take(theirs);
    let number = setting.as_ref().and_then(Setting::whole).unwrap_or(default);
    let steps = number.div_ceil(accumulation);
    match setting {
        Some(setting) if accumulation == 1 => draft.carry(&setting, ours, Value::Whole(steps)),
        Some(setting) => {
            let meaning = format!("{number} micro-batches are {steps} steps of {accumulation}");
            draft.change(&setting, ours, Value::Whole(steps), meaning);
        }
        None => draft.default(theirs, ours, Value::Whole(steps)),
    }
}

fn rates(draft: &mut Draft) {
    if draft.number("learning_rate", "train.learning_rate").is_none() {
        draft.default("learning_rate", "train.learning_rate", Value::Number(1e-5));
    }
    draft.recipe.set("train.scheduler", "constant", "mlx-lm's, without an lr_schedule");
    draft.recipe.set("train.warmup", Value::Number(0.0), "mlx-lm's, without an lr_schedule");
    let name = draft.source.take("lr_schedule.name");
    let arguments = draft.source.take("lr_schedule.arguments");
    let numbers: Vec<f64> = match arguments.as_ref().map(|setting| &setting.node) {
        Some(Node::List(items)) => {
            items.iter().filter_map(|item| Setting::at("", 0, item.clone()).number()).collect()
        }
        _ => Vec::new(),
    };
    if let (Some(setting), Some(&rate)) = (&arguments, numbers.first()) {
        draft.carry(setting, "train.learning_rate", Value::Number(rate));
    }
    if let Some(setting) = name {
        let (ours, least) = match setting.text().as_deref() {
            Some("cosine_decay") => ("cosine", numbers.get(2)),
            Some("linear_schedule") => ("linear", numbers.get(1)),
            _ => ("", None),
        };
        match ours {
            "" => draft.note(Fate::Left, &setting, "there is no such schedule here: the rate stays constant"),
            ours => draft.carry(&setting, "train.scheduler", ours.into()),
        }
        if let Some(&least) = least.filter(|least| **least > 0.0) {
            draft.recipe.set("train.min_learning_rate", Value::Number(least), "lr_schedule.arguments");
        }
    }
    draft.number("lr_schedule.warmup", "train.warmup");
    if let Some(setting) = draft.source.take("lr_schedule.warmup_init") {
        draft.note(Fate::Idle, &setting, "the first step has one part of the rate, none has zero");
    }
}

fn optimiser(draft: &mut Draft) {
    let setting = draft.source.take("optimizer");
    let name = setting.as_ref().and_then(Setting::text).unwrap_or_else(|| "adam".into());
    match (setting, name.as_str()) {
        (Some(setting), "adam" | "adamw") => draft.note(Fate::Idle, &setting, "training is by AdamW"),
        (Some(setting), _) => draft.note(
            Fate::Left,
            &setting,
            "training is by AdamW here; a rate that suits another optimiser may not suit it",
        ),
        (None, _) => {}
    }
    // MLX's AdamW decays by a hundredth where nothing is said, its Adam not at all.
    let decay = format!("optimizer_config.{name}.weight_decay");
    if draft.number(&decay, "train.weight_decay").is_none() {
        let value = if name == "adamw" { 0.01 } else { 0.0 };
        draft.recipe.set("train.weight_decay", Value::Number(value), format!("MLX's default for {name}"));
    }
    for part in ["betas", "eps", "bias_correction"] {
        super::fixed_constant(draft, &format!("optimizer_config.{name}.{part}"));
    }
}
