//! The plan against what is drawn: to the byte, and against sizes of published models.

mod hashed;
mod shared;

use std::ops::ControlFlow;
use std::sync::Arc;

use formats::config::HfConfig;
use formats::observe::Silent;
use hashed::HashedCheckpoint;
use model::arena::Arena;
use model::config::Rope;
use model::device::Precision;
use model::device::cpu::best_precision;
use model::generate::{Capacity, Generator, Request, SamplerOptions};
use model::lora::Gradients;
use model::memory::{Residents, plan_bytes, weights_bytes};
use model::optimizer::{AdamW, AdamWOptions, MomentForm};
use model::step::{Batch, LayerInputs, StepPlan};
use model::{Adapter, Base, Cpu, Error, LoraOptions, ModelConfig, Quant, TrainStep};
use shared::shared;

fn small(of: ModelConfig) -> ModelConfig {
    let (vocab_size, hidden, intermediate, n_layers) = (512, 256, 512, 3);
    let narrow = ModelConfig::plain(of.family, 64);
    let rope = Rope { dim: narrow.rope.dim, ..of.rope };
    let (n_heads, n_kv_heads, head_dim, score_scale) = (4, 2, narrow.head_dim, narrow.score_scale);
    ModelConfig {
        vocab_size,
        hidden,
        intermediate,
        n_layers,
        n_heads,
        n_kv_heads,
        head_dim,
        score_scale,
        rope,
        ..of
    }
}

#[test]
fn a_run_draws_exactly_the_plan() {
    let untied = ModelConfig { tied: false, ..small(hashed::llama()) };
    let plain = LoraOptions { rank: 4, ..LoraOptions::default() };
    let dora = LoraOptions { dora: true, ..plain.clone() };
    let dropout = LoraOptions { dropout: 0.1, ..dora.clone() };
    let qwen3 = small(hashed::qwen3());
    for (config, kept_layers, lora) in [
        (hashed::mamba2(), 0, plain.clone()),
        (hashed::mamba2(), 1, dropout.clone()),
        (hashed::deepseek2(), 0, plain.clone()),
        (hashed::deepseek2(), 2, LoraOptions { dropout: 0.1, ..plain.clone() }),
        (qwen3.clone(), 0, plain.clone()),
        (untied.clone(), 2, plain),
        (qwen3, 0, dora),
        (untied, 2, dropout),
    ] {
        let layer_inputs = if lora.dora { LayerInputs::BF16 } else { LayerInputs::F32 };
        let step = StepPlan { kept_layers, layer_inputs, ..StepPlan::new(&config, 24) };
        let answers = Capacity { n_sequences: 2, n_tokens: 20 };
        let (quant, config) = (Quant::Q4KM, &config);
        let weights_bytes = weights_bytes(config, quant).unwrap();
        let (lora, step, answers) = (Some(&lora), Some(&step), Some(answers));
        let precision = if kept_layers > 0 { best_precision() } else { Precision::F32 };
        // Both forms, each with several kinds of adapters.
        let moments = if kept_layers > 0 { MomentForm::Int8 } else { MomentForm::F32 };
        let window_bytes = 0;
        let residents =
            Residents { config, precision, weights_bytes, window_bytes, lora, moments, step, answers };
        let total = plan_bytes(&residents).unwrap().total_bytes();
        let arena = Arena::new(total);
        run(&residents, quant, &arena).unwrap();
        assert_eq!(arena.peak_bytes(), total);
        let refused = run(&residents, quant, &Arena::new(total - 1)).unwrap_err();
        assert!(matches!(refused, Error::OutOfMemory { .. }), "a byte less is too little: {refused}");
    }
}

/// Builds everything and uses it once.
fn run(residents: &Residents<'_>, quant: Quant, arena: &Arena) -> Result<(), Error> {
    let Residents { config, precision, lora, moments, step, answers, .. } = *residents;
    let (lora, step, answers) = (lora.unwrap(), *step.unwrap(), answers.unwrap());
    let device = Cpu::with_precision(arena.clone(), precision)?;
    let base = Base::load(&device, config, &HashedCheckpoint::new(config), quant, &mut Silent)?;
    let base = Arc::new(base);
    let mut adapter = Adapter::new(&device, config, lora, 1)?;
    let mut gradients = Gradients::new(&adapter)?;
    let mut optimizer = AdamW::new(&adapter, AdamWOptions { moments, ..AdamWOptions::default() })?;
    let mut train = TrainStep::new(base.clone(), Some(lora), step)?;
    let mut generator = Generator::new(base, Some(lora), answers)?;
    let ids: Vec<u32> = (0..24).collect();
    let batch = Batch { tokens: &ids, targets: &ids, weights: None, positions: &ids, sequence_starts: &[0] };
    train.forward_backward(&adapter, &batch, &mut gradients, 1.0)?;
    optimizer.update(&mut adapter, &mut gradients, 1e-3)?;
    let request = Request { stop: &[], sampler: SamplerOptions::GREEDY, max_new_tokens: 4 };
    let go_on = &mut |_| ControlFlow::Continue(());
    generator.generate_batch(Some(&adapter), &[&ids[..16], &ids[..5], &ids[..1]], &request, go_on)?;
    Ok(())
}

#[test]
fn weights_of_published_models_have_their_published_sizes() {
    /// Published files also hold a vocabulary and may pad.
    const TOLERANCE: f64 = 0.025;
    // GiB of the Q4_K_M files.
    for (name, gib) in [("Qwen3-4B", 2.32), ("Llama-3.1-8B-Instruct", 4.57)] {
        let Some(dir) = shared(&format!("assets/models/{name}")) else { continue };
        let config = ModelConfig::from_hf(&HfConfig::from_dir(&dir).unwrap()).unwrap();
        let found = weights_bytes(&config, Quant::Q4KM).unwrap() as f64 / (1u64 << 30) as f64;
        assert!((found / gib - 1.0).abs() < TOLERANCE, "{name}: {found:.3} GiB against {gib}");
    }
}

/// An 8 GB card less what the desktop takes: a step at 2048 tokens with everything that a run has on the device.
#[test]
fn a_step_of_2048_tokens_fits_beside_four_and_eight_billion_weights() {
    const LIMIT_BYTES: u64 = 7_200_000_000;
    /// Tokenizer, data, threads, and one copy of the adapter's moments.
    const BESIDE_BYTES: u64 = 400_000_000;
    for (name, layer_inputs) in [("Qwen3-4B", LayerInputs::F32), ("Llama-3.1-8B-Instruct", LayerInputs::BF16)]
    {
        let Some(dir) = shared(&format!("assets/models/{name}")) else { return };
        let config = ModelConfig::from_hf(&HfConfig::from_dir(&dir).unwrap()).unwrap();
        let weights_bytes = weights_bytes(&config, Quant::Q4KM).unwrap();
        let (lora, step) =
            (LoraOptions::default(), StepPlan { layer_inputs, ..StepPlan::new(&config, 2048) });
        let residents = Residents {
            config: &config,
            precision: Precision::F32,
            weights_bytes,
            window_bytes: 0,
            lora: Some(&lora),
            moments: MomentForm::F32,
            step: Some(&step),
            answers: None,
        };
        let total = plan_bytes(&residents).unwrap().total_bytes();
        eprintln!("{name}: {:.3} GB", total as f64 / 1e9);
        assert!(total + BESIDE_BYTES < LIMIT_BYTES, "{name}: {total}");
    }
}
