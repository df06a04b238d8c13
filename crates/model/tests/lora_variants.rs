//! LoRA's variants against PyTorch transformers + PEFT: DoRA, other ranks and scales in some layers, rsLoRA.
//!
//! The goldens come from `scripts/golden/lora_variants.py`, which names the versions it ran with.

mod hashed;
mod peft;

use std::collections::HashMap;
use std::sync::Arc;

use formats::observe::Silent;
use hashed::HashedCheckpoint;
use model::arena::Arena;
use model::lora::Exception;
use model::{Adapter, Base, Cpu, LoraOptions, ModelConfig, Quant, family};
use peft::{FamilyCase, read_config};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    config: serde_json::Value,
    dora: bool,
    rank_stabilised: bool,
    /// Rank and alpha of each adapted module.
    shapes: HashMap<String, (usize, f32)>,
    magnitudes: HashMap<String, Vec<f32>>,
    cases: HashMap<String, FamilyCase>,
}

/// Every linear layer is an exception: that of its shape, or none.
fn options(golden: &Golden, config: &ModelConfig) -> LoraOptions {
    let linears = family::linears(config).into_iter();
    let exceptions = linears.map(|linear| {
        let (rank, alpha) = golden.shapes.get(&linear.module).copied().unwrap_or((0, 1.0));
        Exception { layer: linear.layer, role: linear.role, rank, alpha }
    });
    LoraOptions {
        dora: golden.dora,
        rank_stabilised: golden.rank_stabilised,
        exceptions: exceptions.collect(),
        ..LoraOptions::default()
    }
}

fn check(name: &str) {
    let golden: Golden = peft::read(&format!("variant_{name}.json"));
    let config = read_config(&golden.config);
    let device = Cpu::new(Arena::unlimited()).unwrap();
    let source = HashedCheckpoint::new(&config);
    let base = Arc::new(Base::load(&device, &config, &source, Quant::F32, &mut Silent).unwrap());
    let lora = options(&golden, &config);
    let mut adapter = Adapter::zeros(&device, &config, &lora).unwrap();
    let mut tensors = hashed::adapter(&config, &lora);
    for tensor in &mut tensors {
        let key = format!("base_model.model.{}.lora_magnitude_vector", tensor.module);
        tensor.magnitude = golden.magnitudes.get(&key).cloned();
    }
    adapter.set_tensors(&config, &tensors).unwrap();
    peft::check_cases(name, &base, &adapter, &golden.cases);
}

#[test]
fn dora_beside_biases() {
    check("dora_qwen2");
}

#[test]
fn dora_on_fused_matrices() {
    check("dora_phi3");
}

#[test]
fn dora_without_a_gate() {
    check("dora_starcoder2");
}

#[test]
fn ranks_and_scales_of_single_layers() {
    check("ranks_qwen3");
}
