//! `tune runs clean`: what is no longer needed, and with --yes its removal.

use super::find;
use crate::bytes;
use crate::cli::CleanRuns;
use crate::failure::Failure;
use crate::terminal::Terminal;
use serde_json::json;
use std::path::Path;
use std::time::Duration;
use trainer::run_dir::RunDir;
use trainer::runs::{Age, Reason, Removal, clean, removable};

/// Says what would be removed, or removes it.
pub fn run(folder: &Path, arguments: &CleanRuns, terminal: &mut Terminal) -> Result<(), Failure> {
    let abandoned = Age(Duration::from_secs(arguments.abandoned_after.saturating_mul(86_400)));
    let runs: Vec<RunDir> = match arguments.runs.as_slice() {
        [] => trainer::runs::find(folder)?,
        names => names.iter().map(|name| find(folder, name)).collect::<Result<_, _>>()?,
    };
    let (mut freed_bytes, mut n_removals) = (0, 0);
    for run_dir in &runs {
        let removals = match arguments.yes {
            false => removable(run_dir, abandoned),
            true => clean(run_dir, abandoned),
        };
        let removals = match removals {
            Ok(removals) => removals,
            // A run that is being trained is left alone; one that cannot be read does not hide the others.
            Err(trainer::Error::RunLocked { .. }) => Vec::new(),
            Err(error) => {
                terminal.warning(format!("{}: {error}", run_dir.path().display()));
                Vec::new()
            }
        };
        for removal in &removals {
            freed_bytes += removal.bytes;
            n_removals += 1;
            one(removal, arguments.yes, terminal);
        }
    }
    if terminal.is_json() {
        return Ok(());
    }
    match (n_removals, arguments.yes) {
        (0, _) => terminal.row("clean", "nothing is left over"),
        (_, true) => terminal.row("freed", bytes::show(freed_bytes)),
        (_, false) => {
            terminal.row("frees", bytes::show(freed_bytes));
            terminal.row("next", "the same with --yes removes it");
        }
    }
    Ok(())
}

fn one(removal: &Removal, is_removed: bool, terminal: &mut Terminal) {
    if terminal.is_json() {
        let mut shown = json!(removal);
        shown["removed"] = json!(is_removed);
        terminal.json(&shown);
        return;
    }
    let why = match removal.reason {
        Reason::Finished => "the run is finished",
        Reason::Abandoned => "the run was left before its end",
        Reason::Leftover => "left half-written by a killed process",
        Reason::Damaged => "damaged, and set aside",
    };
    let key = if is_removed { "removed" } else { "would go" };
    let size = bytes::show(removal.bytes);
    terminal.row(key, format!("{size:>10}  {}  ({why})", removal.path.display()));
}
