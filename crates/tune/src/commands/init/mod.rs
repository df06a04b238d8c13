//! `tune init`: a few questions, or flags, and a recipe that trains at once.

mod choice;
mod rows;

use crate::base_location;
use crate::bytes;
use crate::cli::{Goal, Init};
use crate::failure::Failure;
use crate::interrupt;
use crate::recipe_text::{self, RecipeText, Value};
use crate::show;
use crate::terminal::Terminal;
use choice::{Choice, Facts};
use clap::ValueEnum;
use rows::Found;
use std::path::{Path, PathBuf};
use trainer::Start;
use trainer::options::Options;
use trainer::survey::{Lengths, lengths, survey};

/// The base that ships with the project: the one that a first try takes.
const SHIPPED_BASE: &str = "recipes/pocket";
/// What a card of the usual size has.
const USUAL_MEMORY: u64 = 8 << 30;
/// Bytes of JSON to a token, for a base that is not here to tell.
const BYTES_OF_TOKEN: u64 = 4;
/// No one trains on shorter rows.
const SHORTEST: usize = 128;

/// Everything that was answered.
struct Answers {
    base: String,
    data: PathBuf,
    found: Found,
    goal: Goal,
    memory: u64,
    path: PathBuf,
}

/// Asks, looks, chooses, checks and writes.
pub fn run(arguments: &Init, terminal: &mut Terminal) -> Result<(), Failure> {
    let answers = answers(arguments, terminal)?;
    let mut options = options(&answers)?;
    let is_here = locate(&answers.base, &mut options, terminal)?;
    let lengths = if is_here { Some(lengths(&options).map_err(refused)?) } else { None };
    let facts = facts(&answers, lengths.as_ref());
    let mut choice = choice::choose(&facts);
    if is_here {
        fit(&mut options, &answers, &facts, &mut choice, terminal)?;
    } else {
        terminal.row(
            "base",
            format!(
                "{} is not here yet: lengths are estimated, and the plan is made when training starts",
                answers.base
            ),
        );
    }
    let recipe = recipe(&answers, &facts, &choice, is_here);
    recipe.write(&answers.path)?;
    tell(&answers, &choice, terminal);
    Ok(())
}

fn answers(arguments: &Init, terminal: &mut Terminal) -> Result<Answers, Failure> {
    let asks = !arguments.yes && terminal.can_ask();
    let base = match &arguments.base {
        Some(base) => base.clone(),
        None if asks => {
            let shipped = if Path::new(SHIPPED_BASE).is_dir() { SHIPPED_BASE } else { "Qwen/Qwen3-0.6B" };
            terminal.ask("base", "a folder, a GGUF, ollama:NAME, or a model of the hub", shipped)?
        }
        None => return Err(not_told("base")),
    };
    let (data, found) = data(arguments, asks, terminal)?;
    terminal.row("data", format!("{} · {}", data.display(), found.describe()));
    let goal = goal(arguments, &found, asks, terminal)?;
    let memory = memory(arguments, asks, terminal)?;
    let otherwise = name_of(&data);
    let name = match &arguments.name {
        Some(name) => name.clone(),
        None if asks => terminal.ask("name", "what the result is called", &otherwise)?,
        None => otherwise,
    };
    let path = recipe_path(&name)?;
    Ok(Answers { base, data, found, goal, memory, path })
}

fn not_told(what: &str) -> Failure {
    Failure::new(format!("no {what} is named, and there is no terminal to ask on"))
        .hint(format!("tell it: tune init --base BASE --data FILE --yes (`--{what}` is missing)"))
}

/// The rows; a file that cannot be read is asked for again.
fn data(arguments: &Init, asks: bool, terminal: &mut Terminal) -> Result<(PathBuf, Found), Failure> {
    if let Some(path) = &arguments.data {
        return Ok((path.clone(), rows::look(path)?));
    }
    if !asks {
        return Err(not_told("data"));
    }
    loop {
        let path = PathBuf::from(terminal.ask("data", "the rows: JSON, one a line, or one array", "")?);
        match rows::look(&path) {
            Ok(found) => return Ok((path, found)),
            Err(failure) => {
                terminal.warning(&failure.message);
                if let Some(hint) = failure.hint {
                    terminal.more(hint);
                }
            }
        }
    }
}

fn goal(arguments: &Init, found: &Found, asks: bool, terminal: &mut Terminal) -> Result<Goal, Failure> {
    if let Some(goal) = arguments.goal {
        return Ok(goal);
    }
    let otherwise = if found.is_text { "text" } else { "task" };
    if !asks {
        return Goal::from_str(otherwise, true).map_err(Failure::new);
    }
    loop {
        let answer = terminal.ask("goal", "learn a task, a style, or text word for word", otherwise)?;
        match Goal::from_str(&answer, true) {
            Ok(goal) => return Ok(goal),
            Err(_) => terminal.warning(format!("`{answer}` is none of task, style and text")),
        }
    }
}

fn memory(arguments: &Init, asks: bool, terminal: &mut Terminal) -> Result<u64, Failure> {
    if let Some(memory) = arguments.memory {
        return Ok(memory);
    }
    // What is free is not all for training; where the system does not tell, it is as on most machines.
    const HALF: u64 = 1 << 29;
    let free = runner::memory::main_memory().free_bytes;
    let fitting = if free == 0 { USUAL_MEMORY } else { (free - free / 5) / HALF * HALF };
    let otherwise = fitting.clamp(HALF, USUAL_MEMORY);
    if !asks {
        return Ok(otherwise);
    }
    loop {
        let answer = terminal.ask("memory", "what training may use", &bytes::show_round(otherwise))?;
        match bytes::parse(&answer) {
            Ok(memory) => return Ok(memory),
            Err(reason) => terminal.warning(reason),
        }
    }
}

/// The name of the file, or of its folder where the file's name says only what it is for.
fn name_of(data: &Path) -> String {
    let stem = |path: &Path| path.file_stem().map(|stem| stem.to_string_lossy().into_owned());
    let name = stem(data).unwrap_or_default();
    let says_nothing = ["train", "data", "dataset", "rows"].contains(&name.as_str());
    let folder = data.parent().and_then(stem).filter(|folder| says_nothing && !folder.is_empty());
    folder.unwrap_or(name)
}

fn recipe_path(name: &str) -> Result<PathBuf, Failure> {
    let is_plain = !name.is_empty() && name.chars().all(|c| c.is_alphanumeric() || "-_.".contains(c));
    if !is_plain || name.starts_with('.') {
        return Err(Failure::new(format!("`{name}` is no name")).hint("letters, digits, - and _"));
    }
    let path = PathBuf::from(format!("recipes/{name}.toml"));
    if path.exists() {
        return Err(Failure::new(format!("{} is there already", path.display()))
            .hint("nothing is overwritten: choose another name with --name"));
    }
    Ok(path)
}

/// Options enough to open base and rows.
fn options(answers: &Answers) -> Result<Options, Failure> {
    let facts = facts(answers, None);
    let text = recipe(answers, &facts, &choice::choose(&facts), false).render();
    recipe_text::check(&answers.path, &text)?.options("runs/check".into(), Start::Fresh)
}

/// Whether the base is on this machine; what names no model is refused.
fn locate(base: &str, options: &mut Options, terminal: &mut Terminal) -> Result<bool, Failure> {
    if !Path::new(base).exists() && base_location::is_of_hub(base) {
        return Ok(false);
    }
    options.model.base = base_location::locate(Path::new(base), None, terminal, &interrupt::flag())?.path;
    Ok(true)
}

fn refused(error: trainer::Error) -> Failure {
    let hint = error.hint();
    let failure = Failure::new(error);
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

fn facts(answers: &Answers, lengths: Option<&Lengths>) -> Facts {
    let Answers { found, goal, .. } = answers;
    let estimated = |bytes: u64| (bytes / BYTES_OF_TOKEN).max(1) as usize;
    match lengths {
        Some(Lengths { tokens, max_positions, weights_bytes }) => Facts {
            goal: *goal,
            rows: found.rows,
            mean_tokens: tokens.iter().sum::<usize>() / tokens.len().max(1),
            longest_tokens: tokens.last().copied().unwrap_or(0),
            max_positions: Some(*max_positions),
            weights_bytes: Some(*weights_bytes),
        },
        None => Facts {
            goal: *goal,
            rows: found.rows,
            mean_tokens: estimated(found.mean_bytes),
            longest_tokens: estimated(found.longest_bytes),
            max_positions: None,
            weights_bytes: None,
        },
    }
}

/// Shortens rows until the plan fits the memory, and shows what it is then.
fn fit(
    options: &mut Options,
    answers: &Answers,
    facts: &Facts,
    choice: &mut Choice,
    terminal: &mut Terminal,
) -> Result<(), Failure> {
    loop {
        let text = recipe(answers, facts, choice, true).render();
        let of_text = recipe_text::check(&answers.path, &text)?.options("runs/check".into(), Start::Fresh)?;
        let base = std::mem::take(&mut options.model.base);
        *options = of_text;
        options.model.base = base;
        match survey(options) {
            Ok((data, plan)) => {
                if data.dropped_rows > 0 {
                    let most = choice.max_seq_len;
                    terminal.warning(format!(
                        "{} rows are left out: longer than {most} tokens",
                        data.dropped_rows
                    ));
                }
                let (tokens, longest) = (show::count(data.train_tokens), data.longest_row_tokens);
                terminal.row("rows", format!("{tokens} tokens to train on · longest row {longest}"));
                let budget =
                    plan.budget_bytes.map_or_else(String::new, |b| format!(" of {}", bytes::show(b)));
                terminal.row(
                    "plan",
                    format!("{}{budget} · {} steps", bytes::show(plan.total_bytes), plan.total_steps),
                );
                choice.steps = plan.total_steps;
                return Ok(());
            }
            Err(trainer::Error::BudgetTooSmall { .. }) if choice.max_seq_len >= 2 * SHORTEST => {
                choice.max_seq_len /= 2;
            }
            Err(trainer::Error::BudgetTooSmall { need_bytes, have_bytes, .. }) => {
                let (need, have) = (bytes::show(need_bytes), bytes::show(have_bytes));
                return Err(Failure::new(format!("the smallest plan needs {need}, --memory leaves {have}"))
                    .hint("take a smaller base, or more memory"));
            }
            Err(error) => return Err(refused(error)),
        }
    }
}

fn recipe(answers: &Answers, facts: &Facts, choice: &Choice, is_exact: bool) -> RecipeText {
    let path = answers.path.display();
    let name = answers.path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let mut recipe = RecipeText::new([
        format!("{name}: made by `tune init`; every value can be changed."),
        String::new(),
        format!("    tune train {path}"),
        format!("    tune export runs/{name} --quant q4_k_m"),
    ]);
    recipe.set("model.base", answers.base.as_str(), "what is specialised");
    if !answers.base.ends_with(".gguf") && !answers.base.starts_with("ollama:") {
        recipe.set("model.quant", "q4_k_m", "how its weights lie in memory: what export will write");
    }
    let rank = choice.rank;
    recipe.set(
        "adapter.rank",
        Value::Whole(rank),
        "numbers trained a layer grow with it; 8 for a tone, 32 for knowledge",
    );
    recipe.set("adapter.alpha", Value::Whole(2 * rank), "twice the rank is customary");
    recipe.set("adapter.targets", "all-linear", "");
    data_table(&mut recipe, answers, facts, choice, is_exact);
    if answers.found.is_preference {
        let comment =
            "learns the better answer, and away from the worse; `dpo` suits a base that answers well already";
        recipe.set("train.method", "orpo", comment);
    }
    train_table(&mut recipe, choice);
    if let (_, Some(test)) = rows::companions(&answers.data) {
        recipe.set(
            "eval.test",
            Value::Text(test.display().to_string()),
            "answered before and after, and by the exported file",
        );
    }
    recipe.set("budget.memory", Value::Text(memory_text(answers.memory)), "the plan keeps to it");
    recipe.set(
        "budget.reserve",
        Value::Text(reserve(answers.memory)),
        "of which this is left to the desktop",
    );
    recipe.set("export.quant", "q4_k_m", "");
    recipe.set("expert.name", Value::Text(name), "what the result is called where it runs");
    recipe.set("expert.num_ctx", Value::Whole(choice.num_ctx), "tokens of question and answer together");
    recipe
}

fn data_table(recipe: &mut RecipeText, answers: &Answers, facts: &Facts, choice: &Choice, is_exact: bool) {
    let (validation, _) = rows::companions(&answers.data);
    recipe.set("data.train", Value::Text(answers.data.display().to_string()), answers.found.describe());
    match validation {
        Some(path) => {
            recipe.set("data.validation", Value::Text(path.display().to_string()), "never trained on")
        }
        None => {
            recipe.set("data.val_split", Value::Number(choice.val_split), "of these rows, never trained on")
        }
    }
    let about = if is_exact { "" } else { "about " };
    let longest = format!("tokens; the longest row has {about}{}", facts.longest_tokens);
    recipe.set("data.max_seq_len", Value::Whole(choice.max_seq_len as u64), longest);
    let (policy, comment) = match (facts.longest_tokens > choice.max_seq_len, is_exact) {
        (false, true) => ("error", "a longer row is an error that names it"),
        _ => ("drop", "longer rows are left out, and counted"),
    };
    recipe.set("data.on_too_long", policy, comment);
    if !answers.found.is_text && !answers.found.is_preference {
        recipe.set("data.train_on", "assistant", "the answers and the token that ends them");
    }
}

fn train_table(recipe: &mut RecipeText, choice: &Choice) {
    let Choice { batch_size, epochs, steps, eval_every, .. } = *choice;
    recipe.set("train.epochs", Value::Whole(epochs), format!("{} steps in all", show::count(steps)));
    recipe.set(
        "train.batch_size",
        Value::Whole(batch_size),
        "rows of a step; the plan splits them as memory demands",
    );
    recipe.set(
        "train.learning_rate",
        Value::Number(choice.learning_rate),
        "2e-4 suits models of 1 B and more; small ones take more",
    );
    recipe.set("train.scheduler", "cosine", "");
    recipe.set("train.warmup", Value::Number(0.03), "of all steps");
    recipe.set(
        "train.eval_every",
        Value::Whole(eval_every),
        "steps between two measurements of the validation loss",
    );
    recipe.set("train.checkpoint_every", Value::Whole(eval_every), "what a crash can cost");
    recipe.set(
        "train.early_stopping",
        Value::Whole(3),
        "measurements without a lower loss that end the run, with the best adapter",
    );
    recipe.set("train.seed", Value::Whole(42), "");
}

/// In whole units where it is one.
fn memory_text(memory: u64) -> String {
    bytes::show_round(memory).replace(' ', "")
}

/// A tenth, and what the desktop takes of a card at most.
fn reserve(memory: u64) -> String {
    const MIB: u64 = 1 << 20;
    format!("{}MB", (memory / 10 / MIB).min(800))
}

fn tell(answers: &Answers, choice: &Choice, terminal: &mut Terminal) {
    let path = answers.path.display();
    if terminal.is_json() {
        terminal.json(&serde_json::json!({
            "event": "recipe_written", "path": answers.path, "rows": answers.found.rows, "steps": choice.steps,
        }));
        return;
    }
    terminal.row("wrote", path.to_string());
    terminal.row("next", format!("tune train {path}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipe_is_named_after_its_rows() {
        for (data, name) in
            [("datasets/poet.jsonl", "poet"), ("datasets/poet/train.jsonl", "poet"), ("train.jsonl", "train")]
        {
            assert_eq!(name_of(Path::new(data)), name);
        }
        for wrong in ["", "a/b", "../x", ".hidden"] {
            assert!(recipe_path(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn memory_is_written_as_it_is_read() {
        for memory in [8 << 30, 15 << 29, 900 << 20] {
            assert_eq!(bytes::parse(&memory_text(memory)), Ok(memory));
        }
    }
}
