//! The low-rank part of a linear layer, forward and backward, side by side.
//!
//! For a group of layers that share the input x (N, C_in), with A stacked to (W, C_in) and u = x·Aᵀ (N, W):
//!
//! forward   y_i += s · u_i · B_iᵀ
//! backward  dB_i += s · dy_iᵀ · u_i,  du_i = s · dy_i · B_i,  dA += duᵀ · x,  dx += du · A
//!
//! where u_i are the R columns of u that belong to layer i of the group. A fused layer is run in parts, each with some
//! rows of its B; the gradients du_i of the parts add up. With dropout x is drop(x) here, and its gradient goes through
//! the same mask. With DoRA y is the sum x·Wᵀ + s·u·Bᵀ times m / n, and dy stands for dy·m/n.

use super::{Adapter, Gradients, Group};
use crate::Result;
use crate::config::Projection;
use crate::device::{Buffer, Device, LowRank, Matrix, MatrixMut, Operand, View, ViewMut, Write};
use Operand::{Plain, Transposed};

/// The factors of some rows of a linear layer.
pub(crate) struct Factors<'a, B> {
    /// A (R, C_in)
    pub a: Matrix<'a, B>,
    /// B[rows] (|rows|, R)
    pub b: Matrix<'a, B>,
    /// s
    pub scale: f32,
}

impl<D: Device> Adapter<D> {
    /// The factors themselves, for a layer that is not run from its input to its output; `None` when it is not adapted.
    pub(crate) fn factors(&self, layer: usize, projection: &Projection) -> Option<Factors<'_, D::Buffer>> {
        let stack = self.layout.stack(layer, Group::of(projection.stored));
        let member = stack.member(projection.stored)?;
        let (rank, scale) = (member.rank, member.scale);
        let a = self.weights.part(member.a.clone()).matrix(rank, stack.cols);
        let b = self.weights.part(member.b_rows(&projection.rows)).matrix(projection.rows.len(), rank);
        Some(Factors { a, b, scale })
    }

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

    /// s · u_i · B[rows]ᵀ of one layer of a group, or of a part of a fused one, to be added; `None` when not adapted
    ///
    /// u (n, width)
    pub(crate) fn update<'a>(
        &'a self,
        layer: usize,
        projection: &Projection,
        n: usize,
        u: View<'a, D::Buffer>,
    ) -> Option<LowRank<'a, D::Buffer>> {
        let stack = self.layout.stack(layer, Group::of(projection.stored));
        let member = stack.member(projection.stored)?;
        let b = self.weights.part(member.b_rows(&projection.rows)).matrix(projection.rows.len(), member.rank);
        let u = u.matrix(n, stack.width).columns(member.columns.clone());
        Some(LowRank { u, b, scale: member.scale })
    }

    /// du · A of a group, to be added to the gradient of its input; `None` when the group is not adapted
    ///
    /// du (n, width)
    pub(crate) fn input_update<'a>(
        &'a self,
        layer: usize,
        group: Group,
        n: usize,
        d_u: View<'a, D::Buffer>,
    ) -> Option<LowRank<'a, D::Buffer>> {
        let stack = self.layout.stack(layer, group);
        let a = self.weights.part(stack.a.clone()).matrix(stack.width, stack.cols);
        (stack.width > 0).then(|| LowRank { u: d_u.matrix(n, stack.width), b: a, scale: 1.0 })
    }

    /// y += s · u_i · B[rows]ᵀ for one layer of a group, or a part of a fused one      u (n, width), y (n, |rows|)
    ///
    /// Does nothing when not adapted.
    ///
    /// # Errors
    /// [`crate::Error::Shape`].
    pub fn add_update(
        &self,
        layer: usize,
        projection: &Projection,
        n: usize,
        u: View<'_, D::Buffer>,
        y: MatrixMut<'_, D::Buffer>,
    ) -> Result<()> {
        match self.update(layer, projection, n, u) {
            Some(LowRank { u, b, scale }) => {
                self.device.matmul(scale, u, Plain, b, Transposed, Write::Add, y)
            }
            None => Ok(()),
        }
    }

    /// dm[rows] += Σ over the batch of dy · (sum / n)      dy, sum / n (n, |rows|). Does nothing without DoRA.
    ///
    /// # Errors
    /// [`crate::Error::Shape`].
    pub fn magnitude_backward(
        &self,
        layer: usize,
        projection: &Projection,
        d_y: View<'_, D::Buffer>,
        normed: View<'_, D::Buffer>,
        gradients: &mut Gradients<D>,
    ) -> Result<()> {
        let stack = self.layout.stack(layer, Group::of(projection.stored));
        let magnitude = stack.member(projection.stored).and_then(|member| member.magnitude.clone());
        let Some(magnitude) = magnitude else { return Ok(()) };
        let rows = magnitude.start + projection.rows.start..magnitude.start + projection.rows.end;
        self.device.column_dots(d_y, normed, gradients.flat.part_mut(rows))
    }

    /// dB[rows] += s · dyᵀ · u_i and du_i (=|+=) s · dy · B[rows] for one layer of a group, or a part of a fused one
    ///
    /// The first part of a layer sets du_i. Does nothing when not adapted.
    ///
    /// # Errors
    /// [`crate::Error::Shape`].
    #[allow(clippy::too_many_arguments)]
    pub fn update_backward(
        &self,
        layer: usize,
        projection: &Projection,
        n: usize,
        u: View<'_, D::Buffer>,
        d_y: Matrix<'_, D::Buffer>,
        d_u: ViewMut<'_, D::Buffer>,
        gradients: &mut Gradients<D>,
    ) -> Result<()> {
        let stack = self.layout.stack(layer, Group::of(projection.stored));
        let Some(member) = stack.member(projection.stored) else { return Ok(()) };
        let (rank, scale, n_rows) = (member.rank, member.scale, projection.rows.len());
        let b_rows = member.b_rows(&projection.rows);
        let b = self.weights.part(b_rows.clone()).matrix(n_rows, rank);
        let d_b = gradients.flat.part_mut(b_rows).matrix(n_rows, rank);
        let u = u.matrix(n, stack.width).columns(member.columns.clone());
        let d_u = d_u.matrix(n, stack.width).columns(member.columns.clone());
        let write = if projection.rows.start == 0 { Write::Set } else { Write::Add };
        self.device.matmul(scale, d_y, Transposed, u, Plain, Write::Add, d_b)?;
        self.device.matmul(scale, d_y, Plain, b, Plain, write, d_u)
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
        self.a_backward(layer, group, n, x, d_u, gradients)?;
        match d_x {
            Some(d_x) => self.input_backward(layer, group, n, d_u, Write::Add, d_x),
            None => Ok(()),
        }
    }

    /// dA += duᵀ · x for a group
    pub(crate) fn a_backward(
        &self,
        layer: usize,
        group: Group,
        n: usize,
        x: View<'_, D::Buffer>,
        d_u: View<'_, D::Buffer>,
        gradients: &mut Gradients<D>,
    ) -> Result<()> {
        let stack = self.layout.stack(layer, group);
        if stack.width == 0 {
            return Ok(());
        }
        let d_u = d_u.matrix(n, stack.width);
        let d_a = gradients.flat.part_mut(stack.a.clone()).matrix(stack.width, stack.cols);
        self.device.matmul(1.0, d_u, Transposed, x.matrix(n, stack.cols), Plain, Write::Add, d_a)
    }

    /// dx (=|+=) du · A for a group
    pub(crate) fn input_backward(
        &self,
        layer: usize,
        group: Group,
        n: usize,
        d_u: View<'_, D::Buffer>,
        write: Write,
        d_x: ViewMut<'_, D::Buffer>,
    ) -> Result<()> {
        let stack = self.layout.stack(layer, group);
        if stack.width == 0 {
            return Ok(());
        }
        let a = self.weights.part(stack.a.clone()).matrix(stack.width, stack.cols);
        let d_u = d_u.matrix(n, stack.width);
        self.device.matmul(1.0, d_u, Plain, a, Plain, write, d_x.matrix(n, stack.cols))
    }
}
