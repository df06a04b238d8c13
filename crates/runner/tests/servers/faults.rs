//! Everything that a server can do wrong, in Ollama's API and in OpenAI's, a hundred times each at other places: at most three tries in a row, a clear
//! end, what was committed stays as it was, and a resumed run comes to the same result without asking for it again.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use runner::engine::remote::Patience;
use runner::pipeline::{Event, Pipeline, RunOptions, run};
use runner::{Error, Residency};
use serde_json::{Value, json};

use crate::double::{Asked, Double, Logged, Plan, Wrong};
use crate::engine::{VERSIONS, engine_with, hasty, patience};
use crate::pipelines::checked;

const SEEDS: u64 = 100;
const INPUT: &str = "one\ntwo\nthree";

/// Numbers from a seed (SplitMix64).
struct Draw(u64);

impl Draw {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) % n as u64) as usize
    }
}

/// A place for many small files that no disk has to sync.
fn directory() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

/// The API that experts are asked by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Api {
    Ollama,
    OpenAi,
}

impl Api {
    fn cases(self) -> &'static [Case] {
        match self {
            Self::Ollama => OLLAMA,
            Self::OpenAi => OPENAI,
        }
    }

    fn expert(self, double: &Double, model: &str) -> Value {
        match self {
            Self::Ollama => json!({"ollama": model, "host": double.url}),
            Self::OpenAi => json!({"openai": format!("{model}:latest"), "url": format!("{}/v1", double.url)}),
        }
    }
}

fn pipeline(api: Api, double: &Double, directory: &Path) -> Pipeline {
    let spec = json!({
        "experts": {"first": api.expert(double, "tidy"), "second": api.expert(double, "poet")},
        "steps": [
            {"name": "clean", "expert": "first", "map": "lines", "prompt": "tidy up: {{ item }}"},
            {"name": "sing", "expert": "second", "prompt": "sing of it: {{ steps.clean.output }}"},
        ],
    });
    checked(spec, directory).unwrap()
}

/// A run, its id, and what it gave.
fn go(
    pipeline: &Pipeline,
    runs: &Path,
    resume: Option<String>,
    patience: Patience,
) -> (String, Result<Vec<String>, Error>) {
    let options = RunOptions { runs: runs.to_owned(), resume, ..RunOptions::default() };
    let mut residency = Residency::new(Box::new(engine_with(patience)));
    let mut id = String::new();
    let outcome = run(pipeline, INPUT, &options, &mut residency, &|| false, &mut |event: Event| {
        if let Event::RunStarted { run, .. } = event {
            id = run;
        }
    });
    (id, outcome.map(|outcome| outcome.results.into_iter().map(|result| result.output).collect()))
}

/// Every file under a folder.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        if entry.path().is_dir() {
            found.extend(files(&entry.path()));
        } else {
            found.insert(entry.path(), std::fs::read(entry.path()).unwrap());
        }
    }
    found
}

/// The longest row of wrong answers to one and the same request.
fn most_tries(log: &[Logged]) -> usize {
    let mut rows: BTreeMap<String, usize> = BTreeMap::new();
    let mut most = 0;
    for logged in log {
        let row = rows.entry(format!("{:?} {}", logged.asked, logged.body)).or_default();
        *row = if logged.went_wrong { *row + 1 } else { 0 };
        most = most.max(*row);
    }
    most
}

struct Case {
    name: &'static str,
    /// Where it can happen.
    at: &'static [Asked],
    wrong: fn(&mut Draw) -> Wrong,
    /// Of the words of the error, one of which is there.
    words: &'static [&'static str],
    /// Whether it is tried again.
    passes: bool,
}

const ANY: &[Asked] =
    &[Asked::Load, Asked::Chat, Asked::Tags, Asked::Ps, Asked::Show, Asked::Unload, Asked::Version];
const CHAT: &[Asked] = &[Asked::Chat];
const LOAD: &[Asked] = &[Asked::Load];

// What can go wrong at servers of both kinds, and where at Ollama.
const VANISHES: Case = Case {
    name: "model vanishes",
    at: &[Asked::Tags, Asked::Load, Asked::Chat],
    wrong: |_| Wrong::Vanished,
    passes: false,
    words: &["not found", "no model of that name"],
};
const ENDLESS: Case = Case {
    name: "endless line",
    at: CHAT,
    wrong: |_| Wrong::EndlessLine,
    passes: false,
    words: &["longer than 4194304 bytes"],
};
const HTML: Case = Case {
    name: "500 with HTML",
    at: ANY,
    wrong: |_| Wrong::Html,
    passes: true,
    words: &["500 internal server error: <html>"],
};
const HANGS: Case = Case {
    name: "hangs",
    at: &[Asked::Chat],
    wrong: |_| Wrong::Hangs,
    passes: true,
    words: &["nothing came for"],
};
const SILENT: Case = Case {
    name: "silent mid-stream",
    at: CHAT,
    wrong: |draw| Wrong::SilentAfter(draw.below(4)),
    passes: true,
    words: &["nothing came for"],
};
const RESET: Case = Case { name: "reset", at: ANY, wrong: |_| Wrong::Reset, passes: true, words: &["can't"] };

const OLLAMA: &[Case] = &[
    Case {
        name: "dies mid-stream",
        at: CHAT,
        wrong: |draw| Wrong::DiesAfter(draw.below(4)),
        passes: true,
        words: &["broke off", "can't answer"],
    },
    Case { name: "busy", at: ANY, wrong: |_| Wrong::Busy, passes: true, words: &["server busy"] },
    Case { name: "slow load", at: LOAD, wrong: |_| Wrong::Slow, passes: true, words: &[] },
    Case {
        name: "other digest",
        at: &[Asked::Tags],
        wrong: |_| Wrong::OtherDigest,
        passes: false,
        words: &["its card says"],
    },
    Case {
        name: "error line under 200",
        at: CHAT,
        wrong: |draw| Wrong::ErrorLineAfter(draw.below(4)),
        passes: true,
        words: &["signal: killed"],
    },
    VANISHES,
    Case {
        name: "partial offload",
        at: &[Asked::Ps],
        wrong: |_| Wrong::Partial,
        passes: false,
        words: &["on the graphics card", "still loaded"],
    },
    Case {
        name: "never leaves",
        at: &[Asked::Ps],
        wrong: |_| Wrong::NeverLeaves,
        passes: true,
        words: &["still loaded after"],
    },
    Case {
        name: "cut line",
        at: CHAT,
        wrong: |draw| Wrong::CutLineAfter(draw.below(4)),
        passes: true,
        words: &["within a line", "no JSON"],
    },
    ENDLESS,
    HTML,
    HANGS,
    SILENT,
    Case {
        name: "other reason",
        at: &[Asked::Chat, Asked::Load],
        wrong: |_| Wrong::OtherReason,
        passes: false,
        words: &["this one ended with"],
    },
    Case { name: "no JSON", at: ANY, wrong: |_| Wrong::Garbage, passes: true, words: &["no JSON"] },
    RESET,
    Case {
        name: "short context",
        at: &[Asked::Ps],
        wrong: |_| Wrong::ShortContext,
        passes: false,
        words: &["tokens of context there"],
    },
    Case {
        name: "no memory",
        at: LOAD,
        wrong: |_| Wrong::NoMemory,
        passes: false,
        words: &["requires more system memory"],
    },
];

const COMPLETE: &[Asked] = &[Asked::Complete];
const BOTH: &[Asked] = &[Asked::Complete, Asked::Models];

const OPENAI: &[Case] = &[
    Case {
        name: "dies mid-stream",
        at: COMPLETE,
        wrong: |draw| Wrong::DiesAfter(draw.below(4)),
        passes: true,
        words: &["broke off", "can't answer"],
    },
    Case {
        name: "ends too soon",
        at: COMPLETE,
        wrong: |draw| Wrong::EndsAfter(draw.below(4)),
        passes: true,
        words: &["before its last event"],
    },
    Case { name: "busy", at: BOTH, wrong: |_| Wrong::Busy, passes: true, words: &["server busy"] },
    Case { name: "too many", at: BOTH, wrong: |_| Wrong::TooMany, passes: true, words: &["Rate limit"] },
    Case { name: "slow", at: BOTH, wrong: |_| Wrong::Slow, passes: true, words: &[] },
    Case {
        name: "error event under 200",
        at: COMPLETE,
        wrong: |draw| Wrong::ErrorLineAfter(draw.below(4)),
        passes: true,
        words: &["signal: killed"],
    },
    Case { at: BOTH, ..VANISHES },
    Case { name: "no key", at: BOTH, wrong: |_| Wrong::NoKey, passes: false, words: &["Incorrect API key"] },
    Case {
        name: "cut event",
        at: COMPLETE,
        wrong: |draw| Wrong::CutLineAfter(draw.below(4)),
        passes: true,
        words: &["no JSON"],
    },
    Case { at: COMPLETE, ..ENDLESS },
    Case { at: BOTH, ..HTML },
    Case { at: COMPLETE, ..HANGS },
    Case { at: COMPLETE, ..SILENT },
    Case {
        name: "other reason",
        at: COMPLETE,
        wrong: |_| Wrong::OtherReason,
        passes: false,
        words: &["it ended the answer with `content_filter`"],
    },
    Case {
        name: "no JSON",
        at: BOTH,
        wrong: |_| Wrong::Garbage,
        passes: true,
        words: &["no JSON", "before its last event"],
    },
    Case { at: BOTH, ..RESET },
];

/// Workers that share the seeds of a case: most of a run is waiting.
const WORKERS: u64 = 10;

fn check(api: Api, case: &Case) {
    let ends: Vec<(u64, u64)> = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS).map(|first| scope.spawn(move || work(api, case, first))).collect();
        workers.into_iter().map(|worker| worker.join().unwrap()).collect()
    });
    let went_well: u64 = ends.iter().map(|(well, _)| well).sum();
    let failed: u64 = ends.iter().map(|(_, failed)| failed).sum();
    println!(
        "{api:?}, {}: {went_well} runs went well, {failed} ended with an error and were resumed",
        case.name
    );
    assert_eq!(went_well + failed, SEEDS);
    // Of what is not tried again one is enough, and it comes in every run.
    assert!(went_well > 0 || !case.passes, "{}: not one run went well", case.name);
    assert_eq!(failed > 0, !case.words.is_empty(), "{}: {failed} runs failed", case.name);
}

/// How many of a worker's runs went well, and how many did not.
fn work(api: Api, case: &Case, first: u64) -> (u64, u64) {
    let double = Double::start(VERSIONS[0]);
    for name in ["tidy:latest", "poet:latest"] {
        double.hold(name);
    }
    let directory = directory();
    let pipeline = pipeline(api, &double, directory.path());
    let runs = directory.path().join("runs");
    let golden = go(&pipeline, &runs, None, patience()).1.unwrap();
    let (mut went_well, mut failed) = (0, 0);
    for seed in (first..SEEDS).step_by(WORKERS as usize) {
        let draw = &mut Draw(seed);
        let at = case.at[draw.below(case.at.len())];
        // These are asked twice in a run, the others six times or more often.
        let is_rare =
            matches!(at, Asked::Load | Asked::Unload | Asked::Show | Asked::Version | Asked::Models);
        let after = draw.below(if is_rare { 2 } else { 6 });
        let times = [1, 2, 3, usize::MAX / 2][draw.below(4)];
        let plan = Plan { wrong: (case.wrong)(draw), at, after, times };
        double.reset(VERSIONS[draw.below(VERSIONS.len())], Some(plan));
        let seen = format!("{api:?}, {}, seed {seed}: {plan:?}", case.name);
        let waits = matches!(plan.wrong, Wrong::Hangs | Wrong::SilentAfter(_) | Wrong::NeverLeaves);
        let (id, went) = go(&pipeline, &runs, None, if waits { hasty() } else { patience() });
        let log = double.inside().log.clone();
        // What the list of loaded models says wrongly is an answer like any other.
        if at != Asked::Ps || case.passes {
            assert!(
                most_tries(&log) <= 3 || plan.wrong == Wrong::NeverLeaves,
                "{seen}: {}",
                most_tries(&log)
            );
        }
        match went {
            Ok(outputs) => {
                assert_eq!(outputs, golden, "{seen}");
                went_well += 1;
            }
            Err(error) => {
                let told = error.to_string();
                assert!(times > 2 || !case.passes || delivers(plan.wrong), "{seen}: {told}");
                assert!(case.words.iter().any(|words| told.contains(words)), "{seen}: {told}");
                let names = [double.url.as_str(), "first", "second"];
                assert!(names.iter().any(|name| told.contains(name)), "{seen}: {told}");
                resumed(&double, &pipeline, &runs, &id, &golden, &seen);
                failed += 1;
            }
        }
        std::fs::remove_dir_all(runs.join(&id)).unwrap();
    }
    (went_well, failed)
}

/// Whether a listener hears something before it goes wrong: then nothing can be asked for again.
fn delivers(wrong: Wrong) -> bool {
    matches!(
        wrong,
        Wrong::DiesAfter(1..)
            | Wrong::EndsAfter(1..)
            | Wrong::ErrorLineAfter(1..)
            | Wrong::CutLineAfter(1..)
            | Wrong::SilentAfter(1..)
    )
}

/// What a run had committed is there after it is resumed, byte for byte, and was not asked for again.
fn resumed(double: &Double, pipeline: &Pipeline, runs: &Path, id: &str, golden: &[String], seen: &str) {
    let before = files(&runs.join(id));
    let is_answer = |logged: &&Logged| matches!(logged.asked, Asked::Chat | Asked::Complete);
    let answered = |log: &[Logged]| -> Vec<String> {
        log.iter().filter(is_answer).map(|logged| logged.body["messages"].to_string()).collect()
    };
    double.reset(VERSIONS[0], None);
    let (_, outputs) = go(pipeline, runs, Some(id.to_owned()), patience());
    assert_eq!(outputs.unwrap_or_else(|error| panic!("{seen}: {error}")), golden, "{seen}");
    let after = files(&runs.join(id));
    for (path, bytes) in &before {
        let now = after.get(path).unwrap_or_else(|| panic!("{seen}: {} is gone", path.display()));
        // A journal grows; all else stays.
        let same = now == bytes || (now.starts_with(bytes) && path.extension().is_some_and(|e| e == "jsonl"));
        assert!(same, "{seen}: {} changed", path.display());
    }
    let asked = answered(&double.inside().log);
    let committed: Vec<&String> =
        golden.iter().filter(|output| before.values().any(|bytes| bytes == output.as_bytes())).collect();
    assert_eq!(asked.len(), golden.len() - committed.len(), "{seen}: {asked:?}");
}

macro_rules! cases {
    ($module:ident, $api:expr; $($test:ident: $name:literal),* $(,)?) => {
        mod $module {
            use super::{Api, check};

            $(#[test]
            fn $test() {
                check($api, $api.cases().iter().find(|case| case.name == $name).unwrap());
            })*

            #[test]
            fn every_case_is_tried() {
                let tried = [$($name),*];
                assert_eq!($api.cases().iter().map(|case| case.name).collect::<Vec<_>>(), tried);
                assert!(tried.len() >= 12);
            }
        }
    };
}

cases! { ollama, Api::Ollama;
    dies_mid_stream: "dies mid-stream",
    busy: "busy",
    slow_load: "slow load",
    other_digest: "other digest",
    error_line: "error line under 200",
    model_vanishes: "model vanishes",
    partial_offload: "partial offload",
    never_leaves: "never leaves",
    cut_line: "cut line",
    endless_line: "endless line",
    html: "500 with HTML",
    hangs: "hangs",
    silent: "silent mid-stream",
    other_reason: "other reason",
    garbage: "no JSON",
    reset: "reset",
    short_context: "short context",
    no_memory: "no memory",
}

cases! { openai, Api::OpenAi;
    dies_mid_stream: "dies mid-stream",
    ends_too_soon: "ends too soon",
    busy: "busy",
    too_many: "too many",
    slow: "slow",
    error_event: "error event under 200",
    model_vanishes: "model vanishes",
    no_key: "no key",
    cut_event: "cut event",
    endless_line: "endless line",
    html: "500 with HTML",
    hangs: "hangs",
    silent: "silent mid-stream",
    other_reason: "other reason",
    garbage: "no JSON",
    reset: "reset",
}
