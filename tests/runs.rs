//! `tune runs`: listing, showing, comparing and cleaning up training runs, from the command line.

mod harness;

use harness::{Folder, recipe, tune};
use serde_json::Value;

fn output(folder: &Folder, arguments: &[&str]) -> (bool, String) {
    let output = tune(arguments).output().expect("tune");
    (output.status.success(), folder.shown(&output))
}

fn must(folder: &Folder, arguments: &[&str]) -> String {
    let (success, shown) = output(folder, arguments);
    assert!(success, "tune {arguments:?}\n{shown}");
    shown
}

/// Two finished runs that differ in their rate.
fn two_runs(folder: &Folder) {
    for (name, rate) in [("slow", "1e-4"), ("fast", "1e-3")] {
        let changes = [
            ("learning_rate", format!("learning_rate = {rate}\ntensorboard = true")),
            ("rows", "rows = 1".into()),
            ("max_new_tokens", "max_new_tokens = 4".into()),
        ];
        let changes: Vec<_> = changes.iter().map(|(key, line)| (*key, line.as_str())).collect();
        let path = folder.write(&format!("{name}.toml"), recipe(&changes));
        let shown = must(folder, &["train", &path, "--run-dir", &folder.text(&format!("runs/{name}"))]);
        assert!(shown.contains(&format!("report   DIR/runs/{name}/report.html")), "{shown}");
    }
}

fn json_lines(shown: &str) -> Vec<Value> {
    shown
        .lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| serde_json::from_str(line).expect("JSON"))
        .collect()
}

#[test]
fn runs_are_listed_shown_compared_and_cleaned_up() {
    let folder = Folder::new();
    let (_, shown) = output(&folder, &["runs", "--in", &folder.text("runs")]);
    assert!(shown.contains("no training runs in DIR/runs"), "{shown}");
    two_runs(&folder);
    // One that cannot be read is named and hides no other; what is no run is passed over.
    folder.write("runs/broken/run.json", "{");
    folder.write("runs/pipelines/one/journal.jsonl", "");
    let runs = folder.text("runs");

    let shown = must(&folder, &["runs", "--in", &runs]);
    for word in [
        "run   base",
        "fast  recipes/pocket  finished    6/6",
        "slow  recipes/pocket",
        " MiB",
        "broken/run.json",
    ] {
        assert!(shown.contains(word), "`{word}` is missing in\n{shown}");
    }
    let listed = json_lines(&must(&folder, &["runs", "--json", "--in", &runs]));
    assert_eq!(listed.len(), 2);
    assert_eq!(
        (&listed[0]["name"], &listed[0]["state"], &listed[0]["steps"]),
        (&"fast".into(), &"finished".into(), &6.into())
    );

    let shown = must(&folder, &["runs", "show", "fast", "--in", &runs]);
    for word in
        ["finished", "rows · ", "train.learning_rate = 0.001", "checkpoints/", "tune export DIR/runs/fast"]
    {
        assert!(shown.contains(word), "`{word}` is missing in\n{shown}");
    }
    let (success, shown) = output(&folder, &["runs", "show", "fats", "--in", &runs]);
    assert!(!success && shown.contains("did you mean `fast`?"), "{shown}");

    let page = folder.text("both.html");
    let shown = must(&folder, &["runs", "compare", "fast", "slow", "--html", &page, "--in", &runs]);
    for word in ["train.learning_rate  0.001", "0.0001", "validation loss", "wrote    DIR/both.html"] {
        assert!(shown.contains(word), "`{word}` is missing in\n{shown}");
    }
    assert!(!shown.contains("train.batch_size"), "{shown}");
    let page = std::fs::read_to_string(page).expect("a page");
    assert_eq!(page.matches("<figure").count(), 2);

    std::fs::remove_file(folder.path("runs/fast/report.html")).expect("a report");
    must(&folder, &["runs", "report", "fast", "--in", &runs]);
    assert!(folder.path("runs/fast/report.html").is_file());

    let shown = must(&folder, &["runs", "clean", "--in", &runs]);
    assert!(shown.contains("DIR/runs/fast/checkpoints  (the run is finished)"), "{shown}");
    assert!(shown.contains("--yes"), "{shown}");
    assert!(folder.path("runs/fast/checkpoints").is_dir(), "nothing goes without --yes");
    let removed = json_lines(&must(&folder, &["runs", "clean", "fast", "--yes", "--json", "--in", &runs]));
    assert_eq!((removed.len(), &removed[0]["removed"]), (1, &true.into()));
    assert!(removed[0]["bytes"].as_u64().is_some_and(|bytes| bytes > 1 << 20));
    assert!(!folder.path("runs/fast/checkpoints").exists() && folder.path("runs/slow/checkpoints").exists());
    assert!(folder.path("runs/fast/adapter/adapter_model.safetensors").is_file());
    let shown = must(&folder, &["runs", "clean", "fast", "--in", &runs]);
    assert!(shown.contains("nothing is left over"), "{shown}");
}
