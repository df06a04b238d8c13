//! What a golden of PyTorch and PEFT holds, and how ours is compared with it.
#![allow(dead_code)] // each test file uses its own part

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use formats::config::HfConfig;
use model::arena::Arena;
use model::generate::{Capacity, Generator};
use model::lora::Gradients;
use model::step::{Batch, IGNORE, StepPlan};
use model::{Adapter, Base, Cpu, ModelConfig, TrainStep};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::hashed;

/// Of a logit, in parts of its row's largest. Both sides sum in f32, in other orders.
const LOGIT_TOLERANCE: f64 = 1e-4;
/// Relative error of the loss.
const LOSS_TOLERANCE: f64 = 1e-5;
/// Relative error of each gradient's norm and samples.
const GRADIENT_TOLERANCE: f64 = 1e-3;

/// A golden row holds every V / LOGIT_SAMPLES-th logit.
const LOGIT_SAMPLES: usize = 64;

/// Loss and gradients of one batch.
#[derive(Deserialize)]
pub struct Case {
    pub lengths: Vec<usize>,
    pub masked_every: usize,
    pub tokens_head: Vec<u32>,
    pub n_targets: usize,
    pub loss: f64,
    pub gradients: HashMap<String, Gradient>,
}

#[derive(Deserialize)]
pub struct Gradient {
    pub norm: f64,
    pub sum: f64,
    pub samples: Vec<f64>,
}

/// Reads a golden file.
pub fn read<T: DeserializeOwned>(name: &str) -> T {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// A packed batch of the golden's sequences.
pub struct Packed {
    pub tokens: Vec<u32>,
    pub targets: Vec<u32>,
    pub positions: Vec<u32>,
    pub starts: Vec<usize>,
}

impl Packed {
    pub fn new(name: &str, case: &Case, vocab_size: usize) -> Packed {
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

    pub fn batch(&self) -> Batch<'_> {
        let Packed { tokens, targets, positions, starts } = self;
        Batch { tokens, targets, weights: None, positions, sequence_starts: starts }
    }
}

/// A batch of a whole model's golden.
#[derive(Deserialize)]
pub struct FamilyCase {
    #[serde(flatten)]
    pub case: Case,
    /// Of each sequence, some rows.
    pub logits: Vec<Vec<LogitRow>>,
}

/// Some logits after one token.
#[derive(Deserialize)]
pub struct LogitRow {
    row: usize,
    largest: f64,
    samples: Vec<f64>,
}

/// What our reader makes of a golden's `config.json`.
pub fn read_config(config: &serde_json::Value) -> ModelConfig {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    ModelConfig::from_hf(&HfConfig::from_dir(dir.path()).unwrap()).unwrap()
}

/// Logits, loss and gradients of every case, each case a packed batch.
pub fn check_cases(
    name: &str,
    base: &Arc<Base<Cpu>>,
    adapter: &Adapter<Cpu>,
    cases: &HashMap<String, FamilyCase>,
) {
    let config = &base.config;
    for (case_name, FamilyCase { case, logits }) in cases {
        let packed = Packed::new(case_name, case, config.vocab_size);
        let worst_logit = check_logits(base, adapter, &packed, case, logits);
        let mut gradients = Gradients::new(adapter).unwrap();
        let plan = StepPlan::new(config, packed.tokens.len());
        let mut step = TrainStep::new(base.clone(), Some(adapter.options()), plan).unwrap();
        let scale = 1.0 / case.n_targets as f32;
        let loss = step.forward_backward(adapter, &packed.batch(), &mut gradients, scale).unwrap();
        assert_eq!(loss.n_targets, case.n_targets);
        let loss_error = relative(loss.mean() - case.loss, case.loss);
        let gradients = gradients.download().unwrap();
        let worst =
            check_gradients(config, adapter, &gradients, &case.gradients, case_name, GRADIENT_TOLERANCE);
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

/// Compares the gradient of every A, B and length; returns the largest relative error.
pub fn check_gradients(
    config: &ModelConfig,
    adapter: &Adapter<Cpu>,
    flat: &[f32],
    expected: &HashMap<String, Gradient>,
    name: &str,
    tolerance: f64,
) -> f64 {
    let mut holder =
        Adapter::zeros(&Cpu::new(Arena::unlimited()).unwrap(), config, adapter.options()).unwrap();
    holder.set_weights(flat).unwrap();
    let mut worst = 0.0f64;
    let mut n_checked = 0;
    for tensor in holder.to_tensors(config).unwrap() {
        let magnitude = tensor.magnitude.as_ref().map(|found| ("magnitude_vector", found));
        for (factor, found) in [("A.weight", &tensor.a), ("B.weight", &tensor.b)].into_iter().chain(magnitude)
        {
            let key = format!("base_model.model.{}.lora_{factor}", hashed::golden_module(&tensor.module));
            let error = compare(found, &expected[&key]);
            assert!(error < tolerance, "{name}: gradient of {key} is off by {error:.2e}");
            worst = worst.max(error);
            n_checked += 1;
        }
    }
    assert_eq!(n_checked, expected.len());
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

pub fn relative(difference: f64, of: f64) -> f64 {
    (difference / of).abs()
}
