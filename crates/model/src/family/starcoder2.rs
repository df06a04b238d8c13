//! StarCoder2: LayerNorm, a bias on everything, an MLP without a gate, grouped queries, a sliding window.
//!
//! Source: Lozhkov et al. 2024, arXiv:2402.19173.

use formats::config::HfConfig;
use serde_json::Value as Json;

use super::table::{Row, Table, row};
use super::{Role, refuse};
use crate::Result;
use crate::config::{GgufKeys, GgufValues, ModelConfig, NormKind, Window};
use crate::device::Activation;

const LAYER: [Row; 16] = [
    row(Role::AttnNorm, "input_layernorm", "attn_norm"),
    row(Role::AttnNormBias, "input_layernorm", "attn_norm"),
    row(Role::Q, "self_attn.q_proj", "attn_q"),
    row(Role::QBias, "self_attn.q_proj", "attn_q"),
    row(Role::K, "self_attn.k_proj", "attn_k"),
    row(Role::KBias, "self_attn.k_proj", "attn_k"),
    row(Role::V, "self_attn.v_proj", "attn_v"),
    row(Role::VBias, "self_attn.v_proj", "attn_v"),
    row(Role::O, "self_attn.o_proj", "attn_output"),
    row(Role::OBias, "self_attn.o_proj", "attn_output"),
    row(Role::FfnNorm, "post_attention_layernorm", "ffn_norm"),
    row(Role::FfnNormBias, "post_attention_layernorm", "ffn_norm"),
    row(Role::Up, "mlp.c_fc", "ffn_up"),
    row(Role::UpBias, "mlp.c_fc", "ffn_up"),
    row(Role::Down, "mlp.c_proj", "ffn_down"),
    row(Role::DownBias, "mlp.c_proj", "ffn_down"),
];

pub(super) const TABLE: Table = Table {
    hf_architectures: &["Starcoder2ForCausalLM"],
    model_types: &["starcoder2"],
    gguf_architecture: "starcoder2",
    stem: "model",
    embedding: "embed_tokens",
    layer: &LAYER,
    last: &[row(Role::OutputNorm, "norm", "output_norm"), row(Role::OutputNormBias, "norm", "output_norm")],
    interleaved_rotation: false,
    gain_offset: 0.0,
    read_hf,
    read_gguf,
    write_gguf,
};

fn read_hf(hf: &HfConfig, config: &mut ModelConfig) -> Result<()> {
    if let Some(false) = hf.text("use_bias").and_then(Json::as_bool) {
        return refuse(hf, "use_bias", false, "true");
    }
    let eps = hf.text("norm_epsilon").or_else(|| hf.text("layer_norm_epsilon")).and_then(Json::as_f64);
    config.norm_eps = eps.unwrap_or(1e-5) as f32;
    config.norm = NormKind::Layer;
    config.activation = Activation::GeluTanh;
    config.window = hf.sliding_window.map(Window::in_all_layers);
    // transformers ties the head of a StarCoder2 unless the file says otherwise.
    config.tied = hf.tie_word_embeddings.unwrap_or(true);
    Ok(())
}

fn read_gguf(keys: &GgufKeys<'_>, config: &mut ModelConfig) -> Result<()> {
    config.norm = NormKind::Layer;
    config.activation = Activation::GeluTanh;
    config.window = keys.optional_size("attention.sliding_window")?.map(Window::in_all_layers);
    Ok(())
}

fn write_gguf(config: &ModelConfig, values: &mut GgufValues) {
    // llama.cpp knows the key and, for this architecture, sees everything: a window is for readers like this one.
    if let Some(window) = config.window {
        values.size("attention.sliding_window", window.size);
    }
}
