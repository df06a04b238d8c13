//! LLaMA-Factory's YAML.

use super::axolotl::{four_bits, modules};
use super::data;
use super::draft::{Draft, Fate, Idle};
use super::source::Setting;
use super::steps::{self, Sizes};
use crate::recipe_text::{DataFile, Value};
use std::path::Path;

/// Keys that need none here, and why.
pub const IDLE: Idle = &[
    (
        &[
            "bf16",
            "fp16",
            "pure_bf16",
            "tf32",
            "flash_attn",
            "enable_liger_kernel",
            "use_unsloth*",
            "shift_attn",
            "infer_dtype",
        ],
        "precision and kernels are chosen for the processor (`model.compute`)",
    ),
    (
        &[
            "disable_gradient_checkpointing",
            "gradient_checkpointing*",
            "low_cpu_mem_usage",
            "offload_folder",
            "upcast_*",
            "device_map",
        ],
        "the plan decides what is kept in memory, within `budget.memory`",
    ),
    (&["deepspeed", "fsdp*", "ddp_timeout", "ray_*"], "one machine trains, with one process"),
    (
        &[
            "logging_*",
            "plot_loss",
            "run_name",
            "include_num_input_tokens_seen",
            "include_tokens_per_second",
            "use_swanlab",
            "swanlab_*",
            "push_to_hub*",
            "hub_*",
            "hf_hub_token",
            "ms_hub_token",
            "print_param_status",
        ],
        "every step is in the run's metrics.jsonl; nothing is sent anywhere",
    ),
    (
        &[
            "do_train",
            "do_eval",
            "output_dir",
            "overwrite_output_dir",
            "overwrite_cache",
            "preprocessing_*",
            "dataloader_*",
            "tokenized_path",
            "streaming",
            "buffer_size",
            "per_device_eval_batch_size",
            "save_only_model",
            "bf16_full_eval",
            "cache_dir",
            "use_fast_tokenizer",
            "group_by_length",
            "ignore_pad_token_for_loss",
            "remove_unused_columns",
            "eval_on_each_dataset",
            "metric_for_best_model",
            "greater_is_better",
            "pissa_iter",
            "pissa_convert",
            "double_quantization",
            "quantization_method",
            "quantization_type",
            "save_safetensors",
        ],
        "done otherwise here, with the same result",
    ),
    (&["trust_remote_code"], "the base's own files say it; no code of a model is run"),
];

pub fn convert(draft: &mut Draft) {
    data::base(draft, "model_name_or_path");
    match draft.source.take("quantization_bit") {
        Some(setting) if setting.whole() == Some(4) => four_bits(draft, &setting),
        Some(setting) => draft.carry(&setting, "model.quant", "q8_0".into()),
        None => {
            draft.recipe.set(
                "model.quant",
                "bf16",
                "quantization_bit is not set: the base in 16 bits, as there",
            );
            let meaning = "the base is held in 16 bits, as there; \"q4_k_m\" takes a quarter of the memory";
            draft.remark(Fate::Changed, "quantization_bit", meaning);
        }
    }
    method(draft);
    adapter(draft);
    let micro = draft.whole("per_device_train_batch_size", "train.batch_size");
    let accumulation = draft.whole("gradient_accumulation_steps", "train.gradient_accumulation_steps");
    draft.default("per_device_train_batch_size", "train.batch_size", Value::Whole(8));
    let rows = rows(draft);
    let rows_of_steps = steps::unpacked(draft, "packing", rows);
    let sizes = Sizes { rows: rows_of_steps, rows_per_step: micro.unwrap_or(8) * accumulation.unwrap_or(1) };
    steps::length(draft, "num_train_epochs", "max_steps", 3);
    steps::validation(draft, "val_size", rows);
    train(draft);
    steps::every(draft, ("eval_steps", "evals_per_epoch", "eval_strategy"), "train.eval_every", sizes);
    if let Some(setting) = draft.source.take("evaluation_strategy") {
        draft.note(Fate::Idle, &setting, "`train.eval_every` says it");
    }
    steps::every(draft, ("save_steps", "saves_per_epoch", "save_strategy"), "train.checkpoint_every", sizes);
    draft.default("save_steps", "train.checkpoint_every", Value::Whole(500));
}

fn method(draft: &mut Draft) {
    let orpo = draft.source.peek("pref_loss").and_then(Setting::text).as_deref() == Some("orpo");
    let named = [("sft", "sft"), ("pt", "sft"), ("dpo", if orpo { "orpo" } else { "dpo" })];
    super::method(draft, "stage", "pref_beta", &named);
    if let Some(setting) = draft.source.take("pref_loss") {
        match setting.text().as_deref() {
            Some("sigmoid" | "orpo") => draft.note(Fate::Idle, &setting, "`train.method` says it"),
            _ => draft.note(Fate::Left, &setting, "preferences are learnt by DPO's own loss, or by ORPO's"),
        }
    }
    if let Some(setting) = draft.source.take("finetuning_type")
        && setting.text().as_deref() != Some("lora")
    {
        draft.note(Fate::Left, &setting, "here an adapter is trained, not the weights themselves");
    }
}

fn adapter(draft: &mut Draft) {
    let rank = draft.whole("lora_rank", "adapter.rank").unwrap_or(8);
    draft.default("lora_rank", "adapter.rank", Value::Whole(8));
    if draft.number("lora_alpha", "adapter.alpha").is_none() {
        draft.recipe.set(
            "adapter.alpha",
            Value::Whole(2 * rank),
            "lora_alpha is not set: twice the rank, as there",
        );
    }
    draft.number("lora_dropout", "adapter.dropout");
    draft.switch("use_rslora", "adapter.rslora");
    draft.switch("use_dora", "adapter.dora");
    draft.where_on("pissa_init", "adapter.init", "pissa".into());
    draft.number("loraplus_lr_ratio", "train.lora_plus_ratio");
    match draft.source.take("lora_target") {
        Some(setting) => modules(draft, &setting),
        None => draft.default("lora_target", "adapter.targets", "all-linear".into()),
    }
    for (key, meaning) in [
        ("additional_target", "embedding, head and parameters outside linear layers stay as they are"),
        (
            "adapter_name_or_path",
            "training does not begin from another adapter: merge it with `tune export --as merged-hf` first",
        ),
    ] {
        if let Some(setting) = draft.source.take(key) {
            draft.note(Fate::Left, &setting, meaning);
        }
    }
}

/// Names of data sets are looked up in `dataset_info.json`, where that is here.
fn rows(draft: &mut Draft) -> Option<u64> {
    let folder =
        draft.source.take("dataset_dir").and_then(|setting| setting.text()).unwrap_or_else(|| "data".into());
    let folder = Path::new(&folder);
    let known = formats::json::read::<serde_json::Value>(&folder.join("dataset_info.json")).ok();
    let file_of = |name: String| match known.as_ref().and_then(|all| all.get(name.as_str())) {
        Some(entry) => data_file(folder, &name, entry),
        None => DataFile { path: name, fields: Vec::new() },
    };
    let files = |setting: &Setting| setting.texts().unwrap_or_default().into_iter().map(file_of).collect();
    let rows = match draft.source.take("dataset") {
        Some(setting) => data::train_on_files(draft, &setting, files(&setting)),
        None => {
            data::none_named(draft, "dataset");
            None
        }
    };
    if let Some(setting) = draft.source.take("eval_dataset") {
        data::validate_on(draft, &setting, files(&setting));
    }
    if draft.whole("cutoff_len", "data.max_seq_len").is_none() {
        draft.default("cutoff_len", "data.max_seq_len", Value::Whole(2048));
    }
    draft.recipe.set("data.on_too_long", "truncate", "as LLaMA-Factory does");
    let on_prompt = draft.where_on("train_on_prompt", "data.train_on", "all".into());
    let on_last = draft.where_on("mask_history", "data.train_on", "last".into());
    if !on_prompt && !on_last {
        draft.recipe.set("data.train_on", "assistant", "train_on_prompt is not set: the answers");
    }
    if draft.source.has("neat_packing") {
        super::packing(draft, "neat_packing");
    }
    super::packing(draft, "packing");
    for (key, meaning) in [
        ("template", "the base's own chat template is used, in training and in the export"),
        ("max_samples", "all rows are trained on: shorten the file, or set `train.max_steps`"),
        ("mix_strategy", "files are trained on one beside the other, each row once an epoch"),
        ("interleave_probs", "files are trained on one beside the other, each row once an epoch"),
        ("tool_format", "the base's own chat template says how tools are written"),
        ("default_system", "put a system message into the rows"),
        ("enable_thinking", "the base's own chat template says it"),
    ] {
        if let Some(setting) = draft.source.take(key) {
            draft.note(Fate::Left, &setting, meaning);
        }
    }
    rows
}

/// A data set as `dataset_info.json` describes it: its file, and its columns where they have other names than here.
fn data_file(folder: &Path, name: &str, entry: &serde_json::Value) -> DataFile {
    let text = |table: &str, key: &str| entry.get(table)?.get(key)?.as_str().map(str::to_owned);
    let is_sharegpt = entry.get("formatting").and_then(|kind| kind.as_str()) == Some("sharegpt");
    let columns: &[(&'static str, &str)] = match is_sharegpt {
        true => &[("conversations", "messages")],
        false => {
            &[("instruction", "prompt"), ("input", "query"), ("output", "response"), ("history", "history")]
        }
    };
    let shared = [("system", "system"), ("tools", "tools"), ("chosen", "chosen"), ("rejected", "rejected")];
    let mut fields: Vec<(&'static str, String)> = Vec::new();
    for (ours, theirs) in columns.iter().copied().chain(shared) {
        fields.extend(text("columns", theirs).filter(|column| column != ours).map(|column| (ours, column)));
    }
    // A column `messages` is read as it comes, whatever its messages look like.
    fields.retain(|(ours, theirs)| !(*ours == "conversations" && theirs == "messages"));
    // Plain text stands in the column of the prompt.
    if let ([("instruction", column)], false) = (fields.as_slice(), is_sharegpt) {
        fields = if column == "text" { Vec::new() } else { vec![("text", column.clone())] };
    }
    let named = |ours: &'static str, tag: &str, usual: [&str; 2]| {
        text("tags", tag).filter(|name| !usual.contains(&name.as_str())).map(|name| (ours, name))
    };
    fields.extend(named("role", "role_tag", ["from", "role"]));
    fields.extend(named("content", "content_tag", ["value", "content"]));
    let file = entry.get("file_name").and_then(|file| file.as_str());
    let path = file.map_or_else(|| name.to_owned(), |file| folder.join(file).display().to_string());
    DataFile { path, fields }
}

fn train(draft: &mut Draft) {
    draft.number("learning_rate", "train.learning_rate");
    draft.default("learning_rate", "train.learning_rate", Value::Number(5e-5));
    steps::scheduler(draft, "lr_scheduler_type", "lr_scheduler_kwargs", "linear");
    steps::warmup(draft, "warmup_steps", "warmup_ratio", Some(0.0));
    steps::optimiser(draft, "optim");
    steps::tensorboard(draft, "report_to");
    steps::of_hugging_face(draft, "early_stopping_steps");
    if let Some(setting) = draft.source.take("resume_from_checkpoint") {
        draft.note(Fate::Left, &setting, "go on with `tune train RECIPE --resume`");
    }
    if let Some(setting) = draft.source.take("neftune_noise_alpha") {
        draft.note(Fate::Left, &setting, "no noise is added to embeddings");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn llama_factory_columns_are_named_where_they_differ() {
        let info = serde_json::json!({
            "file_name": "f.json",
            "formatting": "sharegpt",
            "columns": {"messages": "talk", "chosen": "better", "rejected": "rejected", "system": "rules"},
            "tags": {"role_tag": "speaker", "content_tag": "words", "user_tag": "user"}
        });
        let fields = |info: &serde_json::Value| data_file(Path::new("data"), "n", info);
        let text = |file: &crate::recipe_text::DataFile| {
            let fields: Vec<_> =
                file.fields.iter().map(|(ours, theirs)| format!("{ours}={theirs}")).collect();
            format!("{} {}", file.path, fields.join(" "))
        };
        assert_eq!(
            text(&fields(&info)),
            "data/f.json conversations=talk system=rules chosen=better role=speaker content=words"
        );
        let alpaca = serde_json::json!({"file_name": "a.json", "columns": {"prompt": "q", "response": "a"}});
        assert_eq!(text(&fields(&alpaca)), "data/a.json instruction=q output=a");
        let plain = serde_json::json!({"file_name": "t.jsonl", "columns": {"prompt": "text"}});
        assert_eq!(text(&fields(&plain)), "data/t.jsonl ");
        let usual = serde_json::json!({"file_name": "u.json", "formatting": "sharegpt",
            "columns": {"messages": "messages"}, "tags": {"role_tag": "role", "content_tag": "content"}});
        assert_eq!(text(&fields(&usual)), "data/u.json ");
        assert_eq!(text(&fields(&serde_json::json!({"hf_hub_url": "a/b"}))), "n ");
    }
}
