//! Qwen3 (dense): Llama's layer with an RMS norm on each query and key head before the rotation.

use super::Role;

pub(super) const HF_ARCHITECTURE: &str = "Qwen3ForCausalLM";
pub(super) const GGUF_ARCHITECTURE: &str = "qwen3";

/// A layer's tensors in the order of the forward pass.
pub(super) const LAYER_ROLES: [Role; 11] = [
    Role::AttnNorm,
    Role::Q,
    Role::K,
    Role::V,
    Role::QNorm,
    Role::KNorm,
    Role::O,
    Role::FfnNorm,
    Role::Gate,
    Role::Up,
    Role::Down,
];
