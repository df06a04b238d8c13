//! What a golden of PyTorch and PEFT holds, and how ours is compared with it.
#![allow(dead_code)] // each test file uses its own part

use std::collections::HashMap;
use std::path::Path;

use model::arena::Arena;
use model::step::{Batch, IGNORE};
use model::{Adapter, Cpu, ModelConfig};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::hashed;

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
        Batch { tokens, targets, positions, sequence_starts: starts }
    }
}

/// Compares every A's and B's gradient; returns the largest relative error.
pub fn check_gradients(
    config: &ModelConfig,
    adapter: &Adapter<Cpu>,
    flat: &[f32],
    case: &Case,
    name: &str,
    tolerance: f64,
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
            assert!(error < tolerance, "{name}: gradient of {key} is off by {error:.2e}");
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

pub fn relative(difference: f64, of: f64) -> f64 {
    (difference / of).abs()
}
