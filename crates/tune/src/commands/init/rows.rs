//! A look into a data file: how many rows, of which kind, how long, and what stands in them.

use crate::failure::Failure;
use crate::show;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use trainer::data::reader::{Place, RowReader};
use trainer::data::row::Row;
use trainer::options::Source;

/// Rows that are parsed; the others are counted.
const PARSED_ROWS: u64 = 2000;

/// What was found.
pub struct Found {
    pub rows: u64,
    /// By the keys of a row, in words.
    pub kind: &'static str,
    /// Whether rows are text that is learnt whole.
    pub is_text: bool,
    /// Whether rows are pairs of answers, one of which is preferred.
    pub is_preference: bool,
    /// Messages of a row by role, of the rows that were parsed.
    roles: BTreeMap<String, u64>,
    n_parsed: u64,
    pub mean_bytes: u64,
    pub longest_bytes: u64,
}

/// Looks into the file; a row that training would refuse is refused here.
pub fn look(path: &Path) -> Result<Found, Failure> {
    let refused = |error: trainer::Error| {
        let hint = error.hint();
        let failure = Failure::new(error);
        match hint {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    };
    let mut reader = RowReader::open(path).map_err(refused)?;
    let mut found = Found {
        rows: 0,
        kind: "",
        is_text: false,
        is_preference: false,
        roles: BTreeMap::new(),
        n_parsed: 0,
        mean_bytes: 0,
        longest_bytes: 0,
    };
    let mut bytes_in_all = 0;
    while let Some((place, bytes)) = reader.next_row().map_err(refused)? {
        found.rows += 1;
        bytes_in_all += bytes.len() as u64;
        found.longest_bytes = found.longest_bytes.max(bytes.len() as u64);
        if found.rows <= PARSED_ROWS {
            found.parse(path, place, bytes).map_err(refused)?;
        }
    }
    if found.rows == 0 {
        return Err(Failure::new(format!("{} has no rows", path.display()))
            .hint("a data file is JSON objects, one a line, or one JSON array of them"));
    }
    found.mean_bytes = bytes_in_all / found.rows;
    Ok(found)
}

impl Found {
    fn parse(&mut self, path: &Path, place: Place, bytes: &[u8]) -> Result<(), trainer::Error> {
        let source = Source::new(path);
        let row = Row::parse(&source, place, bytes)?;
        self.n_parsed += 1;
        (self.kind, self.is_text) = match row.kind() {
            "messages" => ("conversations", false),
            "text" => ("plain text", true),
            "preference" => ("pairs of a better and a worse answer", false),
            other => (other, false),
        };
        self.is_preference = row.kind() == "preference";
        let json: Value = serde_json::from_slice(bytes).unwrap_or_default();
        let messages = json.get("messages").and_then(Value::as_array).into_iter().flatten();
        for role in messages.filter_map(|message| message.get("role")?.as_str()) {
            *self.roles.entry(role.to_owned()).or_default() += 1;
        }
        Ok(())
    }

    /// `1,900 rows · conversations of 1 user, 1 assistant message a row · about 84 bytes a row, 143 at most`
    pub fn describe(&self) -> String {
        let a_row = |n: u64| {
            let mean = n as f64 / self.n_parsed.max(1) as f64;
            if mean.fract() < 0.05 { format!("{mean:.0}") } else { format!("{mean:.1}") }
        };
        let roles: Vec<_> = self.roles.iter().map(|(role, n)| format!("{} {role}", a_row(*n))).collect();
        let roles = if roles.is_empty() { String::new() } else { format!(" ({} a row)", roles.join(", ")) };
        format!(
            "{} rows · {}{roles} · {} bytes a row, {} at most",
            show::count(self.rows),
            self.kind,
            show::count(self.mean_bytes),
            show::count(self.longest_bytes)
        )
    }
}

/// Files beside the training rows that are there for validation and test, by their names.
pub fn companions(path: &Path) -> (Option<PathBuf>, Option<PathBuf>) {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let beside = |words: &[&str]| {
        let names = words
            .iter()
            .filter(|_| stem.contains("train"))
            .flat_map(|word| ["jsonl", "json"].map(|end| format!("{}.{end}", stem.replace("train", word))));
        names.map(|name| path.with_file_name(name)).find(|path| path.is_file())
    };
    (beside(&["valid", "validation", "val", "dev"]), beside(&["test"]))
}
