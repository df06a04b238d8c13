//! To and from a GGUF's metadata: the architecture keys, in the order in which llama.cpp's converter writes them.
//!
//! Specification: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>, "LLM".

use formats::TensorSource;
use formats::gguf::{Metadata, Value};

use super::rope::{GGUF_FACTORS, GGUF_LONG_FACTORS, GGUF_SHORT_FACTORS};
use super::{LongRope, ModelConfig, NormKind, Rope, RopeScaling, Yarn};
use crate::family::{Family, Role};
use crate::{Error, Result};

const ORIGIN: &str = "GGUF metadata";

/// What the specification assumes where `rope.freq_base` is absent.
const DEFAULT_THETA: f32 = 10_000.0;

/// The keys `<architecture>.*` of a model, without `general.*` and the tokenizer's.
///
/// Factors for each frequency have no key: the converter writes them as tensors ([`Rope::gguf_tensors`]).
pub fn gguf_metadata(config: &ModelConfig) -> Vec<(String, Value)> {
    let mut values = GgufValues { architecture: config.family.gguf_architecture(), keys: Vec::new() };
    if config.mixer.is_some() {
        config.family.write_gguf(config, &mut values);
        return values.keys;
    }
    values.size("block_count", config.n_layers);
    values.size("context_length", config.max_positions);
    values.size("embedding_length", config.hidden);
    values.size("feed_forward_length", config.intermediate);
    values.size("attention.head_count", config.n_heads);
    // Latent attention is written as it is decoded: with one head of keys and values.
    values.size("attention.head_count_kv", if config.latent.is_some() { 1 } else { config.n_kv_heads });
    match &config.rope.scaling {
        RopeScaling::Linear { factor } => {
            values.push("rope.scaling.type", Value::from("linear"));
            values.push("rope.scaling.factor", Value::F32(*factor as f32));
        }
        RopeScaling::Yarn(yarn) => values.yarn(yarn, config.latent.is_some()),
        _ => {}
    }
    values.push("rope.freq_base", Value::F32(config.rope.theta as f32));
    if let Some(local) = &config.local_rope {
        values.push("rope.freq_base_swa", Value::F32(local.theta as f32));
    }
    values.push(norm_key(config.norm), Value::F32(config.norm_eps));
    let is_unusual = config.head_dim_is_stated || config.head_dim * config.n_heads != config.hidden;
    if is_unusual && config.latent.is_none() {
        values.size("attention.key_length", config.head_dim);
        values.size("attention.value_length", config.head_dim);
    }
    config.family.write_gguf(config, &mut values);
    values.keys
}

fn norm_key(norm: NormKind) -> &'static str {
    match norm {
        NormKind::Rms => "attention.layer_norm_rms_epsilon",
        NormKind::Layer => "attention.layer_norm_epsilon",
    }
}

/// Collects the keys of one architecture.
pub(crate) struct GgufValues {
    architecture: &'static str,
    keys: Vec<(String, Value)>,
}

impl GgufValues {
    /// Adds `<architecture>.<key>`.
    pub(crate) fn push(&mut self, key: &str, value: Value) {
        self.keys.push((format!("{}.{key}", self.architecture), value));
    }

    /// Adds the keys of yarn; those that llama.cpp would assume anyway are left out, as its converter does.
    ///
    /// With latent attention the family's own key tells what scores are multiplied by, and nothing else is.
    fn yarn(&mut self, yarn: &Yarn, is_latent: bool) {
        self.push("rope.scaling.type", Value::from("yarn"));
        self.push("rope.scaling.factor", Value::F32(yarn.factor as f32));
        self.size("rope.scaling.original_context_length", yarn.original_max_positions);
        // llama.cpp multiplies the magnitude that follows from the factor by this key.
        let attention = yarn.attention_factor / Yarn::magnitude(yarn.factor, 1.0) as f32;
        let attention = if is_latent { 1.0 } else { attention };
        let stated = [
            ("rope.scaling.attn_factor", attention, 1.0),
            ("rope.scaling.yarn_beta_fast", yarn.beta_fast as f32, Yarn::BETA_FAST as f32),
            ("rope.scaling.yarn_beta_slow", yarn.beta_slow as f32, Yarn::BETA_SLOW as f32),
        ];
        for (key, value, _) in stated.into_iter().filter(|(_, value, assumed)| value != assumed) {
            self.push(key, Value::F32(value));
        }
    }

    /// Arranges the keys in this order; what is not named stays behind them.
    pub(crate) fn arrange(&mut self, order: &[&str]) {
        let start = self.architecture.len() + 1;
        self.keys
            .sort_by_key(|(key, _)| order.iter().position(|of| *of == &key[start..]).unwrap_or(order.len()));
    }

    /// Adds a count.
    pub(crate) fn size(&mut self, key: &str, n: usize) {
        self.push(key, Value::U32(u32::try_from(n).unwrap_or(u32::MAX)));
    }
}

impl ModelConfig {
    /// Reads the hyper-parameters of a GGUF; `tensors` tells what the metadata leaves open.
    ///
    /// The embedding's rows are the vocabulary, a missing `output.weight` means tied, and `rope_freqs.weight` or
    /// `rope_factors_*.weight` hold the factors of a scaled rotation.
    ///
    /// # Errors
    /// [`Error::UnsupportedArchitecture`], [`Error::UnsupportedFeature`], [`Error::InvalidConfig`],
    /// [`Error::MissingTensor`].
    pub fn from_gguf(metadata: &Metadata, tensors: &dyn TensorSource) -> Result<ModelConfig> {
        let family = family(metadata)?;
        let keys = GgufKeys { metadata, architecture: family.gguf_architecture() };
        let (hidden, n_heads) = (keys.size("embedding_length")?, keys.size("attention.head_count")?);
        let n_kv_heads = keys.optional_size("attention.head_count_kv")?.unwrap_or(n_heads);
        let stated = keys.optional_size("attention.key_length")?;
        let head_dim = stated.unwrap_or(hidden / n_heads.max(1));
        if !family.has(Role::KvB) {
            keys.refuse_other("attention.value_length", head_dim, &format!("the head width {head_dim}"))?;
        }
        let theta = keys.optional_number("rope.freq_base")?.unwrap_or(DEFAULT_THETA);
        let dim = keys.optional_size("rope.dimension_count")?.unwrap_or(head_dim);
        let max_positions = keys.size("context_length")?;
        let is_layer_norm = keys.optional_number(norm_key(NormKind::Layer))?.is_some();
        let norm = if is_layer_norm { NormKind::Layer } else { NormKind::Rms };
        let mut config = ModelConfig {
            vocab_size: vocabulary(tensors)?,
            hidden,
            intermediate: keys.size("feed_forward_length")?,
            n_layers: keys.size("block_count")?,
            n_heads,
            n_kv_heads,
            head_dim_is_stated: stated.is_some(),
            norm,
            norm_eps: keys.number(norm_key(norm))?,
            rope: Rope { theta: f64::from(theta), dim, scaling: keys.scaling(tensors, dim, max_positions)? },
            tied: tensors.shape("output.weight").is_none(),
            max_positions,
            ..ModelConfig::plain(family, head_dim)
        };
        family.read_gguf(&keys, &mut config)?;
        config.validated(ORIGIN)
    }
}

fn family(metadata: &Metadata) -> Result<Family> {
    let found = metadata.get_str("general.architecture").unwrap_or("missing");
    Family::ALL.into_iter().find(|family| family.gguf_architecture() == found).ok_or_else(|| {
        Error::UnsupportedArchitecture {
            origin: ORIGIN.to_owned(),
            found: found.to_owned(),
            supported: Family::ALL.map(Family::gguf_architecture).join(", "),
        }
    })
}

fn vocabulary(tensors: &dyn TensorSource) -> Result<usize> {
    match tensors.shape("token_embd.weight").as_deref() {
        Some([rows, _]) => Ok(*rows),
        Some(other) => Err(Error::InvalidConfig {
            origin: ORIGIN.to_owned(),
            key: "token_embd.weight".to_owned(),
            found: format!("{other:?}"),
            expected: "two dimensions".to_owned(),
        }),
        None => {
            Err(Error::MissingTensor { name: "token_embd.weight".to_owned(), n_missing: 1, n_expected: 1 })
        }
    }
}

/// Reads the keys of one architecture.
pub(crate) struct GgufKeys<'a> {
    metadata: &'a Metadata,
    architecture: &'a str,
}

impl GgufKeys<'_> {
    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(&self.name(key))
    }

    pub(crate) fn size(&self, key: &str) -> Result<usize> {
        let value = self.metadata.get_u32(&self.name(key));
        value.map(|n| n as usize).ok_or_else(|| self.invalid(key, "an unsigned integer"))
    }

    pub(crate) fn optional_size(&self, key: &str) -> Result<Option<usize>> {
        if self.get(key).is_none() { Ok(None) } else { self.size(key).map(Some) }
    }

    fn number(&self, key: &str) -> Result<f32> {
        self.metadata.get_f32(&self.name(key)).ok_or_else(|| self.invalid(key, "a number"))
    }

    pub(crate) fn optional_number(&self, key: &str) -> Result<Option<f32>> {
        if self.get(key).is_none() { Ok(None) } else { self.number(key).map(Some) }
    }

    pub(crate) fn refuse_other(&self, key: &str, supported: usize, name: &str) -> Result<()> {
        let found = self.optional_size(key)?.unwrap_or(supported);
        if found == supported { Ok(()) } else { Err(self.unsupported(key, name)) }
    }

    /// A flag, false where it is absent.
    pub(crate) fn flag(&self, key: &str) -> bool {
        matches!(self.get(key), Some(Value::Bool(true)))
    }

    pub(crate) fn unsupported(&self, key: &str, supported: &str) -> Error {
        Error::UnsupportedFeature {
            origin: ORIGIN.to_owned(),
            key: self.name(key),
            found: self.shown(key),
            supported: supported.to_owned(),
        }
    }

    fn shown(&self, key: &str) -> String {
        match self.get(key) {
            None => "missing".to_owned(),
            Some(Value::U32(n)) => n.to_string(),
            Some(Value::Bool(flag)) => flag.to_string(),
            Some(other) => format!("{other:?}"),
        }
    }

    fn scaling(&self, tensors: &dyn TensorSource, dim: usize, max_positions: usize) -> Result<RopeScaling> {
        if tensors.shape(GGUF_FACTORS).is_some() {
            return Ok(RopeScaling::Factors(self.factors(tensors, GGUF_FACTORS, dim)?));
        }
        if tensors.shape(GGUF_LONG_FACTORS).is_some() {
            let original = self.size("rope.scaling.original_context_length")?;
            let stated = self.optional_number("rope.scaling.attn_factor")?;
            return Ok(RopeScaling::Long(LongRope {
                short: self.factors(tensors, GGUF_SHORT_FACTORS, dim)?,
                long: self.factors(tensors, GGUF_LONG_FACTORS, dim)?,
                original_max_positions: original,
                attention_factor: stated
                    .unwrap_or_else(|| LongRope::attention_factor(max_positions, original)),
            }));
        }
        match self.metadata.get_str(&self.name("rope.scaling.type")) {
            None | Some("none") => Ok(RopeScaling::None),
            Some("linear") => {
                Ok(RopeScaling::Linear { factor: f64::from(self.number("rope.scaling.factor")?) })
            }
            Some("yarn") => Ok(RopeScaling::Yarn(self.yarn()?)),
            Some(other) => Err(Error::UnsupportedFeature {
                origin: ORIGIN.to_owned(),
                key: self.name("rope.scaling.type"),
                found: other.to_owned(),
                supported: "none, linear, yarn".to_owned(),
            }),
        }
    }

    fn yarn(&self) -> Result<Yarn> {
        let factor = f64::from(self.number("rope.scaling.factor")?);
        if !(factor.is_finite() && factor > 0.0) {
            return Err(self.invalid("rope.scaling.factor", "a positive number"));
        }
        let stated = |key, assumed| Ok::<_, Error>(self.optional_number(key)?.map_or(assumed, f64::from));
        let attention = stated("rope.scaling.attn_factor", 1.0)?;
        Ok(Yarn {
            factor,
            beta_fast: stated("rope.scaling.yarn_beta_fast", Yarn::BETA_FAST)?,
            beta_slow: stated("rope.scaling.yarn_beta_slow", Yarn::BETA_SLOW)?,
            original_max_positions: self.size("rope.scaling.original_context_length")?,
            attention_factor: (attention * Yarn::magnitude(factor, 1.0)) as f32,
        })
    }

    fn factors(&self, tensors: &dyn TensorSource, name: &str, dim: usize) -> Result<Vec<f32>> {
        let mut factors = Vec::new();
        tensors.read(name, &mut factors)?;
        if factors.len() == dim / 2 && factors.iter().all(|x| x.is_finite() && *x > 0.0) {
            return Ok(factors);
        }
        Err(Error::InvalidConfig {
            origin: ORIGIN.to_owned(),
            key: name.to_owned(),
            found: format!("{} values", factors.len()),
            expected: format!("{} positive factors, one for each rotary frequency", dim / 2),
        })
    }

    pub(crate) fn invalid(&self, key: &str, expected: &str) -> Error {
        Error::InvalidConfig {
            origin: ORIGIN.to_owned(),
            key: self.name(key),
            found: self.get(key).map_or("missing".to_owned(), |value| format!("{value:?}")),
            expected: expected.to_owned(),
        }
    }
}
