//! The elastic connection of IR-QLoRA: each factor also passes on what it reads, averaged or repeated to its width.
//!
//! u = A·x + b₁·mean of each of R equal parts of x, y = B·u + b₂·u, each element repeated over its part of y; b₁ and b₂
//! begin at 0 and are trained. Both are linear, so that A + b₁·P and B + b₂·Pᵀ·C_out/R say the same, P a stretched
//! diagonal: those sums are what the adapter's A and B hold, here and in its files, where it is plain LoRA. An update
//! trains b₁ and b₂ beside A and B: their gradients are the gradient's share along the diagonal, and what they move is
//! added to it. That is exact, as long as nothing decays. Source: Qin et al. 2024, arXiv:2402.05445, section 3.3.

use super::{Adapter, Gradients, Member};
use crate::device::{Buffer, Device};
use crate::{Error, Result};

/// Checks that the parts are equal.
pub(super) fn check(member: &Member, cols: usize) -> Result<()> {
    let (rank, rows) = (member.rank, member.rows);
    if cols.is_multiple_of(rank) && rows.is_multiple_of(rank) {
        return Ok(());
    }
    let (what, found) = ("rank of an elastic connection".to_owned(), rank.to_string());
    Err(Error::InvalidAdapter { what, found, expected: format!("a divisor of {rows} and of {cols}") })
}

/// What one element of a stretched diagonal is: 1 / (length of a part) along A's rows, 1 along B's columns.
fn factors(member: &Member, cols: usize) -> [f32; 2] {
    [member.rank as f32 / cols as f32, 1.0]
}

impl<D: Device> Adapter<D> {
    /// Sets the gradients of b₁ and b₂ from those of A and B. Does nothing without the connection.
    pub(crate) fn gather_elastic(&self, gradients: &mut Gradients<D>) -> Result<()> {
        for (_, cols, member) in self.layout.members() {
            let Some(places) = &member.elastic else { continue };
            let [a_factor, b_factor] = factors(member, cols);
            let a = gradients.flat.part(member.a.clone()).matrix(member.rank, cols);
            let along_a = self.device.stretched_diagonal_sum(a)? as f32;
            let b = gradients.flat.part(member.b.clone()).matrix(member.rows, member.rank);
            let along_b = self.device.stretched_diagonal_sum(b)? as f32;
            let slopes = [a_factor * along_a, b_factor * along_b];
            self.device.upload(&slopes, gradients.flat.part_mut(places.clone()))?;
        }
        Ok(())
    }

    /// Moves what an update added to b₁ and b₂ into A and B. Does nothing without the connection.
    pub(crate) fn spread_elastic(&mut self) -> Result<()> {
        for (_, cols, member) in self.layout.members() {
            let Some(places) = &member.elastic else { continue };
            let mut moved = [0.0; 2];
            self.device.download(self.weights.part(places.clone()), &mut moved)?;
            self.device.fill(0.0, self.weights.part_mut(places.clone()))?;
            let [a_factor, b_factor] = factors(member, cols);
            let a = self.weights.part_mut(member.a.clone()).matrix(member.rank, cols);
            self.device.add_to_stretched_diagonal(a_factor * moved[0], a)?;
            let b = self.weights.part_mut(member.b.clone()).matrix(member.rows, member.rank);
            self.device.add_to_stretched_diagonal(b_factor * moved[1], b)?;
        }
        Ok(())
    }
}
