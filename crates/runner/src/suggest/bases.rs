//! Published bases: the numbers of their `config.json` from which memory follows.
//!
//! Those whose configuration lies in the shared assets are compared with it in `tests/budget.rs`.

use model::config::{Experts, Latent, LongRope, Rope, RopeScaling, Window};
use model::device::Routing;
use model::{Family, ModelConfig};

/// A published base.
#[derive(Debug)]
pub struct Base {
    /// Owner and name on the Hugging Face hub.
    pub name: &'static str,
    /// Billions of parameters, as its makers count.
    pub billions: f64,
    /// Under which terms it may be used.
    pub licence: &'static str,
    shape: Shape,
}

/// The numbers of a decoder.
#[derive(Debug, Clone, Copy)]
struct Shape {
    family: Family,
    vocab: usize,
    hidden: usize,
    intermediate: usize,
    layers: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    tied: bool,
    context: usize,
    /// Of Gemma 3.
    window: usize,
}

const fn shape(
    family: Family,
    vocab: usize,
    (hidden, intermediate): (usize, usize),
    layers: usize,
    (heads, kv_heads, head_dim): (usize, usize, usize),
    tied: bool,
    context: usize,
) -> Shape {
    Shape { family, vocab, hidden, intermediate, layers, heads, kv_heads, head_dim, tied, context, window: 0 }
}

const TIED: bool = true;
const OWN_HEAD: bool = false;

/// Vocabulary, widths (hidden, MLP), layers, heads (of queries, of keys and values, width of one), context.
#[rustfmt::skip]
pub const BASES: [Base; 23] = [
    Base { name: "Qwen/Qwen3-0.6B",                 billions: 0.6,  licence: "Apache-2.0",
        shape: shape(Family::Qwen3, 151_936, (1024, 3072), 28, (16, 8, 128), TIED, 40_960) },
    Base { name: "Qwen/Qwen3-1.7B",                 billions: 1.7,  licence: "Apache-2.0",
        shape: shape(Family::Qwen3, 151_936, (2048, 6144), 28, (16, 8, 128), TIED, 40_960) },
    Base { name: "Qwen/Qwen3-4B",                   billions: 4.0,  licence: "Apache-2.0",
        shape: shape(Family::Qwen3, 151_936, (2560, 9728), 36, (32, 8, 128), TIED, 40_960) },
    Base { name: "Qwen/Qwen3-8B",                   billions: 8.2,  licence: "Apache-2.0",
        shape: shape(Family::Qwen3, 151_936, (4096, 12_288), 36, (32, 8, 128), OWN_HEAD, 40_960) },
    Base { name: "Qwen/Qwen3-14B",                  billions: 14.8, licence: "Apache-2.0",
        shape: shape(Family::Qwen3, 151_936, (5120, 17_408), 40, (40, 8, 128), OWN_HEAD, 40_960) },
    Base { name: "Qwen/Qwen3-32B",                  billions: 32.8, licence: "Apache-2.0",
        shape: shape(Family::Qwen3, 151_936, (5120, 25_600), 64, (64, 8, 128), OWN_HEAD, 40_960) },
    Base { name: "Qwen/Qwen3-Embedding-0.6B",       billions: 0.6,  licence: "Apache-2.0",
        shape: shape(Family::Qwen3, 151_669, (1024, 3072), 28, (16, 8, 128), TIED, 32_768) },
    Base { name: "Qwen/Qwen3-Embedding-4B",         billions: 4.0,  licence: "Apache-2.0",
        shape: shape(Family::Qwen3, 151_665, (2560, 9728), 36, (32, 8, 128), TIED, 40_960) },
    Base { name: "Qwen/Qwen2.5-1.5B-Instruct",      billions: 1.5,  licence: "Apache-2.0",
        shape: shape(Family::Qwen2, 151_936, (1536, 8960), 28, (12, 2, 128), TIED, 32_768) },
    Base { name: "Qwen/Qwen2.5-7B-Instruct",        billions: 7.6,  licence: "Apache-2.0",
        shape: shape(Family::Qwen2, 152_064, (3584, 18_944), 28, (28, 4, 128), OWN_HEAD, 32_768) },
    Base { name: "Qwen/Qwen2.5-14B-Instruct",       billions: 14.8, licence: "Apache-2.0",
        shape: shape(Family::Qwen2, 152_064, (5120, 13_824), 48, (40, 8, 128), OWN_HEAD, 32_768) },
    Base { name: "Qwen/Qwen2.5-Coder-1.5B-Instruct", billions: 1.5, licence: "Apache-2.0",
        shape: shape(Family::Qwen2, 151_936, (1536, 8960), 28, (12, 2, 128), TIED, 32_768) },
    Base { name: "Qwen/Qwen2.5-Coder-7B-Instruct",  billions: 7.6,  licence: "Apache-2.0",
        shape: shape(Family::Qwen2, 152_064, (3584, 18_944), 28, (28, 4, 128), OWN_HEAD, 32_768) },
    Base { name: "Qwen/Qwen2.5-Coder-14B-Instruct", billions: 14.8, licence: "Apache-2.0",
        shape: shape(Family::Qwen2, 152_064, (5120, 13_824), 48, (40, 8, 128), OWN_HEAD, 32_768) },
    Base { name: "Qwen/Qwen2.5-Coder-32B-Instruct", billions: 32.5, licence: "Apache-2.0",
        shape: shape(Family::Qwen2, 152_064, (5120, 27_648), 64, (40, 8, 128), OWN_HEAD, 32_768) },
    Base { name: "deepseek-ai/DeepSeek-Coder-V2-Lite-Instruct", billions: 15.7, licence: "DeepSeek",
        shape: shape(Family::DeepSeek2, 102_400, (2048, 10_944), 27, (16, 16, 192), OWN_HEAD, 163_840) },
    Base { name: "meta-llama/Llama-3.2-1B-Instruct", billions: 1.2, licence: "Llama 3.2",
        shape: shape(Family::Llama, 128_256, (2048, 8192), 16, (32, 8, 64), TIED, 131_072) },
    Base { name: "meta-llama/Llama-3.2-3B-Instruct", billions: 3.2, licence: "Llama 3.2",
        shape: shape(Family::Llama, 128_256, (3072, 8192), 28, (24, 8, 128), TIED, 131_072) },
    Base { name: "meta-llama/Llama-3.1-8B-Instruct", billions: 8.0, licence: "Llama 3.1",
        shape: shape(Family::Llama, 128_256, (4096, 14_336), 32, (32, 8, 128), OWN_HEAD, 131_072) },
    Base { name: "mistralai/Mistral-7B-Instruct-v0.3", billions: 7.2, licence: "Apache-2.0",
        shape: shape(Family::Llama, 32_768, (4096, 14_336), 32, (32, 8, 128), OWN_HEAD, 32_768) },
    Base { name: "microsoft/Phi-4-mini-instruct",   billions: 3.8,  licence: "MIT",
        shape: shape(Family::Phi3, 200_064, (3072, 8192), 32, (24, 8, 128), TIED, 131_072) },
    Base { name: "microsoft/Phi-4-mini-reasoning",  billions: 3.8,  licence: "MIT",
        shape: shape(Family::Phi3, 200_064, (3072, 8192), 32, (24, 8, 128), TIED, 131_072) },
    Base { name: "google/gemma-3-4b-it",            billions: 4.3,  licence: "Gemma",
        shape: Shape { window: 1024, ..shape(Family::Gemma3, 262_208, (2560, 10_240), 34, (8, 4, 256), TIED, 131_072) } },
];

impl Base {
    /// The base of that name, with or without its owner.
    pub fn named(name: &str) -> Option<&'static Base> {
        BASES.iter().find(|base| base.name == name || base.short_name() == name)
    }

    /// Its name without the owner.
    pub fn short_name(&self) -> &'static str {
        self.name.rsplit('/').next().unwrap_or(self.name)
    }

    /// Billions of parameters that answer for each token.
    pub fn answering_billions(&self) -> f64 {
        // Of DeepSeek-V2-Lite 6 of 64 experts do.
        if self.shape.family == Family::DeepSeek2 { 2.4 } else { self.billions }
    }

    /// Its hyper-parameters, as far as memory depends on them.
    pub fn config(&self) -> ModelConfig {
        let Shape { family, vocab, hidden, intermediate, layers, heads, kv_heads, head_dim, tied, .. } =
            self.shape;
        let plain = ModelConfig::plain(family, head_dim);
        let config = ModelConfig {
            vocab_size: vocab,
            hidden,
            intermediate,
            n_layers: layers,
            n_heads: heads,
            n_kv_heads: kv_heads,
            head_dim_is_stated: true,
            tied,
            max_positions: self.shape.context,
            ..plain
        };
        match family {
            Family::Gemma3 => ModelConfig {
                window: Some(Window { size: self.shape.window, full_every: Some(6) }),
                ..config
            },
            Family::Phi3 => long_rope(config),
            Family::DeepSeek2 => latent(config),
            Family::Llama if self.name.starts_with("meta-llama/") => stretched(config),
            _ => config,
        }
    }
}

/// Phi-4-mini rotates three quarters of a head and stores a factor for each pair, twice.
fn long_rope(config: ModelConfig) -> ModelConfig {
    let dim = config.head_dim / 4 * 3;
    let factors = vec![1.0; dim / 2];
    let scaling = RopeScaling::Long(LongRope {
        short: factors.clone(),
        long: factors,
        original_max_positions: 4096,
        attention_factor: 1.0,
    });
    ModelConfig { rope: Rope { theta: 10_000.0, dim, scaling }, ..config }
}

/// Llama 3's scaling of the rotation, which a file stores as a factor for each pair.
fn stretched(config: ModelConfig) -> ModelConfig {
    let scaling = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_positions: 8192,
    };
    ModelConfig { rope: Rope { scaling, ..config.rope.clone() }, ..config }
}

/// Keys and values of DeepSeek-V2-Lite are made from a latent; 6 of 64 experts answer for each token.
fn latent(config: ModelConfig) -> ModelConfig {
    let rope = Rope { theta: 10_000.0, dim: 64, scaling: RopeScaling::None };
    let latent = Latent { rank: 512, value_dim: 128, log_multiplier: 0.0 };
    let experts = Experts {
        routing: Routing { n_experts: 64, n_used: 6, scale: 1.0 },
        width: 1408,
        n_shared: 2,
        n_dense_layers: 1,
    };
    ModelConfig { rope, latent: Some(latent), experts: Some(experts), ..config }
}
