//! Loss and adapter gradients against PyTorch + PEFT, on two layers of published shape.
//!
//! The goldens come from `scripts/golden/lora_gradients.py`, which names the versions it ran with. The base is held
//! as f32 blocks, or as Q4_K_M against PyTorch on the same dequantised weights. Finite differences of the ops stand
//! beside the ops.

mod hashed;
mod peft;

use std::collections::HashMap;
use std::sync::Arc;

use formats::observe::Silent;
use hashed::{HashedCheckpoint, llama, qwen3};
use model::arena::Arena;
use model::device::Precision;
use model::lora::Gradients;
use model::memory::{Residents, plan_bytes, weights_bytes};
use model::optimizer::MomentForm;
use model::step::StepPlan;
use model::{Adapter, Base, Cpu, LoraOptions, ModelConfig, Quant, TrainStep};
use peft::{Case, Packed, check_gradients, relative};
use serde::Deserialize;

/// Relative error of the loss and of each gradient's norm and samples. Both sides sum in f32, in other orders.
const TOLERANCE: f64 = 1e-4;

#[derive(Deserialize)]
struct Golden {
    cases: HashMap<String, Case>,
}

/// Runs all cases of one golden file with one base, under a cap of exactly the planned bytes.
fn check(config: &ModelConfig, quant: Quant, golden: &str) {
    let golden: Golden = peft::read(golden);
    let lora = LoraOptions::default();
    let max_tokens = golden.cases.values().map(|case| case.lengths.iter().sum()).max().unwrap();
    let plan = StepPlan::new(config, max_tokens);
    let weights_bytes = weights_bytes(config, quant).unwrap();
    let residents = Residents {
        config,
        precision: Precision::F32,
        weights_bytes,
        window_bytes: 0,
        lora: Some(&lora),
        moments: MomentForm::F32,
        step: Some(&plan),
        answers: None,
    };
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
        let found = gradients.download().unwrap();
        let worst = check_gradients(config, &adapter, &found, &case.gradients, name, TOLERANCE);
        eprintln!("{quant} {name}: loss off by {loss_error:.1e}, worst gradient by {worst:.1e}");
    }
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

/// The script has NF4 of its own, after the definition in the header of our codec; the head is Q6_K in both.
#[test]
fn qwen3_on_nf4_equals_pytorch_on_the_dequantised_weights() {
    check(&qwen3(), Quant::Nf4, "lora_qwen3_nf4.json");
}

#[test]
fn llama_on_nf4_equals_pytorch_on_the_dequantised_weights() {
    check(&llama(), Quant::Nf4, "lora_llama_nf4.json");
}
