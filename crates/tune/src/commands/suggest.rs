//! `tune suggest`: a base, a quantisation and a context for a role and so much memory.

use super::plan::parts;
use crate::bytes;
use crate::cli::{self, Suggest};
use crate::failure::Failure;
use crate::room::Room;
use crate::show;
use crate::terminal::Terminal;
use runner::suggest::{Choice, Role, Suggestion, suggest};

/// Prints the suggestion; fails where nothing fits.
pub fn run(arguments: &Suggest, terminal: &mut Terminal) -> Result<(), Failure> {
    let room = Room::new(arguments.memory, arguments.reserve)?;
    let answer = suggest(role(arguments.role), room.place, &room.available)?;
    if terminal.is_json() {
        terminal.json(&answer);
    } else {
        show_answer(terminal, &answer, &room);
    }
    match (&answer.choice, &answer.next_up) {
        (None, next) => Err(nothing(next.as_ref(), &room)),
        _ => Ok(()),
    }
}

fn show_answer(terminal: &mut Terminal, answer: &Suggestion, room: &Room) {
    terminal.row("memory", &room.shown);
    let Some(choice) = &answer.choice else { return };
    terminal.row("base", format!("{} · {} B · licence {}", choice.base, choice.billions, choice.licence));
    terminal.more(&choice.reason);
    terminal.row("form", form(choice));
    terminal.more(&answer.context_reason);
    terminal.row("takes", parts(choice.budget.share(room.place)));
    for other in &answer.alternatives {
        terminal
            .row("instead", format!("{} · {} · {}", other.base, form(other), bytes::show(other.need_bytes)));
        terminal.more(&other.reason);
    }
    if let Some(next) = &answer.next_up {
        let free = room.free_bytes().unwrap_or(0);
        terminal.row(
            "next up",
            format!(
                "{} · {} · needs {}, {} more",
                next.base,
                form(next),
                bytes::show(next.need_bytes),
                bytes::show(next.need_bytes.saturating_sub(free))
            ),
        );
    }
    terminal.row(
        "next",
        format!("tune pull {} && tune export hf.co/{} --quant {}", choice.base, choice.base, choice.quant),
    );
}

/// `q4_k_m · 16,384 tokens of context, keys and values in f16`
fn form(choice: &Choice) -> String {
    let context = show::count(u64::from(choice.num_ctx));
    format!("{} · {context} tokens of context, keys and values in {}", choice.quant, choice.kv_type)
}

fn nothing(next: Option<&Choice>, room: &Room) -> Failure {
    let failure = Failure::new(format!("nothing for that role fits {}", room.shown));
    match next {
        Some(next) => failure.hint(format!(
            "the smallest is {} as {}, which needs {}",
            next.base,
            form(next),
            bytes::show(next.need_bytes)
        )),
        None => failure,
    }
}

fn role(role: cli::Role) -> Role {
    match role {
        cli::Role::Coding => Role::Coding,
        cli::Role::Reasoning => Role::Reasoning,
        cli::Role::Chat => Role::Chat,
        cli::Role::Routing => Role::Routing,
        cli::Role::Embedding => Role::Embedding,
    }
}
