//! Products and attention with their shapes checked: made of packed operands where the device has a kernel for that, and by
//! the dense tile and the `gemm` crate elsewhere.

use std::ops::Range;

use super::checks::{Written, attention_rows, check, check_rows, check_segments};
use super::memory::{HostBlocks, HostBuffer, slice, slice_mut};
#[cfg(target_arch = "x86_64")]
use super::packed;
use super::product::{Mat, MatMut, Threads, multiply};
use super::{Cpu, Floats, FloatsMut, Part, attention as blockwise, linear as dense_tile};
use crate::Result;
use crate::device::{BlockMatrix, Heads, LowRank, Matrix, MatrixMut, Operand, Segment, Write};

type Added<'a> = Option<LowRank<'a, HostBuffer<f32>>>;

/// y (=|+=) x · W[rows]ᵀ + s · u · bᵀ
pub(super) fn linear(
    cpu: &Cpu,
    x: Floats<'_>,
    weights: &HostBlocks,
    rows: Range<usize>,
    added: Added<'_>,
    write: Write,
    mut y: FloatsMut<'_>,
) -> Result<()> {
    let (op, cols, width) = ("linear", weights.cols(), rows.len());
    check_rows(op, &rows, weights)?;
    let n = x.len() / cols;
    check(op, [("x", x.len(), n * cols), ("y", y.len(), n * width)])?;
    let rank = check_added(op, &added, n, |b| (b.rows, b.cols), width)?;
    let _running = cpu.time(Part::Linear, 2 * n * width * (cols + rank));
    #[cfg(target_arch = "x86_64")]
    if let Some(panels) = cpu.panels(n, cols, weights).filter(|_| packed::has_room(rank)) {
        let added = added.map(further_terms);
        let product = packed::Product { counter: cpu.host().tile.counter(), weights, rows, added, write };
        return packed::forward(panels, product, slice(x), slice_mut(y));
    }
    dense_tile::forward(&cpu.host().tile, slice(x), weights, rows, write, slice_mut(y.reborrow()))?;
    add(added, Operand::Transposed, y.matrix(n, width))
}

/// dx (=|+=) dy · W[rows] + s · u · b
pub(super) fn linear_backward(
    cpu: &Cpu,
    d_y: Floats<'_>,
    weights: &HostBlocks,
    rows: Range<usize>,
    added: Added<'_>,
    write: Write,
    mut d_x: FloatsMut<'_>,
) -> Result<()> {
    let (op, cols, width) = ("linear_backward", weights.cols(), rows.len());
    check_rows(op, &rows, weights)?;
    let n = d_x.len() / cols;
    check(op, [("d_x", d_x.len(), n * cols), ("d_y", d_y.len(), n * width)])?;
    let rank = check_added(op, &added, n, |b| (b.cols, b.rows), cols)?;
    let _running = cpu.time(Part::LinearBackward, 2 * n * cols * (width + rank));
    #[cfg(target_arch = "x86_64")]
    if let Some(panels) = cpu.panels(n, width, weights).filter(|_| packed::has_room(rank)) {
        let added = added.map(further_terms);
        let product = packed::Product { counter: cpu.host().tile.counter(), weights, rows, added, write };
        return packed::backward(panels, product, slice(d_y), slice_mut(d_x));
    }
    dense_tile::backward(&cpu.host().tile, slice(d_y), weights, rows, write, slice_mut(d_x.reborrow()))?;
    add(added, Operand::Plain, d_x.matrix(n, cols))
}

/// R of what is added, 0 where nothing is; `shape` gives b's width and rank as the op reads it.
fn check_added<'a>(
    op: &'static str,
    added: &Added<'a>,
    n: usize,
    shape: impl Fn(&Matrix<'a, HostBuffer<f32>>) -> (usize, usize),
    width: usize,
) -> Result<usize> {
    let Some(LowRank { u, b, .. }) = added else { return Ok(0) };
    let (b_width, rank) = shape(b);
    check(op, [("rows of u", u.rows, n), ("columns of u", u.cols, rank), ("width of b", b_width, width)])?;
    Ok(rank)
}

#[cfg(target_arch = "x86_64")]
fn further_terms(added: LowRank<'_, HostBuffer<f32>>) -> packed::Added<'_> {
    let LowRank { u, b, scale } = added;
    packed::Added::new((slice(u.view), u.stride), (slice(b.view), b.stride), (u.rows, u.cols), scale)
}

/// y += s · u · op(b)
fn add(added: Added<'_>, b_as: Operand, y: MatrixMut<'_, HostBuffer<f32>>) -> Result<()> {
    if let Some(LowRank { u, b, scale }) = added {
        by_gemm(scale, (u, Operand::Plain), (b, b_as), Write::Add, y);
    }
    Ok(())
}

type Side<'a> = (Matrix<'a, HostBuffer<f32>>, Operand);

/// c (=|+=) alpha · op(a) · op(b)
pub(super) fn matmul(
    cpu: &Cpu,
    alpha: f32,
    a: Side<'_>,
    b: Side<'_>,
    write: Write,
    c: MatrixMut<'_, HostBuffer<f32>>,
) -> Result<()> {
    let oriented = |(x, operand): &Side<'_>| match operand {
        Operand::Plain => (x.rows, x.cols),
        Operand::Transposed => (x.cols, x.rows),
    };
    let ((m, k), (b_rows, n)) = (oriented(&a), oriented(&b));
    check("matmul", [("rows of b", b_rows, k), ("rows of c", c.rows, m), ("columns of c", c.cols, n)])?;
    let _running = cpu.time(Part::Adapter, 2 * m * n * k);
    #[cfg(target_arch = "x86_64")]
    if let Some(panels) = cpu.dense_panels(m, n, k) {
        let to = (slice_mut(c.view), c.stride);
        packed::matmul(panels, alpha, packed_side(a), packed_side(b), write, to);
        return Ok(());
    }
    by_gemm(alpha, a, b, write, c);
    Ok(())
}

#[cfg(target_arch = "x86_64")]
fn packed_side((x, operand): Side<'_>) -> packed::Side<'_> {
    packed::Side::new(slice(x.view), x.stride, (x.rows, x.cols), operand)
}

/// [`matmul`] of any shape, its operands' shapes having been checked.
fn by_gemm(
    alpha: f32,
    (a, a_as): Side<'_>,
    (b, b_as): Side<'_>,
    write: Write,
    c: MatrixMut<'_, HostBuffer<f32>>,
) {
    let a = Mat::new(slice(a.view), a.rows, a.cols, a.stride);
    let b = Mat::new(slice(b.view), b.rows, b.cols, b.stride);
    let c = MatMut::new(slice_mut(c.view), c.rows, c.cols, c.stride);
    multiply(alpha, a.read_as(a_as), b.read_as(b_as), write, c, Threads::All);
}

pub(super) fn attention(
    cpu: &Cpu,
    heads: Heads,
    segments: &[Segment],
    [q, k, v]: [Floats<'_>; 3],
    out: FloatsMut<'_>,
    lse: FloatsMut<'_>,
) -> Result<()> {
    let op = "attention";
    let (n, n_keys) = attention_rows(op, heads, q, k, v)?;
    check(
        op,
        [("out", out.len(), n * heads.n_heads * heads.value_dim), ("lse", lse.len(), n * heads.n_heads)],
    )?;
    check_segments(op, segments, n, n_keys, Written::Queries)?;
    let _running = cpu.time(Part::Attention, blockwise::flops(heads, segments));
    let inputs = blockwise::Inputs { heads, q: slice(q), k: slice(k), v: slice(v) };
    let (out, lse) = (slice_mut(out), slice_mut(lse));
    #[cfg(target_arch = "x86_64")]
    if let Some(panels) = cpu.attention_panels(heads, segments) {
        packed::attention::forward(panels, inputs, segments, out, lse);
        return Ok(());
    }
    blockwise::forward(inputs, segments, out, lse);
    Ok(())
}

pub(super) fn attention_backward(
    cpu: &Cpu,
    heads: Heads,
    segments: &[Segment],
    [q, k, v]: [Floats<'_>; 3],
    [out, lse, d_out]: [Floats<'_>; 3],
    [d_q, d_k, d_v]: [FloatsMut<'_>; 3],
) -> Result<()> {
    let op = "attention_backward";
    let (n, n_keys) = attention_rows(op, heads, q, k, v)?;
    check(op, [("out", out.len(), n * heads.n_heads * heads.value_dim), ("d_out", d_out.len(), out.len())])?;
    check(op, [("lse", lse.len(), n * heads.n_heads), ("d_q", d_q.len(), q.len())])?;
    check(op, [("d_k", d_k.len(), k.len()), ("d_v", d_v.len(), v.len())])?;
    check_segments(op, segments, n, n_keys, Written::QueriesAndKeys)?;
    let _running = cpu.time(Part::AttentionBackward, blockwise::backward_flops(heads, segments));
    let inputs = blockwise::Inputs { heads, q: slice(q), k: slice(k), v: slice(v) };
    let outputs = blockwise::Outputs { out: slice(out), lse: slice(lse), d_out: slice(d_out) };
    let (d_q, d_k, d_v) = (slice_mut(d_q), slice_mut(d_k), slice_mut(d_v));
    #[cfg(target_arch = "x86_64")]
    if let Some(panels) = cpu.attention_panels(heads, segments) {
        packed::attention::backward(panels, inputs, segments, outputs, d_q, d_k, d_v);
        return Ok(());
    }
    blockwise::backward(inputs, segments, outputs, d_q, d_k, d_v);
    Ok(())
}
