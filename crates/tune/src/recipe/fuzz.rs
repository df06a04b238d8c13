//! Recipes with the right structure and lies in it: each is read or refused by file and line, with the nearest key.

use super::Recipe;
use crate::failure::Failure;
use std::fmt;
use std::path::Path;
use trainer::Start;

#[path = "../../../formats/tests/hostile/fuzz/harness.rs"]
mod harness;
#[path = "../../../formats/tests/hostile/fuzz/liar.rs"]
mod liar;

use harness::{Target, fuzz};
use liar::Liar;

/// A key and values that it may have.
type Key = (&'static str, &'static [&'static str]);

/// Tables and their keys.
const TABLES: [(&str, &[Key]); 8] = [
    (
        "model",
        &[("base", &["\"b\"", "\"ollama:x\""]), ("quant", &["\"q4_k_m\"", "\"nf4\""]), ("cache", &["false"])],
    ),
    (
        "adapter",
        &[
            ("rank", &["16", "1"]),
            ("alpha", &["32", "0.5"]),
            ("dropout", &["0.1"]),
            ("targets", &["\"all-linear\"", "[\"q_proj\"]", "['layers\\.[0-7]\\..*']"]),
            ("ranks", &["{ down_proj = 32 }"]),
            ("init", &["\"pissa\"", "\"loftq\""]),
            ("dora", &["true"]),
        ],
    ),
    (
        "data",
        &[
            (
                "train",
                &[
                    "\"t.jsonl\"",
                    "[\"a\", \"b\"]",
                    "[{ path = \"a\", weight = 2, fields = { prompt = \"q\" } }]",
                ],
            ),
            ("validation", &["\"v\"", "{ path = \"v\", format = \"alpaca\" }"]),
            ("val_split", &["0.1", "0"]),
            ("max_seq_len", &["512"]),
            ("on_too_long", &["\"drop\"", "\"truncate\""]),
            ("train_on", &["\"last\"", "[\"assistant\", \"tool\"]"]),
            ("packing", &["true"]),
            ("max_bad_rows", &["3"]),
        ],
    ),
    (
        "train",
        &[
            ("method", &["\"dpo\"", "\"sft\""]),
            ("epochs", &["2"]),
            ("batch_size", &["4"]),
            ("learning_rate", &["1e-4", "2"]),
            ("scheduler", &["\"wsd\"", "\"linear\""]),
            ("warmup", &["0.1", "10"]),
            ("moments", &["\"int8\""]),
            ("seed", &["7"]),
            ("result", &["\"best\""]),
            ("max_spike", &["5"]),
        ],
    ),
    ("eval", &[("test", &["\"t\""]), ("rows", &["20"]), ("samples", &["2"])]),
    (
        "budget",
        &[
            ("memory", &["\"8GB\"", "\"7.4 GiB\""]),
            ("reserve", &["\"0.7GB\""]),
            ("offload", &["\"auto\"", "\"none\"", "\"weights\""]),
        ],
    ),
    (
        "export",
        &[
            ("quant", &["\"q8_0\""]),
            ("types", &["{ \"ffn_down\" = \"q6_k\" }"]),
            ("imatrix", &["\"train\""]),
            ("max_kl", &["0.1"]),
        ],
    ),
    ("expert", &[("name", &["\"x\""]), ("num_ctx", &["4096"]), ("system", &["\"\"\"\nBe brief.\n\"\"\""])]),
];

/// What a value may be instead.
const ODD: [&str; 24] = [
    "-1",
    "0",
    "1",
    "1e400",
    "nan",
    "inf",
    "-inf",
    "9223372036854775807",
    "9223372036854775808",
    "true",
    "\"\"",
    "\"\\u0000\"",
    "[]",
    "{}",
    "[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]",
    "{ a = { a = { a = 1 } } }",
    "2026-11-29",
    "\"99999999999999999999 GB\"",
    "\"-8GB\"",
    "'(((((((((((x*)*)*)*)*)*)*)*)*)*)*'",
    "[\"x{1000000}\"]",
    "\"é\u{202e}\"",
    "0x7f",
    "\"",
];

/// Reading failed; a failure as an error that can be shown.
#[derive(Debug)]
struct Refused(Failure);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

#[test]
fn any_recipe() {
    // A parsed table costs far more than its text; a recipe is at most 1 MiB.
    let allowed = |file_bytes| 400 * file_bytes + (1 << 20);
    fuzz(&Target { make, open, look, allowed, kind, names_file: true });
}

fn open(path: &Path) -> Result<Recipe, Refused> {
    Recipe::read(path).map_err(Refused)
}

/// What options a recipe gives is judged without a panic.
fn look(recipe: &Recipe, _: &mut Liar) {
    if let Ok(options) = recipe.options("runs/x".into(), Start::Fresh) {
        let _ = options.validate();
    }
}

fn kind(refused: &Refused) -> String {
    let message = refused.0.message.rsplit(": ").next().unwrap_or_default();
    let words = message.split('`').step_by(2).collect::<Vec<_>>().join("…");
    words.chars().filter(|c| !c.is_ascii_digit()).take(30).collect()
}

fn make(liar: &mut Liar) -> Vec<u8> {
    let mut file = String::new();
    for (table, keys) in TABLES {
        let is_needed = matches!(table, "model" | "data");
        if !is_needed && liar.once_in(2) || liar.lies() {
            continue;
        }
        let name = if liar.lies() { liar.name(&["model", "training", "lora", ""]) } else { table.to_owned() };
        file += &format!("[{name}]\n");
        for (at, (key, values)) in keys.iter().enumerate() {
            if !(is_needed && at == 0) && liar.once_in(2) {
                continue;
            }
            let key = match liar.lies() {
                true => liar.name(&["lr", "lora_r", "micro_batch_size", "batchsize", "\"", key]),
                false => (*key).to_owned(),
            };
            let value = if liar.lies() { *liar.pick(&ODD) } else { *liar.pick(values) };
            file += &format!("{key} = {value}\n");
        }
        if liar.once_in(4) {
            file += "# a comment\n\n";
        }
    }
    let mut file = file.into_bytes();
    liar.damage(&mut file);
    file
}

#[test]
fn every_key_of_the_tables_above_is_one_of_a_recipe() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("r.toml");
    for (table, keys) in TABLES {
        for (key, values) in keys {
            for value in *values {
                let needed = match (table, *key) {
                    ("model", "base") => "data.train = \"t\"\n",
                    ("model", _) => "model.base = \"b\"\ndata.train = \"t\"\n",
                    ("data", "train") => "model.base = \"b\"\n",
                    _ => "model.base = \"b\"\ndata.train = \"t\"\n",
                };
                std::fs::write(&path, format!("{needed}{table}.{key} = {value}\n")).unwrap();
                if let Err(failure) = Recipe::read(&path) {
                    panic!("{table}.{key} = {value}: {}", failure.message);
                }
            }
        }
    }
}
