//! `tune runs`: one line a run.

use super::NONE;
use crate::bytes;
use crate::failure::Failure;
use crate::show;
use crate::terminal::{Terminal, harmless};
use std::path::Path;
use trainer::ExactMatch;
use trainer::runs::{Standing, Summary};

/// Longer names of bases are cut at their beginning, which they often share.
const LONGEST_BASE: usize = 28;

/// Lists the runs; one that cannot be read is named and does not hide the others.
pub fn run(folder: &Path, terminal: &mut Terminal) -> Result<(), Failure> {
    let mut rows = vec![HEADS.map(str::to_owned)];
    for run_dir in trainer::runs::find(folder)? {
        match trainer::runs::summary(&run_dir) {
            Ok(summary) if terminal.is_json() => terminal.json(&summary),
            Ok(summary) => rows.push(row(&summary)),
            Err(error) => terminal.warning(format!("{}: {error}", run_dir.path().display())),
        }
    }
    if terminal.is_json() {
        return Ok(());
    }
    if rows.len() == 1 {
        terminal.row("runs", format!("no training runs in {}", folder.display()));
        return Ok(());
    }
    for line in aligned(&rows, &LEFT) {
        terminal.result(&harmless(&line));
    }
    Ok(())
}

const HEADS: [&str; 9] =
    ["run", "base", "state", "steps", "loss", "validation loss", "exact match", "time", "size"];

/// Which columns begin at the left; numbers end at the right.
const LEFT: [bool; 9] = [true, true, true, false, false, false, false, false, false];

fn row(summary: &Summary) -> [String; 9] {
    [
        summary.name.clone(),
        base(&summary.base),
        state(&summary.standing).to_owned(),
        format!("{}/{}", show::count(summary.steps), show::count(summary.total_steps)),
        summary.train_loss.map_or_else(|| NONE.into(), show::nats),
        change(summary.base_validation_loss.map(show::nats), summary.validation_loss.map(show::nats)),
        change(summary.base_exact_match.map(percent), summary.adapter_exact_match.map(percent)),
        if summary.seconds > 0.0 { show::seconds(summary.seconds) } else { NONE.into() },
        bytes::show(summary.bytes),
    ]
}

fn base(base: &str) -> String {
    let length = base.chars().count();
    if length <= LONGEST_BASE {
        return base.to_owned();
    }
    std::iter::once('…').chain(base.chars().skip(length - LONGEST_BASE + 1)).collect()
}

/// One word for how a run stands.
pub fn state(standing: &Standing) -> &'static str {
    match standing {
        Standing::Running { .. } => "running",
        Standing::Finished => "finished",
        Standing::Interrupted { .. } => "interrupted",
    }
}

/// `97.5 %`
pub fn percent(figures: ExactMatch) -> String {
    format!("{:.1} %", 100.0 * figures.share())
}

/// `before → after`, or what there is of it.
pub fn change(before: Option<String>, after: Option<String>) -> String {
    match (before, after) {
        (Some(before), Some(after)) => format!("{before} → {after}"),
        (Some(one), None) | (None, Some(one)) => one,
        (None, None) => NONE.into(),
    }
}

/// Rows as lines, each column as wide as its longest text.
pub fn aligned<R: AsRef<[String]>>(rows: &[R], is_left: &[bool]) -> Vec<String> {
    let length = |text: &String| text.chars().count();
    let width =
        |column: usize| rows.iter().filter_map(|row| row.as_ref().get(column)).map(length).max().unwrap_or(0);
    let n_columns = rows.iter().map(|row| row.as_ref().len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..n_columns).map(width).collect();
    let line = |row: &R| {
        let cells =
            row.as_ref().iter().zip(&widths).enumerate().map(|(column, (text, &width))| {
                match is_left.get(column).copied().unwrap_or(true) {
                    true => format!("{text:<width$}"),
                    false => format!("{text:>width$}"),
                }
            });
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_by_characters() {
        let rows = [["run", "loss"], ["größer", "1.0 → 0.5"], ["x", "–"]].map(|row| row.map(str::to_owned));
        assert_eq!(
            aligned(&rows, &[true, false]),
            ["run          loss", "größer  1.0 → 0.5", "x               –"]
        );
        assert_eq!(base("Qwen/Qwen3-4B"), "Qwen/Qwen3-4B");
        assert_eq!(base(&"ab".repeat(20)), format!("…b{}", "ab".repeat(13)));
    }
}
