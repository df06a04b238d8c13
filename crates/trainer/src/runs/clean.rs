//! What of a run is no longer needed, and its removal.
//!
//! Only names that a run is known to write are ever removed: never `adapter`, `best`, `export` or what a user put
//! there, and nothing while a process trains the run.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::{is_finished, size::tree_bytes, untouched_for};
use crate::checkpoint;
use crate::error::{Error, Result};
use crate::lock::{self, RunLock};
use crate::record::RunRecord;
use crate::run_dir::RunDir;

/// Why something is no longer needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The run is finished, so that it will not go on from here.
    Finished,
    /// The run was left before its end, long ago.
    Abandoned,
    /// A killed process left it half-written.
    Leftover,
    /// A checkpoint that was found damaged and set aside.
    Damaged,
}

/// Something that can be removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Removal {
    /// The file or folder.
    pub path: PathBuf,
    /// What it takes.
    pub bytes: u64,
    /// Why it is no longer needed.
    pub reason: Reason,
}

/// When a run that is not finished counts as abandoned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Age(pub Duration);

/// What can be removed of a run; nothing while a process trains it.
///
/// # Errors
/// What reading meets.
pub fn removable(run_dir: &RunDir, abandoned: Age) -> Result<Vec<Removal>> {
    if lock::holder(run_dir)?.is_some() {
        return Ok(Vec::new());
    }
    unneeded(run_dir, abandoned)
}

/// Removes what [`removable`] names, and the run's folder when nothing is left in it.
///
/// # Errors
/// [`Error::RunLocked`] when a process trains the run; what removing meets.
pub fn clean(run_dir: &RunDir, abandoned: Age) -> Result<Vec<Removal>> {
    let untouched = untouched_for(run_dir);
    let lock = RunLock::take(run_dir)?;
    // Found again under the lock, which itself counts as touching the run.
    let removals = unneeded_for(run_dir, abandoned, untouched)?;
    for removal in removals.iter().filter(|removal| removal.path != run_dir.lock()) {
        remove(&removal.path)?;
    }
    if removals.iter().any(|removal| removal.path == run_dir.lock()) {
        remove(&run_dir.lock())?;
        // What is not ours stays, and its folder with it.
        let _ = std::fs::remove_dir(run_dir.path());
    }
    drop(lock);
    Ok(removals)
}

fn unneeded(run_dir: &RunDir, abandoned: Age) -> Result<Vec<Removal>> {
    unneeded_for(run_dir, abandoned, untouched_for(run_dir))
}

fn unneeded_for(run_dir: &RunDir, abandoned: Age, untouched: Duration) -> Result<Vec<Removal>> {
    let Some(record) = RunRecord::read(run_dir)? else { return Ok(Vec::new()) };
    let mut paths = Vec::new();
    if is_finished(run_dir, &record) {
        // `init` stays: with it the adapter is evaluated as it was trained.
        paths.extend([run_dir.checkpoints(), run_dir.reference()].map(|path| (path, Reason::Finished)));
    } else if untouched >= abandoned.0 {
        paths.extend(abandoned_files(run_dir).into_iter().map(|path| (path, Reason::Abandoned)));
    } else {
        let damaged = entries(&run_dir.checkpoints())?.into_iter().filter(|path| ends_with(path, ".damaged"));
        paths.extend(damaged.map(|path| (path, Reason::Damaged)));
        let swept = checkpoint::leftovers(run_dir)?.into_iter();
        paths.extend(swept.map(|path| (path, Reason::Leftover)));
    }
    for path in leftovers(run_dir.path())? {
        if !paths.iter().any(|(known, _)| path.starts_with(known)) {
            paths.push((path, Reason::Leftover));
        }
    }
    paths.retain(|(path, _)| path.symlink_metadata().is_ok());
    let removal = |(path, reason): (PathBuf, _)| Ok(Removal { bytes: tree_bytes(&path)?, path, reason });
    paths.into_iter().map(removal).collect()
}

/// Of a run that has a result of some kind, its checkpoints alone; of another, all that a run writes.
fn abandoned_files(run_dir: &RunDir) -> Vec<PathBuf> {
    let results = [run_dir.adapter(), run_dir.best(), run_dir.path().join("export")];
    let mut files = vec![run_dir.checkpoints(), run_dir.reference()];
    if !results.iter().any(|path| path.exists()) {
        files.extend([
            run_dir.init(),
            run_dir.tensorboard(),
            run_dir.chat_template(),
            run_dir.report(),
            run_dir.metrics(),
            run_dir.path().join("recipe.toml"),
            run_dir.run_json(),
            run_dir.lock(),
        ]);
    }
    files
}

/// Files and folders named `*.tmp` that no process holds, in the run's folder and its exports.
fn leftovers(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for path in entries(dir)? {
        if ends_with(&path, ".tmp") {
            if is_free(&path) {
                found.push(path);
            }
        } else if [path.as_path(), dir].iter().any(|dir| dir.file_name().is_some_and(|name| name == "export"))
        {
            // An export of several quantisations has a folder for each.
            found.extend(leftovers(&path)?);
        }
    }
    Ok(found)
}

/// Writers hold a lock on what they write; an export's journal has none, and goes with its file.
fn is_free(path: &Path) -> bool {
    let name = path.to_string_lossy();
    let file = name
        .strip_suffix(".journal.tmp")
        .map_or_else(|| path.into(), |file| PathBuf::from(format!("{file}.tmp")));
    match std::fs::File::open(&file) {
        Ok(file) => file.try_lock_shared().is_ok(),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let failed = |source| Error::Io { path: dir.into(), source };
    if !dir.symlink_metadata().is_ok_and(|about| about.is_dir()) {
        return Ok(Vec::new());
    }
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        paths.push(entry.map_err(failed)?.path());
    }
    paths.sort();
    Ok(paths)
}

fn ends_with(path: &Path, end: &str) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(end))
}

fn remove(path: &Path) -> Result<()> {
    let is_dir = path.symlink_metadata().is_ok_and(|about| about.is_dir());
    let removed = if is_dir { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    match removed {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::Io { path: path.into(), source })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use formats::lock::LockedFile;

    use super::*;
    use crate::event::Outcome;

    const MONTH: Age = Age(Duration::from_secs(30 * 86_400));
    const AT_ONCE: Age = Age(Duration::ZERO);

    fn run(is_finished: bool, files: &[&str]) -> (tempfile::TempDir, RunDir) {
        let dir = tempfile::tempdir().unwrap();
        let run_dir = RunDir::new(dir.path().join("x"));
        let always = ["metrics.jsonl", "recipe.toml", "lock"];
        for name in files.iter().chain(&always) {
            let path = run_dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "1234567").unwrap();
        }
        let outcome = Outcome { is_finished, ..Outcome::default() };
        RunRecord { outcome, ..RunRecord::default() }.write(&run_dir).unwrap();
        (dir, run_dir)
    }

    /// What would be removed, then is, and what is left.
    fn check((dir, run_dir): (tempfile::TempDir, RunDir), age: Age, removed: &str, left: &str) {
        let named = |removals: Vec<Removal>| {
            let relative = |path: &Path| path.strip_prefix(run_dir.path()).unwrap().display().to_string();
            let names =
                removals.iter().map(|removal| format!("{} {:?}", relative(&removal.path), removal.reason));
            names.collect::<Vec<_>>().join(", ")
        };
        let planned = removable(&run_dir, age).unwrap();
        assert!(
            planned.iter().all(|removal| removal.bytes >= 7 || removal.path.ends_with("lock")),
            "{planned:?}"
        );
        assert_eq!(named(planned), removed);
        assert_eq!(named(clean(&run_dir, age).unwrap()), removed);
        assert_eq!(named(removable(&run_dir, age).unwrap_or_default()), "");
        let mut files = Vec::new();
        if run_dir.path().exists() {
            files = entries(run_dir.path()).unwrap();
        }
        let names: Vec<_> = files.iter().map(|path| path.file_name().unwrap().to_string_lossy()).collect();
        assert_eq!(names.join(" "), left);
        drop(dir);
    }

    #[test]
    fn a_finished_run_keeps_what_came_of_it() {
        let files = [
            "checkpoints/step-8/state.json",
            "init/factors/a",
            "reference.jsonl",
            "adapter/a",
            "best/a",
            "export/x.gguf",
            "export/x.gguf.tmp",
            "export/q8_0/y.gguf.journal.tmp",
            "export/q8_0/y.gguf",
            ".report.html.1-0.tmp",
            "notes.txt",
        ];
        check(
            run(true, &files),
            MONTH,
            "checkpoints Finished, reference.jsonl Finished, .report.html.1-0.tmp Leftover, \
             export/q8_0/y.gguf.journal.tmp Leftover, export/x.gguf.tmp Leftover",
            "adapter best export init lock metrics.jsonl notes.txt recipe.toml run.json",
        );
    }

    #[test]
    fn a_run_that_can_go_on_keeps_its_checkpoints_until_it_is_abandoned() {
        let files = [
            "checkpoints/step-8/state.json",
            "checkpoints/step-9.damaged/state.json",
            "checkpoints/removed-4/a",
        ];
        check(
            run(false, &files),
            MONTH,
            "checkpoints/step-9.damaged Damaged, checkpoints/removed-4 Leftover",
            "checkpoints lock metrics.jsonl recipe.toml run.json",
        );
        check(
            run(false, &files),
            AT_ONCE,
            "checkpoints Abandoned, metrics.jsonl Abandoned, recipe.toml Abandoned, run.json Abandoned, lock Abandoned",
            "",
        );
    }

    #[test]
    fn an_abandoned_run_keeps_its_best_adapter_and_what_is_not_ours() {
        check(
            run(false, &["checkpoints/step-8/state.json", "best/a"]),
            AT_ONCE,
            "checkpoints Abandoned",
            "best lock metrics.jsonl recipe.toml run.json",
        );
        check(
            run(false, &["notes.txt"]),
            AT_ONCE,
            "metrics.jsonl Abandoned, recipe.toml Abandoned, run.json Abandoned, lock Abandoned",
            "notes.txt",
        );
    }

    #[test]
    fn a_run_without_its_adapter_is_not_finished() {
        check(
            run(true, &["checkpoints/step-8/state.json"]),
            MONTH,
            "",
            "checkpoints lock metrics.jsonl recipe.toml run.json",
        );
    }

    #[test]
    fn nothing_is_removed_while_a_process_has_the_run_or_the_file() {
        let files =
            ["checkpoints/step-8/state.json", "adapter/a", "export/x.gguf.tmp", "export/x.gguf.journal.tmp"];
        let (_dir, run_dir) = run(true, &files);
        let lock = RunLock::take(&run_dir).unwrap();
        assert_eq!(removable(&run_dir, AT_ONCE).unwrap(), []);
        assert!(matches!(clean(&run_dir, AT_ONCE), Err(Error::RunLocked { .. })));
        drop(lock);
        let export = std::fs::File::open(run_dir.path().join("export/x.gguf.tmp")).unwrap();
        let export = LockedFile::try_new(export).unwrap();
        let names = removable(&run_dir, AT_ONCE).unwrap();
        assert_eq!(names.len(), 1, "{names:?}");
        assert_eq!(names[0].path, run_dir.checkpoints());
        drop(export);
        assert_eq!(removable(&run_dir, AT_ONCE).unwrap().len(), 3);
    }

    #[test]
    fn links_are_removed_and_not_followed() {
        let (_dir, run_dir) = run(true, &["adapter/a"]);
        let elsewhere = tempfile::tempdir().unwrap();
        std::fs::write(elsewhere.path().join("precious"), "x").unwrap();
        #[cfg(unix)]
        std::os::unix::fs::symlink(elsewhere.path(), run_dir.checkpoints()).unwrap();
        clean(&run_dir, MONTH).unwrap();
        assert!(!run_dir.checkpoints().exists());
        assert!(elsewhere.path().join("precious").exists());
    }
}
