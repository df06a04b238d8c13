//! `tune register`: a GGUF, perhaps with adapters over it, kept as an expert once it has shown that it is one.

use crate::bytes;
use crate::cli::Register;
use crate::failure::{self, Failure};
use crate::interrupt;
use crate::ollama_model;
use crate::pipeline_file;
use crate::servers;
use crate::show;
use crate::terminal::{Terminal, harmless};
use crate::trained_on::{self, TrainedOn, Unknown};
use runner::ExpertCard;
use runner::card::{AdapterOptions, BaseMatch, CardOptions, Digests, LoadOptions, Sampling};
use runner::registry::{Checked, Probe, SMOKE_TOKENS, check};
use serde_json::json;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

/// So much of an answer is shown.
const SHOWN_CHARACTERS: usize = 120;

/// Checks, loads and asks the expert; only then is its card written, in one piece.
pub fn run(arguments: &Register, terminal: &mut Terminal) -> Result<(), Failure> {
    let registry = pipeline_file::registry();
    let name = &arguments.name;
    if registry.names()?.contains(name) && !arguments.force {
        return Err(Failure::new(format!("there is an expert `{name}` already"))
            .hint(format!("replace it with --force, or see it with: tune experts show {name}")));
    }
    let options = options(arguments)?;
    let card = ExpertCard::from_file(name, &whole(&arguments.file)?, &options, Digests::Blake3AndSha256)
        .map_err(|error| refused(&error))?;
    check_context(&card)?;
    let trained = trained_on(&card);
    show_card(&card, terminal);
    let probe = match &trained {
        Ok(run) => Probe { training: run.language(), conversations: run.conversations.clone() },
        Err(_) => Probe::default(),
    };
    let cancel = interrupt::flag();
    let checked = check(&card, &probe, &|| cancel.load(Ordering::SeqCst)).map_err(|error| refused(&error))?;
    registry.keep(&card)?;
    if arguments.default {
        registry.set_default(name)?;
    }
    show_checked(&card, &checked, &trained, terminal);
    let kept = registry.directory().join(format!("{name}.json"));
    terminal.row("wrote", kept.display().to_string());
    terminal.row("next", format!("tune serve, and ask for `{name}`; or `expert = \"{name}\"` in a pipeline"));
    let Some(there) = &arguments.ollama else { return Ok(()) };
    let there = if there.is_empty() { name } else { there };
    // It ends with this function, whatever comes.
    let _ollama = arguments.start_ollama.then(|| servers::start_ollama(terminal)).transpose()?;
    ollama_model::send(&card, there, &|| cancel.load(Ordering::SeqCst), terminal)
}

fn options(arguments: &Register) -> Result<CardOptions, Failure> {
    let defaults = LoadOptions::default();
    let kv_type = arguments.kv_type;
    Ok(CardOptions {
        adapters: arguments.adapters.iter().map(|text| adapter(text)).collect::<Result<_, _>>()?,
        system: arguments.system.clone(),
        stop: arguments.stop.clone(),
        load: LoadOptions {
            num_ctx: arguments.num_ctx.unwrap_or(defaults.num_ctx),
            num_batch: arguments.num_batch.unwrap_or(defaults.num_batch),
            num_thread: arguments.num_thread.unwrap_or(defaults.num_thread),
            num_gpu: arguments.num_gpu,
            kv_type_k: kv_type.unwrap_or(defaults.kv_type_k),
            kv_type_v: kv_type.unwrap_or(defaults.kv_type_v),
            flash_attention: arguments.flash_attention.unwrap_or(defaults.flash_attention),
        },
        sampling: Sampling {
            temperature: arguments.temperature,
            max_tokens: arguments.max_tokens,
            ..Sampling::default()
        },
        fallback: arguments.fallback.clone(),
    })
}

/// `FILE` or `FILE=SCALE`.
fn adapter(text: &str) -> Result<AdapterOptions, Failure> {
    let (file, scale) = match text.rsplit_once('=') {
        Some((file, scale)) if !Path::new(text).is_file() => {
            let scale: f32 = scale.parse().map_err(|_| {
                Failure::new(format!("`{scale}` of --adapter {text} is no number"))
                    .hint("write FILE or FILE=0.5")
            })?;
            (file, scale)
        }
        _ => (text, 1.0),
    };
    Ok(AdapterOptions { file: whole(Path::new(file))?, scale })
}

/// The registry outlives this call, and the folder it was made in.
fn whole(file: &Path) -> Result<PathBuf, Failure> {
    std::fs::canonicalize(file).map_err(|error| Failure::new(format!("{}: {error}", file.display())))
}

fn check_context(card: &ExpertCard) -> Result<(), Failure> {
    let asked = card.load.num_ctx;
    match card.trained_context_tokens()? {
        Some(trained) if asked > trained => Err(Failure::new(format!(
            "--num-ctx {asked} is more than the {trained} the model was trained on"
        ))),
        _ => Ok(()),
    }
}

fn trained_on(card: &ExpertCard) -> Result<TrainedOn, Unknown> {
    let file = card.file().ok_or(Unknown::NoRun)?;
    match file.adapters.last() {
        Some(adapter) => trained_on::of_file(&adapter.file, adapter.base_blake3.as_deref()),
        None => {
            let base = card.provenance.as_ref().and_then(|provenance| provenance.base_blake3.as_deref());
            trained_on::of_file(&file.file, base)
        }
    }
}

/// An error of the checks, with the way out.
fn refused(error: &runner::Error) -> Failure {
    let failure = failure::of_runner(error);
    let hint = match error {
        runner::Error::Cancelled => return Failure::interrupted("stopped; nothing was registered"),
        runner::Error::Adapter { .. } => {
            "an adapter belongs to the base it was trained on: `tune inspect` shows the hashes that both record; \
             `tune export` merges it"
        }
        runner::Error::Unfit { .. } => {
            "the file has another template or tokenizer than the run: export the run again, and register that"
        }
        runner::Error::Load { .. } => "a file that is broken is to be exported or downloaded again",
        _ => return failure,
    };
    if failure.hint.is_some() { failure } else { failure.hint(hint) }
}

fn show_card(card: &ExpertCard, terminal: &mut Terminal) {
    let Some(file) = card.file() else { return };
    terminal.row(
        "expert",
        format!("{} · {} · {} · {}", card.name, file.architecture, file.weight_type, file.file.display()),
    );
    for adapter in &file.adapters {
        let sure = match adapter.base {
            BaseMatch::Hash => "its base, by hash",
            BaseMatch::Shapes => "fits by its shapes",
        };
        let scale = if adapter.scale == 1.0 { String::new() } else { format!(" × {}", adapter.scale) };
        terminal.more(format!("adapter {}{scale} · {sure}", adapter.file.display()));
        if adapter.base == BaseMatch::Shapes {
            terminal.warning("adapter or base records no hash: that they belong together is not sure");
        }
    }
    if file.template_blake3.is_none() {
        terminal.warning("the file has no chat template: it can only continue a text");
    }
}

fn show_checked(
    card: &ExpertCard,
    checked: &Checked,
    trained: &Result<TrainedOn, Unknown>,
    terminal: &mut Terminal,
) {
    if terminal.is_json() {
        let run = trained.as_ref().ok().map(|run| run.run.display().to_string());
        terminal.json(&json!({"event": "registered", "card": card, "checked": checked, "run": run}));
        return;
    }
    terminal.row("takes", bytes::show(checked.takes.total_bytes()));
    match trained {
        Ok(run) => terminal.row(
            "prompts",
            format!(
                "{} read as training read them, of {}",
                show::count(checked.n_compared as u64),
                run.run.display()
            ),
        ),
        Err(Unknown::NoRun) => terminal.row("prompts", "not compared: the file lies in no run's folder"),
        Err(Unknown::Run(why)) => {
            terminal.warning(format!("prompts are not compared with training's: {why}"))
        }
    }
    if checked.n_engine_differs > 0 {
        terminal.warning(format!(
            "llama.cpp's own tokenizer reads {} of the prompts otherwise; here that has no effect, on a server that \
             tokenises by itself it would",
            checked.n_engine_differs
        ));
    }
    let Some(smoke) = &checked.smoke else { return };
    let shown: String = smoke.text.chars().take(SHOWN_CHARACTERS).collect();
    let shown = harmless(&shown.replace('\n', " ⏎ "));
    if smoke.ended {
        terminal.row("answer", format!("{shown} · ended by itself after {} tokens", smoke.n_tokens));
    } else {
        terminal.row("answer", shown);
        terminal.warning(format!(
            "the answer did not end by itself within {} tokens (at most {SMOKE_TOKENS} are tried): give the expert \
             --max-tokens or --stop, or train it on answers that end",
            smoke.n_tokens
        ));
    }
}
