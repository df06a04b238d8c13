//! Room for packed operands: one for activations, one for each thread's weights.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytemuck::{Pod, Zeroable};

use super::super::products::ProductKernel;
use super::{Dense, Frozen, Kernel, Weight};
use crate::Result;
use crate::arena::{Arena, Drawn};
use crate::device::{DenseCopy, DenseCounter};

/// Terms of a sum that are packed at once: a tile of activations (14 to 32 KiB) stays in a first-level cache.
pub(super) const DEPTH: usize = 512;
/// Columns of the result that a task makes: its packed weights (256 KiB in bf16) stay in a second-level cache.
pub(super) const TASK: usize = 256;
/// The same at the least: whole panels.
pub(super) const LEAST: usize = 64;
/// Words of packed activations.
pub(super) const ACTIVATION_WORDS: usize = 4 << 20;
/// Rows that are unpacked together.
pub(super) const GROUP: usize = 16;

/// Words that a thread packs into: a task's weights, or the queries and keys of attention: of heads of 256 numbers in f32
/// a block of each, of 128 three blocks of queries.
pub(super) const PANEL_WORDS: usize = 3 * TASK * DEPTH;
/// Floats of a thread: rows of weights, or scores of attention and their gradients.
pub(super) const ROW_FLOATS: usize = 4 * GROUP * DEPTH;

/// A line of a cache, so that no vector crosses two.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([u32; 16]);

// SAFETY: sixteen words without padding, of which any bits are valid.
unsafe impl Zeroable for Line {}
// SAFETY: as above.
unsafe impl Pod for Line {}

/// Words that begin at a line of a cache.
#[derive(Debug)]
pub(super) struct Words(Vec<Line>);

impl Words {
    fn new(n: usize) -> Self {
        Self(vec![Line([0; 16]); n / 16])
    }

    pub(super) fn words(&mut self) -> &mut [u32] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}

/// What one task packs into.
#[derive(Debug)]
pub(super) struct Scratch {
    panels: Words,
    rows: Words,
}

impl Scratch {
    fn new() -> Self {
        Self { panels: Words::new(PANEL_WORDS), rows: Words::new(ROW_FLOATS) }
    }

    pub(super) fn panels(&self) -> &[u32] {
        bytemuck::cast_slice(&self.panels.0)
    }

    pub(super) fn panels_and_rows<T: Weight>(&mut self) -> (&mut [u32], &mut [T]) {
        (self.panels.words(), bytemuck::cast_slice_mut(&mut self.rows.0))
    }
}

/// Room for packed activations and, for each thread, packed weights.
#[derive(Debug)]
pub(in super::super) struct Panels {
    /// What multiplies with frozen weights, dense matrices, and attention.
    pub(super) frozen: Frozen,
    pub(super) dense: Dense,
    pub(super) attention: Dense,
    activations: Mutex<Words>,
    scratch: Vec<Mutex<Scratch>>,
    _drawn: Drawn,
}

/// Bytes that [`Panels::new`] draws in this thread pool.
pub(in super::super) fn panel_bytes() -> u64 {
    let of_thread = PANEL_WORDS + ROW_FLOATS;
    4 * (ACTIVATION_WORDS + rayon::current_num_threads() * of_thread) as u64
}

impl Panels {
    /// Draws the room. The kernel must be possible.
    pub(in super::super) fn new(arena: &Arena, kernel: ProductKernel) -> Result<Self> {
        assert!(super::is_possible(kernel), "the processor lacks the instructions of {kernel:?}");
        let drawn = arena.draw("packed panels", panel_bytes())?;
        Ok(Self {
            frozen: Frozen::of(kernel),
            dense: Dense::of(kernel.of_dense()),
            attention: Dense::of(kernel.of_attention()),
            activations: Mutex::new(Words::new(ACTIVATION_WORDS)),
            scratch: (0..rayon::current_num_threads()).map(|_| Mutex::new(Scratch::new())).collect(),
            _drawn: drawn,
        })
    }

    /// Counts what is unpacked while an op runs: of each thread up to `columns` columns of `terms` terms.
    pub(super) fn counted<K: Kernel>(
        &self,
        counter: &DenseCounter,
        columns: usize,
        terms: usize,
    ) -> DenseCopy {
        let tasks = columns.div_ceil(TASK).clamp(1, self.scratch.len());
        counter.count((4 * columns.min(tasks * TASK) * K::words(terms.min(DEPTH))) as u64)
    }

    pub(super) fn activations(&self) -> MutexGuard<'_, Words> {
        self.activations.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn scratch(&self) -> MutexGuard<'_, Scratch> {
        let index = rayon::current_thread_index().unwrap_or(0) % self.scratch.len();
        self.scratch[index].lock().unwrap_or_else(PoisonError::into_inner)
    }
}
