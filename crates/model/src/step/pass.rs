//! What the layers of one pass have in common: base, adapter, the batch, and an adapted linear layer.

use std::cell::RefCell;

use super::workspace::{Activations, Kept, MixerRoom};
use crate::Result;
use crate::base::{Base, Update};
use crate::config::ModelConfig;
use crate::device::{Buffer, Device, Mask, Segment, Span, View, ViewMut, Write};
use crate::family::Role;
use crate::importance::{Importance, Input};
use crate::lora::{Adapter, Dropout, Gradients, Group, RowNorms};

/// One pass over a batch of `n` rows.
pub(super) struct Pass<'a, D: Device> {
    pub base: &'a Base<D>,
    pub adapter: Option<&'a Adapter<D>>,
    /// With DoRA.
    pub norms: Option<&'a RowNorms<D>>,
    /// In a training step, where the adapter has dropout.
    pub dropout: Option<Dropout>,
    /// Where what is multiplied with the base's matrices is measured.
    pub importance: Option<&'a Importance<D>>,
    /// Room for a copy of a linear layer's input or output, where dropout or DoRA make one.
    pub copy: RefCell<&'a mut D::Buffer>,
    pub n: usize,
    pub segments: &'a [Segment],
    /// The same as recurrences see them.
    pub spans: &'a [Span],
    /// Row of the rotary tables for each token.
    pub rotary_rows: View<'a, D::Indices>,
    /// Cosines and sines of each table that the layers choose from.
    pub rotary: &'a [(D::Buffer, D::Buffer)],
}

/// Some rows of a batch: all of it, or a tile of the MLP.
#[derive(Clone, Copy)]
pub(super) struct Rows {
    /// The first one's number in the batch.
    pub first: usize,
    /// How many.
    pub n: usize,
}

/// The gradient side of an adapted linear layer.
pub(super) struct LinearBackward<'a, D: Device> {
    /// Its input (n, C_in).
    pub x: View<'a, D::Buffer>,
    /// x·Aᵀ of its group (n, width).
    pub u: View<'a, D::Buffer>,
    /// Gradient of its output (n, C_out).
    pub d_y: View<'a, D::Buffer>,
    /// Where the gradient of u goes: this layer's columns.
    pub d_u: ViewMut<'a, D::Buffer>,
    /// Whether it is the last of its group: du is whole then, and its part of the input's gradient is added too.
    pub is_last: bool,
}

impl<'a, D: Device> Pass<'a, D> {
    /// The stream after a layer, from the one before it.
    pub fn layer_forward(
        &self,
        index: usize,
        x: View<'_, D::Buffer>,
        set: &mut Kept<D>,
        mixer: Option<&mut MixerRoom<D::Buffer>>,
        out: &mut D::Buffer,
    ) -> Result<()> {
        match mixer {
            Some(room) => {
                self.mixer_inside(index, x, set, room)?;
                self.mixer_join(index, x, set, room, out.first_mut(x.len()))
            }
            None => {
                self.attention_forward(index, x, set)?;
                self.mlp_forward(index, set, out)
            }
        }
    }

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

    pub fn value_width(&self) -> usize {
        self.config().value_width()
    }

    pub fn attended_width(&self) -> usize {
        self.config().attended_width()
    }

    /// Width of a group's x·Aᵀ, 0 without an adapter.
    pub fn u_width(&self, index: usize, group: Group) -> usize {
        self.adapter.map_or(0, |adapter| adapter.width(index, group))
    }

    /// All rows of the batch.
    pub fn all_rows(&self) -> Rows {
        Rows { first: 0, n: self.n }
    }

    fn mask(&self, index: usize, group: Group) -> Option<Mask> {
        let dropout = self.dropout?;
        Some(Mask { probability: dropout.probability, seed: dropout.mask_seed(index, group) })
    }

    /// Adds to the importance of the columns of what reads x, where that is asked for.
    pub fn measure(&self, index: usize, input: Input, x: View<'_, D::Buffer>) -> Result<()> {
        self.importance.map_or(Ok(()), |importance| importance.add(index, input, 0, x))
    }

    /// u = drop(x)·Aᵀ of a group      x (n, C_in)
    pub fn project(
        &self,
        index: usize,
        group: Group,
        rows: Rows,
        x: View<'_, D::Buffer>,
        u: ViewMut<'_, D::Buffer>,
    ) -> Result<()> {
        self.measure(index, Input::Of(group), x)?;
        let Some(adapter) = self.adapter.filter(|adapter| adapter.width(index, group) > 0) else {
            return Ok(());
        };
        let Some(mask) = self.mask(index, group) else {
            return adapter.project(index, group, rows.n, x, u);
        };
        let mut copy = self.copy.borrow_mut();
        self.device().dropout(mask, rows.first, x.len() / rows.n, x, Write::Set, copy.first_mut(x.len()))?;
        adapter.project(index, group, rows.n, copy.first(x.len()), u)
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
        let update = self.adapter.map(|adapter| Update { adapter, norms: self.norms, u });
        if write == Write::Set || self.norms.is_none() {
            return self.base.linear(index, role, update, n, x, write, y);
        }
        let mut copy = self.copy.borrow_mut();
        self.base.linear(index, role, update, n, x, Write::Set, copy.first_mut(y.len()))?;
        self.device().add(copy.first(y.len()), y)
    }

    /// dx (=|+=) dy·W where wanted, dB += s·dyᵀ·u, du = s·dy·B; the part of dx that goes through du comes with the last
    /// of a group, or with [`Pass::project_backward`] where there is dropout. With DoRA dy·m/n takes the place of dy, and dm += Σ dy·(sum / n).
    pub fn linear_backward(
        &self,
        index: usize,
        role: Role,
        n: usize,
        linear: LinearBackward<'_, D>,
        d_x: Option<(Write, ViewMut<'_, D::Buffer>)>,
        gradients: &mut Gradients<D>,
    ) -> Result<()> {
        let LinearBackward { x, u, d_y, mut d_u, is_last } = linear;
        let projection = self.config().projection(index, role);
        let mut copy = self.copy.borrow_mut();
        let mut d_y = d_y;
        if let (Some(adapter), Some(norms)) = (self.adapter, self.norms)
            && let Some(factors) = norms.factors(adapter, index, &projection)
            && let Some(inverse) = norms.inverse(adapter, index, &projection)
        {
            let (device, len) = (self.device(), d_y.len());
            let (weights, rows) = self.base.layers[index].linear(self.config(), index, role);
            device.linear(x, weights, rows, Write::Set, copy.first_mut(len))?;
            let sum = copy.first_mut(len).matrix(n, projection.rows.len());
            adapter.add_update(index, &projection, n, u, sum)?;
            device.scale_columns(inverse, copy.first_mut(len))?;
            adapter.magnitude_backward(index, &projection, d_y, copy.first(len), gradients)?;
            device.copy(d_y, copy.first_mut(len))?;
            device.scale_columns(factors, copy.first_mut(len))?;
            d_y = copy.first(len);
        }
        if let Some(adapter) = self.adapter {
            let (d_y, d_u) = (d_y.matrix(n, projection.rows.len()), d_u.reborrow());
            adapter.update_backward(index, &projection, n, u, d_y, d_u, gradients)?;
        }
        let Some((write, d_x)) = d_x else { return Ok(()) };
        let (weights, rows) = self.base.layers[index].linear(self.config(), index, role);
        let adapter = self.adapter.filter(|_| is_last && self.dropout.is_none());
        let group = Group::of(projection.stored);
        match adapter.and_then(|adapter| adapter.input_update(index, group, n, d_u.into_view())) {
            Some(added) => self.device().linear_backward_with(d_y, weights, rows, added, write, d_x),
            None => self.device().linear_backward(d_y, weights, rows, write, d_x),
        }
    }

    /// `d_x` for [`Pass::project_backward`] where the group's last layer has not added to it.
    pub fn with_dropout<T>(&self, d_x: Option<T>) -> Option<T> {
        d_x.filter(|_| self.dropout.is_some())
    }

    /// dA += duᵀ·drop(x), dx += drop(du·A) of a group
    #[allow(clippy::too_many_arguments)]
    pub fn project_backward(
        &self,
        index: usize,
        group: Group,
        rows: Rows,
        x: View<'_, D::Buffer>,
        d_u: View<'_, D::Buffer>,
        d_x: Option<ViewMut<'_, D::Buffer>>,
        gradients: &mut Gradients<D>,
    ) -> Result<()> {
        let Some(adapter) = self.adapter.filter(|adapter| adapter.width(index, group) > 0) else {
            return Ok(());
        };
        let Some(mask) = self.mask(index, group) else {
            return adapter.project_backward(index, group, rows.n, x, d_u, d_x, gradients);
        };
        let (device, len) = (self.device(), x.len());
        let mut copy = self.copy.borrow_mut();
        device.dropout(mask, rows.first, len / rows.n, x, Write::Set, copy.first_mut(len))?;
        adapter.a_backward(index, group, rows.n, copy.first(len), d_u, gradients)?;
        let Some(d_x) = d_x else { return Ok(()) };
        adapter.input_backward(index, group, rows.n, d_u, Write::Set, copy.first_mut(len))?;
        device.dropout(mask, rows.first, len / rows.n, copy.first(len), Write::Add, d_x)
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

impl<B, I> Activations<B, I> {
    /// Forgets what it holds.
    pub(super) fn forget(&mut self) {
        (self.holds_attention, self.holds_mlp) = (None, None);
    }
}
