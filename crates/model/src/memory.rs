//! How many bytes a run takes, from shapes alone: the plan that is printed and the cap of the allocator.

/// One row of the plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryRow {
    /// What the bytes are for.
    pub name: &'static str,
    /// Bytes.
    pub bytes: u64,
}

/// The plan: rows in the order in which they are printed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MemoryTable {
    /// The rows.
    pub rows: Vec<MemoryRow>,
}

impl MemoryTable {
    /// Bytes in all: the cap of the allocator.
    pub fn total_bytes(&self) -> u64 {
        self.rows.iter().map(|row| row.bytes).sum()
    }

    fn push(&mut self, name: &'static str, bytes: u64) {
        self.rows.push(MemoryRow { name, bytes });
    }
}
