//! `tune run`: a pipeline of experts over a file.

use crate::bytes;
use crate::cli::Run;
use crate::failure::{self, Failure};
use crate::interrupt;
use crate::pipeline_file;
use crate::servers;
use crate::show;
use crate::terminal::Terminal;
use runner::Residency;
use runner::engine::ExpertMemory;
use runner::pipeline::{Event, ItemResult, Outcome, RunOptions};
use runner::residency::{Keeping, ResidencyEvent};
use std::io::Read;
use std::path::Path;
use std::sync::atomic::Ordering;

/// More than this is no text that someone wants to run through a small model.
const MAX_INPUT_BYTES: u64 = 64 << 20;

/// Runs the pipeline and prints what its last expert gave on standard output.
pub fn run(arguments: &Run, terminal: &mut Terminal) -> Result<(), Failure> {
    // It ends with this function, whatever comes.
    let _ollama = arguments.start_ollama.then(|| servers::start_ollama(terminal)).transpose()?;
    let pipeline = pipeline_file::read(&arguments.pipeline, &pipeline_file::registry())?;
    let input = input(&arguments.input)?;
    let options = RunOptions {
        runs: arguments.runs.clone().unwrap_or_else(pipeline_file::runs),
        resume: arguments.resume.clone(),
        ..RunOptions::default()
    };
    let cancel = interrupt::flag();
    let keeping = if arguments.one_at_a_time { Keeping::One } else { Keeping::WhereTheyFit };
    let engine = servers::engine(pipeline.experts().values())?;
    let mut residency = Residency::new(Box::new(engine)).keeping(keeping);
    let mut run_id = None;
    let outcome = runner::pipeline::run(
        &pipeline,
        &input,
        &options,
        &mut residency,
        &|| cancel.load(Ordering::SeqCst),
        &mut |event: Event| {
            if let Event::RunStarted { run, .. } = &event {
                run_id = Some(run.clone());
            }
            show(terminal, &event);
        },
    );
    terminal.clear_bar();
    match outcome {
        Ok(outcome) => finished(terminal, &outcome),
        Err(runner::Error::Cancelled) => {
            Err(resumable(Failure::interrupted("stopped; what was done is kept"), arguments, run_id))
        }
        // What would fit is a better hint than to try the same again.
        Err(error) if error.hint().is_some() => Err(failure::of_runner(&error)),
        Err(error) => Err(resumable(Failure::new(error), arguments, run_id)),
    }
}

fn resumable(failure: Failure, arguments: &Run, run_id: Option<String>) -> Failure {
    let Some(id) = run_id else { return failure };
    let (pipeline, input) = (arguments.pipeline.display(), arguments.input.display());
    failure.hint(format!("continue with: tune run {pipeline} --input {input} --resume {id}"))
}

fn input(path: &Path) -> Result<String, Failure> {
    let cannot = |error: std::io::Error| Failure::new(format!("cannot read {}: {error}", path.display()));
    let mut text = String::new();
    let from: Box<dyn Read> = if path == Path::new("-") {
        Box::new(std::io::stdin())
    } else {
        Box::new(std::fs::File::open(path).map_err(cannot)?)
    };
    from.take(MAX_INPUT_BYTES + 1).read_to_string(&mut text).map_err(cannot)?;
    if text.len() as u64 > MAX_INPUT_BYTES {
        return Err(Failure::new(format!(
            "{} has more than {}",
            path.display(),
            bytes::show(MAX_INPUT_BYTES)
        )));
    }
    Ok(text)
}

fn show(terminal: &mut Terminal, event: &Event) {
    if terminal.is_json() {
        terminal.json(event);
        return;
    }
    match event {
        Event::RunStarted { run, pipeline, steps, n_committed } => {
            terminal.row("run", format!("{run} · {pipeline}: {}", steps.join(" → ")));
            if *n_committed > 0 {
                terminal.more(format!("{n_committed} results are there from before"));
            }
        }
        Event::StepStarted { step, expert, n_items } => {
            let who = expert.as_ref().map_or_else(|| "rules".into(), |name| format!("expert {name}"));
            terminal.row("step", format!("{step} · {who} · {n_items} items"));
        }
        Event::Prompt { .. } | Event::Text { .. } => {}
        Event::Repair { step, item, attempt, objections } => {
            terminal.warning(format!(
                "{step}, item {}: attempt {attempt}, since {}",
                item + 1,
                objections.join("; ")
            ));
        }
        Event::ItemFinished(result) => item(terminal, result),
        Event::StepFinished { step, n_computed, n_objected, ms } => {
            let objections =
                if *n_objected > 0 { format!(" · {n_objected} objected to") } else { String::new() };
            terminal.more(format!("{step}: {n_computed} items in {}{objections}", show::seconds(ms / 1e3)));
        }
        Event::RunFinished { .. } => {}
        Event::Residency(event) => residency_row(terminal, event),
    }
}

fn item(terminal: &mut Terminal, result: &ItemResult) {
    let what = match (is_answer(result), result.objections.len()) {
        (true, _) => result.output.trim().replace('\n', " ⏎ "),
        (false, 0) => "ok".into(),
        (false, n) => format!("{n} objections"),
    };
    let mut line = format!("{:>3}  {what}", result.item + 1);
    if result.output_tokens > 0 {
        let rate = result.output_tokens as f64 / (result.decode_ms / 1e3).max(1e-9);
        line += &format!(
            "   [{} + {} tokens, {:.0} + {:.0} ms, {rate:.0} tokens/s]",
            result.prompt_tokens, result.output_tokens, result.prompt_ms, result.decode_ms
        );
    }
    terminal.more(line);
    for objection in &result.objections {
        terminal.warning(format!("{}, item {}: {objection}", result.step, result.item + 1));
    }
}

/// Whether an expert gave it; a check has no generation that could finish.
fn is_answer(result: &ItemResult) -> bool {
    result.finish.is_some()
}

fn residency_row(terminal: &mut Terminal, event: &ResidencyEvent) {
    match event {
        ResidencyEvent::Loaded { expert, load_ms, takes, memory } => terminal.row(
            "loaded",
            format!(
                "{expert} in {} · {} · {} free",
                show::seconds(load_ms / 1e3),
                takes_in_words(takes),
                bytes::show(memory.free_bytes)
            ),
        ),
        ResidencyEvent::Unloaded { expert, unload_ms, memory } => terminal.row(
            "unloaded",
            format!(
                "{expert} in {} · {} free",
                show::seconds(unload_ms / 1e3),
                bytes::show(memory.free_bytes)
            ),
        ),
        ResidencyEvent::Loading { .. } | ResidencyEvent::LoadProgress { .. } => {}
    }
}

/// A server tells the sum alone, or nothing.
fn takes_in_words(takes: &ExpertMemory) -> String {
    let total = bytes::show(takes.total_bytes());
    match (takes.weights_bytes, takes.context_bytes + takes.compute_bytes) {
        (0, 0) => "on its server".to_owned(),
        (_, 0) => format!("{total} on its server"),
        _ => format!(
            "{total} (weights {}, context {}, compute {})",
            bytes::show(takes.weights_bytes),
            bytes::show(takes.context_bytes),
            bytes::show(takes.compute_bytes)
        ),
    }
}

fn finished(terminal: &mut Terminal, outcome: &Outcome) -> Result<(), Failure> {
    let last = outcome.results.iter().rfind(|result| is_answer(result)).map(|result| result.step.as_str());
    if !terminal.is_json() {
        for result in outcome.results.iter().filter(|result| Some(result.step.as_str()) == last) {
            terminal.result(result.output.trim_end());
        }
    }
    terminal.row("done", format!("{} loads · {} results objected to", outcome.n_loads, outcome.n_objected));
    terminal.row("wrote", outcome.directory.display().to_string());
    Ok(())
}
