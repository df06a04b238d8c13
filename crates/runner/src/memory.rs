//! Memory, measured: what is free on the machine and its graphics cards, and what this process holds.

use serde::{Deserialize, Serialize};

/// Memory at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryState {
    /// Main memory in all.
    pub total_bytes: u64,
    /// Main memory that can be had without swapping.
    pub free_bytes: u64,
    /// Main memory this process holds, mapped model files included.
    pub resident_bytes: u64,
    /// The graphics cards the engine can use.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceMemory>,
}

/// Memory of one graphics card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceMemory {
    /// Its name.
    pub name: String,
    /// In all.
    pub total_bytes: u64,
    /// Free now.
    pub free_bytes: u64,
}
