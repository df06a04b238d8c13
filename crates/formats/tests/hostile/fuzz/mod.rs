//! Files with the right structure and lies in it, in any number: `FUZZ_EXECUTIONS=10000000` makes that many of each
//! format, over all threads; `FUZZ_SEED` starts elsewhere.

mod gguf;
mod liar;
mod safetensors;

use std::collections::BTreeMap;
use std::path::Path;

use formats::Error;
use liar::Liar;

use crate::counting::peak_of;

/// Bytes that opening may hold: twice the file, and room for what does not depend on it.
fn allowed(file_bytes: usize) -> usize {
    2 * file_bytes + (1 << 20)
}

/// What became of the files.
type Tally = BTreeMap<String, u64>;

/// Makes files, opens each, and looks at everything in those that open.
fn fuzz<F>(make: fn(&mut Liar) -> Vec<u8>, open: fn(&Path) -> Result<F, Error>, look: fn(&F, &mut Liar)) {
    let executions = number("FUZZ_EXECUTIONS").unwrap_or(20_000);
    let seed = number("FUZZ_SEED").unwrap_or(0);
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let tally = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|worker| {
                let mine = (worker..executions).step_by(threads as usize);
                scope.spawn(move || fuzz_some(mine.map(|index| seed + index), make, open, look))
            })
            .collect();
        workers.into_iter().fold(Tally::new(), |mut all, worker| {
            let part = worker.join().expect("the worker says which file it fell over");
            part.into_iter().for_each(|(outcome, n)| *all.entry(outcome).or_default() += n);
            all
        })
    });
    println!("{executions} files: {tally:?}");
    if executions < 10_000 {
        return;
    }
    let opened = tally.get("opened").copied().unwrap_or(0);
    assert!(opened * 10 > executions, "the lies are too many: {tally:?}");
    assert!(tally.len() > 6, "the lies are too few: {tally:?}");
}

fn fuzz_some<F>(
    seeds: impl Iterator<Item = u64>,
    make: fn(&mut Liar) -> Vec<u8>,
    open: fn(&Path) -> Result<F, Error>,
    look: fn(&F, &mut Liar),
) -> Tally {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    let mut tally = Tally::new();
    for seed in seeds {
        let _named = Named(seed);
        let mut liar = Liar::new(seed);
        let bytes = make(&mut liar);
        std::fs::write(&path, &bytes).unwrap();
        let (opened, peak) = peak_of(|| open(&path));
        let outcome = opened.as_ref().map_or_else(variant, |_| "opened".to_owned());
        assert!(peak <= allowed(bytes.len()), "{outcome}: {peak} bytes to open a file of {}", bytes.len());
        match &opened {
            Ok(file) => look(file, &mut liar),
            Err(error) => assert!(error.to_string().contains(path.to_str().unwrap()), "{error}"),
        }
        *tally.entry(outcome).or_default() += 1;
    }
    tally
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

fn variant(error: &Error) -> String {
    let text = format!("{error:?}");
    text.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned()
}

fn number(variable: &str) -> Option<u64> {
    Some(std::env::var(variable).ok()?.parse().unwrap_or_else(|_| panic!("{variable} is no number")))
}
