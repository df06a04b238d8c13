//! The low-rank part of a linear layer, forward and backward, side by side.
//!
//! For a group of layers that share the input x (N, C_in), with A stacked to (W, C_in) and u = x·Aᵀ (N, W):
//!
//! forward   y_i += s · u_i · B_iᵀ
//! backward  dB_i += s · dy_iᵀ · u_i,  du_i = s · dy_i · B_i,  dA += duᵀ · x,  dx += du · A
//!
//! where u_i are the R columns of u that belong to layer i of the group.

use super::{Adapter, Gradients, Group};
use crate::Result;
use crate::device::{Buffer, Device, Operand, View, ViewMut, Write};
use crate::family::Role;
use Operand::{Plain, Transposed};

impl<D: Device> Adapter<D> {
    /// Width of the group's x·Aᵀ; 0 when nothing in the group is adapted.
    pub fn width(&self, layer: usize, group: Group) -> usize {
        self.layout.stack(layer, group).width
    }

    /// u = x·Aᵀ for a group      x (n, C_in), u (n, width). Does nothing when the group is not adapted.
    ///
    /// # Errors
    /// [`crate::Error::Shape`].
    pub fn project(
        &self,
        layer: usize,
        group: Group,
        n: usize,
        x: View<'_, D::Buffer>,
        u: ViewMut<'_, D::Buffer>,
    ) -> Result<()> {
        let stack = self.layout.stack(layer, group);
        if stack.width == 0 {
            return Ok(());
        }
        let a = self.weights.part(stack.a.clone()).matrix(stack.width, stack.cols);
        let (x, u) = (x.matrix(n, stack.cols), u.matrix(n, stack.width));
        self.device.matmul(1.0, x, Plain, a, Transposed, Write::Set, u)
    }

    /// y += s · u_i · Bᵀ for one layer of a group      u (n, width), y (n, C_out). Does nothing when not adapted.
    ///
    /// # Errors
    /// [`crate::Error::Shape`].
    pub fn add_update(
        &self,
        layer: usize,
        role: Role,
        n: usize,
        u: View<'_, D::Buffer>,
        y: ViewMut<'_, D::Buffer>,
    ) -> Result<()> {
        let stack = self.layout.stack(layer, Group::of(role));
        let Some(member) = stack.member(role) else { return Ok(()) };
        let b = self.weights.part(member.b.clone()).matrix(member.rows, self.options.rank);
        let u = u.matrix(n, stack.width).columns(member.columns.clone());
        let y = y.matrix(n, member.rows);
        self.device.matmul(self.options.scale(), u, Plain, b, Transposed, Write::Add, y)
    }

    /// dB += s · dyᵀ · u_i and du_i = s · dy · B for one layer of a group. Does nothing when not adapted.
    ///
    /// # Errors
    /// [`crate::Error::Shape`].
    #[allow(clippy::too_many_arguments)]
    pub fn update_backward(
        &self,
        layer: usize,
        role: Role,
        n: usize,
        u: View<'_, D::Buffer>,
        d_y: View<'_, D::Buffer>,
        d_u: ViewMut<'_, D::Buffer>,
        gradients: &mut Gradients<D>,
    ) -> Result<()> {
        let stack = self.layout.stack(layer, Group::of(role));
        let Some(member) = stack.member(role) else { return Ok(()) };
        let (rank, scale) = (self.options.rank, self.options.scale());
        let b = self.weights.part(member.b.clone()).matrix(member.rows, rank);
        let d_b = gradients.flat.part_mut(member.b.clone()).matrix(member.rows, rank);
        let u = u.matrix(n, stack.width).columns(member.columns.clone());
        let d_u = d_u.matrix(n, stack.width).columns(member.columns.clone());
        let d_y = d_y.matrix(n, member.rows);
        self.device.matmul(scale, d_y, Transposed, u, Plain, Write::Add, d_b)?;
        self.device.matmul(scale, d_y, Plain, b, Plain, Write::Set, d_u)
    }

    /// dA += duᵀ · x and, where wanted, dx += du · A for a group. Does nothing when the group is not adapted.
    ///
    /// # Errors
    /// [`crate::Error::Shape`].
    #[allow(clippy::too_many_arguments)]
    pub fn project_backward(
        &self,
        layer: usize,
        group: Group,
        n: usize,
        x: View<'_, D::Buffer>,
        d_u: View<'_, D::Buffer>,
        d_x: Option<ViewMut<'_, D::Buffer>>,
        gradients: &mut Gradients<D>,
    ) -> Result<()> {
        let stack = self.layout.stack(layer, group);
        if stack.width == 0 {
            return Ok(());
        }
        let d_u = d_u.matrix(n, stack.width);
        let d_a = gradients.flat.part_mut(stack.a.clone()).matrix(stack.width, stack.cols);
        self.device.matmul(1.0, d_u, Transposed, x.matrix(n, stack.cols), Plain, Write::Add, d_a)?;
        let Some(d_x) = d_x else { return Ok(()) };
        let a = self.weights.part(stack.a.clone()).matrix(stack.width, stack.cols);
        self.device.matmul(1.0, d_u, Plain, a, Plain, Write::Add, d_x.matrix(n, stack.cols))
    }
}
