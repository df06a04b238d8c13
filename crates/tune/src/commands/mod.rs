//! One file a command.

mod chat;
mod doctor;
mod eval;
mod experts;
mod export;
mod import;
mod init;
mod inspect;
mod plan;
mod preview;
mod pull;
mod register;
mod run;
mod runs;
mod serve;
mod suggest;
mod train;

use crate::cli::Command;
use crate::failure::Failure;
use crate::terminal::Terminal;

/// Runs the command that argv asked for.
pub fn run(command: Command, terminal: &mut Terminal) -> Result<(), Failure> {
    match command {
        Command::Init(arguments) => init::run(&arguments, terminal),
        Command::Import(arguments) => import::run(&arguments, terminal),
        Command::Train(arguments) => train::run(&arguments, terminal),
        Command::Eval(arguments) => eval::run(&arguments, terminal),
        Command::Chat(arguments) => chat::run(&arguments, terminal),
        Command::Export(arguments) => export::run(&arguments, terminal),
        Command::Register(arguments) => register::run(&arguments, terminal),
        Command::Experts(arguments) => experts::run(&arguments, terminal),
        Command::Run(arguments) => run::run(&arguments, terminal),
        Command::Serve(arguments) => serve::run(&arguments, terminal),
        Command::Plan(arguments) => plan::run(&arguments, terminal),
        Command::Preview(arguments) => preview::run(&arguments, terminal),
        Command::Suggest(arguments) => suggest::run(&arguments, terminal),
        Command::Inspect(arguments) => inspect::run(&arguments, terminal),
        Command::Pull(arguments) => pull::run(&arguments, terminal),
        Command::Runs(arguments) => runs::run(&arguments, terminal),
        Command::Doctor => doctor::run(terminal),
    }
}
