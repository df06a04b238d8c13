//! Weights that pass through memory: the plan to the byte, and the results of a base that stays to the bit.

mod hashed;

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use formats::atomic;
use formats::block_file::{BlockFile, BlockWriter};
use formats::observe::Silent;
use hashed::HashedCheckpoint;
use model::arena::Arena;
use model::base::{Residence, encode, kept_tensors};
use model::device::Precision;
use model::generate::{Capacity, Generator, Request, SamplerOptions};
use model::lora::Gradients;
use model::memory::{Residents, plan_bytes, weight_sizes, weights_bytes};
use model::optimizer::{AdamW, AdamWOptions, MomentForm};
use model::step::{Batch, LossSum, StepPlan};
use model::{Adapter, Base, Cpu, Error, LoraOptions, ModelConfig, Quant, TrainStep};

const QUANT: Quant = Quant::Q4KM;

fn kept(path: &Path, config: &ModelConfig) -> BlockFile {
    let source = HashedCheckpoint::new(config);
    atomic::write_file(path, |out| {
        let mut writer = BlockWriter::begin(out, "k", &kept_tensors(config, QUANT))?;
        encode(config, &source, QUANT, &mut |bytes| writer.write(bytes), &mut Silent)?;
        writer.finish()?;
        Ok::<_, Error>(())
    })
    .unwrap();
    BlockFile::open(path, "k").unwrap()
}

/// What comes of some steps: losses, the adapter, an answer, and how often the window turned.
#[derive(Debug, PartialEq)]
struct Results {
    losses: Vec<LossSum>,
    adapter: Vec<f32>,
    answers: Vec<Vec<u32>>,
}

fn run(
    config: &ModelConfig,
    lora: &LoraOptions,
    file: &BlockFile,
    residence: Residence,
    kept_layers: usize,
) -> (Results, usize) {
    let step = StepPlan { kept_layers, ..StepPlan::new(config, 24) };
    let capacity = Capacity { n_sequences: 2, n_tokens: 20 };
    let sizes = weight_sizes(config, QUANT).unwrap();
    let residents = Residents {
        config,
        precision: Precision::F32,
        weights_bytes: sizes.staying_bytes(residence),
        window_bytes: sizes.window_bytes(residence),
        lora: Some(lora),
        moments: MomentForm::F32,
        step: Some(&step),
        answers: Some(capacity),
    };
    let arena = Arena::new(plan_bytes(&residents).unwrap().total_bytes());
    let device = Cpu::new(arena.clone()).unwrap();
    let mut base = Base::from_blocks(&device, (config, QUANT), file, residence, &mut Silent).unwrap();
    let turns = Arc::new(AtomicUsize::new(0));
    let counted = turns.clone();
    base.watch(Box::new(move || {
        counted.fetch_add(1, Ordering::Relaxed);
    }));
    let base = Arc::new(base);
    let mut adapter = Adapter::new(&device, config, lora, 1).unwrap();
    adapter.set_magnitudes(&base).unwrap();
    let mut gradients = Gradients::new(&adapter).unwrap();
    let mut optimizer = AdamW::new(&adapter, AdamWOptions::default()).unwrap();
    let mut train = TrainStep::new(base.clone(), Some(lora), step).unwrap();
    let mut generator = Generator::new(base, Some(lora), capacity).unwrap();
    let ids: Vec<u32> = (0..24).collect();
    let batch = Batch { tokens: &ids, targets: &ids, weights: None, positions: &ids, sequence_starts: &[0] };
    let mut losses = Vec::new();
    for _ in 0..3 {
        gradients.zero().unwrap();
        losses.push(train.forward_backward(&adapter, &batch, &mut gradients, 0.04).unwrap());
        optimizer.update(&mut adapter, &mut gradients, 1e-3).unwrap();
        losses.push(train.evaluate(Some(&adapter), &batch).unwrap());
    }
    let request = Request { stop: &[], sampler: SamplerOptions::GREEDY, max_new_tokens: 4 };
    let go_on = &mut |_| ControlFlow::Continue(());
    let answers =
        generator.generate_batch(Some(&adapter), &[&ids[..16], &ids[..5]], &request, go_on).unwrap();
    assert_eq!(arena.peak_bytes(), arena.capacity_bytes(), "the plan is what is drawn");
    let answers = answers.into_iter().map(|answer| answer.ids).collect();
    (Results { losses, adapter: adapter.weights().unwrap(), answers }, turns.load(Ordering::Relaxed))
}

#[test]
fn what_passes_gives_the_same_bits_as_what_stays() {
    let plain = LoraOptions { rank: 4, ..LoraOptions::default() };
    let dora = LoraOptions { dora: true, dropout: 0.1, ..plain.clone() };
    let dir = tempfile::tempdir().unwrap();
    let untied = ModelConfig { tied: false, ..hashed::llama() };
    for (name, config, lora) in [
        ("qwen3", hashed::qwen3(), plain.clone()),
        ("llama", untied, dora),
        ("mamba2", hashed::mamba2(), plain.clone()),
        ("deepseek2", hashed::deepseek2(), plain),
    ] {
        let file = kept(&dir.path().join(name), &config);
        let (expected, turns) = run(&config, &lora, &file, Residence::All, 0);
        assert_eq!(turns, 0);
        for (resident_layers, kept_layers) in [(0, 0), (1, 1), (config.n_layers, 0)] {
            let residence = Residence::Window { resident_layers };
            let (found, turns) = run(&config, &lora, &file, residence, kept_layers);
            assert_eq!(found, expected, "{name}, {resident_layers} layers stay");
            // Six passes forward, three of them back, and answers.
            assert!(turns > 9 * config.n_layers, "{name}: {turns}");
        }
    }
}

#[test]
fn a_window_is_the_two_largest_places_that_follow_one_another() {
    let config = ModelConfig { tied: false, n_layers: 3, ..hashed::llama() };
    let mut sizes = weight_sizes(&config, QUANT).unwrap();
    assert_eq!(sizes.total_bytes(), weights_bytes(&config, QUANT).unwrap());
    (sizes.vectors, sizes.embedding, sizes.head, sizes.layers) = (1, 50, 60, vec![10, 30, 20]);
    let window = |resident_layers| Residence::Window { resident_layers };
    let held = |residence| (sizes.staying_bytes(residence), sizes.window_bytes(residence));
    assert_eq!(held(Residence::All), (171, 0));
    assert_eq!(held(window(0)), (1, 80));
    assert_eq!(held(window(2)), (41, 80));
    assert_eq!(held(window(3)), (61, 60));
    assert_eq!(sizes.passed_bytes(window(0)), 2 * 60 - 20 + 110);
    assert_eq!(sizes.passed_bytes(window(3)), 110);
    // A head that is the embedding is read at both ends.
    sizes.head = 0;
    assert_eq!((sizes.window_bytes(window(0)), sizes.window_bytes(window(3))), (70, 50));
}
