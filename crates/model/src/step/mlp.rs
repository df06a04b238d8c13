//! The gated MLP of a layer, forward and backward, a tile of tokens at a time.
//!
//! out = mid + Wdown · (silu(Wgate·h) · (Wup·h)), h = norm(mid)

use std::ops::Range;

use super::pass::{LinearBackward, Pass, rows, rows_mut};
use super::workspace::{Activations, Deltas, MlpActivations};
use crate::Result;
use crate::device::{Buffer, Device, View, Write};
use crate::family::Role;
use crate::lora::{Gradients, Group};

/// Tiles of at most `tile` of `n` tokens.
fn tiles(n: usize, tile: usize) -> impl Iterator<Item = Range<usize>> {
    (0..n).step_by(tile).map(move |first| first..(first + tile).min(n))
}

impl<D: Device> Pass<'_, D> {
    /// The stream after a layer, from the stream after its attention.
    pub fn mlp_forward(
        &self,
        index: usize,
        activations: &mut Activations<D::Buffer>,
        out: &mut D::Buffer,
    ) -> Result<()> {
        let (c, f, n) = (self.config().hidden, self.config().intermediate, self.n);
        let Activations { mid, mlp, holds_mlp, .. } = activations;
        *holds_mlp = None;
        self.device().copy(rows(mid, c, 0, n), rows_mut(out, c, 0, n))?;
        for tile in tiles(n, mlp.tile_tokens) {
            let m = tile.len();
            self.gate_forward(index, m, rows(mid, c, tile.start, m), mlp, 0)?;
            let act = rows(&mlp.act, f, 0, m);
            let u = rows(&mlp.u_down, self.u_width(index, Group::Down), 0, m);
            self.linear(index, Role::Down, m, act, u, Write::Add, rows_mut(out, c, tile.start, m))?;
        }
        if n <= mlp.tile_tokens {
            *holds_mlp = Some(index);
        }
        Ok(())
    }

    /// The MLP of a tile up to what goes into Wdown: all that a backward needs. Row `at` of `to` is the first.
    fn gate_forward(
        &self,
        index: usize,
        m: usize,
        mid: View<'_, D::Buffer>,
        to: &mut MlpActivations<D::Buffer>,
        at: usize,
    ) -> Result<()> {
        let (device, config, layer) = (self.device(), self.config(), self.layer(index));
        let (c, f) = (config.hidden, config.intermediate);
        device.rms_norm(mid, layer.ffn_norm.all(), config.rms_eps, rows_mut(&mut to.mlp_in, c, at, m))?;
        let h = rows(&to.mlp_in, c, at, m);
        let u_width = self.u_width(index, Group::GateUp);
        self.project(index, Group::GateUp, m, h, rows_mut(&mut to.u_gate_up, u_width, at, m))?;
        let u = rows(&to.u_gate_up, u_width, at, m);
        self.linear(index, Role::Gate, m, h, u, Write::Set, rows_mut(&mut to.gate, f, at, m))?;
        self.linear(index, Role::Up, m, h, u, Write::Set, rows_mut(&mut to.up, f, at, m))?;
        let (gate, up) = (rows(&to.gate, f, at, m), rows(&to.up, f, at, m));
        device.swiglu(gate, up, rows_mut(&mut to.act, f, at, m))?;
        let u_width = self.u_width(index, Group::Down);
        self.project(index, Group::Down, m, rows(&to.act, f, at, m), rows_mut(&mut to.u_down, u_width, at, m))
    }

    /// Turns the gradient of a layer's output (in `deltas.stream`) into that of `mid`, in place.
    ///
    /// Runs the tile's forward again unless `activations` still holds it.
    pub fn mlp_backward(
        &self,
        index: usize,
        activations: &mut Activations<D::Buffer>,
        deltas: &mut Deltas<D::Buffer>,
        gradients: &mut Gradients<D>,
    ) -> Result<()> {
        let c = self.config().hidden;
        let Activations { mid, mlp, holds_mlp, .. } = activations;
        let is_held = holds_mlp.take() == Some(index);
        let tile_tokens = deltas.gate.len() / self.config().intermediate;
        for tile in tiles(self.n, tile_tokens) {
            let (m, mid) = (tile.len(), rows(mid, c, tile.start, tile.len()));
            let at = if is_held { tile.start } else { 0 };
            if !is_held {
                self.gate_forward(index, m, mid, mlp, at)?;
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
        (from, at): (&MlpActivations<D::Buffer>, usize),
        deltas: &mut Deltas<D::Buffer>,
        gradients: &mut Gradients<D>,
    ) -> Result<()> {
        let (device, config, layer) = (self.device(), self.config(), self.layer(index));
        let (c, f, m) = (config.hidden, config.intermediate, tile.len());
        self.down_backward(index, &tile, (from, at), deltas, gradients)?;

        let (gate, up, d_act) =
            (rows(&from.gate, f, at, m), rows(&from.up, f, at, m), rows(&deltas.act, f, 0, m));
        let (d_gate, d_up) = (rows_mut(&mut deltas.gate, f, 0, m), rows_mut(&mut deltas.up, f, 0, m));
        device.swiglu_backward(gate, up, d_act, d_gate, d_up)?;

        let u_width = self.u_width(index, Group::GateUp);
        let u = rows(&from.u_gate_up, u_width, at, m);
        for (role, d_y, write) in [(Role::Gate, &deltas.gate, Write::Set), (Role::Up, &deltas.up, Write::Add)]
        {
            let (d_y, d_u) = (rows(d_y, f, 0, m), rows_mut(&mut deltas.u, u_width, 0, m));
            let d_h = Some((write, rows_mut(&mut deltas.normed, c, 0, m)));
            self.linear_backward(index, role, m, LinearBackward { u, d_y, d_u }, d_h, gradients)?;
        }
        let (h, d_u) = (rows(&from.mlp_in, c, at, m), rows(&deltas.u, u_width, 0, m));
        let d_h = Some(rows_mut(&mut deltas.normed, c, 0, m));
        self.project_backward(index, Group::GateUp, m, h, d_u, d_h, gradients)?;
        let (d_h, d_mid) = (rows(&deltas.normed, c, 0, m), rows_mut(&mut deltas.stream, c, tile.start, m));
        device.rms_norm_backward(mid, layer.ffn_norm.all(), config.rms_eps, d_h, Write::Add, d_mid)
    }

    /// The gradient of the gated product, through Wdown.
    fn down_backward(
        &self,
        index: usize,
        tile: &Range<usize>,
        (from, at): (&MlpActivations<D::Buffer>, usize),
        deltas: &mut Deltas<D::Buffer>,
        gradients: &mut Gradients<D>,
    ) -> Result<()> {
        let (c, f, m) = (self.config().hidden, self.config().intermediate, tile.len());
        let u_width = self.u_width(index, Group::Down);
        let linear = LinearBackward {
            u: rows(&from.u_down, u_width, at, m),
            d_y: rows(&deltas.stream, c, tile.start, m),
            d_u: rows_mut(&mut deltas.u, u_width, 0, m),
        };
        let d_act = Some((Write::Set, rows_mut(&mut deltas.act, f, 0, m)));
        self.linear_backward(index, Role::Down, m, linear, d_act, gradients)?;
        let (x, d_u) = (rows(&from.act, f, at, m), rows(&deltas.u, u_width, 0, m));
        let d_act = Some(rows_mut(&mut deltas.act, f, 0, m));
        self.project_backward(index, Group::Down, m, x, d_u, d_act, gradients)
    }
}
