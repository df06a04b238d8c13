//! The MLP of a layer, gated or not, forward and backward, a tile of tokens at a time.
//!
//! out = mid + norm(Wdown · (act(Wgate·h) · (Wup·h))), h = norm(mid); the outer norm where the family has it, and
//! act(Wup·h) where it has no gate

use std::ops::Range;

use super::pass::{LinearBackward, Pass, Rows, rows, rows_mut};
use super::workspace::{Activations, Deltas, Kept, MlpActivations};
use crate::Result;
use crate::base::ExpertDeltas;
use crate::device::{Buffer, Device, View, Write};
use crate::family::Role;
use crate::lora::{Gradients, Group};

/// Tiles of at most `tile` of `n` tokens.
fn tiles(n: usize, tile: usize) -> impl Iterator<Item = Range<usize>> {
    (0..n).step_by(tile).map(move |first| first..(first + tile).min(n))
}

fn tile_rows(tile: &Range<usize>) -> Rows {
    Rows { first: tile.start, n: tile.len() }
}

impl<D: Device> Pass<'_, D> {
    /// The stream after a layer, from the stream after its attention.
    pub fn mlp_forward(&self, index: usize, activations: &mut Kept<D>, out: &mut D::Buffer) -> Result<()> {
        let (c, f, n) = (self.config().hidden, self.config().mlp_width(index), self.n);
        let Activations { mid, mlp, holds_mlp, .. } = activations;
        *holds_mlp = None;
        let holds_all = n <= mlp.tile_tokens;
        for tile in tiles(n, self.tile_tokens(index, mlp)) {
            let (m, at) = (tile.len(), if holds_all { tile.start } else { 0 });
            let mid = rows(mid, c, tile.start, m);
            self.inner_forward(index, tile_rows(&tile), mid, mlp, at)?;
            let mut out = rows_mut(out, c, tile.start, m);
            if let Some(raw) = &mlp.out {
                self.base.norm(Some(index), Role::PostFfnNorm, rows(raw, c, at, m), out.reborrow())?;
                self.device().add(mid, out.reborrow())?;
            } else {
                self.device().copy(mid, out.reborrow())?;
                let (act, u) = (rows(&mlp.act, f, at, m), self.u_down(index, mlp, at, m));
                self.linear(index, Role::Down, m, act, u, Write::Add, out.reborrow())?;
            }
            if let Some(experts) = mlp.experts.as_ref().filter(|_| self.config().is_routed(index)) {
                self.base.join_experts(m, at, experts, out)?;
            }
        }
        if holds_all {
            *holds_mlp = Some(index);
        }
        Ok(())
    }

    /// Tokens of a tile: all that are kept, or those that routed experts share out at once.
    fn tile_tokens(&self, index: usize, mlp: &MlpActivations<D::Buffer, D::Indices>) -> usize {
        match mlp.experts.as_ref().filter(|_| self.config().is_routed(index)) {
            Some(experts) => experts.tile_tokens,
            None => mlp.tile_tokens,
        }
    }

    /// x·Aᵀ of Wdown for `m` rows from row `at`.
    fn u_down<'b>(
        &self,
        index: usize,
        mlp: &'b MlpActivations<D::Buffer, D::Indices>,
        at: usize,
        m: usize,
    ) -> View<'b, D::Buffer> {
        rows(&mlp.u_down, self.u_width(index, Group::Down), at, m)
    }

    /// The MLP of a tile up to where it joins the stream: all that a backward needs. Row `at` of `to` is its first.
    fn inner_forward(
        &self,
        index: usize,
        tile: Rows,
        mid: View<'_, D::Buffer>,
        to: &mut MlpActivations<D::Buffer, D::Indices>,
        at: usize,
    ) -> Result<()> {
        let (device, config) = (self.device(), self.config());
        let (c, f, m) = (config.hidden, config.mlp_width(index), tile.n);
        self.base.norm(Some(index), Role::FfnNorm, mid, rows_mut(&mut to.mlp_in, c, at, m))?;
        let h = rows(&to.mlp_in, c, at, m);
        let u_width = self.u_width(index, Group::GateUp);
        self.project(index, Group::GateUp, tile, h, rows_mut(&mut to.u_gate_up, u_width, at, m))?;
        let u = rows(&to.u_gate_up, u_width, at, m);
        self.linear(index, Role::Up, m, h, u, Write::Set, rows_mut(&mut to.up, f, at, m))?;
        if let Some(gate) = &mut to.gate {
            self.linear(index, Role::Gate, m, h, u, Write::Set, rows_mut(gate, f, at, m))?;
            let (gate, up) = (rows(gate, f, at, m), rows(&to.up, f, at, m));
            device.gated(config.activation, gate, up, rows_mut(&mut to.act, f, at, m))?;
        } else {
            device.activate(config.activation, rows(&to.up, f, at, m), rows_mut(&mut to.act, f, at, m))?;
        }
        let (act, u_width) = (rows(&to.act, f, at, m), self.u_width(index, Group::Down));
        self.project(index, Group::Down, tile, act, rows_mut(&mut to.u_down, u_width, at, m))?;
        if let Some(experts) = to.experts.as_mut().filter(|_| config.is_routed(index)) {
            self.base.run_experts(index, m, rows(&to.mlp_in, c, at, m), at, experts, self.importance)?;
        }
        if let Some(out) = &mut to.out {
            let u = rows(&to.u_down, u_width, at, m);
            self.linear(index, Role::Down, m, act, u, Write::Set, rows_mut(out, c, at, m))?;
        }
        Ok(())
    }

    /// Turns the gradient of a layer's output (in `deltas.stream`) into that of `mid`, in place.
    ///
    /// Runs the tile's forward again unless `activations` still holds it.
    pub fn mlp_backward(
        &self,
        index: usize,
        activations: &mut Kept<D>,
        deltas: &mut Deltas<D::Buffer>,
        gradients: &mut Gradients<D>,
    ) -> Result<()> {
        let c = self.config().hidden;
        let Activations { mid, mlp, holds_mlp, .. } = activations;
        let is_held = holds_mlp.take() == Some(index);
        let tile_tokens = deltas.up.len() / self.config().widest_mlp();
        for tile in tiles(self.n, tile_tokens) {
            let mid = rows(mid, c, tile.start, tile.len());
            let at = if is_held { tile.start } else { 0 };
            if !is_held {
                self.inner_forward(index, tile_rows(&tile), mid, mlp, at)?;
            }
            self.tile_backward(index, tile, mid, (mlp, at), deltas, gradients)?;
        }
        Ok(())
    }

    /// One tile of [`Pass::mlp_backward`]; its activations begin at row `at` of `from`.
    fn tile_backward(
        &self,
        index: usize,
        tile: Range<usize>,
        mid: View<'_, D::Buffer>,
        (from, at): (&mut MlpActivations<D::Buffer, D::Indices>, usize),
        deltas: &mut Deltas<D::Buffer>,
        gradients: &mut Gradients<D>,
    ) -> Result<()> {
        let (device, config) = (self.device(), self.config());
        let (c, f, m) = (config.hidden, config.mlp_width(index), tile.len());
        self.down_backward(index, &tile, (from, at), deltas, gradients)?;

        let (up, d_act) = (rows(&from.up, f, at, m), rows(&deltas.act, f, 0, m));
        let d_up = rows_mut(&mut deltas.up, f, 0, m);
        match (&from.gate, &mut deltas.gate) {
            (Some(gate), Some(d_gate)) => {
                let (gate, d_gate) = (rows(gate, f, at, m), rows_mut(d_gate, f, 0, m));
                device.gated_backward(config.activation, gate, up, d_act, d_gate, d_up)?;
            }
            _ => device.activate_backward(config.activation, up, d_act, d_up)?,
        }

        let u_width = self.u_width(index, Group::GateUp);
        let (h, u) = (rows(&from.mlp_in, c, at, m), rows(&from.u_gate_up, u_width, at, m));
        // A fused layer's first rows are the gate's: its part sets what the other adds to.
        let gate = deltas.gate.as_ref().map(|d_gate| (Role::Gate, d_gate));
        let mut write = Write::Set;
        for (role, d_y) in gate.into_iter().chain([(Role::Up, &deltas.up)]) {
            let (d_y, d_u) = (rows(d_y, f, 0, m), rows_mut(&mut deltas.u, u_width, 0, m));
            let d_h = Some((write, rows_mut(&mut deltas.normed, c, 0, m)));
            let linear = LinearBackward { x: h, u, d_y, d_u, is_last: role == Role::Up };
            self.linear_backward(index, role, m, linear, d_h, gradients)?;
            write = Write::Add;
        }
        let d_u = rows(&deltas.u, u_width, 0, m);
        let d_h = self.with_dropout(Some(rows_mut(&mut deltas.normed, c, 0, m)));
        self.project_backward(index, Group::GateUp, tile_rows(&tile), h, d_u, d_h, gradients)?;
        if let (Some(experts), Some(gate)) = (from.experts.as_mut(), deltas.gate.as_mut())
            && config.is_routed(index)
        {
            // The MLP's own gradients are used up: their buffers take those of one expert after the other.
            let inside = ExpertDeltas { act: &mut deltas.act, gate, up: &mut deltas.up };
            let (d_out, d_h) =
                (rows(&deltas.stream, c, tile.start, m), rows_mut(&mut deltas.normed, c, 0, m));
            self.base.experts_backward(index, (m, at), experts, inside, d_out, d_h)?;
        }
        let (d_h, d_mid) = (rows(&deltas.normed, c, 0, m), rows_mut(&mut deltas.stream, c, tile.start, m));
        self.base.norm_backward(Some(index), Role::FfnNorm, mid, d_h, Write::Add, d_mid)
    }

    /// The gradient of what goes into Wdown.
    fn down_backward(
        &self,
        index: usize,
        tile: &Range<usize>,
        (from, at): (&MlpActivations<D::Buffer, D::Indices>, usize),
        deltas: &mut Deltas<D::Buffer>,
        gradients: &mut Gradients<D>,
    ) -> Result<()> {
        let (c, f, m) = (self.config().hidden, self.config().mlp_width(index), tile.len());
        let u_width = self.u_width(index, Group::Down);
        let mut d_out = rows(&deltas.stream, c, tile.start, m);
        if let Some(out) = &from.out {
            let d_raw = rows_mut(&mut deltas.normed, c, 0, m);
            self.base.norm_backward(
                Some(index),
                Role::PostFfnNorm,
                rows(out, c, at, m),
                d_out,
                Write::Set,
                d_raw,
            )?;
            d_out = rows(&deltas.normed, c, 0, m);
        }
        let linear = LinearBackward {
            x: rows(&from.act, f, at, m),
            u: rows(&from.u_down, u_width, at, m),
            d_y: d_out,
            d_u: rows_mut(&mut deltas.u, u_width, 0, m),
            is_last: true,
        };
        let d_act = Some((Write::Set, rows_mut(&mut deltas.act, f, 0, m)));
        self.linear_backward(index, Role::Down, m, linear, d_act, gradients)?;
        let (x, d_u) = (rows(&from.act, f, at, m), rows(&deltas.u, u_width, 0, m));
        let d_act = self.with_dropout(Some(rows_mut(&mut deltas.act, f, 0, m)));
        self.project_backward(index, Group::Down, tile_rows(tile), x, d_u, d_act, gradients)
    }
}
