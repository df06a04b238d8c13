//! Logits, loss and adapter gradients of every family against PyTorch transformers + PEFT.
//!
//! The goldens come from `scripts/golden/families.py`, which names the versions it ran with; each holds the
//! `config.json` that our reader gets, so that what it says and what is computed are checked together.

mod hashed;
mod peft;

use std::collections::HashMap;
use std::sync::Arc;

use formats::observe::Silent;
use hashed::HashedCheckpoint;
use model::arena::Arena;
use model::{Adapter, Base, Cpu, LoraOptions, Quant};
use peft::{FamilyCase, read_config};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    config: serde_json::Value,
    rank: usize,
    alpha: f32,
    cases: HashMap<String, FamilyCase>,
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
    peft::check_cases(name, &base, &adapter, &golden.cases);
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
fn qwen2_with_yarn() {
    check("qwen2_yarn");
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
fn mamba2_with_one_group() {
    check("mamba2");
}

#[test]
fn mamba_codestral_with_several_groups() {
    check("codestral");
}

#[test]
fn deepseek2_with_yarn() {
    check("deepseek2");
}

#[test]
fn deepseek2_without_a_dense_layer() {
    check("deepseek2_plain");
}

#[test]
fn starcoder2() {
    check("starcoder2");
}
