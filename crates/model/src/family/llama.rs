//! Llama 2 and 3: RMS norms, grouped queries, rotary positions, SwiGLU.

use super::Role;

pub(super) const HF_ARCHITECTURE: &str = "LlamaForCausalLM";
pub(super) const GGUF_ARCHITECTURE: &str = "llama";

/// A layer's tensors in the order of the forward pass.
pub(super) const LAYER_ROLES: [Role; 9] =
    [Role::AttnNorm, Role::Q, Role::K, Role::V, Role::O, Role::FfnNorm, Role::Gate, Role::Up, Role::Down];
