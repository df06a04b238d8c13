//! Stop anywhere, resume: the same bits.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use model::optimizer::MomentForm;
use trainer::metrics::{self, Metric};
use trainer::run_dir::RunDir;
use trainer::{Error, Event, Init, Method, Options, Outcome, Start};

use crate::preference;
use crate::tiny_base::{Workplace, train};

/// Trains until `stop` says so of an event.
pub fn train_until(
    options: &Options,
    mut stop: impl FnMut(&Event) -> bool,
) -> (trainer::Result<Outcome>, Vec<Event>) {
    let (mut events, cancel) = (Vec::new(), AtomicBool::new(false));
    let mut observer = |event: Event| {
        cancel.fetch_or(stop(&event), Ordering::Relaxed);
        events.push(event);
    };
    let outcome = trainer::train(options, &mut observer, &cancel);
    (outcome, events)
}

pub fn resumed(options: &Options) -> Options {
    Options { start: Start::Resume, ..options.clone() }
}

/// Every file that must be the same whether or not a run was interrupted.
pub fn result(options: &Options) -> BTreeMap<String, Vec<u8>> {
    let run_dir = RunDir::new(&options.run_dir);
    let mut files = BTreeMap::new();
    for (name, dir) in [("adapter", run_dir.adapter()), ("best", run_dir.best())] {
        // Without validation rows none is the best.
        for entry in std::fs::read_dir(dir).into_iter().flatten() {
            let path = entry.unwrap().path();
            let name = format!("{name}/{}", path.file_name().unwrap().to_string_lossy());
            files.insert(name, std::fs::read(path).unwrap());
        }
    }
    files
}

/// Losses and rates of all steps and validations, without times and without how often the run was resumed.
pub fn course(options: &Options) -> Vec<String> {
    let lines = metrics::read(&RunDir::new(&options.run_dir).metrics()).unwrap();
    let show = |line: &Metric| match line {
        Metric::Step(step) => {
            let lines = (step.loss, step.learning_rate, step.grad_norm, step.validation_loss);
            format!("{} {lines:?}", step.step)
        }
        other => format!("{other:?}"),
    };
    lines.iter().filter(|line| !matches!(line, Metric::Resumed { .. })).map(show).collect()
}

fn newest_checkpoint(options: &Options) -> PathBuf {
    let dir = RunDir::new(&options.run_dir).checkpoints();
    let step =
        |path: &Path| -> Option<u64> { path.file_name()?.to_str()?.strip_prefix("step-")?.parse().ok() };
    let paths = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    paths.filter(|path| step(path).is_some()).max_by_key(|path| step(path)).unwrap()
}

#[test]
fn stopped_after_any_step_the_end_is_the_same_to_the_bit() {
    let place = Workplace::new();
    let whole = place.options("whole");
    assert!(train(&whole).0.unwrap().is_finished);
    for stops in [vec![1], vec![2, 3], vec![5, 6, 7], vec![11], vec![12]] {
        let options = place.options(&format!("stopped-{}", stops[0]));
        let mut next = options.clone();
        for stop in &stops {
            let (outcome, _) =
                train_until(&next, |event| matches!(event, Event::Step(step) if step.step == *stop));
            // After the last step all work is done, so a late stop changes nothing.
            assert_eq!(outcome.unwrap().steps, *stop);
            next = resumed(&options);
        }
        assert!(train(&next).0.unwrap().is_finished);
        assert_eq!(result(&options), result(&whole), "stopped after {stops:?}");
        assert_eq!(course(&options), course(&whole), "stopped after {stops:?}");
    }
}

/// A run that is changed so, stopped after step 5 and resumed, against one that is not stopped.
fn check_variant(name: &str, change: impl Fn(&mut Options)) {
    check_variant_after(5, name, |place, run| {
        let mut options = place.options(run);
        change(&mut options);
        options
    });
}

/// The same stopped after another step.
pub fn check_variant_after(stop: u64, name: &str, options: impl Fn(&Workplace, &str) -> Options) {
    let place = Workplace::new();
    let (whole, options) = (options(&place, "whole"), options(&place, "stopped"));
    assert!(train(&whole).0.unwrap().is_finished);
    train_until(&options, |event| matches!(event, Event::Step(step) if step.step == stop)).0.unwrap();
    assert!(train(&resumed(&options)).0.unwrap().is_finished);
    assert_eq!(result(&options), result(&whole), "{name}");
    assert_eq!(course(&options), course(&whole), "{name}");
}

#[test]
fn variants_of_the_adapter_go_on_with_the_same_bits() {
    check_variant("dropout, DoRA, connections", |options| {
        (options.adapter.dropout, options.adapter.dora, options.train.lora_plus_ratio) = (0.2, true, 4.0);
        options.adapter.elastic = true;
    });
    for init in [Init::Pissa, Init::LoftQ] {
        check_variant(&format!("{init:?}"), |options| {
            (options.adapter.init, options.model.quant) = (init, Some("q4_0".into()));
        });
    }
}

/// An observer that panics is the closest that one process comes to being killed: nothing is saved on the way out.
#[test]
fn killed_between_checkpoints_the_end_is_the_same_to_the_bit() {
    let place = Workplace::new();
    let whole = place.options("whole");
    train(&whole).0.unwrap();
    for kill in ["step 1", "step 5", "validation 6", "checkpoint 8", "step 12", "checkpoint 12"] {
        let options = place.options(&kill.replace(' ', "-"));
        let name = |event: &Event| match event {
            Event::Step(step) => format!("step {}", step.step),
            Event::Validation { step, .. } => format!("validation {step}"),
            Event::Checkpoint { step, .. } => format!("checkpoint {step}"),
            _ => String::new(),
        };
        let killed = std::panic::catch_unwind(|| {
            train_until(&options, |event| {
                if name(event) == kill {
                    std::panic::resume_unwind(Box::new("killed"));
                }
                false
            })
        });
        assert!(killed.is_err());
        let (outcome, _) = train(&resumed(&options));
        assert!(outcome.unwrap().is_finished);
        assert_eq!(result(&options), result(&whole), "{kill}");
        assert_eq!(course(&options), course(&whole), "{kill}");
    }
}

#[test]
fn a_damaged_checkpoint_is_passed_over_and_the_end_is_the_same() {
    let place = Workplace::new();
    let whole = place.options("whole");
    train(&whole).0.unwrap();
    let options = place.options("damaged");
    train_until(&options, |event| matches!(event, Event::Step(step) if step.step == 9)).0.unwrap();
    let file = newest_checkpoint(&options).join("moments/model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 0x40;
    std::fs::write(&file, bytes).unwrap();

    let (outcome, events) = train(&resumed(&options));
    assert!(outcome.unwrap().is_finished);
    assert!(events.iter().any(|event| matches!(event, Event::CheckpointDamaged { .. })));
    assert!(events.iter().any(|event| matches!(event, Event::Resumed { step: 8, total_steps: 12 })));
    assert_eq!(result(&options), result(&whole));
    assert_eq!(course(&options), course(&whole));
}

/// All files below a folder.
fn files_below(dir: &Path) -> Vec<PathBuf> {
    let paths = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> =
        paths.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect();
    files.sort();
    files
}

fn copy_folder(from: &Path, to: &Path) {
    let _ = std::fs::remove_dir_all(to);
    for file in files_below(from) {
        let copy = to.join(file.strip_prefix(from).unwrap());
        std::fs::create_dir_all(copy.parent().unwrap()).unwrap();
        std::fs::copy(file, copy).unwrap();
    }
}

/// Whatever happens to a file of a run that was stopped: the end is the same to the bit, or the run is refused by name.
#[test]
fn no_damage_to_a_stopped_run_goes_unnoticed() {
    let pairs = |place: &Workplace, run: &str| {
        let mut options = preference::options(place, run, Method::Dpo);
        options.train.moments = MomentForm::Int8;
        options
    };
    let plain = |place: &Workplace, run: &str| {
        let mut options = place.options(run);
        (options.train.max_spike, options.train.keep) = (100.0, 2);
        options
    };
    type Make<'a> = &'a dyn Fn(&Workplace, &str) -> Options;
    let runs = [("plain", Workplace::new(), &plain as Make<'_>), ("pairs", preference::place(), &pairs)];
    for (name, place, make) in runs {
        let whole = make(&place, &format!("{name}-whole"));
        train(&whole).0.unwrap();
        let stopped = make(&place, &format!("{name}-stopped"));
        train_until(&stopped, |event| matches!(event, Event::Step(step) if step.step == 9)).0.unwrap();
        let (mut the_same, mut refused) = (0, BTreeMap::<String, u32>::new());
        for file in files_below(&stopped.run_dir) {
            let within = file.strip_prefix(&stopped.run_dir).unwrap();
            let sound = std::fs::read(&file).unwrap();
            let mut flipped = [sound.clone(), sound.clone(), sound.clone()];
            if let Some(last) = sound.len().checked_sub(1) {
                flipped[0][0] ^= 1;
                flipped[1][last / 2] ^= 4;
                flipped[2][last] ^= 0x40;
            }
            let cut = [&sound[..sound.len() / 2], &sound[..sound.len().saturating_sub(1)], &[]];
            let damages = flipped.iter().map(Vec::as_slice).chain(cut).map(Some).chain([None]);
            for damaged in damages {
                let options = make(&place, "damaged");
                copy_folder(&stopped.run_dir, &options.run_dir);
                match damaged {
                    Some(bytes) => std::fs::write(options.run_dir.join(within), bytes).unwrap(),
                    None => std::fs::remove_file(options.run_dir.join(within)).unwrap(),
                }
                match train(&resumed(&options)).0 {
                    Ok(outcome) => {
                        assert!(outcome.is_finished);
                        assert_eq!(result(&options), result(&whole), "{name}: {}", within.display());
                        the_same += 1;
                    }
                    Err(error) => {
                        let named = within.file_name().unwrap().to_str().unwrap();
                        let said = error.to_string();
                        assert!(said.contains(named), "{name}: {}: {said}", within.display());
                        *refused.entry(within.display().to_string()).or_default() += 1;
                    }
                }
            }
        }
        println!("{name}: {the_same} damaged runs ended the same, refused were {refused:?}");
        // Every checkpoint has a way around it; the record of the run has none.
        assert!(refused.keys().all(|file| !file.contains("checkpoints")), "{refused:?}");
    }
}

#[test]
fn a_finished_run_says_so_and_does_nothing() {
    let place = Workplace::new();
    let options = place.options("run");
    let first = train(&options).0.unwrap();
    let before = result(&options);
    let (outcome, events) = train(&resumed(&options));
    assert_eq!(outcome.unwrap(), first);
    assert_eq!(events, [Event::AlreadyFinished(first)]);
    assert_eq!(result(&options), before);
}

#[test]
fn the_base_is_examined_once_a_run() {
    let place = Workplace::new();
    let mut options = place.options("run");
    options.data.test = vec![place.path("test.jsonl").into()];
    options.eval.exact_match_rows = 3;
    train_until(&options, |event| matches!(event, Event::Step(step) if step.step == 1)).0.unwrap();
    let (outcome, events) = train(&resumed(&options));
    assert_eq!(outcome.unwrap().base_exact_match.map(|figures| figures.rows), Some(3));
    let examined = events.iter().filter(|event| matches!(event, Event::ExactMatch(_))).count();
    assert_eq!(examined, 1, "the adapter alone");
}

#[test]
fn what_changed_since_the_start_is_named() {
    let place = Workplace::new();
    let options = place.options("run");
    train_until(&options, |event| matches!(event, Event::Step(step) if step.step == 3)).0.unwrap();

    let mut changed = resumed(&options);
    changed.train.learning_rate = 0.5;
    changed.adapter.rank = 8;
    let Err(Error::RunChanged { changes }) = train(&changed).0 else { panic!("resumed with other options") };
    let keys: Vec<_> = changes.iter().map(|change| change.key.as_str()).collect();
    assert_eq!(keys, ["adapter.rank", "train.learning_rate"]);

    let rows = std::fs::read_to_string(place.path("train.jsonl")).unwrap();
    place.write_data("train.jsonl", &rows.replace("it is 3", "it is three"));
    let Err(Error::RunChanged { changes }) = train(&resumed(&options)).0 else {
        panic!("resumed on other data")
    };
    assert_eq!(changes.len(), 1);
    assert_eq!(changes[0].key, "contents of dataset");
}

#[test]
fn a_moved_run_with_moved_inputs_goes_on() {
    let place = Workplace::new();
    let options = place.options("run");
    train_until(&options, |event| matches!(event, Event::Step(step) if step.step == 3)).0.unwrap();
    let mut moved = resumed(&options);
    for (path, name) in [
        (&mut moved.run_dir, "run-2"),
        (&mut moved.model.base, "base-2"),
        (&mut moved.data.train[0].path, "d"),
    ] {
        let to = place.path(name);
        std::fs::rename(&*path, &to).unwrap();
        *path = to;
    }
    moved.train.keep = 1;
    assert!(train(&moved).0.unwrap().is_finished);
}
