//! Prints the training throughput of the pocket model's shape with random weights:
//! `cargo run --release -p model --example step_speed [tokens a batch] [kept layers]`.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use formats::TensorSource;
use formats::observe::Silent;
use formats::source::rows_and_cols;
use model::arena::Arena;
use model::device::Device;
use model::family::{self, Naming};
use model::lora::Gradients;
use model::optimizer::AdamWOptions;
use model::step::{Batch, IGNORE, StepPlan};
use model::{AdamW, Adapter, Base, Cpu, Family, LoraOptions, ModelConfig, Quant, TrainStep};

const SEQUENCE_TOKENS: usize = 128;
const N_STEPS: usize = 10;

fn pocket() -> ModelConfig {
    ModelConfig {
        vocab_size: 2048,
        hidden: 256,
        intermediate: 768,
        n_layers: 6,
        n_heads: 4,
        n_kv_heads: 2,
        tied: true,
        max_positions: 2048,
        ..ModelConfig::plain(Family::Qwen3, 64)
    }
}

/// Weights from a counter; speed does not depend on what they are.
struct Noise(ModelConfig);

impl TensorSource for Noise {
    fn tensor_names(&self) -> Vec<String> {
        family::tensors(&self.0).into_iter().map(|spec| spec.hf).collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        family::tensors(&self.0).into_iter().find(|spec| spec.hf == name).map(|spec| spec.shape(Naming::Hf))
    }

    fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut Vec<f32>) -> formats::Result<()> {
        let (_, cols) = rows_and_cols(&self.shape(name).unwrap_or_default());
        let value = |i: usize| (i.wrapping_mul(0x9E37_79B9) as u32) as f32 / u32::MAX as f32 - 0.5;
        out.clear();
        out.extend((rows.start * cols..rows.end * cols).map(|i| 0.1 * value(i)));
        Ok(())
    }

    fn content_hash(&self) -> formats::Result<String> {
        Ok("noise".to_owned())
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<usize>());
    let n = arguments.next().transpose()?.unwrap_or(2048);
    let kept_layers = arguments.next().transpose()?.unwrap_or(0);
    let (config, options) = (pocket(), LoraOptions::default());
    let device = Cpu::new(Arena::unlimited())?;
    let base = Arc::new(Base::load(&device, &config, &Noise(config.clone()), Quant::Q4KM, &mut Silent)?);
    let mut adapter = Adapter::new(&device, &config, &options, 1)?;
    let mut gradients = Gradients::new(&adapter)?;
    let mut optimizer = AdamW::new(&device, adapter.n_weights(), AdamWOptions::default())?;
    let plan = StepPlan { kept_layers, ..StepPlan::new(&config, n) };
    let mut step = TrainStep::new(base, Some(&options), plan)?;

    let tokens: Vec<u32> = (0..n).map(|i| (i * 7919 % 2048) as u32).collect();
    // A quarter of the rows are answers, as in a chat dataset.
    let target = |i: usize| if i % SEQUENCE_TOKENS > 3 * SEQUENCE_TOKENS / 4 { tokens[i] } else { IGNORE };
    let targets: Vec<u32> = (0..n).map(target).collect();
    let positions: Vec<u32> = (0..n).map(|i| (i % SEQUENCE_TOKENS) as u32).collect();
    let sequence_starts: Vec<usize> = (0..n).step_by(SEQUENCE_TOKENS).collect();
    let batch = Batch {
        tokens: &tokens,
        targets: &targets,
        positions: &positions,
        sequence_starts: &sequence_starts,
    };

    let mut best_s = f64::INFINITY;
    for _ in 0..N_STEPS {
        let start = Instant::now();
        gradients.zero()?;
        step.forward_backward(&adapter, &batch, &mut gradients, 1.0 / n as f32)?;
        optimizer.update(&mut adapter, &mut gradients, 1e-4)?;
        best_s = best_s.min(start.elapsed().as_secs_f64());
    }
    let start = Instant::now();
    step.evaluate(Some(&adapter), &batch)?;
    let forward_s = start.elapsed().as_secs_f64();
    println!("train    {:.0} tokens/s (best of {N_STEPS} steps of {n} tokens)", n as f64 / best_s);
    println!("evaluate {:.0} tokens/s", n as f64 / forward_s);
    println!("memory   {:.1} MiB drawn", device.arena().peak_bytes() as f64 / (1 << 20) as f64);
    Ok(())
}
