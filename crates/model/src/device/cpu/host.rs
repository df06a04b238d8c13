//! The host processor as a device: what it draws at once, and in which precision it multiplies.

use std::sync::Arc;
use std::time::Duration;

use super::clock::{Clock, Part, Running};
#[cfg(target_arch = "x86_64")]
use super::memory::HostBlocks;
use super::memory::{DenseTile, TILE_FLOATS};
#[cfg(target_arch = "x86_64")]
use super::packed;
use super::passing::Passing;
use super::products::ProductKernel;
use crate::Result;
use crate::arena::Arena;
use crate::device::Precision;
#[cfg(target_arch = "x86_64")]
use crate::device::{Heads, Segment};

/// The fastest precision of floats of this processor.
pub fn best_precision() -> Precision {
    ProductKernel::fastest_of_floats().precision()
}

/// What a [`Cpu`] draws at once, whatever it is used for: names and bytes.
#[cfg_attr(not(target_arch = "x86_64"), allow(unused_mut, unused_variables))]
pub fn fixed_bytes(precision: Precision) -> Vec<(&'static str, u64)> {
    let mut rows = vec![("tile of dense weights", 4 * TILE_FLOATS as u64)];
    #[cfg(target_arch = "x86_64")]
    if ProductKernel::best(precision) != Some(ProductKernel::Portable) {
        rows.push(("packed panels", packed::panel_bytes()));
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
    pub(super) passing: Passing,
    clock: Clock,
    #[cfg(target_arch = "x86_64")]
    panels: Option<packed::Panels>,
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
        let kernel = ProductKernel::best(precision).ok_or(crate::Error::Precision { precision })?;
        Self::with_kernel(arena, kernel)
    }

    /// The same with products made by some instructions.
    ///
    /// # Errors
    /// As [`Cpu::with_precision`].
    pub fn with_kernel(arena: Arena, kernel: ProductKernel) -> Result<Self> {
        if !kernel.is_possible() {
            return Err(crate::Error::Precision { precision: kernel.precision() });
        }
        let tile = DenseTile::new(&arena)?;
        Ok(Self(Arc::new(Host {
            #[cfg(target_arch = "x86_64")]
            panels: (kernel != ProductKernel::Portable)
                .then(|| packed::Panels::new(&arena, kernel))
                .transpose()?,
            arena,
            tile,
            passing: Passing::default(),
            clock: Clock::default(),
        })))
    }

    /// Time and floating-point operations of a part since the device was made.
    pub fn time_of(&self, part: Part) -> (Duration, u64) {
        self.0.clock.read(part)
    }

    pub(super) fn time(&self, part: Part, flops: usize) -> Running<'_> {
        self.0.clock.start(part, flops)
    }

    pub(super) fn host(&self) -> &Host {
        &self.0
    }

    /// Where a product with a matrix is made of packed operands.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn panels(
        &self,
        n_tokens: usize,
        n_terms: usize,
        weights: &HostBlocks,
    ) -> Option<&packed::Panels> {
        self.0.panels.as_ref().filter(|_| packed::suits(n_tokens, n_terms, weights))
    }

    /// Where an attention is made of packed operands.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn attention_panels(&self, heads: Heads, segments: &[Segment]) -> Option<&packed::Panels> {
        self.0.panels.as_ref().filter(|panels| packed::attention::suits(panels, heads, segments))
    }

    /// Where a product of dense matrices (m, k) · (k, n) is made of packed operands.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn dense_panels(&self, m: usize, n: usize, k: usize) -> Option<&packed::Panels> {
        self.0.panels.as_ref().filter(|_| packed::suits_dense(m, n, k))
    }
}
