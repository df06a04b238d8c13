//! The top of the page: what run it is, how it stands, and its figures at a glance.

use super::html::Html;
use super::numbers::{bytes, count, date_time, duration, figure};
use crate::course::Course;
use crate::event::{End, ExactMatch, PreferenceFigures};
use crate::record::RunRecord;

/// Name, state, base and time of the run.
pub fn header(name: &str, record: &RunRecord, course: &Course, html: &mut Html) {
    let total = record.outcome.total_steps;
    html.element("header", &[], |html| {
        html.leaf("h1", "", name);
        let (outcome, last_step) = (&record.outcome, course.last_step());
        match (outcome.is_finished, outcome.end) {
            (true, Some(End::EarlyStopping)) => html.leaf(
                "span",
                "badge good",
                &format!("finished, stopped early after step {}", count(last_step)),
            ),
            (true, _) => html.leaf("span", "badge good", "finished"),
            (false, _) => html.leaf("span", "badge", &not_finished(last_step, total)),
        };
        let started = record.started_at.map(|at| format!("begun {}", date_time(at)));
        let program = record.program.as_ref().map(|version| format!("tune {version}"));
        let base = format!("base {}", record.base_name());
        let result = outcome.result_step.filter(|step| *step != last_step);
        let result = result.map(|step| format!("the result is the adapter of step {}", count(step)));
        let parts: Vec<_> = [Some(base), result, started, program].into_iter().flatten().collect();
        html.leaf("span", "note", &parts.join(" · "));
    });
}

fn not_finished(last_step: u64, total: u64) -> String {
    format!("not finished: step {} of {}", count(last_step), count(total))
}

/// The figures that a reader looks for first.
pub fn tiles(record: &RunRecord, course: &Course, html: &mut Html) {
    let outcome = &record.outcome;
    html.element("dl", &[("class", "tiles")], |html| {
        let before = course.base_validation_loss().or(outcome.base_validation_loss);
        let after = course.validation_loss(outcome);
        if before.is_some() || after.is_some() {
            let best = course.best_validation_loss().filter(|(_, step)| *step > 0);
            let note = best.map(|(loss, step)| format!("lowest {} at step {}", figure(loss), count(step)));
            tile("Validation loss", &change(before.map(figure), after.map(figure)), note, html);
        }
        if let Some(loss) = course.train_loss() {
            tile("Training loss", &figure(loss), Some("of the last step".into()), html);
        }
        if let [(first, before), .., (_, after)] = course.preferences.as_slice() {
            let share = |figures: &PreferenceFigures| format!("{:.0} %", 100.0 * figures.accuracy);
            let before = (*first == 0).then(|| share(before));
            let note = Some(format!("of the held-out pairs, margin {}", figure(after.margin)));
            tile("Better answer preferred", &change(before, Some(share(after))), note, html);
        }
        let (base, adapter) = exact_matches(record, course);
        if let Some(rows) = adapter.or(base).map(|figures| figures.rows) {
            let share = |figures: ExactMatch| format!("{:.1} %", 100.0 * figures.share());
            let note = Some(format!("of {} held-out rows", count(rows as u64)));
            tile("Exact match", &change(base.map(share), adapter.map(share)), note, html);
        }
        let steps = format!("{} of {}", count(course.last_step()), count(outcome.total_steps));
        let epochs = course.epoch.map(|epoch| format!("{epoch:.2} passes over the data"));
        tile("Steps", &steps, epochs, html);
        if outcome.seconds > 0.0 {
            tile("Time", &duration(outcome.seconds), Some(sittings(course)), html);
        }
        if let Some(rate) = median(course.steps.iter().map(|point| point.tokens_per_second)) {
            tile(
                "Speed",
                &format!("{} tokens/s", count(rate as u64)),
                Some("median of the steps".into()),
                html,
            );
        }
        let measured = outcome.memory_bytes.or(course.steps.last().and_then(|point| point.memory_bytes));
        if let Some(measured) = measured {
            let note = Some(format!("{} planned", bytes(outcome.planned_bytes)));
            tile("Memory", &bytes(measured), note, html);
        }
        if !course.skipped.is_empty() {
            let note = Some("why is said below".into());
            tile("Skipped steps", &count(course.skipped.len() as u64), note, html);
        }
    });
}

fn sittings(course: &Course) -> String {
    match course.resumed.len() {
        0 => "in one sitting".into(),
        1 => "in two sittings".into(),
        n => format!("in {} sittings", n + 1),
    }
}

fn tile(title: &'static str, value: &str, note: Option<String>, html: &mut Html) {
    html.element("div", &[("class", "tile")], |html| {
        html.leaf("dt", "", title).leaf("dd", "", value);
        if let Some(note) = note {
            html.leaf("dd", "note", &note);
        }
    });
}

/// `before → after`, or what there is of it.
pub fn change(before: Option<String>, after: Option<String>) -> String {
    match (before, after) {
        (Some(before), Some(after)) => format!("{before} → {after}"),
        (Some(before), None) => format!("{before} → …"),
        (None, Some(after)) => after,
        (None, None) => "–".into(),
    }
}

/// Exact match of the base, and of the adapter the last time it was measured.
pub fn exact_matches(record: &RunRecord, course: &Course) -> (Option<ExactMatch>, Option<ExactMatch>) {
    let after = course.exact_matches.iter().rev().find(|(step, _)| *step > 0).map(|(_, figures)| *figures);
    (record.outcome.base_exact_match, after.or(record.outcome.adapter_exact_match))
}

fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.filter(|value| value.is_finite()).collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}
