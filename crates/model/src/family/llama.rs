//! Llama 2 and 3, and what copies them to the letter (Mistral, TinyLlama, SmolLM2): RMS norms, grouped queries, SwiGLU.

use formats::config::HfConfig;

use super::table::{OUTPUT_NORM, Row, Table, row};
use super::{Role, refuse, refuse_biases};
use crate::Result;
use crate::config::{GgufKeys, GgufValues, ModelConfig, Window};

const LAYER: [Row; 9] = [
    row(Role::AttnNorm, "input_layernorm", "attn_norm"),
    row(Role::Q, "self_attn.q_proj", "attn_q"),
    row(Role::K, "self_attn.k_proj", "attn_k"),
    row(Role::V, "self_attn.v_proj", "attn_v"),
    row(Role::O, "self_attn.o_proj", "attn_output"),
    row(Role::FfnNorm, "post_attention_layernorm", "ffn_norm"),
    row(Role::Gate, "mlp.gate_proj", "ffn_gate"),
    row(Role::Up, "mlp.up_proj", "ffn_up"),
    row(Role::Down, "mlp.down_proj", "ffn_down"),
];

pub(super) const TABLE: Table = Table {
    hf_architectures: &["LlamaForCausalLM", "MistralForCausalLM"],
    model_types: &["llama", "mistral"],
    gguf_architecture: "llama",
    stem: "model",
    embedding: "embed_tokens",
    layer: &LAYER,
    last: OUTPUT_NORM,
    interleaved_rotation: true,
    gain_offset: 0.0,
    read_hf,
    read_gguf,
    write_gguf,
};

fn read_hf(hf: &HfConfig, config: &mut ModelConfig) -> Result<()> {
    refuse_biases(hf)?;
    if hf.architectures.iter().any(|name| name == "MistralForCausalLM") || hf.model_type == "mistral" {
        config.window = hf.sliding_window.map(Window::in_all_layers);
    } else if let Some(window) = hf.sliding_window {
        return refuse(hf, "sliding_window", window, "none in a Llama");
    }
    Ok(())
}

fn read_gguf(keys: &GgufKeys<'_>, config: &mut ModelConfig) -> Result<()> {
    config.window = keys.optional_size("attention.sliding_window")?.map(Window::in_all_layers);
    Ok(())
}

fn write_gguf(config: &ModelConfig, values: &mut GgufValues) {
    values.size("vocab_size", config.vocab_size);
    values.size("rope.dimension_count", config.rope.dim);
}
