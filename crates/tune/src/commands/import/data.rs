//! Data sets of other tools as files: a recipe trains on files, and names of a hub are no files.

use super::draft::{Draft, Fate};
use super::source::Setting;
use crate::recipe_text::{DataFile, Value};
use std::path::Path;
use trainer::data::reader::RowReader;

/// Rows are counted in files up to this size; more take longer than a share of them is worth.
const COUNTED_BYTES: u64 = 4 << 30;

/// Sets the training files from names as the tool has them; how many rows they have, where they are here.
pub fn train_on(draft: &mut Draft, setting: &Setting, names: &[String]) -> Option<u64> {
    let plain = |name: &String| DataFile { path: name.clone(), fields: Vec::new() };
    train_on_files(draft, setting, names.iter().map(plain).collect())
}

/// The same of files that may call keys of their rows otherwise.
pub fn train_on_files(draft: &mut Draft, setting: &Setting, files: Vec<DataFile>) -> Option<u64> {
    let files = here(draft, setting, files);
    let n_rows = files.iter().map(|file| count_rows(Path::new(&file.path))).sum();
    draft.carry(setting, "data.train", Value::Files(files));
    n_rows
}

/// Sets the files of the validation loss.
pub fn validate_on(draft: &mut Draft, setting: &Setting, files: Vec<DataFile>) {
    let files = here(draft, setting, files);
    match files.is_empty() {
        true => draft.note(Fate::Left, setting, "names no file; `data.val_split` stands"),
        false => draft.carry(setting, "data.validation", Value::Files(files)),
    }
}

/// Names of a hub become files; what is not here is to be put there.
fn here(draft: &mut Draft, setting: &Setting, files: Vec<DataFile>) -> Vec<DataFile> {
    let here = |DataFile { path: name, fields }: DataFile| {
        let path = file_of(&name);
        let to_do = match (Path::new(&path).is_file(), path == name) {
            (true, _) => None,
            (false, true) => Some(format!("{name} is not here: put it there")),
            (false, false) => {
                Some(format!("{name} is no file: save its rows as JSON, one a line, in {path}"))
            }
        };
        if let Some(to_do) = to_do {
            draft.note(Fate::ToDo, setting, to_do);
        }
        DataFile { path, fields }
    };
    files.into_iter().map(here).collect()
}

/// Where no data set is named at all.
pub fn none_named(draft: &mut Draft, key: &str) {
    draft.recipe.set("data.train", "datasets/train.jsonl", "no data set was named: put your rows there");
    draft.remark(
        Fate::ToDo,
        key,
        "no data set is named: put rows as JSON, one a line, in datasets/train.jsonl",
    );
}

/// A name of a hub's data set becomes a file that is to be made.
fn file_of(name: &str) -> String {
    let is_file = [".jsonl", ".json", ".jsonl.gz", ".json.gz"].iter().any(|end| name.ends_with(end));
    if is_file || Path::new(name).is_file() {
        return name.to_owned();
    }
    let last = name.trim_end_matches('/').rsplit('/').next().unwrap_or(name);
    let plain: String =
        last.chars().map(|c| if c.is_alphanumeric() || "._-".contains(c) { c } else { '-' }).collect();
    format!("datasets/{plain}.jsonl")
}

/// Rows of a file that is here and can be read.
pub fn count_rows(path: &Path) -> Option<u64> {
    if std::fs::metadata(path).ok().filter(|file| file.is_file())?.len() > COUNTED_BYTES {
        return None;
    }
    let mut reader = RowReader::open(path).ok()?;
    let mut rows = 0;
    while reader.next_row().ok()?.is_some() {
        rows += 1;
    }
    Some(rows)
}

/// The base: as it is named, but for names whose weights only another program reads.
pub fn base(draft: &mut Draft, theirs: &str) {
    let Some(setting) = draft.source.take(theirs) else {
        draft.recipe.set("model.base", "models/base", "no base was named");
        return draft.remark(Fate::ToDo, theirs, "no base model is named: set `model.base`");
    };
    let name = setting.text().unwrap_or_default();
    let quantised = ["-unsloth-bnb-4bit", "-bnb-4bit"].iter().find_map(|end| name.strip_suffix(end));
    if let Some(original) = quantised {
        let meaning = "bitsandbytes' weights are not read here: the model that they were made from";
        return draft.change(&setting, "model.base", original.into(), meaning);
    }
    let of_mlx = ["-4bit", "-8bit", "-6bit", "-3bit", "-bf16"].iter().any(|end| name.ends_with(end));
    if name.starts_with("mlx-community/") && of_mlx {
        let meaning = "MLX's weights are not read here: name the repository that they were made from";
        draft.note(Fate::ToDo, &setting, meaning);
    }
    draft.carry(&setting, "model.base", Value::Text(name));
}
