//! DeepSeek-V2-Lite and DeepSeek-Coder-V2-Lite: latent attention, and routed experts beside shared ones.
//!
//! The larger DeepSeek-V2, whose queries come from a latent too and whose experts are chosen in groups, is refused.
//! Source: DeepSeek-AI 2024, arXiv:2405.04434.

use formats::config::HfConfig;
use formats::gguf::Value;
use serde_json::Value as Json;

use super::table::{OUTPUT_NORM, Row, Table, dense, routed, row};
use super::{Role, refuse, refuse_biases};
use crate::config::{Experts, GgufKeys, GgufValues, Latent, ModelConfig, RopeScaling};
use crate::device::{Activation, Routing};
use crate::{Error, Result};

const LAYER: [Row; 18] = [
    row(Role::AttnNorm, "input_layernorm", "attn_norm"),
    row(Role::Q, "self_attn.q_proj", "attn_q"),
    row(Role::KvA, "self_attn.kv_a_proj_with_mqa", "attn_kv_a_mqa"),
    row(Role::KvNorm, "self_attn.kv_a_layernorm", "attn_kv_a_norm"),
    row(Role::LatentKeys, "self_attn.kv_b_proj", "attn_k_b"),
    row(Role::LatentValues, "self_attn.kv_b_proj", "attn_v_b"),
    row(Role::O, "self_attn.o_proj", "attn_output"),
    row(Role::FfnNorm, "post_attention_layernorm", "ffn_norm"),
    dense(Role::Gate, "mlp.gate_proj", "ffn_gate"),
    dense(Role::Up, "mlp.up_proj", "ffn_up"),
    dense(Role::Down, "mlp.down_proj", "ffn_down"),
    routed(Role::Router, "mlp.gate", "ffn_gate_inp"),
    routed(Role::ExpertGate, "mlp.experts.*.gate_proj", "ffn_gate_exps"),
    routed(Role::ExpertUp, "mlp.experts.*.up_proj", "ffn_up_exps"),
    routed(Role::ExpertDown, "mlp.experts.*.down_proj", "ffn_down_exps"),
    routed(Role::Gate, "mlp.shared_experts.gate_proj", "ffn_gate_shexp"),
    routed(Role::Up, "mlp.shared_experts.up_proj", "ffn_up_shexp"),
    routed(Role::Down, "mlp.shared_experts.down_proj", "ffn_down_shexp"),
];

pub(super) const TABLE: Table = Table {
    hf_architectures: &["DeepseekV2ForCausalLM"],
    model_types: &["deepseek_v2"],
    gguf_architecture: "deepseek2",
    stem: "model",
    embedding: "embed_tokens",
    layer: &LAYER,
    last: OUTPUT_NORM,
    interleaved_rotation: false,
    gain_offset: 0.0,
    read_hf,
    read_gguf,
    write_gguf,
};

/// transformers and the published code give the latent's norm this constant whatever the configuration says; llama.cpp
/// gives it the configuration's.
const LATENT_NORM_EPS: f32 = 1e-6;

/// `expert_gating_func` of a softmax.
const SOFTMAX: u32 = 1;

/// Numbers of layers with which llama.cpp takes a file to have plain queries; with others it looks for
/// `attention.q_lora_rank`.
const LITE_LAYERS: [usize; 2] = [26, 27];

fn read_hf(hf: &HfConfig, config: &mut ModelConfig) -> Result<()> {
    refuse_biases(hf)?;
    if let Some(rank) = stated(hf, "q_lora_rank") {
        return refuse(hf, "q_lora_rank", rank, "null, as in DeepSeek-V2-Lite");
    }
    refuse_other(hf, "norm_topk_prob", |value| value == false, "false")?;
    refuse_other(hf, "topk_method", |value| value == "greedy", "greedy")?;
    refuse_other(hf, "scoring_func", |value| value == "softmax", "softmax")?;
    refuse_other(hf, "moe_layer_freq", |value| value == 1, "1")?;
    if config.activation != Activation::Silu {
        return refuse(hf, "hidden_act", hf.hidden_act.as_deref().unwrap_or_default(), "silu");
    }
    if config.norm_eps != LATENT_NORM_EPS {
        return refuse(hf, "rms_norm_eps", config.norm_eps, &LATENT_NORM_EPS.to_string());
    }
    if config.n_kv_heads != config.n_heads {
        return refuse(hf, "num_key_value_heads", config.n_kv_heads, &config.n_heads.to_string());
    }
    let n_experts = size(hf, "n_routed_experts")?;
    let scale = hf.text("routed_scaling_factor").and_then(Json::as_f64).unwrap_or(1.0) as f32;
    let experts = Experts {
        routing: Routing { n_experts, n_used: size(hf, "num_experts_per_tok")?, scale },
        width: size(hf, "moe_intermediate_size")?,
        n_shared: size(hf, "n_shared_experts")?,
        n_dense_layers: match stated(hf, "first_k_dense_replace") {
            Some(_) => size(hf, "first_k_dense_replace")?,
            None => 0,
        },
    };
    config.rope.dim = size(hf, "qk_rope_head_dim")?;
    config.head_dim = size(hf, "qk_nope_head_dim")? + config.rope.dim;
    let latent = Latent {
        rank: size(hf, "kv_lora_rank")?,
        value_dim: size(hf, "v_head_dim")?,
        log_multiplier: log_multiplier(hf, config)?,
    };
    set(config, latent, experts);
    Ok(())
}

/// A key that is there and not null.
fn stated<'a>(hf: &'a HfConfig, key: &str) -> Option<&'a Json> {
    hf.text(key).filter(|value| !value.is_null())
}

fn refuse_other(hf: &HfConfig, key: &str, is_supported: fn(&Json) -> bool, supported: &str) -> Result<()> {
    match stated(hf, key).filter(|value| !is_supported(value)) {
        Some(value) => refuse(hf, key, value, supported),
        None => Ok(()),
    }
}

fn size(hf: &HfConfig, key: &str) -> Result<usize> {
    let value = hf.text(key);
    value.and_then(Json::as_u64).and_then(|n| u32::try_from(n).ok()).map(|n| n as usize).ok_or_else(|| {
        Error::InvalidConfig {
            origin: hf.path.display().to_string(),
            key: key.to_owned(),
            found: value.map_or("missing".to_owned(), Json::to_string),
            expected: "a whole number".to_owned(),
        }
    })
}

/// 0.1 · `mscale_all_dim`, rounded as a GGUF holds it.
///
/// llama.cpp takes `mscale` to be the same, and without either computes other scores than transformers.
fn log_multiplier(hf: &HfConfig, config: &ModelConfig) -> Result<f32> {
    let (RopeScaling::Yarn(_), Some(table)) = (&config.rope.scaling, &hf.rope_scaling) else {
        return Ok(0.0);
    };
    let number = |key: &str| table.get(key).and_then(Json::as_f64);
    match (number("mscale"), number("mscale_all_dim")) {
        (Some(mscale), Some(all_dim)) if mscale == all_dim && all_dim > 0.0 => Ok((0.1 * all_dim) as f32),
        (mscale, all_dim) => {
            let shown = |x: Option<f64>| x.map_or("missing".to_owned(), |x| x.to_string());
            let found = format!("{} beside an mscale_all_dim of {}", shown(mscale), shown(all_dim));
            refuse(hf, "rope_scaling.mscale", found, "the same positive number for both")
        }
    }
}

/// Everything that follows from latent and experts, once the sizes of the heads are set.
fn set(config: &mut ModelConfig, latent: Latent, experts: Experts) {
    config.n_kv_heads = config.n_heads;
    config.score_scale = 1.0 / (config.head_dim as f32).sqrt();
    if let RopeScaling::Yarn(yarn) = &mut config.rope.scaling {
        yarn.attention_factor = 1.0;
        let magnitude = 1.0 + latent.log_multiplier * (yarn.factor as f32).ln();
        config.score_scale *= magnitude * magnitude;
    }
    config.head_dim_is_stated = false;
    (config.latent, config.experts) = (Some(latent), Some(experts));
}

fn read_gguf(keys: &GgufKeys<'_>, config: &mut ModelConfig) -> Result<()> {
    keys.refuse_other("attention.q_lora_rank", 0, "none, as in DeepSeek-V2-Lite")?;
    keys.refuse_other("expert_gating_func", SOFTMAX as usize, "1, a softmax")?;
    if keys.flag("expert_weights_norm") {
        return Err(keys.unsupported("expert_weights_norm", "false"));
    }
    let Some(head_dim) = keys.optional_size("attention.key_length_mla")? else {
        let expected =
            "the width of a key, from a converter that splits attn_kv_b (llama.cpp since April 2025)";
        return Err(keys.invalid("attention.key_length_mla", expected));
    };
    config.head_dim = head_dim;
    let latent = Latent {
        rank: keys.size("attention.kv_lora_rank")?,
        value_dim: keys.size("attention.value_length_mla")?,
        log_multiplier: keys.optional_number("rope.scaling.yarn_log_multiplier")?.unwrap_or(0.0),
    };
    let experts = Experts {
        routing: Routing {
            n_experts: keys.size("expert_count")?,
            n_used: keys.size("expert_used_count")?,
            scale: keys.optional_number("expert_weights_scale")?.filter(|scale| *scale != 0.0).unwrap_or(1.0),
        },
        width: keys.size("expert_feed_forward_length")?,
        n_shared: keys.size("expert_shared_count")?,
        n_dense_layers: keys.optional_size("leading_dense_block_count")?.unwrap_or(0),
    };
    set(config, latent, experts);
    Ok(())
}

fn write_gguf(config: &ModelConfig, values: &mut GgufValues) {
    let (Some(latent), Some(experts)) = (config.latent, config.experts) else { return };
    values.size("expert_count", experts.routing.n_experts);
    values.size("expert_used_count", experts.routing.n_used);
    values.push("expert_gating_func", Value::U32(SOFTMAX));
    values.size("leading_dense_block_count", experts.n_dense_layers);
    values.size("vocab_size", config.vocab_size);
    if !LITE_LAYERS.contains(&config.n_layers) {
        values.size("attention.q_lora_rank", 0);
    }
    values.size("attention.kv_lora_rank", latent.rank);
    values.size("attention.key_length", latent.rank + config.rope.dim);
    values.size("attention.value_length", latent.rank);
    values.size("attention.key_length_mla", config.head_dim);
    values.size("attention.value_length_mla", latent.value_dim);
    values.size("expert_feed_forward_length", experts.width);
    values.size("expert_shared_count", experts.n_shared);
    values.push("expert_weights_scale", Value::F32(experts.routing.scale));
    values.size("rope.dimension_count", config.rope.dim);
    if latent.log_multiplier != 0.0 {
        values.push("rope.scaling.yarn_log_multiplier", Value::F32(latent.log_multiplier));
    }
}
