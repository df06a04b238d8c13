//! A plot: lines over steps, with axes, a legend, and what the page's script needs to read values off.
//!
//! Lines are SVG that is stretched to the figure; texts stand beside it as HTML, so that they keep their size on
//! every screen.

use std::fmt::Write;

use serde_json::json;

use super::axis::{Axis, Kind, Scale};
use super::html::Html;
use super::thin::thin;

/// Units of the SVG across and up.
const SIZE: f64 = 1000.0;

/// How a line is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stroke {
    /// What is shown for completeness.
    Faint,
    /// What is to be read.
    Solid,
    /// Measurements that are far apart: a line with a dot at each.
    Dotted,
    /// A limit or a plan.
    Dashed,
}

impl Stroke {
    fn class(self) -> &'static str {
        match self {
            Self::Faint => "faint",
            Self::Solid => "solid",
            Self::Dotted => "dotted",
            Self::Dashed => "dashed",
        }
    }
}

/// A line of a plot.
#[derive(Debug, Clone)]
pub struct Line {
    /// What it is called in the legend.
    pub name: String,
    /// Which of the page's colours it has.
    pub colour: usize,
    /// How it is drawn.
    pub stroke: Stroke,
    /// Steps and values.
    pub points: Vec<(f64, f64)>,
}

/// A place on the axis of steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// A later sitting went on here.
    Resumed,
    /// The step was skipped.
    Skipped,
}

/// A plot over steps.
#[derive(Debug, Clone)]
pub struct Plot {
    /// What is shown.
    pub title: &'static str,
    /// Unit of its values, where they have one.
    pub unit: &'static str,
    /// What the upward axis is to show.
    pub kind: Kind,
    /// Its lines, the first drawn first.
    pub lines: Vec<Line>,
    /// What happened at which step.
    pub marks: Vec<(f64, Mark)>,
}

/// Colours of the page.
pub const N_COLOURS: usize = 8;

impl Plot {
    /// Writes the figure; nothing when there is no point to show.
    pub fn write(&self, class: &'static str, html: &mut Html) {
        let finite = |line: &Line| -> Vec<(f64, f64)> {
            line.points.iter().copied().filter(|(_, value)| value.is_finite()).collect()
        };
        let lines: Vec<Line> =
            self.lines.iter().map(|line| Line { points: thin(&finite(line)), ..line.clone() }).collect();
        let points = || lines.iter().flat_map(|line| &line.points);
        if points().next().is_none() {
            return;
        }
        let steps = points().map(|(step, _)| *step).chain(self.marks.iter().map(|(step, _)| *step));
        let across = Axis::fit(steps, Kind::Steps);
        let up = Axis::fit(points().map(|(_, value)| *value), self.kind);
        let data = self.data(&lines, &across, &up);
        html.element("figure", &[("class", class), ("data-plot", &data)], |html| {
            self.caption(&up, html);
            self.legend(&lines, html);
            html.element("div", &[("class", "frame")], |html| {
                html.element("div", &[("class", "up")], |html| ticks(&up, "bottom", html));
                html.element("div", &[("class", "area")], |html| self.svg(&lines, &across, &up, html));
                html.element("div", &[("class", "across")], |html| ticks(&across, "left", html));
            });
            html.leaf("div", "axis", "step");
        });
    }

    fn caption(&self, up: &Axis, html: &mut Html) {
        html.element("figcaption", &[], |html| {
            html.leaf("b", "", self.title);
            let scale = if up.scale == Scale::Log { "logarithmic" } else { "" };
            let notes = [self.unit, scale].into_iter().filter(|note| !note.is_empty());
            for note in notes {
                html.text(" · ").leaf("span", "note", note);
            }
        });
    }

    fn legend(&self, lines: &[Line], html: &mut Html) {
        html.element("ul", &[("class", "legend")], |html| {
            for line in lines.iter().filter(|line| !line.points.is_empty()) {
                let class = format!("key c{} {}", line.colour % N_COLOURS, line.stroke.class());
                html.element("li", &[], |html| {
                    html.open("i", &[("class", &class)]).raw("</i>").text(&line.name);
                });
            }
            for (mark, class, name) in
                [(Mark::Resumed, "key resumed", "resumed"), (Mark::Skipped, "key skipped", "skipped step")]
            {
                if self.marks.iter().any(|(_, other)| *other == mark) {
                    html.element("li", &[], |html| {
                        html.open("i", &[("class", class)]).raw("</i>").text(name);
                    });
                }
            }
        });
    }

    fn svg(&self, lines: &[Line], across: &Axis, up: &Axis, html: &mut Html) {
        let x = |value: f64| SIZE * across.place(value);
        let y = |value: f64| SIZE * (1.0 - up.place(value));
        let attributes =
            [("viewBox", "0 0 1000 1000"), ("preserveAspectRatio", "none"), ("aria-hidden", "true")];
        html.element("svg", &attributes, |html| {
            let grid: String =
                up.ticks.iter().map(|(value, _)| format!("M0 {:.1}h1000", y(*value))).collect();
            path("grid", &grid, html);
            for (step, mark) in &self.marks {
                let (class, length) = match mark {
                    Mark::Resumed => ("resumed", "v1000"),
                    Mark::Skipped => ("skipped", "v70"),
                };
                path(class, &format!("M{:.1} 0{length}", x(*step)), html);
            }
            for line in lines {
                let class = format!("line c{} {}", line.colour % N_COLOURS, line.stroke.class());
                let mut drawn = String::new();
                for (index, (step, value)) in line.points.iter().enumerate() {
                    let letter = if index == 0 { 'M' } else { 'L' };
                    // Writing to a string does not fail.
                    let _ = write!(drawn, "{letter}{:.1} {:.1}", x(*step), y(*value));
                }
                path(&class, &drawn, html);
                if line.stroke == Stroke::Dotted || line.points.len() == 1 {
                    let dot = |(step, value): &(f64, f64)| format!("M{:.1} {:.1}h.01", x(*step), y(*value));
                    let dots: String = line.points.iter().map(dot).collect();
                    path(&format!("dots c{}", line.colour % N_COLOURS), &dots, html);
                }
            }
        });
    }

    /// Axes and points for the script.
    fn data(&self, lines: &[Line], across: &Axis, up: &Axis) -> String {
        let line = |line: &Line| {
            let points: Vec<_> =
                line.points.iter().map(|&(step, value)| [step, significant(value)]).collect();
            json!({"name": line.name, "colour": line.colour % N_COLOURS, "points": points})
        };
        json!({
            "unit": self.unit,
            "across": [across.low, across.high],
            "up": [up.low, up.high],
            "log": up.scale == Scale::Log,
            "lines": lines.iter().map(line).collect::<Vec<_>>(),
        })
        .to_string()
    }
}

/// Five digits, which is more than anyone reads off a plot.
fn significant(value: f64) -> f64 {
    format!("{value:.4e}").parse().unwrap_or(value)
}

fn path(class: &str, drawn: &str, html: &mut Html) {
    html.open("path", &[("class", class), ("d", drawn)]).raw("</path>");
}

fn ticks(axis: &Axis, side: &'static str, html: &mut Html) {
    for (value, text) in &axis.ticks {
        let style = format!("{side}:{:.2}%", 100.0 * axis.place(*value));
        html.element("span", &[("style", &style)], |html| {
            html.text(text);
        });
    }
}
