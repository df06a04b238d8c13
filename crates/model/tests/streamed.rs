//! Layer by layer a model gives what it gives as a whole, in the memory of one layer.

mod hashed;

use std::ops::ControlFlow;
use std::sync::Arc;

use formats::observe::Silent;
use hashed::HashedCheckpoint;
use model::arena::Arena;
use model::device::cpu::best_precision;
use model::importance::Importance;
use model::memory::streamed_bytes;
use model::step::{Batch, IGNORE, StepPlan, Streamed};
use model::{Base, Cpu, ModelConfig, Quant, TrainStep};

/// Both sum in f32, in batches of other shapes.
const NLL_TOLERANCE: f64 = 1e-5;

fn models() -> [ModelConfig; 4] {
    [hashed::qwen3(), hashed::llama(), hashed::mamba2(), hashed::deepseek2()]
}

fn device() -> Cpu {
    Cpu::new(Arena::unlimited()).unwrap()
}

/// Nats of each token after the first.
fn sum_nll(logits: &[Vec<f32>], tokens: &[u32]) -> f64 {
    let nll = |(logits, &token): (&Vec<f32>, &u32)| {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
        f64::from(max) + sum.ln() - f64::from(logits[token as usize])
    };
    logits.iter().zip(&tokens[1..]).map(nll).sum()
}

#[test]
fn logits_are_those_of_the_whole_model() {
    for config in models() {
        let source = HashedCheckpoint::new(&config);
        let base = Arc::new(Base::load(&device(), &config, &source, Quant::F32, &mut Silent).unwrap());
        let mut step = TrainStep::new(base, None, StepPlan::new(&config, 96)).unwrap();
        let sequences: Vec<Vec<u32>> =
            [40, 50, 7, 96].map(|n| hashed::tokens("streamed", n, config.vocab_size)).into();
        let borrowed: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
        let mut streamed = Streamed::new(&device(), &config, &source, Quant::F32, 96).unwrap();
        let mut layers = Vec::new();
        let mut after = |layer| {
            layers.push(layer);
            ControlFlow::Continue(())
        };
        let streams = streamed.run(&borrowed, None, &mut after).unwrap().unwrap();
        assert_eq!(layers, (0..config.n_layers).collect::<Vec<_>>());
        for (tokens, stream) in sequences.iter().zip(&streams) {
            let mut logits = Vec::new();
            let mut each = |row, found: &[f32]| {
                assert_eq!(row, logits.len());
                logits.push(found.to_vec());
            };
            streamed.logits(stream, &mut each).unwrap();
            assert_eq!(logits.len(), tokens.len());
            let mut targets = tokens[1..].to_vec();
            targets.push(IGNORE);
            let positions: Vec<u32> = (0..tokens.len() as u32).collect();
            let batch = Batch {
                tokens,
                targets: &targets,
                weights: None,
                positions: &positions,
                sequence_starts: &[0],
            };
            let expected = step.evaluate(None, &batch).unwrap().sum_nll;
            let error = (sum_nll(&logits, tokens) / expected - 1.0).abs();
            assert!(error < NLL_TOLERANCE, "{:?}: {error}", config.family);
        }
    }
}

#[test]
fn memory_is_that_of_one_layer() {
    let peak = |n_layers: usize| {
        let config = ModelConfig { n_layers, ..hashed::qwen3() };
        let source = HashedCheckpoint::new(&config);
        let arena = Arena::unlimited();
        let device = Cpu::new(arena.clone()).unwrap();
        let mut streamed = Streamed::new(&device, &config, &source, Quant::BF16, 64).unwrap();
        let tokens = hashed::tokens("memory", 64, config.vocab_size);
        streamed.run(&[&tokens], None, &mut |_| ControlFlow::Continue(())).unwrap().unwrap();
        arena.peak_bytes()
    };
    assert_eq!(peak(2), peak(6));
}

#[test]
fn memory_is_what_is_planned() {
    for config in models() {
        let source = HashedCheckpoint::new(&config);
        let arena = Arena::unlimited();
        let precision = best_precision();
        let device = Cpu::with_precision(arena.clone(), precision).unwrap();
        let mut streamed = Streamed::new(&device, &config, &source, Quant::BF16, 64).unwrap();
        let tokens = hashed::tokens("memory", 64, config.vocab_size);
        let streams = streamed.run(&[&tokens], None, &mut |_| ControlFlow::Continue(())).unwrap().unwrap();
        streamed.logits(&streams[0], &mut |_, _| ()).unwrap();
        let planned = streamed_bytes(&config, precision, Quant::BF16, 64).unwrap();
        // The head comes when the last layer is gone.
        let peak = arena.peak_bytes();
        assert!((planned / 2..=planned).contains(&peak), "{peak} where {planned} were planned");
    }
}

#[test]
fn it_ends_when_told_and_refuses_what_it_cannot_run() {
    let config = hashed::llama();
    let source = HashedCheckpoint::new(&config);
    let mut streamed = Streamed::new(&device(), &config, &source, Quant::Q8_0, 8).unwrap();
    let mut seen = 0;
    let mut once = |_| {
        seen += 1;
        ControlFlow::Break(())
    };
    assert!(streamed.run(&[&[1, 2, 3]], None, &mut once).unwrap().is_none());
    assert_eq!(seen, 1);
    let mut refused = |tokens: &[u32]| {
        streamed.run(&[tokens], None, &mut |_| ControlFlow::Continue(())).unwrap_err().to_string()
    };
    assert_eq!(refused(&[1; 9]), "batch: length of a sequence is 9, expected 1 to 8");
    assert_eq!(refused(&[]), "batch: length of a sequence is 0, expected 1 to 8");
    let limit = config.vocab_size;
    assert_eq!(refused(&[limit as u32]), format!("batch: token id is {limit}, expected below {limit}"));
}

/// The sums of the whole model's pass, whichever way it is run.
#[test]
fn importance_is_that_of_the_whole_model() {
    for config in models() {
        let source = HashedCheckpoint::new(&config);
        let tokens = hashed::tokens("importance", 64, config.vocab_size);
        let (device, targets) = (device(), vec![IGNORE; 64]);
        let base = Arc::new(Base::load(&device, &config, &source, Quant::F32, &mut Silent).unwrap());
        let positions: Vec<u32> = (0..64).collect();
        let batch = Batch {
            tokens: &tokens,
            targets: &targets,
            weights: None,
            positions: &positions,
            sequence_starts: &[0],
        };
        let whole = Importance::new(&device, &config).unwrap();
        let mut step = TrainStep::new(base, None, StepPlan::new(&config, 64)).unwrap();
        step.measure(None, &batch, &whole).unwrap();
        let layered = Importance::new(&device, &config).unwrap();
        let mut streamed = Streamed::new(&device, &config, &source, Quant::F32, 64).unwrap();
        streamed.run(&[&tokens], Some(&layered), &mut |_| ControlFlow::Continue(())).unwrap().unwrap();
        assert!(whole.entries().unwrap() == layered.entries().unwrap(), "{:?}", config.family);
    }
}
