//! `tune inspect`: what is in a GGUF, a checkpoint, an adapter, a run or a receipt, as a readable table.

use crate::bytes;
use crate::cli::Inspect;
use crate::failure::Failure;
use crate::run_record;
use crate::show;
use crate::terminal::Terminal;
use formats::TensorSource;
use formats::adapter::{AdapterFiles, AdapterTensor};
use formats::checkpoint::Checkpoint;
use formats::gguf::{Array, Reader, Value};
use formats::safetensors::{SafetensorsFile, Tensor};
use std::collections::BTreeMap;
use std::path::Path;

/// Longer texts, such as templates, are cut in the table.
const LONGEST_TEXT: usize = 100;

/// Shows the file or folder, by what it is.
pub fn run(arguments: &Inspect, terminal: &mut Terminal) -> Result<(), Failure> {
    let path = &arguments.path;
    let lines = describe(path)?;
    if terminal.is_json() {
        terminal.json(&serde_json::json!({"path": path, "lines": lines}));
        return Ok(());
    }
    for line in lines {
        terminal.result(&crate::terminal::harmless(&line));
    }
    Ok(())
}

fn describe(path: &Path) -> Result<Vec<String>, Failure> {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    if path.is_file() {
        return match extension {
            "gguf" => gguf(path),
            "safetensors" => Ok(tensors(SafetensorsFile::open(path)?.tensors())),
            "json" => receipt(path),
            _ => Err(unknown(path)),
        };
    }
    let has = |name: &str| path.join(name).is_file();
    if has("adapter_config.json") {
        Ok(adapter(path, &formats::adapter::read_adapter(path)?))
    } else if has("config.json") {
        model(path)
    } else if has("recipe.toml") {
        training_run(path)
    } else if has("receipt.json") {
        receipt(&path.join("receipt.json"))
    } else if path.exists() {
        Err(unknown(path))
    } else {
        Err(Failure::new(format!("{} does not exist", path.display())))
    }
}

fn unknown(path: &Path) -> Failure {
    Failure::new(format!("{} is nothing that is known here", path.display()))
        .hint("a .gguf, a .safetensors, a model's folder, an adapter's folder, a run or a receipt.json")
}

fn gguf(path: &Path) -> Result<Vec<String>, Failure> {
    let file = Reader::open(path)?;
    let mut lines = vec![format!("GGUF     {}", path.display()), String::new()];
    for (key, value) in file.metadata().entries() {
        lines.push(format!("{key:<44} {}", shown(value)));
    }
    lines.push(String::new());
    let mut types: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
    let mut weights = 0u64;
    let mut total = 0u64;
    for tensor in file.tensors() {
        let entry = types.entry(tensor.ty.name()).or_default();
        *entry = (entry.0 + 1, entry.1 + tensor.bytes);
        weights += tensor.shape.iter().product::<u64>();
        total += tensor.bytes;
        lines.push(format!(
            "{:<44} {:<18} {:<6} {:>12}",
            tensor.name,
            dimensions(&tensor.shape),
            tensor.ty.name(),
            bytes::show(tensor.bytes)
        ));
    }
    lines.push(String::new());
    for (name, (count, size)) in types {
        lines.push(format!("{name:<8} {count:>4} tensors {:>12}", bytes::show(size)));
    }
    let bits = 8.0 * total as f64 / weights.max(1) as f64;
    lines.push(format!(
        "{} weights · {} · {bits:.2} bits a weight",
        show::count(weights),
        bytes::show(total)
    ));
    Ok(lines)
}

fn dimensions(shape: &[u64]) -> String {
    shape.iter().map(u64::to_string).collect::<Vec<_>>().join(" × ")
}

fn shown(value: &Value) -> String {
    match value {
        Value::String(text) => cut(text),
        Value::Array(array) => array_shown(array),
        Value::U8(v) => v.to_string(),
        Value::I8(v) => v.to_string(),
        Value::U16(v) => v.to_string(),
        Value::I16(v) => v.to_string(),
        Value::U32(v) => v.to_string(),
        Value::I32(v) => v.to_string(),
        Value::U64(v) => v.to_string(),
        Value::I64(v) => v.to_string(),
        Value::F32(v) => v.to_string(),
        Value::F64(v) => v.to_string(),
        Value::Bool(v) => v.to_string(),
    }
}

fn array_shown(array: &Array) -> String {
    match array {
        Array::String(texts) => {
            let first: Vec<String> = texts.iter().take(4).map(|text| format!("{:?}", cut(text))).collect();
            format!("{} texts: {} …", show::count(texts.len() as u64), first.join(" "))
        }
        other => format!("{} numbers", show::count(other.len() as u64)),
    }
}

fn cut(text: &str) -> String {
    let flat = text.replace('\n', "⏎");
    if flat.chars().count() <= LONGEST_TEXT {
        return flat;
    }
    let head: String = flat.chars().take(LONGEST_TEXT).collect();
    format!("{head}… ({} characters)", show::count(text.chars().count() as u64))
}

fn model(path: &Path) -> Result<Vec<String>, Failure> {
    let config = formats::config::HfConfig::from_dir(path)?;
    let mut lines = vec![
        format!("model    {} · {}", path.display(), config.architectures.join(", ")),
        format!(
            "         {} layers · width {} · {}vocabulary {}",
            config.num_hidden_layers,
            config.hidden_size,
            heads(&config),
            show::count(config.vocab_size as u64)
        ),
        String::new(),
    ];
    let checkpoint = Checkpoint::open(path)?;
    let names = checkpoint.tensor_names();
    lines.extend(tensors(names.iter().filter_map(|name| checkpoint.tensor(name))));
    Ok(lines)
}

fn heads(config: &formats::config::HfConfig) -> String {
    match (config.num_attention_heads, config.num_key_value_heads) {
        (0, _) => format!(
            "{} state-space heads of {}, state {} · ",
            size(config, "num_heads"),
            config.head_dim,
            size(config, "state_size")
        ),
        (queries, _) if config.text("kv_lora_rank").is_some() => format!(
            "{queries} heads, keys and values from a latent of {} · {} experts, {} a token · ",
            size(config, "kv_lora_rank"),
            size(config, "n_routed_experts"),
            size(config, "num_experts_per_tok"),
        ),
        (queries, keys) => format!("{queries} heads, {keys} for keys · "),
    }
}

fn size(config: &formats::config::HfConfig, key: &str) -> String {
    config.text(key).and_then(serde_json::Value::as_u64).map_or_else(|| "?".to_owned(), |n| n.to_string())
}

fn tensors<'a>(tensors: impl Iterator<Item = Tensor<'a>>) -> Vec<String> {
    let mut weights = 0u64;
    let mut lines = Vec::new();
    for tensor in tensors {
        let shape: Vec<u64> = tensor.shape.iter().map(|&n| n as u64).collect();
        weights += shape.iter().product::<u64>();
        lines.push(format!("{:<60} {:<18} {}", tensor.name, dimensions(&shape), tensor.dtype));
    }
    lines.push(String::new());
    lines.push(format!("{} tensors · {} weights", lines.len() - 1, show::count(weights)));
    lines
}

fn adapter(path: &Path, files: &AdapterFiles) -> Vec<String> {
    let config = &files.config;
    let magnitude = |t: &AdapterTensor| t.magnitude.as_ref().map_or(0, Vec::len);
    let parameters: usize = files.tensors.iter().map(|t| t.a.len() + t.b.len() + magnitude(t)).sum();
    let other_ranks =
        if files.tensors.iter().any(|t| t.r != config.r) { " (others in some layers)" } else { "" };
    let mut lines = vec![
        format!(
            "adapter  {} · {}{}{} · rank {}{other_ranks} · alpha {}",
            path.display(),
            config.peft_type,
            if config.use_rslora { ", rank-stabilised" } else { "" },
            if config.use_dora { " with DoRA" } else { "" },
            config.r,
            config.lora_alpha
        ),
        format!("         {} modules · {} parameters", files.tensors.len(), show::count(parameters as u64)),
        format!("base     {}", config.base_model_name_or_path.as_deref().unwrap_or("not stated")),
    ];
    if let Some(made_from) = &files.tune {
        lines.push(format!("         blake3 {}", made_from.base_blake3));
        lines.push(format!("trained  {} steps", made_from.steps));
    }
    lines.push(String::new());
    lines.extend(
        files.tensors.iter().map(|t| {
            format!("{:<44} A {} × {}   B {} × {}", t.module, t.r, t.in_features, t.out_features, t.r)
        }),
    );
    lines
}

fn training_run(path: &Path) -> Result<Vec<String>, Failure> {
    let outcome = run_record::read(path)?;
    let state = if outcome.is_finished { "finished" } else { "not finished" };
    let mut lines = vec![
        format!("run      {} · {state}", path.display()),
        format!(
            "steps    {} of {} in {}",
            outcome.steps,
            outcome.total_steps,
            show::seconds(outcome.seconds)
        ),
    ];
    if let (Some(before), Some(after)) = (outcome.base_validation_loss, outcome.validation_loss) {
        lines.push(format!("loss     validation {before:.4} → {after:.4}"));
    }
    if let (Some(before), Some(after)) = (outcome.base_exact_match, outcome.adapter_exact_match) {
        let shown = |figure: trainer::ExactMatch| show::share(figure.matched, figure.rows);
        lines.push(format!("match    {} → {}", shown(before), shown(after)));
    }
    Ok(lines)
}

fn receipt(path: &Path) -> Result<Vec<String>, Failure> {
    let text = std::fs::read_to_string(path).map_err(|e| Failure::new(format!("{}: {e}", path.display())))?;
    let receipt: exporter::Receipt = serde_json::from_str(&text)
        .map_err(|e| Failure::new(format!("{} is no receipt: {e}", path.display())))?;
    let mut lines = vec![
        format!("expert   {} · {} · {}", receipt.name, receipt.architecture, receipt.quant),
        format!(
            "file     {} · {} · {:.2} bits a weight",
            receipt.file.display(),
            bytes::show(receipt.file_bytes),
            receipt.bits_per_weight
        ),
        format!("blake3   {}", receipt.blake3),
        format!("sha256   {}", receipt.sha256),
        format!("base     {} · {}", receipt.sources.base.display(), receipt.sources.base_blake3),
    ];
    lines.extend(receipt.sources.adapters.iter().map(|adapter| {
        let weight =
            if adapter.weight == 1.0 { String::new() } else { format!(" · {} of it", adapter.weight) };
        format!("adapter  {} · {}{weight}", adapter.path.display(), adapter.blake3)
    }));
    lines.extend(receipt.types.iter().map(|t| {
        format!("type     {:<6} {:>4} tensors {:>12}", t.type_name, t.n_tensors, bytes::show(t.bytes))
    }));
    if receipt.gate.n_rows > 0 {
        lines.push(format!(
            "match    {} in {}",
            show::share(receipt.gate.n_exact, receipt.gate.n_rows),
            receipt.gate.engine
        ));
    }
    if let Some(adapter) = receipt.reference.adapter {
        lines.push(format!(
            "         {} with the adapter, before the export",
            show::share(adapter.n_exact, adapter.n_rows)
        ));
    }
    Ok(lines)
}
