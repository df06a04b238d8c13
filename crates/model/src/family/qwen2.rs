//! Qwen2, Qwen2.5 and what is distilled into them: Llama's layer with biases on queries, keys and values.

use formats::config::HfConfig;

use super::table::{OUTPUT_NORM, Row, Table, row};
use super::{Role, refuse_window};
use crate::Result;
use crate::config::{GgufKeys, GgufValues, ModelConfig};

const LAYER: [Row; 12] = [
    row(Role::AttnNorm, "input_layernorm", "attn_norm"),
    row(Role::Q, "self_attn.q_proj", "attn_q"),
    row(Role::QBias, "self_attn.q_proj", "attn_q"),
    row(Role::K, "self_attn.k_proj", "attn_k"),
    row(Role::KBias, "self_attn.k_proj", "attn_k"),
    row(Role::V, "self_attn.v_proj", "attn_v"),
    row(Role::VBias, "self_attn.v_proj", "attn_v"),
    row(Role::O, "self_attn.o_proj", "attn_output"),
    row(Role::FfnNorm, "post_attention_layernorm", "ffn_norm"),
    row(Role::Gate, "mlp.gate_proj", "ffn_gate"),
    row(Role::Up, "mlp.up_proj", "ffn_up"),
    row(Role::Down, "mlp.down_proj", "ffn_down"),
];

pub(super) const TABLE: Table = Table {
    hf_architectures: &["Qwen2ForCausalLM"],
    model_types: &["qwen2"],
    gguf_architecture: "qwen2",
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
    refuse_window(hf)
}

fn read_gguf(_: &GgufKeys<'_>, _: &mut ModelConfig) -> Result<()> {
    Ok(())
}

fn write_gguf(_: &ModelConfig, _: &mut GgufValues) {}
