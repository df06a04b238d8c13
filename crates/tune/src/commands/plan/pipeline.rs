//! `tune plan pipeline.toml`: what each expert takes, step by step, and what is left.

use crate::bytes;
use crate::cli::Plan;
use crate::failure::Failure;
use crate::pipeline_file;
use crate::room::Room;
use crate::show;
use crate::terminal::Terminal;
use runner::budget::{Place, Planned, Share};
use runner::pipeline::Pipeline;
use serde_json::json;
use std::collections::BTreeMap;

type Plans = BTreeMap<String, Planned>;

/// Plans every expert of the pipeline; fails if one does not fit, when all are shown.
pub fn run(arguments: &Plan, terminal: &mut Terminal) -> Result<(), Failure> {
    let pipeline = pipeline_file::read(&arguments.file, &pipeline_file::registry())?;
    let room = Room::new(arguments.memory, arguments.reserve)?;
    let mut plans = Plans::new();
    for (name, card) in pipeline.experts() {
        let fallback = pipeline.fallback(name);
        plans.insert(name.clone(), Planned::new(card, room.place, &room.available, fallback)?);
    }
    terminal.row("memory", &room.shown);
    for (name, planned) in &plans {
        expert(terminal, &pipeline, name, planned, &room);
    }
    steps(terminal, &pipeline, &plans, &room);
    verdict(terminal, &plans)
}

fn expert(terminal: &mut Terminal, pipeline: &Pipeline, name: &str, planned: &Planned, room: &Room) {
    let share = planned.budget.share(planned.place);
    if terminal.is_json() {
        terminal.json(&json!({
            "event": "expert", "expert": name, "place": planned.place, "budget": planned.budget,
            "need_bytes": share.total_bytes(), "free_bytes": room.free_bytes(),
            "fits": planned.short_of.is_none(), "remedies": planned.remedies,
        }));
        return;
    }
    let load = &pipeline.experts()[name].load;
    let types = if load.kv_type_k == load.kv_type_v {
        load.kv_type_k.to_string()
    } else {
        format!("{} and {}", load.kv_type_k, load.kv_type_v)
    };
    let context = show::count(planned.budget.context_tokens);
    terminal.row("expert", format!("{name} · {}", parts(share)));
    terminal.more(format!("{context} tokens of context, keys and values in {types} · {}", left(share, room)));
    let main = &planned.budget.main;
    if planned.place == Place::Card {
        terminal.more(format!("beside the card, of main memory {}", parts(main)));
    }
    if !planned.budget.is_known {
        let architecture = &pipeline.experts()[name].architecture;
        terminal.warning(format!("{name}: {architecture} is not among the architectures whose figures were compared with llama.cpp's: an estimate"));
    }
}

/// `5.63 GiB: weights 4.57 GiB, context 512.0 MiB, compute 258.5 MiB, overhead 300.0 MiB`
pub fn parts(share: &Share) -> String {
    format!(
        "{}: weights {}, context {}, compute {}, overhead {}",
        bytes::show(share.total_bytes()),
        bytes::show(share.weights_bytes),
        bytes::show(share.context_bytes),
        bytes::show(share.compute_bytes),
        bytes::show(share.overhead_bytes)
    )
}

fn left(share: &Share, room: &Room) -> String {
    let Some(free) = room.free_bytes() else { return "what is left is not known".into() };
    match free.checked_sub(share.total_bytes()) {
        Some(left) => format!("{} left", bytes::show(left)),
        None => format!("{} too much", bytes::show(share.total_bytes() - free)),
    }
}

fn steps(terminal: &mut Terminal, pipeline: &Pipeline, plans: &Plans, room: &Room) {
    let mut resident: Option<&str> = None;
    let asked = pipeline.steps().flat_map(|(step, experts)| {
        let experts: Vec<Option<&str>> = experts.into_iter().map(Some).collect();
        let experts = if experts.is_empty() { vec![None] } else { experts };
        experts.into_iter().map(move |expert| (step, expert))
    });
    for (step, expert) in asked {
        let loads = expert.is_some() && expert != resident;
        let unloads = if loads { resident } else { None };
        resident = expert.or(resident);
        let share = resident.map(|name| *plans[name].budget.share(plans[name].place)).unwrap_or_default();
        if terminal.is_json() {
            terminal.json(&json!({
                "event": "step", "step": step, "expert": expert, "resident": resident, "loads": loads,
                "resident_bytes": share.total_bytes(),
                "left_bytes": room.free_bytes().map(|free| free.saturating_sub(share.total_bytes())),
            }));
            continue;
        }
        let what = match (expert, unloads) {
            (None, _) => "rules, no expert".to_owned(),
            (Some(name), Some(old)) => format!("unloads {old}, loads {name}"),
            (Some(name), None) if loads => format!("loads {name}"),
            (Some(name), None) => format!("{name}, resident"),
        };
        terminal.row(
            "step",
            format!(
                "{step} · {what} · {} resident · {}",
                bytes::show(share.total_bytes()),
                left(&share, room)
            ),
        );
    }
}

fn verdict(terminal: &mut Terminal, plans: &Plans) -> Result<(), Failure> {
    let refused: Vec<_> = plans.iter().filter_map(|(name, planned)| planned.check(name).err()).collect();
    let Some((last, others)) = refused.split_last() else {
        let largest = plans.values().map(|planned| planned.budget.share(planned.place).total_bytes()).max();
        let largest = bytes::show(largest.unwrap_or(0));
        terminal.row("fits", format!("one expert at a time, {largest} at most · {} experts", plans.len()));
        return Ok(());
    };
    for error in others {
        terminal.warning(error.to_string());
        if let Some(hint) = error.hint() {
            terminal.more(hint);
        }
    }
    Err(crate::failure::of_runner(last))
}
