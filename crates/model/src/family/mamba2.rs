//! Mamba-2 and Mamba-Codestral: layers of one state-space mixer each, no attention, no MLP, no positions.
//!
//! Source: Dao & Gu 2024, arXiv:2405.21060.

use formats::config::HfConfig;
use formats::gguf::Value;
use serde_json::Value as Json;

use super::table::{Row, Table, row, whole};
use super::{Role, refuse};
use crate::config::{GgufKeys, GgufValues, ModelConfig};
use crate::device::{Activation, StateSpace};
use crate::{Error, Result};

const LAYER: [Row; 9] = [
    row(Role::AttnNorm, "norm", "attn_norm"),
    row(Role::SsmIn, "mixer.in_proj", "ssm_in"),
    row(Role::SsmConv, "mixer.conv1d", "ssm_conv1d"),
    row(Role::SsmConvBias, "mixer.conv1d", "ssm_conv1d"),
    whole(Role::SsmStepBias, "mixer.dt_bias", "ssm_dt.bias"),
    whole(Role::SsmDecay, "mixer.A_log", "ssm_a"),
    whole(Role::SsmSkip, "mixer.D", "ssm_d"),
    row(Role::SsmNorm, "mixer.norm", "ssm_norm"),
    row(Role::SsmOut, "mixer.out_proj", "ssm_out"),
];

pub(super) const TABLE: Table = Table {
    hf_architectures: &["Mamba2ForCausalLM"],
    model_types: &["mamba2"],
    gguf_architecture: "mamba2",
    stem: "backbone",
    embedding: "embeddings",
    layer: &LAYER,
    last: &[row(Role::OutputNorm, "norm_f", "output_norm")],
    interleaved_rotation: false,
    gain_offset: 0.0,
    read_hf,
    read_gguf,
    write_gguf,
};

/// The length that llama.cpp's converter states for models that have none.
const MAX_POSITIONS: usize = 1 << 20;

fn read_hf(hf: &HfConfig, config: &mut ModelConfig) -> Result<()> {
    for (key, supported) in [("use_bias", false), ("use_conv_bias", true)] {
        if hf.text(key).and_then(Json::as_bool) == Some(!supported) {
            return refuse(hf, key, !supported, &supported.to_string());
        }
    }
    if config.activation != Activation::Silu {
        return refuse(hf, "hidden_act", hf.hidden_act.as_deref().unwrap_or_default(), "silu");
    }
    if let Some(limits) = hf.text("time_step_limit").filter(|limits| !is_no_limit(limits)) {
        return refuse(hf, "time_step_limit", limits, "[0.0, Infinity]");
    }
    let mixer = StateSpace {
        n_heads: size(hf, "num_heads", 128)?,
        head_dim: hf.head_dim,
        n_groups: size(hf, "n_groups", 8)?,
        state: size(hf, "state_size", 128)?,
        kernel: size(hf, "conv_kernel", 4)?,
    };
    let inner = size(hf, "expand", 2)? * hf.hidden_size;
    if inner != mixer.inner() {
        let expected = format!("expand · hidden_size / head_dim = {inner} / {}", mixer.head_dim);
        return invalid(hf, "num_heads", mixer.n_heads, expected);
    }
    if size(hf, "intermediate_size", inner)? != inner {
        return refuse(
            hf,
            "intermediate_size",
            size(hf, "intermediate_size", inner)?,
            &format!("expand · hidden_size = {inner}"),
        );
    }
    let eps = hf.text("layer_norm_epsilon").and_then(Json::as_f64);
    config.norm_eps = eps.unwrap_or(1e-5) as f32;
    config.max_positions = MAX_POSITIONS;
    mix_alone(config, mixer);
    Ok(())
}

/// 0 to infinity, in any of the ways in which published files write it.
fn is_no_limit(limits: &Json) -> bool {
    let is_infinite = |limit: &Json| {
        let named = limit.as_str().or_else(|| limit.get("__float__")?.as_str());
        named == Some("Infinity") || limit.as_f64().is_some_and(f64::is_infinite)
    };
    match limits.as_array().map(Vec::as_slice) {
        Some([low, high]) => low.as_f64() == Some(0.0) && is_infinite(high),
        _ => false,
    }
}

fn size(hf: &HfConfig, key: &str, default: usize) -> Result<usize> {
    let Some(value) = hf.text(key) else { return Ok(default) };
    match value.as_u64().and_then(|n| u16::try_from(n).ok()) {
        Some(n) => Ok(usize::from(n)),
        None => invalid(hf, key, value, "a whole number below 65536".to_owned()),
    }
}

fn invalid<T>(hf: &HfConfig, key: &str, found: impl ToString, expected: String) -> Result<T> {
    let (origin, key, found) = (hf.path.display().to_string(), key.to_owned(), found.to_string());
    Err(Error::InvalidConfig { origin, key, found, expected })
}

/// Every layer is this mixer: what attention and an MLP would have is 0 wide.
fn mix_alone(config: &mut ModelConfig, mixer: StateSpace) {
    config.mixer = Some(mixer);
    (config.n_heads, config.n_kv_heads, config.head_dim, config.intermediate) = (0, 0, 0, 0);
    config.head_dim_is_stated = false;
    (config.rope.dim, config.score_scale) = (0, 1.0);
}

fn read_gguf(keys: &GgufKeys<'_>, config: &mut ModelConfig) -> Result<()> {
    let (inner, n_heads) = (keys.size("ssm.inner_size")?, keys.size("ssm.time_step_rank")?);
    keys.refuse_other("attention.head_count", 0, "none")?;
    if n_heads == 0 || !inner.is_multiple_of(n_heads) {
        return Err(keys.invalid("ssm.time_step_rank", &format!("a divisor of ssm.inner_size {inner}")));
    }
    let mixer = StateSpace {
        n_heads,
        head_dim: inner / n_heads,
        n_groups: keys.size("ssm.group_count")?,
        state: keys.size("ssm.state_size")?,
        kernel: keys.size("ssm.conv_kernel")?,
    };
    mix_alone(config, mixer);
    Ok(())
}

fn write_gguf(config: &ModelConfig, values: &mut GgufValues) {
    let Some(mixer) = config.mixer else { return };
    values.size("context_length", config.max_positions);
    values.size("embedding_length", config.hidden);
    values.size("feed_forward_length", 0);
    values.size("attention.head_count", 0);
    values.size("block_count", config.n_layers);
    values.size("ssm.conv_kernel", mixer.kernel);
    values.size("ssm.inner_size", mixer.inner());
    values.size("ssm.state_size", mixer.state);
    values.size("ssm.time_step_rank", mixer.n_heads);
    values.size("ssm.group_count", mixer.n_groups);
    values.push("attention.layer_norm_rms_epsilon", Value::F32(config.norm_eps));
}
