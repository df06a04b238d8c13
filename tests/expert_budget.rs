//! `tune plan` of a pipeline and `tune suggest`, from the command line, on the base that ships with the project.

mod harness;

use harness::{Folder, tune};
use serde_json::Value;
use std::process::Output;

/// A folder with two exports of the shipped base and a pipeline over them.
fn place(extra: &str) -> (Folder, String) {
    let folder = Folder::new();
    let out = folder.text("export");
    let output =
        tune(&["export", "recipes/pocket", "--quant", "q8_0,q4_k_m", "--out", &out]).output().expect("tune");
    assert!(output.status.success(), "{}", folder.shown(&output));
    let file = |quant: &str| folder.text(&format!("export/{quant}/pocket-{quant}.gguf"));
    let pipeline = format!(
        "[experts.clean]\nfile = \"{}\"\nnum_ctx = 512\n{extra}\n\
         [experts.short]\nfile = \"{}\"\nnum_ctx = 512\n\
         [[steps]]\nname = \"one\"\nexpert = \"clean\"\nprompt = \"Clean up: {{{{ input }}}}\"\nmax_tokens = 8\n\
         [[steps]]\nname = \"two\"\nexpert = \"short\"\nprompt = \"Clean up: {{{{ steps.one.output }}}}\"\nmax_tokens = 8\n\
         [[steps]]\nname = \"three\"\nexpert = \"short\"\nprompt = \"Clean up: {{{{ steps.two.output }}}}\"\nmax_tokens = 8\n",
        file("q8_0"),
        file("q4_k_m"),
    );
    let path = folder.write("p.toml", pipeline);
    (folder, path)
}

fn lines(output: &Output) -> Vec<Value> {
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect()
}

#[test]
fn a_pipeline_is_planned_and_runs_in_what_was_planned() {
    let (folder, pipeline) = place("");
    let output = tune(&["plan", &pipeline]).output().expect("tune");
    let shown = folder.shown(&output);
    assert!(output.status.success(), "{shown}");
    for row in [
        "expert   clean · ",
        "step     one · loads clean",
        "two · loads short",
        "three · short, resident",
        "fits     each of 2 experts alone",
    ] {
        assert!(shown.contains(row), "no `{row}` in\n{shown}");
    }
    let planned = lines(&tune(&["plan", &pipeline, "--json"]).output().expect("tune"));
    folder.write("in.txt", "  tom bought  a lamp");
    let run = tune(&[
        "run",
        &pipeline,
        "--input",
        &folder.text("in.txt"),
        "--runs",
        &folder.text("runs"),
        "--json",
    ]);
    let mut run = run;
    let events = lines(&run.output().expect("tune"));
    for name in ["clean", "short"] {
        let of = |list: &[Value], event: &str| {
            let found = list.iter().find(|line| line["event"] == event && line["expert"] == name);
            found.unwrap_or_else(|| panic!("no {event} of {name} in {list:?}")).clone()
        };
        let (budget, loaded) = (of(&planned, "expert")["budget"]["main"].clone(), of(&events, "loaded"));
        let takes = &loaded["takes"];
        assert_eq!(budget["weights_bytes"], takes["weights_bytes"], "{budget} {takes}");
        let bytes = |value: &Value| value.as_f64().expect("bytes");
        // The engine's log has two digits of a MiB.
        assert!(
            (bytes(&budget["context_bytes"]) - bytes(&takes["context_bytes"])).abs() < 11e3,
            "{budget} {takes}"
        );
        let (plan, found) = (bytes(&budget["compute_bytes"]), bytes(&takes["compute_bytes"]));
        assert!(plan + 11e3 >= found && plan <= 1.02 * found + 100e3, "{budget} {takes}");
    }
}

#[test]
fn what_does_not_fit_is_refused_with_what_would() {
    let (folder, pipeline) = place("fallback = \"short\"");
    // The program's own and the card's overhead of 300 MiB leave 13 of 313 MB.
    let output = tune(&["plan", &pipeline, "--memory", "313MB", "--reserve", "0MB"]).output().expect("tune");
    let shown = folder.shown(&output);
    assert!(shown.ends_with("exit 1\n"), "{shown}");
    assert!(shown.contains("error    expert `") && shown.contains("on the graphics card"), "{shown}");
    assert!(shown.contains("hint     what would fit: num_batch = 128 ("), "{shown}");
    assert!(shown.contains("its fallback `short` ("), "{shown}");
    let listed =
        tune(&["plan", &pipeline, "--memory", "313MB", "--reserve", "0MB", "--json"]).output().expect("tune");
    let listed = lines(&listed);
    let expert =
        listed.iter().find(|line| line["expert"] == "clean" && line["event"] == "expert").expect("clean");
    assert_eq!(expert["fits"], false);
    for remedy in expert["remedies"].as_array().expect("a list") {
        assert!(remedy["need_bytes"].as_u64().expect("bytes") <= 313 << 20, "{remedy}");
    }

    let output = tune(&["plan", &pipeline, "--memory", "500MB"]).output().expect("tune");
    assert!(folder.shown(&output).contains("nothing is left"), "{}", folder.shown(&output));
    let neither = folder.write("neither.toml", "[data]\ntrain = \"x\"\n");
    let output = tune(&["plan", &neither]).output().expect("tune");
    assert!(folder.shown(&output).contains("neither a pipeline nor a recipe"), "{}", folder.shown(&output));
}

#[test]
fn a_base_is_suggested_with_its_budget() {
    let folder = Folder::new();
    for role in ["coding", "reasoning", "chat", "routing", "embedding"] {
        let output = tune(&["suggest", "--role", role, "--memory", "8GB", "--json"]).output().expect("tune");
        let shown = folder.shown(&output);
        assert!(output.status.success(), "{shown}");
        let answer = &lines(&output)[0];
        let need = answer["choice"]["need_bytes"].as_u64().expect("bytes");
        assert!(need <= (8 << 30) - (800 << 20), "{role}: {answer}");
        let output = tune(&["suggest", "--role", role, "--memory", "8GB"]).output().expect("tune");
        let shown = folder.shown(&output);
        for row in [
            "memory   7.22 GiB of a card of 8 GB",
            "base     ",
            "form     ",
            "takes    ",
            "next     tune pull ",
        ] {
            assert!(shown.contains(row), "{role}: no `{row}` in\n{shown}");
        }
    }
    let output = tune(&["suggest", "--role", "coding", "--memory", "2GB"]).output().expect("tune");
    let shown = folder.shown(&output);
    assert!(shown.ends_with("exit 1\n") && shown.contains("nothing for that role fits"), "{shown}");
    assert!(shown.contains("hint     the smallest is Qwen/"), "{shown}");
}
