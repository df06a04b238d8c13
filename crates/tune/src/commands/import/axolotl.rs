//! axolotl's YAML.

use super::axolotl_rows;
use super::data;
use super::draft::{Draft, Fate, Idle};
use super::source::Setting;
use super::steps::{self, Sizes};
use super::yaml::Node;
use crate::recipe_text::Value;

/// Keys that need none here, and why.
pub const IDLE: Idle = &[
    (
        &[
            "bf16",
            "fp16",
            "fp8",
            "tf32",
            "bfloat16",
            "float16",
            "float32",
            "torch_dtype",
            "flash_attention",
            "flash_attn_*",
            "flash_optimum",
            "sdp_attention",
            "xformers_attention",
            "eager_attention",
            "flex_attention",
            "flex_attn_compile_kwargs",
            "attn_implementation",
            "s2_attention",
            "torch_compile*",
            "lora_mlp_kernel",
            "lora_qkv_kernel",
            "lora_o_kernel",
            "unsloth_*",
            "liger_*",
            "cut_cross_entropy",
            "plugins",
            "use_kernels",
        ],
        "precision and kernels are chosen for the processor (`model.compute`)",
    ),
    (
        &[
            "gradient_checkpointing*",
            "activation_offloading",
            "low_cpu_mem_usage",
            "max_memory",
            "gpu_memory_limit",
            "lora_on_cpu",
            "auto_find_batch_size",
            "gc_steps",
            "embeddings_skip_upcast",
            "device_map",
            "device",
            "qlora_sharded_model_loading",
            "peft_autocast_adapter_dtype",
            "experimental_skip_move_to_device",
        ],
        "the plan decides what is kept in memory, within `budget.memory`",
    ),
    (
        &[
            "deepspeed",
            "fsdp*",
            "ddp*",
            "world_size",
            "local_rank",
            "tensor_parallel_size",
            "context_parallel_size",
            "sequence_parallel_degree",
            "dp_*",
            "ray_*",
            "use_ray",
            "accelerator_config",
            "heads_k_stride",
            "ring_attn_func",
        ],
        "one machine trains, with one process",
    ),
    (
        &[
            "wandb_*",
            "use_wandb",
            "mlflow_*",
            "use_mlflow",
            "comet_*",
            "use_comet",
            "use_swanlab",
            "swanlab_*",
            "trackio_*",
            "use_trackio",
            "otel_*",
            "use_otel_metrics",
            "hub_*",
            "push_*",
            "hf_use_auth_token",
            "gradio_*",
            "logging_steps",
            "logging_first_step",
            "profiler_steps",
            "include_tokens_per_second",
            "include_tkps",
            "eval_table_size",
        ],
        "every step is in the run's metrics.jsonl; nothing is sent anywhere",
    ),
    (
        &[
            "dataset_prepared_path",
            "dataset_processes",
            "dataset_num_proc",
            "dataset_keep_in_memory",
            "dataloader_*",
            "dataset_shard_*",
            "preprocess_iterable",
            "remove_unused_columns",
            "group_by_length",
            "shuffle_merged_datasets",
            "pad_to_sequence_len",
            "eval_batch_size",
            "batch_flattening",
            "sample_packing_*",
            "eval_sample_packing",
            "multipack_real_batches",
            "save_safetensors",
            "output_dir",
            "save_only_model",
            "save_first_step",
            "overwrite_output_dir",
            "resize_token_embeddings_to_32x",
            "strict",
            "auto_resume_from_checkpoints",
            "metric_for_best_model",
            "greater_is_better",
            "tokenizer_save_jinja_files",
        ],
        "done otherwise here, with the same result",
    ),
    (
        &[
            "model_type",
            "tokenizer_type",
            "tokenizer_use_fast",
            "tokenizer_legacy",
            "base_model_config",
            "trust_remote_code",
            "is_llama_derived_model",
            "is_mistral_derived_model",
            "is_qwen_derived_model",
            "is_falcon_derived_model",
            "processor_type",
            "lora_fan_in_fan_out",
        ],
        "the base's own files say it; no code of a model is run",
    ),
];

pub fn convert(draft: &mut Draft) {
    data::base(draft, "base_model");
    quant(draft);
    adapter(draft);
    let batch = batch(draft);
    let (rows, roles) = axolotl_rows::train(draft);
    steps::length(draft, "num_epochs", "max_steps", 1);
    let sizes = Sizes { rows: steps::unpacked(draft, "sample_packing", rows), rows_per_step: batch };
    lengths(draft);
    steps::validation(draft, "val_set_size", rows);
    axolotl_rows::validation(draft);
    mask(draft);
    axolotl_rows::learnt_roles(draft, roles);
    train(draft);
    steps::every(draft, ("eval_steps", "evals_per_epoch", "eval_strategy"), "train.eval_every", sizes);
    steps::every(draft, ("save_steps", "saves_per_epoch", "save_strategy"), "train.checkpoint_every", sizes);
    templates(draft);
}

fn quant(draft: &mut Draft) {
    let adapter = draft.source.peek("adapter").and_then(Setting::text);
    let in_four = draft.source.take("load_in_4bit");
    let in_eight = draft.source.take("load_in_8bit");
    let is_on = |setting: &Option<Setting>| setting.as_ref().is_some_and(|s| s.switch() == Some(true));
    if let (true, Some(setting)) = (is_on(&in_four), &in_four) {
        four_bits(draft, setting);
    } else if let (true, Some(setting)) = (is_on(&in_eight), &in_eight) {
        draft.carry(setting, "model.quant", "q8_0".into());
    } else if adapter.as_deref() == Some("lora") {
        draft.default("load_in_4bit", "model.quant", "bf16".into());
        draft.remark(
            Fate::Changed,
            "load_in_4bit",
            "the base is held in 16 bits, as there; \"q4_k_m\" takes a quarter of the memory",
        );
    }
}

/// What bitsandbytes' four bits are carried over as.
pub fn four_bits(draft: &mut Draft, setting: &Setting) {
    let meaning = "the blocks that the export will have, instead of bitsandbytes' nf4 (\"nf4\" for those)";
    draft.change(setting, "model.quant", "q4_k_m".into(), meaning);
}

fn adapter(draft: &mut Draft) {
    match draft.source.take("adapter") {
        Some(setting) if ["lora", "qlora"].contains(&setting.text().unwrap_or_default().as_str()) => {}
        Some(setting) => draft.note(Fate::Left, &setting, "an adapter of LoRA's kind is trained instead"),
        None => draft.remark(
            Fate::Changed,
            "adapter",
            "without one axolotl trains all weights; here an adapter is trained, with the defaults of a recipe",
        ),
    }
    let rank = draft.whole("lora_r", "adapter.rank");
    if draft.number("lora_alpha", "adapter.alpha").is_none() && rank.is_some() {
        draft.remark(Fate::Changed, "lora_alpha", "not set: the recipe's default, 32");
    }
    draft.number("lora_dropout", "adapter.dropout");
    draft.switch("peft_use_rslora", "adapter.rslora");
    draft.switch("peft_use_dora", "adapter.dora");
    draft.number("loraplus_lr_ratio", "train.lora_plus_ratio");
    targets(draft);
    if let Some(setting) = draft.source.take("peft_init_lora_weights") {
        match (setting.text().as_deref(), setting.switch()) {
            (Some(name @ ("pissa" | "loftq")), _) => draft.carry(&setting, "adapter.init", name.into()),
            (_, Some(true)) => draft.carry(&setting, "adapter.init", "default".into()),
            _ => draft.note(
                Fate::Left,
                &setting,
                "A begins at random and B at zero here, or by PiSSA or LoftQ",
            ),
        }
    }
    for key in ["lora_modules_to_save", "lora_target_parameters", "peft_trainable_token_indices"] {
        if let Some(setting) = draft.source.take(key) {
            draft.note(
                Fate::Left,
                &setting,
                "embedding, head and parameters outside linear layers stay as they are",
            );
        }
    }
    if let Some(setting) = draft.source.take("lora_model_dir") {
        draft.note(
            Fate::Left,
            &setting,
            "training does not begin from another adapter: merge it with `tune export --as merged-hf` first",
        );
    }
}

fn targets(draft: &mut Draft) {
    let all = draft.source.take("lora_target_linear").filter(|setting| setting.switch() == Some(true));
    let named = draft.source.take("lora_target_modules");
    let layers = draft.source.take("peft_layers_to_transform");
    if let Some(setting) = &all {
        draft.carry(setting, "adapter.targets", "all-linear".into());
        if let Some(named) = &named {
            draft.note(Fate::Changed, named, "`lora_target_linear` names all linear layers already");
        }
    } else if let Some(setting) = &named {
        modules(draft, setting);
    }
    if let Some(setting) = layers {
        let Node::List(items) = &setting.node else {
            return draft.note(Fate::Left, &setting, "a list of layers was expected: all are adapted");
        };
        let numbers: Vec<String> = items
            .iter()
            .filter_map(|n| if let Node::Whole(n) = n { Some(n.to_string()) } else { None })
            .collect();
        let targets = of_layers(&numbers, draft.recipe.get("adapter.targets"));
        draft.carry(&setting, "adapter.targets", Value::List(vec![targets]));
    }
}

/// Module names, or what stands for all.
pub fn modules(draft: &mut Draft, setting: &Setting) {
    match setting.texts().as_deref() {
        Some([all]) if ["all", "all-linear"].contains(&all.as_str()) => {
            draft.carry(setting, "adapter.targets", "all-linear".into());
        }
        Some(names) => {
            let linear: Vec<String> = names
                .iter()
                .filter(|name| !["embed_tokens", "lm_head"].contains(&name.as_str()))
                .cloned()
                .collect();
            if linear.len() == names.len() {
                draft.carry(setting, "adapter.targets", Value::List(linear));
            } else {
                let meaning = "embedding and head stay as they are";
                draft.change(setting, "adapter.targets", Value::List(linear), meaning);
            }
        }
        None => {
            draft.note(Fate::Left, setting, "names of layers were expected: all linear layers are adapted")
        }
    }
}

/// A pattern for some layers' modules: of those named before, or of all linear ones.
pub fn of_layers(layers: &[String], targets: Option<&Value>) -> String {
    let modules = match targets {
        Some(Value::List(names)) => format!("({})", names.join("|")),
        _ => ".*".to_owned(),
    };
    let between = if modules == ".*" { "" } else { r"(.*\.)?" };
    format!(r"layers\.({})\.{between}{modules}", layers.join("|"))
}

/// Rows of a step.
fn batch(draft: &mut Draft) -> u64 {
    let micro = draft.whole("micro_batch_size", "train.batch_size");
    let accumulation = draft.whole("gradient_accumulation_steps", "train.gradient_accumulation_steps");
    if let Some(setting) = draft.source.take("batch_size") {
        match (setting.whole(), micro, accumulation) {
            (Some(total), Some(micro @ 1..), None) => {
                let steps = Value::Whole((total / micro).max(1));
                draft.carry(&setting, "train.gradient_accumulation_steps", steps);
                return total;
            }
            (Some(total), None, Some(steps @ 1..)) => {
                draft.carry(&setting, "train.batch_size", Value::Whole((total / steps).max(1)));
                return total;
            }
            _ => draft.note(Fate::Left, &setting, "micro batch and accumulation say it"),
        }
    }
    draft.default("micro_batch_size", "train.batch_size", Value::Whole(1));
    micro.unwrap_or(1) * accumulation.unwrap_or(1)
}

fn lengths(draft: &mut Draft) {
    if draft.whole("sequence_len", "data.max_seq_len").is_none() {
        draft.default("sequence_len", "data.max_seq_len", Value::Whole(512));
    }
    match draft.source.take("excess_length_strategy") {
        Some(setting) => match setting.text().as_deref() {
            Some("truncate") => draft.carry(&setting, "data.on_too_long", "truncate".into()),
            Some("raise") => draft.carry(&setting, "data.on_too_long", "error".into()),
            _ => draft.carry(&setting, "data.on_too_long", "drop".into()),
        },
        None => draft.default("excess_length_strategy", "data.on_too_long", "drop".into()),
    }
    super::packing(draft, "sample_packing");
}

fn mask(draft: &mut Draft) {
    match draft.source.take("train_on_inputs") {
        Some(setting) if setting.switch() == Some(true) => {
            draft.carry(&setting, "data.train_on", "all".into())
        }
        Some(setting) => draft.carry(&setting, "data.train_on", "assistant".into()),
        None => draft.default("train_on_inputs", "data.train_on", "assistant".into()),
    }
    super::method(draft, "rl", "rl_beta", &[("dpo", "dpo"), ("orpo", "orpo")]);
}

fn train(draft: &mut Draft) {
    draft.number("learning_rate", "train.learning_rate");
    steps::scheduler(draft, "lr_scheduler", "lr_scheduler_kwargs", "cosine");
    if let Some(setting) = draft.source.take("cosine_min_lr_ratio") {
        steps::share_of_rate(draft, &setting);
    }
    steps::warmup(draft, "warmup_steps", "warmup_ratio", Some(0.03));
    steps::optimiser(draft, "optimizer");
    steps::tensorboard(draft, "use_tensorboard");
    steps::tensorboard(draft, "report_to");
    steps::of_hugging_face(draft, "early_stopping_patience");
    for key in ["loss_watchdog_threshold", "loss_watchdog_patience"] {
        if let Some(setting) = draft.source.take(key) {
            let meaning =
                "a step that stands out is skipped by `train.max_spike`, which is a factor of the usual loss";
            draft.note(Fate::Left, &setting, meaning);
        }
    }
    if let Some(setting) = draft.source.take("resume_from_checkpoint") {
        draft.note(Fate::Left, &setting, "go on with `tune train RECIPE --resume`");
    }
    if let Some(setting) = draft.source.take("neftune_noise_alpha") {
        draft.note(Fate::Left, &setting, "no noise is added to embeddings");
    }
}

fn templates(draft: &mut Draft) {
    for key in ["chat_template", "chat_template_jinja"] {
        if let Some(setting) = draft.source.take(key) {
            match setting.text() {
                Some(name) if name.starts_with("tokenizer_default") => {}
                _ => draft.note(
                    Fate::Left,
                    &setting,
                    "the base's own chat template is used, in training and in the export",
                ),
            }
        }
    }
    for key in ["special_tokens", "tokens", "added_tokens_overrides", "eot_tokens"] {
        let below: Vec<Setting> = draft
            .source
            .left()
            .filter(|setting| setting.key == key || setting.key.starts_with(&format!("{key}.")))
            .filter(|setting| setting.node != Node::Null)
            .cloned()
            .collect();
        for setting in below {
            draft.source.take(&setting.key);
            let meaning = match setting.key.ends_with("pad_token") {
                true => "nothing is padded",
                false => "the base's tokenizer stays as it is",
            };
            draft.note(
                if meaning == "nothing is padded" { Fate::Idle } else { Fate::Left },
                &setting,
                meaning,
            );
        }
    }
}
