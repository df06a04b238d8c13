//! Weights that pass through memory: the same run to the bit, and what cannot pass.

use formats::map::Map;
use trainer::options::{BudgetOptions, Offload};
use trainer::run_dir::RunDir;
use trainer::{CacheOptions, Error, Event, Init, Options};

use crate::tiny_base::{Workplace, train};

/// A budget that holds nothing but the smallest window.
fn with(place: &Workplace, run: &str, offload: Offload) -> Options {
    let mut options = place.options(run);
    options.data.test = vec![place.path("test.jsonl").into()];
    options.eval.exact_match_rows = 3;
    options.budget = BudgetOptions { memory_bytes: None, reserve_bytes: 0, offload };
    // Such a small base is kept only because its weights pass.
    options.cache =
        CacheOptions { dir: Some(place.path("cache")), least_bytes: u64::MAX, least_data_bytes: u64::MAX };
    options
}

fn adapter(options: &Options) -> Vec<u8> {
    std::fs::read(RunDir::new(&options.run_dir).adapter().join("adapter_model.safetensors")).unwrap()
}

#[test]
fn weights_that_pass_are_kept_first_and_give_the_same_adapter() {
    if !Map::CAN_RELEASE {
        println!("skipped: this system releases no mapped pages");
        return;
    }
    let place = Workplace::new();
    let stays = with(&place, "stays", Offload::None);
    let (outcome, events) = train(&stays);
    let expected = outcome.unwrap();
    assert!(!events.iter().any(|event| matches!(event, Event::BaseKept { .. } | Event::BaseMapped { .. })));
    let passes = with(&place, "passes", Offload::Weights);
    let (outcome, events) = train(&passes);
    let outcome = outcome.unwrap();
    let plan = events.iter().find_map(|event| if let Event::Plan(plan) = event { Some(plan) } else { None });
    let passing = plan.unwrap().passing.unwrap();
    assert_eq!((passing.layers, passing.n_layers), (2, 2));
    assert!(events.iter().any(|event| matches!(event, Event::BaseKept { .. })));
    assert!(events.iter().any(|event| matches!(event, Event::BaseMapped { .. })));
    assert_eq!(adapter(&passes), adapter(&stays));
    let figures = |outcome: &trainer::Outcome| {
        (outcome.train_loss, outcome.validation_loss, outcome.adapter_exact_match.map(|found| found.matched))
    };
    assert_eq!(figures(&outcome), figures(&expected));
}

#[test]
fn what_cannot_pass_is_refused_with_the_reason() {
    let place = Workplace::new();
    let refused = |change: &dyn Fn(&mut Options)| {
        let mut options = with(&place, "refused", Offload::Weights);
        change(&mut options);
        match train(&options).0.unwrap_err() {
            Error::Option { key: "budget.offload", reason } => reason,
            other => panic!("{other}"),
        }
    };
    let reason = refused(&|options| options.cache.dir = None);
    assert!(reason.contains("model.cache = true") || !Map::CAN_RELEASE, "{reason}");
    let reason = refused(&|options| options.adapter.init = Init::Pissa);
    assert!(reason.contains("adapter.init") || !Map::CAN_RELEASE, "{reason}");
}

#[test]
fn a_cache_that_cannot_be_written_ends_a_run_whose_weights_pass() {
    if !Map::CAN_RELEASE {
        println!("skipped: this system releases no mapped pages");
        return;
    }
    let place = Workplace::new();
    let mut options = with(&place, "run", Offload::Weights);
    let file = place.path("file");
    std::fs::write(&file, "").unwrap();
    options.cache.dir = Some(file.join("cache"));
    let error = train(&options).0.unwrap_err().to_string();
    assert!(error.contains("file/cache"), "{error}");
}
