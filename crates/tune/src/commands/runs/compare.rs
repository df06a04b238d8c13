//! `tune runs compare`: the options that differ, and the figures side by side.

use super::list::{aligned, change, percent, state};
use super::{NONE, find};
use crate::bytes;
use crate::cli::CompareRuns;
use crate::failure::Failure;
use crate::show;
use crate::terminal::{Terminal, harmless};
use serde_json::{Map, json};
use std::path::Path;
use trainer::runs::Summary;

/// Longer values are cut in the table.
const LONGEST_VALUE: usize = 40;

/// Compares the runs, on the terminal and in a page if one is asked for.
pub fn run(folder: &Path, arguments: &CompareRuns, terminal: &mut Terminal) -> Result<(), Failure> {
    let (mut summaries, mut runs) = (Vec::new(), Vec::new());
    for name in &arguments.runs {
        let run_dir = find(folder, name)?;
        summaries.push(trainer::runs::summary(&run_dir)?);
        let (record, course) = trainer::runs::read(&run_dir)?;
        runs.push((run_dir, record, course));
    }
    let names = distinct(&summaries);
    let records: Vec<_> = runs.iter().map(|(_, record, _)| record).collect();
    let differing = trainer::runs::differing_options(&records);
    if let Some(path) = &arguments.html {
        let named = names.iter().zip(runs.iter().cloned());
        let named: Vec<_> = named.map(|(name, (_, record, course))| (name.clone(), record, course)).collect();
        formats::atomic::write_bytes(path, trainer::runs::comparison_page(&named).as_bytes())?;
    }
    if terminal.is_json() {
        let options: Map<String, _> =
            differing.into_iter().map(|(key, values)| (key, json!(values))).collect();
        terminal.json(&json!({"runs": summaries, "differing_options": options, "html": arguments.html}));
        return Ok(());
    }
    for line in table(&names, &summaries, &differing) {
        terminal.result(&harmless(&line));
    }
    if let Some(path) = &arguments.html {
        terminal.row("wrote", path.display().to_string());
    }
    Ok(())
}

/// Names of the runs, or their paths where two have the same name.
fn distinct(summaries: &[Summary]) -> Vec<String> {
    let is_shared = |name: &str| summaries.iter().filter(|summary| summary.name == name).count() > 1;
    let name = |summary: &Summary| match is_shared(&summary.name) {
        true => summary.path.display().to_string(),
        false => summary.name.clone(),
    };
    summaries.iter().map(name).collect()
}

fn table(names: &[String], summaries: &[Summary], differing: &[(String, Vec<String>)]) -> Vec<String> {
    let mut rows = vec![[String::new()].into_iter().chain(names.iter().cloned()).collect::<Vec<_>>()];
    let mut row = |key: &str, values: Vec<String>| {
        rows.push([key.to_owned()].into_iter().chain(values).collect());
    };
    let each = |value: &dyn Fn(&Summary) -> String| summaries.iter().map(value).collect::<Vec<_>>();
    let nats = |loss: Option<f64>| loss.map_or_else(|| NONE.into(), show::nats);
    row("state", each(&|run| state(&run.standing).into()));
    row("steps", each(&|run| format!("{}/{}", show::count(run.steps), show::count(run.total_steps))));
    row("loss", each(&|run| nats(run.train_loss)));
    row(
        "validation loss",
        each(&|run| change(run.base_validation_loss.map(show::nats), run.validation_loss.map(show::nats))),
    );
    row(
        "lowest",
        each(&|run| {
            let best = run.best_validation_loss;
            best.map_or_else(|| NONE.into(), |(loss, step)| format!("{} at step {step}", show::nats(loss)))
        }),
    );
    row(
        "exact match",
        each(&|run| change(run.base_exact_match.map(percent), run.adapter_exact_match.map(percent))),
    );
    row("time", each(&|run| show::seconds(run.seconds)));
    row("size", each(&|run| bytes::show(run.bytes)));
    row("", Vec::new());
    for (key, values) in differing {
        row(key, values.iter().map(|value| cut(value)).collect());
    }
    let mut lines = aligned(&rows, &[]);
    if differing.is_empty() {
        lines.push("the options and the contents of all inputs are the same".into());
    }
    lines
}

fn cut(value: &str) -> String {
    if value.chars().count() <= LONGEST_VALUE {
        return value.to_owned();
    }
    value.chars().take(LONGEST_VALUE - 1).chain(['…']).collect()
}
