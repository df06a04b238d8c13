//! A recipe as a person would write it: tables in their order, keys with a comment each.  `init` and `import` write so.

use crate::failure::Failure;
use crate::recipe::Recipe;
use std::io::Write;
use std::path::Path;
use trainer::Start;

/// Tables in the order in which they are written.
const TABLES: [&str; 8] = ["model", "adapter", "data", "train", "eval", "budget", "export", "expert"];
/// Where comments begin, if what stands before them leaves room.
const COMMENT_COLUMN: usize = 34;
/// Longest comment behind a value; a longer one stands above it.
const LONGEST_BESIDE: usize = 76;

/// What a key is set to.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Text(String),
    Whole(u64),
    Number(f64),
    Switch(bool),
    List(Vec<String>),
    /// Data files.
    Files(Vec<DataFile>),
}

/// A data file, and what keys of its rows are called that have other names here.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct DataFile {
    pub path: String,
    /// Our name, and the file's.
    pub fields: Vec<(&'static str, String)>,
}

impl From<&str> for Value {
    fn from(text: &str) -> Value {
        Value::Text(text.to_owned())
    }
}

struct Line {
    key: String,
    value: Value,
    comment: String,
}

/// A recipe under construction.
#[derive(Default)]
pub struct RecipeText {
    head: Vec<String>,
    lines: Vec<Line>,
}

impl RecipeText {
    /// A recipe that begins with these lines of comment.
    pub fn new(head: impl IntoIterator<Item = String>) -> RecipeText {
        RecipeText { head: head.into_iter().collect(), lines: Vec::new() }
    }

    /// Sets a key such as `train.epochs`; a later call replaces an earlier one.
    pub fn set(&mut self, key: &str, value: impl Into<Value>, comment: impl Into<String>) {
        let line = Line { key: key.to_owned(), value: value.into(), comment: comment.into() };
        match self.lines.iter_mut().find(|old| old.key == key) {
            Some(old) => *old = line,
            None => self.lines.push(line),
        }
    }

    /// What a key is set to.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.lines.iter().find(|line| line.key == key).map(|line| &line.value)
    }

    /// The file's text.
    pub fn render(&self) -> String {
        let mut text = String::new();
        for line in &self.head {
            text += format!("# {}", one_line(line)).trim_end();
            text.push('\n');
        }
        for table in TABLES {
            let inside = |line: &&Line| line.key.split_once('.').is_some_and(|(name, _)| name == table);
            let lines: Vec<&Line> = self.lines.iter().filter(inside).collect();
            if !lines.is_empty() {
                text += &format!("\n[{table}]\n");
                lines.iter().for_each(|line| text += &render_line(line));
            }
        }
        text.trim_start_matches('\n').to_owned()
    }

    /// Checks the text as `tune train` would before it opens a file, and writes it where no file is yet.
    pub fn write(&self, path: &Path) -> Result<(), Failure> {
        let text = self.render();
        check(path, &text)?;
        let cannot = |why: std::io::Error| match why.kind() {
            std::io::ErrorKind::AlreadyExists => Failure::new(format!("{} is there already", path.display()))
                .hint("nothing is overwritten: choose another name, or remove it"),
            _ => Failure::new(format!("cannot write {}: {why}", path.display())),
        };
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).map_err(cannot)?;
        }
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).open(path).map_err(cannot)?;
        let written = file.write_all(text.as_bytes()).and_then(|()| file.sync_all());
        written.map_err(|error| {
            // Half a recipe is worse than none.
            drop(std::fs::remove_file(path));
            cannot(error)
        })
    }
}

/// Parses the text as a recipe and checks its values.
pub fn check(path: &Path, text: &str) -> Result<Recipe, Failure> {
    let recipe = Recipe::parse(path, text)?;
    recipe.options("runs/check".into(), Start::Fresh)?.validate()?;
    Ok(recipe)
}

fn render_line(line: &Line) -> String {
    let (_, key) = line.key.split_once('.').unwrap_or(("", &line.key));
    let setting = format!("{key} = {}", toml(&line.value));
    let comment = one_line(&line.comment);
    if comment.is_empty() {
        return format!("{setting}\n");
    }
    if comment.chars().count() > LONGEST_BESIDE {
        return format!("# {comment}\n{setting}\n");
    }
    let padding = COMMENT_COLUMN.saturating_sub(setting.chars().count()).max(2);
    format!("{setting}{}# {comment}\n", " ".repeat(padding))
}

/// A comment must not end before its end: what breaks a line is made visible.
fn one_line(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { c.escape_default().to_string() } else { c.to_string() })
        .collect()
}

fn toml(value: &Value) -> String {
    match value {
        Value::Text(text) => quoted(text),
        Value::Whole(whole) => whole.to_string(),
        Value::Number(value) => number(*value),
        Value::Switch(on) => on.to_string(),
        Value::List(items) => {
            let items: Vec<_> = items.iter().map(|item| quoted(item)).collect();
            format!("[{}]", items.join(", "))
        }
        Value::Files(files) => match files.as_slice() {
            [file] if file.fields.is_empty() => quoted(&file.path),
            files => format!("[{}]", files.iter().map(data_file).collect::<Vec<_>>().join(", ")),
        },
    }
}

fn data_file(file: &DataFile) -> String {
    if file.fields.is_empty() {
        return quoted(&file.path);
    }
    let fields: Vec<_> =
        file.fields.iter().map(|(ours, theirs)| format!("{ours} = {}", quoted(theirs))).collect();
    format!("{{ path = {}, fields = {{ {} }} }}", quoted(&file.path), fields.join(", "))
}

/// Patterns with backslashes stand in single quotes, where none of them is doubled.
fn quoted(text: &str) -> String {
    let is_plain = !text.chars().any(|c| c.is_control());
    if is_plain && text.contains('\\') && !text.contains('\'') {
        return format!("'{text}'");
    }
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted += &format!("\\u{:04X}", u32::from(c)),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// `2e-4`, `0.05`, `3.0`: as few digits as give the number back.
pub fn number(number: f64) -> String {
    let size = number.abs();
    if number != 0.0 && !(1e-3..1e9).contains(&size) {
        return format!("{number:e}");
    }
    if number.fract() == 0.0 { format!("{number:.1}") } else { number.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn small() -> RecipeText {
        let mut recipe = RecipeText::new(["A test.".to_owned()]);
        recipe.set("data.train", "rows.jsonl", "rows");
        recipe.set("model.base", "a \"quoted\" \\ name\n", "");
        recipe.set("train.learning_rate", Value::Number(2e-4), "one\nline");
        recipe.set(
            "adapter.targets",
            Value::List(vec![r"layers\.\d+\..*".into(), "q".into()]),
            "x".repeat(80),
        );
        recipe
    }

    #[test]
    fn a_recipe_is_rendered_as_it_is_written_by_hand() {
        expect![[r##"
            # A test.

            [model]
            base = "a \"quoted\" \\ name\u000A"

            [adapter]
            # xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx
            targets = ['layers\.\d+\..*', "q"]

            [data]
            train = "rows.jsonl"              # rows

            [train]
            learning_rate = 2e-4              # one\nline
        "##]]
        .assert_eq(&small().render());
        let text = small().render();
        let parsed: toml::Table = text.parse().expect("TOML");
        assert_eq!(parsed["model"]["base"].as_str(), Some("a \"quoted\" \\ name\n"));
        assert_eq!(parsed["adapter"]["targets"][0].as_str(), Some(r"layers\.\d+\..*"));
        assert_eq!(
            [number(0.05), number(1e-5), number(3.0), number(0.0), number(1e12)],
            ["0.05", "1e-5", "3.0", "0.0", "1e12"]
        );
    }

    #[test]
    fn nothing_is_overwritten_and_nothing_wrong_is_written() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("deep/r.toml");
        small().write(&path).expect("written");
        let before = std::fs::read(&path).expect("the recipe");
        let failure = small().write(&path).expect_err("there already");
        assert!(failure.message.ends_with("is there already"), "{}", failure.message);
        assert_eq!(std::fs::read(&path).expect("the recipe"), before);

        let mut wrong = small();
        wrong.set("adapter.rank", Value::Whole(0), "");
        let other = folder.path().join("other.toml");
        assert!(wrong.write(&other).is_err() && !other.exists());
        wrong.set("adapter.rank", Value::Whole(8), "");
        wrong.set("adapter.rang", Value::Whole(8), "");
        assert!(wrong.write(&other).is_err() && !other.exists());
    }
}
