//! An expert of ours as a model of the Ollama that the environment names, with the progress on the terminal.

use crate::bytes;
use crate::failure::{Failure, of_runner};
use crate::servers;
use crate::terminal::{Terminal, harmless};
use runner::ExpertCard;
use runner::engine::ollama::{OllamaServer, RegisterEvent, Registration, register};
use runner::engine::remote::Patience;

/// Sends the expert's file and makes it a model there, after the checks of the server's generation.
pub fn send(
    card: &ExpertCard,
    name: &str,
    cancelled: &dyn Fn() -> bool,
    terminal: &mut Terminal,
) -> Result<(), Failure> {
    let server = OllamaServer::at(&servers::ollama_host(), Patience::default()).map_err(Failure::new)?;
    let registration = Registration::of_card(name, card)?;
    let made = register(&server, &registration, cancelled, &mut |event| show(terminal, &server, &event));
    terminal.clear_bar();
    match made {
        Ok(_) => Ok(()),
        Err(runner::Error::Cancelled) => {
            Err(Failure::interrupted("stopped; Ollama has no model of that name from this"))
        }
        Err(error) => Err(of_runner(&error)),
    }
}

fn show(terminal: &mut Terminal, server: &OllamaServer, event: &RegisterEvent) {
    if terminal.is_json() {
        terminal.json(event);
        return;
    }
    match event {
        RegisterEvent::Server { version, .. } => {
            terminal.row("ollama", format!("{} · version {version}", server.url()));
        }
        RegisterEvent::Hashing { .. } => {}
        RegisterEvent::Held => terminal.more("the file is there already"),
        RegisterEvent::Sending { sent_bytes, total_bytes } => {
            let line = format!("sent {} of {}", bytes::show(*sent_bytes), bytes::show(*total_bytes));
            terminal.progress_on_screen(*sent_bytes, *total_bytes, &line);
        }
        RegisterEvent::Status { status } => {
            terminal.clear_bar();
            terminal.more(harmless(status));
        }
        RegisterEvent::Checked { what } => terminal.row("same", what),
        RegisterEvent::Registered { name, digest } => {
            let short = digest.get(..12).unwrap_or(digest);
            terminal.row("model", format!("{name} · {short}"));
            terminal.row("next", format!("ollama run {name}, or `ollama = \"{name}\"` in a pipeline"));
        }
    }
}
