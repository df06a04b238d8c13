//! Prints the training throughput of a model's shape with random weights, every token a target of one sequence, and
//! the highest resident memory of the steps, loading apart, where the system tells it, and what the plan says:
//! `cargo run --release -p model --example step_speed FOLDER-WITH-CONFIG TOKENS [KEPT-LAYERS [QUANT [KERNEL [STEPS]]]]`;
//! below it where the time went, and how many floating-point operations a second the products made.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use formats::TensorSource;
use formats::config::HfConfig;
#[cfg(target_arch = "x86_64")]
use formats::isa::Isa;
use formats::observe::Silent;
use formats::source::rows_and_cols;
use model::arena::Arena;
use model::device::Precision;
use model::device::cpu::{Part, ProductKernel};
use model::family::{self, Naming, TensorSpec};
use model::lora::Gradients;
use model::memory::{Residents, plan_bytes, weights_bytes};
use model::optimizer::{AdamWOptions, MomentForm};
use model::step::{Batch, IGNORE, StepPlan};
use model::{AdamW, Adapter, Base, Cpu, LoraOptions, ModelConfig, Quant, TrainStep};

/// Weights from a counter; speed does not depend on what they are.
struct Noise(HashMap<String, Vec<usize>>);

impl Noise {
    fn new(config: &ModelConfig) -> Self {
        let specs = family::tensors(config);
        let named = |spec: &TensorSpec| {
            spec.hf_names().into_iter().map(|name| (name, spec.shape(Naming::Hf))).collect::<Vec<_>>()
        };
        Noise(specs.iter().flat_map(named).collect())
    }
}

impl TensorSource for Noise {
    fn tensor_names(&self) -> Vec<String> {
        self.0.keys().cloned().collect()
    }

    fn shape(&self, name: &str) -> Option<Vec<usize>> {
        self.0.get(name).cloned()
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
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let argument = |i: usize, default: &'static str| arguments.get(i).map_or(default, String::as_str);
    let config = ModelConfig::from_hf(&HfConfig::from_dir(Path::new(argument(0, "recipes/pocket")))?)?;
    let (n, kept_layers) = (argument(1, "512").parse::<usize>()?, argument(2, "0").parse()?);
    let (quant, options) = (Quant::parse(argument(3, "q4_k_m"))?, LoraOptions::default());
    let (kernel, n_steps) = (kernel(argument(4, "float"))?, argument(5, "3").parse::<usize>()?.max(1));
    #[cfg(target_arch = "x86_64")]
    if kernel == ProductKernel::Avx2F32 {
        // Everything else then as on a processor that has no more.
        assert!(Isa::limit_to(Isa::Avx2), "nothing has asked before");
    }
    let device = Cpu::with_kernel(Arena::unlimited(), kernel)?;
    let base = Arc::new(Base::load(&device, &config, &Noise::new(&config), quant, &mut Silent)?);
    let mut adapter = Adapter::new(&device, &config, &options, 1)?;
    let mut gradients = Gradients::new(&adapter)?;
    let mut optimizer = AdamW::new(&adapter, AdamWOptions::default())?;
    let plan = StepPlan { kept_layers, ..StepPlan::new(&config, n) };
    let planned = plan_bytes(&Residents {
        config: &config,
        precision: kernel.precision(),
        weights_bytes: weights_bytes(&config, quant)?,
        window_bytes: 0,
        lora: Some(&options),
        moments: MomentForm::F32,
        step: Some(&plan),
        answers: None,
    })?
    .total_bytes();
    let mut step = TrainStep::new(base, Some(&options), plan)?;

    let tokens: Vec<u32> = (0..n).map(|i| (i * 7919 % config.vocab_size.min(2048)) as u32).collect();
    let target = |i: usize| if i + 1 < n { tokens[i + 1] } else { IGNORE };
    let targets: Vec<u32> = (0..n).map(target).collect();
    let positions: Vec<u32> = (0..n).map(|i| i as u32).collect();
    let batch = Batch {
        tokens: &tokens,
        targets: &targets,
        weights: None,
        positions: &positions,
        sequence_starts: &[0],
    };

    // The highest resident memory is counted from here on.
    drop(std::fs::write("/proc/self/clear_refs", "5"));
    let mut seconds = Vec::new();
    let mut before = Vec::new();
    for _ in 0..=n_steps {
        before =
            if seconds.len() <= 1 { Part::ALL.map(|part| device.time_of(part)).to_vec() } else { before };
        let start = Instant::now();
        gradients.zero()?;
        step.forward_backward(&adapter, &batch, &mut gradients, 1.0 / n as f32)?;
        optimizer.update(&mut adapter, &mut gradients, 1e-4)?;
        seconds.push(start.elapsed().as_secs_f64());
    }
    let mut warm = seconds[1..].to_vec();
    warm.sort_by(f64::total_cmp);
    let median = warm[n_steps / 2];
    println!(
        "tune {quant} {kernel:?} seq {n} kept {kept_layers}: {:.1} tokens/s, step {median:.2} s, peak RSS {:.2} GB, \
         planned {:.2} GB",
        n as f64 / median,
        peak_gigabytes().unwrap_or(f64::NAN),
        planned as f64 / 1e9,
    );
    print_parts(&device, &before, warm.iter().sum());
    Ok(())
}

/// `float`, the fastest of floats; `8`, `16`, `32`, the fastest of so many bits; or the name of a way to multiply.
fn kernel(name: &str) -> Result<ProductKernel, String> {
    let best =
        |precision| ProductKernel::best(precision).ok_or("this processor has no instructions for that");
    match name {
        "float" => Ok(ProductKernel::fastest_of_floats()),
        "8" => Ok(best(Precision::Int8)?),
        "16" => Ok(best(Precision::BF16)?),
        "32" => Ok(best(Precision::F32)?),
        name => {
            let known = ProductKernel::ALL.into_iter().find(|kernel| format!("{kernel:?}") == name);
            known.ok_or_else(|| format!("{name}: one of float, 8, 16, 32, {:?}", ProductKernel::ALL))
        }
    }
}

/// Where the time of the timed steps went, and how fast products were.
fn print_parts(device: &Cpu, before: &[(Duration, u64)], seconds: f64) {
    let (mut timed, mut operations) = (0.0, 0.0);
    for (part, before) in Part::ALL.into_iter().zip(before) {
        let (time, flops) = device.time_of(part);
        let (time, flops) = ((time - before.0).as_secs_f64(), (flops - before.1) as f64);
        (timed, operations) = (timed + time, operations + flops);
        let rate = if flops > 0.0 { format!("{:6.0} GFLOP/s", flops / time / 1e9) } else { String::new() };
        println!("  {:20} {:5.1} %  {rate}", part.name(), 100.0 * time / seconds);
    }
    println!("  {:20} {:5.1} %", "all else", 100.0 * (seconds - timed) / seconds);
    println!("  {:20}          {:6.0} GFLOP/s", "whole step", operations / seconds / 1e9);
}

/// The highest resident memory of this process.
fn peak_gigabytes() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix(" kB")?.trim().parse::<f64>().ok()? * 1024.0 / 1e9)
}
