//! The ledger that every byte of a device is drawn from: a cap, what is in use, and the peak.
//!
//! The plan's total is the cap, so a plan that passed cannot run out of memory later: a request past the cap is
//! refused with a clear error before the operating system sees it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Error, Result};

/// A capped account of device memory. Cheap to clone; clones share the account.
#[derive(Debug, Clone)]
pub struct Arena(Arc<Account>);

#[derive(Debug)]
struct Account {
    capacity_bytes: u64,
    used_bytes: AtomicU64,
    peak_bytes: AtomicU64,
}

impl Arena {
    /// An account of at most `capacity_bytes`.
    pub fn new(capacity_bytes: u64) -> Self {
        Self(Arc::new(Account {
            capacity_bytes,
            used_bytes: AtomicU64::new(0),
            peak_bytes: AtomicU64::new(0),
        }))
    }

    /// An account without a cap, for tests and tools that plan nothing.
    pub fn unlimited() -> Self {
        Self::new(u64::MAX)
    }

    /// Draws `bytes` for `what`; they return when the receipt is dropped.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] when the cap would be passed.
    pub fn draw(&self, what: &str, bytes: u64) -> Result<Drawn> {
        let account = &*self.0;
        let drawn = account.used_bytes.fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| {
            used.checked_add(bytes).filter(|&sum| sum <= account.capacity_bytes)
        });
        match drawn {
            Ok(before) => {
                account.peak_bytes.fetch_max(before + bytes, Ordering::AcqRel);
                Ok(Drawn { arena: self.clone(), bytes })
            }
            Err(used_bytes) => Err(Error::OutOfMemory {
                what: what.to_owned(),
                needed_bytes: bytes,
                free_bytes: account.capacity_bytes - used_bytes,
                capacity_bytes: account.capacity_bytes,
            }),
        }
    }

    /// The cap.
    pub fn capacity_bytes(&self) -> u64 {
        self.0.capacity_bytes
    }

    /// What is drawn now.
    pub fn used_bytes(&self) -> u64 {
        self.0.used_bytes.load(Ordering::Acquire)
    }

    /// The most that was ever drawn at once.
    pub fn peak_bytes(&self) -> u64 {
        self.0.peak_bytes.load(Ordering::Acquire)
    }
}

/// The receipt for bytes drawn from an [`Arena`]; dropping it gives them back.
#[derive(Debug)]
pub struct Drawn {
    arena: Arena,
    bytes: u64,
}

impl Drawn {
    /// How many bytes this receipt holds.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Drawn {
    fn drop(&mut self) {
        self.arena.0.used_bytes.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_past_the_cap_and_takes_back() {
        let arena = Arena::new(100);
        let first = arena.draw("first", 60).unwrap();
        let refused = arena.draw("second", 41).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "no memory left for second: 41 bytes needed, 40 free of the planned 100"
        );
        assert_eq!(arena.used_bytes(), 60);
        drop(first);
        let whole = arena.draw("whole", 100).unwrap();
        assert_eq!((arena.used_bytes(), arena.peak_bytes(), whole.bytes()), (100, 100, 100));
    }
}
