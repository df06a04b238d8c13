//! `tune runs`: the training runs of a folder.

mod clean;
mod compare;
mod list;
mod show;

use crate::cli::{Runs, RunsCommand};
use crate::failure::Failure;
use crate::terminal::Terminal;
use std::path::Path;
use trainer::run_dir::RunDir;

/// What is said of a figure that a run does not have.
const NONE: &str = "–";

/// Does what is asked of the runs; without a word, lists them.
pub fn run(arguments: &Runs, terminal: &mut Terminal) -> Result<(), Failure> {
    let folder = &arguments.folder;
    match arguments.command.as_ref().unwrap_or(&RunsCommand::List) {
        RunsCommand::List => list::run(folder, terminal),
        RunsCommand::Show(name) => show::run(&find(folder, &name.run)?, terminal),
        RunsCommand::Compare(compare) => compare::run(folder, compare, terminal),
        RunsCommand::Clean(clean) => clean::run(folder, clean, terminal),
        RunsCommand::Report(name) => report(&find(folder, &name.run)?, terminal),
    }
}

/// The run of this name in the folder, or in the folder that the name is a path to.
fn find(folder: &Path, name: &Path) -> Result<RunDir, Failure> {
    let named = [folder.join(name), name.to_path_buf()].map(RunDir::new);
    if let Some(run_dir) = named.into_iter().find(|run_dir| run_dir.run_json().is_file()) {
        return Ok(run_dir);
    }
    let there: Vec<String> = trainer::runs::find(folder)?.iter().map(trainer::report::name).collect();
    let wanted = name.display().to_string();
    let failure = Failure::new(format!("there is no training run `{wanted}` in {}", folder.display()))
        .did_you_mean(&wanted, there.iter().map(String::as_str));
    Err(match failure.hint {
        None => failure.hint("`tune runs` lists what there is; --in FOLDER looks elsewhere"),
        Some(_) => failure,
    })
}

fn report(run_dir: &RunDir, terminal: &mut Terminal) -> Result<(), Failure> {
    let path = trainer::report::write(run_dir)?;
    if terminal.is_json() {
        terminal.json(&serde_json::json!({"report": path}));
    } else {
        terminal.row("wrote", path.display().to_string());
    }
    Ok(())
}
