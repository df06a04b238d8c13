//! What the ops of state-space mixers ask for: sizes, sequences, weights.

use super::View;

/// Sizes of a state-space mixer, Mamba-2's.
///
/// Source: Dao & Gu 2024, arXiv:2405.21060.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StateSpace {
    /// H, heads.
    pub n_heads: usize,
    /// P, width of a head; I = H·P is the width of the mixer.
    pub head_dim: usize,
    /// G, groups of heads that share B and C; divides H.
    pub n_groups: usize,
    /// S, numbers that the state keeps for each of a head's P inputs.
    pub state: usize,
    /// k, tokens that the causal convolution sees.
    pub kernel: usize,
}

impl StateSpace {
    /// The longest convolution that is computed.
    pub const MAX_KERNEL: usize = 16;

    /// Tokens of a tile of the scan's backward pass.
    pub const TILE_TOKENS: usize = 32;

    /// I = H·P
    pub fn inner(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// W = I + 2·G·S, columns that are convolved: inputs, B, C.
    pub fn mixed(&self) -> usize {
        self.inner() + 2 * self.n_groups * self.state
    }

    /// Numbers of one sequence's state (H, P, S).
    pub fn state_len(&self) -> usize {
        self.inner() * self.state
    }

    /// Numbers that the scan's backward pass needs beside its results: a state, a tile of what heads share, a number
    /// for each head.
    pub fn scratch_len(&self) -> usize {
        self.state_len() + self.n_heads * (Self::TILE_TOKENS * self.state + 1)
    }

    /// Numbers of one sequence's window (k - 1, W): the rows that the convolution of the next token still sees.
    pub fn window_len(&self) -> usize {
        self.kernel.saturating_sub(1) * self.mixed()
    }
}

/// One sequence of a packed batch, as a recurrence sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// First row.
    pub first: usize,
    /// Rows.
    pub n: usize,
    /// Where its state is kept.
    pub place: usize,
    /// Whether nothing came before: what the place holds is another sequence's.
    pub begins: bool,
}

/// Vectors of a state-space mixer (H): [`Device::state_scan`] tells what they do.
#[derive(Debug)]
pub struct ScanWeights<'a, B> {
    /// Added to the steps.
    pub step_bias: View<'a, B>,
    /// A, negative.
    pub decay: View<'a, B>,
    /// D
    pub skip: View<'a, B>,
}
