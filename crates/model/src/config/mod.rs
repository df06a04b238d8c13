//! Hyper-parameters of a decoder, read from a Hugging Face `config.json` or from a GGUF's metadata.
//!
//! Letters elsewhere: V `vocab_size`, C `hidden`, F `intermediate`, H `n_heads`, K `n_kv_heads`, D `head_dim`.

mod gguf;
mod hf;
mod latent;
mod rope;

pub use gguf::gguf_metadata;
pub(crate) use gguf::{GgufKeys, GgufValues};
pub use latent::{Latent, LatentHeads};
pub use rope::{LongRope, Rope, RopeScaling, RotaryTable, Yarn};

use std::ops::Range;

use formats::TensorSource;

use crate::device::{Activation, Heads, Pairs, Rotated, Routing, StateSpace};
use crate::family::{Family, Role, TextPart};
use crate::{Error, Result};

/// How a norm centres and scales.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// By the root of the mean square.
    Rms,
    /// By mean and variance, with a bias: LayerNorm.
    Layer,
}

/// Layers in which a query sees only the keys just before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Keys that a query sees, its own included.
    pub size: usize,
    /// Every which layer sees everything nevertheless; `None`: all layers have the window.
    pub full_every: Option<usize>,
}

impl Window {
    /// A window in every layer.
    pub fn in_all_layers(size: usize) -> Self {
        Self { size, full_every: None }
    }
}

/// Where a linear layer's weights lie: all rows of a matrix of its own, or some of a fused one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Projection {
    /// The matrix.
    pub stored: Role,
    /// Its rows.
    pub rows: Range<usize>,
}

/// An MLP of which each token passes a few parts, and some shared ones always.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Experts {
    /// How a token's experts are chosen.
    pub routing: Routing,
    /// Width of a routed expert (F).
    pub width: usize,
    /// Shared experts, which are one MLP of so many times that width.
    pub n_shared: usize,
    /// The first layers, which have a plain MLP instead.
    pub n_dense_layers: usize,
}

/// Hyper-parameters of a decoder.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// What the layers compute and what tensors are called.
    pub family: Family,
    /// Rows of the embedding, which may be more than the tokenizer has tokens (V).
    pub vocab_size: usize,
    /// Width of the residual stream (C).
    pub hidden: usize,
    /// Width of the gated MLP (F); 0 where layers have none.
    pub intermediate: usize,
    /// Decoder layers.
    pub n_layers: usize,
    /// Query heads (H); 0 where layers have no attention.
    pub n_heads: usize,
    /// Key and value heads (K), a divisor of H.
    pub n_kv_heads: usize,
    /// Width of a head (D), not always C / H.
    pub head_dim: usize,
    /// Whether `config.json` states the head width; llama.cpp's converter writes it only then.
    pub head_dim_is_stated: bool,
    /// Which norm stands before each half of a layer and before the head.
    pub norm: NormKind,
    /// Added to the mean square, or the variance, in every norm.
    pub norm_eps: f32,
    /// Rotary positions.
    pub rope: Rope,
    /// Rotary positions of the layers that have a window, where they differ.
    pub local_rope: Option<Rope>,
    /// Layers that do not see everything.
    pub window: Option<Window>,
    /// Factor on every score of the attention.
    pub score_scale: f32,
    /// Factor on the embedding.
    pub embedding_scale: f32,
    /// What stands between the linear layers of the MLP.
    pub activation: Activation,
    /// The state-space mixer that layers are, instead of attention and MLP.
    pub mixer: Option<StateSpace>,
    /// What keys and values are made from, where that is not the layer's input.
    pub latent: Option<Latent>,
    /// Routed experts beside the MLP of most layers.
    pub experts: Option<Experts>,
    /// Where the language model lies in the checkpoint.
    pub text_part: TextPart,
    /// Whether the head is the embedding.
    pub tied: bool,
    /// Longest sequence the model was made for.
    pub max_positions: usize,
}

impl ModelConfig {
    /// What most families share, with no sizes yet: RMS norms, whole heads rotated, everything seen, SwiGLU, untied.
    pub fn plain(family: Family, head_dim: usize) -> ModelConfig {
        ModelConfig {
            family,
            vocab_size: 0,
            hidden: 0,
            intermediate: 0,
            n_layers: 0,
            n_heads: 0,
            n_kv_heads: 0,
            head_dim,
            head_dim_is_stated: false,
            norm: NormKind::Rms,
            norm_eps: 1e-6,
            rope: Rope { theta: 10_000.0, dim: head_dim, scaling: RopeScaling::None },
            local_rope: None,
            window: None,
            score_scale: 1.0 / (head_dim as f32).sqrt(),
            embedding_scale: 1.0,
            activation: Activation::Silu,
            mixer: None,
            latent: None,
            experts: None,
            text_part: TextPart::Whole,
            tied: false,
            max_positions: 0,
        }
    }

    /// The same model, whose tensors are called what this checkpoint calls them.
    pub fn named_as_in(self, checkpoint: &dyn TensorSource) -> ModelConfig {
        ModelConfig { text_part: self.text_part.found_in(checkpoint), ..self }
    }

    /// H·D
    pub fn q_width(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// K·D
    pub fn kv_width(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }

    /// Width of a value (E).
    pub fn value_dim(&self) -> usize {
        self.latent.map_or(self.head_dim, |latent| latent.value_dim)
    }

    /// K·E
    pub fn value_width(&self) -> usize {
        self.n_kv_heads * self.value_dim()
    }

    /// H·E, what the attention gives.
    pub fn attended_width(&self) -> usize {
        self.n_heads * self.value_dim()
    }

    /// Whether a layer's MLP has routed experts beside it.
    pub fn is_routed(&self, layer: usize) -> bool {
        self.experts.is_some_and(|experts| layer >= experts.n_dense_layers)
    }

    /// Width of the MLP that every token of a layer passes: the shared experts' where there are routed ones.
    pub fn mlp_width(&self, layer: usize) -> usize {
        match self.experts {
            Some(experts) if self.is_routed(layer) => experts.n_shared * experts.width,
            _ => self.intermediate,
        }
    }

    /// The widest of these.
    pub fn widest_mlp(&self) -> usize {
        (0..self.n_layers).map(|layer| self.mlp_width(layer)).max().unwrap_or(0)
    }

    /// Rows and columns of a tensor, or of a module of which tensors are parts; a vector has one row.
    pub fn shape(&self, role: Role, layer: Option<usize>) -> (usize, usize) {
        let (c, d, q, kv) = (self.hidden, self.head_dim, self.q_width(), self.kv_width());
        let f = layer.map_or(self.intermediate, |layer| self.mlp_width(layer));
        match role {
            Role::Embedding | Role::Output => (self.vocab_size, c),
            Role::AttnNorm | Role::PostAttnNorm | Role::FfnNorm | Role::PostFfnNorm | Role::OutputNorm => {
                (1, c)
            }
            Role::AttnNormBias | Role::FfnNormBias | Role::OutputNormBias => (1, c),
            Role::QNorm | Role::KNorm => (1, d),
            Role::Q => (q, c),
            Role::K => (kv, c),
            Role::V => (self.value_width(), c),
            Role::Qkv => (q + 2 * kv, c),
            Role::O => (c, self.attended_width()),
            Role::Gate | Role::Up => (f, c),
            Role::GateUp => (2 * f, c),
            Role::Down => (c, f),
            Role::QBias => (1, q),
            Role::KBias | Role::VBias => (1, kv),
            Role::OBias | Role::DownBias => (1, c),
            Role::UpBias => (1, f),
            Role::KvA | Role::KvLatent | Role::KvRotated | Role::KvNorm => self.latent_shape(role),
            Role::KvB | Role::LatentKeys | Role::LatentValues => self.latent_shape(role),
            Role::Router | Role::ExpertGate | Role::ExpertUp | Role::ExpertDown => self.expert_shape(role),
            role => self.mixer_shape(role),
        }
    }

    /// [`ModelConfig::shape`] of what only routed experts have.
    fn expert_shape(&self, role: Role) -> (usize, usize) {
        let Some(experts) = self.experts else { return (0, 0) };
        let x = experts.routing.n_experts;
        match role {
            Role::Router => (x, self.hidden),
            Role::ExpertDown => (x * self.hidden, experts.width),
            _ => (x * experts.width, self.hidden),
        }
    }

    /// [`ModelConfig::shape`] of a tensor that only a mixer has.
    fn mixer_shape(&self, role: Role) -> (usize, usize) {
        let Some(mixer) = self.mixer else { return (0, 0) };
        let (inner, h) = (mixer.inner(), mixer.n_heads);
        match role {
            Role::SsmGate => (inner, self.hidden),
            Role::SsmMixed => (mixer.mixed(), self.hidden),
            Role::SsmStep => (h, self.hidden),
            Role::SsmConv => (mixer.mixed(), mixer.kernel),
            Role::SsmConvBias => (1, mixer.mixed()),
            Role::SsmStepBias => (1, h),
            Role::SsmDecay | Role::SsmSkip => (h, 1),
            Role::SsmNorm => (mixer.n_groups, inner / mixer.n_groups),
            Role::SsmOut => (self.hidden, inner),
            _ => (inner + mixer.mixed() + h, self.hidden),
        }
    }

    /// Where the weights of a linear layer lie, fused or not.
    pub fn projection(&self, layer: usize, role: Role) -> Projection {
        let (q, kv, f) = (self.q_width(), self.kv_width(), self.mlp_width(layer));
        let latent = self.latent.map_or(0, |latent| latent.rank);
        let mixer = self.mixer.unwrap_or_default();
        let (gate, step) = (mixer.inner(), mixer.inner() + mixer.mixed());
        let (stored, rows) = match role {
            Role::Q if self.family.has(Role::Qkv) => (Role::Qkv, 0..q),
            Role::K if self.family.has(Role::Qkv) => (Role::Qkv, q..q + kv),
            Role::V if self.family.has(Role::Qkv) => (Role::Qkv, q + kv..q + 2 * kv),
            Role::Gate if self.family.has(Role::GateUp) => (Role::GateUp, 0..f),
            Role::Up if self.family.has(Role::GateUp) => (Role::GateUp, f..2 * f),
            Role::SsmGate => (Role::SsmIn, 0..gate),
            Role::SsmMixed => (Role::SsmIn, gate..step),
            Role::SsmStep => (Role::SsmIn, step..step + mixer.n_heads),
            Role::KvLatent => (Role::KvA, 0..latent),
            Role::KvRotated => (Role::KvA, latent..latent + self.rope.dim),
            other => (other, 0..self.shape(other, Some(layer)).0),
        };
        Projection { stored, rows }
    }

    /// Whether the MLP multiplies a gate.
    pub fn is_gated(&self) -> bool {
        self.family.has(Role::Gate) || self.family.has(Role::GateUp)
    }

    /// The window of a layer; `None` where it sees everything.
    pub fn window_of(&self, layer_index: usize) -> Option<usize> {
        let window = self.window?;
        let sees_all = window.full_every.is_some_and(|every| (layer_index + 1).is_multiple_of(every));
        (!sees_all).then_some(window.size)
    }

    /// The heads of a layer's attention.
    pub fn heads(&self, layer_index: usize) -> Heads {
        Heads {
            n_heads: self.n_heads,
            n_kv_heads: self.n_kv_heads,
            head_dim: self.head_dim,
            value_dim: self.value_dim(),
            scale: self.score_scale,
            window: self.window_of(layer_index),
        }
    }

    /// The heads of a layer's attention over what decoding keeps: of latent attention one head of keys and values, the
    /// latent itself, to which the queries are brought.
    pub fn cached_heads(&self, layer_index: usize) -> Heads {
        let heads = self.heads(layer_index);
        match self.latent {
            Some(Latent { rank, .. }) => {
                Heads { n_kv_heads: 1, head_dim: rank + self.rope.dim, value_dim: rank, ..heads }
            }
            None => heads,
        }
    }

    /// What turns of `n_heads` heads: the first dimensions of each, or with latent attention the last, adjacent ones
    /// together.
    pub fn rotated(&self, n_heads: usize) -> Rotated {
        let (first, pairs) = match self.latent {
            Some(_) => (self.unrotated_dim(), Pairs::Adjacent),
            None => (0, Pairs::Halves),
        };
        Rotated { n_heads, head_dim: self.head_dim, first, dim: self.rope.dim, pairs }
    }

    /// What turns of the part that all heads' keys share: all of it.
    pub fn rotated_key(&self) -> Rotated {
        Rotated { head_dim: self.rope.dim, first: 0, ..self.rotated(1) }
    }

    /// The rotary tables of sequences of up to `n_positions`: that of most layers, and that of windowed ones where
    /// they have their own.
    pub fn rotary_tables(&self, n_positions: usize) -> Vec<RotaryTable> {
        self.ropes().map(|rope| rope.table(n_positions)).collect()
    }

    /// Floats of the cosines, or sines, of each of the tables.
    pub fn rotary_lens(&self, n_positions: usize) -> Vec<usize> {
        self.ropes().map(|rope| rope.n_rows(n_positions) * rope.dim / 2).collect()
    }

    /// Which of the tables a layer reads.
    pub fn rotary_index(&self, layer_index: usize) -> usize {
        usize::from(self.local_rope.is_some() && self.window_of(layer_index).is_some())
    }

    /// The row of every table at which a sequence of `n_tokens` begins.
    pub fn rotary_start(&self, n_tokens: usize, n_positions: usize) -> usize {
        self.rope.start(n_tokens, n_positions)
    }

    fn ropes(&self) -> impl Iterator<Item = &Rope> {
        std::iter::once(&self.rope).chain(&self.local_rope)
    }

    /// Number of weights, the embedding once where it is tied.
    pub fn n_weights(&self) -> usize {
        crate::family::tensors(self).iter().map(|spec| spec.n_weights()).sum()
    }

    /// Checks what every later size computation relies on: nothing zero, nothing absurd, heads that divide.
    fn validated(self, origin: &str) -> Result<ModelConfig> {
        let invalid = |key: &str, found: String, expected: &str| {
            let (key, expected) = (key.to_owned(), expected.to_owned());
            Err(Error::InvalidConfig { origin: origin.to_owned(), key, found, expected })
        };
        for (key, value, limit) in self.sizes() {
            if value == 0 || value > limit {
                return invalid(key, value.to_string(), &format!("1 to {limit}"));
            }
        }
        if !(self.norm_eps.is_finite() && self.norm_eps > 0.0) {
            return invalid("rms_norm_eps", self.norm_eps.to_string(), "a positive number");
        }
        if let Some(mixer) = &self.mixer {
            if mixer.kernel < 2 {
                let expected = format!("2 to {}", StateSpace::MAX_KERNEL);
                return invalid("conv_kernel", mixer.kernel.to_string(), &expected);
            }
            if !mixer.n_heads.is_multiple_of(mixer.n_groups) {
                let expected = format!("a divisor of num_heads {}", mixer.n_heads);
                return invalid("n_groups", mixer.n_groups.to_string(), &expected);
            }
            return Ok(self);
        }
        if !self.n_heads.is_multiple_of(self.n_kv_heads) {
            let expected = format!("a divisor of num_attention_heads {}", self.n_heads);
            return invalid("num_key_value_heads", self.n_kv_heads.to_string(), &expected);
        }
        if !self.head_dim.is_multiple_of(2) {
            return invalid("head_dim", self.head_dim.to_string(), "an even number");
        }
        let rotated = self.rope.dim;
        if rotated == 0 || rotated > self.head_dim || !rotated.is_multiple_of(2) {
            let expected = format!("an even number of dimensions, 2 to head_dim {}", self.head_dim);
            return invalid("partial_rotary_factor", format!("{rotated} dimensions"), &expected);
        }
        if self.latent.is_some() && rotated == self.head_dim {
            return invalid("qk_nope_head_dim", "0".to_owned(), "a positive number");
        }
        if let Some(experts) = &self.experts
            && experts.routing.n_used > experts.routing.n_experts
        {
            let expected = format!("1 to n_routed_experts {}", experts.routing.n_experts);
            return invalid("num_experts_per_tok", experts.routing.n_used.to_string(), &expected);
        }
        if let Some(experts) = &self.experts
            && !(experts.routing.scale.is_finite() && experts.routing.scale > 0.0)
        {
            return invalid("routed_scaling_factor", experts.routing.scale.to_string(), "a positive number");
        }
        for rope in self.ropes() {
            if !(rope.theta.is_finite() && rope.theta > 0.0) {
                return invalid("rope_theta", rope.theta.to_string(), "a positive number");
            }
        }
        if self.window.is_some_and(|window| window.size == 0 || window.full_every == Some(0)) {
            return invalid("sliding_window", "0".to_owned(), "a positive number");
        }
        Ok(self)
    }

    /// Key, value and limit; the limits keep products of two sizes far from overflow.
    fn sizes(&self) -> Vec<(&'static str, usize, usize)> {
        let mut sizes = vec![
            ("vocab_size", self.vocab_size, 1 << 24),
            ("hidden_size", self.hidden, 1 << 20),
            ("num_hidden_layers", self.n_layers, 1 << 12),
            ("max_position_embeddings", self.max_positions, 1 << 30),
        ];
        match &self.mixer {
            Some(mixer) => sizes.extend([
                ("num_heads", mixer.n_heads, 1 << 12),
                ("head_dim", mixer.head_dim, 1 << 12),
                ("n_groups", mixer.n_groups, 1 << 12),
                ("state_size", mixer.state, 1 << 12),
                ("conv_kernel", mixer.kernel, StateSpace::MAX_KERNEL),
            ]),
            None => sizes.extend([
                ("intermediate_size", self.intermediate, 1 << 22),
                ("num_attention_heads", self.n_heads, 1 << 14),
                ("num_key_value_heads", self.n_kv_heads, 1 << 14),
                ("head_dim", self.head_dim, 1 << 14),
            ]),
        }
        if let Some(latent) = &self.latent {
            sizes.extend([("kv_lora_rank", latent.rank, 1 << 14), ("v_head_dim", latent.value_dim, 1 << 14)]);
        }
        if let Some(experts) = &self.experts {
            sizes.extend([
                ("n_routed_experts", experts.routing.n_experts, 1 << 12),
                ("num_experts_per_tok", experts.routing.n_used, 1 << 12),
                ("moe_intermediate_size", experts.width, 1 << 20),
                ("n_shared_experts", experts.n_shared, 1 << 10),
            ]);
        }
        sizes
    }
}
