//! Gemma 3, the text part: norms before and after each half of a layer, GeGLU, windowed layers with a rotation of their own.
//!
//! A norm computes x · r · (1 + g): the checkpoint holds g, a GGUF and the memory here 1 + g. Five layers see a window
//! and rotate by their own base, every sixth sees all. Source: Gemma 3 technical report, arXiv:2503.19786.

use formats::config::HfConfig;
use serde_json::Value as Json;

use super::table::{OUTPUT_NORM, Row, Table, row};
use super::{Role, TextPart, refuse, refuse_biases};
use crate::Result;
use crate::config::{GgufKeys, GgufValues, ModelConfig, Rope, RopeScaling, Window};
use crate::device::Activation;

const LAYER: [Row; 13] = [
    row(Role::AttnNorm, "input_layernorm", "attn_norm"),
    row(Role::Q, "self_attn.q_proj", "attn_q"),
    row(Role::K, "self_attn.k_proj", "attn_k"),
    row(Role::V, "self_attn.v_proj", "attn_v"),
    row(Role::QNorm, "self_attn.q_norm", "attn_q_norm"),
    row(Role::KNorm, "self_attn.k_norm", "attn_k_norm"),
    row(Role::O, "self_attn.o_proj", "attn_output"),
    row(Role::PostAttnNorm, "post_attention_layernorm", "post_attention_norm"),
    row(Role::FfnNorm, "pre_feedforward_layernorm", "ffn_norm"),
    row(Role::Gate, "mlp.gate_proj", "ffn_gate"),
    row(Role::Up, "mlp.up_proj", "ffn_up"),
    row(Role::Down, "mlp.down_proj", "ffn_down"),
    row(Role::PostFfnNorm, "post_feedforward_layernorm", "post_ffw_norm"),
];

pub(super) const TABLE: Table = Table {
    hf_architectures: &["Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"],
    model_types: &["gemma3_text", "gemma3"],
    gguf_architecture: "gemma3",
    stem: "model",
    embedding: "embed_tokens",
    layer: &LAYER,
    last: OUTPUT_NORM,
    interleaved_rotation: false,
    gain_offset: 1.0,
    read_hf,
    read_gguf,
    write_gguf,
};

/// Every which layer sees everything, where the file does not say.
const PATTERN: usize = 6;
/// Base of the rotation in windowed layers, where the file does not say.
const LOCAL_THETA: f64 = 10_000.0;

fn read_hf(hf: &HfConfig, config: &mut ModelConfig) -> Result<()> {
    refuse_biases(hf)?;
    for key in ["final_logit_softcapping", "attn_logit_softcapping"] {
        if let Some(cap) = hf.text(key).and_then(Json::as_f64) {
            return refuse(hf, key, cap, "null");
        }
    }
    if hf.text("use_bidirectional_attention").and_then(Json::as_bool) == Some(true) {
        return refuse(hf, "use_bidirectional_attention", true, "false");
    }
    let number = |key: &str| hf.text(key).and_then(Json::as_f64).filter(|x| x.is_finite() && *x > 0.0);
    let pattern = number("sliding_window_pattern").map(|pattern| pattern as usize);
    let pattern = pattern.or_else(|| first_full_layer(hf)).unwrap_or(PATTERN);
    let local_theta = number("rope_local_base_freq")
        .or_else(|| hf.text("rope_parameters")?.get("sliding_attention")?.get("rope_theta")?.as_f64());
    if hf.architectures.iter().any(|name| name == "Gemma3ForConditionalGeneration") {
        config.text_part = TextPart::Outer;
    }
    complete(config, hf.sliding_window.unwrap_or(4096), pattern);
    config.local_rope = Some(local_rope(config, local_theta.unwrap_or(LOCAL_THETA)));
    config.score_scale = 1.0 / (number("query_pre_attn_scalar").unwrap_or(256.0) as f32).sqrt();
    // Gemma's head is the embedding unless the file says otherwise.
    config.tied = hf.tie_word_embeddings.unwrap_or(true);
    Ok(())
}

fn read_gguf(keys: &GgufKeys<'_>, config: &mut ModelConfig) -> Result<()> {
    let pattern = keys.optional_size("attention.sliding_window_pattern")?.unwrap_or(PATTERN);
    complete(config, keys.size("attention.sliding_window")?, pattern);
    let theta = keys.optional_number("rope.freq_base_swa")?.map_or(LOCAL_THETA, f64::from);
    config.local_rope = Some(local_rope(config, theta));
    // llama.cpp scales by the head width, but for the 27B's 62 layers.
    let scaled_by = if config.n_layers == 62 { config.hidden / config.n_heads } else { config.head_dim };
    config.score_scale = 1.0 / (scaled_by as f32).sqrt();
    Ok(())
}

/// Newer files list the kind of every layer: the number of the first that sees everything.
fn first_full_layer(hf: &HfConfig) -> Option<usize> {
    let kinds = hf.text("layer_types")?.as_array()?;
    kinds.iter().position(|kind| kind == "full_attention").map(|index| index + 1)
}

/// What both kinds of files leave to the reader.
fn complete(config: &mut ModelConfig, window: usize, pattern: usize) {
    config.activation = Activation::GeluTanh;
    config.embedding_scale = (config.hidden as f32).sqrt();
    config.window = Some(Window { size: window, full_every: Some(pattern) });
}

fn local_rope(config: &ModelConfig, theta: f64) -> Rope {
    Rope { theta, dim: config.rope.dim, scaling: RopeScaling::None }
}

fn write_gguf(config: &ModelConfig, values: &mut GgufValues) {
    values.size("attention.sliding_window", config.window.map_or(0, |window| window.size));
    if let Some(pattern) =
        config.window.and_then(|window| window.full_every).filter(|&every| every != PATTERN)
    {
        values.size("attention.sliding_window_pattern", pattern);
    }
}
