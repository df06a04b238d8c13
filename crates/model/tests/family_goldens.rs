//! Logits, loss and adapter gradients of every family against PyTorch transformers + PEFT.
//!
//! The goldens come from `scripts/golden/families.py`, which names the versions it ran with; each holds the
//! `config.json` that our reader gets, so that what it says and what is computed are checked together.

mod hashed;
mod peft;

use std::collections::HashMap;
use std::sync::Arc;

use formats::config::HfConfig;
use formats::observe::Silent;
use hashed::HashedCheckpoint;
use model::arena::Arena;
use model::generate::{Capacity, Generator};
use model::lora::Gradients;
use model::step::StepPlan;
use model::{Adapter, Base, Cpu, LoraOptions, ModelConfig, Quant, TrainStep};
use peft::{Case, Packed, check_gradients, relative};
use serde::Deserialize;

/// Of a logit, in parts of its row's largest. Both sides sum in f32, in other orders.
const LOGIT_TOLERANCE: f64 = 1e-4;
/// Relative error of the loss.
const LOSS_TOLERANCE: f64 = 1e-5;
/// Relative error of each gradient's norm and samples.
const GRADIENT_TOLERANCE: f64 = 1e-3;

/// A golden row holds every V / LOGIT_SAMPLES-th logit.
const LOGIT_SAMPLES: usize = 64;

#[derive(Deserialize)]
struct Golden {
    config: serde_json::Value,
    rank: usize,
    alpha: f32,
    cases: HashMap<String, FamilyCase>,
}

#[derive(Deserialize)]
struct FamilyCase {
    #[serde(flatten)]
    case: Case,
    /// Of each sequence, some rows.
    logits: Vec<Vec<LogitRow>>,
}

#[derive(Deserialize)]
struct LogitRow {
    row: usize,
    largest: f64,
    samples: Vec<f64>,
}

fn read_config(config: &serde_json::Value) -> ModelConfig {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    ModelConfig::from_hf(&HfConfig::from_dir(dir.path()).unwrap()).unwrap()
}

fn check(name: &str) {
    let golden: Golden = peft::read(&format!("family_{name}.json"));
    let config = read_config(&golden.config);
    let device = Cpu::new(Arena::unlimited()).unwrap();
    let source = HashedCheckpoint::new(&config);
    let base = Arc::new(Base::load(&device, &config, &source, Quant::F32, &mut Silent).unwrap());
    let lora = LoraOptions { rank: golden.rank, alpha: golden.alpha, ..LoraOptions::default() };
    let mut adapter = Adapter::zeros(&device, &config, &lora).unwrap();
    adapter.set_tensors(&config, &hashed::adapter(&config, &lora)).unwrap();
    for (case_name, FamilyCase { case, logits }) in &golden.cases {
        let packed = Packed::new(case_name, case, config.vocab_size);
        let worst_logit = check_logits(&base, &adapter, &packed, case, logits);
        let mut gradients = Gradients::new(&adapter).unwrap();
        let mut step =
            TrainStep::new(base.clone(), Some(&lora), StepPlan::new(&config, packed.tokens.len())).unwrap();
        let scale = 1.0 / case.n_targets as f32;
        let loss = step.forward_backward(&adapter, &packed.batch(), &mut gradients, scale).unwrap();
        assert_eq!(loss.n_targets, case.n_targets);
        let loss_error = relative(loss.mean() - case.loss, case.loss);
        let gradients = gradients.download().unwrap();
        let worst = check_gradients(&config, &adapter, &gradients, case, case_name, GRADIENT_TOLERANCE);
        eprintln!(
            "{name} {case_name}: logits {worst_logit:.1e}, loss {loss_error:.1e}, gradients {worst:.1e}"
        );
        assert!(loss_error < LOSS_TOLERANCE, "{case_name}: loss {} against {}", loss.mean(), case.loss);
    }
}

/// Each sequence by itself through the cache, in chunks; returns the largest error.
fn check_logits(
    base: &Arc<Base<Cpu>>,
    adapter: &Adapter<Cpu>,
    packed: &Packed,
    case: &Case,
    expected: &[Vec<LogitRow>],
) -> f64 {
    let mut worst = 0.0f64;
    for ((&length, &start), expected) in case.lengths.iter().zip(&packed.starts).zip(expected) {
        let capacity = Capacity { n_sequences: 1, n_tokens: length };
        let mut generator = Generator::new(base.clone(), Some(adapter.options()), capacity).unwrap();
        let mut n_compared = 0;
        let mut compare = |index: usize, found: &[f32]| {
            let Some(row) = expected.iter().find(|row| row.row == index) else { return };
            let stride = found.len() / LOGIT_SAMPLES;
            for (i, sample) in row.samples.iter().enumerate() {
                let error = relative(f64::from(found[i * stride]) - sample, row.largest);
                assert!(error < LOGIT_TOLERANCE, "logit {} of row {index} is off by {error:.1e}", i * stride);
                worst = worst.max(error);
            }
            n_compared += 1;
        };
        generator.logits(Some(adapter), &packed.tokens[start..start + length], &mut compare).unwrap();
        assert_eq!(n_compared, expected.len());
    }
    worst
}

#[test]
fn llama3_with_scaled_rotation() {
    check("llama3");
}

#[test]
fn smollm2_is_a_tied_llama() {
    check("smollm2");
}

#[test]
fn mistral() {
    check("mistral");
}

#[test]
fn mistral_with_a_window() {
    check("mistral_window");
}

#[test]
fn qwen2_with_biases() {
    check("qwen2");
}

#[test]
fn qwen3_untied() {
    check("qwen3");
}

#[test]
fn phi4_mini_on_both_sides_of_longropes_threshold() {
    check("phi4_mini");
}

#[test]
fn phi3_with_a_window() {
    check("phi3_window");
}

#[test]
fn gemma3() {
    check("gemma3");
}

#[test]
fn gemma3_as_a_part_of_the_4b() {
    check("gemma3_4b");
}

#[test]
fn starcoder2() {
    check("starcoder2");
}
