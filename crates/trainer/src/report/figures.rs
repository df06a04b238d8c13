//! The plots of a run, and the plot of several runs together.

use super::axis::{Axis, Kind, Scale};
use super::plot::{Line, Mark, Plot, Stroke};
use super::thin::{smooth, window};
use crate::course::{Course, StepPoint};
use crate::event::PreferenceFigures;
use crate::record::RunRecord;

const GIB: f64 = (1_u64 << 30) as f64;
const MIB: f64 = (1_u64 << 20) as f64;

/// Colours: what is trained, what is measured beside it.
const TRAINING: usize = 0;
const VALIDATION: usize = 1;
const PLAN: usize = 7;

/// All plots of a run, the loss first.
pub fn of_run(record: &RunRecord, course: &Course) -> Vec<Plot> {
    let mut plots = vec![loss(course)];
    if course.steps.iter().any(|point| point.preference.is_some()) {
        plots.extend(preferences(course));
    }
    plots.extend([
        one("Learning rate", "", Kind::FromZero, course, |point| Some(point.learning_rate)),
        smoothed("Gradient norm", "", Kind::Automatic, course, |point| Some(point.grad_norm)),
        smoothed("Speed", "tokens/s", Kind::FromZero, course, |point| Some(point.tokens_per_second)),
        memory(record, course),
    ]);
    plots
}

/// How often, and by how much, the better answers are preferred; and whether that is since they became likelier, or since
/// the worse ones fell faster.
fn preferences(course: &Course) -> [Plot; 4] {
    let plot = |title, unit, kind, value: fn(&PreferenceFigures) -> f64| {
        let mut plot = smoothed(title, unit, kind, course, |point| point.preference.as_ref().map(value));
        let points =
            course.preferences.iter().map(|(step, figures)| (*step as f64, value(figures))).collect();
        plot.lines.push(Line {
            name: "validation".into(),
            colour: VALIDATION,
            stroke: Stroke::Dotted,
            points,
        });
        plot
    };
    [
        plot("Better answer preferred", "% of the pairs", Kind::FromZero, |figures| 100.0 * figures.accuracy),
        plot("Margin of the rewards", "", Kind::FromZero, |figures| figures.margin),
        rewards(course),
        plot("Loss of the better answers", "nats a token", Kind::FromZero, |figures| figures.nll),
    ]
}

/// Both rewards, their mean over steps where these are many.
fn rewards(course: &Course) -> Plot {
    let line = |name: &str, colour, value: fn(&PreferenceFigures) -> f64| {
        let raw = points(course, |point| point.preference.as_ref().map(value));
        let points = smooth(&raw, window(raw.len()), Scale::Linear);
        Line { name: name.to_owned(), colour, stroke: Stroke::Solid, points }
    };
    let lines = vec![
        line("of the better answer", TRAINING, |figures| figures.rewards_chosen),
        line("of the worse answer", VALIDATION, |figures| figures.rewards_rejected),
    ];
    Plot { title: "Rewards", unit: "", kind: Kind::FromZero, lines, marks: marks(course) }
}

/// The losses of several runs, each under its name: the validation loss as it was measured, the training loss smoothed.
pub fn of_runs<'a>(runs: impl Iterator<Item = (&'a str, &'a Course)>) -> [Plot; 2] {
    let (mut measured, mut trained) = (Vec::new(), Vec::new());
    for (colour, (name, course)) in runs.enumerate() {
        let line = |stroke, points| Line { name: name.to_owned(), colour, stroke, points };
        let raw = points(course, |point| Some(point.loss));
        measured.push(line(Stroke::Dotted, validations(course)));
        trained.push(line(Stroke::Solid, smooth(&raw, window(raw.len()), scale(&raw))));
    }
    let plot = |title, lines| Plot { title, unit: "", kind: Kind::Automatic, lines, marks: Vec::new() };
    [plot("Validation loss", measured), plot("Training loss, smoothed", trained)]
}

fn loss(course: &Course) -> Plot {
    let is_of_pairs = course.steps.iter().any(|point| point.preference.is_some());
    let unit = if is_of_pairs { "" } else { "nats a token" };
    let mut plot = smoothed("Loss", unit, Kind::Automatic, course, |point| Some(point.loss));
    let points = validations(course);
    plot.lines.push(Line { name: "validation".into(), colour: VALIDATION, stroke: Stroke::Dotted, points });
    plot
}

fn validations(course: &Course) -> Vec<(f64, f64)> {
    course.validations.iter().map(|&(step, loss)| (step as f64, loss)).collect()
}

fn memory(record: &RunRecord, course: &Course) -> Plot {
    let planned = record.outcome.planned_bytes as f64;
    let (unit, name) = if planned >= GIB { (GIB, "GiB") } else { (MIB, "MiB") };
    let mut plot = one("Memory", name, Kind::FromZero, course, |point| {
        point.memory_bytes.map(|bytes| bytes as f64 / unit)
    });
    plot.lines[0].name = "highest so far".into();
    let ends = [course.steps.first(), course.steps.last()].into_iter().flatten();
    let points = ends.map(|point| (point.step as f64, planned / unit)).collect();
    if planned > 0.0 {
        plot.lines.push(Line { name: "planned".into(), colour: PLAN, stroke: Stroke::Dashed, points });
    }
    plot
}

/// A line as it is.
fn one(
    title: &'static str,
    unit: &'static str,
    kind: Kind,
    course: &Course,
    value: impl Fn(&StepPoint) -> Option<f64>,
) -> Plot {
    let points = points(course, value);
    let line = Line { name: title.to_lowercase(), colour: TRAINING, stroke: Stroke::Solid, points };
    Plot { title, unit, kind, lines: vec![line], marks: marks(course) }
}

/// A line and its mean.
fn smoothed(
    title: &'static str,
    unit: &'static str,
    kind: Kind,
    course: &Course,
    value: impl Fn(&StepPoint) -> Option<f64>,
) -> Plot {
    let raw = points(course, value);
    let window = window(raw.len());
    let mut lines = Vec::new();
    if window > 1 {
        let scale = if kind == Kind::Automatic { scale(&raw) } else { Scale::Linear };
        let points = smooth(&raw, window, scale);
        let geometric = if scale == Scale::Log { "geometric " } else { "" };
        let name = format!("{geometric}mean of about {window} steps");
        lines.push(Line { name, colour: TRAINING, stroke: Stroke::Solid, points });
    }
    let stroke = if window > 1 { Stroke::Faint } else { Stroke::Solid };
    lines.insert(0, Line { name: "each step".into(), colour: TRAINING, stroke, points: raw });
    Plot { title, unit, kind, lines, marks: marks(course) }
}

/// How an axis of these values would be drawn.
fn scale(points: &[(f64, f64)]) -> Scale {
    Axis::fit(points.iter().map(|(_, value)| *value), Kind::Automatic).scale
}

fn points(course: &Course, value: impl Fn(&StepPoint) -> Option<f64>) -> Vec<(f64, f64)> {
    let point = |point: &StepPoint| Some((point.step as f64, value(point)?));
    // A mean would never get over what is not a number.
    course.steps.iter().filter_map(point).filter(|(_, value)| value.is_finite()).collect()
}

fn marks(course: &Course) -> Vec<(f64, Mark)> {
    let resumed = course.resumed.iter().map(|(step, _)| (*step as f64, Mark::Resumed));
    resumed.chain(course.skipped.iter().map(|(step, _)| (*step as f64, Mark::Skipped))).collect()
}
