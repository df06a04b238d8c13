//! Phi-3, Phi-3.5 and Phi-4-mini: fused queries, keys and values, fused gate and up, part of a head rotated, longrope.

use formats::config::HfConfig;
use formats::gguf::Value;

use super::table::{OUTPUT_NORM, Row, Table, row};
use super::{Role, refuse, refuse_biases};
use crate::Result;
use crate::config::{GgufKeys, GgufValues, ModelConfig, RopeScaling, Window};

const LAYER: [Row; 6] = [
    row(Role::AttnNorm, "input_layernorm", "attn_norm"),
    row(Role::Qkv, "self_attn.qkv_proj", "attn_qkv"),
    row(Role::O, "self_attn.o_proj", "attn_output"),
    row(Role::FfnNorm, "post_attention_layernorm", "ffn_norm"),
    row(Role::GateUp, "mlp.gate_up_proj", "ffn_up"),
    row(Role::Down, "mlp.down_proj", "ffn_down"),
];

pub(super) const TABLE: Table = Table {
    hf_architectures: &["Phi3ForCausalLM"],
    model_types: &["phi3"],
    gguf_architecture: "phi3",
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

fn read_hf(hf: &HfConfig, config: &mut ModelConfig) -> Result<()> {
    refuse_biases(hf)?;
    let kind = match config.rope.scaling {
        RopeScaling::Linear { .. } => Some("linear"),
        RopeScaling::Llama3 { .. } => Some("llama3"),
        _ => None,
    };
    if let Some(kind) = kind {
        return refuse(hf, "rope_scaling.rope_type", kind, "longrope");
    }
    config.window = hf.sliding_window.map(Window::in_all_layers);
    Ok(())
}

fn read_gguf(keys: &GgufKeys<'_>, config: &mut ModelConfig) -> Result<()> {
    // The converter writes 0 for "no window".
    let window = keys.optional_size("attention.sliding_window")?.filter(|&size| size > 0);
    config.window = window.map(Window::in_all_layers);
    Ok(())
}

/// The order in which the converter writes this family's keys; it has its own.
const ORDER: [&str; 11] = [
    "context_length",
    "rope.scaling.original_context_length",
    "embedding_length",
    "feed_forward_length",
    "block_count",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.layer_norm_rms_epsilon",
    "rope.dimension_count",
    "rope.freq_base",
    "attention.sliding_window",
];

fn write_gguf(config: &ModelConfig, values: &mut GgufValues) {
    values.size("rope.dimension_count", config.rope.dim);
    values.size("attention.sliding_window", config.window.map_or(0, |window| window.size));
    if let RopeScaling::Long(long) = &config.rope.scaling {
        values.size("rope.scaling.original_context_length", long.original_max_positions);
        values.push("rope.scaling.attn_factor", Value::F32(long.attention_factor));
    } else if !matches!(config.rope.scaling, RopeScaling::Yarn(_)) {
        // Yarn has stated its own.
        values.size("rope.scaling.original_context_length", config.max_positions);
    }
    values.arrange(&ORDER);
}
