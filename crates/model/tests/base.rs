//! Loading a base from a checkpoint and from a GGUF: the same blocks, the same loss, nothing dense left behind.

mod hashed;

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use formats::gguf::{Metadata, Reader, Writer};
use formats::observe::Silent;
use formats::{BlockType, block};
use hashed::HashedCheckpoint;
use model::arena::Arena;
use model::base::LoadEvent;
use model::config::gguf_metadata;
use model::device::{BlockMatrix, Device};
use model::family::{self, Naming, Role, TensorSpec};
use model::policy;
use model::step::{Batch, LossSum, StepPlan};
use model::{Base, Cpu, Family, ModelConfig, Quant, TrainStep};

/// The goldens' model made small, with a head of its own where the family is Llama.
fn small(of: ModelConfig) -> ModelConfig {
    let tied = of.family == Family::Qwen3;
    ModelConfig {
        vocab_size: 320,
        hidden: 256,
        intermediate: 288,
        n_layers: 2,
        n_heads: 4,
        n_kv_heads: 2,
        tied,
        max_positions: 512,
        ..of
    }
}

/// Writes a GGUF as llama.cpp's converter lays it out.
fn write_gguf(path: &Path, config: &ModelConfig, quant: Quant) {
    let source = HashedCheckpoint::new(config);
    let specs = family::tensors(config);
    let types = policy::block_types(quant, false, config, &specs);
    let plan = |(spec, &ty): (&TensorSpec, &BlockType)| {
        (spec.gguf.clone(), spec.shape(Naming::Gguf).iter().rev().map(|&n| n as u64).collect(), ty)
    };
    let mut planned: Vec<_> = specs.iter().zip(&types).map(plan).collect();
    let tables = config.rope.gguf_tensors();
    for (name, factors) in &tables {
        planned.push(((*name).to_owned(), vec![factors.len() as u64], BlockType::F32));
    }
    let mut metadata: Metadata = gguf_metadata(config).into_iter().collect();
    metadata.push("general.architecture", config.family.gguf_architecture());
    let mut writer = Writer::begin(File::create(path).unwrap(), &metadata, &planned).unwrap();
    for (spec, ty) in specs.iter().zip(types) {
        let mut floats = Vec::new();
        spec.read(&source, &mut floats).unwrap();
        let mut blocks = vec![0; spec.rows * ty.row_bytes(spec.cols).unwrap()];
        block::encode(ty, &interleaved(config, spec, floats), spec.cols, None, &mut blocks).unwrap();
        writer.write_tensor(&blocks).unwrap();
    }
    for (_, factors) in tables {
        let bytes: Vec<u8> = factors.iter().flat_map(|factor| factor.to_le_bytes()).collect();
        writer.write_tensor(&bytes).unwrap();
    }
    writer.finish().unwrap();
}

/// The converter's `permute`: reshape(heads, 2, D/2, cols).swapaxes(1, 2), for q and k of Llama.
fn interleaved(config: &ModelConfig, spec: &TensorSpec, floats: Vec<f32>) -> Vec<f32> {
    if config.family != Family::Llama || !matches!(spec.role, Role::Q | Role::K) {
        return floats;
    }
    let (d, cols) = (config.head_dim, spec.cols);
    let mut moved = Vec::with_capacity(floats.len());
    for head in 0..spec.rows / d {
        for j in 0..d / 2 {
            for half in 0..2 {
                let row = head * d + half * d / 2 + j;
                moved.extend_from_slice(&floats[row * cols..(row + 1) * cols]);
            }
        }
    }
    moved
}

fn loss(base: Base<Cpu>) -> LossSum {
    let tokens = hashed::tokens("base", 40, base.config.vocab_size);
    let positions: Vec<u32> = (0..40).collect();
    let targets = [&tokens[1..], &[model::step::IGNORE]].concat();
    let batch = Batch {
        tokens: &tokens,
        targets: &targets,
        weights: None,
        positions: &positions,
        sequence_starts: &[0],
    };
    let plan = StepPlan::new(&base.config, 40);
    TrainStep::new(Arc::new(base), None, plan).unwrap().evaluate(None, &batch).unwrap()
}

#[test]
fn a_gguf_and_a_checkpoint_give_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    for (config, quant) in [
        (small(hashed::llama()), Quant::Q4KM),
        (small(hashed::qwen3()), Quant::Q4KM),
        (hashed::mamba2(), Quant::Q4KM),
        (hashed::deepseek2(), Quant::Q4KM),
        (small(hashed::llama()), Quant::BF16),
    ] {
        let path = dir.path().join("model.gguf");
        write_gguf(&path, &config, quant);
        let device = Cpu::new(Arena::unlimited()).unwrap();
        let source = HashedCheckpoint::new(&config);
        let packed = Base::load(&device, &config, &source, quant, &mut Silent).unwrap();
        let taken = Base::from_gguf(&device, &Reader::open(&path).unwrap(), &mut Silent).unwrap();
        assert_eq!(taken.bytes(), packed.bytes());
        assert_eq!(taken.bytes_by_type(), packed.bytes_by_type());
        assert_eq!(device.dense().live_bytes(), 0);
        let (from_gguf, from_checkpoint) = (loss(taken), loss(packed));
        assert!(from_checkpoint.mean().is_finite());
        assert_eq!(from_gguf, from_checkpoint, "{:?} as {quant}", config.family);
    }
}

#[test]
fn four_bits_lose_little_and_more_bits_less() {
    let config = small(hashed::qwen3());
    let loss_of = |quant| {
        let device = Cpu::new(Arena::unlimited()).unwrap();
        loss(Base::load(&device, &config, &HashedCheckpoint::new(&config), quant, &mut Silent).unwrap())
            .mean()
    };
    let exact = loss_of(Quant::F32);
    let error = |quant| (loss_of(quant) - exact).abs();
    // Random weights are the hardest to quantise; a wrong decode or a lost row moves the loss by far more.
    assert!(error(Quant::Q4KM) > error(Quant::F16));
    assert!(error(Quant::Q4KM) < 0.1, "{}", error(Quant::Q4KM));
    assert!(error(Quant::Nf4) > error(Quant::F16));
    assert!(error(Quant::Nf4) < 0.1, "{}", error(Quant::Nf4));
    assert!(error(Quant::Q8_0) < 0.02, "{}", error(Quant::Q8_0));
    assert!(error(Quant::F16) < 1e-3, "{}", error(Quant::F16));
}

#[test]
fn loading_reports_every_tensor_in_order() {
    let config = small(hashed::llama());
    let device = Cpu::new(Arena::unlimited()).unwrap();
    let mut seen = Vec::new();
    let mut observer = |event| match event {
        LoadEvent::Tensor { name, n_done, n_tensors, block_type } => {
            assert_eq!((n_done, n_tensors), (seen.len() + 1, 21));
            seen.push((name, block_type));
        }
        other => panic!("{other:?}"),
    };
    let source = HashedCheckpoint::new(&config);
    let base = Base::load(&device, &config, &source, Quant::Q4KM, &mut observer).unwrap();
    assert_eq!(seen.len(), 21);
    assert_eq!(seen[0], ("model.embed_tokens.weight".to_owned(), BlockType::Q4K));
    assert_eq!(seen[20], ("lm_head.weight".to_owned(), BlockType::Q6K));
    assert_eq!((base.head().rows(), base.head().block_type()), (320, BlockType::Q6K));
}
