//! What a run does when it does not go well: stops early, keeps the best, skips spikes, saves nothing that is broken.

use std::collections::BTreeMap;

use formats::adapter::{AdapterFiles, read_adapter};
use model::optimizer::MomentForm;
use trainer::metrics::{self, Metric};
use trainer::options::{Options, Scheduler};
use trainer::run_dir::RunDir;
use trainer::{End, Event, Init, Length, Outcome, ResultAdapter};

use crate::resume::{check_variant_after, train_until};
use crate::tiny_base::{Workplace, rows, train};

/// A rate so large that the loss soon rises again.
fn overshooting(place: &Workplace, run: &str) -> Options {
    let mut options = place.options(run);
    (options.train.learning_rate, options.train.scheduler) = (0.05, Scheduler::Constant);
    (options.train.eval_every, options.train.length) = (1, Length::MaxSteps(30));
    options
}

/// As many steps as it takes for three in a row to be worse than the best.
fn past_its_best(options: &Options) -> Length {
    let mut probe = options.clone();
    probe.run_dir.set_extension("probe");
    probe.train.early_stopping = 3;
    let outcome = train(&probe).0.unwrap();
    assert!(outcome.steps < 30, "the rate is too small for this test");
    Length::MaxSteps(outcome.steps)
}

fn adapters(options: &Options) -> [AdapterFiles; 2] {
    let run_dir = RunDir::new(&options.run_dir);
    [run_dir.adapter(), run_dir.best()].map(|dir| read_adapter(&dir).unwrap())
}

/// Steps and losses of all validations but that of the base.
fn validations(events: &[Event]) -> BTreeMap<u64, f64> {
    let loss = |event: &Event| match event {
        Event::Validation { step: step @ 1.., loss, .. } => Some((*step, *loss)),
        _ => None,
    };
    events.iter().filter_map(loss).collect()
}

fn check_is_best(options: &Options, outcome: &Outcome, events: &[Event]) {
    let losses = validations(events);
    let (&step, &loss) = losses.iter().min_by(|a, b| a.1.total_cmp(b.1)).unwrap();
    assert_eq!(outcome.best_validation_loss, Some((loss, step)));
    assert_eq!(outcome.result, Some(ResultAdapter::Best));
    assert_eq!((outcome.result_step, outcome.validation_loss), (Some(step), Some(loss)));
    let [result, best] = adapters(options);
    assert_eq!(result, best);
    assert_eq!(result.tune.unwrap().steps, step);
}

#[test]
fn a_run_that_gets_no_better_ends_with_its_best_adapter() {
    let place = Workplace::new();
    let mut options = overshooting(&place, "run");
    options.train.early_stopping = 3;
    let (outcome, events) = train(&options);
    let outcome = outcome.unwrap();
    assert!(outcome.is_finished && outcome.steps < 30, "{} steps", outcome.steps);
    assert_eq!(outcome.end, Some(End::EarlyStopping));
    let best = outcome.best_validation_loss.unwrap().1;
    assert_eq!(outcome.steps, best + 3);
    let stopped = Event::StoppedEarly { step: outcome.steps, total_steps: 30, evaluations: 3 };
    assert!(events.contains(&stopped));
    check_is_best(&options, &outcome, &events);

    // A finished run is finished, however it ended.
    let resumed = Options { start: trainer::Start::Resume, ..options };
    assert_eq!(train(&resumed).0.unwrap(), outcome);
}

#[test]
fn the_best_is_the_result_where_the_recipe_says_so_and_not_otherwise() {
    let place = Workplace::new();
    for init in [Init::Default, Init::Pissa] {
        let mut options = overshooting(&place, &format!("{init:?}"));
        options.adapter.init = init;
        options.train.length = past_its_best(&options);
        options.train.result = Some(ResultAdapter::Best);
        options.data.test = vec![place.path("test.jsonl").into()];
        options.eval.exact_match_rows = 2;
        let (outcome, events) = train(&options);
        let outcome = outcome.unwrap();
        assert_eq!(outcome.end, Some(End::AllSteps));
        assert_eq!(outcome.result_step, Some(outcome.steps - 3));
        check_is_best(&options, &outcome, &events);
    }
    let mut options = overshooting(&place, "last");
    (options.train.early_stopping, options.train.result) = (3, Some(ResultAdapter::Last));
    let outcome = train(&options).0.unwrap();
    assert_eq!((outcome.end, outcome.result), (Some(End::EarlyStopping), Some(ResultAdapter::Last)));
    assert_eq!(outcome.result_step, Some(outcome.steps));
    let [result, best] = adapters(&options);
    assert_ne!(result.tensors, best.tensors);
}

#[test]
fn a_best_adapter_that_is_lost_is_said_aloud() {
    let place = Workplace::new();
    for damage in ["removed", "changed"] {
        let mut options = overshooting(&place, damage);
        options.train.length = past_its_best(&options);
        let Length::MaxSteps(last) = options.train.length else { panic!() };
        options.train.result = Some(ResultAdapter::Best);
        let best = RunDir::new(&options.run_dir).best().join("adapter_model.safetensors");
        let (outcome, events) = train_until(&options, |event| {
            let is_last = matches!(event, Event::Checkpoint { step, .. } if *step == last);
            if is_last && damage == "removed" {
                std::fs::remove_dir_all(best.parent().unwrap()).unwrap();
            } else if is_last {
                let mut bytes = std::fs::read(&best).unwrap();
                *bytes.last_mut().unwrap() ^= 1;
                std::fs::write(&best, bytes).unwrap();
            }
            false
        });
        let outcome = outcome.unwrap();
        assert_eq!((outcome.result, outcome.result_step), (Some(ResultAdapter::Last), Some(last)));
        let said = |event: &Event| matches!(event, Event::Warning { message } if message.contains("the best cannot be read"));
        assert!(events.iter().any(said), "{events:?}");
    }
}

#[test]
fn early_stopping_and_what_it_remembers_survive_a_stop() {
    for stop in [1, 2, 4, 5] {
        check_variant_after(stop, "early stopping", |place, run| {
            let mut options = overshooting(place, run);
            options.train.early_stopping = 3;
            options
        });
    }
}

/// Steps of one row; one row in forty is of another kind.
fn with_an_odd_row(place: &Workplace, run: &str) -> Options {
    let odd = r#"{"messages": [{"role": "user", "content": "~"}, {"role": "assistant", "content": "ZQXJ#@%&*^!"}]}"#;
    place.write_data("odd.jsonl", &format!("{}{odd}\n", rows(0..39)));
    let mut options = place.options(run);
    options.data.train = vec![place.path("odd.jsonl").into()];
    options.data.val_split = 0.0;
    (options.train.batch_size, options.train.gradient_accumulation_steps) = (1, 1);
    options.train.length = Length::Epochs(2);
    (options.train.learning_rate, options.train.checkpoint_every) = (1e-2, 1);
    options
}

#[test]
fn steps_far_beyond_what_is_usual_are_skipped() {
    let place = Workplace::new();
    let plain = train(&with_an_odd_row(&place, "plain")).0.unwrap();
    assert_eq!(plain.skipped_spikes, 0);

    let mut options = with_an_odd_row(&place, "run");
    options.train.max_spike = 2.5;
    let (outcome, events) = train(&options);
    let outcome = outcome.unwrap();
    let skipped: Vec<_> = events
        .iter()
        .filter_map(|event| match event {
            Event::SpikeSkipped { step, value, median, .. } => Some((*step, *value, *median)),
            _ => None,
        })
        .collect();
    assert!((1..=2).contains(&skipped.len()), "{skipped:?}");
    assert!(skipped.iter().all(|(_, value, median)| *value > 2.5 * median));
    assert_eq!(outcome.skipped_spikes as usize, skipped.len());
    let run_dir = RunDir::new(&options.run_dir);
    let state: serde_json::Value =
        serde_json::from_slice(&std::fs::read(run_dir.checkpoint(80).join("state.json")).unwrap()).unwrap();
    assert_eq!(state["updates"].as_u64().unwrap() as usize, 80 - skipped.len());
    let lines = metrics::read(&run_dir.metrics()).unwrap();
    let spikes: Vec<u64> =
        lines.iter().filter(|line| matches!(line, Metric::Spike { .. })).map(Metric::step).collect();
    assert_eq!(spikes, skipped.iter().map(|(step, ..)| *step).collect::<Vec<_>>());
}

#[test]
fn what_is_usual_survives_a_stop() {
    for stop in [5, 20, 41] {
        check_variant_after(stop, "spikes", |place, run| {
            let mut options = with_an_odd_row(place, run);
            options.train.max_spike = 2.5;
            options
        });
    }
}

#[test]
fn a_run_that_leaves_the_numbers_ends_and_saves_nothing_of_it() {
    let place = Workplace::new();
    for (name, learning_rate, clip) in [("huge", 1e30, 0.0), ("clipped", 1e38, 1.0)] {
        for moments in [MomentForm::F32, MomentForm::Int8] {
            let mut options = place.options(&format!("{name}-{moments:?}"));
            (options.train.learning_rate, options.train.clip) = (learning_rate, clip);
            (options.train.moments, options.train.checkpoint_every) = (moments, 1);
            let error = train(&options).0.unwrap_err();
            assert!(error.is_divergence(), "{error}");
            let run_dir = RunDir::new(&options.run_dir);
            assert!(!run_dir.adapter().exists());
            let saved = std::fs::read_dir(run_dir.checkpoints()).into_iter().flatten();
            for dir in saved.map(|entry| entry.unwrap().path()) {
                let adapter = formats::adapter::read_adapter_as_trained(&dir.join("adapter")).unwrap();
                let finite = |pair: &formats::adapter::AdapterTensor| {
                    pair.a.iter().chain(&pair.b).all(|x| x.is_finite())
                };
                assert!(adapter.tensors.iter().all(finite), "{}", dir.display());
            }
        }
    }
}

#[test]
fn moments_in_eight_bits_learn_as_well_and_take_a_quarter() {
    let place = Workplace::new();
    let mut ends = Vec::new();
    for moments in [MomentForm::F32, MomentForm::Int8] {
        let mut options = place.options(&format!("{moments:?}"));
        (options.train.moments, options.train.length) = (moments, Length::MaxSteps(60));
        let (outcome, events) = train(&options);
        let plan =
            events.iter().find_map(|event| if let Event::Plan(plan) = event { Some(plan) } else { None });
        let rows = &plan.unwrap().rows;
        let bytes = rows.iter().find(|(name, _)| name == "AdamW moments").unwrap().1;
        let outcome = outcome.unwrap();
        ends.push((outcome.base_validation_loss.unwrap(), outcome.validation_loss.unwrap(), bytes));
    }
    let [(before, plain, bytes), (_, coded, coded_bytes)] = ends[..] else { panic!() };
    assert!(plain < before - 2.0, "{before} became {plain}");
    assert!((coded - plain).abs() < 0.02 * (before - plain), "{coded} against {plain}");
    assert!(3 * coded_bytes < bytes, "{coded_bytes} against {bytes}");
}

#[test]
fn moments_in_eight_bits_go_on_with_the_same_bits() {
    for stop in [1, 5, 12] {
        check_variant_after(stop, "eight bits", |place, run| {
            let mut options = place.options(run);
            options.train.moments = MomentForm::Int8;
            options.train.lora_plus_ratio = 4.0;
            options
        });
    }
}
