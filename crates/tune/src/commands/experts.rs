//! `tune experts`: what is registered, on which files, and which is meant where none is named.

use crate::bytes;
use crate::cli::{Experts, ExpertsCommand};
use crate::failure::Failure;
use crate::pipeline_file;
use crate::terminal::{Terminal, harmless};
use runner::card::{BaseMatch, Model};
use runner::registry::{DiskUse, ExpertDisk};
use runner::{ExpertCard, Registry};
use serde_json::json;

/// Does what is asked of the experts; without a word, lists them.
pub fn run(arguments: &Experts, terminal: &mut Terminal) -> Result<(), Failure> {
    let registry = pipeline_file::registry();
    match arguments.command.as_ref().unwrap_or(&ExpertsCommand::List) {
        ExpertsCommand::List => list(&registry, terminal),
        ExpertsCommand::Show { name } => show(&registry, name, terminal),
        ExpertsCommand::Remove { name } => remove(&registry, name, terminal),
        ExpertsCommand::Default { name: Some(name) } => {
            known(&registry, name)?;
            registry.set_default(name)?;
            terminal.row("default", name);
            Ok(())
        }
        ExpertsCommand::Default { name: None } => {
            match registry.default_expert()? {
                Some(name) => terminal.result(&name),
                None => terminal.row("default", "none is chosen: `tune experts default NAME` chooses one"),
            }
            Ok(())
        }
    }
}

/// A card that can't be read is named, and does not hide the others.
fn list(registry: &Registry, terminal: &mut Terminal) -> Result<(), Failure> {
    let mut cards = Vec::new();
    for name in registry.names()? {
        match registry.card(&name) {
            Ok(card) => cards.push(card),
            Err(error) => terminal.warning(error.to_string()),
        }
    }
    let default = registry.default_expert()?;
    let disk = DiskUse::of(&cards);
    if terminal.is_json() {
        let of = |(card, disk): (&ExpertCard, &ExpertDisk)| json!({"card": card, "disk": disk});
        let experts: Vec<_> = cards.iter().zip(&disk.experts).map(of).collect();
        terminal.json(&json!({"experts": experts, "default": default, "total_bytes": disk.total_bytes}));
        return Ok(());
    }
    if cards.is_empty() {
        let directory = registry.directory().display();
        terminal.row("experts", format!("none in {directory}: `tune register NAME FILE` keeps one"));
        return Ok(());
    }
    for (card, disk) in cards.iter().zip(&disk.experts) {
        let mark = if default.as_deref() == Some(&card.name) { "*" } else { " " };
        terminal.result(&harmless(&format!("{mark} {:<20} {} · {}", card.name, model(card), taken(disk))));
        missing(disk, terminal);
    }
    terminal.row("disk", format!("{}, each file counted once", bytes::show(disk.total_bytes)));
    Ok(())
}

fn model(card: &ExpertCard) -> String {
    match &card.model {
        Model::File(file) => {
            let name = |path: &std::path::Path| {
                path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
            };
            let adapters: Vec<String> = file.adapters.iter().map(|adapter| name(&adapter.file)).collect();
            let over =
                if adapters.is_empty() { String::new() } else { format!(" + {}", adapters.join(" + ")) };
            format!("{} {} · {}{over}", file.architecture, file.weight_type, name(&file.file))
        }
        Model::Ollama(model) => format!("{} on {}", model.name, model.url),
        Model::OpenAi(model) => format!("{} on {}", model.model, model.url),
    }
}

fn taken(disk: &ExpertDisk) -> String {
    let total = bytes::show(disk.total_bytes);
    match disk.shared_with.as_slice() {
        [] => total,
        others => {
            format!(
                "{total}, {} of it its own, the rest shared with {}",
                bytes::show(disk.own_bytes),
                others.join(", ")
            )
        }
    }
}

fn missing(disk: &ExpertDisk, terminal: &mut Terminal) {
    for path in &disk.missing {
        terminal.warning(format!("{}: {} is not there", disk.expert, path.display()));
    }
}

fn show(registry: &Registry, name: &str, terminal: &mut Terminal) -> Result<(), Failure> {
    let card = known(registry, name)?;
    let cards: Vec<ExpertCard> =
        registry.names()?.iter().filter_map(|name| registry.card(name).ok()).collect();
    let disk = DiskUse::of(&cards).experts.into_iter().find(|disk| disk.expert == name).unwrap_or_default();
    if terminal.is_json() {
        terminal.json(&json!({"card": card, "disk": disk}));
        return Ok(());
    }
    terminal.row("expert", format!("{name} · {}", model(&card)));
    if let Some(file) = card.file() {
        terminal.more(format!("{} · blake3 {}", file.file.display(), file.blake3));
        for adapter in &file.adapters {
            let sure = match adapter.base {
                BaseMatch::Hash => "its base by hash",
                BaseMatch::Shapes => "its base by shapes alone",
            };
            let path = adapter.file.display();
            terminal.more(format!("{path} · × {} · {sure} · blake3 {}", adapter.scale, adapter.blake3));
        }
    }
    let load = &card.load;
    let context =
        if load.num_ctx == 0 { "up to 4,096".into() } else { crate::show::count(u64::from(load.num_ctx)) };
    terminal.row(
        "load",
        format!("{context} tokens of context · keys {}, values {}", load.kv_type_k, load.kv_type_v),
    );
    if let Some(system) = &card.system {
        terminal.row("system", harmless(system));
    }
    for stop in &card.stop {
        terminal.row("stop", format!("{stop:?}"));
    }
    if let Some(provenance) = &card.provenance {
        for (what, hash) in [
            ("base", &provenance.base_blake3),
            ("adapter", &provenance.adapter_blake3),
            ("recipe", &provenance.recipe_blake3),
        ] {
            if let Some(hash) = hash {
                terminal.row("made of", format!("{what} {hash}"));
            }
        }
    }
    terminal.row("disk", taken(&disk));
    missing(&disk, terminal);
    match card.check_file() {
        Ok(()) => terminal.row("files", "as they were when it was registered"),
        Err(error) => terminal.warning(error.to_string()),
    }
    Ok(())
}

fn remove(registry: &Registry, name: &str, terminal: &mut Terminal) -> Result<(), Failure> {
    // A card that can't be read can still be removed.
    registry.remove(name).map_err(|error| unknown(registry, name, error))?;
    terminal.row("removed", format!("{name}; its files stay where they are"));
    Ok(())
}

fn known(registry: &Registry, name: &str) -> Result<ExpertCard, Failure> {
    registry.card(name).map_err(|error| unknown(registry, name, error))
}

fn unknown(registry: &Registry, name: &str, error: runner::Error) -> Failure {
    let names = registry.names().unwrap_or_default();
    Failure::new(error).did_you_mean(name, names.iter().map(String::as_str))
}
