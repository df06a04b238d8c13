//! Wrong input of every kind: a message that names file, place and way out, the right exit code, and nothing half-written.

mod harness;

use expect_test::{Expect, expect};
use harness::{Folder, recipe, root, tune};
use std::path::Path;
use std::process::Command;

/// Trains by a recipe that is wrong somewhere; no run may come of it.
fn check_train(folder: &Folder, recipe_text: &str, expected: Expect) {
    let path = folder.write("wrong.toml", recipe_text);
    let run_dir = folder.text("run");
    let output = tune(&["train", &path, "--run-dir", &run_dir]).output().expect("tune");
    expected.assert_eq(&errors(&folder.shown(&output)));
    assert!(!folder.path("run/adapter").exists(), "an adapter was written");
    assert!(!folder.path("run/checkpoints").exists(), "a checkpoint was written");
}

/// The error, its hint and the exit code; what was reported before them is not the subject here.
fn errors(shown: &str) -> String {
    let from = shown.find("error").unwrap_or(0);
    shown[from..].to_owned()
}

fn row(text: &str) -> String {
    format!(
        "{{\"messages\":[{{\"role\":\"user\",\"content\":\"{text}\"}},{{\"role\":\"assistant\",\"content\":\"yes\"}}]}}\n"
    )
}

#[test]
fn recipes() {
    let folder = Folder::new();
    check_train(
        &folder,
        &recipe(&[("learning_rate", "lerning_rate = 1e-3")]),
        expect![[r#"
            error    DIR/wrong.toml:9: unknown field `lerning_rate`, expected one of `method`, `beta`, `label_smoothing`, `rpo_alpha`, `epochs`, `max_steps`, `batch_size`, `gradient_accumulation_steps`, `learning_rate`, `lora_plus_ratio`, `scheduler`, `min_learning_rate`, `warmup`, `decay`, `weight_decay`, `moments`, `max_grad_norm`, `max_spike`, `seed`, `eval_every`, `checkpoint_every`, `keep_checkpoints`, `early_stopping`, `result`, `tensorboard`
            hint     did you mean `learning_rate`?
            exit 1
        "#]],
    );
    check_train(
        &folder,
        &recipe(&[("batch_size", "micro_batch_size = 4")]),
        expect![[r#"
            error    DIR/wrong.toml:8: unknown field `micro_batch_size`, expected one of `method`, `beta`, `label_smoothing`, `rpo_alpha`, `epochs`, `max_steps`, `batch_size`, `gradient_accumulation_steps`, `learning_rate`, `lora_plus_ratio`, `scheduler`, `min_learning_rate`, `warmup`, `decay`, `weight_decay`, `moments`, `max_grad_norm`, `max_spike`, `seed`, `eval_every`, `checkpoint_every`, `keep_checkpoints`, `early_stopping`, `result`, `tensorboard`
            hint     here it is called `train.batch_size`
            exit 1
        "#]],
    );
    check_train(
        &folder,
        &recipe(&[("batch_size", "batch_size = \"four\"")]),
        expect![[r#"
            error    DIR/wrong.toml:8: `batch_size`: invalid type: string "four", expected a whole number
            exit 1
        "#]],
    );
    check_train(
        &folder,
        &recipe(&[("max_steps", "max_steps = 0")]),
        expect![[r#"
            error    DIR/wrong.toml:7: `train.max_steps` must be at least 1
            exit 1
        "#]],
    );
    check_train(
        &folder,
        &recipe(&[("base", "base = \"recipes/pocket\"\nquant = \"q4_k_n\"")]),
        expect![[r#"
            error    DIR/wrong.toml:3: unknown quantisation `q4_k_n` (valid: q4_k_m, q5_k_m, q6_k, q8_0, q2_k, q3_k_s, q3_k_m, q3_k_l, q4_k_s, q5_k_s, q4_0, q4_1, q5_0, q5_1, iq4_nl, iq4_xs, iq3_m, iq3_s, nf4, nf4_ic, f16, bf16, f32)
            exit 1
        "#]],
    );
    let output = tune(&["train", &folder.text("none.toml")]).output().expect("tune");
    expect![[r#"
        error    cannot read DIR/none.toml: No such file or directory (os error 2)
        exit 1
    "#]]
    .assert_eq(&errors(&folder.shown(&output)));
}

#[test]
fn a_budget_too_small() {
    let folder = Folder::new();
    let text = recipe(&[("memory", "memory = \"9MB\""), ("reserve", "reserve = \"1MB\"")]);
    let path = folder.write("small.toml", text);
    let output = tune(&["train", &path, "--run-dir", &folder.text("run")]).output().expect("tune");
    // How much is needed depends on the number of processors.
    let shown: String = errors(&folder.shown(&output)).chars().filter(|c| !c.is_ascii_digit()).collect();
    expect![[r#"
        error    DIR/small.toml:: the plan needs . MiB, the budget leaves . MiB
        hint     set `budget.memory` to at least MB more than `budget.reserve`
        exit 
    "#]]
    .assert_eq(&shown);
}

#[test]
fn bases() {
    let folder = Folder::new();
    check_train(
        &folder,
        &recipe(&[("base", "base = \"recipes/nothing\"")]),
        expect![[r#"
            error    there is no base `recipes/nothing`
            hint     a base is a folder in Hugging Face layout, a GGUF, `ollama:NAME`, or a model of the hub: OWNER/NAME, OWNER/NAME@REVISION or OWNER/NAME:FILE.gguf, with hf.co/ before it where a folder has the owner's name; paths are relative to the folder tune is started in
            exit 1
        "#]],
    );

    let base_line = |folder: &Folder| format!("base = \"{}\"", folder.text("base"));
    let base = folder.copy(&root().join("recipes/pocket"), "base");
    let weights = std::fs::read(base.join("model.safetensors")).expect("weights");
    std::fs::write(base.join("model.safetensors"), &weights[..weights.len() / 2]).expect("a truncated file");
    check_train(
        &folder,
        &recipe(&[("base", &base_line(&folder))]),
        expect![[r#"
            error    DIR/base/model.safetensors: tensor `model.layers.2.mlp.up_proj.weight` lies at bytes 4983808..5377024, the data ends at 5243328
            hint     the file is damaged or cut short: fetch it again
            exit 1
        "#]],
    );
    std::fs::write(base.join("model.safetensors"), &weights).expect("the whole file");

    change(&base.join("config.json"), "\"intermediate_size\": 768", "\"intermediate_size\": 512");
    check_train(
        &folder,
        &recipe(&[("base", &base_line(&folder))]),
        expect![[r#"
            error    DIR/base: tensor `model.layers.0.mlp.gate_proj.weight` has shape [768, 256], expected [512, 256]
            hint     config.json and the weights must be of the same model
            exit 1
        "#]],
    );
    change(&base.join("config.json"), "\"intermediate_size\": 512", "\"intermediate_size\": 768");

    change(&base.join("config.json"), "Qwen3ForCausalLM", "BertModel");
    check_train(
        &folder,
        &recipe(&[("base", &base_line(&folder))]),
        expect![[r#"
            error    DIR/base/config.json: architecture `BertModel` is not supported (supported: LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, Qwen3ForCausalLM, Phi3ForCausalLM, Gemma3ForCausalLM, Gemma3ForConditionalGeneration, Starcoder2ForCausalLM, Mamba2ForCausalLM, DeepseekV2ForCausalLM)
            exit 1
        "#]],
    );
    change(&base.join("config.json"), "BertModel", "Qwen3ForCausalLM");

    if let Some(other) = harness::shared("assets/models/Qwen3-0.6B/tokenizer.json") {
        std::fs::copy(other, base.join("tokenizer.json")).expect("another tokenizer");
        check_train(
            &folder,
            &recipe(&[("base", &base_line(&folder))]),
            expect![[r#"
            error    DIR/base: the tokenizer has 151669 tokens, but the base model's embedding has 2048 rows
            hint     the tokenizer files are of another model; fetch the base again
            exit 1
        "#]],
        );
    }
}

fn change(path: &Path, from: &str, to: &str) {
    let text = std::fs::read_to_string(path).expect("a text file");
    assert!(text.contains(from), "{} has no {from}", path.display());
    std::fs::write(path, text.replace(from, to)).expect("a changed file");
}

#[test]
fn datasets() {
    let folder = Folder::new();
    let check = |content: &str, expected: Expect| {
        let data = folder.write("data.jsonl", content);
        let line = format!("train = \"{data}\"");
        check_train(&folder, &recipe(&[("train =", &line)]), expected);
    };
    check(
        "",
        expect![[r#"
        error    DIR/data.jsonl: the data file has no rows
        hint     a data file is JSON objects, one a line, or one JSON array of them
        exit 1
    "#]],
    );
    check(
        &format!("{}{{\"messages\":[{{\"role\":\"user\",\"content\":\"hi\"}}]}}\n", row("a")),
        expect![[r#"
        error    DIR/data.jsonl:2: the conversation has no assistant turn
        hint     add the answer that is to be learned, or remove the row
        exit 1
    "#]],
    );
    check(
        &format!("{}{{\"messages\":[\n", row("a")),
        expect![[r#"
        error    DIR/data.jsonl:2: broken JSON at column 13: EOF while parsing a list
        hint     a row is one JSON object with `messages`, `conversations`, `instruction` and `output`, `prompt` and `completion`, `chosen` and `rejected`, or `text`; `fields` names keys that are called otherwise, `data.max_bad_rows` lets broken rows pass
        exit 1
    "#]],
    );
    check(
        &format!("{}{{\"colour\":\"red\"}}\n", row("a")),
        expect![[r#"
        error    DIR/data.jsonl:2: the row's keys tell of no known format: `colour`
        hint     a row is one JSON object with `messages`, `conversations`, `instruction` and `output`, `prompt` and `completion`, `chosen` and `rejected`, or `text`; `fields` names keys that are called otherwise, `data.max_bad_rows` lets broken rows pass
        exit 1
    "#]],
    );
    check(
        &format!("{}{}", row("a"), row(&"word ".repeat(400))),
        expect![[r#"
        error    DIR/data.jsonl:2: the row has 414 tokens, `data.max_seq_len` is 256
        hint     raise `data.max_seq_len`, or set `data.on_too_long` to "drop" or "truncate"
        exit 1
    "#]],
    );
}

#[test]
fn exports() {
    let folder = Folder::new();
    let check = |arguments: &[&str], expected: Expect| {
        let output = tune(arguments).output().expect("tune");
        expected.assert_eq(&errors(&folder.shown(&output)));
        assert!(
            !folder.path("out").exists()
                || std::fs::read_dir(folder.path("out")).expect("a folder").next().is_none()
        );
    };
    let out = folder.text("out");
    check(
        &["export", "recipes/pocket", "--quant", "q4_k_n", "--out", &out],
        expect![[r#"
        error    unknown quantisation `q4_k_n` (valid: q4_k_m, q5_k_m, q6_k, q8_0, q2_k, q3_k_s, q3_k_m, q3_k_l, q4_k_s, q5_k_s, q4_0, q4_1, q5_0, q5_1, iq4_nl, iq4_xs, iq3_m, iq3_s, iq3_xs, iq3_xxs, iq2_m, iq2_s, iq2_xs, iq2_xxs, f16, bf16, f32)
        hint     did you mean `q4_k_m`?
        exit 1
    "#]],
    );
    check(
        &["export", "recipes/pocket", "--quant", "iq2_xs", "--out", &out],
        expect![[r#"
        error    iq2_xs needs an importance matrix: without one the file is garbage
        hint     measure one with `--imatrix train` or `--imatrix general`, or choose iq3_m or larger
        exit 1
    "#]],
    );
    check(
        &["export", "recipes/pocket", "--imatrix", "train", "--out", &out],
        expect![[r#"
        error    a base has no training data to measure importance on
        hint     measure it on the general text with `--imatrix general`, or name a file
        exit 1
    "#]],
    );
    check(
        &["export", "recipes/pocket", "--imatrix", "nowhere.gguf", "--out", &out],
        expect![[r#"
        error    there is no importance matrix nowhere.gguf
        hint     it is `train`, `general`, `off` or the path of an imatrix.gguf
        exit 1
    "#]],
    );
    check(
        &["export", &folder.text("nothing"), "--out", &out],
        expect![[r#"
            error    DIR/nothing is neither a run nor a model's folder
            hint     a run has recipe.toml and adapter/, a model's folder has config.json, a GGUF ends in .gguf, a model of the hub is hf.co/OWNER/NAME
            exit 1
        "#]],
    );
    check(
        &["export", "datasets", "--out", &out],
        expect![[r#"
            error    datasets is neither a run nor a model's folder
            hint     a run has recipe.toml and adapter/, a model's folder has config.json, a GGUF ends in .gguf, a model of the hub is hf.co/OWNER/NAME
            exit 1
        "#]],
    );
}

#[test]
fn an_adapter_of_another_base_is_refused() {
    let folder = Folder::new();
    let recipe_path = folder.write("r.toml", recipe(&[]));
    let run = folder.text("run");
    let trained = tune(&["train", &recipe_path, "--run-dir", &run]).output().expect("tune");
    assert!(trained.status.success(), "{}", folder.shown(&trained));
    let other = folder.copy(&root().join("recipes/pocket"), "other");
    let mut weights = std::fs::read(other.join("model.safetensors")).expect("weights");
    let last = weights.len() - 1;
    weights[last] ^= 1;
    std::fs::write(other.join("model.safetensors"), weights).expect("another base");
    change(&folder.path("run/recipe.toml"), "recipes/pocket", &other.display().to_string());
    let output = tune(&["export", &run]).output().expect("tune");
    expect![[r#"
        error    the adapter DIR/run/adapter was trained on another base: it records a2d6cadf2538e48ad6bffd06931938e7e83e6a17c6c2b0e2fdb74dbe4748dcb6, DIR/other is 219c43c474976dc1b253071f70e0a36067ad53d8e1a26e56d7bbafd17222c089
        hint     see `base_path` in the adapter's tune.json for the base it belongs to
        exit 1
    "#]].assert_eq(&errors(&folder.shown(&output)));
    assert!(!folder.path("run/export").join("run-q4_k_m.gguf").exists());
}

#[test]
fn pipelines_and_ports() {
    let folder = Folder::new();
    let input = folder.write("in.txt", "hello\n");
    let pipeline = folder.write(
        "p.toml",
        "name = \"p\"\n[experts.a]\nfile = \"nowhere.gguf\"\n[[steps]]\nname = \"s\"\nexpert = \"b\"\nprompt = \"{{ input }}\"\n",
    );
    let output = tune(&["run", &pipeline, "--input", &input]).output().expect("tune");
    expect![[r#"
        error    DIR/p.toml: nowhere.gguf does not exist
        hint     make it with tune export; paths are relative to the folder you are in
        exit 1
    "#]]
    .assert_eq(&errors(&folder.shown(&output)));

    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port().to_string();
    let output = tune(&["serve", "--port", &port]).output().expect("tune");
    expect![[r#"
        error    can't listen on 127.0.0.1:PORT: Address already in use (os error 98)
        hint     choose another port with --port
        exit 1
    "#]]
    .assert_eq(&errors(&folder.shown(&output)).replace(&port, "PORT"));
}

#[test]
fn experts_on_servers() {
    let folder = Folder::new();
    let input = folder.write("in.txt", "hello\n");
    let step = "[[steps]]\nname = \"s\"\nexpert = \"a\"\nprompt = \"{{ input }}\"\n";
    // A port that was free a moment ago.
    let port = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("one").port();
    let check = |command: &str, expert: &str, expected: Expect| {
        let pipeline = folder.write("p.toml", format!("{expert}{step}"));
        let arguments: &[&str] =
            if command == "run" { &["run", &pipeline, "--input", &input] } else { &[command, &pipeline] };
        let mut tune = tune(arguments);
        let output = tune.env("OLLAMA_HOST", format!("127.0.0.1:{port}")).env_remove("NO_SUCH_KEY").output();
        let shown = errors(&folder.shown(&output.expect("tune")));
        expected.assert_eq(&shown.replace(&port.to_string(), "PORT"));
    };
    for command in ["plan", "run", "serve"] {
        check(
            command,
            "[experts.a]\nollama = \"poet\"\n",
            expect![[r#"
                error    DIR/p.toml: http://127.0.0.1:PORT can't tell its version: Connection refused (os error 111) (after 3 tries)
                hint     is Ollama running there? `ollama serve` starts it
                exit 1
            "#]],
        );
    }
    check(
        "run",
        "[experts.a]\nopenai = \"m\"\nurl = \"https://api.example.com/v1\"\nkey_env = \"NO_SUCH_KEY\"\n",
        expect![[r#"
            error    expert `a`: the environment variable NO_SUCH_KEY is not set
            hint     it is to hold the key for https://api.example.com/v1; the file names it by `key_env`
            exit 1
        "#]],
    );
    check(
        "plan",
        "local = true\n[experts.a]\nopenai = \"m\"\nurl = \"https://api.example.com/v1\"\n",
        expect![[r#"
            error    DIR/p.toml: pipeline `p`: experts.a.url: https://api.example.com/v1 is not this machine, and the pipeline says `local = true`
            exit 1
        "#]],
    );
}

/// A disk of 2 MB, where the system lets us have one.
struct SmallDisk<'a>(&'a Path);

impl SmallDisk<'_> {
    fn mount(at: &Path) -> Option<SmallDisk<'_>> {
        std::fs::create_dir_all(at).expect("a folder");
        let mounted = Command::new("mount").args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"]).arg(at).output();
        if mounted.is_ok_and(|output| output.status.success()) {
            return Some(SmallDisk(at));
        }
        println!("skipped: no small disk can be mounted here (needs root)");
        None
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        drop(Command::new("umount").arg(self.0).output());
    }
}

#[test]
fn a_full_disk() {
    let folder = Folder::new();
    let small = folder.path("small");
    let Some(_disk) = SmallDisk::mount(&small) else { return };
    let out = folder.text("small/out");
    let output =
        tune(&["export", "recipes/pocket", "--quant", "q4_k_m", "--out", &out]).output().expect("tune");
    expect![[r#"
        error    no room for DIR/small/out/pocket-q4_k_m.gguf: it needs 3282016 bytes, 2097152 are free on its disk
        hint     free some room, or write to another disk
        exit 1
    "#]].assert_eq(&errors(&folder.shown(&output)));
    let written = std::fs::read_dir(&out).map_or(0, |entries| entries.flatten().count());
    assert_eq!(written, 0, "something was left on the full disk");

    let recipe_path = folder.write("r.toml", recipe(&[]));
    let run = folder.text("small/run");
    let output = tune(&["train", &recipe_path, "--run-dir", &run]).output().expect("tune");
    expect![[r#"
        error    DIR/small/run: the run needs 28704768 bytes of disk, 2097152 are free
        hint     free some space, or lower `train.keep`
        exit 1
    "#]]
    .assert_eq(&errors(&folder.shown(&output)));
}
