//! What `tune eval` and `tune chat` build on: the figures are those of the run and of transformers, answers those of one-shot decoding.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use model::device::Precision;
use model::generate::SamplerOptions;
use trainer::chat::{Conversation, OwnSpeaker, Sampling};
use trainer::comparison::{Comparison, Figures, Own, Rows, capacity};
use trainer::options::{ModelOptions, Options};
use trainer::run_dir::RunDir;
use trainer::subject::Subject;
use trainer::{Event, Weights};

use crate::tiny_base::{Workplace, rows, train};

/// The step sums a packed batch, decoding one row; both are f32.
const NLL_TOLERANCE: f64 = 1e-4;

fn measured(subject: &Subject, rows: Rows, weights: &[Weights]) -> (Vec<Figures>, Comparison) {
    let n_tokens = rows.longest(8, subject.max_positions());
    let capacity = capacity(subject, rows.rows.len(), n_tokens).unwrap();
    let loaded = subject.load(capacity, &mut |_: Event| {}).unwrap();
    let mut own = Own::new(subject, &loaded, capacity).unwrap();
    let mut comparison = Comparison::new(rows, 8);
    let cancel = AtomicBool::new(false);
    for &by in weights {
        let mut contender = own.contender(by);
        let flow = comparison.measure("x", &mut contender, &mut |_| {}, &cancel).unwrap();
        assert!(flow.is_continue());
    }
    (comparison.report().figures, comparison)
}

fn near(found: f64, expected: f64, tolerance: f64) {
    assert!((found / expected - 1.0).abs() < tolerance, "{found} against {expected}");
}

#[test]
fn validation_rows_and_test_rows_give_the_figures_of_the_run() {
    let place = Workplace::new();
    let mut options = place.options("run");
    options.data.test = vec![place.path("test.jsonl").into()];
    options.eval.exact_match_rows = 4;
    options.eval.samples_each = 2;
    let (outcome, events) = train(&options);
    let outcome = outcome.unwrap();
    let steps: Vec<u64> = events
        .iter()
        .filter_map(|event| if let Event::Sample { step, .. } = event { Some(*step) } else { None })
        .collect();
    assert_eq!(steps, [0, 0, 3, 3, 6, 6, 9, 9, 12, 12]);

    let adapter = RunDir::new(&options.run_dir).adapter();
    let both = [Weights::Base, Weights::Adapter];
    let mut on_validation = options.clone();
    on_validation.data.test.clear();
    let subject = Subject::open(&on_validation, Some(&adapter)).unwrap();
    let (figures, _) = measured(&subject, Rows::read(&subject, None, 99, None).unwrap(), &both);
    let losses: Vec<f64> = figures.iter().map(|figures| figures.loss.unwrap().value).collect();
    near(losses[0], outcome.base_validation_loss.unwrap(), NLL_TOLERANCE);
    near(losses[1], outcome.validation_loss.unwrap(), NLL_TOLERANCE);
    near(figures[1].perplexity.unwrap().value, losses[1].exp(), 1e-12);

    let subject = Subject::open(&options, Some(&adapter)).unwrap();
    let (figures, comparison) = measured(&subject, Rows::read(&subject, None, 4, None).unwrap(), &both);
    let matched: Vec<usize> = figures.iter().map(|figures| figures.exact_match.unwrap().n).collect();
    let of_run = [outcome.base_exact_match.unwrap(), outcome.adapter_exact_match.unwrap()];
    assert_eq!(matched, of_run.map(|figures| figures.matched));
    assert_eq!(comparison.answers_jsonl().lines().count(), 8);
}

#[test]
fn an_adapter_is_refused_over_another_base() {
    let place = Workplace::new();
    let options = place.options("run");
    train(&options).0.unwrap();
    let other = place.path("other");
    crate::tiny_base::write_base(&other, 0.5);
    let mut changed =
        Options { model: ModelOptions { base: other, ..options.model.clone() }, ..options.clone() };
    changed.run_dir = PathBuf::new();
    let error = Subject::open(&changed, Some(&RunDir::new(&options.run_dir).adapter()));
    let error = error.err().unwrap();
    assert!(error.to_string().contains("was trained on another base than"), "{error}");
    assert!(error.to_string().ends_with("the weights differ"), "{error}");
}

#[test]
fn a_chat_streams_the_ids_of_one_shot_decoding_with_and_without_the_adapter() {
    let place = Workplace::new();
    place.write_data("asked.jsonl", &rows(7..8));
    let options = place.options("run");
    train(&options).0.unwrap();
    let adapter = RunDir::new(&options.run_dir).adapter();
    let open = || Subject::open(&options, Some(&adapter)).unwrap();
    let subject = open();
    let both = [Weights::Base, Weights::Adapter];
    let data = place.path("asked.jsonl");
    let (_, comparison) = measured(&subject, Rows::read(&subject, Some(&data), 9, None).unwrap(), &both);
    let answers: Vec<String> = comparison
        .answers_jsonl()
        .lines()
        .map(|line| {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["answer"].as_str().unwrap().to_owned()
        })
        .collect();

    let mut speaker = OwnSpeaker::new(open(), Some(200), &mut |_: Event| {}).unwrap();
    let sampling = Sampling { sampler: SamplerOptions::GREEDY, max_tokens: Some(8) };
    for expected in [&answers[1], &answers[0], &answers[1]] {
        let (mut conversation, mut streamed) = (Conversation::new(None), String::new());
        let mut heard = |piece: &str| {
            streamed.push_str(piece);
            ControlFlow::Continue(())
        };
        let reply = conversation.ask("number 7?", &mut speaker, &sampling, &mut heard).unwrap();
        assert_eq!((&reply.text, &streamed), (expected, expected));
        let again =
            conversation.ask("number 8?", &mut speaker, &sampling, &mut |_| ControlFlow::Continue(()));
        let again = again.unwrap();
        assert!(again.kept_tokens > 0 && again.kept_tokens < again.prompt_tokens, "{again:?}");
        let long = "x".repeat(300);
        let refused = conversation.ask(&long, &mut speaker, &sampling, &mut |_| ControlFlow::Continue(()));
        assert!(refused.unwrap_err().to_string().contains("the context holds 200"));
        assert_eq!(conversation.messages().len(), 4);
        speaker.toggle().unwrap();
    }
}

#[test]
fn perplexity_is_transformers() {
    /// transformers 5.23.0, f32, over all tokens of the five stories (model/tests/stories.rs has it too).
    const MEAN_NLL: f64 = 1.266_441;
    let shared = std::env::var_os("SHARED")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared"), PathBuf::from);
    let (base, file) = (
        shared.join("assets/lm/stories260K-hf"),
        shared.join("assets/datasets/tinystories/tinystories_sample.txt"),
    );
    if !base.is_dir() || !file.is_file() {
        println!("skipped: {} is not on this machine", base.display());
        return;
    }
    let place = Workplace::new();
    let text = std::fs::read_to_string(file).unwrap();
    let stories = text.split("<|endoftext|>").map(str::trim).filter(|story| !story.is_empty());
    let lines: String =
        stories.map(|story| serde_json::json!({ "text": story }).to_string() + "\n").collect();
    place.write_data("stories.jsonl", &lines);
    let model = ModelOptions {
        base,
        quant: Some("f32".into()),
        compute: Some(Precision::F32),
        ..ModelOptions::default()
    };
    let subject = Subject::open(&Options { model, ..Options::default() }, None).unwrap();
    let data = place.path("stories.jsonl");
    let (figures, _) =
        measured(&subject, Rows::read(&subject, Some(&data), 99, None).unwrap(), &[Weights::Base]);
    let (loss, perplexity) = (figures[0].loss.unwrap().value, figures[0].perplexity.unwrap().value);
    near(loss, MEAN_NLL, 1e-5);
    near(perplexity, MEAN_NLL.exp(), 2e-5);
    assert_eq!(figures[0].exact_match, None);
}
