//! What the layers of one pass have in common: base, adapter, the batch, and an adapted linear layer.

use super::workspace::Activations;
use crate::Result;
use crate::base::Base;
use crate::config::ModelConfig;
use crate::device::{Buffer, Device, Segment, View, ViewMut, Write};
use crate::family::Role;
use crate::lora::{Adapter, Gradients, Group};

/// One pass over a batch of `n` rows.
pub(super) struct Pass<'a, D: Device> {
    pub base: &'a Base<D>,
    pub adapter: Option<&'a Adapter<D>>,
    pub n: usize,
    pub segments: &'a [Segment],
    /// Row of the rotary tables for each token.
    pub rotary_rows: View<'a, D::Indices>,
    /// Cosines and sines of each table that the layers choose from.
    pub rotary: &'a [(D::Buffer, D::Buffer)],
}

/// The gradient side of an adapted linear layer.
pub(super) struct LinearBackward<'a, D: Device> {
    /// x·Aᵀ of its group (n, width).
    pub u: View<'a, D::Buffer>,
    /// Gradient of its output (n, C_out).
    pub d_y: View<'a, D::Buffer>,
    /// Where the gradient of u goes: this layer's columns.
    pub d_u: ViewMut<'a, D::Buffer>,
}

impl<'a, D: Device> Pass<'a, D> {
    pub fn device(&self) -> &'a D {
        &self.base.device
    }

    pub fn config(&self) -> &'a ModelConfig {
        &self.base.config
    }

    pub fn q_width(&self) -> usize {
        self.config().q_width()
    }

    pub fn kv_width(&self) -> usize {
        self.config().kv_width()
    }

    /// Width of a group's x·Aᵀ, 0 without an adapter.
    pub fn u_width(&self, index: usize, group: Group) -> usize {
        self.adapter.map_or(0, |adapter| adapter.width(index, group))
    }

    /// u = x·Aᵀ of a group      x (n, C_in)
    pub fn project(
        &self,
        index: usize,
        group: Group,
        n: usize,
        x: View<'_, D::Buffer>,
        u: ViewMut<'_, D::Buffer>,
    ) -> Result<()> {
        match self.adapter {
            Some(adapter) => adapter.project(index, group, n, x, u),
            None => Ok(()),
        }
    }

    /// y (=|+=) x·Wᵀ + b + s·u·Bᵀ      x (n, C_in), y (n, C_out)
    #[allow(clippy::too_many_arguments)]
    pub fn linear(
        &self,
        index: usize,
        role: Role,
        n: usize,
        x: View<'_, D::Buffer>,
        u: View<'_, D::Buffer>,
        write: Write,
        y: ViewMut<'_, D::Buffer>,
    ) -> Result<()> {
        self.base.linear(index, role, self.adapter, n, x, u, write, y)
    }

    /// dx (=|+=) dy·W where wanted, dB += s·dyᵀ·u, du = s·dy·B; the part of dx that goes through du comes with the
    /// group's [`Pass::project_backward`].
    pub fn linear_backward(
        &self,
        index: usize,
        role: Role,
        n: usize,
        linear: LinearBackward<'_, D>,
        d_x: Option<(Write, ViewMut<'_, D::Buffer>)>,
        gradients: &mut Gradients<D>,
    ) -> Result<()> {
        let LinearBackward { u, d_y, d_u } = linear;
        if let Some((write, d_x)) = d_x {
            let (weights, rows) = self.base.layers[index].linear(self.config(), role);
            self.device().linear_backward(d_y, weights, rows, write, d_x)?;
        }
        let projection = self.config().projection(role);
        match self.adapter {
            Some(adapter) => adapter.update_backward(index, &projection, n, u, d_y, d_u, gradients),
            None => Ok(()),
        }
    }

    /// dA += duᵀ·x, dx += du·A of a group
    #[allow(clippy::too_many_arguments)]
    pub fn project_backward(
        &self,
        index: usize,
        group: Group,
        n: usize,
        x: View<'_, D::Buffer>,
        d_u: View<'_, D::Buffer>,
        d_x: Option<ViewMut<'_, D::Buffer>>,
        gradients: &mut Gradients<D>,
    ) -> Result<()> {
        match self.adapter {
            Some(adapter) => adapter.project_backward(index, group, n, x, d_u, d_x, gradients),
            None => Ok(()),
        }
    }
}

/// Rows `first .. first + n` of a buffer of `cols` columns.
pub(super) fn rows<B: Buffer>(buffer: &B, cols: usize, first: usize, n: usize) -> View<'_, B> {
    buffer.part(first * cols..(first + n) * cols)
}

/// The same for writing.
pub(super) fn rows_mut<B: Buffer>(buffer: &mut B, cols: usize, first: usize, n: usize) -> ViewMut<'_, B> {
    buffer.part_mut(first * cols..(first + n) * cols)
}

impl<B> Activations<B> {
    /// Forgets what it holds.
    pub(super) fn forget(&mut self) {
        (self.holds_attention, self.holds_mlp) = (None, None);
    }
}
