//! `tune train`: a recipe in, an adapter out.

use crate::base_location;
use crate::bytes;
use crate::cli::Train;
use crate::failure::{DIVERGED, Failure};
use crate::interrupt;
use crate::recipe::Recipe;
use crate::run_record;
use crate::show;
use crate::terminal::Terminal;
use crate::toml_file;
use model::step::LayerInputs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use trainer::event::{DataSummary, ExactMatch, Outcome, PlanTable, PreferenceFigures, StepReport, Weights};
use trainer::offload::Passing;
use trainer::{Event, Init, Options, ResultAdapter, Start};

/// Where no screen shows a progress bar, a line of progress at most this often.
const BETWEEN_LINES: Duration = Duration::from_secs(5);

/// Trains as the recipe says, into `runs/<name of the recipe>` unless told otherwise.
pub fn run(arguments: &Train, terminal: &mut Terminal) -> Result<(), Failure> {
    let recipe = Recipe::read(&arguments.recipe)?;
    let run_dir = arguments.run_dir.clone().unwrap_or_else(|| default_run_dir(&arguments.recipe));
    let start = if arguments.resume { Start::Resume } else { Start::Fresh };
    let mut options = recipe.options(run_dir.clone(), start)?;
    let cancel = interrupt::flag();

    terminal.row("recipe", format!("{} → {}", arguments.recipe.display(), run_dir.display()));
    // A base may take an hour to come: what is wrong with the recipe is said before.
    options.validate().map_err(|error| failure(&error, &arguments.recipe, &recipe))?;
    let pinned = run_record::hub_base(&run_dir)?;
    let base = base_location::locate(&recipe.model.base, pinned.as_ref(), terminal, &cancel)?;
    (options.model.base, options.model.hub) = (base.path, base.hub);
    let mut view =
        View { terminal, recipe: &arguments.recipe, run_dir: &run_dir, last_line: None, kept: Ok(()) };
    let outcome = trainer::train(&options, &mut |event| view.show(event), &cancel);
    view.terminal.clear_bar();
    view.kept?;
    match outcome {
        Ok(outcome) if outcome.is_finished => Ok(()),
        Ok(outcome) => Err(Failure::interrupted(format!(
            "stopped after step {} of {}; nothing is lost",
            outcome.steps, outcome.total_steps
        ))
        .hint(again(arguments))),
        Err(error) => Err(failure(&error, &arguments.recipe, &recipe)),
    }
}

/// A recipe and its options, the base found where it lies, for commands that look at a run before it is begun.
pub fn located(path: &Path, terminal: &mut Terminal) -> Result<(Recipe, Options), Failure> {
    let recipe = Recipe::read(path)?;
    let mut options = recipe.options(default_run_dir(path), Start::Fresh)?;
    options.validate().map_err(|error| failure(&error, path, &recipe))?;
    let base = base_location::locate(&recipe.model.base, None, terminal, &interrupt::flag())?;
    (options.model.base, options.model.hub) = (base.path, base.hub);
    Ok((recipe, options))
}

/// The command that goes on with an interrupted run.
fn again(arguments: &Train) -> String {
    let run_dir =
        arguments.run_dir.as_ref().map_or_else(String::new, |path| format!(" --run-dir {}", path.display()));
    format!("continue with: tune train {}{run_dir} --resume", arguments.recipe.display())
}

fn default_run_dir(recipe: &Path) -> PathBuf {
    Path::new("runs").join(Recipe::run_name(recipe))
}

/// The trainer's error with the place in the user's files that it is about, and the way out.
pub fn failure(error: &trainer::Error, path: &Path, recipe: &Recipe) -> Failure {
    let base = recipe.model.base.display().to_string();
    let failure = match error {
        trainer::Error::Option { key, .. } => Failure::new(format!("{}: {error}", place(path, key))),
        trainer::Error::Model(model::Error::UnknownQuant { .. }) => {
            Failure::new(format!("{}: {error}", place(path, "model.quant")))
        }
        // The model knows its tensors but not its files.
        trainer::Error::Model(source) if !source.to_string().contains(&base) => {
            Failure::new(format!("{base}: {error}"))
                .hint("config.json and the weights must be of the same model")
        }
        trainer::Error::BudgetTooSmall { need_bytes, have_bytes, .. } => Failure::new(format!(
            "{}: the plan needs {}, the budget leaves {}",
            place(path, "budget.memory"),
            bytes::show(*need_bytes),
            bytes::show(*have_bytes)
        )),
        trainer::Error::Formats(formats::Error::MissingFile { .. }) => {
            Failure::new(error).hint("paths in a recipe are relative to the folder tune is started in")
        }
        trainer::Error::Formats(_) => {
            Failure::new(error).hint("the file is damaged or cut short: fetch it again")
        }
        _ => Failure::new(error),
    };
    let failure = if error.is_divergence() { failure.code(DIVERGED) } else { failure };
    match error.hint() {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

/// `recipe.toml:12`, or the file alone where the key is left to its default.
fn place(path: &Path, key: &str) -> String {
    let line = std::fs::read_to_string(path).ok().and_then(|text| toml_file::line_of(&text, key));
    line.map_or_else(|| path.display().to_string(), |line| format!("{}:{line}", path.display()))
}

/// A run's events on the terminal.
struct View<'a> {
    terminal: &'a mut Terminal,
    recipe: &'a Path,
    run_dir: &'a Path,
    last_line: Option<Instant>,
    /// Whether the recipe could be kept beside the run, where `tune export` looks for it.
    kept: Result<(), Failure>,
}

impl View<'_> {
    fn show(&mut self, event: Event) {
        if matches!(event, Event::Plan(_)) {
            self.kept = keep_recipe(self.recipe, self.run_dir);
        }
        if self.terminal.is_json() {
            self.terminal.json(&event);
            return;
        }
        match event {
            Event::Data(data) => show_data(&data, self.terminal),
            Event::Plan(plan) => show_plan(&plan, self.terminal),
            Event::Loading { done, total } => {
                self.terminal.progress_on_screen(done as u64, total as u64, "reading the base");
            }
            Event::BaseKept { path, bytes } => {
                let (size, dir) = (bytes::show(bytes), path.parent().unwrap_or(&path).display());
                self.terminal.row("base", format!("quantised · {size} kept in {dir} for the next start"));
            }
            Event::BaseMapped { bytes, .. } => {
                self.terminal
                    .row("base", format!("mapped as an earlier start kept it · {}", bytes::show(bytes)));
            }
            Event::Decomposing { done, total } => {
                self.terminal.progress_on_screen(
                    done as u64,
                    total as u64,
                    "taking A and B from the weights",
                );
            }
            Event::Decomposed { init, lost_before, lost_after } => self.terminal.row(
                "start",
                format!(
                    "{} · quantising loses {:.2} % of the adapted weights, {:.2} % beside A and B",
                    match init {
                        Init::Default => "default",
                        Init::Pissa => "PiSSA",
                        Init::LoftQ => "LoftQ",
                    },
                    100.0 * lost_before,
                    100.0 * lost_after
                ),
            ),
            Event::Resumed { step, total_steps } => {
                self.terminal.row("resume", format!("from step {step} of {total_steps}"));
            }
            Event::CheckpointDamaged { path, reason } => {
                self.terminal.warning(format!("passed over the checkpoint {}: {reason}", path.display()));
            }
            Event::AlreadyFinished(outcome) => {
                self.terminal.row("done", "this run had finished before; nothing was done");
                self.finished(&outcome);
            }
            Event::Step(step) => self.step(&step),
            Event::StepSkipped { step, count, what } => {
                self.terminal.warning(format!("step {step} skipped ({count} so far): {what} is not finite"));
            }
            Event::Reference { done, total } => {
                let line = format!("pairs weighed by the base: {done}/{total}");
                self.terminal.progress_on_screen(done as u64, total as u64, &line);
            }
            Event::Validation { step, loss, is_best, preference } => {
                self.validation(step, loss, is_best, preference.as_ref());
            }
            Event::SpikeSkipped { step, count, what, value, median } => self.terminal.warning(format!(
                "step {step} skipped ({count} so far): its {what} is {value:.4}, {:.1} times the median of the steps before",
                value / median
            )),
            Event::StoppedEarly { step, total_steps, evaluations } => self.terminal.row(
                "stop",
                format!(
                    "after step {step} of {total_steps}: {evaluations} measurements of the validation loss without a lower one"
                ),
            ),
            Event::Answering { weights, done, total } => {
                let line = format!("held-out rows answered by {}: {done}/{total}", name(weights));
                self.terminal.progress_on_screen(done as u64, total as u64, &line);
            }
            Event::ExactMatch(figure) => self.exact_match(figure),
            Event::Sample { step, weights, prompt, expected, answer } => {
                self.sample(step, weights, &prompt, &expected, &answer)
            }
            Event::Checkpoint { .. } => {}
            Event::Report { path } => self.terminal.row("report", path.display().to_string()),
            Event::Warning { message } => self.terminal.warning(message),
            Event::Finished(outcome) => self.finished(&outcome),
            _ => {}
        }
    }

    fn step(&mut self, step: &StepReport) {
        let line = step_line(step);
        let is_due =
            self.last_line.is_none_or(|at| at.elapsed() >= BETWEEN_LINES) || step.step == step.total_steps;
        if is_due {
            self.last_line = Some(Instant::now());
            self.terminal.progress(step.step, step.total_steps, &line);
        } else {
            self.terminal.progress_on_screen(step.step, step.total_steps, &line);
        }
    }

    fn validation(&mut self, step: u64, loss: f64, is_best: bool, preference: Option<&PreferenceFigures>) {
        let mark = if is_best && step > 0 { " · best so far" } else { "" };
        let pairs = preference.map(show_preference).unwrap_or_default();
        self.terminal.row("check", format!("step {step} · validation loss {loss:.4}{pairs}{mark}"));
    }

    fn exact_match(&mut self, figure: ExactMatch) {
        self.terminal.row(
            "match",
            format!(
                "exact match of {}: {} in {}",
                name(figure.weights),
                show::share(figure.matched, figure.rows),
                show::seconds(figure.seconds)
            ),
        );
    }

    fn sample(&mut self, step: u64, weights: Weights, prompt: &str, expected: &str, answer: &str) {
        let when = if step > 0 { format!("step {step} · ") } else { String::new() };
        self.terminal.row("sample", format!("{when}{}", one_line(prompt)));
        self.terminal.more(format!("{} answers   {}", name(weights), one_line(answer)));
        if answer.trim() != expected.trim() {
            self.terminal.more(format!("expected was  {}", one_line(expected)));
        }
    }

    /// Said where the result is not what a reader takes for granted.
    fn which_result(&mut self, outcome: &Outcome) {
        if let (Some(ResultAdapter::Best), Some(step)) = (outcome.result, outcome.result_step) {
            let last = outcome.steps;
            let instead = if step == last { String::new() } else { format!(", not that of step {last}") };
            self.terminal.row("result", format!("the adapter of step {step}, the best{instead}"));
        }
        if let (Some((best, _)), Some(base)) = (outcome.best_validation_loss, outcome.base_validation_loss)
            && best >= base
        {
            self.terminal.warning("no adapter of this run has a lower validation loss than the base alone");
        }
    }

    fn finished(&mut self, outcome: &Outcome) {
        let (Some(adapter), true) = (&outcome.adapter_dir, outcome.is_finished) else { return };
        self.which_result(outcome);
        if let (Some(before), Some(after)) = (outcome.base_validation_loss, outcome.validation_loss) {
            self.terminal.row("result", format!("validation loss {before:.4} → {after:.4}"));
        }
        if let (Some(before), Some(after)) = (outcome.base_exact_match, outcome.adapter_exact_match) {
            let percent = |figure: ExactMatch| 100.0 * figure.share();
            self.terminal
                .row("result", format!("exact match {:.1} % → {:.1} %", percent(before), percent(after)));
        }
        if let Some(measured) = outcome.memory_bytes {
            let planned = bytes::show(outcome.planned_bytes);
            self.terminal.row("memory", format!("{} used, {planned} planned", bytes::show(measured)));
        }
        self.terminal.row(
            "wrote",
            format!(
                "{} ({}) in {}",
                adapter.display(),
                bytes::show(outcome.adapter_bytes),
                show::seconds(outcome.seconds)
            ),
        );
        self.terminal.row("next", format!("tune export {} --quant q4_k_m", self.run_dir.display()));
    }
}

/// Of pairs, as part of a line; nothing before an adapter prefers anything.
fn show_preference(figures: &PreferenceFigures) -> String {
    if figures.margin.abs() < 5e-4 {
        return String::new();
    }
    let PreferenceFigures { accuracy, margin, nll, .. } = figures;
    format!(
        " · {:.0} % of the pairs right, margin {margin:.3}, better answers {nll:.3} a token",
        100.0 * accuracy
    )
}

/// What became of the rows.
pub fn show_data(data: &DataSummary, terminal: &mut Terminal) {
    terminal.row(
        "data",
        format!(
            "{} rows · {} tokens, {} of them learnt · longest row {} · {} rows for validation, {} for the test",
            show::count(data.train_rows as u64),
            show::count(data.train_tokens),
            show::count(data.target_tokens),
            data.longest_row_tokens,
            data.validation_rows,
            data.test_rows
        ),
    );
    for (rows, what) in [(data.dropped_rows, "left out"), (data.truncated_rows, "cut")] {
        if rows > 0 {
            terminal.warning(format!("{rows} rows are {what}: longer than data.max_seq_len"));
        }
    }
    if data.bad_rows > 0 {
        terminal.warning(format!("{} rows are left out, the first being", data.bad_rows));
        data.named_bad_rows.iter().for_each(|row| terminal.more(row));
    }
    if data.duplicate_rows > 0 {
        let rows = show::count(data.duplicate_rows as u64);
        terminal.warning(format!("{rows} rows say what a row before them says"));
    }
}

/// `238 steps of 16 rows · 466,944 parameters trained · products in bf16`
pub fn planned_steps(plan: &PlanTable) -> String {
    format!(
        "{} steps of {} {} · {} parameters trained · products in {}",
        show::count(plan.total_steps),
        plan.rows_per_step,
        plan.unit,
        show::count(plan.trained_parameters),
        plan.precision
    )
}

/// The plan's table.
pub fn show_plan(plan: &PlanTable, terminal: &mut Terminal) {
    let budget = plan.budget_bytes.map_or_else(String::new, |b| format!(" of {}", bytes::show(b)));
    terminal.row("plan", format!("{}{budget} · {}", bytes::show(plan.total_bytes), planned_steps(plan)));
    if plan.layer_inputs == LayerInputs::BF16 {
        terminal.more("layer inputs are kept in 16 bits, since not one row fits otherwise");
    }
    if let Some(passing) = &plan.passing {
        terminal.more(passing_line(passing));
    }
    for (what, size) in &plan.rows {
        terminal.more(format!("{:>10}  {what}", bytes::show(*size)));
    }
}

/// `weights of 20 of 28 layers pass through memory: up to 1.2 GiB are read for each micro-batch`
pub fn passing_line(passing: &Passing) -> String {
    format!(
        "weights of {} of {} layers, embedding and head pass through memory: up to {} are read for each micro-batch, from \
         the system's cache or the disk",
        passing.layers,
        passing.n_layers,
        bytes::show(passing.read_bytes)
    )
}

fn step_line(step: &StepReport) -> String {
    let pairs = step.preference.as_ref().map(show_preference).unwrap_or_default();
    let validation = step.validation_loss.map_or_else(String::new, |loss| format!(" · val {loss:.3}"));
    let used = step.memory_bytes.map_or_else(|| "?".into(), bytes::show);
    format!(
        "step {}/{} · loss {:.4}{pairs}{validation} · lr {:.2e} · grad {:.3} · {} tokens/s · {used} of {} · {} left",
        step.step,
        step.total_steps,
        step.loss,
        step.learning_rate,
        step.grad_norm,
        show::count(step.tokens_per_second as u64),
        bytes::show(step.planned_bytes),
        show::seconds(step.eta_seconds)
    )
}

fn name(weights: Weights) -> &'static str {
    match weights {
        Weights::Base => "the base",
        Weights::Adapter => "the adapter",
    }
}

/// A sample on one line, cut where it would fill the screen.
fn one_line(text: &str) -> String {
    const LONGEST: usize = 160;
    let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if flat.chars().count() <= LONGEST { flat } else { flat.chars().take(LONGEST).chain(['…']).collect() }
}

/// The recipe as it was, so that the run can be exported and understood without the original.
fn keep_recipe(recipe: &Path, run_dir: &Path) -> Result<(), Failure> {
    let text = std::fs::read(recipe)?;
    std::fs::create_dir_all(run_dir)?;
    Ok(formats::atomic::write_bytes(&run_dir.join("recipe.toml"), &text)?)
}
