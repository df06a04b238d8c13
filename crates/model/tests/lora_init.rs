//! PiSSA and LoftQ: what base and adapter together are, and what is left of quantisation's loss.

mod hashed;

use std::sync::Arc;

use formats::TensorSource;
use formats::adapter::AdapterTensor;
use formats::observe::Silent;
use hashed::HashedCheckpoint;
use model::arena::Arena;
use model::device::{Buffer, Device, Write};
use model::lora::Update;
use model::lora::init::{Decomposition, Method, Shifted, decompose};
use model::{Base, Cpu, Family, LoraOptions, ModelConfig, Quant, family};

fn config(family: Family) -> ModelConfig {
    ModelConfig {
        vocab_size: 300,
        hidden: 256,
        intermediate: 320,
        n_layers: 2,
        n_heads: 4,
        n_kv_heads: 2,
        max_positions: 64,
        ..ModelConfig::plain(family, 32)
    }
}

fn options() -> LoraOptions {
    LoraOptions { rank: 8, alpha: 12.0, ..LoraOptions::default() }
}

fn decomposed(method: Method, config: &ModelConfig, quant: Quant) -> Decomposition {
    decompose(method, config, &HashedCheckpoint::new(config), quant, &options(), 5, &mut Silent).unwrap()
}

/// |W - (Q + s·B·A)|² over all adapted weights, Q as a base of the shifted weights really holds it.
fn lost(config: &ModelConfig, quant: Quant, found: &Decomposition) -> f64 {
    let (device, source, options) =
        (Cpu::new(Arena::unlimited()).unwrap(), HashedCheckpoint::new(config), options());
    let shifted = Shifted::new(&source, config, &options, &found.shift);
    let base = Arc::new(Base::load(&device, config, &shifted, quant, &mut Silent).unwrap());
    let mut sum = 0.0;
    for pair in &found.factors {
        let spec = family::tensors(config).into_iter().find(|spec| spec.module() == pair.module).unwrap();
        let (layer, (_, scale)) =
            (spec.layer.unwrap(), options.shape(spec.layer.unwrap(), spec.role).unwrap());
        let mut held = dense(&device, &base, layer, &spec);
        Update::new(pair.clone(), scale).add_to(&mut held, 0);
        let mut weights = Vec::new();
        source.read(&spec.hf, &mut weights).unwrap();
        sum += held.iter().zip(&weights).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
    }
    sum
}

/// A held matrix in f32: the identity times its transpose.
fn dense(device: &Cpu, base: &Base<Cpu>, layer: usize, spec: &family::TensorSpec) -> Vec<f32> {
    let (rows, cols) = (spec.rows, spec.cols);
    let identity: Vec<f32> = (0..rows * rows).map(|i| if i / rows == i % rows { 1.0 } else { 0.0 }).collect();
    let mut x = device.alloc("identity", rows * rows).unwrap();
    device.upload(&identity, x.all_mut()).unwrap();
    let mut out = device.alloc("dense", rows * cols).unwrap();
    let weights = base.layers[layer].matrix(spec.role).unwrap();
    device.linear_backward(x.all(), weights, 0..rows, Write::Set, out.all_mut()).unwrap();
    let mut dense = vec![0.0; rows * cols];
    device.download(out.all(), &mut dense).unwrap();
    dense
}

/// The residual that is reported is that of the base and adapter that train. LoftQ lowers it; PiSSA does where the
/// weights have a leading part, which uniform ones have not.
#[test]
fn the_reported_residual_is_what_base_and_adapter_lack() {
    for (family, quant) in
        [(Family::Qwen3, Quant::Q4KM), (Family::Phi3, Quant::Q4_0), (Family::Llama, Quant::Nf4)]
    {
        let config = config(family);
        for method in [Method::Pissa, Method::LoftQ { iterations: 1 }, Method::LoftQ { iterations: 4 }] {
            let found = decomposed(method, &config, quant);
            let lost = lost(&config, quant, &found);
            assert!((lost / found.residual.after - 1.0).abs() < 1e-3, "{method:?} {quant}: {lost}");
            let lowers = found.residual.after < found.residual.before;
            assert!(lowers || method == Method::Pissa, "{method:?} {quant}: {:?}", found.residual);
        }
    }
}

#[test]
fn more_turns_of_loftq_never_lose_more() {
    let config = config(Family::Qwen3);
    let after = |iterations| decomposed(Method::LoftQ { iterations }, &config, Quant::Nf4).residual.after;
    let (one, five) = (after(1), after(5));
    assert!(five < one, "{one} after one turn, {five} after five");
}

#[test]
fn the_first_turn_of_loftq_leaves_the_base_as_it_is() {
    let config = config(Family::Llama);
    let found = decomposed(Method::LoftQ { iterations: 1 }, &config, Quant::Q4KM);
    let is_zero = |pair: &AdapterTensor| pair.a.iter().chain(&pair.b).all(|&x| x == 0.0);
    assert!(found.shift.iter().all(is_zero) && !found.factors.iter().any(is_zero));
}

/// PiSSA on weights that are not quantised changes nothing but where the weights are.
#[test]
fn pissa_on_exact_weights_is_exact() {
    let config = config(Family::StarCoder2);
    let found = decomposed(Method::Pissa, &config, Quant::F32);
    assert!(found.residual.relative().1 < 1e-6);
    assert!(lost(&config, Quant::F32, &found) / found.residual.weights < 1e-12);
    assert_eq!(found.factors, found.shift);
}

#[test]
fn decomposing_repeats_bit_by_bit_on_any_number_of_threads() {
    let config = config(Family::Qwen2);
    let on = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| decomposed(Method::LoftQ { iterations: 2 }, &config, Quant::Q4KM))
    };
    assert!(on(1) == on(2));
}
