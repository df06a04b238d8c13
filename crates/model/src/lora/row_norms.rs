//! DoRA: lengths of the rows of W + s·B·A, without ever forming that sum.
//!
//! W' = diag(m / n) · (W + s·B·A), n_j = |W_j + s·(B·A)_j|, m trained, n held constant in the backward pass (section 4.3
//! of the paper). n_j² = |W_j|² + 2 s B_j · (A·W_jᵀ) + s² B_j · (A·Aᵀ) · B_jᵀ: one product of R rows with W a layer and
//! update, |W_j|² once. Source: Liu et al. 2024, arXiv:2402.09353, eq. 5 and 11.

use super::{Adapter, Group, Layout, LoraOptions};
use crate::Result;
use crate::base::Base;
use crate::config::{ModelConfig, Projection};
use crate::device::{Buffer, Device, Operand, View, Write};

/// Row lengths of an adapted base, and their ratio to the trained ones.
pub struct RowNorms<D: Device> {
    /// |W_j|² of each row of each adapted layer.
    base_squares: D::Buffer,
    /// 1 / n_j
    inverse: D::Buffer,
    /// m_j / n_j
    factors: D::Buffer,
    /// W·Aᵀ of one layer, transposed (R, C_out).
    crossed: D::Buffer,
    /// A·Aᵀ of one layer (R, R).
    gram: D::Buffer,
    /// B·A·Aᵀ of one layer (C_out, R).
    spread: D::Buffer,
}

/// Sizes of the six buffers in floats.
fn sizes(layout: &Layout) -> [usize; 6] {
    let n = layout.n_outputs();
    let widest =
        |size: fn(&super::Member) -> usize| layout.members().map(|(_, _, m)| size(m)).max().unwrap_or(0);
    let factor = widest(|member| member.rank * member.rows);
    [n, n, n, factor, widest(|member| member.rank * member.rank), factor]
}

/// Bytes that [`RowNorms::new`] draws; 0 without DoRA.
pub fn row_norms_bytes(config: &ModelConfig, options: &LoraOptions) -> u64 {
    if !options.dora {
        return 0;
    }
    4 * sizes(&Layout::new(config, options)).into_iter().sum::<usize>() as u64
}

impl<D: Device> RowNorms<D> {
    /// Draws memory for the adapters of some options and measures the rows of the base.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`].
    pub fn new(base: &Base<D>, options: &LoraOptions) -> Result<Self> {
        let layout = Layout::new(&base.config, options);
        let mut buffers = Vec::with_capacity(6);
        for size in sizes(&layout) {
            buffers.push(base.device.alloc("row lengths", size)?);
        }
        let [mut base_squares, inverse, factors, crossed, gram, spread] =
            buffers.try_into().unwrap_or_else(|_| unreachable!("as many buffers as sizes"));
        for (layer, _, member) in layout.members() {
            base.come_to_layer(layer);
            let weights = base.layers[layer].linear(&base.config, layer, member.role).0;
            base.device.row_squares(weights, base_squares.part_mut(member.outputs.clone()))?;
        }
        Ok(Self { base_squares, inverse, factors, crossed, gram, spread })
    }

    /// Measures W + s·B·A again: call when the adapter's weights have changed.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] for an adapter of other options.
    pub fn refresh(&mut self, base: &Base<D>, adapter: &Adapter<D>) -> Result<()> {
        let device = &base.device;
        for (layer, cols, member) in adapter.layout.members() {
            let (rank, rows) = (member.rank, member.rows);
            let a = adapter.weights.part(member.a.clone());
            let b = adapter.weights.part(member.b.clone());
            base.come_to_layer(layer);
            let weights = base.layers[layer].linear(&base.config, layer, member.role).0;
            let (crossed, spread) = (self.crossed.first_mut(rank * rows), self.spread.first_mut(rank * rows));
            device.linear(a, weights, 0..rows, Write::Set, crossed)?;
            let (gram, a) = (self.gram.first_mut(rank * rank).matrix(rank, rank), a.matrix(rank, cols));
            device.matmul(1.0, a, Operand::Plain, a, Operand::Transposed, Write::Set, gram)?;
            let gram = self.gram.first(rank * rank).matrix(rank, rank);
            let (plain, b_matrix) = (Operand::Plain, b.matrix(rows, rank));
            device.matmul(1.0, b_matrix, plain, gram, plain, Write::Set, spread.matrix(rows, rank))?;
            let parts = crate::device::RowSquares {
                base: self.base_squares.part(member.outputs.clone()),
                b,
                crossed: self.crossed.first(rank * rows),
                spread: self.spread.first(rank * rows),
                scale: member.scale,
            };
            let magnitude = member.magnitude.clone().map(|range| adapter.weights.part(range));
            let inverse = self.inverse.part_mut(member.outputs.clone());
            let factors = self.factors.part_mut(member.outputs.clone());
            device.row_factors(parts, magnitude, inverse, factors)?;
        }
        Ok(())
    }

    /// m = n: the lengths that change nothing.
    pub(super) fn lengths_into(&self, adapter: &mut Adapter<D>) -> Result<()> {
        let mut inverse = vec![0.0; self.inverse.len()];
        adapter.device.download(self.inverse.all(), &mut inverse)?;
        let places =
            adapter.layout.members().filter_map(|(_, _, m)| Some((m.magnitude.clone()?, m.outputs.clone())));
        for (magnitude, outputs) in places.collect::<Vec<_>>() {
            let lengths: Vec<f32> = inverse[outputs].iter().map(|inverse| 1.0 / inverse).collect();
            adapter.device.upload(&lengths, adapter.weights.part_mut(magnitude))?;
        }
        Ok(())
    }

    /// m / n of some rows of a linear layer (|rows|); `None` when it is not adapted.
    pub(crate) fn factors(
        &self,
        adapter: &Adapter<D>,
        layer: usize,
        projection: &Projection,
    ) -> Option<View<'_, D::Buffer>> {
        Some(self.factors.part(outputs(adapter, layer, projection)?))
    }

    /// 1 / n of some rows of a linear layer (|rows|).
    pub(crate) fn inverse(
        &self,
        adapter: &Adapter<D>,
        layer: usize,
        projection: &Projection,
    ) -> Option<View<'_, D::Buffer>> {
        Some(self.inverse.part(outputs(adapter, layer, projection)?))
    }
}

fn outputs<D: Device>(
    adapter: &Adapter<D>,
    layer: usize,
    projection: &Projection,
) -> Option<std::ops::Range<usize>> {
    let member = adapter.layout.stack(layer, Group::of(projection.stored)).member(projection.stored)?;
    let start = member.outputs.start;
    Some(start + projection.rows.start..start + projection.rows.end)
}
