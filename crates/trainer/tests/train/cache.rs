//! A base that was quantised once: kept, mapped the next time, and the same to the bit.

use std::path::PathBuf;

use trainer::run_dir::RunDir;
use trainer::{CacheOptions, Event, Options};

use crate::tiny_base::{Workplace, train, write_base};

fn cached(place: &Workplace, run: &str, quant: &str) -> Options {
    let mut options = place.options(run);
    options.model.quant = Some(quant.into());
    options.cache = CacheOptions { dir: Some(place.path("cache")), least_bytes: 0, least_data_bytes: 0 };
    options
}

/// What a run said of its base, and what came of it.
fn run(options: &Options) -> (&'static str, Vec<u8>) {
    let (outcome, events) = train(options);
    assert!(outcome.unwrap().is_finished);
    let said = events.iter().find_map(|event| match event {
        Event::BaseKept { .. } => Some("kept"),
        Event::BaseMapped { .. } => Some("mapped"),
        Event::Warning { .. } => Some("warned"),
        _ => None,
    });
    let adapter = RunDir::new(&options.run_dir).adapter().join("adapter_model.safetensors");
    (said.unwrap_or("nothing"), std::fs::read(adapter).unwrap())
}

fn kept(place: &Workplace) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(place.path("cache")).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| path.extension().is_some_and(|extension| extension == "blocks")).collect()
}

#[test]
fn the_second_start_maps_what_the_first_kept_and_nothing_changes() {
    let place = Workplace::new();
    for quant in ["q4_k_m", "q8_0", "nf4", "nf4_ic", "bf16"] {
        let mut plain = place.options(&format!("{quant}-plain"));
        plain.model.quant = Some(quant.into());
        let (said, expected) = run(&plain);
        assert_eq!(said, "nothing");
        let (said, first) = run(&cached(&place, &format!("{quant}-first"), quant));
        assert!(said == "kept" && first == expected, "{quant}: {said}");
        let (said, second) = run(&cached(&place, &format!("{quant}-second"), quant));
        assert!(said == "mapped" && second == expected, "{quant}: {said}");
    }
}

#[test]
fn other_weights_are_another_base() {
    let place = Workplace::new();
    assert_eq!(run(&cached(&place, "first", "q8_0")).0, "kept");
    write_base(&place.base(), 0.5);
    assert_eq!(run(&cached(&place, "second", "q8_0")).0, "kept");
    assert_eq!(run(&cached(&place, "third", "q8_0")).0, "mapped");
}

#[test]
fn a_damaged_file_is_written_anew() {
    let place = Workplace::new();
    let (_, expected) = run(&cached(&place, "first", "q8_0"));
    let [path] = kept(&place).try_into().unwrap();
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 100]).unwrap();
    assert_eq!(run(&cached(&place, "second", "q8_0")), ("kept", expected));
}

#[test]
fn a_cache_that_cannot_be_written_is_a_warning() {
    let place = Workplace::new();
    let mut options = cached(&place, "run", "q8_0");
    let file = place.path("file");
    std::fs::write(&file, "").unwrap();
    options.cache.dir = Some(file.join("cache"));
    assert_eq!(run(&options).0, "warned");
}

#[test]
fn small_bases_are_not_kept_and_old_ones_go() {
    let place = Workplace::new();
    let mut small = cached(&place, "small", "q8_0");
    small.cache.least_bytes = 64 << 20;
    assert_eq!(run(&small).0, "nothing");
    for quant in ["q4_k_m", "q5_k_m", "q6_k", "q8_0", "q4_0", "nf4"] {
        run(&cached(&place, quant, quant));
    }
    assert_eq!(kept(&place).len(), 4);
    assert_eq!(run(&cached(&place, "again", "nf4")).0, "mapped");
    assert_eq!(run(&cached(&place, "long-gone", "q4_k_m")).0, "kept");
}
