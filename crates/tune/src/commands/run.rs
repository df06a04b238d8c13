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
use runner::pipeline::{
    Cut, Event, ItemResult, Outcome, Programs, Round, RunOptions, State, StepKind, replies,
};
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
        programs: programs(arguments.allow_programs),
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
        Err(error @ runner::Error::ProgramRefused { .. }) => {
            Err(Failure::new(error).hint("read it, then allow it with --allow-programs"))
        }
        Err(error) if error.hint().is_some() => Err(failure::of_runner(&error)),
        Err(error) => Err(resumable(Failure::new(error), arguments, run_id)),
    }
}

/// Programs that a pipeline lists are found where this process would find them.
pub fn programs(is_allowed: bool) -> Programs {
    match is_allowed {
        true => Programs::Allowed { path: std::env::var_os("PATH").unwrap_or_default() },
        false => Programs::Refused,
    }
}

fn resumable(failure: Failure, arguments: &Run, run_id: Option<String>) -> Failure {
    let Some(id) = run_id else { return failure };
    let (pipeline, input) = (arguments.pipeline.display(), arguments.input.display());
    let runs = arguments.runs.as_ref().map_or_else(String::new, |runs| format!(" --runs {}", runs.display()));
    let programs = if arguments.allow_programs { " --allow-programs" } else { "" };
    failure.hint(format!("continue with: tune run {pipeline} --input {input}{runs}{programs} --resume {id}"))
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
        Event::StepStarted { step, kind, experts, n_items } => {
            terminal.row("step", format!("{step} · {} · {}", who(*kind, experts), many(*n_items, "item")));
        }
        Event::Prompt { .. } | Event::Text { .. } => {}
        Event::Repair { step, item, attempt, objections } => {
            terminal.warning(format!(
                "{step}, item {}: attempt {attempt}, since {}",
                item + 1,
                objections.join("; ")
            ));
        }
        Event::Cut { step, item, cut } => {
            terminal.warning(format!("{step}, item {}: {}", item + 1, cut_line(cut)));
        }
        Event::Verified { step, item, round } => verified(terminal, step, *item, round),
        Event::ItemFinished(result) => item(terminal, result),
        Event::StepFinished { step, n_computed, n_objected, n_skipped, n_failed, ms } => {
            let counts = [(*n_objected, "objected to"), (*n_skipped, "skipped"), (*n_failed, "failed")];
            let counts: String =
                counts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!(" · {n} {what}")).collect();
            terminal.more(format!(
                "{step}: {} in {}{counts}",
                many(*n_computed, "item"),
                show::seconds(ms / 1e3)
            ));
        }
        Event::RunFinished { .. } => {}
        Event::Residency(event) => residency_row(terminal, event),
    }
}

/// Who does a step.
pub fn who(kind: StepKind, experts: &[String]) -> String {
    match (kind, experts) {
        (StepKind::Retrieve, []) => "by words".into(),
        (_, []) => "rules".into(),
        (_, [one]) => format!("expert {one}"),
        (_, several) => format!("experts {}", several.join(", ")),
    }
}

/// `1 item`, `5 items`
pub fn many(n: usize, one: &str) -> String {
    if n == 1 { format!("1 {one}") } else { format!("{n} {one}s") }
}

/// What of a prompt was cut, in one line.
pub fn cut_line(cut: &Cut) -> String {
    let how = match &cut.by {
        Some(expert) => format!("compressed by {expert}"),
        None => "cut".into(),
    };
    format!(
        "`{}` was {how} from {} to {}: the prompt had {} tokens, now {}, with room for {}",
        cut.part,
        bytes::show(cut.before_bytes as u64),
        bytes::show(cut.after_bytes as u64),
        cut.before_tokens,
        cut.after_tokens,
        cut.room_tokens
    )
}

/// One round of a step that is verified.
fn verified(terminal: &mut Terminal, step: &str, item: usize, round: &Round) {
    match round.objections.is_empty() {
        true if round.round == 1 => {}
        true => terminal.more(format!(
            "{step}, item {}: round {} by {} passes",
            item + 1,
            round.round,
            round.expert
        )),
        false => terminal.warning(format!(
            "{step}, item {}: round {} by {}, objected to by {}: {}",
            item + 1,
            round.round,
            round.expert,
            round.by,
            round.objections.join("; ")
        )),
    }
}

fn item(terminal: &mut Terminal, result: &ItemResult) {
    // The end of the step says how many.
    if result.state == State::Skipped {
        return;
    }
    let mut line = format!("{:>3}  {}", result.item + 1, gist(result));
    if result.output_tokens > 0 {
        let rate = result.output_tokens as f64 / (result.decode_ms / 1e3).max(1e-9);
        line += &format!(
            "   [{} + {} tokens, {:.0} + {:.0} ms, {rate:.0} tokens/s]",
            result.prompt_tokens, result.output_tokens, result.prompt_ms, result.decode_ms
        );
    }
    terminal.more(line);
    // Those of rounds were told with them.
    for objection in result.objections.iter().filter(|_| result.rounds.is_empty() || result.resumed) {
        terminal.warning(format!("{}, item {}: {objection}", result.step, result.item + 1));
    }
}

/// What came of an item, in one line.
pub fn gist(result: &ItemResult) -> String {
    let note = result.note.as_deref().unwrap_or_default();
    match (result.state, result.kind) {
        (State::Skipped, _) => format!("skipped: {note}"),
        (State::Failed, _) => format!("failed: {note}"),
        (State::Done, StepKind::Route) => format!("→ {}", result.output),
        (State::Done, StepKind::Check) if result.objections.is_empty() => "ok".into(),
        (State::Done, StepKind::Check) => many(result.objections.len(), "objection"),
        (State::Done, StepKind::Retrieve) if result.sources.is_empty() => format!("nothing: {note}"),
        (State::Done, StepKind::Retrieve) => result.sources.join(" · "),
        (State::Done, StepKind::Generate) => result.output.trim().replace('\n', " ⏎ "),
    }
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
        ResidencyEvent::Switched { expert, from, switch_ms } => terminal
            .row("switched", format!("{from} → {expert} in {} · same base", show::brief(switch_ms / 1e3))),
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
    if !terminal.is_json() {
        for output in replies(&outcome.results) {
            terminal.result(output.trim_end());
        }
    }
    let count = |state: State| outcome.results.iter().filter(|result| result.state == state).count();
    let mut done = format!(
        "{} · {} objected to",
        many(outcome.n_loads as usize, "load"),
        many(outcome.n_objected, "result")
    );
    for (state, what) in [(State::Skipped, "skipped"), (State::Failed, "failed")] {
        if count(state) > 0 {
            done += &format!(" · {} {what}", count(state));
        }
    }
    terminal.row("done", done);
    terminal.row("wrote", outcome.directory.display().to_string());
    Ok(())
}
