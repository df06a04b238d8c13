//! What tensors do, whatever a family calls them.

/// What a tensor does in the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Token embedding (V, C), also the head where the model is tied.
    Embedding,
    /// Norm before attention, or before a layer's mixer (C).
    AttnNorm,
    /// Query projection (H·D, C).
    Q,
    /// Key projection (K·D, C).
    K,
    /// Value projection (K·D, C).
    V,
    /// Query, key and value projection in one matrix (H·D + 2·K·D, C).
    Qkv,
    /// Output projection of the attention (C, H·D).
    O,
    /// Norm of each query head (D).
    QNorm,
    /// Norm of each key head (D).
    KNorm,
    /// Norm of the attention's output, before it joins the stream (C).
    PostAttnNorm,
    /// Norm before the MLP (C).
    FfnNorm,
    /// Gate projection (F, C).
    Gate,
    /// Up projection (F, C).
    Up,
    /// Gate and up projection in one matrix (2·F, C).
    GateUp,
    /// Down projection (C, F).
    Down,
    /// Norm of the MLP's output, before it joins the stream (C).
    PostFfnNorm,
    /// Last norm (C).
    OutputNorm,
    /// Head (V, C) of a model that is not tied.
    Output,
    /// Bias of the norm before attention (C).
    AttnNormBias,
    /// Bias of the queries (H·D).
    QBias,
    /// Bias of the keys (K·D).
    KBias,
    /// Bias of the values (K·D).
    VBias,
    /// Bias of the attention's output projection (C).
    OBias,
    /// Bias of the norm before the MLP (C).
    FfnNormBias,
    /// Bias of the up projection (F).
    UpBias,
    /// Bias of the down projection (C).
    DownBias,
    /// Bias of the last norm (C).
    OutputNormBias,
    /// Input projection of a state-space mixer: gate, convolved inputs, step sizes (I + W + H, C).
    ///
    /// Letters as in [`crate::device::StateSpace`].
    SsmIn,
    /// Those of its rows that make the gate (I, C).
    SsmGate,
    /// Those that make what is convolved: inputs, B and C (W, C).
    SsmMixed,
    /// Those that make the step sizes (H, C).
    SsmStep,
    /// Kernels of the causal convolution (W, k).
    SsmConv,
    /// Its bias (W).
    SsmConvBias,
    /// Bias of the step sizes (H).
    SsmStepBias,
    /// A, the decay of each head's state (H, 1): -exp of what a checkpoint holds.
    SsmDecay,
    /// D, how much of each head's input goes past its state (H, 1).
    SsmSkip,
    /// Norm of the gated output, group by group (G, I / G).
    SsmNorm,
    /// Output projection of a state-space mixer (C, I). Not among [`LINEAR_ROLES`]: PEFT refuses to adapt it, since
    /// the mixer's fused kernels read its weights past an adapter, and an adapter is to load there.
    SsmOut,
    /// Input projection of latent attention: what keys and values are made from, and the rotated part that all heads'
    /// keys share (L + P, C).
    ///
    /// Letters as in [`crate::config::Latent`].
    KvA,
    /// Those of its rows that make the latent (L, C).
    KvLatent,
    /// Those that make the shared rotated part of the keys (P, C).
    KvRotated,
    /// Norm of the latent (L).
    KvNorm,
    /// Keys and values of all heads from the latent, head by head: its unrotated keys, then its values (H·(U + E), L).
    ///
    /// A module of a checkpoint, and what an adapter widens; held as [`Role::LatentKeys`] and [`Role::LatentValues`].
    KvB,
    /// The unrotated keys' part of it, each head's transposed (H·L, U), so that queries can be brought to the latent.
    LatentKeys,
    /// The values' part of it (H·E, L).
    LatentValues,
    /// Which experts a token goes to (X, C), in 32 bits.
    Router,
    /// Gate projections of all routed experts (X·F, C).
    ExpertGate,
    /// Up projections of all routed experts (X·F, C).
    ExpertUp,
    /// Down projections of all routed experts (X·C, F).
    ExpertDown,
}

/// The linear layers that decoder layers have in one family or another, in the order of the forward pass.
pub const LINEAR_ROLES: [Role; 12] = [
    Role::Q,
    Role::K,
    Role::V,
    Role::Qkv,
    Role::KvA,
    Role::KvB,
    Role::O,
    Role::Gate,
    Role::Up,
    Role::GateUp,
    Role::Down,
    Role::SsmIn,
];

impl Role {
    /// Whether this is a linear layer that an adapter may widen.
    pub fn is_linear(self) -> bool {
        LINEAR_ROLES.contains(&self)
    }

    /// Whether this is a gain, a bias or the like: small, held in 32 bits, never quantised.
    pub fn is_vector(self) -> bool {
        use Role::{
            Embedding, ExpertDown, ExpertGate, ExpertUp, LatentKeys, LatentValues, Output, Router, SsmOut,
        };
        !self.is_linear()
            && !matches!(self, Embedding | Output | SsmOut | Router)
            && !matches!(self, LatentKeys | LatentValues | ExpertGate | ExpertUp | ExpertDown)
    }

    /// The checkpoint's module that a tensor is all or a part of.
    pub fn of_module(self) -> Role {
        match self {
            Role::LatentKeys | Role::LatentValues => Role::KvB,
            other => other,
        }
    }

    pub(super) fn is_bias(self) -> bool {
        use Role::{AttnNormBias, DownBias, FfnNormBias, KBias, OBias, OutputNormBias, QBias, UpBias, VBias};
        use Role::{SsmConvBias, SsmStepBias};
        matches!(
            self,
            AttnNormBias | QBias | KBias | VBias | OBias | FfnNormBias | UpBias | DownBias | OutputNormBias
        ) || matches!(self, SsmConvBias | SsmStepBias)
    }

    /// The bias that belongs to a linear layer or a norm, in families that have one.
    pub(crate) fn bias(self) -> Option<Role> {
        Some(match self {
            Role::AttnNorm => Role::AttnNormBias,
            Role::Q => Role::QBias,
            Role::K => Role::KBias,
            Role::V => Role::VBias,
            Role::O => Role::OBias,
            Role::FfnNorm => Role::FfnNormBias,
            Role::Up => Role::UpBias,
            Role::Down => Role::DownBias,
            Role::OutputNorm => Role::OutputNormBias,
            _ => return None,
        })
    }
}
