//! From a Hugging Face `config.json`.

use formats::config::HfConfig;
use serde_json::Value;

use super::{LongRope, ModelConfig, Rope, RopeScaling, Yarn};
use crate::device::Activation;
use crate::family::Family;
use crate::{Error, Result};

/// What transformers assumes of a Llama whose configuration is silent.
const DEFAULT_MAX_POSITIONS: usize = 2048;

/// Context length of pre-training.
const ORIGINAL: &str = "original_max_position_embeddings";

impl ModelConfig {
    /// Reads the hyper-parameters of a checkpoint.
    ///
    /// # Errors
    /// [`Error::UnsupportedArchitecture`], [`Error::UnsupportedFeature`], [`Error::InvalidConfig`]; each names the
    /// file and the key.
    pub fn from_hf(hf: &HfConfig) -> Result<ModelConfig> {
        let origin = hf.path.display().to_string();
        let family = family(hf, &origin)?;
        let mut config = ModelConfig {
            vocab_size: hf.vocab_size,
            hidden: hf.hidden_size,
            intermediate: hf.intermediate_size,
            n_layers: hf.num_hidden_layers,
            n_heads: hf.num_attention_heads,
            n_kv_heads: hf.num_key_value_heads,
            head_dim_is_stated: hf.text("head_dim").is_some_and(|value| value.is_u64()),
            norm_eps: hf.rms_norm_eps as f32,
            rope: rope(hf, &origin)?,
            activation: activation(hf, &origin)?,
            // Transformers' default for most families, were the file silent, is untied.
            tied: hf.tie_word_embeddings.unwrap_or(false),
            max_positions: hf.max_position_embeddings.unwrap_or(DEFAULT_MAX_POSITIONS),
            ..ModelConfig::plain(family, hf.head_dim)
        };
        family.read_hf(hf, &mut config)?;
        config.validated(&origin)
    }
}

fn family(hf: &HfConfig, origin: &str) -> Result<Family> {
    Family::of_checkpoint(hf).ok_or_else(|| Error::UnsupportedArchitecture {
        origin: origin.to_owned(),
        found: hf.architectures.first().unwrap_or(&hf.model_type).clone(),
        supported: Family::ALL
            .iter()
            .flat_map(|family| family.hf_architectures())
            .copied()
            .collect::<Vec<_>>()
            .join(", "),
    })
}

fn activation(hf: &HfConfig, origin: &str) -> Result<Activation> {
    match hf.hidden_act.as_deref() {
        None | Some("silu" | "swish") => Ok(Activation::Silu),
        Some("gelu_pytorch_tanh") => Ok(Activation::GeluTanh),
        Some(other) => Err(Error::UnsupportedFeature {
            origin: origin.to_owned(),
            key: "hidden_act".to_owned(),
            found: other.to_owned(),
            supported: "silu, gelu_pytorch_tanh".to_owned(),
        }),
    }
}

fn rope(hf: &HfConfig, origin: &str) -> Result<Rope> {
    let share =
        hf.text("partial_rotary_factor").or_else(|| hf.rope_scaling.as_ref()?.get("partial_rotary_factor"));
    let share = share.and_then(|value| value.as_f64()).unwrap_or(1.0);
    let dim = (hf.head_dim as f64 * share) as usize;
    Ok(Rope { theta: hf.rope_theta, dim, scaling: scaling(hf, dim, origin)? })
}

fn scaling(hf: &HfConfig, dim: usize, origin: &str) -> Result<RopeScaling> {
    let Some(table) = &hf.rope_scaling else { return Ok(RopeScaling::None) };
    let kind = table.get("rope_type").or_else(|| table.get("type")).and_then(|value| value.as_str());
    let number = |key: &str| {
        table.get(key).and_then(|value| value.as_f64()).filter(|x| x.is_finite() && *x > 0.0).ok_or_else(
            || Error::InvalidConfig {
                origin: origin.to_owned(),
                key: format!("rope_scaling.{key}"),
                found: table.get(key).map_or("missing".to_owned(), |value| value.to_string()),
                expected: "a positive number".to_owned(),
            },
        )
    };
    // Beside the scaling, else in it; a file with neither means the context that it states.
    let max_positions = hf.max_position_embeddings.unwrap_or(DEFAULT_MAX_POSITIONS);
    let original = || -> Result<usize> {
        match (hf.text(ORIGINAL).and_then(Value::as_u64), table.get(ORIGINAL)) {
            (Some(beside), _) => Ok(beside as usize),
            (None, Some(_)) => Ok(number(ORIGINAL)? as usize),
            (None, None) => Ok(max_positions),
        }
    };
    match kind.unwrap_or("missing") {
        "default" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: number("factor")? }),
        "llama3" => Ok(RopeScaling::Llama3 {
            factor: number("factor")?,
            low_freq_factor: number("low_freq_factor")?,
            high_freq_factor: number("high_freq_factor")?,
            original_max_positions: original()?,
        }),
        // Older programs called a Phi-3's longrope so.
        "yarn" if hf.model_type == "phi3" => Ok(RopeScaling::Long(long_rope(hf, table, dim, origin)?)),
        "yarn" => {
            let optional = |key: &str| table.get(key).filter(|value| !value.is_null()).map(|_| number(key));
            let original = original()?;
            let factor = match table.get("factor") {
                Some(Value::Null) => max_positions as f64 / original as f64,
                _ => number("factor")?,
            };
            if let Some(value) = table.get("truncate").filter(|value| value.as_bool() != Some(true)) {
                return Err(Error::UnsupportedFeature {
                    origin: origin.to_owned(),
                    key: "rope_scaling.truncate".to_owned(),
                    found: value.to_string(),
                    supported: "true".to_owned(),
                });
            }
            let (mscale, all_dim) =
                (optional("mscale").transpose()?, optional("mscale_all_dim").transpose()?);
            let magnitude = match (mscale, all_dim) {
                (Some(mscale), Some(all_dim)) => {
                    Yarn::magnitude(factor, mscale) / Yarn::magnitude(factor, all_dim)
                }
                _ => Yarn::magnitude(factor, 1.0),
            };
            Ok(RopeScaling::Yarn(Yarn {
                factor,
                beta_fast: optional("beta_fast").transpose()?.unwrap_or(Yarn::BETA_FAST),
                beta_slow: optional("beta_slow").transpose()?.unwrap_or(Yarn::BETA_SLOW),
                original_max_positions: original,
                attention_factor: optional("attention_factor").transpose()?.unwrap_or(magnitude) as f32,
            }))
        }
        // Before its publication longrope was called su.
        "longrope" | "su" => Ok(RopeScaling::Long(long_rope(hf, table, dim, origin)?)),
        other => Err(Error::UnsupportedFeature {
            origin: origin.to_owned(),
            key: "rope_scaling.rope_type".to_owned(),
            found: other.to_owned(),
            supported: "default, linear, llama3, yarn, longrope".to_owned(),
        }),
    }
}

fn long_rope(hf: &HfConfig, table: &Value, dim: usize, origin: &str) -> Result<LongRope> {
    let invalid = |key: &str, found: Option<&Value>, expected: String| Error::InvalidConfig {
        origin: origin.to_owned(),
        key: key.to_owned(),
        found: found.map_or("missing".to_owned(), |value| shortened(&value.to_string())),
        expected,
    };
    let factors = |key: &str| {
        let list = table.get(key).and_then(Value::as_array);
        let numbers =
            list.map(|list| list.iter().filter_map(Value::as_f64).map(|x| x as f32).collect::<Vec<_>>());
        numbers
            .filter(|list| list.len() == dim / 2 && list.iter().all(|x| x.is_finite() && *x > 0.0))
            .ok_or_else(|| {
                invalid(
                    &format!("rope_scaling.{key}"),
                    table.get(key),
                    format!("{} positive numbers", dim / 2),
                )
            })
    };
    let original = hf
        .text("original_max_position_embeddings")
        .or_else(|| table.get("original_max_position_embeddings"))
        .and_then(Value::as_u64)
        .and_then(|n| usize::try_from(n).ok())
        .filter(|&n| n > 1)
        .ok_or_else(|| invalid("original_max_position_embeddings", None, "a whole number".to_owned()))?;
    let max_positions = hf.max_position_embeddings.unwrap_or(original);
    let stated = table.get("attention_factor").and_then(Value::as_f64).map(|factor| factor as f32);
    Ok(LongRope {
        short: factors("short_factor")?,
        long: factors("long_factor")?,
        original_max_positions: original,
        attention_factor: stated.unwrap_or_else(|| LongRope::attention_factor(max_positions, original)),
    })
}

/// A value for an error, short.
fn shortened(text: &str) -> String {
    if text.chars().count() <= 60 { text.to_owned() } else { text.chars().take(59).chain(['…']).collect() }
}
