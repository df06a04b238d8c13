//! `tune eval`: base, adapter and exported file side by side on held-out rows.

mod table;

use crate::asked::{self, Asked};
use crate::bytes;
use crate::cli::{Eval, EvalOf};
use crate::exported::ExportedFile;
use crate::failure::Failure;
use crate::interrupt;
use crate::show;
use crate::terminal::Terminal;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use trainer::Event;
use trainer::comparison::{Comparison, ComparisonEvent, Own, Part, Rows, capacity};
use trainer::event::Weights;
use trainer::options::EvalOptions;
use trainer::subject::{Room, Subject};

/// Measures everything that is there, or what `--only` names.
pub fn run(arguments: &Eval, terminal: &mut Terminal) -> Result<(), Failure> {
    let cancel = interrupt::flag();
    let mut asked =
        asked::find(&arguments.source, arguments.base.as_deref(), arguments.budget, terminal, &cancel)?;
    if !arguments.exports.is_empty() {
        asked.exports.clone_from(&arguments.exports);
    }
    let contenders = contenders(arguments, &mut asked)?;
    let subject = Subject::open(&asked.options, asked.adapter.as_deref()).map_err(|error| failure(&error))?;
    let rows = rows(arguments, &asked, &subject)?;
    let usual =
        asked.recipe.as_ref().map_or(EvalOptions::default().max_new_tokens, |r| r.eval.max_new_tokens);
    let max_new_tokens = arguments.max_new_tokens.unwrap_or(usual);
    describe(&rows, terminal);
    let n_tokens = rows.longest(max_new_tokens, subject.max_positions());
    let mut comparison = Comparison::new(rows, max_new_tokens);
    let work = Work { subject: &subject, n_tokens, cancel: &cancel };
    for pass in [
        work.own(&contenders, &mut comparison, terminal),
        work.exported(&contenders, &mut comparison, terminal),
    ] {
        terminal.clear_bar();
        if pass?.is_break() {
            return Err(Failure::interrupted("stopped; no figure is left"));
        }
    }
    let report = comparison.report();
    if terminal.is_json() {
        terminal.json(&serde_json::json!({"event": "report", "report": report}));
    } else {
        table::show(&report, terminal);
    }
    if let Some(path) = &arguments.out {
        formats::atomic::write_bytes(path, comparison.answers_jsonl().as_bytes())?;
        terminal.row("wrote", format!("{}, every answer on a line", path.display()));
    }
    Ok(())
}

/// Who is measured, in the order of the table.
struct Contenders {
    own: Vec<Weights>,
    exports: Vec<(String, PathBuf)>,
}

fn contenders(arguments: &Eval, asked: &mut Asked) -> Result<Contenders, Failure> {
    let base = asked.options.model.base.clone();
    let is_file = asked.recipe.is_none() && asked.adapter.is_none() && base.is_file();
    if is_file && asked.exports.is_empty() {
        asked.exports.push(base);
    }
    // A GGUF is measured in the engine that serves it unless told otherwise.
    let there = [
        (EvalOf::Base, !is_file),
        (EvalOf::Adapter, asked.adapter.is_some()),
        (EvalOf::Export, !asked.exports.is_empty()),
    ];
    let missing = there.iter().find(|(of, is_there)| arguments.only.contains(of) && !is_there);
    match missing {
        Some((EvalOf::Adapter, _)) => return Err(Failure::new("there is no adapter").hint("train it first")),
        Some((EvalOf::Export, _)) => {
            return Err(Failure::new("there is no exported file")
                .hint("export the run first, or name one with --export"));
        }
        _ => {}
    }
    let is_asked = |of: EvalOf| {
        let is_there = there.iter().any(|(known, is_there)| *known == of && *is_there);
        if arguments.only.is_empty() { is_there } else { arguments.only.contains(&of) }
    };
    let own = [(EvalOf::Base, Weights::Base), (EvalOf::Adapter, Weights::Adapter)];
    let own = own.into_iter().filter(|(of, _)| is_asked(*of)).map(|(_, weights)| weights).collect();
    let exports = if is_asked(EvalOf::Export) { named(&asked.exports) } else { Vec::new() };
    Ok(Contenders { own, exports })
}

/// One is `export`, several are called by what their names end in.
fn named(files: &[PathBuf]) -> Vec<(String, PathBuf)> {
    let name = |path: &PathBuf| {
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        match files {
            [_] => "export".to_owned(),
            _ => stem.rsplit('-').next().unwrap_or(&stem).to_owned(),
        }
    };
    files.iter().map(|path| (name(path), path.clone())).collect()
}

fn rows(arguments: &Eval, asked: &Asked, subject: &Subject) -> Result<Rows, Failure> {
    let recipe = asked.recipe.as_ref();
    let of_recipe = recipe.filter(|recipe| recipe.eval.test.is_some() && arguments.data.is_none());
    let limit = arguments.rows.or(of_recipe.map(|recipe| recipe.eval.rows)).unwrap_or(usize::MAX);
    let found = Rows::read(subject, arguments.data.as_deref(), limit.max(1), arguments.by.as_deref());
    found.map_err(|error| match error {
        trainer::Error::NoRows { .. } if arguments.data.is_none() => {
            Failure::new(&error).hint("name a file of rows with --data")
        }
        error => failure(&error),
    })
}

fn describe(rows: &Rows, terminal: &mut Terminal) {
    let what = if rows.is_validation { "validation rows" } else { "rows" };
    let paths: Vec<String> = rows.paths.iter().map(|path| path.display().to_string()).collect();
    terminal.row("eval", format!("{} {what} of {}", show::count(rows.rows.len() as u64), paths.join(", ")));
    if rows.n_too_long > 0 {
        terminal.warning(format!("{} rows are left out: longer than the base handles", rows.n_too_long));
    }
}

/// What the two halves of the work have in common.
struct Work<'a> {
    subject: &'a Subject,
    n_tokens: usize,
    cancel: &'a AtomicBool,
}

type Flow = Result<ControlFlow<()>, Failure>;

impl Work<'_> {
    /// Base and adapter, in one generator.
    fn own(&self, contenders: &Contenders, comparison: &mut Comparison, terminal: &mut Terminal) -> Flow {
        if contenders.own.is_empty() {
            return Ok(ControlFlow::Continue(()));
        }
        let to_failure = |error: trainer::Error| failure(&error);
        let capacity =
            capacity(self.subject, comparison.rows.rows.len(), self.n_tokens).map_err(to_failure)?;
        plan(&self.subject.room(capacity).map_err(to_failure)?, terminal);
        let mut loading = |event: Event| match event {
            Event::Loading { done, total } => {
                terminal.progress_on_screen(done as u64, total as u64, "reading the base");
            }
            Event::Warning { message } => terminal.warning(message),
            _ => {}
        };
        let loaded = self.subject.load(capacity, &mut loading).map_err(to_failure)?;
        let mut own = Own::new(self.subject, &loaded, capacity).map_err(to_failure)?;
        for &weights in &contenders.own {
            let name = if weights == Weights::Base { "base" } else { "adapter" };
            let mut contender = own.contender(weights);
            let mut observer = |event: ComparisonEvent| observe(&event, terminal);
            let flow =
                comparison.measure(name, &mut contender, &mut observer, self.cancel).map_err(to_failure)?;
            if flow.is_break() {
                return Ok(flow);
            }
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Exported files, one in memory at a time.
    fn exported(
        &self,
        contenders: &Contenders,
        comparison: &mut Comparison,
        terminal: &mut Terminal,
    ) -> Flow {
        for (name, path) in &contenders.exports {
            let room = self.subject.budget_bytes();
            let mut file = ExportedFile::open(path, self.n_tokens, room)?;
            let mut observer = |event: ComparisonEvent| observe(&event, terminal);
            let flow = comparison.measure(name, &mut file, &mut observer, self.cancel);
            let flow = flow.map_err(|error| failure(&error))?;
            if flow.is_break() {
                return Ok(flow);
            }
        }
        Ok(ControlFlow::Continue(()))
    }
}

fn plan(room: &Room, terminal: &mut Terminal) {
    if terminal.is_json() {
        terminal.json(&serde_json::json!({"event": "plan", "plan": room}));
        return;
    }
    let budget = room.budget_bytes.map_or_else(String::new, |bytes| format!(" of {}", bytes::show(bytes)));
    terminal.row(
        "plan",
        format!(
            "{}{budget} · {} rows side by side, up to {} tokens each",
            bytes::show(room.total_bytes),
            room.n_sequences,
            show::count(room.n_tokens as u64)
        ),
    );
}

fn observe(event: &ComparisonEvent, terminal: &mut Terminal) {
    if terminal.is_json() {
        terminal.json(event);
        return;
    }
    match event {
        ComparisonEvent::Measuring { contender, part, done, total } => {
            let what = match part {
                Part::Loss => "rows scored",
                Part::Answers => "questions answered",
            };
            let line = format!("{contender}: {done} of {total} {what}");
            terminal.progress_on_screen(*done as u64, *total as u64, &line);
        }
        ComparisonEvent::Measured(figures) => {
            terminal.clear_bar();
            terminal.row("measured", format!("{} in {}", figures.name, show::seconds(figures.seconds)));
            if figures.other_prompts > 0 {
                terminal.warning(format!(
                    "{} by itself reads {} of the prompts as other tokens; here it was given those of training",
                    figures.name, figures.other_prompts
                ));
            }
        }
        _ => {}
    }
}

fn failure(error: &trainer::Error) -> Failure {
    let failure = match error {
        trainer::Error::BudgetTooSmall { need_bytes, have_bytes, .. } => {
            let (need, have) = (bytes::show(*need_bytes), bytes::show(*have_bytes));
            Failure::new(format!("one row at a time takes {need}, the budget leaves {have}"))
        }
        _ => Failure::new(error),
    };
    match error.hint() {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn several_exports_are_told_apart_by_their_types() {
        let paths = |names: &[&str]| names.iter().map(|name| Path::new(name).to_owned()).collect::<Vec<_>>();
        let names = |files: &[PathBuf]| named(files).into_iter().map(|(name, _)| name).collect::<Vec<_>>();
        assert_eq!(names(&paths(&["a/x-q4_k_m.gguf"])), ["export"]);
        assert_eq!(names(&paths(&["a/x-y-q4_k_m.gguf", "b/x-y-q8_0.gguf"])), ["q4_k_m", "q8_0"]);
    }
}
