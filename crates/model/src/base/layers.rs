//! What every pass over a base asks of it: embeddings, norms, and linear layers with their bias and adapter.

use super::Base;
use crate::Result;
use crate::config::NormKind;
use crate::device::{Buffer, Device, View, ViewMut, Write};
use crate::family::Role;
use crate::lora::{Adapter, RowNorms};

/// What an adapter adds to one linear layer.
pub(crate) struct Update<'a, D: Device> {
    pub adapter: &'a Adapter<D>,
    /// With DoRA.
    pub norms: Option<&'a RowNorms<D>>,
    /// x·Aᵀ of the layer's group (n, width).
    pub u: View<'a, D::Buffer>,
}

impl<D: Device> Base<D> {
    /// out = embedding of `ids` (N), scaled as the family does      out (N, C)
    pub(crate) fn embed(&self, ids: View<'_, D::Indices>, mut out: ViewMut<'_, D::Buffer>) -> Result<()> {
        self.device.embed(self.embedding(), ids, out.reborrow())?;
        match self.config.embedding_scale {
            1.0 => Ok(()),
            factor => self.device.scale(factor, out),
        }
    }

    /// y = norm(x)      x, y (n, C), or (n·H, D) for the norm of each head
    pub(crate) fn norm(
        &self,
        layer: Option<usize>,
        role: Role,
        x: View<'_, D::Buffer>,
        y: ViewMut<'_, D::Buffer>,
    ) -> Result<()> {
        let (gain, eps) = (self.vector(layer, role).all(), self.config.norm_eps);
        match self.config.norm {
            NormKind::Rms => self.device.rms_norm(x, gain, eps, y),
            NormKind::Layer => {
                let bias = role.bias().expect("every norm of a family with LayerNorm has a bias");
                self.device.layer_norm(x, gain, self.vector(layer, bias).all(), eps, y)
            }
        }
    }

    /// dx (=|+=) the gradient of [`Base::norm`]'s input
    pub(crate) fn norm_backward(
        &self,
        layer: Option<usize>,
        role: Role,
        x: View<'_, D::Buffer>,
        d_y: View<'_, D::Buffer>,
        write: Write,
        d_x: ViewMut<'_, D::Buffer>,
    ) -> Result<()> {
        let (gain, eps) = (self.vector(layer, role).all(), self.config.norm_eps);
        match self.config.norm {
            NormKind::Rms => self.device.rms_norm_backward(x, gain, eps, d_y, write, d_x),
            NormKind::Layer => self.device.layer_norm_backward(x, gain, eps, d_y, write, d_x),
        }
    }

    /// y (=|+=) x·Wᵀ + s·u·Bᵀ + b of one linear layer, with DoRA (x·Wᵀ + s·u·Bᵀ)·m/n + b
    ///
    /// x (n, C_in), u = x·Aᵀ of its group, y (n, C_out). With DoRA y is always set.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn linear(
        &self,
        layer: usize,
        role: Role,
        update: Option<Update<'_, D>>,
        n: usize,
        x: View<'_, D::Buffer>,
        write: Write,
        mut y: ViewMut<'_, D::Buffer>,
    ) -> Result<()> {
        let tensors = &self.layers[layer];
        let (weights, rows) = tensors.linear(&self.config, layer, role);
        let projection = self.config.projection(layer, role);
        let added = update.as_ref().and_then(|update| update.adapter.update(layer, &projection, n, update.u));
        match added {
            Some(added) => self.device.linear_with(x, weights, rows, added, write, y.reborrow())?,
            None => self.device.linear(x, weights, rows, write, y.reborrow())?,
        }
        let factors = update.and_then(|update| update.norms?.factors(update.adapter, layer, &projection));
        if let Some(factors) = factors {
            debug_assert_eq!(write, Write::Set, "the factors of DoRA are for the product alone");
            self.device.scale_columns(factors, y.reborrow())?;
        }
        match role.bias().and_then(|bias| tensors.vector(bias)) {
            Some(bias) => self.device.add_row(bias.all(), y),
            None => Ok(()),
        }
    }

    /// Whether a layer (or what stands after the last) has a norm or bias of this role.
    pub(crate) fn has(&self, role: Role) -> bool {
        self.config.family.has(role)
    }

    /// A matrix of a layer, for what is not run as a linear layer from its input to its output.
    pub(crate) fn matrix(&self, layer: usize, role: Role) -> &D::Weights {
        self.layers[layer].matrix(role).expect("loading refuses a base that lacks a tensor of its family")
    }

    pub(super) fn vector(&self, layer: Option<usize>, role: Role) -> &D::Buffer {
        let tensors = layer.map_or(&self.outer, |index| &self.layers[index]);
        tensors.vector(role).expect("loading refuses a base that lacks a tensor of its family")
    }
}
