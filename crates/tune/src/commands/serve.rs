//! `tune serve`: experts and pipelines over HTTP, and the web page.

use crate::cli::Serve;
use crate::failure::Failure;
use crate::pipeline_file;
use crate::recipe::Recipe;
use crate::servers;
use crate::show;
use crate::terminal::Terminal;
use runner::card::CardOptions;
use runner::http::{ServeConfig, ServeEvent, serve};
use runner::pipeline::Pipeline;
use runner::residency::{Keeping, ResidencyEvent};
use runner::{ExpertCard, Registry, Residency};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

/// An expert that nobody asks for is unloaded after this long, as Ollama does.
const KEEP_ALIVE: Duration = Duration::from_secs(5 * 60);
const MAX_QUEUE: usize = 64;

/// Serves until Ctrl-C.
pub fn run(arguments: &Serve, terminal: &mut Terminal) -> Result<(), Failure> {
    // It ends with this function, whatever comes.
    let _ollama = arguments.start_ollama.then(|| servers::start_ollama(terminal)).transpose()?;
    let registry = pipeline_file::registry();
    let (files, pipelines): (Vec<_>, Vec<_>) = arguments
        .offers
        .iter()
        .partition(|path| path.extension().is_some_and(|extension| extension == "gguf"));
    let files_first = files.first().map(|file| Recipe::run_name(file));
    for file in files {
        register(&registry, file, terminal)?;
    }
    let pipelines = pipelines.into_iter().map(|path| pipeline_file::read(path, &registry));
    let pipelines = pipelines.collect::<Result<Vec<_>, _>>()?;
    refuse_programs(&pipelines, arguments.allow_programs)?;
    let cards = pipelines.iter().flat_map(|pipeline| pipeline.experts().values());
    let engine = servers::engine(cards)?;
    let preload = first_expert(&registry, &pipelines, files_first)?;
    let keeping = if arguments.one_at_a_time { Keeping::One } else { Keeping::WhereTheyFit };
    let config = ServeConfig {
        address: SocketAddr::new(arguments.host, arguments.port),
        api_key: std::env::var("TUNE_API_KEY").ok().filter(|key| !key.is_empty()),
        residency: Residency::new(Box::new(engine)).keeping(keeping),
        preload,
        registry,
        pipelines,
        runs: arguments.runs.clone().unwrap_or_else(pipeline_file::runs),
        keep_alive: KEEP_ALIVE,
        max_queue: MAX_QUEUE,
        programs: super::run::programs(arguments.allow_programs),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let (events, shown) = std::sync::mpsc::channel();
    let stop = async {
        // Without a handler Ctrl-C just ends the process.
        drop(tokio::signal::ctrl_c().await);
    };
    let server =
        runtime.spawn(serve(config, stop, Box::new(move |event: ServeEvent| drop(events.send(event)))));
    for event in shown {
        show_event(terminal, &event);
    }
    let ended = runtime.block_on(server)?;
    ended.map_err(|error| match error {
        runner::Error::Listen { .. } => Failure::new(error).hint("choose another port with --port"),
        other => Failure::new(other),
    })
}

/// The expert that is most likely asked for first: the default one, one that is offered here, the first of a pipeline.
fn first_expert(
    registry: &Registry,
    pipelines: &[Pipeline],
    offered: Option<String>,
) -> Result<Option<ExpertCard>, Failure> {
    if let Some(name) = registry.default_expert()?.or(offered) {
        return Ok(Some(registry.card(&name)?));
    }
    let first =
        pipelines.iter().find_map(|pipeline| pipeline.experts().get(pipeline.first_expert()?).cloned());
    Ok(first)
}

/// A pipeline that lists a program is not served unless that is allowed: a request would be refused one by one.
fn refuse_programs(pipelines: &[Pipeline], is_allowed: bool) -> Result<(), Failure> {
    let listed = pipelines.iter().find_map(|pipeline| Some((pipeline.name(), pipeline.program()?)));
    match listed {
        Some((name, (step, command))) if !is_allowed => Err(Failure::new(format!(
            "step `{step}` of pipeline `{name}` runs a program of this machine: {}",
            command.join(" ")
        ))
        .hint("--allow-programs lets whoever can reach the server have it run")),
        _ => Ok(()),
    }
}

/// Keeps an exported file as an expert of its name, after the checks of a card.
fn register(registry: &Registry, file: &Path, terminal: &mut Terminal) -> Result<(), Failure> {
    // The registry outlives this call, and the folder it was made in.
    let whole = std::fs::canonicalize(file).map_err(|e| Failure::new(format!("{}: {e}", file.display())))?;
    let card = registry.register(&Recipe::run_name(file), &whole, &CardOptions::default())?;
    terminal.row(
        "expert",
        format!("{} · {} · {}", card.name, card.architecture().unwrap_or_default(), file.display()),
    );
    Ok(())
}

fn show_event(terminal: &mut Terminal, event: &ServeEvent) {
    match event {
        ServeEvent::Listening { address } => {
            terminal.row("serving", format!("http://{address}"));
            terminal.more("Ollama's API under /api, OpenAI's under /v1: experts and pipelines are its models; Ctrl-C ends it");
        }
        ServeEvent::Request { line, status, ms } => {
            terminal.row("request", format!("{line} {status} {}", show::seconds(ms / 1e3)));
        }
        ServeEvent::Residency(ResidencyEvent::Loaded { expert, load_ms, .. }) => {
            terminal.row("loaded", format!("{expert} in {}", show::seconds(load_ms / 1e3)));
        }
        ServeEvent::Residency(ResidencyEvent::Switched { expert, from, switch_ms }) => {
            terminal.row("switched", format!("{from} → {expert} in {}", show::brief(switch_ms / 1e3)));
        }
        ServeEvent::Residency(ResidencyEvent::Unloaded { expert, .. }) => terminal.row("unloaded", expert),
        ServeEvent::Residency(_) => {}
    }
}
