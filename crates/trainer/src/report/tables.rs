//! The page's tables: data, plan, what happened, the receipt, and runs side by side.

use super::Compared;
use super::html::Html;
use super::numbers::{bytes, count, date_time, duration, figure};
use super::tiles::{change, exact_matches};
use crate::course::Course;
use crate::event::ExactMatch;
use crate::record::{RunRecord, input_hashes, recipe_options};

/// What a run from before this was recorded has instead of a table.
const NOT_RECORDED: &str = "not recorded: the run was made by an earlier version";

/// What became of the rows.
pub fn data(record: &RunRecord, html: &mut Html) {
    section("Data", html, |html| {
        let Some(data) = &record.data else {
            html.leaf("p", "note", NOT_RECORDED);
            return;
        };
        let rows = |n: usize| count(n as u64);
        let learnt = 100.0 * data.target_tokens as f64 / data.train_tokens.max(1) as f64;
        table(html, |html| {
            row("rows trained on", &rows(data.train_rows), html);
            row("rows of the validation loss", &rows(data.validation_rows), html);
            row("rows of exact match", &rows(data.test_rows), html);
            row("tokens", &count(data.train_tokens), html);
            row("tokens learnt", &format!("{} ({learnt:.1} %)", count(data.target_tokens)), html);
            row("longest row", &format!("{} tokens", rows(data.longest_row_tokens)), html);
            row("left out for their length", &rows(data.dropped_rows), html);
            row("cut for their length", &rows(data.truncated_rows), html);
            row("left out for what is wrong with them", &count(data.bad_rows), html);
            row("the same as a row before", &rows(data.duplicate_rows), html);
        });
        for reason in &data.named_bad_rows {
            html.leaf("p", "note", reason);
        }
    });
}

/// The plan's memory line by line, and what was measured.
pub fn plan(record: &RunRecord, course: &Course, html: &mut Html) {
    section("Plan", html, |html| {
        let Some(plan) = &record.plan else {
            html.leaf("p", "note", NOT_RECORDED);
            return;
        };
        let largest = plan.rows.iter().map(|(_, bytes)| *bytes).max().unwrap_or(0).max(1);
        table(html, |html| {
            for (what, size) in &plan.rows {
                html.element("tr", &[], |html| {
                    html.leaf("th", "", what).leaf("td", "number", &bytes(*size));
                    let style = format!("width:{:.1}%", 100.0 * *size as f64 / largest as f64);
                    html.element("td", &[("class", "bar")], |html| {
                        html.open("i", &[("style", &style)]).raw("</i>");
                    });
                });
            }
            html.element("tr", &[("class", "total")], |html| {
                html.leaf("th", "", "planned")
                    .leaf("td", "number", &bytes(plan.total_bytes))
                    .raw("<td></td>");
            });
            let measured = course.steps.last().and_then(|point| point.memory_bytes);
            let sizes = [
                ("measured at most", record.outcome.memory_bytes.or(measured)),
                ("budget", plan.budget_bytes),
                ("disk", Some(plan.disk_bytes)),
            ];
            for (what, size) in sizes {
                let size = size.map_or_else(|| "–".into(), bytes);
                html.element("tr", &[], |html| {
                    html.leaf("th", "", what).leaf("td", "number", &size).raw("<td></td>");
                });
            }
        });
        let mut parts = vec![
            format!("{} steps of {} {}", count(plan.total_steps), plan.rows_per_step, plan.unit),
            format!("{} steps a pass", count(plan.steps_per_epoch)),
            format!("micro-batches of up to {} tokens", count(plan.micro_batch_tokens as u64)),
            format!("{} parameters trained", count(plan.trained_parameters)),
            format!("products in {}", plan.precision),
            format!("{} layers keep their activations", plan.kept_layers),
        ];
        if let Some(passing) = &plan.passing {
            let (layers, read) = (passing.layers, bytes(passing.read_bytes));
            parts.push(format!(
                "weights of {layers} of {} layers pass through memory, up to {read} for each micro-batch",
                passing.n_layers
            ));
        }
        html.leaf("p", "note", &parts.join(" · "));
    });
}

/// Skipped steps and later sittings; nothing where there were none.
pub fn happenings(course: &Course, html: &mut Html) {
    if course.skipped.is_empty() && course.resumed.is_empty() {
        return;
    }
    section("What happened", html, |html| {
        table(html, |html| {
            for (step, at) in &course.resumed {
                row(&format!("resumed after step {}", count(*step)), &date_time(*at), html);
            }
            for (step, what) in &course.skipped {
                row(&format!("step {} skipped", count(*step)), what, html);
            }
        });
    });
}

/// Options and hashes: what would have to be the same for the same result.
pub fn receipt(record: &RunRecord, html: &mut Html) {
    section("Receipt", html, |html| {
        html.element("details", &[("open", "")], |html| {
            html.leaf("summary", "", "BLAKE3 of what the run was made from");
            table(html, |html| {
                for (name, hash) in input_hashes(&record.inputs) {
                    let hash = if hash.is_empty() { "–" } else { &hash };
                    html.element("tr", &[], |html| {
                        html.leaf("th", "", &name.replace('_', " ")).leaf("td", "hash", hash);
                    });
                }
                if let Some(hub) = &record.options.model.hub {
                    html.element("tr", &[], |html| {
                        html.leaf("th", "", &format!("commit of {}", hub.repository));
                        html.leaf("td", "hash", &hub.commit);
                    });
                }
            });
        });
        html.element("details", &[], |html| {
            html.leaf("summary", "", "Options");
            table(html, |html| {
                for (key, value) in recipe_options(&record.options) {
                    html.element("tr", &[], |html| {
                        html.leaf("th", "", &key).leaf("td", "value", &value);
                    });
                }
            });
        });
        let version = record.program.as_deref().unwrap_or("unknown");
        html.leaf("p", "note", &format!("Made by tune {version} · layout {}", record.version));
    });
}

/// Figures of several runs side by side.
pub fn compared(runs: &[Compared<'_>], html: &mut Html) {
    section("Figures", html, |html| {
        html.element("div", &[("class", "scroll")], |html| {
            table(html, |html| {
                html.element("tr", &[], |html| {
                    let heads =
                        ["run", "base", "steps", "training loss", "validation loss", "exact match", "time"];
                    for head in heads {
                        html.leaf("th", "", head);
                    }
                });
                for run in runs {
                    html.element("tr", &[], |html| {
                        html.leaf("td", "", run.name);
                        html.leaf("td", "", &run.record.base_name());
                        figures_of(run).iter().for_each(|figure| {
                            html.leaf("td", "", figure);
                        });
                    });
                }
            });
        });
    });
}

fn figures_of(run: &Compared<'_>) -> [String; 5] {
    let (record, course) = (run.record, run.course);
    let outcome = &record.outcome;
    let before = course.base_validation_loss().or(outcome.base_validation_loss);
    let after = course.validation_loss(outcome);
    let (base, adapter) = exact_matches(record, course);
    let share = |figures: ExactMatch| format!("{:.1} %", 100.0 * figures.share());
    [
        format!("{} of {}", count(course.last_step()), count(outcome.total_steps)),
        course.train_loss().map_or_else(|| "–".into(), figure),
        change(before.map(figure), after.map(figure)),
        change(base.map(share), adapter.map(share)),
        duration(outcome.seconds),
    ]
}

/// Options that are not the same in all runs.
pub fn differing(runs: &[Compared<'_>], options: &[(String, Vec<String>)], html: &mut Html) {
    section("Options that differ", html, |html| {
        if options.is_empty() {
            html.leaf("p", "note", "none");
            return;
        }
        html.element("div", &[("class", "scroll")], |html| {
            table(html, |html| {
                html.element("tr", &[], |html| {
                    html.leaf("th", "", "");
                    runs.iter().for_each(|run| {
                        html.leaf("th", "", run.name);
                    });
                });
                for (key, values) in options {
                    html.element("tr", &[], |html| {
                        html.leaf("th", "", key);
                        values.iter().for_each(|value| {
                            html.leaf("td", "value", value);
                        });
                    });
                }
            });
        });
    });
}

fn section(title: &'static str, html: &mut Html, body: impl FnOnce(&mut Html)) {
    html.element("section", &[("class", "card")], |html| {
        html.leaf("h2", "", title);
        body(html);
    });
}

fn table(html: &mut Html, rows: impl FnOnce(&mut Html)) {
    html.element("table", &[], |html| {
        html.element("tbody", &[], rows);
    });
}

fn row(name: &str, value: &str, html: &mut Html) {
    html.element("tr", &[], |html| {
        html.leaf("th", "", name).leaf("td", "number", value);
    });
}
