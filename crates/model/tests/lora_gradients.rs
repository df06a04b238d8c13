//! Loss and adapter gradients against PyTorch + PEFT, on two layers of published shape.
//!
//! The goldens come from `scripts/golden/lora_gradients.py`, which names the versions it ran with. The base is held
//! as f32 blocks, or as Q4_K_M against PyTorch on the same dequantised weights. Finite differences of the ops stand
//! beside the ops.

mod hashed;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use formats::observe::Silent;
use hashed::{HashedCheckpoint, llama, qwen3};
use model::arena::Arena;
use model::lora::Gradients;
use model::memory::{Residents, plan_bytes};
use model::step::{Batch, IGNORE, StepPlan};
use model::{Adapter, Base, Cpu, LoraOptions, ModelConfig, Quant, TrainStep};
use serde::Deserialize;

/// Relative error of the loss and of each gradient's norm and samples. Both sides sum in f32, in other orders.
const TOLERANCE: f64 = 1e-4;

#[derive(Deserialize)]
struct Golden {
    cases: HashMap<String, Case>,
}

#[derive(Deserialize)]
struct Case {
    lengths: Vec<usize>,
    masked_every: usize,
    tokens_head: Vec<u32>,
    n_targets: usize,
    loss: f64,
    gradients: HashMap<String, Gradient>,
}

#[derive(Deserialize)]
struct Gradient {
    norm: f64,
    sum: f64,
    samples: Vec<f64>,
}

/// A packed batch of the golden's sequences.
struct Packed {
    tokens: Vec<u32>,
    targets: Vec<u32>,
    positions: Vec<u32>,
    starts: Vec<usize>,
}

impl Packed {
    fn new(name: &str, case: &Case, vocab_size: usize) -> Packed {
        let tokens = hashed::tokens(name, case.lengths.iter().sum(), vocab_size);
        let (mut targets, mut positions, mut starts) = (Vec::new(), Vec::new(), Vec::new());
        for &length in &case.lengths {
            let start = targets.len();
            starts.push(start);
            for i in start..start + length {
                let is_last = i + 1 == start + length;
                let is_masked = case.masked_every > 0 && i % case.masked_every == 0;
                targets.push(if is_last || is_masked { IGNORE } else { tokens[i + 1] });
                positions.push((i - start) as u32);
            }
        }
        assert_eq!(tokens[..4], case.tokens_head, "the hashes differ from the script's");
        Packed { tokens, targets, positions, starts }
    }

    fn batch(&self) -> Batch<'_> {
        let Packed { tokens, targets, positions, starts } = self;
        Batch { tokens, targets, positions, sequence_starts: starts }
    }
}

/// Runs all cases of one golden file with one base, under a cap of exactly the planned bytes.
fn check(config: &ModelConfig, quant: Quant, golden: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(golden);
    let golden: Golden = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let lora = LoraOptions::default();
    let max_tokens = golden.cases.values().map(|case| case.lengths.iter().sum()).max().unwrap();
    let plan = StepPlan::new(config, max_tokens);
    let residents = Residents { config, quant, lora: Some(&lora), step: Some(&plan), answers: None };
    let device = Cpu::new(Arena::new(plan_bytes(&residents).unwrap().total_bytes())).unwrap();
    let base =
        Arc::new(Base::load(&device, config, &HashedCheckpoint::new(config), quant, &mut Silent).unwrap());
    let mut adapter = Adapter::zeros(&device, config, &lora).unwrap();
    adapter.set_tensors(config, &hashed::adapter(config, &lora)).unwrap();
    let mut gradients = Gradients::new(&adapter).unwrap();
    let mut step = TrainStep::new(base, Some(&lora), plan).unwrap();
    for (name, case) in &golden.cases {
        let packed = Packed::new(name, case, config.vocab_size);
        gradients.zero().unwrap();
        let scale = 1.0 / case.n_targets as f32;
        let loss = step.forward_backward(&adapter, &packed.batch(), &mut gradients, scale).unwrap();
        assert_eq!(loss.n_targets, case.n_targets);
        let loss_error = relative(loss.mean() - case.loss, case.loss);
        assert!(loss_error < TOLERANCE, "{name}: loss {} against {}", loss.mean(), case.loss);
        let worst = check_gradients(config, &adapter, &gradients.download().unwrap(), case, name);
        eprintln!("{quant} {name}: loss off by {loss_error:.1e}, worst gradient by {worst:.1e}");
    }
}

/// Compares every A's and B's gradient; returns the largest relative error.
fn check_gradients(
    config: &ModelConfig,
    adapter: &Adapter<Cpu>,
    flat: &[f32],
    case: &Case,
    name: &str,
) -> f64 {
    let mut holder =
        Adapter::zeros(&Cpu::new(Arena::unlimited()).unwrap(), config, adapter.options()).unwrap();
    holder.set_weights(flat).unwrap();
    let mut worst = 0.0f64;
    let mut n_checked = 0;
    for tensor in holder.to_tensors(config).unwrap() {
        for (factor, found) in [("A", &tensor.a), ("B", &tensor.b)] {
            let key = format!("base_model.model.{}.lora_{factor}.weight", tensor.module);
            let error = compare(found, &case.gradients[&key]);
            assert!(error < TOLERANCE, "{name}: gradient of {key} is off by {error:.2e}");
            worst = worst.max(error);
            n_checked += 1;
        }
    }
    assert_eq!(n_checked, case.gradients.len());
    worst
}

/// The largest relative error of norm, sum and samples; sum and samples against what is typical of their size.
fn compare(found: &[f32], expected: &Gradient) -> f64 {
    let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
    let found_norm = norm(&mut found.iter().map(|&x| f64::from(x)));
    let found_sum: f64 = found.iter().map(|&x| f64::from(x)).sum();
    let stride = (found.len() / expected.samples.len()).max(1);
    let differences = expected.samples.iter().enumerate().map(|(i, x)| f64::from(found[i * stride]) - x);
    let samples_error =
        relative(norm(&mut differences.into_iter()), norm(&mut expected.samples.iter().copied()));
    let norm_error = relative(found_norm - expected.norm, expected.norm);
    // A sum of n values of random sign is about the norm; the sum itself may be near zero.
    let sum_error = relative(found_sum - expected.sum, expected.norm.max(expected.sum.abs()));
    samples_error.max(norm_error).max(sum_error)
}

fn relative(difference: f64, of: f64) -> f64 {
    (difference / of).abs()
}

#[test]
fn qwen3_on_f32_equals_pytorch() {
    check(&qwen3(), Quant::F32, "lora_qwen3_f32.json");
}

#[test]
fn llama_on_f32_equals_pytorch() {
    check(&llama(), Quant::F32, "lora_llama_f32.json");
}

#[test]
fn qwen3_on_q4_k_m_equals_pytorch_on_the_dequantised_weights() {
    check(&qwen3(), Quant::Q4KM, "lora_qwen3_q4_k_m.json");
}

#[test]
fn llama_on_q4_k_m_equals_pytorch_on_the_dequantised_weights() {
    check(&llama(), Quant::Q4KM, "lora_llama_q4_k_m.json");
}
