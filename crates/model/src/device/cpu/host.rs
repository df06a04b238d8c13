//! The host processor as a device: what it draws at once, and in which precision it multiplies.

use std::sync::Arc;

#[cfg(target_arch = "x86_64")]
use super::dot16;
#[cfg(target_arch = "x86_64")]
use super::memory::HostBlocks;
use super::memory::{DenseTile, TILE_FLOATS};
use crate::Result;
use crate::arena::Arena;
use crate::device::Precision;
#[cfg(target_arch = "x86_64")]
use crate::device::{Heads, Segment};

/// The fastest precision of this processor.
pub fn best_precision() -> Precision {
    #[cfg(target_arch = "x86_64")]
    if dot16::is_possible() {
        return Precision::BF16;
    }
    Precision::F32
}

/// What a [`Cpu`] draws at once, whatever it is used for: names and bytes.
#[cfg_attr(not(target_arch = "x86_64"), allow(unused_mut, unused_variables))]
pub fn fixed_bytes(precision: Precision) -> Vec<(&'static str, u64)> {
    let mut rows = vec![("tile of dense weights", 4 * TILE_FLOATS as u64)];
    #[cfg(target_arch = "x86_64")]
    if precision == Precision::BF16 {
        rows.push(("packed panels", dot16::panel_bytes()));
    }
    rows
}

/// The host processor with its memory.
#[derive(Debug, Clone)]
pub struct Cpu(Arc<Host>);

#[derive(Debug)]
pub(super) struct Host {
    pub(super) arena: Arena,
    pub(super) tile: DenseTile,
    #[cfg(target_arch = "x86_64")]
    panels: Option<dot16::Panels>,
}

impl Cpu {
    /// The host with at most `arena`'s bytes, of which [`fixed_bytes`] are drawn at once; products in 32 bits.
    ///
    /// # Errors
    /// [`crate::Error::OutOfMemory`] when not even these fit.
    pub fn new(arena: Arena) -> Result<Self> {
        Self::with_precision(arena, Precision::F32)
    }

    /// The same with products of some precision.
    ///
    /// # Errors
    /// As [`Cpu::new`], and [`crate::Error::Precision`] where the processor has no instructions for it.
    pub fn with_precision(arena: Arena, precision: Precision) -> Result<Self> {
        if precision == Precision::BF16 && best_precision() != precision {
            return Err(crate::Error::Precision);
        }
        let tile = DenseTile::new(&arena)?;
        Ok(Self(Arc::new(Host {
            #[cfg(target_arch = "x86_64")]
            panels: (precision == Precision::BF16).then(|| dot16::Panels::new(&arena)).transpose()?,
            arena,
            tile,
        })))
    }

    pub(super) fn host(&self) -> &Host {
        &self.0
    }

    /// Where a product with a matrix is made in 16 bits.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn panels(
        &self,
        n_tokens: usize,
        n_terms: usize,
        weights: &HostBlocks,
    ) -> Option<&dot16::Panels> {
        self.0.panels.as_ref().filter(|_| dot16::suits(n_tokens, n_terms, weights))
    }

    /// Where an attention is made in 16 bits.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn attention_panels(&self, heads: Heads, segments: &[Segment]) -> Option<&dot16::Panels> {
        self.0.panels.as_ref().filter(|_| dot16::attention::suits(heads, segments))
    }
}
