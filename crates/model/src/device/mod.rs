//! The op trait: everything a training step asks of a device, each op with its backward beside it.
//!
//! Letters: N tokens of a packed batch (no batch dimension, no padding), C width, H heads, K kv heads, D head width,
//! V vocabulary, R rank. All matrices are row-major f32; all shapes are given as (rows, columns). Ops are synchronous
//! in effect: what one writes the next one reads. An op that accumulates says so through [`Write`].
//!
//! Determinism: on one device with one number of threads an op gives the same bits each time.

pub(crate) mod coded;
pub mod cpu;
mod dense;
mod heads;
mod precision;
mod state_space;
mod view;

pub use coded::{CODED_BLOCK, CODED_WORDS, CodedMut};
pub use dense::{DenseCopy, DenseCounter};
pub use heads::{Heads, Pairs, Rotated, Segment};
pub use precision::Precision;
pub use state_space::{ScanWeights, Span, StateSpace};
pub use view::{Buffer, Matrix, MatrixMut, View, ViewMut};

use std::ops::Range;
use std::sync::Arc;

use formats::BlockType;
use formats::map::Map;

use crate::Result;
use crate::arena::Arena;

/// Whether an op overwrites its output or adds to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// out = result
    Set,
    /// out += result
    Add,
}

/// How a frozen matrix of a mapped file is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hold {
    /// It stays on the device, and is drawn from its arena.
    Staying,
    /// It comes when it is used and goes when it is released; who maps it draws the room that such matrices share.
    Passing,
}

/// Whether [`Device::matmul`] reads an operand as it lies or transposed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operand {
    /// As stored.
    Plain,
    /// Transposed.
    Transposed,
}

/// Which way a rotation turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rotation {
    /// By the angle of the position: the forward pass.
    Forward,
    /// By minus the angle: the backward pass, a rotation's transpose being its inverse.
    Backward,
}

/// What a router chooses from, and what becomes of its probabilities.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Routing {
    /// X, experts to choose from.
    pub n_experts: usize,
    /// k, experts that each token goes to, at most X.
    pub n_used: usize,
    /// Factor on the probabilities of the chosen, which are not normalised anew.
    pub scale: f32,
}

/// What stands between the linear layers of an MLP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// silu(z) = z · sigmoid(z)
    Silu,
    /// gelu(z) ≈ z · (1 + tanh(sqrt(2/π) · (z + 0.044715 z³))) / 2. Source: Hendrycks & Gimpel 2016, arXiv:1606.08415.
    GeluTanh,
}

/// A frozen matrix as ggml blocks, resident on a device.
pub trait BlockMatrix: Send + Sync {
    /// Rows, the output width of the linear layer.
    fn rows(&self) -> usize;
    /// Columns, the input width.
    fn cols(&self) -> usize;
    /// How the blocks are encoded.
    fn block_type(&self) -> BlockType;
    /// Bytes of the blocks.
    fn bytes(&self) -> u64;
}

/// What an adapter adds to a product with frozen weights: scale · u · op(b).
#[derive(Debug, Clone, Copy)]
pub struct LowRank<'a, B> {
    /// (N, R)
    pub u: Matrix<'a, B>,
    /// How it is read says the op: (|rows|, R) transposed in [`Device::linear_with`], (R, C_in) as it lies in
    /// [`Device::linear_backward_with`].
    pub b: Matrix<'a, B>,
    /// Factor on the product.
    pub scale: f32,
}

/// Which elements [`Device::dropout`] keeps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Mask {
    /// p, the probability that an element is dropped.
    pub probability: f32,
    /// What the mask follows from.
    pub seed: u64,
}

/// The parts of |W_j + s·(B·A)_j|² = |W_j|² + Σ_r B_jr · (2 s (A·Wᵀ)_rj + s² (B·A·Aᵀ)_jr).
#[derive(Debug, Clone, Copy)]
pub struct RowSquares<'a, B> {
    /// |W_j|² (C_out)
    pub base: View<'a, B>,
    /// B (C_out, R)
    pub b: View<'a, B>,
    /// A·Wᵀ (R, C_out)
    pub crossed: View<'a, B>,
    /// B·A·Aᵀ (C_out, R)
    pub spread: View<'a, B>,
    /// s
    pub scale: f32,
}

/// Constants of one AdamW update, bias corrections already computed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamWUpdate {
    /// Learning rate of this step.
    pub learning_rate: f32,
    /// β₁
    pub beta1: f32,
    /// β₂
    pub beta2: f32,
    /// ε
    pub epsilon: f32,
    /// λ, decoupled weight decay
    pub weight_decay: f32,
    /// 1 - β₁ᵗ
    pub correction1: f32,
    /// 1 - β₂ᵗ
    pub correction2: f32,
    /// Factor on every gradient: the clip.
    pub gradient_scale: f32,
}

/// A place where tensors live and ops run. Cheap to clone; clones are the same device.
///
/// Every op returns [`crate::Error::Shape`] when its arguments disagree; nothing was written then.
pub trait Device: Clone + Send + Sync + 'static {
    /// f32 memory.
    type Buffer: Buffer;
    /// u32 memory: token ids, positions, row numbers.
    type Indices: Buffer;
    /// A frozen matrix.
    type Weights: BlockMatrix;

    // ---- memory -----------------------------------------------------------------------------------------------

    /// The account that all memory of this device is drawn from.
    fn arena(&self) -> &Arena;

    /// The count of dense copies of base weights, on the device and on the way to it.
    fn dense(&self) -> &DenseCounter;

    /// Allocates `len` zeros, drawn from the arena under the name `what`.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`] past the arena's cap.
    fn alloc(&self, what: &str, len: usize) -> Result<Self::Buffer>;

    /// Allocates `len` zero indices.
    ///
    /// # Errors
    /// As [`Device::alloc`].
    fn alloc_indices(&self, what: &str, len: usize) -> Result<Self::Indices>;

    /// Allocates a frozen matrix whose blocks [`Device::upload_rows`] then fills.
    ///
    /// # Errors
    /// As [`Device::alloc`]; or `cols` is no multiple of the block length.
    fn alloc_weights(&self, what: &str, ty: BlockType, rows: usize, cols: usize) -> Result<Self::Weights>;

    /// Copies the blocks of whole rows, from `first_row` on, to a frozen matrix.
    fn upload_rows(&self, blocks: &[u8], first_row: usize, to: &mut Self::Weights) -> Result<()>;

    /// A frozen matrix of blocks that lie in a mapped file; a device with the host's memory leaves them there.
    ///
    /// # Errors
    /// As [`Device::alloc`]; a range that is not as long as the shape says.
    fn map_weights(
        &self,
        what: &str,
        ty: BlockType,
        shape: (usize, usize),
        blocks: (&Arc<Map>, Range<usize>),
        hold: Hold,
    ) -> Result<Self::Weights>;

    /// Begins to bring matrices that pass, for the ops that come after those of now; returns at once.
    fn read_ahead(&self, weights: &[&Self::Weights]);

    /// Gives back the room of matrices that pass; the next op that reads one brings it again.
    fn release(&self, weights: &[&Self::Weights]);

    /// Copies from the host.
    fn upload(&self, from: &[f32], to: ViewMut<'_, Self::Buffer>) -> Result<()>;

    /// Copies indices from the host.
    fn upload_indices(&self, from: &[u32], to: ViewMut<'_, Self::Indices>) -> Result<()>;

    /// Copies to the host, after everything before it has run.
    fn download(&self, from: View<'_, Self::Buffer>, to: &mut [f32]) -> Result<()>;

    /// Copies indices to the host, after everything before it has run.
    fn download_indices(&self, from: View<'_, Self::Indices>, to: &mut [u32]) -> Result<()>;

    /// to = from
    fn copy(&self, from: View<'_, Self::Buffer>, to: ViewMut<'_, Self::Buffer>) -> Result<()>;

    /// to = value
    fn fill(&self, value: f32, to: ViewMut<'_, Self::Buffer>) -> Result<()>;

    /// x = x rounded to bf16, to nearest even, and to = the same, two values a word      x (N), to (N / 2, rounded up)
    fn round_to_bf16(&self, x: ViewMut<'_, Self::Buffer>, to: ViewMut<'_, Self::Indices>) -> Result<()>;

    /// x = what [`Device::round_to_bf16`] left in `from`
    fn widen_bf16(&self, from: View<'_, Self::Indices>, x: ViewMut<'_, Self::Buffer>) -> Result<()>;

    // ---- rows -------------------------------------------------------------------------------------------------

    /// out_i = W[ids_i]      ids (N), W (V, C), out (N, C). The embedding is frozen, so there is no backward.
    fn embed(
        &self,
        weights: &Self::Weights,
        ids: View<'_, Self::Indices>,
        out: ViewMut<'_, Self::Buffer>,
    ) -> Result<()>;

    /// out_i = x[rows_i]     x (·, cols), rows (M), out (M, cols)
    fn gather_rows(
        &self,
        x: View<'_, Self::Buffer>,
        cols: usize,
        rows: View<'_, Self::Indices>,
        out: ViewMut<'_, Self::Buffer>,
    ) -> Result<()>;

    /// out[rows_i] = x_i     x (M, cols), rows (M, all different), out (·, cols): backward of [`Device::gather_rows`].
    fn scatter_rows(
        &self,
        x: View<'_, Self::Buffer>,
        cols: usize,
        rows: View<'_, Self::Indices>,
        out: ViewMut<'_, Self::Buffer>,
    ) -> Result<()>;

    /// y (=|+=) x, columns of rows that may be longer      x, y (N, C)
    fn copy_columns(
        &self,
        x: Matrix<'_, Self::Buffer>,
        write: Write,
        y: MatrixMut<'_, Self::Buffer>,
    ) -> Result<()>;

    /// y += x, elementwise; its backward is the identity on both.
    fn add(&self, x: View<'_, Self::Buffer>, y: ViewMut<'_, Self::Buffer>) -> Result<()>;

    /// y_i += row      row (C), y (N, C): a frozen bias, whose backward is the identity.
    fn add_row(&self, row: View<'_, Self::Buffer>, y: ViewMut<'_, Self::Buffer>) -> Result<()>;

    /// y_i = factors_i · y_i      factors (M), y (M, C)
    fn scale_rows(&self, factors: View<'_, Self::Buffer>, y: ViewMut<'_, Self::Buffer>) -> Result<()>;

    /// y_i += factors_i · x_i      factors (M), x, y (M, C)
    fn add_scaled_rows(
        &self,
        factors: View<'_, Self::Buffer>,
        x: View<'_, Self::Buffer>,
        y: ViewMut<'_, Self::Buffer>,
    ) -> Result<()>;

    /// y = factor · y
    fn scale(&self, factor: f32, y: ViewMut<'_, Self::Buffer>) -> Result<()>;

    // ---- norm, rope, gated MLP ----------------------------------------------------------------------------------

    /// y = x · r · g, r = 1 / sqrt(mean(x²) + eps) of each row      x, y (M, C), g (C)
    ///
    /// M is N for a layer norm, N·H for the norm of each query head (the rows of an (N, H·D) matrix being (N·H, D)).
    /// Source: Zhang & Sennrich 2019, arXiv:1910.07467.
    fn rms_norm(
        &self,
        x: View<'_, Self::Buffer>,
        gain: View<'_, Self::Buffer>,
        eps: f32,
        y: ViewMut<'_, Self::Buffer>,
    ) -> Result<()>;

    /// dx (=|+=) r · (g·dy - x · r² · mean(g·dy·x)), r recomputed from x. The gain is frozen: no gradient for it.
    fn rms_norm_backward(
        &self,
        x: View<'_, Self::Buffer>,
        gain: View<'_, Self::Buffer>,
        eps: f32,
        d_y: View<'_, Self::Buffer>,
        write: Write,
        d_x: ViewMut<'_, Self::Buffer>,
    ) -> Result<()>;

    /// y = (x - mean(x)) · r · g + b, r = 1 / sqrt(var(x) + eps) of each row      x, y (N, C), g, b (C)
    ///
    /// Source: Ba et al. 2016, arXiv:1607.06450.
    fn layer_norm(
        &self,
        x: View<'_, Self::Buffer>,
        gain: View<'_, Self::Buffer>,
        bias: View<'_, Self::Buffer>,
        eps: f32,
        y: ViewMut<'_, Self::Buffer>,
    ) -> Result<()>;

    /// dx (=|+=) r · (z - mean(z) - n · mean(z·n)), z = g·dy, n = (x - mean(x)) · r, recomputed from x.
    fn layer_norm_backward(
        &self,
        x: View<'_, Self::Buffer>,
        gain: View<'_, Self::Buffer>,
        eps: f32,
        d_y: View<'_, Self::Buffer>,
        write: Write,
        d_x: ViewMut<'_, Self::Buffer>,
    ) -> Result<()>;

    /// Rotates, in place, pair i of the P dimensions of each head that turn by ±position · frequency_i; the others stay.
    ///
    /// x (N, n_heads·D), positions (N), cos and sin (positions, P/2). The caller computes the tables, any frequency
    /// scaling included. Source: Su et al. 2021, arXiv:2104.09864.
    fn rope(
        &self,
        x: ViewMut<'_, Self::Buffer>,
        rotated: Rotated,
        positions: View<'_, Self::Indices>,
        cos: View<'_, Self::Buffer>,
        sin: View<'_, Self::Buffer>,
        rotation: Rotation,
    ) -> Result<()>;

    /// out = act(gate) · up, elementwise: the gated MLP's product
    ///
    /// Source: Shazeer 2020, arXiv:2002.05202 (SwiGLU, GEGLU).
    fn gated(
        &self,
        activation: Activation,
        gate: View<'_, Self::Buffer>,
        up: View<'_, Self::Buffer>,
        out: ViewMut<'_, Self::Buffer>,
    ) -> Result<()>;

    /// d_gate = d_out · up · act'(gate), d_up = d_out · act(gate)
    fn gated_backward(
        &self,
        activation: Activation,
        gate: View<'_, Self::Buffer>,
        up: View<'_, Self::Buffer>,
        d_out: View<'_, Self::Buffer>,
        d_gate: ViewMut<'_, Self::Buffer>,
        d_up: ViewMut<'_, Self::Buffer>,
    ) -> Result<()>;

    /// out = act(x), elementwise: an MLP without a gate
    fn activate(
        &self,
        activation: Activation,
        x: View<'_, Self::Buffer>,
        out: ViewMut<'_, Self::Buffer>,
    ) -> Result<()>;

    /// d_x = d_out · act'(x)
    fn activate_backward(
        &self,
        activation: Activation,
        x: View<'_, Self::Buffer>,
        d_out: View<'_, Self::Buffer>,
        d_x: ViewMut<'_, Self::Buffer>,
    ) -> Result<()>;

    // ---- experts ------------------------------------------------------------------------------------------------

    /// Chooses the k likeliest of X experts for each token; of equal ones the first.
    ///
    /// p = softmax(logits), weights_j = scale · p[picks_j], p falling with j
    ///
    /// logits, p (N, X), picks, weights (N, k). Source: DeepSeek-AI 2024, arXiv:2405.04434, section 2.2.
    fn route(
        &self,
        routing: Routing,
        logits: View<'_, Self::Buffer>,
        probabilities: ViewMut<'_, Self::Buffer>,
        picks: ViewMut<'_, Self::Indices>,
        weights: ViewMut<'_, Self::Buffer>,
    ) -> Result<()>;

    /// d_logits (=|+=) p · (g - Σ g·p), g = scale · d_weights at the picks and 0 elsewhere: the choice has no gradient.
    fn route_backward(
        &self,
        routing: Routing,
        probabilities: View<'_, Self::Buffer>,
        picks: View<'_, Self::Indices>,
        d_weights: View<'_, Self::Buffer>,
        write: Write,
        d_logits: ViewMut<'_, Self::Buffer>,
    ) -> Result<()>;

    /// Sorts the picks (N, k) by expert, those of an expert by token.
    ///
    /// rows (N·k): the token of each place, for [`Device::gather_rows`]; places (N, k): where each pick went; counts
    /// (X), on the host: how many places each expert has, expert after expert.
    fn group_picks(
        &self,
        routing: Routing,
        picks: View<'_, Self::Indices>,
        rows: ViewMut<'_, Self::Indices>,
        places: ViewMut<'_, Self::Indices>,
        counts: &mut [usize],
    ) -> Result<()>;

    /// y_t (=|+=) Σ_j w_tj · x[places_tj], in the order of j      x (N·k, C), places, w (N, k), y (N, C)
    ///
    /// Without weights all are 1: the backward of gathering the rows of [`Device::group_picks`].
    #[allow(clippy::too_many_arguments)]
    fn combine_experts(
        &self,
        routing: Routing,
        x: View<'_, Self::Buffer>,
        places: View<'_, Self::Indices>,
        weights: Option<View<'_, Self::Buffer>>,
        write: Write,
        y: ViewMut<'_, Self::Buffer>,
    ) -> Result<()>;

    /// d_w_tj = Σ d_y_t · x[places_tj]; then x, which nothing needs any more, becomes its own gradient w_tj · d_y_t.
    #[allow(clippy::too_many_arguments)]
    fn combine_experts_backward(
        &self,
        routing: Routing,
        x: ViewMut<'_, Self::Buffer>,
        places: View<'_, Self::Indices>,
        weights: View<'_, Self::Buffer>,
        d_y: View<'_, Self::Buffer>,
        d_weights: ViewMut<'_, Self::Buffer>,
    ) -> Result<()>;

    // ---- products -----------------------------------------------------------------------------------------------

    /// y (=|+=) x · W[rows]ᵀ      x (N, C_in), W (C_out, C_in) frozen, y (N, |rows|)
    ///
    /// `rows` is all of W for a layer, a tile of the vocabulary for the loss.
    fn linear(
        &self,
        x: View<'_, Self::Buffer>,
        weights: &Self::Weights,
        rows: Range<usize>,
        write: Write,
        y: ViewMut<'_, Self::Buffer>,
    ) -> Result<()>;

    /// dx (=|+=) dy · W[rows]      dy (N, |rows|), dx (N, C_in): backward of [`Device::linear`]; W gets no gradient.
    fn linear_backward(
        &self,
        d_y: View<'_, Self::Buffer>,
        weights: &Self::Weights,
        rows: Range<usize>,
        write: Write,
        d_x: ViewMut<'_, Self::Buffer>,
    ) -> Result<()>;

    /// y (=|+=) x · W[rows]ᵀ + s · u · bᵀ      as [`Device::linear`], in one pass over y where a device can
    fn linear_with(
        &self,
        x: View<'_, Self::Buffer>,
        weights: &Self::Weights,
        rows: Range<usize>,
        added: LowRank<'_, Self::Buffer>,
        write: Write,
        mut y: ViewMut<'_, Self::Buffer>,
    ) -> Result<()> {
        let (n, width) = (added.u.rows, rows.len());
        self.linear(x, weights, rows, write, y.reborrow())?;
        let LowRank { u, b, scale } = added;
        self.matmul(scale, u, Operand::Plain, b, Operand::Transposed, Write::Add, y.matrix(n, width))
    }

    /// dx (=|+=) dy · W[rows] + s · u · b      as [`Device::linear_backward`], in one pass over dx where a device can
    fn linear_backward_with(
        &self,
        d_y: View<'_, Self::Buffer>,
        weights: &Self::Weights,
        rows: Range<usize>,
        added: LowRank<'_, Self::Buffer>,
        write: Write,
        mut d_x: ViewMut<'_, Self::Buffer>,
    ) -> Result<()> {
        let (n, cols) = (added.u.rows, weights.cols());
        self.linear_backward(d_y, weights, rows, write, d_x.reborrow())?;
        let LowRank { u, b, scale } = added;
        self.matmul(scale, u, Operand::Plain, b, Operand::Plain, Write::Add, d_x.matrix(n, cols))
    }

    /// C (=|+=) alpha · op(A) · op(B), for the low-rank factors; their backward is two more of the same.
    #[allow(clippy::too_many_arguments)]
    fn matmul(
        &self,
        alpha: f32,
        a: Matrix<'_, Self::Buffer>,
        a_as: Operand,
        b: Matrix<'_, Self::Buffer>,
        b_as: Operand,
        write: Write,
        c: MatrixMut<'_, Self::Buffer>,
    ) -> Result<()>;

    // ---- attention ----------------------------------------------------------------------------------------------

    /// out = softmax(scale · q · kᵀ, causal within each segment) · v, and lse = log Σ exp of each row of scores
    ///
    /// A query sees the keys up to its own, with a window the last `window` of these. q (N, H·D), k (·, K·D), v (·, K·E), out (N, H·E), lse (N, H).
    /// Blockwise with a running maximum: never a T x T matrix.
    /// Segments do not see one another. Source: Dao et al. 2022, arXiv:2205.14135.
    #[allow(clippy::too_many_arguments)]
    fn attention(
        &self,
        heads: Heads,
        segments: &[Segment],
        q: View<'_, Self::Buffer>,
        k: View<'_, Self::Buffer>,
        v: View<'_, Self::Buffer>,
        out: ViewMut<'_, Self::Buffer>,
        lse: ViewMut<'_, Self::Buffer>,
    ) -> Result<()>;

    /// Gradients of [`Device::attention`]; writes (does not add to) the rows that the segments name.
    ///
    /// P = exp(scale·q·kᵀ - lse), δ = Σ d_out·out, dP = d_out·vᵀ, dS = scale·P·(dP - δ):
    /// d_v = Pᵀ·d_out, d_q = dS·k, d_k = dSᵀ·q, summed over the query heads of a kv head.
    #[allow(clippy::too_many_arguments)]
    fn attention_backward(
        &self,
        heads: Heads,
        segments: &[Segment],
        q: View<'_, Self::Buffer>,
        k: View<'_, Self::Buffer>,
        v: View<'_, Self::Buffer>,
        out: View<'_, Self::Buffer>,
        lse: View<'_, Self::Buffer>,
        d_out: View<'_, Self::Buffer>,
        d_q: ViewMut<'_, Self::Buffer>,
        d_k: ViewMut<'_, Self::Buffer>,
        d_v: ViewMut<'_, Self::Buffer>,
    ) -> Result<()>;

    // ---- state-space mixers -------------------------------------------------------------------------------------

    /// y = x · r · g, r = 1 / sqrt(mean(x²) + eps) of each of a row's groups      x, y (N, I), g (I), groups of |I| / G
    fn group_norm(
        &self,
        n_groups: usize,
        x: View<'_, Self::Buffer>,
        gain: View<'_, Self::Buffer>,
        eps: f32,
        y: ViewMut<'_, Self::Buffer>,
    ) -> Result<()>;

    /// dx = r · (g·dy - x · r² · mean(g·dy·x)), group by group, r recomputed from x.
    fn group_norm_backward(
        &self,
        n_groups: usize,
        x: View<'_, Self::Buffer>,
        gain: View<'_, Self::Buffer>,
        eps: f32,
        d_y: View<'_, Self::Buffer>,
        d_x: ViewMut<'_, Self::Buffer>,
    ) -> Result<()>;

    /// out_t = silu(bias + Σ_j kernel_j · x_(t - k + 1 + j)), column by column      x, out (N, W), kernel (W, k), bias (W)
    ///
    /// Before a span's first row stand the rows of its window, zeros where it begins; window (places, k - 1, W) holds
    /// its last k - 1 rows afterwards.
    #[allow(clippy::too_many_arguments)]
    fn causal_conv(
        &self,
        mixer: StateSpace,
        spans: &[Span],
        x: View<'_, Self::Buffer>,
        kernel: View<'_, Self::Buffer>,
        bias: View<'_, Self::Buffer>,
        window: ViewMut<'_, Self::Buffer>,
        out: ViewMut<'_, Self::Buffer>,
    ) -> Result<()>;

    /// d_x of [`Device::causal_conv`] for spans that begin; writes the rows that they name. The kernel is frozen.
    #[allow(clippy::too_many_arguments)]
    fn causal_conv_backward(
        &self,
        mixer: StateSpace,
        spans: &[Span],
        x: View<'_, Self::Buffer>,
        kernel: View<'_, Self::Buffer>,
        bias: View<'_, Self::Buffer>,
        d_out: View<'_, Self::Buffer>,
        d_x: ViewMut<'_, Self::Buffer>,
    ) -> Result<()>;

    /// The selective scan: state_t = exp(δ·A) · state_(t-1) + δ · x_t ⊗ B_t, out_t = state_t · C_t + D · x_t
    ///
    /// δ = softplus(step + step_bias). mixed (N, W) holds x (N, H, P), B (N, G, S) and C (N, G, S) side by side;
    /// steps (N, H), out (N, I), state (places, H, P, S), which goes on from what it holds unless a span begins.
    /// Source: Dao & Gu 2024, arXiv:2405.21060.
    #[allow(clippy::too_many_arguments)]
    fn state_scan(
        &self,
        mixer: StateSpace,
        spans: &[Span],
        weights: ScanWeights<'_, Self::Buffer>,
        mixed: View<'_, Self::Buffer>,
        steps: View<'_, Self::Buffer>,
        state: ViewMut<'_, Self::Buffer>,
        out: ViewMut<'_, Self::Buffer>,
    ) -> Result<()>;

    /// Gradients of [`Device::state_scan`] for spans that begin; writes the rows that they name. A and D are frozen.
    ///
    /// `scratch` has [`StateSpace::scratch_len`] numbers.
    #[allow(clippy::too_many_arguments)]
    fn state_scan_backward(
        &self,
        mixer: StateSpace,
        spans: &[Span],
        weights: ScanWeights<'_, Self::Buffer>,
        mixed: View<'_, Self::Buffer>,
        steps: View<'_, Self::Buffer>,
        out: View<'_, Self::Buffer>,
        d_out: View<'_, Self::Buffer>,
        scratch: ViewMut<'_, Self::Buffer>,
        d_mixed: ViewMut<'_, Self::Buffer>,
        d_steps: ViewMut<'_, Self::Buffer>,
    ) -> Result<()>;

    // ---- loss ---------------------------------------------------------------------------------------------------

    /// Folds a tile of logits into a running softmax.
    ///
    /// logits (M, Vt) of the vocabulary rows from `first_row` on; max, sum, target_logit (M), which start as -inf, 0, 0.
    /// m' = max(m, logits), s' = s·exp(m - m') + Σ exp(logits - m'); target_logit is set where the tile holds the target.
    /// Afterwards the negative log-likelihood is m + ln s - target_logit.
    #[allow(clippy::too_many_arguments)]
    fn softmax_fold(
        &self,
        logits: View<'_, Self::Buffer>,
        first_row: usize,
        targets: View<'_, Self::Indices>,
        max: ViewMut<'_, Self::Buffer>,
        sum: ViewMut<'_, Self::Buffer>,
        target_logit: ViewMut<'_, Self::Buffer>,
    ) -> Result<()>;

    /// As [`Device::softmax_fold`], and leaves exp(logits - m') in place of the logits, 0 where the target is.
    ///
    /// shrink (M) = exp(m - m'): what sums of earlier tiles' terms are to be multiplied by. With Σ of exp(logits - m')·W
    /// over all tiles the gradient of the hidden state is Σ / s + (p - 1) · W of the target, p its probability: the
    /// logits are needed once.
    #[allow(clippy::too_many_arguments)]
    fn softmax_fold_terms(
        &self,
        logits: ViewMut<'_, Self::Buffer>,
        first_row: usize,
        targets: View<'_, Self::Indices>,
        max: ViewMut<'_, Self::Buffer>,
        sum: ViewMut<'_, Self::Buffer>,
        target_logit: ViewMut<'_, Self::Buffer>,
        shrink: ViewMut<'_, Self::Buffer>,
    ) -> Result<()>;

    // ---- adapters -----------------------------------------------------------------------------------------------

    /// y (=|+=) x ⊙ mask / (1 - p), the mask a function of `seed` and an element's place      x, y (N, C)
    ///
    /// Row i of x is row `first_row` + i of the batch. Its own backward. See [`crate::lora::Dropout`].
    #[allow(clippy::too_many_arguments)]
    fn dropout(
        &self,
        mask: Mask,
        first_row: usize,
        cols: usize,
        x: View<'_, Self::Buffer>,
        write: Write,
        y: ViewMut<'_, Self::Buffer>,
    ) -> Result<()>;

    /// y_ij *= factors_j      y (N, C), factors (C); its backward for y is the same.
    fn scale_columns(&self, factors: View<'_, Self::Buffer>, y: ViewMut<'_, Self::Buffer>) -> Result<()>;

    /// out_j += Σ_i a_ij · b_ij      a, b (N, C), out (C)
    fn column_dots(
        &self,
        a: View<'_, Self::Buffer>,
        b: View<'_, Self::Buffer>,
        out: ViewMut<'_, Self::Buffer>,
    ) -> Result<()>;

    /// out_j = |W_j|²      out (C_out)
    fn row_squares(&self, weights: &Self::Weights, out: ViewMut<'_, Self::Buffer>) -> Result<()>;

    /// inverse_j = 1 / |W_j + s·(B·A)_j|, factors_j = m_j · inverse_j      m, inverse, factors (C_out)
    ///
    /// A row of zeros has no direction: its inverse is 0. Without m the factors are left alone. See [`RowSquares`].
    fn row_factors(
        &self,
        parts: RowSquares<'_, Self::Buffer>,
        magnitude: Option<View<'_, Self::Buffer>>,
        inverse: ViewMut<'_, Self::Buffer>,
        factors: ViewMut<'_, Self::Buffer>,
    ) -> Result<()>;

    /// Σ x along the stretched diagonal of an (M, N) matrix, in f64 in a fixed order
    ///
    /// Its elements are (j·M/N, j) of a wide matrix, (i, i·N/M) of a tall one, rounded down.
    fn stretched_diagonal_sum(&self, x: Matrix<'_, Self::Buffer>) -> Result<f64>;

    /// x += value along the stretched diagonal
    fn add_to_stretched_diagonal(&self, value: f32, x: MatrixMut<'_, Self::Buffer>) -> Result<()>;

    // ---- optimiser ----------------------------------------------------------------------------------------------

    /// Σ x², accumulated in f64 in a fixed order.
    fn sum_of_squares(&self, x: View<'_, Self::Buffer>) -> Result<f64>;

    /// One AdamW update, with g = gradient_scale · gradient:
    ///
    /// m = β₁·m + (1-β₁)·g, v = β₂·v + (1-β₂)·g², w = w·(1 - lr·λ) - lr · (m/c₁) / (sqrt(v/c₂) + ε)
    ///
    /// Source: Loshchilov & Hutter 2017, arXiv:1711.05101.
    fn adamw(
        &self,
        update: &AdamWUpdate,
        gradient: View<'_, Self::Buffer>,
        weights: ViewMut<'_, Self::Buffer>,
        first_moment: ViewMut<'_, Self::Buffer>,
        second_moment: ViewMut<'_, Self::Buffer>,
    ) -> Result<()>;

    /// The same with both moments in eight bits, in as many blocks as the gradient fills; the update is made with what
    /// they are before they are rounded. Rounding follows from `seed` and the places of the blocks in their buffers.
    ///
    /// Source: Dettmers et al. 2021, arXiv:2110.02861, with the levels and the rounding of [`CodedMut`]'s module.
    fn adamw_coded(
        &self,
        update: &AdamWUpdate,
        seed: u64,
        gradient: View<'_, Self::Buffer>,
        weights: ViewMut<'_, Self::Buffer>,
        first_moment: CodedMut<'_, Self::Indices, Self::Buffer>,
        second_moment: CodedMut<'_, Self::Indices, Self::Buffer>,
    ) -> Result<()>;
}
