//! What llama.cpp says of a load: read from its own log, since its interface tells none of it.

use serde::{Deserialize, Serialize};

use super::ffi::{Context, Model};
use super::log::Level;
use crate::engine::ExpertMemory;

/// What llama.cpp made of a file and its load options.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What it takes, by part; context and compute buffer to a hundredth of a MiB, as the log has them.
    pub memory: ExpertMemory,
    /// Tokens of context.
    pub context_tokens: u64,
    /// Tokens computed at once.
    pub piece_tokens: u64,
    /// Whether flash attention is used.
    pub flash_attention: bool,
    /// Type of the cached keys, in ggml's words; empty where nothing is cached.
    pub key_type: String,
    /// Type of the cached values.
    pub value_type: String,
    /// Cells of each cache: one for layers that see everything, one for those with a window.
    pub cells: Vec<u64>,
    /// Layers on a graphics card, where there is one.
    pub layers_on_card: Option<u64>,
    /// Buffers of weights by the memory they lie in, such as `CPU_Mapped` and `CPU_REPACK`.
    pub weight_buffers: Vec<(String, u64)>,
}

impl Report {
    /// Reads the log of a load and of a context.
    pub(super) fn read(lines: &[(Level, String)], model: &Model, context: &Context) -> Self {
        let lines: Vec<&str> = lines.iter().map(|(_, line)| line.trim_end()).collect();
        Self {
            context_tokens: context.context_tokens() as u64,
            piece_tokens: u64::from(context.piece_tokens()),
            ..Self::of_lines(&lines, model.weights_bytes())
        }
    }

    fn of_lines(lines: &[&str], weights_bytes: u64) -> Self {
        let caches: Vec<Cache> = lines.iter().filter_map(|line| Cache::of(line)).collect();
        let states = sum(lines, "RS buffer size");
        // A simulated load has no buffers, but says their size all the same.
        let context_bytes = match caches.is_empty() {
            true => states,
            false => states + caches.iter().map(|cache| cache.bytes).sum::<u64>(),
        };
        let memory =
            ExpertMemory { weights_bytes, context_bytes, compute_bytes: sum(lines, "compute buffer size") };
        Self {
            memory,
            flash_attention: flash_attention(lines),
            key_type: caches.first().map_or_else(String::new, |cache| cache.key_type.clone()),
            value_type: caches.first().map_or_else(String::new, |cache| cache.value_type.clone()),
            cells: caches.iter().map(|cache| cache.cells).collect(),
            layers_on_card: lines.iter().find_map(|line| layers_on_card(line)),
            weight_buffers: lines.iter().filter_map(|line| weight_buffer(line)).collect(),
            ..Self::default()
        }
    }
}

/// The compute buffer of a layout, if there was one: a piece is otherwise decoded without a word.
pub(super) fn compute_bytes(lines: &[(Level, String)]) -> Option<u64> {
    let lines: Vec<&str> = lines.iter().map(|(_, line)| line.trim_end()).collect();
    Some(sum(&lines, "compute buffer size")).filter(|&bytes| bytes > 0)
}

/// A line such as `llama_kv_cache: size =  334.00 MiB (  8192 cells,  5 layers, 1/1 seqs), K (f16): 167.00 MiB, V
/// (f16): 167.00 MiB`.
struct Cache {
    bytes: u64,
    cells: u64,
    key_type: String,
    value_type: String,
}

impl Cache {
    fn of(line: &str) -> Option<Self> {
        let (_, rest) = line.split_once(": size =")?;
        let (size, rest) = rest.split_once(" MiB (")?;
        let (cells, rest) = rest.split_once(" cells")?;
        let ty = |letter: &str| Some(rest.split_once(letter)?.1.split_once(')')?.0.to_owned());
        Some(Self {
            bytes: mebibytes(size)?,
            cells: cells.trim().parse().ok()?,
            key_type: ty(" K (")?,
            value_type: ty(" V (")?,
        })
    }
}

/// `llama_context: flash_attn = auto` leaves it to a later line that says what was found.
fn flash_attention(lines: &[&str]) -> bool {
    let after = |what: &str| lines.iter().find_map(|line| Some(line.split_once(what)?.1.trim().to_owned()));
    let found = |what: &str| {
        lines.iter().any(|line| line.to_ascii_lowercase().contains("flash attention") && line.contains(what))
    };
    match after("flash_attn            =").as_deref() {
        Some("enabled") => true,
        Some("disabled") => false,
        _ => found(" enabled") && !found("set to disabled"),
    }
}

/// `load_tensors: offloaded 12/29 layers to GPU`
fn layers_on_card(line: &str) -> Option<u64> {
    line.split_once(": offloaded ")?.1.split_once('/')?.0.parse().ok()
}

/// `load_tensors:   CPU_Mapped model buffer size =   445.12 MiB`
fn weight_buffer(line: &str) -> Option<(String, u64)> {
    let (before, size) = line.split_once(" model buffer size =")?;
    let name = before.rsplit(' ').next()?.to_owned();
    Some((name, mebibytes(size.trim().strip_suffix("MiB")?)?))
}

/// The sum of the sizes of lines such as `llama_kv_cache:        CPU KV buffer size =    12.00 MiB`.
fn sum(lines: &[&str], what: &str) -> u64 {
    let size = |line: &&str| {
        let (_, rest) = line.split_once(what)?;
        mebibytes(rest.trim_start().strip_prefix('=')?.trim().split_once(" MiB")?.0)
    };
    // What is printed of the buffers when a context ends is no other buffer.
    lines.iter().filter(|line| !line.contains("expectation")).filter_map(size).sum()
}

fn mebibytes(text: &str) -> Option<u64> {
    let mib: f64 = text.trim().parse().ok()?;
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "sizes are positive and far below 2^64"
    )]
    Some((mib.max(0.0) * 1024.0 * 1024.0) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_load_is_read_from_the_log() {
        let lines = [
            "load_tensors:   CPU_Mapped model buffer size =   445.50 MiB",
            "load_tensors:   CPU_REPACK model buffer size =    12.25 MiB",
            "load_tensors: offloaded 12/29 layers to GPU",
            "llama_context: flash_attn            = auto",
            "llama_kv_cache:        CPU KV buffer size =    12.50 MiB",
            "llama_kv_cache: size =   12.50 MiB (   512 cells,   5 layers,  1/1 seqs), K (f16):    6.25 MiB, V (q8_0):    6.25 MiB",
            "llama_kv_cache:        CPU KV buffer size =     2.00 MiB",
            "llama_kv_cache: size =    2.00 MiB (   256 cells,   1 layers,  1/1 seqs), K (f16):    1.00 MiB, V (q8_0):    1.00 MiB",
            "resolve_fused_ops: Flash Attention enabled",
            "sched_reserve:        CPU compute buffer size =     1.25 MiB",
            "sched_reserve:      CUDA0 compute buffer size =     0.75 MiB",
        ];
        let report = Report::of_lines(&lines, 7);
        assert_eq!(
            report.memory,
            ExpertMemory { weights_bytes: 7, context_bytes: 29 << 19, compute_bytes: 2 << 20 }
        );
        assert_eq!((report.key_type.as_str(), report.value_type.as_str()), ("f16", "q8_0"));
        assert_eq!(report.cells, [512, 256]);
        assert_eq!(report.layers_on_card, Some(12));
        assert!(report.flash_attention);
        let names: Vec<&str> = report.weight_buffers.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["CPU_Mapped", "CPU_REPACK"]);
        let off = ["llama_context: flash_attn            = disabled"];
        assert!(!Report::of_lines(&off, 7).flash_attention);
        let not_there = [lines[3], "resolve_fused_ops: Flash Attention not supported, set to disabled"];
        assert!(!Report::of_lines(&not_there, 7).flash_attention);
    }

    #[test]
    fn the_size_of_states_is_read_from_the_log() {
        let lines = ["llama_memory_recurrent:        CPU RS buffer size =     2.00 MiB"];
        assert_eq!(Report::of_lines(&lines, 7).memory.context_bytes, 2 << 20);
    }
}
