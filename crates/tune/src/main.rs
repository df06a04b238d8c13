//! `tune`: train an adapter, export it to a checked GGUF, run it as an expert.
//!
//! This crate owns argv, recipes, the environment, the terminal and exit codes; the work is in the
//! libraries beside it.  One file a command, in `commands`.

mod asked;
mod base_location;
mod bytes;
mod cache_dir;
mod cli;
mod commands;
#[cfg(test)]
#[path = "../../formats/tests/hostile/counting.rs"]
mod counting;
mod exported;
mod failure;
mod hub_access;
mod interrupt;
mod line_editor;
mod ollama_model;
mod pipeline_file;
mod recipe;
mod recipe_text;
mod room;
mod run_record;
mod servers;
mod show;
mod terminal;
mod toml_file;
mod trained_on;
mod verifier;

use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    failure::exit_70_on_panic();
    let arguments = cli::Arguments::parse();
    let mut terminal = terminal::Terminal::new(arguments.json);
    match commands::run(arguments.command, &mut terminal) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            terminal.failure(&failure);
            ExitCode::from(failure.code)
        }
    }
}
