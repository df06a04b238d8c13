//! Crashes: a run goes on from every state that a crash can leave its journal in, and does nothing twice.
//!
//! What a crash can leave follows from how a run writes. An artefact appears whole under its name, and is synced, before
//! the line that names it; a line is synced before anything else is written. So of the journal every prefix can be
//! there, and after the last whole line whatever the disk had in the blocks of the torn one: a part of it, zeros,
//! noise; and beside it the artefact of the torn line or not, and a half-written file under another name.

mod scripted;
mod tiny;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use runner::pipeline::{Pipeline, Programs, RunOptions, State};
use scripted::{Asked, Played, Scripted, Stand};
use serde_json::{Value, json};

/// Simulated crashes, in chains that each end with a run that goes on to its end.
const CRASHES: usize = 10_000;

const EXPERTS: [&str; 3] = ["writer", "judge", "master"];

const INPUT: &str = "ada\nbob bug\ncyd\ndan bug\n";

/// A pipeline with every kind of step.
fn everything() -> Value {
    json!({
        "experts": {
            "writer": {"file": "writer.gguf", "num_ctx": 96},
            "judge": {"file": "judge.gguf", "num_ctx": 256},
            "master": {"file": "master.gguf", "num_ctx": 256},
        },
        "steps": [
            {"name": "kind", "kind": "route", "map": "lines", "expert": "judge", "prompt": "Sort: {{ item }}",
             "routes": ["bug"], "default": "rest"},
            {"name": "facts", "kind": "retrieve", "query": "{{ item }}", "files": ["notes"], "by": "meaning",
             "expert": "master", "top": 1},
            {"name": "letter", "expert": "writer", "when": {"kind": "rest"}, "prompt": "Write to {{ item }}\n{{ steps.facts.output }}",
             "max_tokens": 16, "context": "compress", "cut": "facts", "compress_with": "master",
             "verify": {"expert": "judge", "matches": "^Dear ", "retries": 1, "escalate": "master"}},
            {"name": "fix", "expert": "writer", "when": {"kind": "bug"}, "prompt": "Fix {{ item }}", "on_error": "record"},
            {"name": "sane", "kind": "check", "of": "fix", "min_chars": 3},
            {"name": "all", "expert": "master", "prompt": "{{ steps.letter.output or steps.fix.output }}"},
        ],
    })
}

/// The same with a program, whose start takes longer than all else.
fn everything_and_a_program() -> Value {
    let mut spec = everything();
    let program = json!({"name": "counted", "kind": "check", "of": "fix", "program": ["sh", "-c", "test $(wc -c) -gt 2"]});
    spec["steps"].as_array_mut().unwrap().insert(5, program);
    spec
}

fn play(asked: &Asked) -> String {
    let prompt = &asked.prompt;
    let again = prompt.contains("not good enough");
    match asked.expert.as_str() {
        "judge" if prompt.starts_with("user: Sort:") => {
            format!("\"{}\"", if prompt.contains("bug") { "bug" } else { "rest" })
        }
        "judge" if prompt.contains("Dear ada") => r#"{"ok": true, "objections": []}"#.to_owned(),
        "judge" => r#"{"ok": false, "objections": ["cold"]}"#.to_owned(),
        "master" if prompt.contains("Shorten the text") => "short notes".to_owned(),
        "writer" if prompt.contains("ada") && !again => "Hi ada".to_owned(),
        "writer" if prompt.contains("ada") => "Dear ada".to_owned(),
        "writer" => "Dear all".to_owned(),
        _ => "From the master".to_owned(),
    }
}

/// A run to its end, and all that it left.
struct Whole {
    stand: Stand,
    pipeline: Pipeline,
    id: String,
    journal: Vec<u8>,
    /// Offsets at which lines end.
    ends: Vec<usize>,
    /// Outputs, by step and item.
    outputs: BTreeMap<(String, usize), (State, String)>,
    asked: Vec<Asked>,
}

impl Whole {
    fn new() -> Self {
        let stand = Stand::new(&EXPERTS);
        std::fs::create_dir(stand.path().join("notes")).unwrap();
        std::fs::write(stand.path().join("notes/a.md"), "word ".repeat(80)).unwrap();
        let pipeline = stand.check(everything()).unwrap();
        let played = stand.play(&pipeline, INPUT, Scripted::new(play), options(None));
        let id = played.outcome.as_ref().unwrap().run.clone();
        let journal = std::fs::read(stand.runs().join(&id).join("journal.jsonl")).unwrap();
        let ends =
            journal.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(i, _)| i + 1).collect();
        let outputs = outputs(&played);
        let cut = played.results().iter().filter(|result| result.cut.is_some()).count();
        let rounds: usize = played.results().iter().map(|result| result.rounds.len()).sum();
        assert!(cut == 2 && rounds == 5, "the run has what is to be torn: {cut} {rounds}");
        Self { stand, pipeline, id, journal, ends, outputs, asked: played.asked }
    }

    fn folder(&self) -> PathBuf {
        self.stand.runs().join(&self.id)
    }

    /// Goes on with what is in the folder.
    fn resume(&self) -> Played {
        self.stand.play(&self.pipeline, INPUT, Scripted::new(play), options(Some(&self.id)))
    }

    /// How many of the whole lines of a journal hold what an expert was asked for.
    fn answered(&self, journal: &[u8]) -> usize {
        let is_answer = |line: &&Value| match line["line"].as_str() {
            Some("piece") => true,
            Some("item") => line["expert"].is_string() && line["rounds"].is_null(),
            _ => false,
        };
        lines(journal).iter().filter(is_answer).count()
    }

    #[track_caller]
    fn check_end(&self, played: &Played, what: &str) {
        assert_eq!(outputs(played), self.outputs, "{what}");
        let journal = std::fs::read(self.folder().join("journal.jsonl")).unwrap();
        let mut seen = BTreeSet::new();
        let mut pieces = BTreeSet::new();
        for line in lines(&journal) {
            let key = |name: &str| line[name].to_string();
            match line["line"].as_str() {
                Some("item") => {
                    assert!(seen.insert((key("step"), key("item"))), "{what}: committed twice: {line}");
                    self.check_artefact(line["artefact"].as_str().unwrap(), what);
                }
                Some("piece") => {
                    let piece = (key("step"), key("item"), key("round"), key("what"));
                    assert!(pieces.insert(piece), "{what}: run twice: {line}");
                    self.check_artefact(line["artefact"].as_str().unwrap(), what);
                }
                _ => {}
            }
        }
        assert_eq!(seen.len(), self.outputs.len(), "{what}: an artefact for each item of each step");
    }

    #[track_caller]
    fn check_artefact(&self, name: &str, what: &str) {
        let bytes = std::fs::read(self.folder().join("artefacts").join(name)).unwrap();
        assert_eq!(formats::hash::blake3_bytes(&bytes), name, "{what}");
    }
}

fn options(resume: Option<&str>) -> RunOptions {
    let programs = Programs::Allowed { path: "/usr/bin:/bin".into() };
    RunOptions { resume: resume.map(str::to_owned), programs, ..RunOptions::default() }
}

fn outputs(played: &Played) -> BTreeMap<(String, usize), (State, String)> {
    let result = |result: &runner::pipeline::ItemResult| {
        ((result.step.clone(), result.item), (result.state, result.output.clone()))
    };
    played.results().iter().map(result).collect()
}

/// The records of the whole lines.
fn lines(journal: &[u8]) -> Vec<Value> {
    let whole = journal.split_inclusive(|&byte| byte == b'\n').filter(|line| line.ends_with(b"\n"));
    whole
        .filter_map(|line| serde_json::from_slice::<Value>(line).ok())
        .map(|line| line["record"].clone())
        .collect()
}

/// Artefacts that a journal names, its beginning's input too.
fn named(journal: &[u8]) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for line in lines(journal) {
        let rounds = line["rounds"].as_array().cloned().unwrap_or_default();
        let all = [&line["artefact"], &line["input"]].map(Value::clone).into_iter();
        names.extend(
            all.chain(rounds.iter().map(|round| round["artefact"].clone()))
                .filter_map(|name| Some(name.as_str()?.to_owned())),
        );
    }
    names
}

fn write(folder: &Path, journal: &[u8]) {
    std::fs::write(folder.join("journal.jsonl"), journal).unwrap();
}

/// xorshift64*: the same crashes on every machine.
struct Chance(u64);

impl Chance {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        usize::try_from(self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33).unwrap() % n
    }
}

#[test]
fn every_prefix_of_a_journal_goes_on_to_the_same_end() {
    let whole = Whole::new();
    let total = whole.answered(&whole.journal);
    // All artefacts are there: those of lines that are cut off are found under their names and not trusted for more.
    for length in 0..=whole.journal.len() {
        let prefix = &whole.journal[..length];
        write(&whole.folder(), prefix);
        let played = whole.resume();
        whole.check_end(&played, &format!("the first {length} bytes"));
        assert_eq!(played.asked.len(), total - whole.answered(prefix), "the first {length} bytes");
    }
    println!(
        "{} prefixes, {} lines, {} questions in all",
        whole.journal.len() + 1,
        whole.ends.len(),
        whole.asked.len()
    );
}

#[test]
fn ten_thousand_crashes_lose_nothing_and_repeat_nothing() {
    let whole = Whole::new();
    let mut chance = Chance(0x9E37_79B9_7F4A_7C15);
    let total = whole.answered(&whole.journal);
    let mut artefacts: BTreeMap<String, Vec<u8>> = BTreeMap::new();
    for entry in std::fs::read_dir(whole.folder().join("artefacts")).unwrap() {
        let entry = entry.unwrap();
        artefacts.insert(entry.file_name().into_string().unwrap(), std::fs::read(entry.path()).unwrap());
    }
    let (mut crashes, mut chains) = (0, 0);
    let mut journal = Vec::new();
    while crashes < CRASHES {
        // A chain: each crash comes somewhere after what the one before left whole, until the run ends.
        let mut from = chance.below(whole.ends.len());
        loop {
            crashes += 1;
            let start = if from == 0 { 0 } else { whole.ends[from - 1] };
            let torn = &whole.journal[start..whole.ends[from]];
            journal.clear();
            journal.extend_from_slice(&whole.journal[..start]);
            let kept = chance.below(torn.len());
            journal.extend_from_slice(&torn[..kept]);
            match chance.below(4) {
                0 => {}
                // The length was written, the data was not.
                1 => journal.resize(start + torn.len(), 0),
                // The end arrived before the middle.
                2 => {
                    journal.resize(start + torn.len() - 1, 0);
                    journal.push(b'\n');
                }
                // What had been in the blocks before: anything but an end of line, which would be a line of its own.
                _ => journal.extend((0..chance.below(200)).map(|_| match chance.below(256) as u8 {
                    b'\n' => b'x',
                    byte => byte,
                })),
            }
            std::fs::remove_dir_all(whole.folder()).unwrap();
            let folder = whole.folder().join("artefacts");
            std::fs::create_dir_all(&folder).unwrap();
            write(&whole.folder(), &journal);
            // A line that came through whole counts, as every one that is whole: its artefacts were synced before it.
            let names = named(&journal);
            let next = named(torn);
            for (name, bytes) in &artefacts {
                // That of the torn line had been synced before it, or its own writing was what was cut.
                if names.contains(name) || (next.contains(name) && chance.below(2) == 0) {
                    std::fs::write(folder.join(name), bytes).unwrap();
                }
            }
            if chance.below(3) == 0 {
                std::fs::write(folder.join(".torn.tmp"), b"half").unwrap();
            }
            // The input's artefact is written before the journal is begun.
            let input = formats::hash::blake3_bytes(INPUT.as_bytes());
            std::fs::write(folder.join(&input), INPUT).unwrap();
            if from + 1 == whole.ends.len() || chance.below(3) == 0 {
                break;
            }
            from += 1 + chance.below(whole.ends.len() - from - 1);
        }
        chains += 1;
        let kept = whole.answered(&journal);
        let played = whole.resume();
        whole.check_end(&played, &format!("crash {crashes}"));
        assert_eq!(played.asked.len(), total - kept, "crash {crashes}");
    }
    println!("{crashes} crashes in {chains} runs");
}

/// Crashes of a run itself: it is stopped after any event, what it was writing is torn, and it goes on; again and again.
#[test]
fn a_run_that_is_stopped_again_and_again_asks_nothing_twice() {
    let stand = Stand::new(&EXPERTS);
    std::fs::create_dir(stand.path().join("notes")).unwrap();
    std::fs::write(stand.path().join("notes/a.md"), "word ".repeat(80)).unwrap();
    let pipeline = stand.check(everything_and_a_program()).unwrap();
    let whole = stand.play(&pipeline, INPUT, Scripted::new(play), options(None));
    // One: a question is stopped before its answer is kept, and nothing ever moves.
    for patience in 2..12 {
        let mut id: Option<String> = None;
        let mut asked: Vec<Asked> = Vec::new();
        let mut interrupted = 0;
        loop {
            let n = std::cell::Cell::new(0);
            let engine = Scripted::new(play);
            let log = std::sync::Arc::clone(&engine.log);
            let mut residency = runner::Residency::new(Box::new(engine));
            let run_options = RunOptions { runs: stand.runs(), ..options(id.as_deref()) };
            let stop = || n.get() >= patience;
            let mut begun = None;
            let ended =
                runner::pipeline::run(&pipeline, INPUT, &run_options, &mut residency, &stop, &mut |event| {
                    if let runner::pipeline::Event::RunStarted { run, .. } = &event {
                        begun = Some(run.clone());
                    }
                    // What is found again costs no patience, or the run would never end.
                    let is_new = match &event {
                        runner::pipeline::Event::ItemFinished(result) => !result.resumed,
                        runner::pipeline::Event::Verified { .. } => false,
                        runner::pipeline::Event::Text { .. } => true,
                        _ => false,
                    };
                    n.set(n.get() + usize::from(is_new));
                });
            asked.extend(log.lock().unwrap().iter().cloned());
            id = begun.or(id);
            match ended {
                Ok(outcome) => {
                    let played = Played { outcome: Ok(outcome), events: Vec::new(), asked: Vec::new() };
                    assert_eq!(outputs(&played), outputs(&whole), "patience {patience}");
                    break;
                }
                Err(runner::Error::Cancelled) => interrupted += 1,
                Err(error) => panic!("{error}"),
            }
            assert!(interrupted < 200, "patience {patience} never ends");
        }
        assert!(interrupted > 0, "patience {patience}");
        // A question that was stopped before its answer was kept is asked once more; no other is.
        assert!(asked.len() <= whole.asked.len() + interrupted + 1, "patience {patience}: {}", asked.len());
    }
}
