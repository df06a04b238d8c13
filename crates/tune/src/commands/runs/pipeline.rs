//! `tune runs show` of a pipeline's run: steps, times of load, prompt and decode, tokens, swaps, memory.

use super::NONE;
use super::list::aligned;
use crate::bytes;
use crate::commands::run::{cut_line, gist, many};
use crate::failure::Failure;
use crate::pipeline_file;
use crate::show;
use crate::terminal::{Terminal, harmless};
use runner::pipeline::{ItemResult, RunRecord, RunSummary, State, history, read_run};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Runs of pipelines that the list shows.
const LISTED: usize = 10;

/// The folder that the runs of pipelines lie in, within that of all runs.
pub fn folder(runs: &Path) -> PathBuf {
    match runs == Path::new("runs") {
        true => pipeline_file::runs(),
        false => runs.join("pipelines"),
    }
}

/// The folder and the id of a pipeline's run, if there is one of that name in the folder of runs, or at that path.
pub fn find(runs: &Path, name: &Path) -> Option<(PathBuf, String)> {
    let id = name.file_name()?.to_str()?.to_owned();
    let beside = name.parent().filter(|parent| !parent.as_os_str().is_empty()).map(Path::to_path_buf);
    let folders = [Some(folder(runs)), Some(runs.to_path_buf()), beside];
    let has = |folder: &PathBuf, file: &str| folder.join(&id).join(file).is_file();
    let holds = |folder: &PathBuf| has(folder, "journal.jsonl") && !has(folder, "run.json");
    let folder = folders.into_iter().flatten().find(holds)?;
    Some((folder, id))
}

/// The newest runs, one a line.
pub fn list(runs: &Path, terminal: &mut Terminal) -> Result<(), Failure> {
    let newest = history(&folder(runs), LISTED)?;
    if terminal.is_json() {
        newest.iter().for_each(|run| terminal.json(run));
        return Ok(());
    }
    if newest.is_empty() {
        return Ok(());
    }
    let heads = ["pipeline run", "pipeline", "state", "results", "loads", "time"].map(str::to_owned);
    let rows: Vec<_> = std::iter::once(heads).chain(newest.iter().map(row)).collect();
    terminal.result("");
    for line in aligned(&rows, &[true, true, true, false, false, false]) {
        terminal.result(&harmless(&line));
    }
    Ok(())
}

fn row(run: &RunSummary) -> [String; 6] {
    let ended = run.ended.as_ref();
    [
        run.run.clone(),
        run.begun.pipeline.clone(),
        state(run).to_owned(),
        show::count(run.n_items as u64),
        ended.map_or_else(|| NONE.into(), |ended| show::count(ended.n_loads)),
        ended.map_or_else(|| NONE.into(), |ended| show::seconds(ended.ms / 1e3)),
    ]
}

fn state(run: &RunSummary) -> &'static str {
    match (run.is_running, run.ended.is_some()) {
        (true, _) => "running",
        (false, true) => "finished",
        (false, false) => "interrupted",
    }
}

/// Shows one run.
pub fn show(folder: &Path, id: &str, terminal: &mut Terminal) -> Result<(), Failure> {
    let record = read_run(folder, id)?;
    if terminal.is_json() {
        terminal.json(&record);
        return Ok(());
    }
    for line in lines(folder, &record) {
        terminal.result(&harmless(&line));
    }
    Ok(())
}

fn lines(folder: &Path, record: &RunRecord) -> Vec<String> {
    let summary = &record.summary;
    let mut lines = Vec::new();
    let mut row = |key: &str, text: String| lines.push(format!("{key:<9}{text}").trim_end().to_owned());
    row("run", format!("{} · {}", folder.join(&summary.run).display(), state(summary)));
    row("pipeline", format!("{} · {}", summary.begun.pipeline, summary.begun.steps.join(" → ")));
    row("input", bytes::show(record.input.len() as u64));
    for (i, (name, value)) in summary.begun.params.iter().enumerate() {
        row(if i == 0 { "params" } else { "" }, format!("{name} = {value}"));
    }
    if let Some(ended) = &summary.ended {
        row("time", show::seconds(ended.ms / 1e3));
    }
    let n_loads = record.loads.len();
    // A run that was cut loads its expert anew: that is no swap.
    let n_swaps = record.loads.windows(2).filter(|pair| pair[0].expert != pair[1].expert).count();
    let load_ms: f64 = record.loads.iter().map(|load| load.load_ms).sum();
    row("loads", format!("{n_loads} in {} · {}", show::seconds(load_ms / 1e3), many(n_swaps, "swap")));
    for load in &record.loads {
        row(
            "",
            format!(
                "{} in {} · {} (weights {}, context {}, compute {}) · {} free after",
                load.expert,
                show::seconds(load.load_ms / 1e3),
                bytes::show(load.takes.total_bytes()),
                bytes::show(load.takes.weights_bytes),
                bytes::show(load.takes.context_bytes),
                bytes::show(load.takes.compute_bytes),
                bytes::show(load.free_bytes)
            ),
        );
    }
    if !record.switches.is_empty() {
        let ms: f64 = record.switches.iter().map(|switch| switch.switch_ms).sum();
        let slowest = record.switches.iter().map(|switch| switch.switch_ms).fold(0.0, f64::max);
        row(
            "switches",
            format!(
                "{} of adapters over one base in {} · {} the slowest",
                record.switches.len(),
                show::brief(ms / 1e3),
                show::brief(slowest / 1e3)
            ),
        );
    }
    if let Some(most) = record.loads.iter().map(|load| load.takes.total_bytes()).max() {
        row("memory", format!("{} at most, of one expert", bytes::show(most)));
    }
    lines.push(String::new());
    lines.extend(steps(record));
    for step in &summary.begun.steps {
        lines.push(String::new());
        lines.extend(items(record, step));
    }
    if summary.ended.is_none() && !summary.is_running {
        lines.push(format!("next     tune run … --resume {}", summary.run));
    }
    lines
}

/// A table: what each step took, and all together.
fn steps(record: &RunRecord) -> Vec<String> {
    let heads = [
        "step",
        "items",
        "skipped",
        "failed",
        "objected",
        "asked",
        "prompt",
        "decode",
        "tokens in",
        "tokens out",
        "tokens/s",
    ];
    let mut rows = vec![heads.map(str::to_owned)];
    for name in &record.summary.begun.steps {
        let results: Vec<&ItemResult> = record.results.iter().filter(|result| result.step == *name).collect();
        rows.push(figures(name, &results));
    }
    if record.summary.begun.steps.len() > 1 {
        rows.push(figures("all", &record.results.iter().collect::<Vec<_>>()));
    }
    let mut left = [false; 11];
    left[0] = true;
    aligned(&rows, &left)
}

fn figures(name: &str, results: &[&ItemResult]) -> [String; 11] {
    let count = |n: usize| if n == 0 { NONE.to_owned() } else { show::count(n as u64) };
    let number = |test: &dyn Fn(&ItemResult) -> bool| count(results.iter().filter(|r| test(r)).count());
    let seconds = |ms: f64| if ms > 0.0 { show::seconds(ms / 1e3) } else { NONE.to_owned() };
    let prompt_ms: f64 = results.iter().map(|result| result.prompt_ms).sum();
    let decode_ms: f64 = results.iter().map(|result| result.decode_ms).sum();
    let output_tokens: usize = results.iter().map(|result| result.output_tokens).sum();
    [
        name.to_owned(),
        count(results.len()),
        number(&|result| result.state == State::Skipped),
        number(&|result| result.state == State::Failed),
        number(&|result| !result.objections.is_empty()),
        count(results.iter().filter(|result| result.expert.is_some()).map(|r| r.attempts as usize).sum()),
        seconds(prompt_ms),
        seconds(decode_ms),
        count(results.iter().map(|result| result.prompt_tokens).sum()),
        count(output_tokens),
        if decode_ms > 0.0 {
            format!("{:.0}", output_tokens as f64 / (decode_ms / 1e3))
        } else {
            NONE.to_owned()
        },
    ]
}

/// The results of a step by item; those it was skipped for, for one reason, in one line.
fn items(record: &RunRecord, step: &str) -> Vec<String> {
    let mut results: Vec<&ItemResult> = record.results.iter().filter(|result| result.step == step).collect();
    results.sort_by_key(|result| result.item);
    let mut skipped: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut lines = Vec::new();
    for result in results {
        match result.state {
            State::Skipped => skipped.entry(gist(result)).or_default().push((result.item + 1).to_string()),
            State::Done | State::Failed => lines.extend(item(result)),
        }
    }
    lines.extend(skipped.into_iter().map(|(why, items)| format!("{step} {}: {why}", items.join(", "))));
    lines
}

/// One result: what came of it, and everything that was done to get there.
fn item(result: &ItemResult) -> Vec<String> {
    let mut lines = vec![format!("{} {}: {}", result.step, result.item + 1, gist(result))];
    if let Some(cut) = &result.cut {
        lines.push(format!("         {}", cut_line(cut)));
    }
    // A single round that passed is the answer itself.
    let rounds =
        if result.rounds.len() > 1 || !result.objections.is_empty() { &result.rounds[..] } else { &[] };
    for round in rounds {
        let verdict = match round.objections.is_empty() {
            true => format!("passed by {}", round.by),
            false => format!("objected to by {}: {}", round.by, round.objections.join("; ")),
        };
        let draft = round.draft.trim().replace('\n', " ⏎ ");
        lines.push(format!("         round {} by {}: {draft}", round.round, round.expert));
        lines.push(format!("           {verdict}"));
    }
    if rounds.is_empty() {
        lines.extend(result.objections.iter().map(|objection| format!("         objection: {objection}")));
    }
    lines
}
