//! `config.json` and `generation_config.json` of a Hugging Face model directory.
//!
//! Defaults are those of transformers 5. Newer files keep `rope_theta` inside `rope_parameters` and call
//! `torch_dtype` `dtype`; models of several media keep the language model's fields in `text_config`.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::{Error, Result, json as json_file};

/// Files of a model's folder that decide what its tokenizer does; no folder has all of them.
pub const TOKENIZER_FILES: [&str; 7] = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
];

/// The fields of `config.json` that decide how a decoder model computes.
///
/// Fields which the file may leave out have the default of transformers, or are `None` where it differs by family.
#[derive(Debug, Clone, PartialEq)]
pub struct HfConfig {
    /// The file.
    pub path: PathBuf,
    /// `architectures`, such as `["Qwen3ForCausalLM"]`.
    pub architectures: Vec<String>,
    /// `model_type`, such as `qwen3`.
    pub model_type: String,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the MLP; 0 in a model that has none.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Query heads; 0 in a model without attention.
    pub num_attention_heads: usize,
    /// Key and value heads; as many as query heads when the file is silent.
    pub num_key_value_heads: usize,
    /// Width of a head; hidden size / heads when the file is silent.
    pub head_dim: usize,
    /// Epsilon of the RMS norms; 1e-6 when the file is silent.
    pub rms_norm_eps: f64,
    /// Base of the rotary embedding; 10000 when the file is silent.
    pub rope_theta: f64,
    /// `rope_scaling` (or `rope_parameters` of newer files) as it stands; `None` when absent, null, or plain.
    pub rope_scaling: Option<Value>,
    /// Whether the output matrix is the embedding; `None` when the file is silent.
    pub tie_word_embeddings: Option<bool>,
    /// Rows of the embedding.
    pub vocab_size: usize,
    /// Longest context the model was made for.
    pub max_position_embeddings: Option<usize>,
    /// Biases of q, k, v, o; `None` when the file is silent.
    pub attention_bias: Option<bool>,
    /// Biases of the MLP; `None` when the file is silent.
    pub mlp_bias: Option<bool>,
    /// Beginning of text.
    pub bos_token_id: Option<u32>,
    /// Ends of text; a single id in the file is a list of one.
    pub eos_token_ids: Vec<u32>,
    /// Window of the attention, when the file has one.
    pub sliding_window: Option<usize>,
    /// Whether the window is used; `None` when the file is silent.
    pub use_sliding_window: Option<bool>,
    /// Activation of the MLP, such as `silu`.
    pub hidden_act: Option<String>,
    /// `torch_dtype` (newer files: `dtype`), such as `bfloat16`.
    pub torch_dtype: Option<String>,
    /// Everything the file holds.
    pub raw: Value,
}

impl HfConfig {
    /// Reads `config.json` of a model directory.
    ///
    /// # Errors
    /// [`Error::MissingFile`], [`Error::Json`], [`Error::Key`], [`Error::MissingKey`].
    pub fn from_dir(dir: &Path) -> Result<Self> {
        let path = dir.join("config.json");
        if !path.is_file() {
            return Err(Error::MissingFile { path, expected: "the configuration of a Hugging Face model" });
        }
        let raw = json_file::read_python(&path)?;
        Self::from_value(path, raw)
    }

    /// A key of the language model, wherever it stands; null counts as absent.
    pub fn text(&self, key: &str) -> Option<&Value> {
        Fields { path: &self.path, file: &self.raw, defaults: &Value::Null }.get(key)
    }

    fn from_value(path: PathBuf, raw: Value) -> Result<Self> {
        let defaults = defaults(&raw);
        let fields = Fields { path: &path, file: &raw, defaults: &defaults };
        let model_type = fields.required("model_type", "a name", string)?;
        let hidden_size = fields.size("hidden_size")?;
        let has_attention = !WITHOUT_ATTENTION.contains(&model_type.as_str());
        let size_of_attention = |key: &str| if has_attention { fields.size(key) } else { Ok(0) };
        let num_attention_heads = size_of_attention("num_attention_heads")?;
        let (rope_theta, rope_scaling) = rope(&fields)?;
        Ok(Self {
            architectures: fields.optional("architectures", "a list of names", strings)?.unwrap_or_default(),
            model_type,
            hidden_size,
            intermediate_size: size_of_attention("intermediate_size")?,
            num_hidden_layers: fields.size("num_hidden_layers")?,
            num_attention_heads,
            num_key_value_heads: fields.optional_size("num_key_value_heads")?.unwrap_or(num_attention_heads),
            head_dim: head_dim(&fields, hidden_size, num_attention_heads)?,
            rms_norm_eps: fields.optional("rms_norm_eps", "a positive number", positive)?.unwrap_or(1e-6),
            rope_theta,
            rope_scaling,
            tie_word_embeddings: fields.flag("tie_word_embeddings")?,
            vocab_size: fields.size("vocab_size")?,
            max_position_embeddings: fields.optional_size("max_position_embeddings")?,
            attention_bias: fields.flag("attention_bias")?,
            mlp_bias: fields.flag("mlp_bias")?,
            bos_token_id: fields.optional("bos_token_id", "a token id", first_id)?,
            eos_token_ids: fields.optional("eos_token_id", "one or more token ids", ids)?.unwrap_or_default(),
            sliding_window: fields.optional_size("sliding_window")?,
            use_sliding_window: fields.flag("use_sliding_window")?,
            hidden_act: match fields.optional("hidden_act", "a name", string)? {
                None => fields.optional("hidden_activation", "a name", string)?,
                found => found,
            },
            torch_dtype: match fields.optional("torch_dtype", "a name", string)? {
                None => fields.optional("dtype", "a name", string)?,
                found => found,
            },
            raw: raw.clone(),
            path: path.clone(),
        })
    }
}

/// Types of models whose layers are state-space mixers alone.
const WITHOUT_ATTENTION: [&str; 1] = ["mamba2"];

/// What transformers assumes of a family whose published files leave out keys that others always have.
fn defaults(file: &Value) -> Value {
    let text = file.get("text_config").unwrap_or(file);
    match text.get("model_type").and_then(Value::as_str) {
        Some("gemma3_text") => json!({
            "vocab_size": 262_208,
            "num_attention_heads": 8,
            "num_key_value_heads": 4,
            "head_dim": 256,
            "max_position_embeddings": 131_072,
            "rms_norm_eps": 1e-6,
            "default_theta": 1_000_000.0,
            "sliding_window": 4096,
            "hidden_activation": "gelu_pytorch_tanh",
            "tie_word_embeddings": true,
        }),
        Some("mamba2") => json!({
            "head_dim": 64,
            "vocab_size": 32_768,
            "hidden_size": 4096,
            "num_hidden_layers": 64,
        }),
        _ => Value::Null,
    }
}

fn head_dim(fields: &Fields<'_>, hidden_size: usize, heads: usize) -> Result<usize> {
    if let Some(head_dim) = fields.optional_size("head_dim")? {
        return Ok(head_dim);
    }
    if !hidden_size.is_multiple_of(heads) {
        let expected = format!("a divisor of hidden_size {hidden_size}, since there is no head_dim");
        return Err(fields.wrong("num_attention_heads", &expected, &heads.to_string()));
    }
    Ok(hidden_size / heads)
}

/// Base and scaling of the rotary embedding, from the older or the newer place.
fn rope(fields: &Fields<'_>) -> Result<(f64, Option<Value>)> {
    let object = |value: &Value| value.is_object().then(|| value.clone());
    let newer = fields.optional("rope_parameters", "an object", object)?;
    // A model whose layers rotate in two ways has one object for each; this is that of the layers without a window.
    let newer = newer.map(|newer| newer.get("full_attention").cloned().unwrap_or(newer));
    let scaling = match fields.optional("rope_scaling", "an object", object)? {
        None => newer.clone(),
        found => found,
    };
    let theta = match fields.optional("rope_theta", "a positive number", positive)? {
        Some(theta) => theta,
        None => match newer.as_ref().and_then(|newer| newer.get("rope_theta")) {
            None => fields.defaults.get("default_theta").and_then(positive).unwrap_or(10_000.0),
            Some(theta) => positive(theta).ok_or_else(|| {
                fields.wrong("rope_parameters.rope_theta", "a positive number", &shown(theta))
            })?,
        },
    };
    Ok((theta, scaling.filter(is_scaled)))
}

/// Whether an object asks for more than the plain rotation.
fn is_scaled(scaling: &Value) -> bool {
    let kind = scaling.get("rope_type").or_else(|| scaling.get("type"));
    kind.is_some_and(|kind| kind != "default")
}

/// `generation_config.json`: when to stop and how to sample, as the model's makers advise.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct GenerationConfig {
    /// Beginning of text.
    pub bos_token_id: Option<u32>,
    /// Tokens that end a generation.
    pub eos_token_ids: Vec<u32>,
    /// Padding.
    pub pad_token_id: Option<u32>,
    /// Sampling temperature.
    pub temperature: Option<f32>,
    /// Sampling keeps this many tokens.
    pub top_k: Option<u32>,
    /// Sampling keeps this much probability.
    pub top_p: Option<f32>,
    /// Whether to sample at all.
    pub do_sample: Option<bool>,
}

impl GenerationConfig {
    /// Reads `generation_config.json`; `None` when the directory has none.
    ///
    /// # Errors
    /// [`Error::Json`], [`Error::Key`].
    pub fn from_dir(dir: &Path) -> Result<Option<Self>> {
        let path = dir.join("generation_config.json");
        if !path.is_file() {
            return Ok(None);
        }
        let raw: Value = json_file::read(&path)?;
        let fields = Fields { path: &path, file: &raw, defaults: &Value::Null };
        Ok(Some(Self {
            bos_token_id: fields.optional("bos_token_id", "a token id", first_id)?,
            eos_token_ids: fields.optional("eos_token_id", "one or more token ids", ids)?.unwrap_or_default(),
            pad_token_id: fields.optional("pad_token_id", "a token id", first_id)?,
            temperature: fields.optional("temperature", "a number, 0 or more", not_negative)?,
            top_k: fields.optional("top_k", "a whole number", id)?,
            top_p: fields.optional("top_p", "a number, 0 or more", not_negative)?,
            do_sample: fields.flag("do_sample")?,
        }))
    }
}

/// The object of a file, with errors that name file and key.
struct Fields<'a> {
    path: &'a Path,
    file: &'a Value,
    defaults: &'a Value,
}

impl<'a> Fields<'a> {
    /// The value of a key; null counts as absent, except that a default does not replace it.
    fn get(&self, key: &str) -> Option<&'a Value> {
        let text = self.file.get("text_config").and_then(|text| text.get(key));
        let found = text.filter(|value| !value.is_null()).or_else(|| self.file.get(key));
        found.or_else(|| self.defaults.get(key)).filter(|value| !value.is_null())
    }

    fn optional<T>(
        &self,
        key: &str,
        expected: &str,
        read: impl Fn(&Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        read(value).map(Some).ok_or_else(|| self.wrong(key, expected, &shown(value)))
    }

    fn required<T>(&self, key: &str, expected: &str, read: impl Fn(&Value) -> Option<T>) -> Result<T> {
        self.optional(key, expected, read)?.ok_or_else(|| Error::MissingKey {
            path: self.path.to_owned(),
            key: key.to_owned(),
            expected: expected.to_owned(),
        })
    }

    fn size(&self, key: &str) -> Result<usize> {
        self.required(key, SIZE, size)
    }

    fn optional_size(&self, key: &str) -> Result<Option<usize>> {
        self.optional(key, SIZE, size)
    }

    fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.optional(key, "true or false", Value::as_bool)
    }

    fn wrong(&self, key: &str, expected: &str, actual: &str) -> Error {
        let (key, expected, actual) = (key.to_owned(), expected.to_owned(), actual.to_owned());
        Error::Key { path: self.path.to_owned(), key, expected, actual }
    }
}

const SIZE: &str = "a whole number from 1 to 2³¹ - 1";

fn size(value: &Value) -> Option<usize> {
    let number = i32::try_from(value.as_u64()?).ok()?;
    usize::try_from(number).ok().filter(|&number| number > 0)
}

fn positive(value: &Value) -> Option<f64> {
    value.as_f64().filter(|number| number.is_finite() && *number > 0.0)
}

fn not_negative(value: &Value) -> Option<f32> {
    value.as_f64().map(|number| number as f32).filter(|number| number.is_finite() && *number >= 0.0)
}

fn string(value: &Value) -> Option<String> {
    value.as_str().map(str::to_owned)
}

fn strings(value: &Value) -> Option<Vec<String>> {
    value.as_array()?.iter().map(string).collect()
}

fn id(value: &Value) -> Option<u32> {
    value.as_u64()?.try_into().ok()
}

fn ids(value: &Value) -> Option<Vec<u32>> {
    match value {
        Value::Array(list) => list.iter().map(id).collect(),
        one => Some(vec![id(one)?]),
    }
}

fn first_id(value: &Value) -> Option<u32> {
    ids(value)?.first().copied()
}

/// A value for an error, short.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(60) {
        None => text,
        Some((end, _)) => format!("{}…", &text[..end]),
    }
}
