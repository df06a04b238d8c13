//! `tune import`: a recipe from the configuration of another tool, and what became of each of its settings.

mod axolotl;
mod axolotl_rows;
mod data;
mod draft;
mod llama_factory;
mod mlx;
mod source;
mod steps;
mod torchtune;
mod unsloth;
mod yaml;

#[cfg(test)]
mod tests;

use crate::cli::{Import, Tool};
use crate::failure::Failure;
use crate::recipe::Recipe;
use crate::recipe_text::Value;
use crate::show;
use crate::terminal::Terminal;
use crate::toml_file;
use draft::{Draft, Fate, Idle, Note};
use source::Source;
use std::path::{Path, PathBuf};

/// Converts, writes, and tells.
pub fn run(arguments: &Import, terminal: &mut Terminal) -> Result<(), Failure> {
    let path = &arguments.file;
    let text = toml_file::text_of(path)?;
    let (mut draft, unset) = convert(path, &text, arguments.from)?;
    let name = Recipe::run_name(path);
    let out = arguments.out.clone().unwrap_or_else(|| PathBuf::from(format!("recipes/{name}.toml")));
    if draft.recipe.get("expert.name").is_none() {
        draft.recipe.set("expert.name", Value::Text(name), "what the result is called where it runs");
    }
    draft.recipe.write(&out).map_err(|failure| of_ours(failure, path))?;
    tell(&draft, &unset, path, &out, terminal);
    Ok(())
}

/// A value that no recipe can have came from the file that was read.
fn of_ours(failure: Failure, path: &Path) -> Failure {
    match failure.hint {
        None => failure.hint(format!("the value comes from {}", path.display())),
        Some(_) => failure,
    }
}

/// The draft, and the keys that the file sets to nothing.
fn convert(path: &Path, text: &str, from: Option<Tool>) -> Result<(Draft, Vec<String>), Failure> {
    let name = path.display().to_string();
    if unsloth::is_script(&name, text) {
        return Err(Failure::new(format!(
            "{name} is a program, and what it trains is known only by running it"
        ))
        .hint("import reads configurations; `tune init` asks for the few things that a recipe needs"));
    }
    let root = yaml::parse(text.trim_start_matches('\u{feff}'))
        .map_err(|fault| Failure::new(format!("{name}:{}: {}", fault.line, fault.reason)))?;
    let source = Source::new(&root);
    let tool = match from {
        Some(tool) => tool,
        None => detect(&source).ok_or_else(|| unknown(&name, &source))?,
    };
    let head = vec![
        format!("From {name}, a configuration of {}, by `tune import`.", tool.name()),
        "Each comment names the key that a line comes from.".to_owned(),
    ];
    let mut draft = Draft::new(tool.name(), source, head);
    let (convert, idle): (fn(&mut Draft), Idle) = match tool {
        Tool::Axolotl => (axolotl::convert, axolotl::IDLE),
        Tool::MlxLm => (mlx::convert, mlx::IDLE),
        Tool::LlamaFactory => (llama_factory::convert, llama_factory::IDLE),
        Tool::Unsloth => (unsloth::convert, unsloth::IDLE),
        Tool::Torchtune => (torchtune::convert, torchtune::IDLE),
    };
    convert(&mut draft);
    draft.name_rest();
    let unset = draft.sort_rest(idle);
    Ok((draft, unset))
}

fn detect(source: &Source) -> Option<Tool> {
    let has = |key: &str| source.has(key);
    let of_mlx = [
        "iters",
        "lora_parameters",
        "lora_layers",
        "num_layers",
        "fine_tune_type",
        "adapter_path",
        "steps_per_eval",
    ];
    if source.has_last("_component_") {
        Some(Tool::Torchtune)
    } else if has("base_model") {
        Some(Tool::Axolotl)
    } else if has("model_name_or_path") {
        Some(Tool::LlamaFactory)
    } else if has("model") && unsloth::is_of(source) {
        Some(Tool::Unsloth)
    } else if has("model") && of_mlx.iter().any(|key| has(key)) {
        Some(Tool::MlxLm)
    } else {
        None
    }
}

fn unknown(name: &str, source: &Source) -> Failure {
    let what =
        if source.len() == 0 { "has no keys" } else { "has none of the keys by which a tool is known" };
    Failure::new(format!("{name} {what}")).hint(
        "read are axolotl (base_model), LLaMA-Factory (model_name_or_path), mlx-lm (model, iters), Unsloth's command line \
         (model, training) and torchtune (_component_); --from says which it is",
    )
}

/// Packing: rows of a micro-batch stand behind one another in any case, and do not see each other.
fn packing(draft: &mut Draft, theirs: &str) {
    let Some(setting) = draft.source.take(theirs) else { return };
    match (setting.switch(), Recipe::has_key("data.packing")) {
        (Some(on), true) => draft.carry(&setting, "data.packing", Value::Switch(on)),
        _ => draft.note(
            Fate::Idle,
            &setting,
            "rows of a step stand behind one another, unpadded, and do not see each other",
        ),
    }
}

/// How it is learnt from the rows; what there is nothing for must not be trained as something else in silence.
fn method(draft: &mut Draft, theirs: &str, beta: &str, known: &[(&str, &str)]) {
    let Some(setting) = draft.source.take(theirs) else { return };
    let name = setting.text().unwrap_or_default();
    match known.iter().find(|(theirs, _)| *theirs == name) {
        Some((_, "sft")) => draft.note(Fate::Idle, &setting, "learnt from the rows as they are"),
        Some((_, ours)) if Recipe::has_key("train.method") => {
            draft.carry(&setting, "train.method", (*ours).into());
            draft.number(beta, "train.beta");
        }
        _ => draft.note(
            Fate::ToDo,
            &setting,
            "there is no such way of learning here: the recipe learns from the rows as they are, which need an answer each",
        ),
    }
}

/// AdamW's constants are those of its paper.
fn fixed_constant(draft: &mut Draft, theirs: &str) {
    if let Some(setting) = draft.source.take(theirs) {
        draft.note(Fate::Left, &setting, "AdamW's constants are fixed: betas 0.9 and 0.999, epsilon 1e-8");
    }
}

fn tell(draft: &Draft, unset: &[String], path: &Path, out: &Path, terminal: &mut Terminal) {
    if terminal.is_json() {
        let (tool, notes) = (draft.tool, &draft.notes);
        terminal.json(&serde_json::json!({
            "event": "imported", "tool": tool, "carried": draft.n_carried, "unset": unset, "notes": notes, "path": out,
        }));
        return;
    }
    let n_keys = show::count(draft.source.len() as u64);
    terminal.row("read", format!("{} · {} · {n_keys} keys", path.display(), draft.tool));
    terminal.row("carried", format!("{} of them into the recipe", draft.n_carried));
    for (fate, word) in [(Fate::Changed, "changed"), (Fate::Left, "left"), (Fate::Unknown, "unknown")] {
        let mut word = word;
        for note in draft.notes.iter().filter(|note| note.fate == fate) {
            terminal.row(word, describe(note));
            word = "";
        }
    }
    idle(draft, unset, terminal);
    let mut word = "to do";
    for note in draft.notes.iter().filter(|note| note.fate == Fate::ToDo) {
        terminal.row(word, describe(note));
        word = "";
    }
    terminal.row("wrote", out.display().to_string());
    terminal.row("next", format!("tune train {}", out.display()));
}

/// `lora_alpha: 16 (line 3) · what that means`
fn describe(note: &Note) -> String {
    let value = if note.value.is_empty() { String::new() } else { format!(": {}", note.value) };
    let line = if note.line > 0 { format!(" (line {})", note.line) } else { String::new() };
    let meaning = if note.meaning.is_empty() { String::new() } else { format!(" · {}", note.meaning) };
    format!("{}{value}{line}{meaning}", note.key)
}

/// What needs no key here: the keys with one reason in one row.
fn idle(draft: &Draft, unset: &[String], terminal: &mut Terminal) {
    let mut reasons: Vec<(&str, Vec<&str>)> = Vec::new();
    for note in draft.notes.iter().filter(|note| note.fate == Fate::Idle) {
        match reasons.iter_mut().find(|(reason, _)| *reason == note.meaning) {
            Some((_, keys)) => keys.push(&note.key),
            None => reasons.push((&note.meaning, vec![&note.key])),
        }
    }
    if !unset.is_empty() {
        reasons.push(("set to nothing there", unset.iter().map(String::as_str).collect()));
    }
    let mut word = "no need";
    for (reason, keys) in reasons {
        terminal.row(word, format!("{} · {reason}", keys.join(", ")));
        word = "";
    }
}
