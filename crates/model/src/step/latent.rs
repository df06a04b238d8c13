//! Queries, keys and values of latent attention, forward and backward.
//!
//! c = norm(Wlatent·h), k_h = [Wkeys_h·c, rope(Wrotated·h)], v_h = Wvalues_h·c, q = rope(Wq·h): the keys of all heads
//! share what is rotated. Letters as in [`crate::config::Latent`]; the keys' matrix is held transposed, head by head.

use super::pass::{Pass, rows, rows_mut};
use super::workspace::{Deltas, Kept};
use crate::Result;
use crate::config::LatentHeads;
use crate::device::{Buffer, Device, Rotation, View, Write};
use crate::family::Role;
use crate::lora::{Gradients, Group};

impl<D: Device> Pass<'_, D> {
    /// Rotated queries and keys, and values, from what the layer's norm gave: all that attention needs.
    pub fn latent_forward(&self, index: usize, to: &mut Kept<D>) -> Result<()> {
        let (device, n, c, heads) =
            (self.device(), self.n, self.config().hidden, self.config().latent_heads());
        let (h, u_width) = (rows(&to.attn_in, c, 0, n), self.u_width(index, Group::Qkv));
        let u = rows(&to.u_qkv, u_width, 0, n);
        let kept = to.latent.as_mut().expect("a step over latent attention has room for it");
        let (l, p) = (heads.rank, heads.rotated);
        self.linear(index, Role::Q, n, h, u, Write::Set, rows_mut(&mut to.q, self.q_width(), 0, n))?;
        self.linear(index, Role::KvLatent, n, h, u, Write::Set, rows_mut(&mut kept.compressed, l, 0, n))?;
        self.linear(index, Role::KvRotated, n, h, u, Write::Set, rows_mut(&mut kept.rotated, p, 0, n))?;
        let (compressed, latent) = (rows(&kept.compressed, l, 0, n), rows_mut(&mut kept.latent, l, 0, n));
        self.base.norm(Some(index), Role::KvNorm, compressed, latent)?;
        let q = rows_mut(&mut to.q, self.q_width(), 0, n);
        self.rotate(index, q, self.config().rotated(heads.n_heads), Rotation::Forward)?;
        let shared = rows_mut(&mut kept.rotated, p, 0, n);
        self.rotate(index, shared, self.config().rotated_key(), Rotation::Forward)?;

        let (latent, u_width) = (rows(&kept.latent, l, 0, n), self.u_width(index, Group::KvB));
        self.project(index, Group::KvB, self.all_rows(), latent, rows_mut(&mut kept.u, u_width, 0, n))?;
        let values = rows_mut(&mut to.v, self.value_width(), 0, n);
        let all = 0..self.value_width();
        device.linear(latent, self.base.matrix(index, Role::LatentValues), all, Write::Set, values)?;
        let (u, rotated) = (rows(&kept.u, u_width, 0, n), rows(&kept.rotated, p, 0, n));
        for head in 0..heads.n_heads {
            self.head_keys(index, heads, head, latent, rotated, &mut to.k)?;
            let Some(adapter) = self.adapter else { continue };
            let keys =
                to.k.first_mut(n * self.kv_width()).matrix(n, self.kv_width()).columns(heads.key(head));
            adapter.add_update(index, &heads.module_keys(head), n, u, keys)?;
            let width = self.value_width();
            let values = to.v.first_mut(n * width).matrix(n, width).columns(heads.values(head));
            adapter.add_update(index, &heads.module_values(head), n, u, values)?;
        }
        Ok(())
    }

    /// One head's keys of the base: what the latent makes, and the rotated part beside it.
    fn head_keys(
        &self,
        index: usize,
        heads: LatentHeads,
        head: usize,
        latent: View<'_, D::Buffer>,
        rotated: View<'_, D::Buffer>,
        keys: &mut D::Buffer,
    ) -> Result<()> {
        let (device, n, width) = (self.device(), self.n, self.kv_width());
        let mut copy = self.copy.borrow_mut();
        let unrotated = copy.first_mut(n * heads.unrotated);
        // Each head's matrix is transposed: its product is that of a backward pass.
        let weights = self.base.matrix(index, Role::LatentKeys);
        device.linear_backward(latent, weights, heads.latent(head), Write::Set, unrotated)?;
        let unrotated = copy.first(n * heads.unrotated).matrix(n, heads.unrotated);
        let to = keys.first_mut(n * width).matrix(n, width).columns(heads.key(head));
        device.copy_columns(unrotated, Write::Set, to)?;
        let to = keys.first_mut(n * width).matrix(n, width).columns(heads.rotated_key(head));
        device.copy_columns(rotated.matrix(n, heads.rotated), Write::Set, to)
    }

    /// The gradients of what the layer's input was projected to, from those of queries, keys and values: `deltas.q`,
    /// and `compressed` and `rotated` of the latent's.
    pub fn latent_backward(
        &self,
        index: usize,
        from: &Kept<D>,
        deltas: &mut Deltas<D::Buffer>,
        gradients: &mut Gradients<D>,
    ) -> Result<()> {
        let (device, n, heads) = (self.device(), self.n, self.config().latent_heads());
        let kept = from.latent.as_ref().expect("a step over latent attention has room for it");
        let Deltas { q, k, v, u: d_u, latent: inside, .. } = deltas;
        let inside = inside.as_mut().expect("a step over latent attention has room for it");
        let (l, p) = (heads.rank, heads.rotated);
        let rotated = self.config().rotated(heads.n_heads);
        self.rotate(index, rows_mut(q, self.q_width(), 0, n), rotated, Rotation::Backward)?;
        let d_keys = k.first(n * self.kv_width()).matrix(n, self.kv_width());
        let d_values = v.first(n * self.value_width());
        let d_latent = rows_mut(&mut inside.latent, l, 0, n);
        let all = 0..self.value_width();
        device.linear_backward(
            d_values,
            self.base.matrix(index, Role::LatentValues),
            all,
            Write::Set,
            d_latent,
        )?;
        let d_values = d_values.matrix(n, self.value_width());

        let u_width = self.u_width(index, Group::KvB);
        let u = rows(&kept.u, u_width, 0, n);
        for head in 0..heads.n_heads {
            let write = if head == 0 { Write::Set } else { Write::Add };
            let shared = rows_mut(&mut inside.rotated, p, 0, n).matrix(n, p);
            device.copy_columns(d_keys.columns(heads.rotated_key(head)), write, shared)?;
            let mut copy = self.copy.borrow_mut();
            let d_key = copy.first_mut(n * heads.unrotated).matrix(n, heads.unrotated);
            device.copy_columns(d_keys.columns(heads.key(head)), Write::Set, d_key)?;
            let (d_key, weights) =
                (copy.first(n * heads.unrotated), self.base.matrix(index, Role::LatentKeys));
            let d_latent = rows_mut(&mut inside.latent, l, 0, n);
            device.linear(d_key, weights, heads.latent(head), Write::Add, d_latent)?;
            let Some(adapter) = self.adapter else { continue };
            let parts = [
                (heads.module_keys(head), d_keys.columns(heads.key(head))),
                (heads.module_values(head), d_values.columns(heads.values(head))),
            ];
            for (projection, d_y) in parts {
                let d_u = rows_mut(d_u, u_width, 0, n);
                adapter.update_backward(index, &projection, n, u, d_y, d_u, gradients)?;
            }
        }
        let (latent, d_u) = (rows(&kept.latent, l, 0, n), rows(d_u, u_width, 0, n));
        let d_latent = Some(rows_mut(&mut inside.latent, l, 0, n));
        self.project_backward(index, Group::KvB, self.all_rows(), latent, d_u, d_latent, gradients)?;
        let (compressed, d_latent) = (rows(&kept.compressed, l, 0, n), rows(&inside.latent, l, 0, n));
        let d_compressed = rows_mut(&mut inside.compressed, l, 0, n);
        let norm = Role::KvNorm;
        self.base.norm_backward(Some(index), norm, compressed, d_latent, Write::Set, d_compressed)?;
        let shared = rows_mut(&mut inside.rotated, p, 0, n);
        self.rotate(index, shared, self.config().rotated_key(), Rotation::Backward)
    }
}
