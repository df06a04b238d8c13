//! Weights that no file holds: hashed from a tensor's name and the element's index, the same in
//! `scripts/golden/lora_gradients.py`.

#![allow(dead_code, reason = "each test uses its part")]

use std::collections::HashMap;
use std::ops::Range;

use formats::TensorSource;
use formats::adapter::AdapterTensor;
use formats::source::rows_and_cols;
use model::config::{Experts, Latent, ModelConfig, Rope, RopeScaling, Yarn};
use model::device::{Routing, StateSpace};
use model::family::{self, Family, Naming};
use model::lora::LoraOptions;

/// FNV-1a.
fn name_hash(name: &str) -> u64 {
    name.bytes().fold(0xCBF2_9CE4_8422_2325, |h, byte| (h ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3))
}

/// SplitMix64 of a name at an index.
fn hash(seed: u64, index: u64) -> u64 {
    let mut z = index.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15).wrapping_add(seed);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Elements of a tensor, uniform in offset ± scale.
fn values(name: &str, indices: Range<usize>, scale: f32, offset: f32) -> impl Iterator<Item = f32> {
    let seed = name_hash(name);
    indices.map(move |index| {
        let unit = (hash(seed, index as u64) >> 40) as f32 / (1 << 23) as f32 - 1.0;
        offset + unit * scale
    })
}

/// Qwen3-0.6B with two layers.
pub fn qwen3() -> ModelConfig {
    ModelConfig {
        vocab_size: 151_936,
        hidden: 1024,
        intermediate: 3072,
        n_layers: 2,
        n_heads: 16,
        n_kv_heads: 8,
        head_dim_is_stated: true,
        rope: Rope { theta: 1e6, dim: 128, scaling: RopeScaling::None },
        tied: true,
        max_positions: 40_960,
        ..ModelConfig::plain(Family::Qwen3, 128)
    }
}

/// Llama-3.2-1B with two layers.
pub fn llama() -> ModelConfig {
    let scaling = RopeScaling::Llama3 {
        factor: 32.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_positions: 8192,
    };
    ModelConfig {
        vocab_size: 128_256,
        hidden: 2048,
        intermediate: 8192,
        n_layers: 2,
        n_heads: 32,
        n_kv_heads: 8,
        head_dim_is_stated: true,
        norm_eps: 1e-5,
        rope: Rope { theta: 500_000.0, dim: 64, scaling },
        tied: true,
        max_positions: 131_072,
        ..ModelConfig::plain(Family::Llama, 64)
    }
}

/// A small Mamba-2 of three layers.
pub fn mamba2() -> ModelConfig {
    let plain = ModelConfig::plain(Family::Mamba2, 0);
    ModelConfig {
        vocab_size: 512,
        hidden: 256,
        n_layers: 3,
        norm_eps: 1e-5,
        score_scale: 1.0,
        mixer: Some(StateSpace { n_heads: 8, head_dim: 64, n_groups: 2, state: 16, kernel: 4 }),
        tied: true,
        max_positions: 1 << 20,
        ..plain
    }
}

/// A small DeepSeek-V2-Lite: one dense layer, two with routed experts, a context that yarn stretched.
pub fn deepseek2() -> ModelConfig {
    let yarn = Yarn {
        factor: 8.0,
        beta_fast: Yarn::BETA_FAST,
        beta_slow: Yarn::BETA_SLOW,
        original_max_positions: 64,
        attention_factor: 1.0,
    };
    ModelConfig {
        vocab_size: 512,
        hidden: 256,
        intermediate: 320,
        n_layers: 3,
        n_heads: 4,
        n_kv_heads: 4,
        rope: Rope { theta: 10_000.0, dim: 16, scaling: RopeScaling::Yarn(yarn) },
        score_scale: (1.0 + 0.0707 * 8f32.ln()).powi(2) / 48f32.sqrt(),
        latent: Some(Latent { rank: 128, value_dim: 24, log_multiplier: 0.0707 }),
        experts: Some(Experts {
            routing: Routing { n_experts: 6, n_used: 2, scale: 1.0 },
            width: 64,
            n_shared: 2,
            n_dense_layers: 1,
        }),
        max_positions: 512,
        ..ModelConfig::plain(Family::DeepSeek2, 48)
    }
}

/// Token ids of a packed batch.
pub fn tokens(case: &str, n: usize, vocab_size: usize) -> Vec<u32> {
    let seed = name_hash(&format!("{case}.tokens"));
    (0..n as u64).map(|i| (hash(seed, i) % vocab_size as u64) as u32).collect()
}

/// A checkpoint that is computed when it is read.
pub struct HashedCheckpoint {
    shapes: HashMap<String, Vec<usize>>,
}

impl HashedCheckpoint {
    pub fn new(config: &ModelConfig) -> Self {
        let specs = family::tensors(config);
        let named = |spec: &family::TensorSpec| {
            let shape = spec.shape(Naming::Hf);
            spec.hf_names().into_iter().map(move |name| (name, shape.clone()))
        };
        HashedCheckpoint { shapes: specs.iter().flat_map(named).collect() }
    }
}

impl TensorSource for HashedCheckpoint {
    fn tensor_names(&self) -> Vec<String> {
        self.shapes.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.shapes.get(name).cloned()
    }

    fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut Vec<f32>) -> formats::Result<()> {
        let (_, cols) = rows_and_cols(&self.shapes[name]);
        let (scale, offset) = match name {
            _ if name.ends_with("norm.weight") || name.ends_with("norm_f.weight") => (0.25, 1.0),
            _ if name.ends_with(".bias") => (0.25, 0.0),
            _ if name.contains("embed") => (0.125, 0.0),
            // Of a mixer: kernels, decays of 0.3 to 0.9 at a step of 0.3, steps of about 0.3, skips.
            _ if name.ends_with("conv1d.weight") => (0.5, 0.0),
            _ if name.ends_with("A_log") => (1.0, 0.5),
            _ if name.ends_with("dt_bias") => (1.0, -1.0),
            _ if name.ends_with("mixer.D") => (0.25, 1.0),
            _ => ((3.0 / cols as f64).sqrt() as f32, 0.0),
        };
        out.clear();
        out.extend(values(name, rows.start * cols..rows.end * cols, scale, offset));
        Ok(())
    }

    fn content_hash(&self) -> formats::Result<String> {
        Ok("hashed".to_owned())
    }
}

/// What goldens call a module: as checkpoints of a Gemma 3 that also sees are published.
pub fn golden_module(module: &str) -> String {
    module.replace("model.language_model.", "language_model.model.")
}

/// An adapter whose A and B are both far from zero, and whose lengths of DoRA are far from the rows' own.
pub fn adapter(config: &ModelConfig, options: &LoraOptions) -> Vec<AdapterTensor> {
    let tensor = |linear: family::Linear| {
        let module = golden_module(&linear.module);
        let name = |factor: &str| format!("base_model.model.{module}.lora_{factor}.weight");
        let (r, _) = options.shape(linear.layer, linear.role)?;
        let (in_features, out_features) = (linear.cols, linear.rows);
        let a_scale = (1.0 / (in_features as f64).sqrt()) as f32;
        let magnitude =
            options.dora.then(|| values(&name("magnitude"), 0..out_features, 0.25, 1.0).collect());
        Some(AdapterTensor {
            module: linear.module.clone(),
            a: values(&name("A"), 0..r * in_features, a_scale, 0.0).collect(),
            b: values(&name("B"), 0..out_features * r, 1.0 / 32.0, 0.0).collect(),
            magnitude,
            r,
            in_features,
            out_features,
        })
    };
    family::linears(config).into_iter().filter_map(tensor).collect()
}
