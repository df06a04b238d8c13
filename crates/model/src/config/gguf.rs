//! To and from a GGUF's metadata: the architecture keys, in the order in which llama.cpp's converter writes them.
//!
//! Specification: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>, "LLM".

use formats::TensorSource;
use formats::gguf::{Metadata, Value};

use super::{ModelConfig, Rope, RopeScaling};
use crate::family::Family;
use crate::{Error, Result};

const ORIGIN: &str = "GGUF metadata";

/// What the specification assumes where `rope.freq_base` is absent.
const DEFAULT_THETA: f32 = 10_000.0;

/// The keys `<architecture>.*` of a model, without `general.*` and the tokenizer's.
///
/// A Llama 3 scaling has no key: the converter writes its factors as tensor `rope_freqs.weight`
/// ([`Rope::gguf_factors`]).
pub fn gguf_metadata(config: &ModelConfig) -> Vec<(String, Value)> {
    let count = |n: usize| Value::U32(u32::try_from(n).unwrap_or(u32::MAX));
    let mut keys: Vec<(&str, Value)> = vec![
        ("block_count", count(config.n_layers)),
        ("context_length", count(config.max_positions)),
        ("embedding_length", count(config.hidden)),
        ("feed_forward_length", count(config.intermediate)),
        ("attention.head_count", count(config.n_heads)),
        ("attention.head_count_kv", count(config.n_kv_heads)),
    ];
    if let RopeScaling::Linear { factor } = config.rope.scaling {
        keys.push(("rope.scaling.type", Value::from("linear")));
        keys.push(("rope.scaling.factor", Value::F32(factor as f32)));
    }
    keys.push(("rope.freq_base", Value::F32(config.rope.theta as f32)));
    keys.push(("attention.layer_norm_rms_epsilon", Value::F32(config.rms_eps)));
    if config.head_dim_is_stated || config.head_dim * config.n_heads != config.hidden {
        keys.push(("attention.key_length", count(config.head_dim)));
        keys.push(("attention.value_length", count(config.head_dim)));
    }
    if config.family == Family::Llama {
        keys.push(("vocab_size", count(config.vocab_size)));
        keys.push(("rope.dimension_count", count(config.head_dim)));
    }
    let architecture = config.family.gguf_architecture();
    keys.into_iter().map(|(key, value)| (format!("{architecture}.{key}"), value)).collect()
}

impl ModelConfig {
    /// Reads the hyper-parameters of a GGUF; `tensors` tells what the metadata leaves open.
    ///
    /// The embedding's rows are the vocabulary, a missing `output.weight` means tied, and `rope_freqs.weight` holds
    /// the factors of a scaled rotation.
    ///
    /// # Errors
    /// [`Error::UnsupportedArchitecture`], [`Error::UnsupportedFeature`], [`Error::InvalidConfig`],
    /// [`Error::MissingTensor`].
    pub fn from_gguf(metadata: &Metadata, tensors: &dyn TensorSource) -> Result<ModelConfig> {
        let family = family(metadata)?;
        let keys = Keys { metadata, architecture: family.gguf_architecture() };
        let (hidden, n_heads) = (keys.size("embedding_length")?, keys.size("attention.head_count")?);
        let n_kv_heads = keys.size_or("attention.head_count_kv", n_heads)?;
        let stated = keys.get("attention.key_length").is_some();
        let head_dim = keys.size_or("attention.key_length", hidden / n_heads.max(1))?;
        keys.refuse_other("attention.value_length", head_dim)?;
        keys.refuse_other("rope.dimension_count", head_dim)?;
        let theta = keys.metadata.get_f32(&keys.name("rope.freq_base")).unwrap_or(DEFAULT_THETA);
        let config = ModelConfig {
            family,
            vocab_size: vocabulary(tensors)?,
            hidden,
            intermediate: keys.size("feed_forward_length")?,
            n_layers: keys.size("block_count")?,
            n_heads,
            n_kv_heads,
            head_dim,
            head_dim_is_stated: stated,
            rms_eps: keys.number("attention.layer_norm_rms_epsilon")?,
            rope: Rope { theta: f64::from(theta), scaling: keys.scaling(tensors, head_dim)? },
            qk_norm: family.has_qk_norm(),
            tied: tensors.shape("output.weight").is_none(),
            max_positions: keys.size("context_length")?,
        };
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
struct Keys<'a> {
    metadata: &'a Metadata,
    architecture: &'a str,
}

impl Keys<'_> {
    fn name(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture)
    }

    fn get(&self, key: &str) -> Option<&Value> {
        self.metadata.get(&self.name(key))
    }

    fn size(&self, key: &str) -> Result<usize> {
        let value = self.metadata.get_u32(&self.name(key));
        value.map(|n| n as usize).ok_or_else(|| self.invalid(key, "an unsigned integer"))
    }

    fn size_or(&self, key: &str, default: usize) -> Result<usize> {
        if self.get(key).is_none() { Ok(default) } else { self.size(key) }
    }

    fn number(&self, key: &str) -> Result<f32> {
        self.metadata.get_f32(&self.name(key)).ok_or_else(|| self.invalid(key, "a number"))
    }

    fn refuse_other(&self, key: &str, supported: usize) -> Result<()> {
        let found = self.size_or(key, supported)?;
        if found == supported {
            return Ok(());
        }
        Err(Error::UnsupportedFeature {
            origin: ORIGIN.to_owned(),
            key: self.name(key),
            found: found.to_string(),
            supported: format!("the head width {supported}"),
        })
    }

    fn scaling(&self, tensors: &dyn TensorSource, head_dim: usize) -> Result<RopeScaling> {
        if tensors.shape("rope_freqs.weight").is_some() {
            let mut factors = Vec::new();
            tensors.read("rope_freqs.weight", &mut factors)?;
            if factors.len() != head_dim / 2 || factors.iter().any(|x| !(x.is_finite() && *x > 0.0)) {
                return Err(self.invalid("rope_freqs.weight", "a positive factor for each rotary frequency"));
            }
            return Ok(RopeScaling::Factors(factors));
        }
        match self.metadata.get_str(&self.name("rope.scaling.type")) {
            None | Some("none") => Ok(RopeScaling::None),
            Some("linear") => {
                Ok(RopeScaling::Linear { factor: f64::from(self.number("rope.scaling.factor")?) })
            }
            Some(other) => Err(Error::UnsupportedFeature {
                origin: ORIGIN.to_owned(),
                key: self.name("rope.scaling.type"),
                found: other.to_owned(),
                supported: "none, linear".to_owned(),
            }),
        }
    }

    fn invalid(&self, key: &str, expected: &str) -> Error {
        Error::InvalidConfig {
            origin: ORIGIN.to_owned(),
            key: self.name(key),
            found: self.get(key).map_or("missing".to_owned(), |value| format!("{value:?}")),
            expected: expected.to_owned(),
        }
    }
}
