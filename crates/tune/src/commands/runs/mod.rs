//! `tune runs`: the runs of a folder, of training and of pipelines.

mod clean;
mod compare;
mod list;
mod pipeline;
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
        RunsCommand::List => {
            list::run(folder, terminal)?;
            pipeline::list(folder, terminal)
        }
        RunsCommand::Show(name) => match pipeline::find(folder, &name.run) {
            Some((folder, id)) => pipeline::show(&folder, &id, terminal),
            None => show::run(&find(folder, &name.run)?, terminal),
        },
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
    let mut there: Vec<String> = trainer::runs::find(folder)?.iter().map(trainer::report::name).collect();
    there.extend(runner::pipeline::history(&pipeline::folder(folder), 100)?.into_iter().map(|run| run.run));
    let wanted = name.display().to_string();
    let failure = Failure::new(format!("there is no run `{wanted}` in {}", folder.display()))
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
