//! Runs side by side: the options that differ, key by key.

use crate::course::Course;
use crate::record::{RunRecord, input_hashes, recipe_options};
use crate::report::{self, Compared};

/// Digits of a hash that are shown.
const HASH_DIGITS: usize = 13;

/// What is said of an option that a run does not have.
const ABSENT: &str = "–";

/// Options and hashes of inputs that are not the same in all runs, with the value in each, in the order of the options.
pub fn differing_options(records: &[&RunRecord]) -> Vec<(String, Vec<String>)> {
    let all: Vec<Vec<(String, String)>> = records.iter().map(|record| leaves(record)).collect();
    let mut keys: Vec<&str> = Vec::new();
    for (key, _) in all.iter().flatten() {
        if !keys.contains(&key.as_str()) {
            keys.push(key);
        }
    }
    let value = |leaves: &[(String, String)], key: &str| {
        let found = leaves.iter().find(|(other, _)| other == key);
        found.map_or_else(|| ABSENT.to_owned(), |(_, value)| value.clone())
    };
    let rows = keys.into_iter().map(|key| {
        let values: Vec<String> = all.iter().map(|leaves| value(leaves, key)).collect();
        (key.to_owned(), values)
    });
    rows.filter(|(_, values)| values.windows(2).any(|pair| pair[0] != pair[1])).collect()
}

fn leaves(record: &RunRecord) -> Vec<(String, String)> {
    let options = recipe_options(&record.options).into_iter().filter(|(key, _)| key != "run_dir");
    let short = |hash: String| match hash.is_empty() {
        true => ABSENT.to_owned(),
        false => hash.chars().take(HASH_DIGITS).collect(),
    };
    // The recipe's hash says nothing that the options have not said.
    let hashes = input_hashes(&record.inputs).into_iter().filter(|(name, _)| name != "recipe");
    options.chain(hashes.map(|(name, hash)| (format!("contents of {name}"), short(hash)))).collect()
}

/// A page with the runs' losses in one plot, their figures, and the options that differ.
pub fn comparison_page(runs: &[(String, RunRecord, Course)]) -> String {
    let records: Vec<&RunRecord> = runs.iter().map(|(_, record, _)| record).collect();
    let compared: Vec<Compared> =
        runs.iter().map(|(name, record, course)| Compared { name, record, course }).collect();
    report::comparison(&compared, &differing_options(&records))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::{Length, Warmup};

    #[test]
    fn only_what_differs_is_named_with_the_recipes_keys() {
        let first = RunRecord::default();
        let mut second = first.clone();
        second.options.run_dir = "elsewhere".into();
        assert_eq!(differing_options(&[&first, &second]), []);

        second.options.train.clip = 0.5;
        second.options.train.warmup = Warmup::Steps(10);
        second.inputs.dataset = "d".repeat(64);
        let mut third = second.clone();
        third.options.train.length = Length::MaxSteps(7);
        let rows = differing_options(&[&first, &second, &third]);
        let rows: Vec<_> =
            rows.iter().map(|(key, values)| format!("{key}: {}", values.join(" | "))).collect();
        expect_test::expect![[r#"
            train.epochs: 1 | 1 | –
            train.warmup: 0.03 | 10 | 10
            train.max_grad_norm: 1.0 | 0.5 | 0.5
            contents of dataset: – | ddddddddddddd | ddddddddddddd
            train.max_steps: – | – | 7"#]]
        .assert_eq(&rows.join("\n"));
    }
}
