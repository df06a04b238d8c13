//! What an expert takes: computed from the file before a load, read from llama.cpp's own log after.

use formats::gguf;

use super::ffi::n_threads;
use super::log::Level;
use super::session::context_size;
use crate::card::LoadOptions;
use crate::engine::ExpertMemory;

/// llama.cpp rounds a context up to a multiple of this.
const CONTEXT_STEP: u64 = 256;

/// Weights from the tensor table, key-value cache from layers, heads and key length, compute buffer from the
/// widest intermediate results of one batch.
///
/// key-value bytes = context x layers x kv heads x (key length x type K + value length x type V)
pub(super) fn needs(file: &gguf::Reader, load: &LoadOptions) -> ExpertMemory {
    let metadata = file.metadata();
    let architecture = metadata.get_str("general.architecture").unwrap_or_default();
    let number = |key: &str| metadata.get_u64(&format!("{architecture}.{key}"));
    let weights_bytes = file.tensors().iter().map(|tensor| tensor.bytes).sum();
    let width = number("embedding_length").unwrap_or(0);
    let heads = number("attention.head_count").unwrap_or(1).max(1);
    let kv_heads = number("attention.head_count_kv").unwrap_or(heads);
    let key_length = number("attention.key_length").unwrap_or(width / heads);
    let value_length = number("attention.value_length").unwrap_or(width / heads);
    let layers = number("block_count").unwrap_or(0);
    let trained = number("context_length").and_then(|n| u32::try_from(n).ok()).unwrap_or(4096);
    let context = u64::from(context_size(load.num_ctx, trained)).next_multiple_of(CONTEXT_STEP);
    let rows = context.saturating_mul(layers).saturating_mul(kv_heads);
    let context_bytes = load
        .kv_type_k
        .bytes(rows.saturating_mul(key_length))
        .saturating_add(load.kv_type_v.bytes(rows.saturating_mul(value_length)));
    let batch = u64::from(load.num_batch).min(context);
    let wide = number("feed_forward_length").unwrap_or(4 * width);
    // Scores of one layer for one batch, two wide rows of the feed-forward, a few narrow ones; one row of logits.
    let row = 2 * wide + 6 * width + heads.saturating_mul(context);
    let vocabulary = metadata.get_strings("tokenizer.ggml.tokens").map_or(0, |tokens| tokens.len() as u64);
    let threads = u64::from(n_threads(load.num_thread));
    let compute_bytes =
        batch.saturating_mul(row).saturating_add(vocabulary + threads * wide).saturating_mul(4);
    ExpertMemory { weights_bytes, context_bytes, compute_bytes }
}

/// What llama.cpp says it allocated; what it does not say is taken from the plan.
pub(super) fn logged(lines: &[(Level, String)], weights_bytes: u64, planned: ExpertMemory) -> ExpertMemory {
    let sum = |what: &str| {
        let sizes = lines.iter().filter_map(|(_, line)| mebibytes(line, what));
        sizes.fold(None, |sum: Option<f64>, size| Some(sum.unwrap_or(0.0) + size))
    };
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "sizes are positive and far below 2^64"
    )]
    let bytes = |mib: f64| (mib * 1024.0 * 1024.0) as u64;
    ExpertMemory {
        weights_bytes,
        context_bytes: sum("KV buffer size").map_or(planned.context_bytes, bytes),
        compute_bytes: sum("compute buffer size").map_or(planned.compute_bytes, bytes),
    }
}

/// The number in a line such as `llama_kv_cache:        CPU KV buffer size =    12.00 MiB`.
fn mebibytes(line: &str, what: &str) -> Option<f64> {
    let (_, rest) = line.split_once(what)?;
    let (number, unit) = rest.trim_start().strip_prefix('=')?.trim().split_once(' ')?;
    unit.starts_with("MiB").then(|| number.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_from_the_log() {
        let lines = [
            (Level::Notice, "llama_kv_cache:        CPU KV buffer size =    12.50 MiB\n".to_owned()),
            (Level::Notice, "sched_reserve:        CPU compute buffer size =     1.25 MiB\n".to_owned()),
            (Level::Notice, "sched_reserve:      CUDA0 compute buffer size =     0.75 MiB\n".to_owned()),
        ];
        let planned = ExpertMemory { weights_bytes: 1, context_bytes: 2, compute_bytes: 3 };
        let read = logged(&lines, 7, planned);
        assert_eq!(
            read,
            ExpertMemory { weights_bytes: 7, context_bytes: 13_107_200, compute_bytes: 2_097_152 }
        );
        assert_eq!(
            logged(&[], 7, planned),
            ExpertMemory { weights_bytes: 7, context_bytes: 2, compute_bytes: 3 }
        );
    }
}
