//! What a layer keeps of the tokens it has read: keys and values, the latent they are made from, or a state.

use super::Head;
use crate::card::LoadOptions;

/// llama.cpp rounds a context up to a multiple of this, a window's cache too.
pub(super) const CONTEXT_STEP: u64 = 256;

/// Every which layer of an architecture sees everything, where its file does not say.
const WINDOW_PATTERNS: [(&str, u64); 2] = [("gemma3", 6), ("gemma2", 2)];

/// Cells, tokens and types of a cache.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cache<'a> {
    pub head: &'a Head,
    pub load: &'a LoadOptions,
    /// Tokens of context, rounded up.
    pub context: u64,
    /// Tokens of one piece.
    pub piece: u64,
}

impl Cache<'_> {
    /// Bytes of a layer.
    ///
    /// keys and values = cells x kv heads x (key length x type K + value length x type V)
    ///
    /// With latent attention keys alone, the latent and the rotated part, which values are read from. A mixer has two
    /// states in f32 instead, whatever the length of the context.
    pub(super) fn layer_bytes(&self, layer: u64) -> u64 {
        if let Some(mixer) = Mixer::of(self.head) {
            return mixer.state_bytes();
        }
        let keys = self.kv_heads(layer).saturating_mul(self.key_length());
        let values = self.kv_heads(layer).saturating_mul(self.value_length());
        let cells = self.cells(layer);
        let kept = self.load.kv_type_k.bytes(keys).saturating_mul(cells);
        if self.is_latent() {
            return kept;
        }
        kept.saturating_add(self.load.kv_type_v.bytes(values).saturating_mul(cells))
    }

    /// Tokens that a layer holds: all, or those that a window and one piece can reach.
    pub(super) fn cells(&self, layer: u64) -> u64 {
        match self.window(layer) {
            Some(window) => {
                window.saturating_add(self.piece).min(self.context).next_multiple_of(CONTEXT_STEP)
            }
            None => self.context,
        }
    }

    /// The window of a layer. One that an architecture's file states and this table does not know is not believed:
    /// what is planned is then more than what is taken.
    pub(super) fn window(&self, layer: u64) -> Option<u64> {
        let size = self.head.number("attention.sliding_window").filter(|&size| size > 0)?;
        let (_, usual) =
            WINDOW_PATTERNS.iter().find(|(architecture, _)| *architecture == self.head.architecture())?;
        if let Some(is_windowed) = self.head.flag_of_layer("attention.sliding_window_pattern", layer) {
            return is_windowed.then_some(size);
        }
        let every = self.head.number("attention.sliding_window_pattern").unwrap_or(*usual);
        (every == 0 || layer % every < every - 1).then_some(size)
    }

    /// Whether keys and values are made from a latent that is kept instead of them.
    pub(super) fn is_latent(&self) -> bool {
        self.head.number("attention.key_length_mla").is_some_and(|n| n > 0)
    }

    pub(super) fn heads(&self, layer: u64) -> u64 {
        self.head.of_layer("attention.head_count", layer).unwrap_or(0)
    }

    fn kv_heads(&self, layer: u64) -> u64 {
        self.head.of_layer("attention.head_count_kv", layer).unwrap_or_else(|| self.heads(layer))
    }

    /// Width of a cached key.
    pub(super) fn key_length(&self) -> u64 {
        self.head.number("attention.key_length").unwrap_or_else(|| self.usual_length())
    }

    /// Width of a cached value.
    pub(super) fn value_length(&self) -> u64 {
        self.head.number("attention.value_length").unwrap_or_else(|| self.usual_length())
    }

    fn usual_length(&self) -> u64 {
        self.head.number("embedding_length").unwrap_or(0) / self.heads(0).max(1)
    }

    /// K·D and K·E of the first layer.
    pub(super) fn kv_widths(&self) -> (u64, u64) {
        let heads = self.kv_heads(0);
        (heads.saturating_mul(self.key_length()), heads.saturating_mul(self.value_length()))
    }
}

/// Sizes of a state-space mixer.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mixer {
    pub inner: u64,
    /// What the convolution runs over.
    pub mixed: u64,
    pub state: u64,
    pub kernel: u64,
    pub heads: u64,
}

impl Mixer {
    /// The mixer of a model whose layers are nothing else.
    pub(super) fn of(head: &Head) -> Option<Self> {
        if head.number("attention.head_count").unwrap_or(1) > 0 {
            return None;
        }
        let size = |key: &str| head.number(key).unwrap_or(0);
        let (inner, state) = (size("ssm.inner_size"), size("ssm.state_size"));
        let shared = size("ssm.group_count").saturating_mul(state).saturating_mul(2);
        let mixed = inner.saturating_add(shared);
        Some(Self { inner, mixed, state, kernel: size("ssm.conv_kernel"), heads: size("ssm.time_step_rank") })
    }

    /// The rows that the convolution still sees, and the states, of one sequence, in f32.
    pub(super) fn state_bytes(&self) -> u64 {
        let window = self.kernel.saturating_sub(1).saturating_mul(self.mixed);
        window.saturating_add(self.inner.saturating_mul(self.state)).saturating_mul(4)
    }

    /// What the input projection makes of a token.
    pub(super) fn projected(&self) -> u64 {
        self.inner.saturating_add(self.mixed).saturating_add(self.heads)
    }
}
