//! From rows to an answer, as a person goes: `init`, `preview`, `plan`, `train`, `eval`, `chat`; and pairs the same way.

mod harness;

use std::io::Write;
use std::process::{Command, Stdio};

use harness::{Folder, root, tune};
use serde_json::{Value, json};

/// The command, run in the folder of the test, where what it writes belongs.
fn here(folder: &Folder, arguments: &[&str]) -> Command {
    let mut command = tune(arguments);
    command.current_dir(folder.0.path());
    command
}

fn must(folder: &Folder, arguments: &[&str]) -> String {
    let output = here(folder, arguments).output().expect("tune");
    let shown = folder.shown(&output);
    assert!(output.status.success(), "tune {arguments:?}\n{shown}");
    shown
}

/// The events of a command, one JSON object a line.
fn events(folder: &Folder, arguments: &[&str]) -> Vec<Value> {
    let arguments: Vec<&str> = ["--json"].into_iter().chain(arguments.iter().copied()).collect();
    let output = here(folder, &arguments).output().expect("tune");
    assert!(output.status.success(), "tune {arguments:?}\n{}", folder.shown(&output));
    let lines = String::from_utf8(output.stdout).expect("UTF-8");
    lines.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

fn event<'a>(events: &'a [Value], name: &str) -> &'a Value {
    events.iter().find(|event| event["event"] == name).unwrap_or_else(|| panic!("no {name}: {events:?}"))
}

/// Replaces what the recipe says of a key.
fn set(folder: &Folder, recipe: &str, key: &str, value: &str) {
    let text = std::fs::read_to_string(folder.path(recipe)).expect("a recipe");
    let line = |line: &str| match line.split_once('=') {
        Some((name, _)) if name.trim() == key => format!("{key} = {value}\n"),
        _ => format!("{line}\n"),
    };
    folder.write(recipe, text.lines().map(line).collect::<String>());
}

#[test]
fn rows_become_a_recipe_a_run_figures_and_answers() {
    let folder = Folder::new();
    folder.copy(&root().join("datasets/quickstart"), "orders");
    let base = root().join("recipes/pocket").display().to_string();
    let shown =
        must(&folder, &["init", "--base", &base, "--data", "orders/train.jsonl", "--memory", "2GB", "--yes"]);
    assert!(shown.contains("wrote    recipes/orders.toml"), "{shown}");
    let recipe = "recipes/orders.toml";

    // Of each row the answer and its end are bright, the rest is only given.
    let preview = events(&folder, &["preview", recipe, "--rows", "2"]);
    let pieces = &event(&preview, "example")["example"]["sequences"][0]["pieces"];
    let learnt: Vec<&Value> =
        pieces.as_array().expect("pieces").iter().filter(|piece| piece["weight"] != 0.0).collect();
    assert_eq!(learnt.len(), 1, "{pieces}");
    assert!(learnt[0]["text"].as_str().expect("text").starts_with("{\"name\": "), "{pieces}");

    let plan = events(&folder, &["plan", recipe, "--probe"]);
    let plan = event(&plan, "plan");
    assert_eq!(plan["plan"]["unit"], "rows");
    let estimate = &plan["estimate"];
    let number = |key: &str| estimate[key].as_f64().unwrap_or_else(|| panic!("{estimate}"));
    assert!(number("training_seconds") > 0.0 && number("forward_seconds") > 0.0, "{estimate}");
    let seconds = number("training_tokens") / number("training_tokens_per_second");
    assert!((seconds / number("training_seconds") - 1.0).abs() < 1e-9, "{estimate}");
    assert!(number("forward_tokens_per_second") > number("training_tokens_per_second"), "{estimate}");

    for (key, value) in [("epochs", "1"), ("eval_every", "60")] {
        set(&folder, recipe, key, value);
    }
    let shown = must(&folder, &["train", recipe]);
    assert!(shown.contains("wrote    runs/orders/adapter"), "{shown}");

    let measured = events(&folder, &["eval", "runs/orders", "--rows", "20"]);
    let figures = &event(&measured, "report")["report"]["figures"];
    let matched = |at: usize| figures[at]["exact_match"]["n"].as_u64().unwrap_or_else(|| panic!("{figures}"));
    assert!(matched(0) == 0 && matched(1) >= 18, "{figures}");

    let question = "Record: Anna Berg ordered 3 blue lamps in Lisbon on 4 May 2021.";
    let answer = must(&folder, &["chat", "runs/orders", "--prompt", question]);
    let expected =
        r#"{"name": "Anna Berg", "count": 3, "item": "blue lamps", "city": "Lisbon", "date": "4 May 2021"}"#;
    assert!(answer.contains(expected), "{answer}");
    // A pipe is one question, too.
    let mut piped = here(&folder, &["chat", "runs/orders"]);
    let mut piped = piped.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("tune");
    piped.stdin.take().expect("a pipe").write_all(question.as_bytes()).expect("a question");
    let output = piped.wait_with_output().expect("an answer");
    assert!(String::from_utf8_lossy(&output.stdout).contains(expected), "{output:?}");
}

#[test]
fn pairs_become_a_run_that_is_exported() {
    let folder = Folder::new();
    let rows = std::fs::read_to_string(root().join("datasets/quickstart/train.jsonl")).expect("rows");
    let pair = |line: &str| {
        let row: Value = serde_json::from_str(line).expect("a row");
        let [asked, answer] =
            [0, 1].map(|at| row["messages"][at]["content"].as_str().expect("content").to_owned());
        json!({"prompt": asked, "chosen": answer, "rejected": format!("I think: {answer}")}).to_string()
            + "\n"
    };
    folder.write("pairs.jsonl", rows.lines().take(200).map(pair).collect::<String>());
    let base = root().join("recipes/pocket").display().to_string();
    must(&folder, &["init", "--base", &base, "--data", "pairs.jsonl", "--memory", "2GB", "--yes"]);
    let recipe = std::fs::read_to_string(folder.path("recipes/pairs.toml")).expect("a recipe");
    assert!(recipe.contains("method = \"orpo\""), "{recipe}");
    for (name, method) in [("pairs", "\"orpo\""), ("liked", "\"dpo\"")] {
        let path = format!("recipes/{name}.toml");
        folder.write(&path, &recipe);
        set(&folder, &path, "method", method);
        set(&folder, &path, "epochs", "1");
        let shown = must(&folder, &["train", &path]);
        assert!(shown.contains("of the pairs right") && shown.contains(" pairs · "), "{shown}");
        let run = format!("runs/{name}");
        let report = std::fs::read_to_string(folder.path(&format!("{run}/report.html"))).expect("a report");
        assert!(report.contains("Pairs") || report.contains("pairs"), "the report tells of pairs");
        let shown = must(&folder, &["export", &run, "--quant", "q8_0"]);
        assert!(shown.contains("wrote    "), "{shown}");
        let files = std::fs::read_dir(folder.path(&format!("{run}/export"))).expect("an export");
        let names: Vec<String> =
            files.map(|file| file.expect("a file").file_name().to_string_lossy().into_owned()).collect();
        assert!(names.iter().any(|name| name.ends_with("-q8_0.gguf")), "{names:?}");
        assert!(names.iter().any(|name| name == "receipt.json"), "{names:?}");
    }
}
