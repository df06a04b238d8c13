//! `tune plan recipe.toml`: what training takes, and what would fit otherwise.

use crate::bytes;
use crate::cli::Plan;
use crate::commands::train;
use crate::failure::Failure;
use crate::show;
use crate::terminal::Terminal;
use serde_json::json;
use trainer::probe::Estimate;
use trainer::survey::Survey;
use trainer::{Error, Event, OnTooLong, Options};

/// Reads base and rows, and plans as training does; nothing is written.
pub fn run(arguments: &Plan, terminal: &mut Terminal) -> Result<(), Failure> {
    let (recipe, mut options) = train::located(&arguments.file, terminal)?;
    if let Some(memory) = arguments.memory {
        options.budget.memory_bytes = Some(memory);
        options.budget.reserve_bytes = arguments.reserve;
    }
    let failure = |error: Error| train::failure(&error, &arguments.file, &recipe);
    if !arguments.sweep.is_empty() {
        return sweep(&arguments.sweep, &options, terminal).map_err(failure);
    }
    let survey = Survey::open(&options).map_err(failure)?;
    let data = survey.summary();
    if !terminal.is_json() {
        train::show_data(&data, terminal);
    }
    let plan = survey.plan().map_err(failure)?;
    let estimate = |terminal: &mut Terminal| match arguments.probe {
        true => survey.probe(&mut |event| show_loading(&event, terminal)).map(Some).map_err(failure),
        false => Ok(None),
    };
    if terminal.is_json() {
        let estimate = estimate(terminal)?;
        terminal.json(&json!({"event": "plan", "data": data, "plan": plan, "estimate": estimate}));
        return Ok(());
    }
    train::show_plan(&plan, terminal);
    terminal.row(
        "chosen",
        format!(
            "micro-batches of up to {} tokens · {} layers keep what the backward pass needs, the others run again",
            show::count(plan.micro_batch_tokens as u64),
            plan.kept_layers
        ),
    );
    terminal.row("disk", format!("{} for checkpoints and the adapter", bytes::show(plan.disk_bytes)));
    match estimate(terminal)? {
        Some(estimate) => show_estimate(&estimate, terminal),
        None => terminal.more("how long it will take is measured with --probe"),
    }
    Ok(())
}

fn show_loading(event: &Event, terminal: &mut Terminal) {
    if let Event::Loading { done, total } = event {
        terminal.progress_on_screen(*done as u64, *total as u64, "reading the base");
    }
}

fn show_estimate(estimate: &Estimate, terminal: &mut Terminal) {
    let &Estimate { training_seconds, forward_seconds, .. } = estimate;
    let speed = |tokens_per_second: f64| show::count(tokens_per_second as u64);
    terminal.row(
        "time",
        format!(
            "about {}: {} tokens at {} a second, {} for validation{}",
            show::seconds(training_seconds + forward_seconds),
            show::count(estimate.training_tokens),
            speed(estimate.training_tokens_per_second),
            show::seconds(forward_seconds),
            " · answers that are generated come on top"
        ),
    );
}

/// A line for each context: what training takes with rows of up to so many tokens, longer ones being cut.
fn sweep(contexts: &[usize], options: &Options, terminal: &mut Terminal) -> Result<(), Error> {
    for &max_seq_len in contexts {
        let mut options = options.clone();
        options.data.max_seq_len = max_seq_len;
        if options.data.on_too_long == OnTooLong::Error {
            options.data.on_too_long = OnTooLong::Truncate;
        }
        let survey = Survey::open(&options)?;
        let cut = survey.summary();
        match survey.plan() {
            Ok(plan) if terminal.is_json() => {
                terminal.json(&json!({"event": "plan", "max_seq_len": max_seq_len, "plan": plan}));
            }
            Ok(plan) => terminal.row(
                "context",
                format!(
                    "{:>7} · {:>10} · micro-batches of {} tokens · longest row {} · {} rows cut, {} left out{}",
                    show::count(max_seq_len as u64),
                    bytes::show(plan.total_bytes),
                    show::count(plan.micro_batch_tokens as u64),
                    cut.longest_row_tokens,
                    show::count(cut.truncated_rows as u64),
                    show::count(cut.dropped_rows as u64),
                    plan.passing.map_or_else(String::new, |passing| format!(
                        " · weights of {} of {} layers pass through memory",
                        passing.layers, passing.n_layers
                    ))
                ),
            ),
            Err(Error::BudgetTooSmall { need_bytes, have_bytes, would_fit }) if terminal.is_json() => {
                terminal.json(&json!({
                    "event": "plan", "max_seq_len": max_seq_len, "need_bytes": need_bytes,
                    "have_bytes": have_bytes, "would_fit": would_fit,
                }));
            }
            Err(Error::BudgetTooSmall { need_bytes, have_bytes, .. }) => terminal.row(
                "context",
                format!(
                    "{:>7} · {:>10} · does not fit into {}",
                    show::count(max_seq_len as u64),
                    bytes::show(need_bytes),
                    bytes::show(have_bytes)
                ),
            ),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
