//! Latent attention in decoding: the cache holds the latent itself, to which queries are brought and from which values
//! are made after the attention, so that a token costs L + P numbers instead of the keys and values of all heads.
//!
//! q_h·k_h = (q_h·Wkeys_h)·c + rotated parts, out_h = Wvalues_h·(Σ p·c). Letters as in [`crate::config::Latent`].
//! Source: DeepSeek-AI 2024, arXiv:2405.04434, section 2.1 and appendix C.

use super::sizes::{Part, Sizes};
use super::workspace::Pass;
use crate::Result;
use crate::config::{LatentHeads, ModelConfig};
use crate::device::{Buffer, Device, Operand, View, Write};
use crate::family::Role;

/// Memory of latent attention beside that of any other.
pub(super) struct LatentRoom<B> {
    /// The latent before its norm (M, L), then one head's query or output.
    pub wide: B,
    /// The rotated part of the keys (M, P).
    pub rotated: B,
    /// Queries brought to the latent, each with its rotated part (M, H·(L + P)).
    pub queries: B,
    /// What the attention gives (M, H·L).
    pub attended: B,
    /// One head's unrotated query, or its values (M, U or E).
    narrow: B,
    /// An adapter's R columns.
    low_rank: B,
}

impl<B: Buffer> LatentRoom<B> {
    /// The memory, in a model of latent attention.
    pub fn new<D: Device<Buffer = B>>(
        device: &D,
        config: &ModelConfig,
        sizes: &Sizes,
    ) -> Result<Option<Self>> {
        if config.latent.is_none() {
            return Ok(None);
        }
        let part = |part: Part| device.alloc("decoding workspace", part.len(sizes, config));
        Ok(Some(LatentRoom {
            wide: part(Part::LatentWide)?,
            rotated: part(Part::LatentRotated)?,
            queries: part(Part::LatentQueries)?,
            attended: part(Part::LatentAttended)?,
            narrow: part(Part::LatentNarrow)?,
            low_rank: part(Part::LatentLowRank)?,
        }))
    }

    /// Brings the queries (n, H·D) to the latent.
    pub fn absorb<D: Device<Buffer = B>>(
        &mut self,
        pass: Pass<'_, D>,
        index: usize,
        queries: View<'_, B>,
    ) -> Result<()> {
        let Pass { base, n, .. } = pass;
        let (device, heads) = (&base.device, base.config.latent_heads());
        let LatentHeads { rank, unrotated, rotated, .. } = heads;
        let queries = queries.matrix(n, base.config.q_width());
        let width = heads.n_heads * (rank + rotated);
        for head in 0..heads.n_heads {
            let narrow = self.narrow.first_mut(n * unrotated).matrix(n, unrotated);
            device.copy_columns(queries.columns(heads.key(head)), Write::Set, narrow)?;
            let (narrow, wide) = (self.narrow.first(n * unrotated), self.wide.first_mut(n * rank));
            let weights = base.matrix(index, Role::LatentKeys);
            device.linear(narrow, weights, heads.latent(head), Write::Set, wide)?;
            if let Some(factors) = pass.factors(index, &heads.module_keys(head)) {
                let r = factors.b.cols;
                let (narrow, low_rank) =
                    (narrow.matrix(n, unrotated), self.low_rank.first_mut(n * r).matrix(n, r));
                let plain = Operand::Plain;
                device.matmul(factors.scale, narrow, plain, factors.b, plain, Write::Set, low_rank)?;
                let (low_rank, wide) =
                    (self.low_rank.first(n * r).matrix(n, r), self.wide.first_mut(n * rank).matrix(n, rank));
                device.matmul(1.0, low_rank, plain, factors.a, plain, Write::Add, wide)?;
            }
            let start = head * (rank + rotated);
            let to = self.queries.first_mut(n * width).matrix(n, width).columns(start..start + rank);
            device.copy_columns(self.wide.first(n * rank).matrix(n, rank), Write::Set, to)?;
            let to = self.queries.first_mut(n * width).matrix(n, width);
            let to = to.columns(start + rank..start + rank + rotated);
            device.copy_columns(queries.columns(heads.rotated_key(head)), Write::Set, to)?;
        }
        Ok(())
    }

    /// The heads' outputs (n, H·E) from what they took of the latent.
    pub fn expand<D: Device<Buffer = B>>(
        &mut self,
        pass: Pass<'_, D>,
        index: usize,
        out: &mut B,
    ) -> Result<()> {
        let Pass { base, n, .. } = pass;
        let (device, heads) = (&base.device, base.config.latent_heads());
        let LatentHeads { rank, value, .. } = heads;
        let (taken, width) = (heads.n_heads * rank, base.config.attended_width());
        for head in 0..heads.n_heads {
            let from = self.attended.first(n * taken).matrix(n, taken).columns(heads.latent(head));
            device.copy_columns(from, Write::Set, self.wide.first_mut(n * rank).matrix(n, rank))?;
            let (wide, narrow) = (self.wide.first(n * rank), self.narrow.first_mut(n * value));
            let weights = base.matrix(index, Role::LatentValues);
            device.linear(wide, weights, heads.values(head), Write::Set, narrow)?;
            if let Some(factors) = pass.factors(index, &heads.module_values(head)) {
                let (r, wide) = (factors.b.cols, wide.matrix(n, rank));
                let low_rank = self.low_rank.first_mut(n * r).matrix(n, r);
                let (plain, transposed) = (Operand::Plain, Operand::Transposed);
                device.matmul(1.0, wide, plain, factors.a, transposed, Write::Set, low_rank)?;
                let (low_rank, narrow) = (
                    self.low_rank.first(n * r).matrix(n, r),
                    self.narrow.first_mut(n * value).matrix(n, value),
                );
                device.matmul(factors.scale, low_rank, plain, factors.b, transposed, Write::Add, narrow)?;
            }
            let to = out.first_mut(n * width).matrix(n, width).columns(heads.values(head));
            device.copy_columns(self.narrow.first(n * value).matrix(n, value), Write::Set, to)?;
        }
        Ok(())
    }
}
