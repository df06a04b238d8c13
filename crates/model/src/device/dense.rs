//! The count of dense copies of base weights.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Counts the bytes of dense copies of base weights that are alive, and the most there ever were.
///
/// Every place that unpacks base weights, or reads them to pack them, counts the copy for as long as it may be read;
/// a test can then show that no dense copy outlives its use. Clones share the count.
#[derive(Debug, Clone, Default)]
pub struct DenseCounter(Arc<Count>);

#[derive(Debug, Default)]
struct Count {
    live_bytes: AtomicU64,
    peak_bytes: AtomicU64,
}

impl DenseCounter {
    /// Counts `bytes` until the result is dropped.
    pub fn count(&self, bytes: u64) -> DenseCopy {
        let live = self.0.live_bytes.fetch_add(bytes, Ordering::AcqRel) + bytes;
        self.0.peak_bytes.fetch_max(live, Ordering::AcqRel);
        DenseCopy { counter: self.clone(), bytes }
    }

    /// Bytes of the copies alive now.
    pub fn live_bytes(&self) -> u64 {
        self.0.live_bytes.load(Ordering::Acquire)
    }

    /// The most bytes that were alive at once.
    pub fn peak_bytes(&self) -> u64 {
        self.0.peak_bytes.load(Ordering::Acquire)
    }
}

/// A dense copy of base weights, counted while this lives.
#[derive(Debug)]
pub struct DenseCopy {
    counter: DenseCounter,
    bytes: u64,
}

impl Drop for DenseCopy {
    fn drop(&mut self) {
        self.counter.0.live_bytes.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}
