//! The CPU side of the op trait: shapes are checked here, those of products in `product_ops`, of experts in
//! `expert_ops`; each group of ops has a file.
//!
//! Ops share work over the rayon pool in which they are called. Work is split at fixed places and no sum crosses a
//! split, so results depend neither on timing nor on which thread did what.

mod activation;
mod adamw;
mod adapter;
mod attention;
mod checks;
mod clock;
mod convolution;
mod expert_ops;
mod experts;
mod few_rows;
mod host;
mod isa;
mod layer_norm;
mod linear;
mod memory;
mod norm;
#[cfg(target_arch = "x86_64")]
mod packed;
mod passing;
pub(crate) mod product;
mod product_ops;
mod products;
mod rope;
mod rows;
mod softmax;
mod spans;
mod state_scan;

pub use clock::Part;
pub use host::{Cpu, best_precision, fixed_bytes};
pub use memory::{HostBlocks, HostBuffer, TILE_FLOATS};
pub use products::ProductKernel;

use std::ops::Range;
use std::sync::Arc;

use formats::BlockType;
use formats::map::Map;

use super::{
    Activation, AdamWUpdate, BlockMatrix, CodedMut, DenseCounter, Device, Heads, Hold, LowRank, Mask, Matrix,
    MatrixMut, Operand, Rotated, Rotation, Routing, RowSquares, ScanWeights, Segment, Span, StateSpace, View,
    ViewMut, Write,
};
use crate::Result;
use crate::arena::Arena;
use checks::{check, check_ids, check_rows, shape};
use memory::{slice, slice_mut};

type Floats<'a> = View<'a, HostBuffer<f32>>;
type FloatsMut<'a> = ViewMut<'a, HostBuffer<f32>>;
type Ids<'a> = View<'a, HostBuffer<u32>>;
type IdsMut<'a> = ViewMut<'a, HostBuffer<u32>>;

impl Device for Cpu {
    type Buffer = HostBuffer<f32>;
    type Indices = HostBuffer<u32>;
    type Weights = HostBlocks;

    fn arena(&self) -> &Arena {
        &self.host().arena
    }

    fn dense(&self) -> &DenseCounter {
        self.host().tile.counter()
    }

    fn alloc(&self, what: &str, len: usize) -> Result<Self::Buffer> {
        HostBuffer::new(&self.host().arena, what, len)
    }

    fn alloc_indices(&self, what: &str, len: usize) -> Result<Self::Indices> {
        HostBuffer::new(&self.host().arena, what, len)
    }

    fn alloc_weights(&self, what: &str, ty: BlockType, rows: usize, cols: usize) -> Result<Self::Weights> {
        if cols > TILE_FLOATS {
            return Err(shape("alloc_weights", "row", cols, TILE_FLOATS));
        }
        HostBlocks::new(&self.host().arena, what, ty, rows, cols)
    }

    fn upload_rows(&self, blocks: &[u8], first_row: usize, to: &mut Self::Weights) -> Result<()> {
        let n_rows = blocks.len() / to.row_bytes();
        check("upload_rows", [("blocks", blocks.len(), n_rows * to.row_bytes())])?;
        let rows = first_row..first_row + n_rows;
        check_rows("upload_rows", &rows, to)?;
        let mapped = shape("upload_rows", "mapped blocks", n_rows, 0);
        to.rows_mut(rows).ok_or(mapped)?.copy_from_slice(blocks);
        Ok(())
    }

    fn map_weights(
        &self,
        what: &str,
        ty: BlockType,
        shape: (usize, usize),
        blocks: (&Arc<Map>, Range<usize>),
        hold: Hold,
    ) -> Result<Self::Weights> {
        passing::map(&self.host().arena, what, ty, shape, blocks, hold)
    }

    fn read_ahead(&self, weights: &[&HostBlocks]) {
        self.host().passing.read_ahead(weights);
    }

    fn release(&self, weights: &[&HostBlocks]) {
        self.host().passing.release(weights);
    }

    fn upload(&self, from: &[f32], to: FloatsMut<'_>) -> Result<()> {
        check("upload", [("from", from.len(), to.len())])?;
        slice_mut(to).copy_from_slice(from);
        Ok(())
    }

    fn upload_indices(&self, from: &[u32], to: ViewMut<'_, Self::Indices>) -> Result<()> {
        check("upload_indices", [("from", from.len(), to.len())])?;
        slice_mut(to).copy_from_slice(from);
        Ok(())
    }

    fn download(&self, from: Floats<'_>, to: &mut [f32]) -> Result<()> {
        check("download", [("to", to.len(), from.len())])?;
        to.copy_from_slice(slice(from));
        Ok(())
    }

    fn download_indices(&self, from: Ids<'_>, to: &mut [u32]) -> Result<()> {
        check("download_indices", [("to", to.len(), from.len())])?;
        to.copy_from_slice(slice(from));
        Ok(())
    }

    fn copy(&self, from: Floats<'_>, to: FloatsMut<'_>) -> Result<()> {
        let _running = self.time(Part::Elementwise, 0);
        check("copy", [("to", to.len(), from.len())])?;
        slice_mut(to).copy_from_slice(slice(from));
        Ok(())
    }

    fn fill(&self, value: f32, to: FloatsMut<'_>) -> Result<()> {
        let _running = self.time(Part::Elementwise, 0);
        slice_mut(to).fill(value);
        Ok(())
    }

    fn round_to_bf16(&self, x: FloatsMut<'_>, to: ViewMut<'_, Self::Indices>) -> Result<()> {
        check("round_to_bf16", [("to", to.len(), x.len().div_ceil(2))])?;
        rows::round_to_bf16(slice_mut(x), slice_mut(to));
        Ok(())
    }

    fn widen_bf16(&self, from: Ids<'_>, x: FloatsMut<'_>) -> Result<()> {
        check("widen_bf16", [("from", from.len(), x.len().div_ceil(2))])?;
        rows::widen_bf16(slice(from), slice_mut(x));
        Ok(())
    }

    fn embed(&self, weights: &Self::Weights, ids: Ids<'_>, out: FloatsMut<'_>) -> Result<()> {
        check("embed", [("out", out.len(), ids.len() * weights.cols())])?;
        check_ids("embed", "token id", slice(ids), weights.rows())?;
        rows::embed(weights, slice(ids), slice_mut(out))
    }

    fn gather_rows(&self, x: Floats<'_>, cols: usize, rows: Ids<'_>, out: FloatsMut<'_>) -> Result<()> {
        let _running = self.time(Part::Elementwise, 0);
        check("gather_rows", [("out", out.len(), rows.len() * cols)])?;
        check_ids("gather_rows", "row", slice(rows), x.len() / cols)?;
        rows::gather(slice(x), cols, slice(rows), slice_mut(out));
        Ok(())
    }

    fn scatter_rows(&self, x: Floats<'_>, cols: usize, rows: Ids<'_>, out: FloatsMut<'_>) -> Result<()> {
        let _running = self.time(Part::Elementwise, 0);
        check("scatter_rows", [("x", x.len(), rows.len() * cols)])?;
        check_ids("scatter_rows", "row", slice(rows), out.len() / cols)?;
        rows::scatter(slice(x), cols, slice(rows), slice_mut(out));
        Ok(())
    }

    fn copy_columns(
        &self,
        x: Matrix<'_, Self::Buffer>,
        write: Write,
        y: MatrixMut<'_, Self::Buffer>,
    ) -> Result<()> {
        let _running = self.time(Part::Elementwise, 0);
        check("copy_columns", [("rows of y", y.rows, x.rows), ("columns of y", y.cols, x.cols)])?;
        rows::copy_columns((slice(x.view), x.stride), write, (slice_mut(y.view), y.stride), x.cols);
        Ok(())
    }

    fn add(&self, x: Floats<'_>, y: FloatsMut<'_>) -> Result<()> {
        let _running = self.time(Part::Elementwise, 0);
        check("add", [("y", y.len(), x.len())])?;
        rows::add(slice(x), slice_mut(y));
        Ok(())
    }

    fn add_row(&self, row: Floats<'_>, y: FloatsMut<'_>) -> Result<()> {
        let _running = self.time(Part::Elementwise, 0);
        let whole = y.len() / row.len() * row.len();
        check("add_row", [("y", y.len(), whole)])?;
        rows::add_row(slice(row), slice_mut(y));
        Ok(())
    }

    fn scale_rows(&self, factors: Floats<'_>, y: FloatsMut<'_>) -> Result<()> {
        let _running = self.time(Part::Elementwise, 0);
        let whole = y.len() / factors.len().max(1) * factors.len();
        check("scale_rows", [("y", y.len(), whole)])?;
        rows::scale_rows(slice(factors), slice_mut(y));
        Ok(())
    }

    fn add_scaled_rows(&self, factors: Floats<'_>, x: Floats<'_>, y: FloatsMut<'_>) -> Result<()> {
        let _running = self.time(Part::Elementwise, 0);
        let whole = y.len() / factors.len().max(1) * factors.len();
        check("add_scaled_rows", [("y", y.len(), whole), ("x", x.len(), y.len())])?;
        rows::add_scaled_rows(slice(factors), slice(x), slice_mut(y));
        Ok(())
    }

    fn scale(&self, factor: f32, y: FloatsMut<'_>) -> Result<()> {
        let _running = self.time(Part::Elementwise, 0);
        rows::scale(factor, slice_mut(y));
        Ok(())
    }

    fn rms_norm(&self, x: Floats<'_>, gain: Floats<'_>, eps: f32, y: FloatsMut<'_>) -> Result<()> {
        let _running = self.time(Part::Elementwise, 0);
        let whole = x.len() / gain.len() * gain.len();
        check("rms_norm", [("x", x.len(), whole), ("y", y.len(), x.len())])?;
        norm::forward(slice(x), slice(gain), eps, slice_mut(y));
        Ok(())
    }

    fn rms_norm_backward(
        &self,
        x: Floats<'_>,
        gain: Floats<'_>,
        eps: f32,
        d_y: Floats<'_>,
        write: Write,
        d_x: FloatsMut<'_>,
    ) -> Result<()> {
        let _running = self.time(Part::Elementwise, 0);
        let whole = x.len() / gain.len() * gain.len();
        let sizes = [("x", x.len(), whole), ("d_y", d_y.len(), x.len()), ("d_x", d_x.len(), x.len())];
        check("rms_norm_backward", sizes)?;
        norm::backward(slice(x), slice(gain), eps, slice(d_y), write, slice_mut(d_x));
        Ok(())
    }

    fn layer_norm(
        &self,
        x: Floats<'_>,
        gain: Floats<'_>,
        bias: Floats<'_>,
        eps: f32,
        y: FloatsMut<'_>,
    ) -> Result<()> {
        let _running = self.time(Part::Elementwise, 0);
        let whole = x.len() / gain.len() * gain.len();
        check(
            "layer_norm",
            [("x", x.len(), whole), ("y", y.len(), x.len()), ("bias", bias.len(), gain.len())],
        )?;
        layer_norm::forward(slice(x), slice(gain), slice(bias), eps, slice_mut(y));
        Ok(())
    }

    fn layer_norm_backward(
        &self,
        x: Floats<'_>,
        gain: Floats<'_>,
        eps: f32,
        d_y: Floats<'_>,
        write: Write,
        d_x: FloatsMut<'_>,
    ) -> Result<()> {
        let _running = self.time(Part::Elementwise, 0);
        let whole = x.len() / gain.len() * gain.len();
        let sizes = [("x", x.len(), whole), ("d_y", d_y.len(), x.len()), ("d_x", d_x.len(), x.len())];
        check("layer_norm_backward", sizes)?;
        layer_norm::backward(slice(x), slice(gain), eps, slice(d_y), write, slice_mut(d_x));
        Ok(())
    }

    fn rope(
        &self,
        x: FloatsMut<'_>,
        rotated: Rotated,
        positions: Ids<'_>,
        cos: Floats<'_>,
        sin: Floats<'_>,
        rotation: Rotation,
    ) -> Result<()> {
        let _running = self.time(Part::Elementwise, 0);
        let Rotated { n_heads, head_dim, first, dim, .. } = rotated;
        let width = n_heads * head_dim;
        check("rope", [("x", x.len(), positions.len() * width), ("sin", sin.len(), cos.len())])?;
        check("rope", [("rotary dimensions", dim, dim.min(head_dim.saturating_sub(first)) / 2 * 2)])?;
        check_ids("rope", "position", slice(positions), cos.len() / (dim / 2))?;
        let sign = match rotation {
            Rotation::Forward => 1.0,
            Rotation::Backward => -1.0,
        };
        let table = rope::Table { cos: slice(cos), sin: slice(sin) };
        rope::rotate(slice_mut(x), rotated, slice(positions), table, sign);
        Ok(())
    }

    fn gated(
        &self,
        activation: Activation,
        gate: Floats<'_>,
        up: Floats<'_>,
        out: FloatsMut<'_>,
    ) -> Result<()> {
        let _running = self.time(Part::Elementwise, 0);
        check("gated", [("up", up.len(), gate.len()), ("out", out.len(), gate.len())])?;
        activation::gated(activation, slice(gate), slice(up), slice_mut(out));
        Ok(())
    }

    fn gated_backward(
        &self,
        activation: Activation,
        gate: Floats<'_>,
        up: Floats<'_>,
        d_out: Floats<'_>,
        d_gate: FloatsMut<'_>,
        d_up: FloatsMut<'_>,
    ) -> Result<()> {
        let _running = self.time(Part::Elementwise, 0);
        let n = gate.len();
        check("gated_backward", [("up", up.len(), n), ("d_out", d_out.len(), n)])?;
        check("gated_backward", [("d_gate", d_gate.len(), n), ("d_up", d_up.len(), n)])?;
        let inputs = activation::Gated { gate: slice(gate), up: slice(up), d_out: slice(d_out) };
        activation::gated_backward(activation, inputs, slice_mut(d_gate), slice_mut(d_up));
        Ok(())
    }

    fn activate(&self, activation: Activation, x: Floats<'_>, out: FloatsMut<'_>) -> Result<()> {
        let _running = self.time(Part::Elementwise, 0);
        check("activate", [("out", out.len(), x.len())])?;
        activation::plain(activation, slice(x), slice_mut(out));
        Ok(())
    }

    fn activate_backward(
        &self,
        activation: Activation,
        x: Floats<'_>,
        d_out: Floats<'_>,
        d_x: FloatsMut<'_>,
    ) -> Result<()> {
        let _running = self.time(Part::Elementwise, 0);
        check("activate_backward", [("d_out", d_out.len(), x.len()), ("d_x", d_x.len(), x.len())])?;
        activation::plain_backward(activation, slice(x), slice(d_out), slice_mut(d_x));
        Ok(())
    }

    fn linear(
        &self,
        x: Floats<'_>,
        weights: &Self::Weights,
        rows: Range<usize>,
        write: Write,
        y: FloatsMut<'_>,
    ) -> Result<()> {
        product_ops::linear(self, x, weights, rows, None, write, y)
    }

    fn linear_backward(
        &self,
        d_y: Floats<'_>,
        weights: &Self::Weights,
        rows: Range<usize>,
        write: Write,
        d_x: FloatsMut<'_>,
    ) -> Result<()> {
        product_ops::linear_backward(self, d_y, weights, rows, None, write, d_x)
    }

    fn linear_with(
        &self,
        x: Floats<'_>,
        weights: &Self::Weights,
        rows: Range<usize>,
        added: LowRank<'_, Self::Buffer>,
        write: Write,
        y: FloatsMut<'_>,
    ) -> Result<()> {
        product_ops::linear(self, x, weights, rows, Some(added), write, y)
    }

    fn linear_backward_with(
        &self,
        d_y: Floats<'_>,
        weights: &Self::Weights,
        rows: Range<usize>,
        added: LowRank<'_, Self::Buffer>,
        write: Write,
        d_x: FloatsMut<'_>,
    ) -> Result<()> {
        product_ops::linear_backward(self, d_y, weights, rows, Some(added), write, d_x)
    }

    fn matmul(
        &self,
        alpha: f32,
        a: Matrix<'_, Self::Buffer>,
        a_as: Operand,
        b: Matrix<'_, Self::Buffer>,
        b_as: Operand,
        write: Write,
        c: MatrixMut<'_, Self::Buffer>,
    ) -> Result<()> {
        product_ops::matmul(self, alpha, (a, a_as), (b, b_as), write, c)
    }

    fn route(
        &self,
        routing: Routing,
        logits: Floats<'_>,
        probabilities: FloatsMut<'_>,
        picks: IdsMut<'_>,
        weights: FloatsMut<'_>,
    ) -> Result<()> {
        expert_ops::route(routing, logits, probabilities, picks, weights)
    }

    fn route_backward(
        &self,
        routing: Routing,
        probabilities: Floats<'_>,
        picks: Ids<'_>,
        d_weights: Floats<'_>,
        write: Write,
        d_logits: FloatsMut<'_>,
    ) -> Result<()> {
        expert_ops::route_backward(routing, probabilities, picks, d_weights, write, d_logits)
    }

    fn group_picks(
        &self,
        routing: Routing,
        picks: Ids<'_>,
        rows: IdsMut<'_>,
        places: IdsMut<'_>,
        counts: &mut [usize],
    ) -> Result<()> {
        expert_ops::group_picks(routing, picks, rows, places, counts)
    }

    fn combine_experts(
        &self,
        routing: Routing,
        x: Floats<'_>,
        places: Ids<'_>,
        weights: Option<Floats<'_>>,
        write: Write,
        y: FloatsMut<'_>,
    ) -> Result<()> {
        expert_ops::combine_experts(routing, x, places, weights, write, y)
    }

    fn combine_experts_backward(
        &self,
        routing: Routing,
        x: FloatsMut<'_>,
        places: Ids<'_>,
        weights: Floats<'_>,
        d_y: Floats<'_>,
        d_weights: FloatsMut<'_>,
    ) -> Result<()> {
        expert_ops::combine_experts_backward(routing, x, places, weights, d_y, d_weights)
    }

    fn attention(
        &self,
        heads: Heads,
        segments: &[Segment],
        q: Floats<'_>,
        k: Floats<'_>,
        v: Floats<'_>,
        out: FloatsMut<'_>,
        lse: FloatsMut<'_>,
    ) -> Result<()> {
        product_ops::attention(self, heads, segments, [q, k, v], out, lse)
    }

    fn attention_backward(
        &self,
        heads: Heads,
        segments: &[Segment],
        q: Floats<'_>,
        k: Floats<'_>,
        v: Floats<'_>,
        out: Floats<'_>,
        lse: Floats<'_>,
        d_out: Floats<'_>,
        d_q: FloatsMut<'_>,
        d_k: FloatsMut<'_>,
        d_v: FloatsMut<'_>,
    ) -> Result<()> {
        product_ops::attention_backward(self, heads, segments, [q, k, v], [out, lse, d_out], [d_q, d_k, d_v])
    }

    fn group_norm(
        &self,
        n_groups: usize,
        x: Floats<'_>,
        gain: Floats<'_>,
        eps: f32,
        y: FloatsMut<'_>,
    ) -> Result<()> {
        let _running = self.time(Part::Elementwise, 0);
        let whole = x.len() / gain.len() * gain.len();
        check("group_norm", [("x", x.len(), whole), ("y", y.len(), x.len())])?;
        check("group_norm", [("groups", gain.len() % n_groups, 0)])?;
        norm::forward_groups(n_groups, slice(x), slice(gain), eps, slice_mut(y));
        Ok(())
    }

    fn group_norm_backward(
        &self,
        n_groups: usize,
        x: Floats<'_>,
        gain: Floats<'_>,
        eps: f32,
        d_y: Floats<'_>,
        d_x: FloatsMut<'_>,
    ) -> Result<()> {
        let _running = self.time(Part::Elementwise, 0);
        let op = "group_norm_backward";
        let whole = x.len() / gain.len() * gain.len();
        check(op, [("x", x.len(), whole), ("d_y", d_y.len(), x.len()), ("d_x", d_x.len(), x.len())])?;
        check(op, [("groups", gain.len() % n_groups, 0)])?;
        norm::backward_groups(n_groups, slice(x), slice(gain), eps, slice(d_y), slice_mut(d_x));
        Ok(())
    }

    fn causal_conv(
        &self,
        mixer: StateSpace,
        spans: &[Span],
        x: Floats<'_>,
        kernel: Floats<'_>,
        bias: Floats<'_>,
        window: FloatsMut<'_>,
        out: FloatsMut<'_>,
    ) -> Result<()> {
        let op = "causal_conv";
        let inputs = convolution::Inputs::new(op, mixer, x, kernel, bias)?;
        check(op, [("out", out.len(), x.len())])?;
        spans::check(op, spans, inputs.n_rows(), window.len() / mixer.window_len())?;
        convolution::forward(inputs, spans, slice_mut(window), slice_mut(out));
        Ok(())
    }

    fn causal_conv_backward(
        &self,
        mixer: StateSpace,
        spans: &[Span],
        x: Floats<'_>,
        kernel: Floats<'_>,
        bias: Floats<'_>,
        d_out: Floats<'_>,
        d_x: FloatsMut<'_>,
    ) -> Result<()> {
        let op = "causal_conv_backward";
        check(op, [("d_out", d_out.len(), x.len()), ("d_x", d_x.len(), x.len())])?;
        let inputs = convolution::Inputs::new(op, mixer, x, kernel, bias)?;
        spans::check_beginnings(op, spans, inputs.n_rows())?;
        convolution::backward(inputs, spans, slice(d_out), slice_mut(d_x));
        Ok(())
    }

    fn state_scan(
        &self,
        mixer: StateSpace,
        spans: &[Span],
        weights: ScanWeights<'_, Self::Buffer>,
        mixed: Floats<'_>,
        steps: Floats<'_>,
        state: FloatsMut<'_>,
        out: FloatsMut<'_>,
    ) -> Result<()> {
        let op = "state_scan";
        let inputs = state_scan::Inputs::new(op, mixer, weights, mixed, steps)?;
        let n = inputs.n_rows();
        check(op, [("out", out.len(), n * mixer.inner())])?;
        spans::check(op, spans, n, state.len() / mixer.state_len())?;
        state_scan::forward(inputs, spans, slice_mut(state), slice_mut(out));
        Ok(())
    }

    fn state_scan_backward(
        &self,
        mixer: StateSpace,
        spans: &[Span],
        weights: ScanWeights<'_, Self::Buffer>,
        mixed: Floats<'_>,
        steps: Floats<'_>,
        out: Floats<'_>,
        d_out: Floats<'_>,
        scratch: FloatsMut<'_>,
        d_mixed: FloatsMut<'_>,
        d_steps: FloatsMut<'_>,
    ) -> Result<()> {
        let op = "state_scan_backward";
        let inputs = state_scan::Inputs::new(op, mixer, weights, mixed, steps)?;
        let n = inputs.n_rows();
        check(op, [("out", out.len(), n * mixer.inner()), ("d_out", d_out.len(), out.len())])?;
        check(op, [("d_mixed", d_mixed.len(), mixed.len()), ("d_steps", d_steps.len(), steps.len())])?;
        check(op, [("scratch", scratch.len(), mixer.scratch_len())])?;
        spans::check_beginnings(op, spans, n)?;
        let outputs = state_scan::Outputs { out: slice(out), d_out: slice(d_out) };
        let (d_mixed, d_steps) = (slice_mut(d_mixed), slice_mut(d_steps));
        state_scan::backward(inputs, spans, outputs, slice_mut(scratch), d_mixed, d_steps);
        Ok(())
    }

    fn softmax_fold(
        &self,
        logits: Floats<'_>,
        first_row: usize,
        targets: Ids<'_>,
        max: FloatsMut<'_>,
        sum: FloatsMut<'_>,
        target_logit: FloatsMut<'_>,
    ) -> Result<()> {
        let _running = self.time(Part::Loss, 0);
        let m = targets.len();
        let whole = logits.len() / m.max(1) * m;
        check("softmax_fold", [("logits", logits.len(), whole), ("max", max.len(), m)])?;
        check("softmax_fold", [("sum", sum.len(), m), ("target_logit", target_logit.len(), m)])?;
        if m > 0 {
            let state = softmax::Fold {
                max: slice_mut(max),
                sum: slice_mut(sum),
                target_logit: slice_mut(target_logit),
            };
            softmax::fold(slice(logits), first_row, slice(targets), state);
        }
        Ok(())
    }

    fn softmax_fold_terms(
        &self,
        logits: FloatsMut<'_>,
        first_row: usize,
        targets: Ids<'_>,
        max: FloatsMut<'_>,
        sum: FloatsMut<'_>,
        target_logit: FloatsMut<'_>,
        shrink: FloatsMut<'_>,
    ) -> Result<()> {
        let _running = self.time(Part::Loss, 0);
        let (m, op) = (targets.len(), "softmax_fold_terms");
        let whole = logits.len() / m.max(1) * m;
        check(op, [("logits", logits.len(), whole), ("max", max.len(), m), ("shrink", shrink.len(), m)])?;
        check(op, [("sum", sum.len(), m), ("target_logit", target_logit.len(), m)])?;
        if m > 0 {
            let state = softmax::Fold {
                max: slice_mut(max),
                sum: slice_mut(sum),
                target_logit: slice_mut(target_logit),
            };
            softmax::fold_terms(slice_mut(logits), first_row, slice(targets), state, slice_mut(shrink));
        }
        Ok(())
    }

    fn dropout(
        &self,
        mask: Mask,
        first_row: usize,
        cols: usize,
        x: Floats<'_>,
        write: Write,
        y: FloatsMut<'_>,
    ) -> Result<()> {
        let _running = self.time(Part::Elementwise, 0);
        check("dropout", [("x", x.len(), x.len() / cols * cols), ("y", y.len(), x.len())])?;
        adapter::dropout(mask, first_row, cols, slice(x), write, slice_mut(y));
        Ok(())
    }

    fn scale_columns(&self, factors: Floats<'_>, y: FloatsMut<'_>) -> Result<()> {
        let _running = self.time(Part::Elementwise, 0);
        check("scale_columns", [("y", y.len(), y.len() / factors.len() * factors.len())])?;
        adapter::scale_columns(slice(factors), slice_mut(y));
        Ok(())
    }

    fn column_dots(&self, a: Floats<'_>, b: Floats<'_>, out: FloatsMut<'_>) -> Result<()> {
        let whole = a.len() / out.len() * out.len();
        check("column_dots", [("a", a.len(), whole), ("b", b.len(), a.len())])?;
        adapter::column_dots(slice(a), slice(b), slice_mut(out));
        Ok(())
    }

    fn row_squares(&self, weights: &Self::Weights, out: FloatsMut<'_>) -> Result<()> {
        check("row_squares", [("out", out.len(), weights.rows())])?;
        adapter::row_squares(&self.host().tile, weights, slice_mut(out))
    }

    fn row_factors(
        &self,
        parts: RowSquares<'_, Self::Buffer>,
        magnitude: Option<Floats<'_>>,
        inverse: FloatsMut<'_>,
        factors: FloatsMut<'_>,
    ) -> Result<()> {
        let (op, rows) = ("row_factors", inverse.len());
        let n = parts.b.len() / rows * rows;
        check(
            op,
            [("base", parts.base.len(), rows), ("factors", factors.len(), rows), ("b", parts.b.len(), n)],
        )?;
        check(op, [("crossed", parts.crossed.len(), n), ("spread", parts.spread.len(), n)])?;
        check(op, [("magnitude", magnitude.map_or(rows, |m| m.len()), rows)])?;
        let RowSquares { base, b, crossed, spread, scale } = parts;
        let parts = adapter::Parts {
            base: slice(base),
            b: slice(b),
            crossed: slice(crossed),
            spread: slice(spread),
            scale,
        };
        let inverse = slice_mut(inverse);
        adapter::inverse_lengths(&parts, inverse);
        if let Some(magnitude) = magnitude {
            let lengths = slice(magnitude).iter().zip(&*inverse);
            slice_mut(factors).iter_mut().zip(lengths).for_each(|(f, (m, inverse))| *f = m * inverse);
        }
        Ok(())
    }

    fn stretched_diagonal_sum(&self, x: Matrix<'_, Self::Buffer>) -> Result<f64> {
        let values = slice(x.view);
        let places = adapter::stretched_diagonal(x.rows, x.cols);
        Ok(places.map(|(i, j)| f64::from(values[i * x.stride + j])).sum())
    }

    fn add_to_stretched_diagonal(&self, value: f32, x: MatrixMut<'_, Self::Buffer>) -> Result<()> {
        let (places, stride) = (adapter::stretched_diagonal(x.rows, x.cols), x.stride);
        let values = slice_mut(x.view);
        places.for_each(|(i, j)| values[i * stride + j] += value);
        Ok(())
    }

    fn sum_of_squares(&self, x: Floats<'_>) -> Result<f64> {
        Ok(adamw::sum_of_squares(slice(x)))
    }

    fn adamw(
        &self,
        update: &AdamWUpdate,
        gradient: Floats<'_>,
        weights: FloatsMut<'_>,
        first_moment: FloatsMut<'_>,
        second_moment: FloatsMut<'_>,
    ) -> Result<()> {
        adamw::update(
            update,
            slice(gradient),
            slice_mut(weights),
            slice_mut(first_moment),
            slice_mut(second_moment),
        )
    }

    fn adamw_coded(
        &self,
        update: &AdamWUpdate,
        seed: u64,
        gradient: Floats<'_>,
        weights: FloatsMut<'_>,
        first_moment: CodedMut<'_, Self::Indices, Self::Buffer>,
        second_moment: CodedMut<'_, Self::Indices, Self::Buffer>,
    ) -> Result<()> {
        let (gradient, weights) = (slice(gradient), slice_mut(weights));
        adamw::update_coded(update, seed, gradient, weights, first_moment, second_moment)
    }
}
