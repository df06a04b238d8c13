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
///
/// A model of mixers has states of fixed size instead, in f32, and no scores.
pub(super) fn needs(file: &gguf::Reader, load: &LoadOptions) -> ExpertMemory {
    let metadata = file.metadata();
    let architecture = metadata.get_str("general.architecture").unwrap_or_default();
    let number = |key: &str| metadata.get_u64(&format!("{architecture}.{key}"));
    let weights_bytes = file.tensors().iter().map(|tensor| tensor.bytes).sum();
    let width = number("embedding_length").unwrap_or(0);
    let attending = number("attention.head_count").unwrap_or(1);
    let heads = attending.max(1);
    let kv_heads = number("attention.head_count_kv").unwrap_or(heads);
    let key_length = number("attention.key_length").unwrap_or(width / heads);
    let value_length = number("attention.value_length").unwrap_or(width / heads);
    let layers = number("block_count").unwrap_or(0);
    let trained = number("context_length").and_then(|n| u32::try_from(n).ok()).unwrap_or(4096);
    let context = u64::from(context_size(load.num_ctx, trained)).next_multiple_of(CONTEXT_STEP);
    let rows = context.saturating_mul(layers).saturating_mul(kv_heads);
    let cache_bytes = load
        .kv_type_k
        .bytes(rows.saturating_mul(key_length))
        .saturating_add(load.kv_type_v.bytes(rows.saturating_mul(value_length)));
    let mixer = (attending == 0).then(|| Mixer::read(number));
    let context_bytes = mixer.map_or(cache_bytes, |mixer| mixer.state_bytes(layers));
    let batch = u64::from(load.num_batch).min(context);
    let wide = number("feed_forward_length").unwrap_or(4 * width);
    let wide = mixer.map_or(wide, |mixer| mixer.projected());
    // Scores of one layer for one batch, two wide rows of the feed-forward, a few narrow ones; one row of logits.
    let row = 2 * wide + 6 * width + attending.saturating_mul(context);
    let vocabulary = metadata.get_strings("tokenizer.ggml.tokens").map_or(0, |tokens| tokens.len() as u64);
    let threads = u64::from(n_threads(load.num_thread));
    let compute_bytes =
        batch.saturating_mul(row).saturating_add(vocabulary + threads * wide).saturating_mul(4);
    ExpertMemory { weights_bytes, context_bytes, compute_bytes }
}

/// Sizes of a state-space mixer.
#[derive(Clone, Copy)]
struct Mixer {
    inner: u64,
    mixed: u64,
    state: u64,
    kernel: u64,
}

impl Mixer {
    fn read(number: impl Fn(&str) -> Option<u64>) -> Mixer {
        let size = |key: &str| number(key).unwrap_or(0);
        let (inner, state) = (size("ssm.inner_size"), size("ssm.state_size"));
        let shared = size("ssm.group_count").saturating_mul(state).saturating_mul(2);
        Mixer { inner, mixed: inner.saturating_add(shared), state, kernel: size("ssm.conv_kernel") }
    }

    /// The rows that the convolution still sees, and the states, of one sequence.
    fn state_bytes(&self, layers: u64) -> u64 {
        let window = self.kernel.saturating_sub(1).saturating_mul(self.mixed);
        let state = self.inner.saturating_mul(self.state);
        window.saturating_add(state).saturating_mul(layers).saturating_mul(4)
    }

    /// What the input projection makes of a token, but for a number for each head.
    fn projected(&self) -> u64 {
        self.inner.saturating_add(self.mixed)
    }
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
        context_bytes: sum("KV buffer size")
            .or_else(|| sum("RS buffer size"))
            .map_or(planned.context_bytes, bytes),
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

    /// Mamba-Codestral-7B: 64 layers of (3 x 10240 + 128 x 64 x 128) numbers, whatever the length of the context.
    #[test]
    fn a_model_of_mixers_has_states_instead_of_a_cache() {
        let key = |name: &str| format!("mamba2.{name}");
        let sizes = [
            ("block_count", 64u32),
            ("embedding_length", 4096),
            ("feed_forward_length", 0),
            ("attention.head_count", 0),
            ("context_length", 1 << 20),
            ("ssm.conv_kernel", 4),
            ("ssm.inner_size", 8192),
            ("ssm.state_size", 128),
            ("ssm.time_step_rank", 128),
            ("ssm.group_count", 8),
        ];
        let mut metadata = gguf::Metadata::new();
        metadata.push("general.architecture", "mamba2");
        sizes.into_iter().for_each(|(name, size)| metadata.push(key(name), size));
        let file = tempfile::NamedTempFile::new().unwrap();
        gguf::Writer::begin(file.reopen().unwrap(), &metadata, &[]).unwrap().finish().unwrap();
        let file = gguf::Reader::open(file.path()).unwrap();
        let bytes = |num_ctx| needs(&file, &LoadOptions { num_ctx, ..LoadOptions::default() }).context_bytes;
        assert_eq!(bytes(4096), 276_299_776);
        assert_eq!(bytes(512), bytes(4096));
    }

    #[test]
    fn the_size_of_states_is_read_from_the_log() {
        let line = "llama_memory_recurrent:        CPU RS buffer size =     2.00 MiB\n".to_owned();
        let planned = ExpertMemory { weights_bytes: 1, context_bytes: 2, compute_bytes: 3 };
        assert_eq!(logged(&[(Level::Notice, line)], 7, planned).context_bytes, 2_097_152);
    }

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
