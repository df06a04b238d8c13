//! Where the time of a step goes, by kind of op: ops are synchronous, so that the times add up.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Kinds of ops that take most of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// x·Wᵀ with frozen weights, the head's among them.
    Linear,
    /// dy·W with frozen weights.
    LinearBackward,
    /// Products with the adapter's factors.
    Adapter,
    /// Attention.
    Attention,
    /// Its backward.
    AttentionBackward,
    /// Norms, rotations, activations, sums and copies.
    Elementwise,
    /// Softmax of the logits.
    Loss,
}

impl Part {
    /// All parts.
    pub const ALL: [Part; 7] = [
        Part::Linear,
        Part::LinearBackward,
        Part::Adapter,
        Part::Attention,
        Part::AttentionBackward,
        Part::Elementwise,
        Part::Loss,
    ];

    /// What a table calls it.
    pub fn name(self) -> &'static str {
        match self {
            Part::Linear => "linear",
            Part::LinearBackward => "linear backward",
            Part::Adapter => "adapter",
            Part::Attention => "attention",
            Part::AttentionBackward => "attention backward",
            Part::Elementwise => "elementwise",
            Part::Loss => "softmax of the loss",
        }
    }
}

/// Nanoseconds and floating-point operations of each part since the device was made.
#[derive(Debug, Default)]
pub(super) struct Clock([(AtomicU64, AtomicU64); Part::ALL.len()]);

impl Clock {
    /// Counts from now until the result is dropped, and the operations of products, additions counted as well.
    pub(super) fn start(&self, part: Part, flops: usize) -> Running<'_> {
        Running { clock: self, part, flops: flops as u64, since: Instant::now() }
    }

    pub(super) fn read(&self, part: Part) -> (Duration, u64) {
        let (nanos, flops) = &self.0[part as usize];
        (Duration::from_nanos(nanos.load(Ordering::Relaxed)), flops.load(Ordering::Relaxed))
    }
}

/// A part that runs.
pub(super) struct Running<'a> {
    clock: &'a Clock,
    part: Part,
    flops: u64,
    since: Instant,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let (nanos, flops) = &self.clock.0[self.part as usize];
        nanos.fetch_add(self.since.elapsed().as_nanos() as u64, Ordering::Relaxed);
        flops.fetch_add(self.flops, Ordering::Relaxed);
    }
}
