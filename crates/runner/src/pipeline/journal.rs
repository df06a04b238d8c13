//! A run on disk: an append-only journal with a checksum a line, and one content-addressed artefact an item.
//!
//! ```text
//! runs/<id>/journal.jsonl            what was begun, each item done, the end
//! runs/<id>/artefacts/<blake3>       the input and every output, named by what they hold
//! ```
//!
//! An artefact is on disk before the line that names it, so a line means the item is done. What experts give on the
//! way to a result that takes several rounds has lines of its own, so that no round is run twice.

use std::collections::HashMap;
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use formats::journal::{self, Journal};
use formats::{atomic, hash};
use serde::{Deserialize, Serialize};

use super::event::ItemResult;
use crate::engine::{ExpertMemory, Finish};
use crate::{Error, Result, clock};

/// One line of the journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "line", rename_all = "snake_case")]
enum Line {
    /// The first line.
    Begun(Begun),
    /// An expert was loaded.
    Loaded(Load),
    /// What is loaded became another expert over the same base.
    Switched(Switch),
    /// A step on the way to an item's result.
    Piece(Piece),
    /// An item is done.
    Item(Item),
    /// Every item is done.
    Ended(Ended),
}

/// What a run was begun with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Begun {
    /// The pipeline's name.
    pub pipeline: String,
    /// [`super::Pipeline::hash`].
    pub pipeline_blake3: String,
    /// The input, an artefact.
    pub input: String,
    /// The values of the params.
    pub params: serde_json::Map<String, serde_json::Value>,
    /// Names of the steps.
    pub steps: Vec<String>,
    /// When, seconds since 1970.
    pub at: u64,
}

/// How a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Ended {
    /// When, seconds since 1970.
    pub at: u64,
    /// Wall time of the process that ended it.
    pub ms: f64,
    /// Loads of that process.
    pub n_loads: u64,
    /// Items to which there are objections.
    pub n_objected: usize,
}

/// An expert that was loaded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Load {
    /// The expert.
    pub expert: String,
    /// How long it took.
    pub load_ms: f64,
    /// What it takes.
    pub takes: ExpertMemory,
    /// What was free after.
    pub free_bytes: u64,
}

/// A loaded base that took on another expert's adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Switch {
    /// The expert it is now.
    pub expert: String,
    /// The expert it was.
    pub from: String,
    /// How long it took.
    pub switch_ms: f64,
}

/// What kind of piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum PieceKind {
    /// An answer that is to be verified.
    Draft,
    /// What a verifier says of it.
    Verdict,
    /// A part of the prompt, compressed.
    Compressed,
}

/// Something an expert gave on the way to an item's result, without its text, which the artefact holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Piece {
    pub step: String,
    pub item: usize,
    pub round: u32,
    pub what: PieceKind,
    pub expert: String,
    #[serde(skip)]
    pub text: String,
    pub artefact: String,
    pub finish: Finish,
    pub prompt_tokens: usize,
    pub output_tokens: usize,
    pub prompt_ms: f64,
    pub decode_ms: f64,
}

/// An item without its output, which the artefact holds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Item {
    #[serde(flatten)]
    result: ItemResult,
}

/// A run open for writing; the journal's lock keeps every other process out meanwhile.
#[derive(Debug)]
pub(super) struct Record {
    pub run: String,
    pub directory: PathBuf,
    journal: Journal,
    committed: HashMap<(String, usize), ItemResult>,
    pieces: HashMap<(String, usize, u32, PieceKind), Piece>,
}

impl Record {
    /// Begins a run under a new id.
    pub(super) fn begin(runs: &Path, begun: &Begun, input: &str) -> Result<Self> {
        std::fs::create_dir_all(runs).map_err(Error::io(runs))?;
        let run = new_id(runs, &begun.pipeline)?;
        let directory = runs.join(&run);
        write_artefact(&directory, input)?;
        let (_, mut journal) = Journal::open::<Line>(&directory.join("journal.jsonl"))?;
        journal.append(&Line::Begun(begun.clone()))?;
        Ok(Self { run, directory, journal, committed: HashMap::new(), pieces: HashMap::new() })
    }

    /// Opens a run to go on with it: it must have been begun with the very same pipeline, input and params.
    pub(super) fn resume(runs: &Path, run: &str, begun: &Begun, input: &str) -> Result<Self> {
        let directory = runs.join(run);
        let refuse = |reason: &str| Error::Resume { path: directory.clone(), reason: reason.to_owned() };
        if !is_id(run) || !directory.is_dir() {
            return Err(refuse("there is no such run"));
        }
        let (lines, mut journal) = Journal::open::<Line>(&directory.join("journal.jsonl"))?;
        let mut lines = lines.into_iter();
        let before = match lines.next() {
            Some(Line::Begun(before)) => before,
            Some(_) => return Err(refuse("its journal has no beginning")),
            // The run was cut while it wrote its very first line.
            None => {
                write_artefact(&directory, input)?;
                journal.append(&Line::Begun(begun.clone()))?;
                begun.clone()
            }
        };
        let same = [
            ("the pipeline or one of its experts", before.pipeline_blake3 == begun.pipeline_blake3),
            ("the input", before.input == begun.input),
            ("a param", before.params == begun.params),
        ];
        if let Some((what, _)) = same.iter().find(|(_, same)| !same) {
            return Err(refuse(&format!("{what} is not what it was begun with")));
        }
        let (mut committed, mut pieces) = (HashMap::new(), HashMap::new());
        for line in lines {
            match line {
                Line::Item(Item { mut result }) => {
                    read_texts(&directory, &mut result)?;
                    result.resumed = true;
                    committed.insert((result.step.clone(), result.item), result);
                }
                Line::Piece(mut piece) => {
                    piece.text = read_artefact(&directory, &piece.artefact)?;
                    pieces.insert((piece.step.clone(), piece.item, piece.round, piece.what), piece);
                }
                Line::Begun(_) => return Err(refuse("its journal begins twice")),
                Line::Loaded(_) | Line::Switched(_) | Line::Ended(_) => {}
            }
        }
        Ok(Self { run: run.to_owned(), directory, journal, committed, pieces })
    }

    /// How many items were found.
    pub(super) fn n_committed(&self) -> usize {
        self.committed.len()
    }

    /// An item found from before.
    pub(super) fn committed(&self, step: &str, item: usize) -> Option<&ItemResult> {
        self.committed.get(&(step.to_owned(), item))
    }

    /// Makes an item durable: artefact first, then its line. Fills in the artefact's name.
    pub(super) fn commit(&mut self, result: &mut ItemResult) -> Result<()> {
        result.artefact = write_artefact(&self.directory, &result.output)?;
        let mut stored = ItemResult { output: String::new(), ..result.clone() };
        stored.rounds.iter_mut().for_each(|round| round.draft = String::new());
        Ok(self.journal.append(&Line::Item(Item { result: stored }))?)
    }

    /// Makes a piece durable, in the same way.
    pub(super) fn commit_piece(&mut self, piece: &mut Piece) -> Result<()> {
        piece.artefact = write_artefact(&self.directory, &piece.text)?;
        Ok(self.journal.append(&Line::Piece(piece.clone()))?)
    }

    /// A piece found from before.
    pub(super) fn piece(&self, step: &str, item: usize, round: u32, what: PieceKind) -> Option<&Piece> {
        self.pieces.get(&(step.to_owned(), item, round, what))
    }

    /// Notes a load.
    pub(super) fn loaded(&mut self, load: Load) -> Result<()> {
        Ok(self.journal.append(&Line::Loaded(load))?)
    }

    /// Notes a switch.
    pub(super) fn switched(&mut self, switch: Switch) -> Result<()> {
        Ok(self.journal.append(&Line::Switched(switch))?)
    }

    /// Writes the last line.
    pub(super) fn end(&mut self, ended: Ended) -> Result<()> {
        Ok(self.journal.append(&Line::Ended(ended))?)
    }
}

/// A run as history shows it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunSummary {
    /// Its id.
    pub run: String,
    /// How it was begun.
    pub begun: Begun,
    /// How it ended, if it did.
    pub ended: Option<Ended>,
    /// Whether a process has it open.
    pub is_running: bool,
    /// Items done.
    pub n_items: usize,
}

/// A run with all it gave.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RunRecord {
    /// As in the history.
    #[serde(flatten)]
    pub summary: RunSummary,
    /// Its input.
    pub input: String,
    /// Loads of experts, in order, of every process that worked at it.
    pub loads: Vec<Load>,
    /// Switches of adapters, the same.
    pub switches: Vec<Switch>,
    /// Items in the order they were done.
    pub results: Vec<ItemResult>,
}

/// The newest runs, newest first; directories that hold no readable run are passed over.
///
/// # Errors
/// The directory can't be read.
pub fn history(runs: &Path, most: usize) -> Result<Vec<RunSummary>> {
    let entries = match std::fs::read_dir(runs) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io(runs)(error)),
    };
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| is_id(name)).collect();
    names.sort_unstable_by(|a, b| b.cmp(a));
    Ok(names
        .iter()
        .filter_map(|name| read_lines(runs, name).ok().map(|read| read.summary))
        .take(most)
        .collect())
}

/// One run with its outputs.
///
/// # Errors
/// There is no such run, or a file of it is damaged.
pub fn read_run(runs: &Path, run: &str) -> Result<RunRecord> {
    let mut record = read_lines(runs, run)?;
    let directory = runs.join(run);
    for result in &mut record.results {
        read_texts(&directory, result)?;
    }
    record.input = read_artefact(&directory, &record.summary.begun.input)?;
    Ok(record)
}

/// What the journal says, without the texts that the artefacts hold.
fn read_lines(runs: &Path, run: &str) -> Result<RunRecord> {
    let directory = runs.join(run);
    let refuse = |reason: &str| Error::Resume { path: directory.clone(), reason: reason.to_owned() };
    if !is_id(run) || !directory.is_dir() {
        return Err(refuse("there is no such run"));
    }
    let path = directory.join("journal.jsonl");
    let lines: Vec<Line> = journal::read(&path)?;
    let mut lines = lines.into_iter();
    let Some(Line::Begun(begun)) = lines.next() else { return Err(refuse("its journal has no beginning")) };
    let (mut results, mut loads, mut switches, mut ended) = (Vec::new(), Vec::new(), Vec::new(), None);
    for line in lines {
        match line {
            Line::Item(item) => results.push(item.result),
            Line::Loaded(load) => loads.push(load),
            Line::Switched(switch) => switches.push(switch),
            Line::Piece(_) => {}
            Line::Ended(end) => ended = Some(end),
            Line::Begun(_) => return Err(refuse("its journal begins twice")),
        }
    }
    let (run, n_items, is_running) = (run.to_owned(), results.len(), is_open(&path));
    let summary = RunSummary { run, begun, ended, is_running, n_items };
    Ok(RunRecord { summary, input: String::new(), loads, switches, results })
}

/// Whether a process has a journal open: it holds a lock on it.
fn is_open(journal: &Path) -> bool {
    let locked = File::open(journal).map(|file| file.try_lock_shared());
    matches!(locked, Ok(Err(TryLockError::WouldBlock)))
}

fn write_artefact(directory: &Path, text: &str) -> Result<String> {
    let name = hash::blake3_bytes(text.as_bytes());
    let artefacts = directory.join("artefacts");
    std::fs::create_dir_all(&artefacts).map_err(Error::io(&artefacts))?;
    let path = artefacts.join(&name);
    if !path.exists() {
        atomic::write_bytes(&path, text.as_bytes())?;
    }
    Ok(name)
}

/// The texts of a result, which its artefacts hold.
fn read_texts(directory: &Path, result: &mut ItemResult) -> Result<()> {
    result.output = read_artefact(directory, &result.artefact)?;
    for round in &mut result.rounds {
        round.draft = read_artefact(directory, &round.artefact)?;
    }
    Ok(())
}

fn read_artefact(directory: &Path, name: &str) -> Result<String> {
    let refuse = |reason: String| Error::Resume { path: directory.to_owned(), reason };
    let named_well = name.len() == 64 && name.bytes().all(|byte| byte.is_ascii_hexdigit());
    if !named_well {
        return Err(refuse(format!("`{name}` is no artefact's name")));
    }
    let path = directory.join("artefacts").join(name);
    let text = std::fs::read_to_string(&path).map_err(Error::io(&path))?;
    if hash::blake3_bytes(text.as_bytes()) != name {
        return Err(refuse(format!("artefact {name} does not hold what its name says")));
    }
    Ok(text)
}

/// Ids sort by time: `20261121-013000-a1b2c3`.
fn new_id(runs: &Path, pipeline: &str) -> Result<String> {
    for attempt in 0_u32..100 {
        let age = clock::now();
        let seed = format!("{pipeline} {} {} {attempt}", age.as_nanos(), std::process::id());
        let id = format!("{}-{}", clock::compact(age), &hash::blake3_bytes(seed.as_bytes())[..6]);
        match std::fs::create_dir(runs.join(&id)) {
            Ok(()) => return Ok(id),
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Error::io(runs.join(id))(error)),
        }
    }
    Err(Error::Resume { path: runs.to_owned(), reason: "no free name for a new run was found".to_owned() })
}

fn is_id(name: &str) -> bool {
    let shape = |(i, byte): (usize, u8)| match i {
        8 | 15 => byte == b'-',
        16.. => byte.is_ascii_hexdigit(),
        _ => byte.is_ascii_digit(),
    };
    name.len() == 22 && name.bytes().enumerate().all(shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_else_is_an_id() {
        assert!(is_id("20261121-013000-a1b2c3"));
        assert!(!is_id("../../etc/passwd-abcdef") && !is_id("20261121-013000-a1b2c/"));
    }

    fn begun() -> Begun {
        Begun {
            pipeline: "p".to_owned(),
            pipeline_blake3: "1".to_owned(),
            input: hash::blake3_bytes(b"in"),
            params: serde_json::Map::new(),
            steps: vec!["a".to_owned()],
            at: 1,
        }
    }

    fn result(item: usize) -> ItemResult {
        ItemResult { step: "a".to_owned(), item, output: format!("out {item}"), ..ItemResult::default() }
    }

    #[test]
    fn what_was_committed_is_found_again() {
        let runs = tempfile::tempdir().unwrap();
        let mut record = Record::begin(runs.path(), &begun(), "in").unwrap();
        let run = record.run.clone();
        record.commit(&mut result(0)).unwrap();
        record.commit(&mut result(1)).unwrap();
        assert!(
            Record::resume(runs.path(), &run, &begun(), "in")
                .unwrap_err()
                .to_string()
                .contains("another process")
        );
        assert!(read_run(runs.path(), &run).unwrap().summary.is_running);
        drop(record);

        let mut record = Record::resume(runs.path(), &run, &begun(), "in").unwrap();
        assert_eq!(record.n_committed(), 2);
        assert_eq!(record.committed("a", 1).unwrap().output, "out 1");
        assert!(record.committed("a", 2).is_none());
        record.end(Ended { at: 2, ms: 3.0, n_loads: 1, n_objected: 0 }).unwrap();
        drop(record);

        let read = read_run(runs.path(), &run).unwrap();
        assert_eq!((read.input.as_str(), read.results.len(), read.summary.is_running), ("in", 2, false));
        assert_eq!(history(runs.path(), 10).unwrap()[0].ended.unwrap().n_loads, 1);
    }

    #[test]
    fn another_pipeline_input_or_param_is_refused() {
        let runs = tempfile::tempdir().unwrap();
        let run = Record::begin(runs.path(), &begun(), "in").unwrap().run;
        let other = Begun { pipeline_blake3: "2".to_owned(), ..begun() };
        let error = Record::resume(runs.path(), &run, &other, "in").unwrap_err().to_string();
        assert!(
            error.contains("the pipeline or one of its experts is not what it was begun with"),
            "{error}"
        );
        let mut other = begun();
        other.params.insert("x".to_owned(), 1.into());
        assert!(Record::resume(runs.path(), &run, &other, "in").unwrap_err().to_string().contains("a param"));
        assert!(
            Record::resume(runs.path(), "../x", &begun(), "in")
                .unwrap_err()
                .to_string()
                .contains("no such run")
        );
    }

    #[test]
    fn a_changed_artefact_is_noticed() {
        let runs = tempfile::tempdir().unwrap();
        let mut record = Record::begin(runs.path(), &begun(), "in").unwrap();
        let mut done = result(0);
        record.commit(&mut done).unwrap();
        std::fs::write(record.directory.join("artefacts").join(&done.artefact), "forged").unwrap();
        let run = record.run.clone();
        drop(record);
        let error = Record::resume(runs.path(), &run, &begun(), "in").unwrap_err().to_string();
        assert!(error.contains("does not hold what its name says"), "{error}");
    }
}
