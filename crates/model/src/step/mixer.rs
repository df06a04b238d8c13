//! A layer that is one state-space mixer, forward and backward.
//!
//! out = x + Wout · norm(silu(z) · scan(conv(xBC), dt)), (z, xBC, dt) = Win · norm(x)

use super::pass::{LinearBackward, Pass, rows, rows_mut};
use super::workspace::{Deltas, Kept, MixerRoom};
use crate::Result;
use crate::base::Mixed;
use crate::device::{Activation, Buffer, Device, View, ViewMut, Write};
use crate::family::Role;
use crate::importance::Input;
use crate::lora::{Gradients, Group};

impl<D: Device> Pass<'_, D> {
    /// Everything of a mixer before its output projection that a backward needs, kept in `to`.
    pub fn mixer_inside(
        &self,
        index: usize,
        x: View<'_, D::Buffer>,
        to: &mut Kept<D>,
        room: &mut MixerRoom<D::Buffer>,
    ) -> Result<()> {
        let (n, c, mixer) = (self.n, self.config().hidden, self.base.mixer());
        let (inner, mixed, h) = (mixer.inner(), mixer.mixed(), mixer.n_heads);
        to.holds_attention = None;
        self.base.norm(Some(index), Role::AttnNorm, x, rows_mut(&mut to.attn_in, c, 0, n))?;
        let input = rows(&to.attn_in, c, 0, n);
        let kept = to.mixer.as_mut().expect("a step over mixers has room for them");
        let u_width = self.u_width(index, Group::SsmIn);
        self.project(index, Group::SsmIn, self.all_rows(), input, rows_mut(&mut kept.u, u_width, 0, n))?;
        let u = rows(&kept.u, u_width, 0, n);
        let gate = rows_mut(&mut kept.gate, inner, 0, n);
        self.linear(index, Role::SsmGate, n, input, u, Write::Set, gate)?;
        let raw = rows_mut(&mut kept.raw, mixed, 0, n);
        self.linear(index, Role::SsmMixed, n, input, u, Write::Set, raw)?;
        let steps = rows_mut(&mut kept.steps, h, 0, n);
        self.linear(index, Role::SsmStep, n, input, u, Write::Set, steps)?;
        let parts = Mixed {
            gate: rows(&kept.gate, inner, 0, n),
            raw: rows(&kept.raw, mixed, 0, n),
            steps: rows(&kept.steps, h, 0, n),
            mixed: &mut kept.mixed,
            out: &mut kept.out,
            gated: &mut kept.gated,
        };
        let state = room.scratch.first_mut(mixer.state_len());
        self.base.mix(index, self.spans, parts, room.window.all_mut(), state)?;
        to.holds_attention = Some(index);
        Ok(())
    }

    /// The stream after a mixer, from what [`Pass::mixer_inside`] left.
    pub fn mixer_join(
        &self,
        index: usize,
        x: View<'_, D::Buffer>,
        from: &Kept<D>,
        room: &mut MixerRoom<D::Buffer>,
        mut out: ViewMut<'_, D::Buffer>,
    ) -> Result<()> {
        let (n, inner) = (self.n, self.base.mixer().inner());
        let kept = from.mixer.as_ref().expect("a step over mixers has room for them");
        self.base.mixer_norm(
            index,
            rows(&kept.gated, inner, 0, n),
            rows_mut(&mut room.normed, inner, 0, n),
        )?;
        self.device().copy(x, out.reborrow())?;
        let normed = rows(&room.normed, inner, 0, n);
        self.measure(index, Input::SsmOut, normed)?;
        self.base.linear(index, Role::SsmOut, None, n, normed, Write::Add, out)
    }

    /// Turns the gradient of a mixer's output (in `deltas.stream`) into that of x, in place, and adds up the adapter's.
    ///
    /// The first layer's x is the frozen embedding: its gradient is of no use and is left out.
    pub fn mixer_backward(
        &self,
        index: usize,
        x: View<'_, D::Buffer>,
        from: &Kept<D>,
        deltas: &mut Deltas<D::Buffer>,
        room: &mut MixerRoom<D::Buffer>,
        gradients: &mut Gradients<D>,
    ) -> Result<()> {
        let (n, c, mixer) = (self.n, self.config().hidden, self.base.mixer());
        let (inner, mixed, h) = (mixer.inner(), mixer.mixed(), mixer.n_heads);
        self.mixed_backward(index, from, deltas, room)?;

        let Deltas { stream, normed, u: d_u, mixer: inside, .. } = deltas;
        let inside = inside.as_ref().expect("a step over mixers has room for them");
        let kept = from.mixer.as_ref().expect("a step over mixers has room for them");
        let wants_input = index > 0;
        let (input, u_width) = (rows(&from.attn_in, c, 0, n), self.u_width(index, Group::SsmIn));
        let u = rows(&kept.u, u_width, 0, n);
        // The first rows of the input projection are the gate's: its part sets what the others add to.
        let sources = [
            (Role::SsmGate, rows(&inside.gate, inner, 0, n), Write::Set),
            (Role::SsmMixed, rows(&inside.raw, mixed, 0, n), Write::Add),
            (Role::SsmStep, rows(&inside.steps, h, 0, n), Write::Add),
        ];
        for (role, d_y, write) in sources {
            let (d_u, is_last) = (rows_mut(d_u, u_width, 0, n), role == Role::SsmStep);
            let linear = LinearBackward { x: input, u, d_y, d_u, is_last };
            let d_input = wants_input.then(|| (write, rows_mut(normed, c, 0, n)));
            self.linear_backward(index, role, n, linear, d_input, gradients)?;
        }
        let (d_u, d_input) = (rows(d_u, u_width, 0, n), wants_input.then(|| rows_mut(normed, c, 0, n)));
        let d_input = self.with_dropout(d_input);
        self.project_backward(index, Group::SsmIn, self.all_rows(), input, d_u, d_input, gradients)?;
        if !wants_input {
            return Ok(());
        }
        let (d_input, d_x) = (rows(normed, c, 0, n), rows_mut(stream, c, 0, n));
        self.base.norm_backward(Some(index), Role::AttnNorm, x, d_input, Write::Add, d_x)
    }

    /// The gradients of the input projection's parts, from that of the mixer's output.
    fn mixed_backward(
        &self,
        index: usize,
        from: &Kept<D>,
        deltas: &mut Deltas<D::Buffer>,
        room: &mut MixerRoom<D::Buffer>,
    ) -> Result<()> {
        let (device, n, mixer) = (self.device(), self.n, self.base.mixer());
        let (c, inner, mixed, h) = (self.config().hidden, mixer.inner(), mixer.mixed(), mixer.n_heads);
        let kept = from.mixer.as_ref().expect("a step over mixers has room for them");
        let inside = deltas.mixer.as_mut().expect("a step over mixers has room for them");
        let (weights, all) = self.base.layers[index].linear(self.config(), index, Role::SsmOut);
        let d_normed = rows_mut(&mut inside.inner, inner, 0, n);
        device.linear_backward(rows(&deltas.stream, c, 0, n), weights, all, Write::Set, d_normed)?;
        let d_normed = rows(&inside.inner, inner, 0, n);
        let (gated, d_gated) = (rows(&kept.gated, inner, 0, n), rows_mut(&mut inside.gated, inner, 0, n));
        self.base.mixer_norm_backward(index, gated, d_normed, d_gated)?;
        let (gate, out) = (rows(&kept.gate, inner, 0, n), rows(&kept.out, inner, 0, n));
        let (d_gated, d_gate) = (rows(&inside.gated, inner, 0, n), rows_mut(&mut inside.gate, inner, 0, n));
        // The norm's gradient is used up: its buffer takes that of the scan's output.
        let d_out = rows_mut(&mut inside.inner, inner, 0, n);
        device.gated_backward(Activation::Silu, gate, out, d_gated, d_gate, d_out)?;

        device.state_scan_backward(
            mixer,
            self.spans,
            self.base.scan_weights(index),
            rows(&kept.mixed, mixed, 0, n),
            rows(&kept.steps, h, 0, n),
            out,
            rows(&inside.inner, inner, 0, n),
            room.scratch.all_mut(),
            rows_mut(&mut inside.mixed, mixed, 0, n),
            rows_mut(&mut inside.steps, h, 0, n),
        )?;
        let (kernel, bias) = self.base.convolution(index);
        let (raw, d_mixed) = (rows(&kept.raw, mixed, 0, n), rows(&inside.mixed, mixed, 0, n));
        let d_raw = rows_mut(&mut inside.raw, mixed, 0, n);
        device.causal_conv_backward(mixer, self.spans, raw, kernel, bias, d_mixed, d_raw)
    }
}
