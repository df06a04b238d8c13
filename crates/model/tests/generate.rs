//! Decoding: the cache gives what a pass without one gives, side by side as alone, and ends when it should.

mod hashed;

use std::ops::ControlFlow;
use std::sync::Arc;

use formats::observe::Silent;
use hashed::HashedCheckpoint;
use model::arena::Arena;
use model::config::Rope;
use model::generate::{
    Capacity, Dialogue, Generated, Generator, Progress, Request, SamplerOptions, StopReason,
};
use model::step::{Batch, IGNORE, StepPlan};
use model::{Adapter, Base, Cpu, LoraOptions, ModelConfig, Quant, TrainStep};

/// Decoding sums in another order than the packed step does; both are f32.
const NLL_TOLERANCE: f64 = 1e-5;

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

fn base(config: &ModelConfig) -> Arc<Base<Cpu>> {
    let device = Cpu::new(Arena::unlimited()).unwrap();
    Arc::new(Base::load(&device, config, &HashedCheckpoint::new(config), Quant::Q4KM, &mut Silent).unwrap())
}

fn adapter(base: &Base<Cpu>) -> Adapter<Cpu> {
    let options = LoraOptions::default();
    let mut adapter = Adapter::zeros(&base.device, &base.config, &options).unwrap();
    adapter.set_tensors(&base.config, &hashed::adapter(&base.config, &options)).unwrap();
    adapter
}

fn generator(base: &Arc<Base<Cpu>>, n_sequences: usize, n_tokens: usize) -> Generator<Cpu> {
    let capacity = Capacity { n_sequences, n_tokens };
    Generator::new(base.clone(), Some(&LoraOptions::default()), capacity).unwrap()
}

fn request(sampler: SamplerOptions, max_new_tokens: usize) -> Request<'static> {
    Request { stop: &[], sampler, max_new_tokens }
}

fn go_on(_: Progress) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn qwen() -> Arc<Base<Cpu>> {
    base(&small(hashed::qwen3()))
}

#[test]
fn the_cache_gives_what_the_training_step_gives() {
    for config in [small(hashed::qwen3()), small(hashed::llama()), hashed::mamba2(), hashed::deepseek2()] {
        let base = base(&config);
        let adapter = adapter(&base);
        // More tokens than a chunk of a prompt has.
        let tokens = hashed::tokens("cache", 300, config.vocab_size);
        let mut targets = tokens[1..].to_vec();
        targets.push(IGNORE);
        let positions: Vec<u32> = (0..300).collect();
        let batch = Batch {
            tokens: &tokens,
            targets: &targets,
            weights: None,
            positions: &positions,
            sequence_starts: &[0],
        };
        let plan = StepPlan::new(&config, tokens.len());
        let mut step = TrainStep::new(base.clone(), Some(&LoraOptions::default()), plan).unwrap();
        let mut generator = generator(&base, 1, 300);
        for adapter in [None, Some(&adapter)] {
            let expected = step.evaluate(adapter, &batch).unwrap();
            let found = generator.score(adapter, &tokens).unwrap();
            assert_eq!(found.n_targets, expected.n_targets);
            let error = (found.mean() / expected.mean() - 1.0).abs();
            assert!(error < NLL_TOLERANCE, "{} against {}", found.mean(), expected.mean());
        }
    }
}

#[test]
fn greedy_tokens_are_the_likeliest_of_a_pass_without_a_cache() {
    for base in [qwen(), base(&hashed::mamba2()), base(&hashed::deepseek2())] {
        check_greedy(&base);
    }
}

fn check_greedy(base: &Arc<Base<Cpu>>) {
    let prompt = hashed::tokens("greedy", 20, 512);
    let mut generator = generator(base, 1, 64);
    let greedy = request(SamplerOptions::GREEDY, 8);
    let generated = generator.generate(None, &prompt, &greedy, &mut go_on).unwrap();
    let mut text = prompt.clone();
    for &chosen in &generated.ids {
        // A fresh prompt of everything so far: one pass, nothing cached.
        let one = request(SamplerOptions::GREEDY, 1);
        assert_eq!(generator.generate(None, &text, &one, &mut go_on).unwrap().ids, [chosen]);
        text.push(chosen);
    }
}

#[test]
fn side_by_side_as_alone() {
    for base in [qwen(), base(&hashed::mamba2()), base(&hashed::deepseek2())] {
        check_side_by_side(&base);
    }
}

fn check_side_by_side(base: &Arc<Base<Cpu>>) {
    let adapter = adapter(base);
    let lengths = [3, 17, 1, 300, 40];
    let prompt = |(i, &n): (usize, &usize)| hashed::tokens(&format!("prompt {i}"), n, 512);
    let prompts: Vec<Vec<u32>> = lengths.iter().enumerate().map(prompt).collect();
    let greedy = request(SamplerOptions::GREEDY, 12);
    let together =
        generator(base, 2, 320).generate_batch(Some(&adapter), &prompts, &greedy, &mut go_on).unwrap();
    let mut alone = generator(base, 1, 320);
    for (prompt, together) in prompts.iter().zip(&together) {
        assert_eq!(together.ids.len(), 12);
        assert_eq!(alone.generate(Some(&adapter), prompt, &greedy, &mut go_on).unwrap(), *together);
    }
}

#[test]
fn a_seed_decides_the_text() {
    let base = qwen();
    let mut generator = generator(&base, 2, 40);
    let mut draw = |seed| {
        let sampler = SamplerOptions { temperature: 1.0, top_p: 0.95, seed, ..SamplerOptions::GREEDY };
        generator.generate_batch(None, &[[1], [1]], &request(sampler, 16), &mut go_on).unwrap()
    };
    let first = draw(1);
    assert_eq!(first, draw(1));
    assert_ne!(first[0], draw(2)[0]);
    assert_ne!(first[0], first[1], "sequences of one seed draw independently");
}

#[test]
fn it_ends_at_a_stop_token_at_the_length_and_on_demand() {
    let base = qwen();
    let mut generator = generator(&base, 1, 16);
    let mut run = |request: &Request<'_>, observer: &mut dyn FnMut(Progress) -> ControlFlow<()>| {
        generator.generate(None, &[5, 6, 7], request, observer).unwrap()
    };
    let greedy = request(SamplerOptions::GREEDY, 6);
    let whole = run(&greedy, &mut go_on);
    assert_eq!((whole.ids.len(), whole.reason), (6, StopReason::Length));
    let stop = [whole.ids[3]];
    let at = whole.ids.iter().position(|id| *id == stop[0]).unwrap();
    let stopped = run(&Request { stop: &stop, ..greedy }, &mut go_on);
    assert_eq!(stopped, Generated { ids: whole.ids[..at].to_vec(), reason: StopReason::Stop });
    let full = run(&Request { max_new_tokens: 100, ..greedy }, &mut go_on);
    assert_eq!((full.ids.len(), full.reason), (13, StopReason::Length));
    let mut seen = 0;
    let cancelled = run(&greedy, &mut |progress| {
        seen += usize::from(matches!(progress, Progress::Token { .. }));
        if seen == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert_eq!(cancelled, Generated { ids: whole.ids[..2].to_vec(), reason: StopReason::Cancelled });
}

#[test]
fn a_long_prompt_can_be_cancelled_between_chunks() {
    let base = qwen();
    let mut chunks = Vec::new();
    let prompt = hashed::tokens("long", 600, 512);
    let generated = generator(&base, 1, 640)
        .generate(None, &prompt, &request(SamplerOptions::GREEDY, 4), &mut |progress| {
            chunks.push(progress);
            if chunks.len() == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })
        .unwrap();
    assert_eq!(generated, Generated { ids: vec![], reason: StopReason::Cancelled });
    let read = |n_read| Progress::Prompt { sequence: 0, n_read, n_tokens: 600 };
    assert_eq!(chunks, [read(256), read(512)]);
}

#[test]
fn prompts_that_cannot_run_are_refused() {
    let base = qwen();
    let mut generator = generator(&base, 1, 16);
    let mut check = |prompt: &[u32], expected: &str| {
        let error = generator.generate(None, prompt, &request(SamplerOptions::GREEDY, 1), &mut go_on);
        assert_eq!(error.unwrap_err().to_string(), expected);
    };
    check(&[], "batch: number of prompt tokens is 0, expected 1 to 16");
    check(&[1; 17], "batch: number of prompt tokens is 17, expected 1 to 16");
    check(&[1, 512], "batch: token id is 512, expected below 512");
}

#[test]
fn a_dialogue_reads_only_what_is_new_and_says_what_a_fresh_one_says() {
    for config in [small(hashed::qwen3()), hashed::mamba2(), hashed::deepseek2()] {
        let base = base(&config);
        let adapter = adapter(&base);
        let mut dialogue = Dialogue::new(base.clone(), Some(&LoraOptions::default()), 420).unwrap();
        let mut one_shot = generator(&base, 1, 420);
        let greedy = request(SamplerOptions::GREEDY, 6);
        let mut text = hashed::tokens("turn 0", 300, 512);
        for turn in 1..4 {
            // The adapter, off and on again.
            for adapter in [Some(&adapter), None, Some(&adapter)] {
                let mut streamed = Vec::new();
                let mut listen = |progress| {
                    if let Progress::Token { id, .. } = progress {
                        streamed.push(id);
                    }
                    ControlFlow::Continue(())
                };
                let found = dialogue.generate(adapter, &text, &greedy, &mut listen).unwrap();
                assert_eq!(found, one_shot.generate(adapter, &text, &greedy, &mut go_on).unwrap());
                assert_eq!(streamed, found.ids);
            }
            let answer = dialogue.generate(Some(&adapter), &text, &greedy, &mut go_on).unwrap().ids;
            // The last token of a prompt is read again for its logits; the last one chosen was never read.
            let is_mixer = config.mixer.is_some();
            assert_eq!(dialogue.n_kept(), if is_mixer { 0 } else { text.len() - 1 });
            let known = text.len() + answer.len() - 1;
            text.extend(answer);
            text.extend(hashed::tokens(&format!("turn {turn}"), 20, 512));
            let found = dialogue.generate(Some(&adapter), &text, &greedy, &mut go_on).unwrap();
            assert_eq!(dialogue.n_kept(), known);
            assert_eq!(found, one_shot.generate(Some(&adapter), &text, &greedy, &mut go_on).unwrap());
        }
        // Another beginning: nothing is kept that is not the same.
        let other = hashed::tokens("another", 30, 512);
        let found = dialogue.generate(None, &other, &greedy, &mut go_on).unwrap();
        assert_eq!(
            (dialogue.n_kept(), found),
            (0, one_shot.generate(None, &other, &greedy, &mut go_on).unwrap())
        );
    }
}

#[test]
fn a_dialogue_that_is_broken_off_or_full_goes_on_right() {
    let base = qwen();
    let mut dialogue = Dialogue::new(base.clone(), None, 40).unwrap();
    let prompt = hashed::tokens("prompt", 30, 512);
    let greedy = request(SamplerOptions::GREEDY, 100);
    let mut n = 0;
    let mut stop_after_three = |progress| {
        n += usize::from(matches!(progress, Progress::Token { .. }));
        if n == 3 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let broken = dialogue.generate(None, &prompt, &greedy, &mut stop_after_three).unwrap();
    assert_eq!((broken.ids.len(), broken.reason), (3, StopReason::Cancelled));
    let whole = dialogue.generate(None, &prompt, &greedy, &mut go_on).unwrap();
    assert_eq!((whole.ids.len(), whole.reason), (10, StopReason::Length));
    assert_eq!(whole.ids[..3], broken.ids);
    assert!(dialogue.generate(None, &hashed::tokens("prompt", 41, 512), &greedy, &mut go_on).is_err());
}

#[test]
fn scores_of_targets_add_up_to_the_score_of_all() {
    let base = qwen();
    let mut generator = generator(&base, 2, 300);
    let tokens = hashed::tokens("targets", 300, 512);
    let mut score = |weights: &[f32]| {
        generator.score_targets(None, &tokens, weights, &mut || ControlFlow::Continue(())).unwrap().unwrap()
    };
    let odd: Vec<f32> = (0..300).map(|i| (i % 2) as f32).collect();
    let even: Vec<f32> = odd.iter().map(|odd| 1.0 - odd).collect();
    let mixed: Vec<f32> = odd.iter().map(|odd| 0.5 + 1.5 * odd).collect();
    let (odd, even, mixed) = (score(&odd), score(&even), score(&mixed));
    assert_eq!((mixed.n_targets, mixed.sum_weights), (299, 2.0 * 150.0 + 0.5 * 149.0));
    assert!(((2.0 * odd.sum_nll + 0.5 * even.sum_nll) / mixed.sum_nll - 1.0).abs() < NLL_TOLERANCE);
    let all = generator.score(None, &tokens).unwrap();
    assert_eq!((odd.n_targets, even.n_targets, all.n_targets), (150, 149, 299));
    assert!(((odd.sum_nll + even.sum_nll) / all.sum_nll - 1.0).abs() < NLL_TOLERANCE);
    let cancelled = generator.score_targets(None, &tokens, &[1.0; 300], &mut || ControlFlow::Break(()));
    assert_eq!(cancelled.unwrap(), None);
}
