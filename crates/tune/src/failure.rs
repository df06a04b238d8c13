//! How a command ends when it does not end well: one message, a hint, an exit code.

use crate::toml_file;
use std::fmt::Display;

/// The user's input is at fault: a file, a recipe, a limit that was reached.
pub const INPUT: u8 = 1;
/// The training left the finite numbers; what is saved is from before.
pub const DIVERGED: u8 = 3;
/// The user pressed Ctrl-C; what was reached is saved.
pub const INTERRUPTED: u8 = 130;
/// Our bug.
pub const BUG: u8 = 70;

/// A message for the user, the way out of it, and the exit code.
#[derive(Debug)]
pub struct Failure {
    pub message: String,
    pub hint: Option<String>,
    pub code: u8,
}

impl Failure {
    pub fn new(message: impl Display) -> Failure {
        Failure { message: message.to_string(), hint: None, code: INPUT }
    }

    pub fn interrupted(message: impl Display) -> Failure {
        Failure { code: INTERRUPTED, ..Failure::new(message) }
    }

    pub fn code(self, code: u8) -> Failure {
        Failure { code, ..self }
    }

    /// Names the one of the valid words that was meant, where one is near.
    pub fn did_you_mean<'a>(self, word: &str, valid: impl Iterator<Item = &'a str>) -> Failure {
        match toml_file::nearest(word, valid) {
            Some(near) => self.hint(format!("did you mean `{near}`?")),
            None => self,
        }
    }

    pub fn hint(mut self, hint: impl Display) -> Failure {
        self.hint = Some(hint.to_string());
        self
    }
}

/// An error of the runner, with the way out that it knows.
pub fn of_runner(error: &runner::Error) -> Failure {
    let failure = Failure::new(error);
    match error.hint() {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// Lets `?` turn a library's error into a failure without a hint of its own.
impl<E: std::error::Error> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure::new(error)
    }
}

/// A panic is a bug of ours, and says so with exit code 70 instead of Rust's 101.
pub fn exit_70_on_panic() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        print(info);
        eprintln!("error    this is a bug in tune; please report it with the lines above");
        std::process::exit(i32::from(BUG));
    }));
}
