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

/// Main memory now, without graphics cards.
pub fn main_memory() -> MemoryState {
    let (total_bytes, free_bytes) = machine().unwrap_or_default();
    MemoryState {
        total_bytes,
        free_bytes,
        resident_bytes: resident().unwrap_or_default(),
        devices: Vec::new(),
    }
}

/// The part of the last ten seconds in which some task waited for memory; `None` where the system does not tell.
#[cfg(target_os = "linux")]
pub fn pressure() -> Option<f64> {
    let text = std::fs::read_to_string("/proc/pressure/memory").ok()?;
    let (_, rest) = text.lines().find(|line| line.starts_with("some "))?.split_once("avg10=")?;
    let percent: f64 = rest.split(' ').next()?.parse().ok()?;
    Some(percent / 100.0)
}

/// The part of the last ten seconds in which some task waited for memory; `None` where the system does not tell.
#[cfg(not(target_os = "linux"))]
pub fn pressure() -> Option<f64> {
    None
}

#[cfg(target_os = "linux")]
fn machine() -> Option<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let total = field(&text, "MemTotal:")?;
    let free = field(&text, "MemAvailable:")?;
    // A container may be allowed less than the machine has.
    let limit = control_group().filter(|&(limit, _)| limit < total);
    Some(limit.map_or((total, free), |(limit, used)| (limit, free.min(limit.saturating_sub(used)))))
}

/// Limit and use of this process's control group, version 2.
#[cfg(target_os = "linux")]
fn control_group() -> Option<(u64, u64)> {
    let read = |name: &str| std::fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok();
    let limit = read("memory.max")?.trim().parse().ok()?;
    let used: u64 = read("memory.current")?.trim().parse().ok()?;
    // Pages of files are given back when needed.
    let statistics = read("memory.stat")?;
    let files =
        statistics.lines().find_map(|line| line.strip_prefix("inactive_file "))?.trim().parse().ok()?;
    Some((limit, used.saturating_sub(files)))
}

#[cfg(target_os = "linux")]
fn resident() -> Option<u64> {
    field(&std::fs::read_to_string("/proc/self/status").ok()?, "VmRSS:")
}

/// The bytes of a line such as `VmRSS:     1234 kB`.
#[cfg(target_os = "linux")]
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(not(target_os = "linux"))]
fn machine() -> Option<(u64, u64)> {
    use llama_cpp_2::{LlamaBackendDeviceType, list_llama_ggml_backend_devices};
    let processor =
        |device: &llama_cpp_2::LlamaBackendDevice| device.device_type == LlamaBackendDeviceType::Cpu;
    let device = list_llama_ggml_backend_devices().into_iter().find(processor)?;
    Some((device.memory_total as u64, device.memory_free as u64))
}

#[cfg(not(target_os = "linux"))]
fn resident() -> Option<u64> {
    None
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn memory_is_measured() {
        let state = main_memory();
        assert!(state.free_bytes > 0 && state.free_bytes <= state.total_bytes, "{state:?}");
        let block = std::hint::black_box(vec![1_u8; 64 << 20]);
        let after = main_memory();
        assert!(after.resident_bytes >= state.resident_bytes + (48 << 20), "{state:?} {after:?}");
        drop(block);
    }
}
