//! The plan against what the system measures. Memory is measured by process, so every run has one of its own: this
//! program again, told by its environment what to train.

#[allow(dead_code)]
#[path = "../train/tiny_base.rs"]
mod tiny_base;

use std::process::Command;

use formats::map::Map;
use tiny_base::{TINY, Widths, Workplace, train};
use trainer::options::{BudgetOptions, Offload};
use trainer::run_dir::RunDir;
use trainer::{CacheOptions, Length, Options, Outcome};

/// Names the file with the options of the run that a process of this program is for.
const OPTIONS: &str = "TUNE_TEST_OPTIONS";
/// Names the folder of kept bases, which the options of a record leave out.
const CACHE: &str = "TUNE_TEST_CACHE";

/// Trains in a process of its own, in which `test` must begin with [`train_if_told`].
fn train_apart(place: &Workplace, options: &Options, test: &str) -> Outcome {
    let path = place.path("options.json");
    std::fs::write(&path, serde_json::to_vec(options).unwrap()).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--nocapture"]).env(OPTIONS, &path);
    if let Some(dir) = &options.cache.dir {
        command.env(CACHE, dir);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let record = std::fs::read(RunDir::new(&options.run_dir).run_json()).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    serde_json::from_value(record["outcome"].clone()).unwrap()
}

fn train_if_told() -> bool {
    let Some(path) = std::env::var_os(OPTIONS) else { return false };
    let mut options: Options = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    options.cache = CacheOptions {
        dir: std::env::var_os(CACHE).map(Into::into),
        least_bytes: 0,
        least_data_bytes: u64::MAX,
    };
    assert!(train(&options).0.unwrap().is_finished);
    true
}

#[test]
fn the_plan_holds() {
    if train_if_told() {
        return;
    }
    let place = Workplace::with_base(TINY);
    let mut options = place.options("run");
    // Large enough that the planned workspace, not the fixed allowance, is most of it.
    options.adapter.rank = 256;
    options.train.batch_size = 40;
    options.train.gradient_accumulation_steps = 1;
    options.eval.exact_match_rows = 3;
    let outcome = train_apart(&place, &options, "the_plan_holds");
    let Some(measured) = outcome.memory_bytes else {
        println!("skipped: this system does not tell its memory");
        return;
    };
    assert!(measured <= outcome.planned_bytes, "{measured} measured, {} planned", outcome.planned_bytes);
    assert!(2 * measured > outcome.planned_bytes, "{measured} measured, {} planned", outcome.planned_bytes);
}

/// Within a tenth of each other.
fn are_close(a: u64, b: u64) -> bool {
    10 * a.abs_diff(b) <= a.min(b)
}

#[test]
fn a_mapped_base_takes_what_was_planned_and_what_one_in_memory_takes() {
    const NAME: &str = "a_mapped_base_takes_what_was_planned_and_what_one_in_memory_takes";
    if train_if_told() {
        return;
    }
    // Weights that are most of what the run takes: 50 million, each held in 32 bits.
    let place = Workplace::with_base(Widths { hidden: 1024, intermediate: 8192, n_layers: 2 });
    let measured = |run: &str, dir: Option<&str>| {
        let mut options = place.options(run);
        options.model.quant = Some("f32".into());
        options.train.length = Length::MaxSteps(2);
        options.data.val_split = 0.0;
        options.train.checkpoint_every = 0;
        options.cache =
            CacheOptions { dir: dir.map(|dir| place.path(dir)), least_bytes: 0, least_data_bytes: u64::MAX };
        let outcome = train_apart(&place, &options, NAME);
        Some((outcome.memory_bytes?, outcome.planned_bytes))
    };
    let Some((loaded, planned)) = measured("loaded", None) else {
        println!("skipped: this system does not tell its memory");
        return;
    };
    let (kept, _) = measured("kept", Some("cache")).unwrap();
    let (mapped, _) = measured("mapped", Some("cache")).unwrap();
    let all = format!("{loaded} loaded, {kept} kept, {mapped} mapped, {planned} planned");
    assert_eq!(std::fs::read_dir(place.path("cache")).unwrap().count(), 2, "one base and the hashes");
    assert!(are_close(loaded, planned) && are_close(mapped, planned), "{all}");
    assert!(are_close(kept, mapped) && are_close(loaded, mapped), "{all}");
}

#[test]
fn weights_that_pass_take_what_was_planned_and_change_nothing() {
    const NAME: &str = "weights_that_pass_take_what_was_planned_and_change_nothing";
    if train_if_told() {
        return;
    }
    // Six layers of 50 MB each.
    let place = Workplace::with_base(Widths { hidden: 1024, intermediate: 4096, n_layers: 6 });
    let run = |run: &str, offload: Offload, memory_bytes: Option<u64>| {
        let mut options = place.options(run);
        options.model.quant = Some("f32".into());
        options.train.length = Length::MaxSteps(2);
        options.data.val_split = 0.0;
        options.train.checkpoint_every = 0;
        options.budget = BudgetOptions { memory_bytes, reserve_bytes: 0, offload };
        options.cache =
            CacheOptions { dir: Some(place.path("cache")), least_bytes: 0, least_data_bytes: u64::MAX };
        let outcome = train_apart(&place, &options, NAME);
        let adapter = RunDir::new(&options.run_dir).adapter().join("adapter_model.safetensors");
        (outcome.memory_bytes, outcome.planned_bytes, std::fs::read(adapter).unwrap())
    };
    let (passing, planned, adapter) = run("passing", Offload::Weights, None);
    let Some(passing) = passing.filter(|_| Map::CAN_RELEASE) else {
        println!("skipped: this system does not tell its memory, or releases no mapped pages");
        return;
    };
    assert!(are_close(passing, planned), "{passing} measured, {planned} planned");
    let (staying, all, expected) = run("staying", Offload::None, None);
    assert!(2 * passing < staying.unwrap(), "{passing} passing, {staying:?} staying");
    assert!(adapter == expected, "what passes gives the same bits");
    // A budget between both: some layers stay, the others pass.
    let budget = (planned + all) / 2;
    let (some, planned, adapter) = run("some", Offload::Auto, Some(budget));
    assert!(are_close(some.unwrap(), planned) && planned <= budget, "{some:?}, {planned} planned, {budget}");
    assert!(planned > budget - (60 << 20), "as many layers stay as fit: {planned} of {budget}");
    assert!(adapter == expected);
}
