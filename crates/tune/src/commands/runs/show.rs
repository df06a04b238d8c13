//! `tune runs show`: one run.

use super::list::{change, percent, state};
use crate::bytes;
use crate::commands::train;
use crate::failure::Failure;
use crate::show;
use crate::terminal::{Terminal, harmless};
use serde_json::json;
use std::path::Path;
use trainer::course::Course;
use trainer::record::{RunRecord, input_hashes, recipe_options};
use trainer::run_dir::RunDir;
use trainer::runs::{Standing, Summary, tree_bytes};

/// Shows how the run stands, what came of it, and what it was made from.
pub fn run(run_dir: &RunDir, terminal: &mut Terminal) -> Result<(), Failure> {
    let summary = trainer::runs::summary(run_dir)?;
    let (record, course) = trainer::runs::read(run_dir)?;
    if terminal.is_json() {
        let mut shown = json!(summary);
        shown["options"] = json!(record.options);
        shown["inputs"] = json!(record.inputs);
        shown["data"] = json!(record.data);
        shown["plan"] = json!(record.plan);
        shown["program"] = json!(record.program);
        shown["validations"] = json!(course.validations);
        shown["skipped"] = json!(course.skipped);
        shown["resumed"] = json!(course.resumed);
        terminal.json(&shown);
        return Ok(());
    }
    for line in lines(run_dir, &summary, &record, &course)? {
        terminal.result(&harmless(&line));
    }
    Ok(())
}

fn lines(
    run_dir: &RunDir,
    summary: &Summary,
    record: &RunRecord,
    course: &Course,
) -> Result<Vec<String>, Failure> {
    let mut lines = Vec::new();
    let mut row = |key: &str, text: String| lines.push(format!("{key:<9}{text}").trim_end().to_owned());
    row("run", format!("{} · {}", summary.path.display(), standing(&summary.standing)));
    row("base", summary.base.clone());
    if let Some(data) = &record.data {
        let rows = |n: usize| show::count(n as u64);
        row(
            "data",
            format!(
                "{} rows · {} tokens, {} of them learnt · longest row {} · {} rows for validation, {} for the test",
                rows(data.train_rows),
                show::count(data.train_tokens),
                show::count(data.target_tokens),
                rows(data.longest_row_tokens),
                rows(data.validation_rows),
                rows(data.test_rows)
            ),
        );
        for (n, what) in [(data.dropped_rows, "left out"), (data.truncated_rows, "cut")] {
            if n > 0 {
                row("", format!("{} rows {what} for their length", rows(n)));
            }
        }
    }
    if let Some(plan) = &record.plan {
        row("plan", format!("{} · {}", bytes::show(plan.total_bytes), train::planned_steps(plan)));
    }
    let sittings = course.resumed.len() + 1;
    let sittings = if sittings == 1 { String::new() } else { format!(" · {sittings} sittings") };
    let time =
        if summary.seconds > 0.0 { format!(" in {}", show::seconds(summary.seconds)) } else { String::new() };
    row(
        "steps",
        format!("{} of {}{time}{sittings}", show::count(summary.steps), show::count(summary.total_steps)),
    );
    if !course.skipped.is_empty() {
        row("", format!("{} skipped: the report says why", course.skipped.len()));
    }
    if let Some(loss) = summary.train_loss {
        row("loss", format!("{} in the last step", show::nats(loss)));
    }
    if summary.validation_loss.or(summary.base_validation_loss).is_some() {
        let best = summary.best_validation_loss.filter(|(_, step)| *step > 0);
        let best = best.map(|(loss, step)| format!(" · lowest {} at step {step}", show::nats(loss)));
        let losses =
            change(summary.base_validation_loss.map(show::nats), summary.validation_loss.map(show::nats));
        row("check", format!("validation loss {losses}{}", best.unwrap_or_default()));
    }
    if let Some(figures) = summary.adapter_exact_match.or(summary.base_exact_match) {
        let matched = change(summary.base_exact_match.map(percent), summary.adapter_exact_match.map(percent));
        row("match", format!("exact match {matched} of {} rows", show::count(figures.rows as u64)));
    }
    if let Some(measured) = record.outcome.memory_bytes {
        row(
            "memory",
            format!("{} used, {} planned", bytes::show(measured), bytes::show(record.outcome.planned_bytes)),
        );
    }
    for (index, (name, size)) in parts(run_dir)?.into_iter().enumerate() {
        row(if index == 0 { "files" } else { "" }, format!("{size:>10}  {name}"));
    }
    let differing = changed_options(record);
    for (index, (key, value)) in differing.iter().enumerate() {
        row(if index == 0 { "options" } else { "" }, format!("{key} = {value}"));
    }
    if !differing.is_empty() {
        row("", "all others as they are by default".into());
    }
    let hashes = input_hashes(&record.inputs).into_iter().filter(|(_, hash)| !hash.is_empty());
    for (index, (name, hash)) in hashes.enumerate() {
        row(if index == 0 { "blake3" } else { "" }, format!("{hash}  {}", name.replace('_', " ")));
    }
    if let Some(version) = &record.program {
        row("made by", format!("tune {version}"));
    }
    row("next", next(run_dir.path(), &summary.standing));
    Ok(lines)
}

fn standing(standing: &Standing) -> String {
    match standing {
        Standing::Running { pid } => format!("running, process {pid}"),
        Standing::Interrupted { checkpoint: 0 } => "interrupted before its first checkpoint".into(),
        Standing::Interrupted { checkpoint } => format!("interrupted, goes on after step {checkpoint}"),
        other => state(other).into(),
    }
}

fn next(path: &Path, standing: &Standing) -> String {
    match standing {
        Standing::Finished => format!("tune export {}", path.display()),
        Standing::Running { .. } => format!("tune runs report {}", path.display()),
        Standing::Interrupted { .. } => {
            format!("tune train {} --run-dir {} --resume", path.join("recipe.toml").display(), path.display())
        }
    }
}

/// What lies in the folder, and its size.
fn parts(run_dir: &RunDir) -> Result<Vec<(String, String)>, Failure> {
    let mut parts = Vec::new();
    for entry in std::fs::read_dir(run_dir.path())? {
        let entry = entry?;
        let is_dir = entry.file_type()?.is_dir();
        let name = format!("{}{}", entry.file_name().to_string_lossy(), if is_dir { "/" } else { "" });
        if name != "lock" {
            parts.push((name, bytes::show(tree_bytes(&entry.path())?)));
        }
    }
    parts.sort();
    Ok(parts)
}

/// Options that are not what they would be without a recipe.
fn changed_options(record: &RunRecord) -> Vec<(String, String)> {
    let default = recipe_options(&trainer::Options::default());
    let mut options = recipe_options(&record.options);
    options.retain(|option| {
        option.0 != "run_dir" && !option.0.starts_with("model.hub") && !default.contains(option)
    });
    options
}
