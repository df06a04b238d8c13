//! Rows that were tokenised once: kept, mapped the next time, and the same tokens.

use std::path::PathBuf;
use std::time::SystemTime;

use trainer::run_dir::RunDir;
use trainer::{CacheOptions, Event, Options};

use crate::tiny_base::{Workplace, rows, train};

fn cached(place: &Workplace, run: &str) -> Options {
    let mut options = place.options(run);
    options.cache =
        CacheOptions { dir: Some(place.path("cache")), least_bytes: u64::MAX, least_data_bytes: 0 };
    options
}

/// The adapter that comes of a run.
fn run(options: &Options) -> Vec<u8> {
    assert!(train(options).0.unwrap().is_finished);
    std::fs::read(RunDir::new(&options.run_dir).adapter().join("adapter_model.safetensors")).unwrap()
}

/// Folders of kept rows, and when their ids were written.
fn kept(place: &Workplace) -> Vec<(PathBuf, SystemTime)> {
    let entries = std::fs::read_dir(place.path("cache/rows")).unwrap();
    let written = |path: PathBuf| (path.clone(), path.join("ids").metadata().unwrap().modified().unwrap());
    let mut kept: Vec<_> = entries.map(|entry| written(entry.unwrap().path())).collect();
    kept.sort();
    kept
}

#[test]
fn the_second_start_maps_what_the_first_kept_and_nothing_changes() {
    let place = Workplace::new();
    let expected = run(&place.options("plain"));
    assert_eq!(run(&cached(&place, "first")), expected);
    let first = kept(&place);
    assert_eq!(first.len(), 1);
    assert_eq!(run(&cached(&place, "second")), expected);
    assert_eq!(kept(&place), first, "nothing was written again");
}

#[test]
fn messages_with_weights_are_kept_with_them() {
    let place = Workplace::new();
    let row = |n: usize| {
        let weight = if n.is_multiple_of(3) { r#","weight":0.5"# } else { "" };
        format!(
            "{{\"messages\":[{{\"role\":\"user\",\"content\":\"{n}\"}},\
             {{\"role\":\"assistant\",\"content\":\"{n} and {n}\"{weight}}}]}}\n"
        )
    };
    place.write_data("train.jsonl", &(1..40).map(row).collect::<String>());
    let expected = run(&place.options("plain"));
    assert_eq!(run(&cached(&place, "first")), expected);
    assert_eq!(run(&cached(&place, "second")), expected);
}

#[test]
fn what_ids_follow_from_makes_other_rows() {
    let place = Workplace::new();
    run(&cached(&place, "first"));
    type Change = fn(&mut Options);
    let changes: [(&str, Change); 3] = [
        ("length", |options| options.data.max_seq_len = 255),
        ("turns", |options| options.data.train_on = trainer::TrainOn::All),
        ("bad rows", |options| options.data.max_bad_rows = 1),
    ];
    for (n, (name, change)) in changes.into_iter().enumerate() {
        let mut options = cached(&place, name);
        change(&mut options);
        run(&options);
        assert_eq!(kept(&place).len(), n + 2, "{name}");
    }
    place.write_data("train.jsonl", &rows(1..41));
    run(&cached(&place, "rows"));
    assert_eq!(kept(&place).len(), 5);
    // What decides the order alone does not.
    let mut options = cached(&place, "seed");
    (options.train.seed, options.data.val_split) = (7, 0.2);
    run(&options);
    assert_eq!(kept(&place).len(), 5);
}

#[test]
fn damaged_rows_are_written_anew() {
    let place = Workplace::new();
    let expected = run(&cached(&place, "whole"));
    let [(folder, _)] = kept(&place).try_into().unwrap();
    for name in ["ids", "is_target", "starts", "places", "index.json"] {
        let path = folder.join(name);
        let sound = std::fs::read(&path).unwrap();
        let mut damaged = sound.clone();
        damaged[sound.len() / 2] ^= 1;
        for bytes in [&damaged[..], &sound[..sound.len() - 1], &[]] {
            std::fs::write(&path, bytes).unwrap();
            let again = place.path("again");
            assert_eq!(run(&cached(&place, "again")), expected, "{name}");
            assert_eq!(std::fs::read(&path).unwrap(), sound, "{name}");
            std::fs::remove_dir_all(again).unwrap();
        }
    }
}

#[test]
fn a_cache_that_cannot_be_written_is_a_warning() {
    let place = Workplace::new();
    let expected = run(&place.options("plain"));
    let mut options = cached(&place, "run");
    std::fs::write(place.path("file"), "").unwrap();
    options.cache.dir = Some(place.path("file"));
    let (outcome, events) = train(&options);
    assert!(outcome.unwrap().is_finished);
    let warned = |event: &Event| matches!(event, Event::Warning { message } if message.contains("not kept"));
    assert!(events.iter().any(warned), "{events:?}");
    let adapter = RunDir::new(&options.run_dir).adapter().join("adapter_model.safetensors");
    assert_eq!(std::fs::read(adapter).unwrap(), expected);
}

#[test]
fn few_rows_are_not_kept_and_old_ones_go() {
    let place = Workplace::new();
    let mut few = cached(&place, "few");
    few.cache.least_data_bytes = 1 << 20;
    run(&few);
    assert!(!place.path("cache/rows").exists());
    for n in 0..10 {
        let mut options = cached(&place, &format!("run-{n}"));
        options.data.max_seq_len = 200 + n;
        run(&options);
    }
    assert_eq!(kept(&place).len(), 8);
}
