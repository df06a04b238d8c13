//! Qwen3 (dense): Llama's layer with an RMS norm on each query and key head before the rotation.

use formats::config::HfConfig;

use super::table::{OUTPUT_NORM, Row, Table, row};
use super::{Role, refuse_biases, refuse_window};
use crate::Result;
use crate::config::{GgufKeys, GgufValues, ModelConfig};

const LAYER: [Row; 11] = [
    row(Role::AttnNorm, "input_layernorm", "attn_norm"),
    row(Role::Q, "self_attn.q_proj", "attn_q"),
    row(Role::K, "self_attn.k_proj", "attn_k"),
    row(Role::V, "self_attn.v_proj", "attn_v"),
    row(Role::QNorm, "self_attn.q_norm", "attn_q_norm"),
    row(Role::KNorm, "self_attn.k_norm", "attn_k_norm"),
    row(Role::O, "self_attn.o_proj", "attn_output"),
    row(Role::FfnNorm, "post_attention_layernorm", "ffn_norm"),
    row(Role::Gate, "mlp.gate_proj", "ffn_gate"),
    row(Role::Up, "mlp.up_proj", "ffn_up"),
    row(Role::Down, "mlp.down_proj", "ffn_down"),
];

pub(super) const TABLE: Table = Table {
    hf_architectures: &["Qwen3ForCausalLM"],
    model_types: &["qwen3"],
    gguf_architecture: "qwen3",
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

fn read_hf(hf: &HfConfig, _: &mut ModelConfig) -> Result<()> {
    refuse_biases(hf)?;
    refuse_window(hf)
}

fn read_gguf(_: &GgufKeys<'_>, _: &mut ModelConfig) -> Result<()> {
    Ok(())
}

fn write_gguf(_: &ModelConfig, _: &mut GgufValues) {}
