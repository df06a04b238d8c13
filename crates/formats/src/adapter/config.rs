//! `adapter_config.json`: what kind of adapter the tensors beside it are.

use std::path::Path;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::{Map, Value};

use super::ModulePattern;
use crate::{Error, Result};

/// `adapter_config.json`. Fields of PEFT that are not listed are kept in `extra`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdapterConfig {
    /// `LORA`.
    pub peft_type: String,
    /// `CAUSAL_LM`.
    #[serde(default)]
    pub task_type: Option<String>,
    /// Where the base was.
    #[serde(default)]
    pub base_model_name_or_path: Option<String>,
    /// Rank.
    pub r: usize,
    /// Numerator of the scale.
    pub lora_alpha: f64,
    /// Dropout of the adapter's input in training.
    #[serde(default)]
    pub lora_dropout: f64,
    /// Last names of the adapted linears, such as `q_proj`; one pattern in the file is a list of one.
    #[serde(deserialize_with = "one_or_many")]
    pub target_modules: Vec<String>,
    /// Scale is alpha / sqrt(r) instead of alpha / r.
    #[serde(default)]
    pub use_rslora: bool,
    /// Each row of the adapted weights has a trained length.
    #[serde(default)]
    pub use_dora: bool,
    /// Ranks of modules that differ from `r`: the first pattern that matches, see [`ModulePattern`].
    #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "Map::is_empty")]
    pub rank_pattern: Map<String, Value>,
    /// The same for `lora_alpha`.
    #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "Map::is_empty")]
    pub alpha_pattern: Map<String, Value>,
    /// `none`: biases are not trained.
    #[serde(default = "no_bias")]
    pub bias: String,
    /// Every other field.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl AdapterConfig {
    /// The configuration of a plain LoRA adapter, as PEFT would write it.
    #[must_use]
    pub fn lora(r: usize, lora_alpha: f64, target_modules: Vec<String>) -> Self {
        let extra = [("inference_mode", Value::Bool(true)), ("fan_in_fan_out", Value::Bool(false))];
        Self {
            peft_type: "LORA".to_owned(),
            task_type: Some("CAUSAL_LM".to_owned()),
            base_model_name_or_path: None,
            r,
            lora_alpha,
            lora_dropout: 0.0,
            target_modules,
            use_rslora: false,
            use_dora: false,
            rank_pattern: Map::new(),
            alpha_pattern: Map::new(),
            bias: no_bias(),
            extra: extra.into_iter().map(|(key, value)| (key.to_owned(), value)).collect(),
        }
    }

    /// Rank and scale of every module: what B·A is multiplied with is alpha / r, or alpha / √r for rsLoRA.
    ///
    /// # Errors
    /// [`Error::Key`] for a pattern or a value that is none; `path` is the configuration's.
    pub fn shapes(&self, path: &Path) -> Result<Shapes> {
        Ok(Shapes {
            r: self.r,
            alpha: self.lora_alpha,
            use_rslora: self.use_rslora,
            ranks: read_patterns(path, "rank_pattern", &self.rank_pattern, "a rank, 1 or more", |value| {
                value.as_u64().filter(|&rank| rank > 0).and_then(|rank| usize::try_from(rank).ok())
            })?,
            alphas: read_patterns(path, "alpha_pattern", &self.alpha_pattern, "a number", Value::as_f64)?,
        })
    }
}

/// Rank and scale of each module of an adapter.
#[derive(Debug)]
pub struct Shapes {
    r: usize,
    alpha: f64,
    use_rslora: bool,
    ranks: Vec<(ModulePattern, usize)>,
    alphas: Vec<(ModulePattern, f64)>,
}

impl Shapes {
    /// The rank of a module.
    #[must_use]
    pub fn rank(&self, module: &str) -> usize {
        first_match(&self.ranks, module).unwrap_or(self.r)
    }

    /// What a module's B·A is multiplied with.
    #[must_use]
    pub fn scale(&self, module: &str) -> f64 {
        let r = self.rank(module) as f64;
        first_match(&self.alphas, module).unwrap_or(self.alpha) / if self.use_rslora { r.sqrt() } else { r }
    }
}

fn first_match<T: Copy>(patterns: &[(ModulePattern, T)], module: &str) -> Option<T> {
    patterns.iter().find(|(pattern, _)| pattern.matches(module)).map(|(_, value)| *value)
}

fn read_patterns<T>(
    path: &Path,
    key: &str,
    from: &Map<String, Value>,
    expected: &str,
    read: impl Fn(&Value) -> Option<T>,
) -> Result<Vec<(ModulePattern, T)>> {
    let refused = |pattern: &str, expected: &str, actual: String| {
        let (key, expected) = (format!("{key}.{pattern}"), expected.to_owned());
        Error::Key { path: path.to_owned(), key, expected, actual }
    };
    let entry = |(pattern, value): (&String, &Value)| {
        let compiled =
            ModulePattern::new(pattern).map_err(|reason| refused(pattern, "a regular expression", reason))?;
        let value = read(value).ok_or_else(|| refused(pattern, expected, value.to_string()))?;
        Ok((compiled, value))
    };
    from.iter().map(entry).collect()
}

fn no_bias() -> String {
    "none".to_owned()
}

fn null_as_empty<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> std::result::Result<Map<String, Value>, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

fn one_or_many<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Modules {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Modules::deserialize(deserializer)? {
        Modules::One(module) => vec![module],
        Modules::Many(modules) => modules,
    })
}

/// Refuses what this program would apply differently from how it was trained.
pub(super) fn check_config(path: &Path, config: &AdapterConfig) -> Result<()> {
    let refused = |key: &str, expected: &str, actual: String| {
        let (key, expected) = (key.to_owned(), expected.to_owned());
        Err(Error::Key { path: path.to_owned(), key, expected, actual })
    };
    if config.peft_type != "LORA" {
        return refused("peft_type", "`LORA`", format!("`{}`", config.peft_type));
    }
    if config.r == 0 {
        return refused("r", "1 or more", "0".to_owned());
    }
    if !config.lora_alpha.is_finite() {
        return refused("lora_alpha", "a finite number", config.lora_alpha.to_string());
    }
    if config.bias != "none" {
        return refused("bias", "`none`", format!("`{}`", config.bias));
    }
    const UNSUPPORTED: [&str; 10] = [
        "use_bdlora",
        "use_qalora",
        "alora_invocation_tokens",
        "arrow_config",
        "kasa_config",
        "lora_bias",
        "modules_to_save",
        "fan_in_fan_out",
        "layer_replication",
        "trainable_token_indices",
    ];
    for key in UNSUPPORTED {
        match config.extra.get(key) {
            None | Some(Value::Null | Value::Bool(false)) => {}
            Some(Value::Array(list)) if list.is_empty() => {}
            Some(Value::Object(map)) if map.is_empty() => {}
            Some(other) => return refused(key, "absent or empty (it is not supported)", other.to_string()),
        }
    }
    // A linear layer's weight is a parameter as good as its module; stacked experts are not.
    let is_weight =
        |parameter: &Value| parameter.as_str().is_some_and(|parameter| parameter.ends_with(".weight"));
    match config.extra.get("target_parameters") {
        None | Some(Value::Null) => Ok(()),
        Some(Value::Array(list)) if list.iter().all(is_weight) => Ok(()),
        Some(other) => {
            let expected = "absent, or weights of linear layers alone (stacked experts are not supported)";
            refused("target_parameters", expected, other.to_string())
        }
    }
}

/// Refuses an adapter whose start has changed the base's weights too: on the published base it is another one.
pub(super) fn check_start(path: &Path, config: &AdapterConfig) -> Result<()> {
    const CHANGES_BASE: [&str; 5] = ["pissa", "olora", "corda", "loftq", "lora_ga"];
    match config.extra.get("init_lora_weights").and_then(Value::as_str) {
        Some(init) if CHANGES_BASE.iter().any(|name| init.starts_with(name)) => {
            let (key, expected) =
                ("init_lora_weights".to_owned(), "one that leaves the base as it is".to_owned());
            Err(Error::Key { path: path.to_owned(), key, expected, actual: format!("`{init}`") })
        }
        _ => Ok(()),
    }
}
