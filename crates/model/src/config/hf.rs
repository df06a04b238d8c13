//! From a Hugging Face `config.json`.

use formats::config::HfConfig;

use super::{ModelConfig, Rope, RopeScaling};
use crate::family::Family;
use crate::{Error, Result};

/// What transformers assumes of a Llama whose configuration is silent.
const DEFAULT_MAX_POSITIONS: usize = 2048;

impl ModelConfig {
    /// Reads the hyper-parameters of a checkpoint.
    ///
    /// # Errors
    /// [`Error::UnsupportedArchitecture`], [`Error::UnsupportedFeature`], [`Error::InvalidConfig`]; each names the
    /// file and the key.
    pub fn from_hf(hf: &HfConfig) -> Result<ModelConfig> {
        let origin = hf.path.display().to_string();
        let family = family(hf, &origin)?;
        refuse_unsupported(hf, &origin)?;
        let config = ModelConfig {
            family,
            vocab_size: hf.vocab_size,
            hidden: hf.hidden_size,
            intermediate: hf.intermediate_size,
            n_layers: hf.num_hidden_layers,
            n_heads: hf.num_attention_heads,
            n_kv_heads: hf.num_key_value_heads,
            head_dim: hf.head_dim,
            head_dim_is_stated: hf.raw.get("head_dim").is_some_and(|value| value.is_u64()),
            rms_eps: hf.rms_norm_eps as f32,
            rope: Rope { theta: hf.rope_theta, scaling: scaling(hf, &origin)? },
            qk_norm: family.has_qk_norm(),
            // Transformers' default for both families, were the file silent, is untied.
            tied: hf.tie_word_embeddings.unwrap_or(false),
            max_positions: hf.max_position_embeddings.unwrap_or(DEFAULT_MAX_POSITIONS),
        };
        config.validated(&origin)
    }
}

fn family(hf: &HfConfig, origin: &str) -> Result<Family> {
    let found = hf.architectures.first().unwrap_or(&hf.model_type);
    let same = |family: &Family| family.hf_architecture() == found || family.gguf_architecture() == found;
    Family::ALL.into_iter().find(same).ok_or_else(|| Error::UnsupportedArchitecture {
        origin: origin.to_owned(),
        found: found.clone(),
        supported: Family::ALL.map(Family::hf_architecture).join(", "),
    })
}

fn refuse_unsupported(hf: &HfConfig, origin: &str) -> Result<()> {
    let refuse = |key: &str, found: String, supported: &str| {
        let (key, supported) = (key.to_owned(), supported.to_owned());
        Err(Error::UnsupportedFeature { origin: origin.to_owned(), key, found, supported })
    };
    if hf.attention_bias == Some(true) {
        return refuse("attention_bias", "true".to_owned(), "false");
    }
    if hf.mlp_bias == Some(true) {
        return refuse("mlp_bias", "true".to_owned(), "false");
    }
    if let Some(window) = hf.sliding_window.filter(|_| hf.use_sliding_window == Some(true)) {
        return refuse("sliding_window", window.to_string(), "none (`use_sliding_window` false)");
    }
    match hf.hidden_act.as_deref() {
        None | Some("silu" | "swish") => Ok(()),
        Some(other) => refuse("hidden_act", other.to_owned(), "silu"),
    }
}

fn scaling(hf: &HfConfig, origin: &str) -> Result<RopeScaling> {
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
    match kind.unwrap_or("missing") {
        "default" => Ok(RopeScaling::None),
        "linear" => Ok(RopeScaling::Linear { factor: number("factor")? }),
        "llama3" => Ok(RopeScaling::Llama3 {
            factor: number("factor")?,
            low_freq_factor: number("low_freq_factor")?,
            high_freq_factor: number("high_freq_factor")?,
            original_max_positions: number("original_max_position_embeddings")? as usize,
        }),
        other => Err(Error::UnsupportedFeature {
            origin: origin.to_owned(),
            key: "rope_scaling.rope_type".to_owned(),
            found: other.to_owned(),
            supported: "default, linear, llama3".to_owned(),
        }),
    }
}
