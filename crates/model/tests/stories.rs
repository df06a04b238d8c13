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
use model::{Base, Cpu, ModelConfig, Quant};
use shared::shared;

const MODEL: &str = "assets/lm/stories260K-hf";
const STORIES: &str = "assets/datasets/tinystories/tinystories_sample.txt";
const BOS: u32 = 1;

/// What follows BOS greedily: "Once upon a time, there was a little girl named Lily." (the assets' README).
const GREEDY: [u32; 15] = [403, 407, 261, 378, 432, 383, 286, 261, 376, 298, 315, 421, 395, 317, 426];

/// transformers 5.23.0, f32, over all tokens of the five stories, each with BOS and alone.
const MEAN_NLL: f64 = 1.266_441;
/// Ours is f32 in another order of sums.
const F32_TOLERANCE: f64 = 1e-5;
/// What the quantised model may lose and still be the same model.
const NLL_TOLERANCE: f64 = 0.01;

fn base(dir: &Path, quant: Quant) -> Arc<Base<Cpu>> {
    let config = ModelConfig::from_hf(&HfConfig::from_dir(dir).unwrap()).unwrap();
    let device = Cpu::new(Arena::unlimited()).unwrap();
    Arc::new(Base::load(&device, &config, &Checkpoint::open(dir).unwrap(), quant, &mut Silent).unwrap())
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
