//! `tune plan pipeline.toml`: what each expert takes, step by step, and what is left.

use crate::bytes;
use crate::cli::Plan;
use crate::failure::Failure;
use crate::pipeline_file;
use crate::room::Room;
use crate::show;
use crate::terminal::Terminal;
use runner::budget::{Budget, Place, Planned, Share};
use runner::card::{ExpertCard, Model};
use runner::pipeline::Pipeline;
use runner::residency::{Comes, Keeping, PlannedExpert, forecast};
use serde_json::json;
use std::collections::BTreeMap;

type Plans = BTreeMap<String, Planned>;

/// Plans every expert of the pipeline; fails if one does not fit, when all are shown.
pub fn run(arguments: &Plan, terminal: &mut Terminal) -> Result<(), Failure> {
    let pipeline = pipeline_file::read(&arguments.file, &pipeline_file::registry())?;
    let room = Room::new(arguments.memory, arguments.reserve)?;
    let mut plans = Plans::new();
    for (name, card) in pipeline.experts().iter().filter(|(_, card)| card.file().is_some()) {
        let fallback = pipeline.fallback(name);
        plans.insert(name.clone(), Planned::new(card, room.place, &room.available, fallback)?);
    }
    terminal.row("memory", &room.shown);
    for (name, card) in pipeline.experts() {
        match plans.get(name) {
            Some(planned) => expert(terminal, &pipeline, name, planned, &room),
            None => on_server(terminal, card),
        }
    }
    let keeping = if arguments.one_at_a_time { Keeping::One } else { Keeping::WhereTheyFit };
    steps(terminal, &pipeline, &plans, &room, keeping);
    verdict(terminal, &plans, pipeline.experts().len())
}

/// An expert whose model a server holds, which alone knows what it takes there.
fn on_server(terminal: &mut Terminal, card: &ExpertCard) {
    let (what, url, disk_bytes) = match &card.model {
        Model::Ollama(model) => (&model.name, &model.url, Some(model.size_bytes)),
        Model::OpenAi(model) => (&model.model, &model.url, None),
        Model::File(_) => return,
    };
    if terminal.is_json() {
        terminal.json(&json!({
            "event": "expert", "expert": card.name, "server": url, "model": what, "disk_bytes": disk_bytes,
            "num_ctx": (card.load.num_ctx > 0).then_some(card.load.num_ctx), "need_bytes": null,
        }));
        return;
    }
    terminal.row("expert", format!("{} · {what} on {url} · memory not known: the server's own", card.name));
    let size = disk_bytes
        .map_or_else(|| "size not known".into(), |bytes| format!("{} on its disk", bytes::show(bytes)));
    let context = match card.load.num_ctx {
        0 => "context not known".to_owned(),
        tokens => format!("{} tokens of context", show::count(u64::from(tokens))),
    };
    terminal.more(format!("{size} · {context}"));
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
        let architecture = pipeline.experts()[name].architecture().unwrap_or_default();
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

fn steps(terminal: &mut Terminal, pipeline: &Pipeline, plans: &Plans, room: &Room, keeping: Keeping) {
    let names: Vec<&str> = pipeline.experts().keys().map(String::as_str).collect();
    let index = |name: &str| names.iter().position(|known| *known == name);
    // What a server holds takes nothing that is known here.
    let nothing = Budget::default();
    let experts: Vec<PlannedExpert<'_>> = pipeline
        .experts()
        .iter()
        .map(|(name, card)| PlannedExpert {
            card,
            budget: plans.get(name).map_or(&nothing, |planned| &planned.budget),
        })
        .collect();
    let asked: Vec<Option<usize>> = pipeline.steps().map(|(_, expert)| expert.and_then(index)).collect();
    let forecasts = forecast(&experts, &asked, &room.available, room.total_bytes, keeping);
    for ((step, expert), forecast) in pipeline.steps().zip(&forecasts) {
        let residents: Vec<&str> = forecast.residents.iter().map(|&index| names[index]).collect();
        let unloads: Vec<&str> = forecast.unloads.iter().map(|&index| names[index]).collect();
        let here = residents.iter().filter_map(|name| plans.get(*name));
        let share = here.fold(Share::default(), |sum, planned| sum.plus(planned.budget.share(planned.place)));
        let on_servers = residents.iter().filter(|name| !plans.contains_key(**name)).count();
        if terminal.is_json() {
            terminal.json(&json!({
                "event": "step", "step": step, "expert": expert, "residents": residents, "unloads": unloads,
                "loads": forecast.comes == Comes::Loads, "switches": forecast.comes == Comes::Switches,
                "resident_bytes": share.total_bytes(),
                "left_bytes": room.free_bytes().map(|free| free.saturating_sub(share.total_bytes())),
            }));
            continue;
        }
        let what = match (expert, forecast.comes) {
            (Some(name), Comes::Loads) if !unloads.is_empty() => {
                format!("unloads {}, loads {name}", unloads.join(", "))
            }
            (Some(name), Comes::Loads) => format!("loads {name}"),
            (Some(name), Comes::Switches) => format!("switches to {name}, nothing is loaded"),
            (Some(name), _) => format!("{name}, resident"),
            (None, _) => "rules, no expert".to_owned(),
        };
        let takes = match (on_servers, residents.len()) {
            (0, _) => format!("{} resident · {}", bytes::show(share.total_bytes()), left(&share, room)),
            (n, all) if n == all => "on its server".to_owned(),
            _ => format!("{} resident here · {}", bytes::show(share.total_bytes()), left(&share, room)),
        };
        terminal.row("step", format!("{step} · {what} · {takes}"));
    }
}

fn verdict(terminal: &mut Terminal, plans: &Plans, n_experts: usize) -> Result<(), Failure> {
    let refused: Vec<_> = plans.iter().filter_map(|(name, planned)| planned.check(name).err()).collect();
    let Some((last, others)) = refused.split_last() else {
        let largest = plans.values().map(|planned| planned.budget.share(planned.place).total_bytes()).max();
        let largest = bytes::show(largest.unwrap_or(0));
        let text = match n_experts - plans.len() {
            0 => format!("each of {n_experts} experts alone, {largest} at most"),
            n if n == n_experts => "every expert is on a server, which alone knows what it takes".to_owned(),
            n => format!(
                "each of {} experts alone, {largest} at most; {n} more on servers, not counted",
                plans.len()
            ),
        };
        terminal.row("fits", text);
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
