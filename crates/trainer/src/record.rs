//! `run.json`: what a run was started with, and its figures; and what may not change when it is resumed.

use std::path::Path;

use model::device::Precision;
use model::step::LayerInputs;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Change, Error, Result};
use crate::event::{DataSummary, Outcome, PlanTable, Sample};
use crate::options::{Options, Source};
use crate::run_dir::RunDir;

/// Version of the layout of `run.json` and `state.json`.
pub const LAYOUT_VERSION: u32 = 1;

/// Keys that may differ when a run is resumed: places, whose contents are hashed, and what leaves the result alone.
const FREE_KEYS: [&str; 17] = [
    "run_dir",
    "model.base",
    "model.hub.asked",
    "model.hub.repository",
    "model.hub.commit",
    "data.train",
    "data.validation",
    "data.test",
    "data.chat_template",
    "train.checkpoint_every",
    "train.keep",
    "train.tensorboard",
    "eval.samples",
    "eval.samples_each",
    "budget.memory_bytes",
    "budget.reserve_bytes",
    "budget.offload",
];

/// BLAKE3 of everything that a run is made from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inputs {
    /// The options that decide the result.
    pub recipe: String,
    /// The base's weights.
    pub base: String,
    /// The base's configuration.
    pub base_config: String,
    /// The training files.
    pub dataset: String,
    /// The validation file; empty when rows are split off.
    pub validation: String,
    /// The test file; empty when there is none.
    pub test: String,
    /// The tokenizer's files.
    pub tokenizer: String,
    /// The chat template; empty when the base has none.
    pub template: String,
}

/// What a resumed run takes over from the first plan instead of choosing anew.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chosen {
    /// Largest micro-batch; sums depend on it in their last bits.
    pub micro_batch_tokens: usize,
    /// How the input of each layer is kept, which decides more than last bits.
    #[serde(default)]
    pub layer_inputs: LayerInputs,
    /// Of products with the base's weights.
    #[serde(default)]
    pub precision: Precision,
    /// Memory of data, tokenizer and program, as measured at the start.
    pub host_bytes: u64,
}

/// The body of `run.json`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct RunRecord {
    /// [`LAYOUT_VERSION`].
    pub version: u32,
    /// What the run was asked to do.
    pub options: Options,
    /// What it was made from.
    pub inputs: Inputs,
    /// What the plan chose or measured.
    pub chosen: Chosen,
    /// How it went so far.
    pub outcome: Outcome,
    /// When it began, in seconds since 1970.
    #[serde(default)]
    pub started_at: Option<u64>,
    /// Version of the program that began it.
    #[serde(default)]
    pub program: Option<String>,
    /// What became of the rows.
    #[serde(default)]
    pub data: Option<DataSummary>,
    /// The plan.
    #[serde(default)]
    pub plan: Option<PlanTable>,
    /// Answers of the base, which is asked once, before the first step.
    #[serde(default)]
    pub base_samples: Vec<Sample>,
}

impl RunRecord {
    /// Reads a run's record, `None` when the run never began.
    ///
    /// # Errors
    /// [`Error::Io`] when it is there and cannot be read.
    pub fn read(run_dir: &RunDir) -> Result<Option<Self>> {
        read_json(&run_dir.run_json())
    }

    /// Writes the record, whole or not at all.
    ///
    /// # Errors
    /// What writing meets.
    pub fn write(&self, run_dir: &RunDir) -> Result<()> {
        write_json(&run_dir.run_json(), self)
    }

    /// What the base is called: by its name on the hub, or by its path.
    pub fn base_name(&self) -> String {
        let model = &self.options.model;
        model.hub.as_ref().map_or_else(|| model.base.display().to_string(), |hub| hub.repository.clone())
    }

    /// Refuses to resume with anything that would change the result.
    ///
    /// # Errors
    /// [`Error::RunChanged`] with every difference.
    pub fn check_unchanged(&self, options: &Options, inputs: &Inputs) -> Result<()> {
        let mut changes = option_changes(&self.options, options);
        if changes.is_empty() {
            changes = input_changes(&self.inputs, inputs);
        }
        if changes.is_empty() { Ok(()) } else { Err(Error::RunChanged { changes }) }
    }
}

/// Differences between options, key by key.
pub fn option_changes(was: &Options, is: &Options) -> Vec<Change> {
    let (mut before, mut now) = (Vec::new(), Vec::new());
    flatten_options(was, &mut before);
    flatten_options(is, &mut now);
    differences(before, now)
}

/// The options under their keys, and under one of its own how files are read that are not read as they come.
fn flatten_options(options: &Options, leaves: &mut Vec<(String, String)>) {
    flatten("", &to_json(options), leaves);
    let reading = |source: &Source| Source { path: Default::default(), ..source.clone() };
    let sources = options.data.train.iter().chain(&options.data.validation).chain(&options.data.test);
    let sources: Vec<Source> = sources.map(reading).collect();
    if sources.iter().any(|source| *source != Source::default()) {
        leaves.push(("data.train (weight, format, fields)".into(), to_json(&sources).to_string()));
    }
}

fn input_changes(was: &Inputs, is: &Inputs) -> Vec<Change> {
    let (mut before, mut now) = (Vec::new(), Vec::new());
    flatten("", &to_json(was), &mut before);
    flatten("", &to_json(is), &mut now);
    // The recipe's hash says nothing that the keys have not said already.
    let contents = |(key, value): (String, String)| (format!("contents of {key}"), short(value));
    let without_recipe = |all: Vec<(String, String)>| all.into_iter().filter(|(key, _)| key != "recipe");
    differences(without_recipe(before).map(contents).collect(), without_recipe(now).map(contents).collect())
}

/// Hash of the options that decide the result.
pub fn recipe_blake3(options: &Options) -> String {
    let mut keys = Vec::new();
    flatten_options(options, &mut keys);
    keys.retain(|(key, _)| !FREE_KEYS.contains(&key.as_str()));
    let lines: String = keys.iter().map(|(key, value)| format!("{key}={value}\n")).collect();
    formats::hash::blake3_bytes(lines.as_bytes())
}

fn differences(was: Vec<(String, String)>, is: Vec<(String, String)>) -> Vec<Change> {
    let value = |all: &[(String, String)], key: &str| {
        all.iter().find(|(name, _)| name == key).map_or("absent".into(), |(_, value)| value.clone())
    };
    let mut keys: Vec<_> = was.iter().chain(&is).map(|(key, _)| key.clone()).collect();
    keys.sort();
    keys.dedup();
    keys.retain(|key| !FREE_KEYS.contains(&key.as_str()));
    let changes = keys.into_iter().map(|key| Change { was: value(&was, &key), is: value(&is, &key), key });
    changes.filter(|change| change.was != change.is).collect()
}

/// Every option under the key that a recipe has for it, in order of the keys' tables.
pub fn recipe_options(options: &Options) -> Vec<(String, String)> {
    let mut leaves = Vec::new();
    flatten("", &to_json(options), &mut leaves);
    leaves.into_iter().map(|(key, value)| (recipe_key(&key).to_owned(), value)).collect()
}

/// Every hash of what a run is made from, by name.
pub fn input_hashes(inputs: &Inputs) -> Vec<(String, String)> {
    let mut leaves = Vec::new();
    flatten("", &to_json(inputs), &mut leaves);
    leaves.into_iter().map(|(key, value)| (key, value.trim_matches('"').to_owned())).collect()
}

/// The recipe's key for an option that goes by another name inside.
fn recipe_key(key: &str) -> &str {
    match key {
        "data.test" => "eval.test",
        "train.length.epochs" => "train.epochs",
        "train.length.max_steps" => "train.max_steps",
        "train.warmup.ratio" | "train.warmup.steps" => "train.warmup",
        "train.clip" => "train.max_grad_norm",
        "train.keep" => "train.keep_checkpoints",
        "budget.memory_bytes" => "budget.memory",
        "budget.reserve_bytes" => "budget.reserve",
        "eval.exact_match_rows" => "eval.rows",
        "eval.samples_each" => "eval.samples",
        "eval.samples" => "eval.samples before and after",
        other => other,
    }
}

/// Every leaf of a JSON value under its dotted key; a list is a leaf.
fn flatten(prefix: &str, value: &Value, leaves: &mut Vec<(String, String)>) {
    match value {
        Value::Object(fields) => {
            for (name, field) in fields {
                let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                flatten(&key, field, leaves);
            }
        }
        leaf => leaves.push((prefix.into(), leaf.to_string())),
    }
}

/// By way of text, in which an f32 has as few digits as it needs: 0.0002 rather than 0.00019999999494757503.
fn to_json(value: &impl Serialize) -> Value {
    let text = serde_json::to_string(value)
        .expect("options and hashes are strings, numbers and paths from UTF-8 text");
    serde_json::from_str(&text).expect("the serialiser writes valid JSON")
}

fn short(hash: String) -> String {
    const SHOWN: usize = 13;
    hash.chars().filter(|&c| c != '"').take(SHOWN).collect()
}

/// Reads a JSON file, `None` when it is not there.
pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    let failed = |source| Error::Io { path: path.into(), source };
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    serde_json::from_slice(&bytes).map(Some).map_err(|error| failed(error.into()))
}

/// Writes a JSON file, whole or not at all.
pub fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let bytes = serde_json::to_vec_pretty(value)
        .map_err(|error| Error::Io { path: path.into(), source: error.into() })?;
    Ok(formats::atomic::write_bytes(path, &bytes)?)
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::options::{Length, Warmup};

    #[test]
    fn every_changed_key_is_named_and_free_ones_are_not() {
        let was = Options::default();
        let mut is = was.clone();
        is.run_dir = "elsewhere".into();
        is.train.keep = 9;
        assert_eq!(option_changes(&was, &is), []);
        assert_eq!(recipe_blake3(&was), recipe_blake3(&is));

        is.train.learning_rate = 1e-3;
        is.train.length = Length::MaxSteps(7);
        is.train.warmup = Warmup::Steps(3);
        is.adapter.targets = vec!["q_proj".into()];
        let text: Vec<_> = option_changes(&was, &is).iter().map(Change::to_string).collect();
        expect![[r#"
            adapter.targets: was ["all-linear"], is ["q_proj"]
            train.learning_rate: was 0.0002, is 0.001
            train.length.epochs: was 1, is absent
            train.length.max_steps: was absent, is 7
            train.warmup.ratio: was 0.03, is absent
            train.warmup.steps: was absent, is 3"#]]
        .assert_eq(&text.join("\n"));
        assert_ne!(recipe_blake3(&was), recipe_blake3(&is));
    }

    #[test]
    fn changed_contents_are_named() {
        let record = RunRecord {
            version: LAYOUT_VERSION,
            options: Options::default(),
            inputs: Inputs { base: "a".repeat(64), ..Inputs::default() },
            ..RunRecord::default()
        };
        let inputs = Inputs { base: "b".repeat(64), recipe: "other".into(), ..Inputs::default() };
        let error = record.check_unchanged(&Options::default(), &inputs).unwrap_err();
        expect![
            "the run was started with other settings: contents of base: was aaaaaaaaaaaaa, is bbbbbbbbbbbbb"
        ]
        .assert_eq(&error.to_string());
    }
}
