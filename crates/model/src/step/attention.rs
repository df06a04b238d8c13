//! The attention half of a layer, forward and backward.
//!
//! mid = x + norm(Wo · attention(rope(norm(Wq·h)), rope(norm(Wk·h)), Wv·h)), h = norm(x); the inner norms where the
//! family has them

use super::pass::{LinearBackward, Pass, rows, rows_mut};
use super::workspace::{Deltas, Kept};
use crate::Result;
use crate::device::{Buffer, Device, Rotated, Rotation, View, ViewMut, Write};
use crate::family::Role;
use crate::importance::Input;
use crate::lora::{Gradients, Group};

impl<D: Device> Pass<'_, D> {
    /// Everything of the attention half of a layer, kept in `to`.
    pub fn attention_forward(&self, index: usize, x: View<'_, D::Buffer>, to: &mut Kept<D>) -> Result<()> {
        let (device, config, n) = (self.device(), self.config(), self.n);
        let (c, q_width, kv_width) = (config.hidden, self.q_width(), self.kv_width());
        let (v_width, attn_width) = (self.value_width(), self.attended_width());
        to.holds_attention = None;
        self.base.norm(Some(index), Role::AttnNorm, x, rows_mut(&mut to.attn_in, c, 0, n))?;
        let h = rows(&to.attn_in, c, 0, n);
        let u_width = self.u_width(index, Group::Qkv);
        self.project(index, Group::Qkv, self.all_rows(), h, rows_mut(&mut to.u_qkv, u_width, 0, n))?;
        if config.latent.is_some() {
            self.latent_forward(index, to)?;
        } else {
            self.heads_forward(index, to)?;
        }

        if config.latent.is_some() {
            self.measure(index, Input::Queries, rows(&to.q, q_width, 0, n))?;
        }
        let (q, k, v) = (rows(&to.q, q_width, 0, n), rows(&to.k, kv_width, 0, n), rows(&to.v, v_width, 0, n));
        let (attn, lse) =
            (rows_mut(&mut to.attn, attn_width, 0, n), rows_mut(&mut to.lse, config.n_heads, 0, n));
        device.attention(config.heads(index), self.segments, q, k, v, attn, lse)?;

        let attn = rows(&to.attn, attn_width, 0, n);
        let u_width = self.u_width(index, Group::O);
        self.project(index, Group::O, self.all_rows(), attn, rows_mut(&mut to.u_o, u_width, 0, n))?;
        let u = rows(&to.u_o, u_width, 0, n);
        let mut mid = rows_mut(&mut to.mid, c, 0, n);
        if let Some(out) = &mut to.attn_out {
            self.linear(index, Role::O, n, attn, u, Write::Set, rows_mut(out, c, 0, n))?;
            self.base.norm(Some(index), Role::PostAttnNorm, rows(out, c, 0, n), mid.reborrow())?;
            device.add(x, mid)?;
        } else {
            device.copy(x, mid.reborrow())?;
            self.linear(index, Role::O, n, attn, u, Write::Add, mid)?;
        }
        to.holds_attention = Some(index);
        Ok(())
    }

    /// Rotated queries and keys, and values, each projected from what the layer's norm gave.
    fn heads_forward(&self, index: usize, to: &mut Kept<D>) -> Result<()> {
        let (config, n) = (self.config(), self.n);
        let (c, q_width, kv_width) = (config.hidden, self.q_width(), self.kv_width());
        let (h, u_width) = (rows(&to.attn_in, c, 0, n), self.u_width(index, Group::Qkv));
        let u = rows(&to.u_qkv, u_width, 0, n);
        let (q, raw) =
            (rows_mut(&mut to.q, q_width, 0, n), to.q_raw.as_mut().map(|b| rows_mut(b, q_width, 0, n)));
        self.project_heads(index, (Role::Q, Role::QNorm), h, u, raw, q)?;
        let (k, raw) =
            (rows_mut(&mut to.k, kv_width, 0, n), to.k_raw.as_mut().map(|b| rows_mut(b, kv_width, 0, n)));
        self.project_heads(index, (Role::K, Role::KNorm), h, u, raw, k)?;
        self.linear(index, Role::V, n, h, u, Write::Set, rows_mut(&mut to.v, kv_width, 0, n))?;
        let (q, k) = (rows_mut(&mut to.q, q_width, 0, n), rows_mut(&mut to.k, kv_width, 0, n));
        self.rotate(index, q, config.rotated(config.n_heads), Rotation::Forward)?;
        self.rotate(index, k, config.rotated(config.n_kv_heads), Rotation::Forward)
    }

    /// Queries or keys: projected, and normed head by head where the family does.
    #[allow(clippy::too_many_arguments)]
    fn project_heads(
        &self,
        index: usize,
        (role, norm): (Role, Role),
        h: View<'_, D::Buffer>,
        u: View<'_, D::Buffer>,
        raw: Option<ViewMut<'_, D::Buffer>>,
        out: ViewMut<'_, D::Buffer>,
    ) -> Result<()> {
        let Some(mut raw) = raw else {
            return self.linear(index, role, self.n, h, u, Write::Set, out);
        };
        self.linear(index, role, self.n, h, u, Write::Set, raw.reborrow())?;
        self.base.norm(Some(index), norm, raw.into_view(), out)
    }

    pub fn rotate(
        &self,
        index: usize,
        x: ViewMut<'_, D::Buffer>,
        rotated: Rotated,
        rotation: Rotation,
    ) -> Result<()> {
        let (cos, sin) = &self.rotary[self.config().rotary_index(index)];
        self.device().rope(x, rotated, self.rotary_rows, cos.all(), sin.all(), rotation)
    }

    /// Turns the gradient of `mid` (in `deltas.stream`) into that of x, in place, and adds up the adapter's.
    ///
    /// The first layer's x is the frozen embedding: its gradient is of no use and is left out.
    pub fn attention_backward(
        &self,
        index: usize,
        x: View<'_, D::Buffer>,
        from: &Kept<D>,
        deltas: &mut Deltas<D::Buffer>,
        gradients: &mut Gradients<D>,
    ) -> Result<()> {
        let (device, config, n) = (self.device(), self.config(), self.n);
        let (c, q_width, kv_width) = (config.hidden, self.q_width(), self.kv_width());
        let (v_width, attn_width) = (self.value_width(), self.attended_width());
        self.output_backward(index, from, deltas, gradients)?;

        let (q, k, v) =
            (rows(&from.q, q_width, 0, n), rows(&from.k, kv_width, 0, n), rows(&from.v, v_width, 0, n));
        let (attn, lse) = (rows(&from.attn, attn_width, 0, n), rows(&from.lse, config.n_heads, 0, n));
        let d_attn = rows(&deltas.attn, attn_width, 0, n);
        let (d_q, d_k, d_v) = (
            rows_mut(&mut deltas.q, q_width, 0, n),
            rows_mut(&mut deltas.k, kv_width, 0, n),
            rows_mut(&mut deltas.v, v_width, 0, n),
        );
        device.attention_backward(
            config.heads(index),
            self.segments,
            q,
            k,
            v,
            attn,
            lse,
            d_attn,
            d_q,
            d_k,
            d_v,
        )?;
        if config.latent.is_some() {
            self.latent_backward(index, from, deltas, gradients)?;
        } else {
            let (q, k) = (rows_mut(&mut deltas.q, q_width, 0, n), rows_mut(&mut deltas.k, kv_width, 0, n));
            self.rotate(index, q, config.rotated(config.n_heads), Rotation::Backward)?;
            self.rotate(index, k, config.rotated(config.n_kv_heads), Rotation::Backward)?;
        }
        let wants_input = index > 0;
        let (h, u_width) = (rows(&from.attn_in, c, 0, n), self.u_width(index, Group::Qkv));
        let u = rows(&from.u_qkv, u_width, 0, n);
        let sources = if let Some(inside) = &deltas.latent {
            let [l, p] =
                [Role::KvLatent, Role::KvRotated].map(|role| config.projection(index, role).rows.len());
            [
                (Role::Q, rows(&deltas.q, q_width, 0, n), Write::Set),
                (Role::KvLatent, rows(&inside.compressed, l, 0, n), Write::Add),
                (Role::KvRotated, rows(&inside.rotated, p, 0, n), Write::Add),
            ]
        } else {
            // The attention's own gradient is used up: its buffer takes that of the queries before their norm.
            let (raw, to) = (from.q_raw.as_ref(), Some(&mut deltas.attn));
            let d_q = self.heads_backward((index, Role::QNorm), raw, &deltas.q, to, q_width)?;
            let (raw, to) = (from.k_raw.as_ref(), deltas.k_raw.as_mut());
            let d_k = self.heads_backward((index, Role::KNorm), raw, &deltas.k, to, kv_width)?;
            let d_v = rows(&deltas.v, v_width, 0, n);
            [(Role::Q, d_q, Write::Set), (Role::K, d_k, Write::Add), (Role::V, d_v, Write::Add)]
        };
        for (i, (role, d_y, write)) in sources.into_iter().enumerate() {
            let d_u = rows_mut(&mut deltas.u, u_width, 0, n);
            let linear = LinearBackward { x: h, u, d_y, d_u, is_last: i == 2 };
            let d_h = wants_input.then(|| (write, rows_mut(&mut deltas.normed, c, 0, n)));
            self.linear_backward(index, role, n, linear, d_h, gradients)?;
        }
        let d_h = wants_input.then(|| rows_mut(&mut deltas.normed, c, 0, n));
        self.project_backward(
            index,
            Group::Qkv,
            self.all_rows(),
            h,
            rows(&deltas.u, u_width, 0, n),
            self.with_dropout(d_h),
            gradients,
        )?;
        if !wants_input {
            return Ok(());
        }
        let (d_h, d_x) = (rows(&deltas.normed, c, 0, n), rows_mut(&mut deltas.stream, c, 0, n));
        self.base.norm_backward(Some(index), Role::AttnNorm, x, d_h, Write::Add, d_x)
    }

    /// The gradient of the attention's output, from that of `mid`, through Wo.
    fn output_backward(
        &self,
        index: usize,
        from: &Kept<D>,
        deltas: &mut Deltas<D::Buffer>,
        gradients: &mut Gradients<D>,
    ) -> Result<()> {
        let (n, c, attn_width) = (self.n, self.config().hidden, self.attended_width());
        let u_width = self.u_width(index, Group::O);
        let mut d_out = rows(&deltas.stream, c, 0, n);
        if let Some(out) = &from.attn_out {
            let d_raw = rows_mut(&mut deltas.normed, c, 0, n);
            self.base.norm_backward(
                Some(index),
                Role::PostAttnNorm,
                rows(out, c, 0, n),
                d_out,
                Write::Set,
                d_raw,
            )?;
            d_out = rows(&deltas.normed, c, 0, n);
        }
        let linear = LinearBackward {
            x: rows(&from.attn, attn_width, 0, n),
            u: rows(&from.u_o, u_width, 0, n),
            d_y: d_out,
            d_u: rows_mut(&mut deltas.u, u_width, 0, n),
            is_last: true,
        };
        let d_attn = Some((Write::Set, rows_mut(&mut deltas.attn, attn_width, 0, n)));
        self.linear_backward(index, Role::O, n, linear, d_attn, gradients)?;
        let (x, d_u) = (rows(&from.attn, attn_width, 0, n), rows(&deltas.u, u_width, 0, n));
        let d_attn = self.with_dropout(Some(rows_mut(&mut deltas.attn, attn_width, 0, n)));
        self.project_backward(index, Group::O, self.all_rows(), x, d_u, d_attn, gradients)
    }

    /// The gradient of queries or keys before their norm, which is the one after it where there is no norm.
    fn heads_backward<'b>(
        &self,
        (index, norm): (usize, Role),
        raw: Option<&D::Buffer>,
        d_heads: &'b D::Buffer,
        to: Option<&'b mut D::Buffer>,
        width: usize,
    ) -> Result<View<'b, D::Buffer>> {
        let n = self.n;
        let (Some(raw), Some(to)) = (raw, to) else {
            return Ok(rows(d_heads, width, 0, n));
        };
        let (raw, d_heads, d_raw) =
            (rows(raw, width, 0, n), rows(d_heads, width, 0, n), rows_mut(to, width, 0, n));
        self.base.norm_backward(Some(index), norm, raw, d_heads, Write::Set, d_raw)?;
        Ok(rows(to, width, 0, n))
    }
}
