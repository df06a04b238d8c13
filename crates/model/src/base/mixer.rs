//! The inside of a state-space mixer, between its two projections.

use super::Base;
use crate::Result;
use crate::device::{Activation, Buffer, Device, ScanWeights, Span, StateSpace, View, ViewMut};
use crate::family::Role;

/// What a mixer makes of its input projection's parts, for n tokens.
pub(crate) struct Mixed<'a, B> {
    /// (n, I)
    pub gate: View<'a, B>,
    /// What is convolved (n, W).
    pub raw: View<'a, B>,
    /// (n, H)
    pub steps: View<'a, B>,
    /// The convolution's output: x, B, C (n, W).
    pub mixed: &'a mut B,
    /// The scan's output (n, I).
    pub out: &'a mut B,
    /// silu(gate) · out (n, I)
    pub gated: &'a mut B,
}

impl<D: Device> Base<D> {
    /// The mixer that layers are.
    ///
    /// # Panics
    /// In a model of attention.
    pub(crate) fn mixer(&self) -> StateSpace {
        self.config.mixer.expect("only layers that are mixers are run as such")
    }

    /// gated = silu(gate) · scan(conv(raw), steps), and what stands between; window and state move on
    pub(crate) fn mix(
        &self,
        layer: usize,
        spans: &[Span],
        parts: Mixed<'_, D::Buffer>,
        window: ViewMut<'_, D::Buffer>,
        state: ViewMut<'_, D::Buffer>,
    ) -> Result<()> {
        let (device, mixer) = (&self.device, self.mixer());
        let Mixed { gate, raw, steps, mixed, out, gated } = parts;
        let (kernel, bias) = self.convolution(layer);
        device.causal_conv(mixer, spans, raw, kernel, bias, window, mixed.first_mut(raw.len()))?;
        let (mixed, n) = (mixed.first(raw.len()), gate.len());
        let weights = self.scan_weights(layer);
        device.state_scan(mixer, spans, weights, mixed, steps, state, out.first_mut(n))?;
        device.gated(Activation::Silu, gate, out.first(n), gated.first_mut(n))
    }

    /// y = norm(x), group by group      x, y (n, I)
    pub(crate) fn mixer_norm(
        &self,
        layer: usize,
        x: View<'_, D::Buffer>,
        y: ViewMut<'_, D::Buffer>,
    ) -> Result<()> {
        let (gain, eps) = (self.vector(Some(layer), Role::SsmNorm).all(), self.config.norm_eps);
        self.device.group_norm(self.mixer().n_groups, x, gain, eps, y)
    }

    /// dx = the gradient of [`Base::mixer_norm`]'s input
    pub(crate) fn mixer_norm_backward(
        &self,
        layer: usize,
        x: View<'_, D::Buffer>,
        d_y: View<'_, D::Buffer>,
        d_x: ViewMut<'_, D::Buffer>,
    ) -> Result<()> {
        let (gain, eps) = (self.vector(Some(layer), Role::SsmNorm).all(), self.config.norm_eps);
        self.device.group_norm_backward(self.mixer().n_groups, x, gain, eps, d_y, d_x)
    }

    /// Kernel and bias of the convolution.
    pub(crate) fn convolution(&self, layer: usize) -> (View<'_, D::Buffer>, View<'_, D::Buffer>) {
        let vector = |role| self.vector(Some(layer), role).all();
        (vector(Role::SsmConv), vector(Role::SsmConvBias))
    }

    pub(crate) fn scan_weights(&self, layer: usize) -> ScanWeights<'_, D::Buffer> {
        let vector = |role| self.vector(Some(layer), role).all();
        ScanWeights {
            step_bias: vector(Role::SsmStepBias),
            decay: vector(Role::SsmDecay),
            skip: vector(Role::SsmSkip),
        }
    }
}
