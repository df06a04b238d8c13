//! A really trained Llama outside the repository: what is read from its files is what was published.

use std::path::{Path, PathBuf};

use model::device::Precision;
use trainer::Length;
use trainer::options::{AdapterOptions, DataOptions, EvalOptions, ModelOptions, Options, TrainOptions};

use crate::tiny_base::train;

/// Transformers 5.23.0, f32, over all tokens of the five stories, each with BOS and alone.
const PUBLISHED_NLL: f64 = 1.266_441;
/// Ours is f32 in another order of sums.
const NLL_TOLERANCE: f64 = 1e-5;
/// What the adapter must at least gain on the very stories that it learns.
const GAIN: f64 = 0.1;

fn shared() -> PathBuf {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    std::env::var_os("TUNE_SHARED").map_or_else(beside, PathBuf::from)
}

#[test]
fn stories_start_at_the_published_loss_and_are_learned() {
    let base = shared().join("assets/lm/stories260K-hf");
    let sample = shared().join("assets/datasets/tinystories/tinystories_sample.txt");
    if !base.is_dir() || !sample.is_file() {
        println!("skipped: {} or {} is not here", base.display(), sample.display());
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let stories = dir.path().join("stories.jsonl");
    let text = std::fs::read_to_string(sample).unwrap();
    let rows = text.split("<|endoftext|>").map(str::trim).filter(|story| !story.is_empty());
    let rows: String = rows.map(|story| serde_json::json!({"text": story}).to_string() + "\n").collect();
    std::fs::write(&stories, rows).unwrap();

    let (outcome, _) = train(&Options {
        run_dir: dir.path().join("run"),
        model: ModelOptions {
            base,
            quant: Some("f32".into()),
            compute: Some(Precision::F32),
            ..ModelOptions::default()
        },
        adapter: AdapterOptions { rank: 8, alpha: 16.0, ..AdapterOptions::default() },
        data: DataOptions {
            train: vec![stories.clone().into()],
            validation: vec![stories.into()],
            max_seq_len: 512,
            ..DataOptions::default()
        },
        train: TrainOptions {
            length: Length::MaxSteps(15),
            batch_size: 5,
            learning_rate: 1e-2,
            ..TrainOptions::default()
        },
        eval: EvalOptions { exact_match_rows: 0, samples: 0, ..EvalOptions::default() },
        ..Options::default()
    });
    let outcome = outcome.unwrap();
    let (before, after) = (outcome.base_validation_loss.unwrap(), outcome.validation_loss.unwrap());
    assert!((before - PUBLISHED_NLL).abs() < NLL_TOLERANCE, "{before}");
    assert!(after < before - GAIN, "{before} -> {after}");
}
