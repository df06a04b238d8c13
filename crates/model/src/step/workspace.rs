//! All memory of a step, in one place: what is drawn and what the plan counts are the same lines of code.

use super::plan::StepPlan;
use super::streams::Streams;
use crate::Result;
use crate::base::{ExpertLens, ExpertRoom};
use crate::config::ModelConfig;
use crate::device::Device;
use crate::family::Role;
use crate::lora::{Group, Layout, LoraOptions, Widths};

/// What a layer's forward leaves for its backward. T rows of the batch, M of them in the MLP's part.
pub(super) struct Activations<B, I> {
    /// Output of the norm before attention (T, C).
    pub attn_in: B,
    /// Projected queries before their norm (T, H·D), in families that have one.
    pub q_raw: Option<B>,
    /// Projected keys before their norm (T, K·D).
    pub k_raw: Option<B>,
    /// Rotated queries (T, H·D).
    pub q: B,
    /// Rotated keys (T, K·D).
    pub k: B,
    /// Values (T, K·E).
    pub v: B,
    /// Output of the attention (T, H·E).
    pub attn: B,
    /// Log-sum-exp of its scores (T, H).
    pub lse: B,
    /// Output of Wo before its norm (T, C), in families that have one.
    pub attn_out: Option<B>,
    /// The stream after attention (T, C).
    pub mid: B,
    /// x·Aᵀ of q, k, v (T, their R added up).
    pub u_qkv: B,
    /// x·Aᵀ of o (T, R).
    pub u_o: B,
    /// Of latent attention, whose x·Aᵀ of q is that of what makes the latent too.
    pub latent: Option<LatentActivations<B>>,
    /// Of the MLP.
    pub mlp: MlpActivations<B, I>,
    /// Of a layer that is a mixer; what attention and MLP have is empty then, but for `attn_in`.
    pub mixer: Option<MixerActivations<B>>,
    /// The layer whose attention, or mixer, these are of.
    pub holds_attention: Option<usize>,
    /// The layer whose MLP these are of; a layer that took more than one tile leaves none.
    pub holds_mlp: Option<usize>,
}

/// What a layer of a device's model leaves for its backward.
pub(super) type Kept<D> = Activations<<D as Device>::Buffer, <D as Device>::Indices>;

/// What latent attention leaves for its backward. Letters as in [`crate::config::Latent`].
pub(super) struct LatentActivations<B> {
    /// The latent before its norm (T, L).
    pub compressed: B,
    /// (T, L)
    pub latent: B,
    /// The rotated part of the keys that all heads share (T, P).
    pub rotated: B,
    /// x·Aᵀ of keys and values (T, R).
    pub u: B,
}

/// Gradients of latent attention's activations.
pub(super) struct LatentDeltas<B> {
    /// (T, L)
    pub latent: B,
    /// (T, L)
    pub compressed: B,
    /// (T, P)
    pub rotated: B,
}

/// What a mixer's forward leaves for its backward. Letters as in [`crate::device::StateSpace`].
pub(super) struct MixerActivations<B> {
    /// (T, I)
    pub gate: B,
    /// What is convolved (T, W).
    pub raw: B,
    /// Steps before their bias (T, H).
    pub steps: B,
    /// x, B, C (T, W)
    pub mixed: B,
    /// Output of the scan (T, I).
    pub out: B,
    /// silu(gate) · out (T, I)
    pub gated: B,
    /// x·Aᵀ of the input projection (T, R).
    pub u: B,
}

/// What all mixers of a step share.
pub(super) struct MixerRoom<B> {
    /// Scratch of the scan's backward; the first numbers are the state in the forward pass.
    pub scratch: B,
    /// Window of the convolution (k - 1, W), which no sequence of a step goes on from.
    pub window: B,
    /// Output of the norm before the output projection (T, I).
    pub normed: B,
}

/// Gradients of a mixer's activations.
pub(super) struct MixerDeltas<B> {
    /// Of the norm's output, then of the scan's (T, I).
    pub inner: B,
    /// (T, I)
    pub gated: B,
    /// (T, I)
    pub gate: B,
    /// (T, W)
    pub mixed: B,
    /// (T, W)
    pub raw: B,
    /// (T, H)
    pub steps: B,
}

/// What the MLP's forward leaves for its backward, for one tile of M tokens.
pub(super) struct MlpActivations<B, I> {
    /// Output of the norm before the MLP (M, C).
    pub mlp_in: B,
    /// (M, F), where the MLP has a gate.
    pub gate: Option<B>,
    /// (M, F)
    pub up: B,
    /// act(gate) · up, or act(up) (M, F).
    pub act: B,
    /// Output of Wdown before its norm (M, C), in families that have one.
    pub out: Option<B>,
    /// x·Aᵀ of gate and up (M, their R added up).
    pub u_gate_up: B,
    /// x·Aᵀ of down (M, R).
    pub u_down: B,
    /// Of routed experts.
    pub experts: Option<ExpertRoom<B, I>>,
    /// M
    pub tile_tokens: usize,
}

/// Gradients of activations.
pub(super) struct Deltas<B> {
    /// Of the residual stream (T, C): goes through all layers in place.
    pub stream: B,
    /// Of a norm's output (T, C), and of what goes into a norm before it joins the stream.
    pub normed: B,
    /// Of the attention's output (T, H·E), then of the queries before their norm (T, H·D).
    pub attn: B,
    /// (T, H·D)
    pub q: B,
    /// (T, K·D)
    pub k: B,
    /// (T, K·E)
    pub v: B,
    /// Of the keys before their norm (T, K·D).
    pub k_raw: Option<B>,
    /// Of x·Aᵀ of any group (T, widest).
    pub u: B,
    /// (M, F)
    pub act: B,
    /// (M, F), where the MLP has a gate.
    pub gate: Option<B>,
    /// (M, F)
    pub up: B,
    /// Of latent attention.
    pub latent: Option<LatentDeltas<B>>,
    /// Of a layer that is a mixer.
    pub mixer: Option<MixerDeltas<B>>,
}

/// Memory of the loss: L target rows by a tile of the vocabulary.
pub(crate) struct LossTiles<B, I> {
    /// Row of each target in the batch (T).
    pub rows: I,
    /// Target ids (T).
    pub targets: I,
    /// The stream at target rows (L, C), then its gradient.
    pub hidden: B,
    /// Output of the last norm (L, C).
    pub normed: B,
    /// Its gradient (L, C).
    pub d_normed: B,
    /// (L, tile of the vocabulary)
    pub logits: B,
    /// Running maximum, sum, and logit of the target (L).
    pub max: B,
    /// See `max`.
    pub sum: B,
    /// See `max`.
    pub target_logit: B,
    /// What sums of earlier tiles shrink by (L).
    pub shrink: B,
    /// L
    pub tile_tokens: usize,
    /// Vocabulary entries of a tile.
    pub tile_vocab: usize,
}

/// All memory of a step.
pub(super) struct Workspace<B, I> {
    pub streams: Streams<B, I>,
    /// Of the kept layers, then, unless all are kept, one that the others share.
    pub activations: Vec<Activations<B, I>>,
    /// Where layers are mixers.
    pub mixer: Option<MixerRoom<B>>,
    pub deltas: Deltas<B>,
    /// A copy of a linear layer's input or output, where dropout or DoRA make one, or of one head's keys of latent
    /// attention; empty otherwise.
    pub copy: B,
    pub loss: LossTiles<B, I>,
    pub tokens: I,
    /// Row of the rotary tables for each token (T).
    pub rotary_rows: I,
    /// Cosines and sines of each rotary table (rows, P/2).
    pub rotary: Vec<(B, B)>,
}

/// Draws or counts memory.
pub(super) trait Allocate {
    type Floats;
    type Indices;

    fn floats(&mut self, room: Room, len: usize) -> Result<Self::Floats>;
    fn indices(&mut self, room: Room, len: usize) -> Result<Self::Indices>;
}

/// A line of the memory table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// The stream before each layer.
    LayerInputs,
    /// Activations of kept layers and of the layer that runs again.
    Activations,
    /// Gradients of activations.
    Deltas,
    /// Tiles of logits.
    Loss,
    /// Ids, positions, rotary tables.
    Positions,
}

impl Room {
    /// All rooms.
    pub const ALL: [Room; 5] =
        [Room::LayerInputs, Room::Activations, Room::Deltas, Room::Loss, Room::Positions];

    /// What the memory table and errors call it.
    pub fn name(self) -> &'static str {
        match self {
            Room::LayerInputs => "layer inputs",
            Room::Activations => "activations",
            Room::Deltas => "gradients of activations",
            Room::Loss => "loss tiles",
            Room::Positions => "ids and rotary tables",
        }
    }
}

/// Widths that all sizes follow from.
#[derive(Clone, Copy)]
struct Sizes<'a> {
    config: &'a ModelConfig,
    widths: Widths,
    plan: &'a StepPlan,
}

impl<B, I> Workspace<B, I> {
    /// Draws (or counts) everything that a plan asks for.
    pub(super) fn build(
        config: &ModelConfig,
        lora: Option<&LoraOptions>,
        plan: &StepPlan,
        allocator: &mut dyn Allocate<Floats = B, Indices = I>,
    ) -> Result<Self> {
        let widths = lora.map(|lora| Layout::new(config, lora).widths(lora)).unwrap_or_default();
        let sizes = Sizes { config, widths, plan };
        let t = plan.max_tokens;
        let kept = plan.kept_layers.min(config.n_layers);
        let mut activations = Vec::with_capacity(kept + 1);
        for index in 0..kept + usize::from(kept < config.n_layers) {
            let tile_tokens = if index < kept { t } else { plan.mlp_tile_tokens };
            activations.push(Activations::build(sizes, tile_tokens, allocator)?);
        }
        let streams = Streams::build(config, plan, allocator)?;
        let mut table = |len| allocator.floats(Room::Positions, len);
        let tables = config.rotary_lens(t).into_iter().map(|len| Ok((table(len)?, table(len)?)));
        let rotary = tables.collect::<Result<_>>()?;
        Ok(Workspace {
            streams,
            activations,
            mixer: MixerRoom::build(sizes, allocator)?,
            deltas: Deltas::build(sizes, allocator)?,
            copy: allocator.floats(Room::Deltas, copy_floats(sizes))?,
            loss: LossTiles::build(sizes, allocator)?,
            tokens: allocator.indices(Room::Positions, t)?,
            rotary_rows: allocator.indices(Room::Positions, t)?,
            rotary,
        })
    }
}

/// The largest copy: of a linear layer of the attention for all rows, or of the MLP for the rows of a tile.
fn copy_floats(sizes: Sizes<'_>) -> usize {
    let Sizes { config, widths, plan } = sizes;
    let mlp_rows = if plan.kept_layers > 0 { plan.max_tokens } else { plan.mlp_tile_tokens };
    let head = config.latent.map_or(0, |_| config.unrotated_dim());
    (plan.max_tokens * widths.attention_copy.max(head)).max(mlp_rows * widths.mlp_copy)
}

impl<B, I> Activations<B, I> {
    fn build(
        sizes: Sizes<'_>,
        tile_tokens: usize,
        allocator: &mut dyn Allocate<Floats = B, Indices = I>,
    ) -> Result<Self> {
        let Sizes { config, widths, plan } = sizes;
        let mixer = MixerActivations::build(sizes, allocator)?;
        let (t, m) = if mixer.is_some() { (0, 0) } else { (plan.max_tokens, tile_tokens) };
        let (c, f, q, kv) = (config.hidden, config.widest_mlp(), config.q_width(), config.kv_width());
        let latent = LatentActivations::build(sizes, allocator)?;
        let experts = build_experts(config, m, plan.mlp_tile_tokens, allocator)?;
        let family = config.family;
        let mut floats = |len| allocator.floats(Room::Activations, len);
        Ok(Activations {
            attn_in: floats(plan.max_tokens * c)?,
            q_raw: family.has(Role::QNorm).then(|| floats(t * q)).transpose()?,
            k_raw: family.has(Role::KNorm).then(|| floats(t * kv)).transpose()?,
            q: floats(t * q)?,
            k: floats(t * kv)?,
            v: floats(t * config.value_width())?,
            attn: floats(t * config.attended_width())?,
            lse: floats(t * config.n_heads)?,
            attn_out: family.has(Role::PostAttnNorm).then(|| floats(t * c)).transpose()?,
            mid: floats(t * c)?,
            u_qkv: floats(t * widths.of(Group::Qkv))?,
            u_o: floats(t * widths.of(Group::O))?,
            mlp: MlpActivations {
                mlp_in: floats(m * c)?,
                gate: config.is_gated().then(|| floats(m * f)).transpose()?,
                up: floats(m * f)?,
                act: floats(m * f)?,
                out: family.has(Role::PostFfnNorm).then(|| floats(m * c)).transpose()?,
                u_gate_up: floats(m * widths.of(Group::GateUp))?,
                u_down: floats(m * widths.of(Group::Down))?,
                experts,
                tile_tokens: m,
            },
            latent,
            mixer,
            holds_attention: None,
            holds_mlp: None,
        })
    }
}

impl<B> LatentActivations<B> {
    fn build<I>(
        sizes: Sizes<'_>,
        allocator: &mut dyn Allocate<Floats = B, Indices = I>,
    ) -> Result<Option<Self>> {
        let (Some(latent), t) = (sizes.config.latent, sizes.plan.max_tokens) else { return Ok(None) };
        let mut floats = |columns| allocator.floats(Room::Activations, t * columns);
        Ok(Some(LatentActivations {
            compressed: floats(latent.rank)?,
            latent: floats(latent.rank)?,
            rotated: floats(sizes.config.rope.dim)?,
            u: floats(sizes.widths.of(Group::KvB))?,
        }))
    }
}

impl<B> LatentDeltas<B> {
    fn build<I>(
        sizes: Sizes<'_>,
        allocator: &mut dyn Allocate<Floats = B, Indices = I>,
    ) -> Result<Option<Self>> {
        let (Some(latent), t) = (sizes.config.latent, sizes.plan.max_tokens) else { return Ok(None) };
        let mut floats = |columns| allocator.floats(Room::Deltas, t * columns);
        Ok(Some(LatentDeltas {
            latent: floats(latent.rank)?,
            compressed: floats(latent.rank)?,
            rotated: floats(sizes.config.rope.dim)?,
        }))
    }
}

/// Room for the routed experts of `n_tokens`, a tile at a time.
fn build_experts<B, I>(
    config: &ModelConfig,
    n_tokens: usize,
    tile_tokens: usize,
    allocator: &mut dyn Allocate<Floats = B, Indices = I>,
) -> Result<Option<ExpertRoom<B, I>>> {
    if config.experts.is_none() {
        return Ok(None);
    }
    let lens = ExpertLens::new(config, n_tokens, tile_tokens);
    let floats = lens.floats.into_iter().map(|len| allocator.floats(Room::Activations, len));
    let floats = floats.collect::<Result<Vec<_>>>()?;
    let indices = lens.indices.into_iter().map(|len| allocator.indices(Room::Activations, len));
    let indices = indices.collect::<Result<Vec<_>>>()?;
    Ok(Some(ExpertRoom::new(config, n_tokens, tile_tokens, floats, indices)))
}

impl<B> MixerActivations<B> {
    fn build<I>(
        sizes: Sizes<'_>,
        allocator: &mut dyn Allocate<Floats = B, Indices = I>,
    ) -> Result<Option<Self>> {
        let (Some(mixer), t) = (sizes.config.mixer, sizes.plan.max_tokens) else { return Ok(None) };
        let mut floats = |columns| allocator.floats(Room::Activations, t * columns);
        Ok(Some(MixerActivations {
            gate: floats(mixer.inner())?,
            raw: floats(mixer.mixed())?,
            steps: floats(mixer.n_heads)?,
            mixed: floats(mixer.mixed())?,
            out: floats(mixer.inner())?,
            gated: floats(mixer.inner())?,
            u: floats(sizes.widths.of(Group::SsmIn))?,
        }))
    }
}

impl<B> MixerRoom<B> {
    fn build<I>(
        sizes: Sizes<'_>,
        allocator: &mut dyn Allocate<Floats = B, Indices = I>,
    ) -> Result<Option<Self>> {
        let (Some(mixer), t) = (sizes.config.mixer, sizes.plan.max_tokens) else { return Ok(None) };
        let mut floats = |len| allocator.floats(Room::Activations, len);
        Ok(Some(MixerRoom {
            scratch: floats(mixer.scratch_len())?,
            window: floats(mixer.window_len())?,
            normed: floats(t * mixer.inner())?,
        }))
    }
}

impl<B> MixerDeltas<B> {
    fn build<I>(
        sizes: Sizes<'_>,
        allocator: &mut dyn Allocate<Floats = B, Indices = I>,
    ) -> Result<Option<Self>> {
        let (Some(mixer), t) = (sizes.config.mixer, sizes.plan.max_tokens) else { return Ok(None) };
        let mut floats = |columns| allocator.floats(Room::Deltas, t * columns);
        Ok(Some(MixerDeltas {
            inner: floats(mixer.inner())?,
            gated: floats(mixer.inner())?,
            gate: floats(mixer.inner())?,
            mixed: floats(mixer.mixed())?,
            raw: floats(mixer.mixed())?,
            steps: floats(mixer.n_heads)?,
        }))
    }
}

impl<B> Deltas<B> {
    fn build<I>(sizes: Sizes<'_>, allocator: &mut dyn Allocate<Floats = B, Indices = I>) -> Result<Self> {
        let Sizes { config, widths, plan } = sizes;
        let (c, t) = (config.hidden, plan.max_tokens);
        let (q, kv, mlp) = (config.q_width(), config.kv_width(), plan.mlp_tile_tokens * config.widest_mlp());
        let latent = LatentDeltas::build(sizes, allocator)?;
        let mixer = MixerDeltas::build(sizes, allocator)?;
        let mut floats = |len| allocator.floats(Room::Deltas, len);
        Ok(Deltas {
            stream: floats(t * c)?,
            normed: floats(t * c)?,
            attn: floats(t * q.max(config.attended_width()))?,
            q: floats(t * q)?,
            k: floats(t * kv)?,
            v: floats(t * config.value_width())?,
            k_raw: config.family.has(Role::KNorm).then(|| floats(t * kv)).transpose()?,
            u: floats(t * widths.widest())?,
            act: floats(mlp)?,
            gate: config.is_gated().then(|| floats(mlp)).transpose()?,
            up: floats(mlp)?,
            latent,
            mixer,
        })
    }
}

impl<B, I> LossTiles<B, I> {
    fn build(sizes: Sizes<'_>, allocator: &mut dyn Allocate<Floats = B, Indices = I>) -> Result<Self> {
        let (c, plan) = (sizes.config.hidden, sizes.plan);
        let (l, v) = (plan.loss_tile_tokens, plan.loss_tile_vocab);
        let (rows, targets) = (
            allocator.indices(Room::Loss, plan.max_tokens)?,
            allocator.indices(Room::Loss, plan.max_tokens)?,
        );
        let mut floats = |len| allocator.floats(Room::Loss, len);
        Ok(LossTiles {
            rows,
            targets,
            hidden: floats(l * c)?,
            normed: floats(l * c)?,
            d_normed: floats(l * c)?,
            logits: floats(l * v)?,
            max: floats(l)?,
            sum: floats(l)?,
            target_logit: floats(l)?,
            shrink: floats(l)?,
            tile_tokens: l,
            tile_vocab: v,
        })
    }
}

/// Adds up instead of drawing.
struct Count([u64; Room::ALL.len()]);

impl Allocate for Count {
    type Floats = ();
    type Indices = ();

    fn floats(&mut self, room: Room, len: usize) -> Result<()> {
        self.0[room as usize] += 4 * len as u64;
        Ok(())
    }

    fn indices(&mut self, room: Room, len: usize) -> Result<()> {
        self.floats(room, len)
    }
}

/// Bytes that [`super::TrainStep::new`] draws, room by room.
///
/// # Errors
/// None today: counting allocates nothing.
pub fn workspace_bytes(
    config: &ModelConfig,
    lora: Option<&LoraOptions>,
    plan: &StepPlan,
) -> Result<[(Room, u64); Room::ALL.len()]> {
    let mut count = Count([0; Room::ALL.len()]);
    Workspace::build(config, lora, plan, &mut count)?;
    Ok(Room::ALL.map(|room| (room, count.0[room as usize])))
}
