//! A really trained model, stories260K (karpathy/tinyllamas, in Hugging Face's layout): golden text, perplexity.

mod shared;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use formats::checkpoint::Checkpoint;
use formats::config::HfConfig;
use formats::observe::Silent;
use model::arena::Arena;
use model::generate::{Capacity, Generator, Progress, Request, SamplerOptions, StopReason};
use model::lora::Gradients;
use model::optimizer::{AdamW, AdamWOptions};
use model::step::{Batch, IGNORE, StepPlan};
use model::{Adapter, Base, Cpu, LoraOptions, LossSum, ModelConfig, Quant, TrainStep};
use shared::shared;
use tokenizers::Tokenizer;

const MODEL: &str = "assets/lm/stories260K-hf";
const STORIES: &str = "assets/datasets/tinystories/tinystories_sample.txt";
const BOS: u32 = 1;

/// What follows BOS greedily: "Once upon a time, there was a little girl named Lily." (the assets' README).
const GREEDY: [u32; 15] = [403, 407, 261, 378, 432, 383, 286, 261, 376, 298, 315, 421, 395, 317, 426];

/// transformers 5.23.0, f32, over all tokens of the five stories, each with BOS and alone.
const MEAN_NLL: f64 = 1.266_441;
/// Ours is f32 in another order of sums.
const F32_TOLERANCE: f64 = 1e-5;
/// What 8-bit blocks may move.
const Q8_0_TOLERANCE: f64 = 0.001;
/// What 4-bit blocks may lose: 0.016 measured, much for a quantisation, because the model is so small.
const Q4_K_M_TOLERANCE: f64 = 0.02;

fn base(dir: &Path, quant: Quant) -> Arc<Base<Cpu>> {
    let config = ModelConfig::from_hf(&HfConfig::from_dir(dir).unwrap()).unwrap();
    let device = Cpu::new(Arena::unlimited()).unwrap();
    Arc::new(Base::load(&device, &config, &Checkpoint::open(dir).unwrap(), quant, &mut Silent).unwrap())
}

fn stories(model: &Path, file: &Path) -> Vec<Vec<u32>> {
    let tokenizer = Tokenizer::from_file(model.join("tokenizer.json")).unwrap();
    let ids = |story: &str| tokenizer.encode(story, false).unwrap().get_ids().to_vec();
    let text = std::fs::read_to_string(file).unwrap();
    let stories = text.split("<|endoftext|>").map(str::trim).filter(|story| !story.is_empty());
    stories.map(|story| std::iter::once(BOS).chain(ids(story)).collect()).collect()
}

fn greedy(max_new_tokens: usize) -> Request<'static> {
    Request { stop: &[], sampler: SamplerOptions::GREEDY, max_new_tokens }
}

fn ignore(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

#[test]
fn greedy_text_equals_the_golden_ids() {
    let Some(dir) = shared(MODEL) else { return };
    for quant in [Quant::F32, Quant::Q4KM] {
        let capacity = Capacity { n_sequences: 1, n_tokens: 64 };
        let mut generator = Generator::new(base(&dir, quant), None, capacity).unwrap();
        let generated = generator.generate(None, &[BOS], &greedy(GREEDY.len()), &mut ignore).unwrap();
        assert_eq!(generated.ids, GREEDY, "{quant}");
        assert_eq!(generated.reason, StopReason::Length);
    }
}

#[test]
fn mean_nll_equals_transformers() {
    let (Some(dir), Some(file)) = (shared(MODEL), shared(STORIES)) else { return };
    let stories = stories(&dir, &file);
    for (quant, tolerance) in
        [(Quant::F32, F32_TOLERANCE), (Quant::Q8_0, Q8_0_TOLERANCE), (Quant::Q4KM, Q4_K_M_TOLERANCE)]
    {
        let capacity = Capacity { n_sequences: 1, n_tokens: 512 };
        let mut generator = Generator::new(base(&dir, quant), None, capacity).unwrap();
        let mut sum = LossSum::default();
        for story in &stories {
            sum += generator.score(None, story).unwrap();
        }
        eprintln!("{quant}: mean NLL {:.5} over {} tokens", sum.mean(), sum.n_targets);
        assert!((sum.mean() - MEAN_NLL).abs() < tolerance, "{quant}: {}", sum.mean());
    }
}

#[test]
fn a_short_lora_run_lowers_the_loss() {
    /// Ten updates on these 1,804 tokens take it from 1.28 to 0.45.
    const LEAST_GAIN: f64 = 0.5;
    let (Some(dir), Some(file)) = (shared(MODEL), shared(STORIES)) else { return };
    let stories = stories(&dir, &file);
    let base = base(&dir, Quant::Q4KM);
    let (lora, config, device) = (LoraOptions::default(), &base.config, &base.device);
    let mut adapter = Adapter::new(device, config, &lora, 7).unwrap();
    let mut gradients = Gradients::new(&adapter).unwrap();
    let mut optimizer = AdamW::new(&adapter, AdamWOptions::default()).unwrap();
    let mut step = TrainStep::new(base.clone(), Some(&lora), StepPlan::new(config, 512)).unwrap();
    let n_targets: usize = stories.iter().map(|story| story.len() - 1).sum();
    let mut means = Vec::new();
    for _ in 0..10 {
        gradients.zero().unwrap();
        let mut sum = LossSum::default();
        for story in &stories {
            let targets: Vec<u32> = story[1..].iter().copied().chain([IGNORE]).collect();
            let positions: Vec<u32> = (0..story.len() as u32).collect();
            let batch = Batch {
                tokens: story,
                targets: &targets,
                weights: None,
                positions: &positions,
                sequence_starts: &[0],
            };
            sum += step.forward_backward(&adapter, &batch, &mut gradients, 1.0 / n_targets as f32).unwrap();
        }
        optimizer.update(&mut adapter, &mut gradients, 2e-3).unwrap();
        means.push(sum.mean());
    }
    eprintln!("mean NLL update by update: {means:.4?}");
    assert!((means[0] - MEAN_NLL).abs() < Q4_K_M_TOLERANCE, "a fresh adapter changes nothing: {}", means[0]);
    assert!(means[9] < means[0] - LEAST_GAIN, "{means:.4?}");
}
