//! Files made in any number and read: none may bring the reader down or cost more memory than it gives reason for.
//! `FUZZ_EXECUTIONS=10000000` makes that many of each kind, over all threads; `FUZZ_SEED` starts elsewhere.

use std::collections::BTreeMap;
use std::fmt::{Debug, Display};
use std::path::Path;
use std::time::{Duration, Instant};

use super::liar::Liar;
use crate::counting::peak_of;

/// What is read, and how.
pub(crate) struct Target<F, E> {
    /// Makes a file.
    pub make: fn(&mut Liar) -> Vec<u8>,
    /// Reads it.
    pub open: fn(&Path) -> Result<F, E>,
    /// Looks at everything in one that opens.
    pub look: fn(&F, &mut Liar),
    /// Bytes that reading a file of that length may hold.
    pub allowed: fn(usize) -> usize,
    /// What an error is counted as: of the same kind, the same.
    pub kind: fn(&E) -> String,
    /// Whether every error must name the file.
    pub names_file: bool,
}

/// What became of the files.
type Tally = BTreeMap<String, u64>;

/// Makes files, opens each, and looks at everything in those that open.
pub(crate) fn fuzz<F, E: Debug + Display>(target: &Target<F, E>) {
    let executions = number("FUZZ_EXECUTIONS").unwrap_or(20_000);
    let seed = number("FUZZ_SEED").unwrap_or(0);
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let (tally, slowest) = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|worker| {
                let mine = (worker..executions).step_by(threads as usize);
                scope.spawn(move || fuzz_some(mine.map(|index| seed + index), target))
            })
            .collect();
        workers.into_iter().fold((Tally::new(), Duration::ZERO), |(mut all, slowest), worker| {
            let (part, took) = worker.join().expect("the worker says which file it fell over");
            part.into_iter().for_each(|(outcome, n)| *all.entry(outcome).or_default() += n);
            (all, slowest.max(took))
        })
    });
    println!("{executions} files, the slowest in {} ms: {tally:?}", slowest.as_millis());
    if executions < 10_000 {
        return;
    }
    let opened = tally.get("opened").copied().unwrap_or(0);
    assert!(opened * 10 > executions, "the lies are too many: {tally:?}");
    assert!(tally.len() > 6, "the lies are too few: {tally:?}");
}

fn fuzz_some<F, E: Debug + Display>(
    seeds: impl Iterator<Item = u64>,
    target: &Target<F, E>,
) -> (Tally, Duration) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    let (mut tally, mut slowest) = (Tally::new(), Duration::ZERO);
    for seed in seeds {
        let _named = Named(seed);
        let mut liar = Liar::new(seed);
        let bytes = (target.make)(&mut liar);
        std::fs::write(&path, &bytes).unwrap();
        let begun = Instant::now();
        let (opened, peak) = peak_of(|| (target.open)(&path));
        slowest = slowest.max(begun.elapsed());
        let outcome = opened.as_ref().map_or_else(target.kind, |_| "opened".to_owned());
        let allowed = (target.allowed)(bytes.len());
        assert!(peak <= allowed, "{outcome}: {peak} bytes to open a file of {}", bytes.len());
        match &opened {
            Ok(file) => (target.look)(file, &mut liar),
            Err(error) if target.names_file => {
                assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
            }
            Err(error) => assert!(!error.to_string().is_empty(), "{error:?}"),
        }
        *tally.entry(outcome).or_default() += 1;
    }
    (tally, slowest)
}

/// Says which file it was when a panic passes by.
struct Named(u64);

impl Drop for Named {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("this was FUZZ_SEED={} FUZZ_EXECUTIONS=1", self.0);
        }
    }
}

/// The name of an enum's variant.
#[allow(dead_code, reason = "some errors are no enum")]
pub(crate) fn variant(error: &impl Debug) -> String {
    let text = format!("{error:?}");
    text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned()
}

fn number(variable: &str) -> Option<u64> {
    Some(std::env::var(variable).ok()?.parse().unwrap_or_else(|_| panic!("{variable} is no number")))
}
