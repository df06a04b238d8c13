//! `report.html`: a run as one page that needs nothing else, made of `run.json` and `metrics.jsonl` alone.
//!
//! Texts of data and models are inert: [`html::Html`] takes as markup only what is a literal here, and the page's
//! content security policy allows its own script by hash and nothing from anywhere.

mod axis;
mod figures;
mod html;
pub mod numbers;
mod plot;
mod samples;
mod tables;
mod thin;
mod tiles;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use formats::observe::Observer;

use crate::course::Course;
use crate::error::{Error, Result};
use crate::event::Event;
use crate::record::RunRecord;
use crate::run_dir::RunDir;
use html::{Html, base64};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");

/// The least part of a run's time that is left to training between two reports: this many times what one takes.
const TIMES_ITS_COST: u32 = 50;

/// Writes the report of a run, whole or not at all.
///
/// # Errors
/// [`Error::NothingToResume`] when there is no run; what reading and writing meet.
pub fn write(run_dir: &RunDir) -> Result<PathBuf> {
    let record =
        RunRecord::read(run_dir)?.ok_or_else(|| Error::NothingToResume { run_dir: run_dir.path().into() })?;
    let page = page(&name(run_dir), &record, &Course::read(run_dir)?);
    formats::atomic::write_bytes(&run_dir.report(), page.as_bytes())?;
    Ok(run_dir.report())
}

/// What a run is called: its folder's name.
pub fn name(run_dir: &RunDir) -> String {
    run_dir.path().file_name().map_or_else(|| "run".into(), |name| name.to_string_lossy().into_owned())
}

/// The page of a run.
pub fn page(name: &str, record: &RunRecord, course: &Course) -> String {
    document(&format!("{name} · training run"), |html| {
        tiles::header(name, record, course, html);
        tiles::tiles(record, course, html);
        html.element("div", &[("class", "plots")], |html| {
            for (index, plot) in figures::of_run(record, course).iter().enumerate() {
                plot.write(if index == 0 { "plot wide" } else { "plot" }, html);
            }
        });
        samples::samples(record, course, html);
        html.element("div", &[("class", "columns")], |html| {
            tables::data(record, html);
            tables::plan(record, course, html);
        });
        tables::happenings(course, html);
        tables::receipt(record, html);
    })
}

/// A run of a comparison.
pub struct Compared<'a> {
    /// What it is called.
    pub name: &'a str,
    /// What it was started with, and its figures.
    pub record: &'a RunRecord,
    /// What it went through.
    pub course: &'a Course,
}

/// A page with several runs side by side: figures, losses, and the options that differ.
pub fn comparison(runs: &[Compared<'_>], differing: &[(String, Vec<String>)]) -> String {
    document("Training runs compared", |html| {
        html.element("header", &[], |html| {
            html.leaf("h1", "", "Training runs compared");
        });
        tables::compared(runs, html);
        html.element("div", &[("class", "plots")], |html| {
            for plot in figures::of_runs(runs.iter().map(|run| (run.name, run.course))) {
                plot.write("plot wide", html);
            }
        });
        tables::differing(runs, differing, html);
    })
}

fn document(title: &str, body: impl FnOnce(&mut Html)) -> String {
    let mut html = Html::default();
    let digest = formats::hash::sha256_bytes(SCRIPT.as_bytes());
    let digest: Vec<u8> = (0..digest.len() / 2)
        .map(|index| u8::from_str_radix(&digest[2 * index..2 * index + 2], 16).unwrap_or_default())
        .collect();
    let policy = format!(
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{}'; base-uri 'none'; form-action 'none'",
        base64(&digest)
    );
    html.raw("<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n");
    html.open("meta", &[("http-equiv", "Content-Security-Policy"), ("content", &policy)]);
    html.raw("\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
    html.leaf("title", "", title);
    html.raw("\n<style>\n").raw(STYLE).raw("</style></head>\n<body><main>\n");
    body(&mut html);
    html.raw("\n</main>\n<script>").raw(SCRIPT).raw("</script></body></html>\n");
    html.into_string()
}

/// Writes the report of a run that goes on, as often as it costs next to nothing.
#[derive(Debug, Default)]
pub struct Reporter {
    /// When the last one was written, and how long that took.
    last: Option<(Instant, Duration)>,
    has_failed: bool,
}

impl Reporter {
    /// Writes it unless the last one is too recent for its cost.
    pub fn write_if_due(&mut self, run_dir: &RunDir, observer: &mut dyn Observer<Event>) {
        if self.last.is_none_or(|(at, cost)| at.elapsed() >= TIMES_ITS_COST * cost) {
            self.write(run_dir, observer);
        }
    }

    /// Writes it; a run does not end because its report cannot be written, but the first time that is said.
    pub fn write(&mut self, run_dir: &RunDir, observer: &mut dyn Observer<Event>) -> Option<PathBuf> {
        let started = Instant::now();
        let written = write(run_dir);
        self.last = Some((Instant::now(), started.elapsed()));
        match written {
            Ok(path) => Some(path),
            Err(error) => {
                if !std::mem::replace(&mut self.has_failed, true) {
                    let message = format!("the run's report is not written: {error}");
                    observer.observe(Event::Warning { message });
                }
                None
            }
        }
    }
}

#[cfg(test)]
mod tests;
