//! Bad input: a clear error with file and place, and nothing half-written.

use expect_test::{Expect, expect};
use trainer::{Error, Event, Init, Options, Start};

use crate::tiny_base::{Workplace, rows, train};

/// Runs with changed options or files; shows the error and its hint, and checks that nothing was written.
fn check(change: impl FnOnce(&Workplace, &mut Options), expected: Expect) {
    let place = Workplace::new();
    let mut options = place.options("run");
    change(&place, &mut options);
    let error = train(&options).0.unwrap_err();
    let hint = error.hint().map_or_else(String::new, |hint| format!("\nhint: {hint}"));
    expected.assert_eq(
        &format!("{error}{hint}").replace(&format!("{}/", place.path("").display()).replace("//", "/"), ""),
    );
    assert!(!options.run_dir.exists(), "something was written");
}

#[test]
fn options_that_cannot_be() {
    check(
        |_, options| options.adapter.targets = vec!["q".into()],
        expect![
            "`adapter.targets` names `q`, which is neither all-linear nor one of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj, nor a regular expression for whole names such as `model.layers.0.self_attn.o_proj`"
        ],
    );
    check(
        |_, options| (options.adapter.init, options.model.quant) = (Init::LoftQ, Some("bf16".into())),
        expect![
            "`adapter.init` makes up for what quantising loses, and `model.quant` loses nothing: use \"default\""
        ],
    );
    check(
        |_, options| (options.adapter.init, options.adapter.dora) = (Init::Pissa, true),
        expect![
            "`adapter.init` must be \"default\" with `adapter.dora`: the result could not be written as an adapter of the published base"
        ],
    );
    check(|_, options| options.train.batch_size = 0, expect!["`train.batch_size` must be at least 1"]);
    check(
        |_, options| options.data.val_split = f32::NAN,
        expect!["`data.val_split` must lie between 0 and 0.5"],
    );
    check(
        |_, options| options.model.quant = Some("q4_m_k".into()),
        expect![
            "unknown quantisation `q4_m_k` (valid: q4_k_m, q5_k_m, q6_k, q8_0, q2_k, q3_k_s, q3_k_m, q3_k_l, q4_k_s, q5_k_s, q4_0, q4_1, q5_0, q5_1, iq4_nl, iq4_xs, iq3_m, iq3_s, nf4, nf4_ic, f16, bf16, f32)"
        ],
    );
}

#[test]
fn data_that_cannot_be_read() {
    check(
        |place, _| place.write_data("train.jsonl", ""),
        expect![[r#"
        train.jsonl: the data file has no rows
        hint: a data file is JSON objects, one a line, or one JSON array of them"#]],
    );
    check(
        |_, options| options.data.train = vec![options.run_dir.with_file_name("absent.jsonl").into()],
        expect!["absent.jsonl: No such file or directory (os error 2)"],
    );
    check(
        |place, _| place.write_data("train.jsonl", &(rows(0..2) + "{\"messages\": [\n")),
        expect![[r#"
        train.jsonl:3: broken JSON at column 14: EOF while parsing a list
        hint: a row is one JSON object with `messages`, `conversations`, `instruction` and `output`, `prompt` and `completion`, `chosen` and `rejected`, or `text`; `fields` names keys that are called otherwise, `data.max_bad_rows` lets broken rows pass"#]],
    );
    check(
        |place, _| place.write_data("train.jsonl", &rows(0..2).replace("assistant", "user")),
        expect![[r#"
            train.jsonl:1: the conversation has no assistant turn
            hint: add the answer that is to be learned, or remove the row"#]],
    );
    check(
        |place, options| {
            place
                .write_data("train.jsonl", &(rows(0..2) + &rows(3..4).replace("it is", &"long ".repeat(30))));
            options.data.max_seq_len = 100;
        },
        expect![[r#"
            train.jsonl:3: the row has 182 tokens, `data.max_seq_len` is 100
            hint: raise `data.max_seq_len`, or set `data.on_too_long` to "drop" or "truncate""#]],
    );
    check(
        |place, _| place.write_data("train.jsonl", &(rows(0..2) + "{\"text\": \"x\"}\n")),
        expect![[r#"
            train.jsonl:3: the row has no token to learn
            hint: a row is one JSON object with `messages`, `conversations`, `instruction` and `output`, `prompt` and `completion`, `chosen` and `rejected`, or `text`; `fields` names keys that are called otherwise, `data.max_bad_rows` lets broken rows pass"#]],
    );
}

#[test]
fn rows_that_never_end_a_turn() {
    check(
        |place, options| {
            place.write_data("train.jsonl", &rows(0..9).replace("it is", &"long ".repeat(30)));
            options.data.max_seq_len = 80;
            options.data.on_too_long = trainer::OnTooLong::Truncate;
        },
        expect![[r#"
            no row has the end-of-turn token `<|im_end|>` among the tokens that are learned
            hint: the model would never end its answer; raise `data.max_seq_len`, or check the chat template"#]],
    );
}

#[test]
fn bases_whose_parts_do_not_fit() {
    check(
        |place, _| std::fs::remove_dir_all(place.base()).unwrap(),
        expect!["base/config.json is missing, expected the configuration of a Hugging Face model"],
    );
    check(
        |place, _| {
            let path = place.base().join("model.safetensors");
            let bytes = std::fs::read(&path).unwrap();
            std::fs::write(&path, &bytes[..bytes.len() - 100]).unwrap();
        },
        expect![
            "base/model.safetensors: tensor `model.norm.weight` lies at bytes 320768..321024, the data ends at 320924"
        ],
    );
    let edit = |place: &Workplace, from: &str, to: &str| {
        let path = place.base().join("config.json");
        let config = std::fs::read_to_string(&path).unwrap();
        assert!(config.contains(from));
        std::fs::write(&path, config.replace(from, to)).unwrap();
    };
    check(
        |place, _| edit(place, "\"intermediate_size\": 96", "\"intermediate_size\": 128"),
        expect!["tensor `model.layers.0.mlp.gate_proj.weight` has shape [96, 64], expected [128, 64]"],
    );
    check(
        |place, _| {
            let path = place.base().join("tokenizer.json");
            let tokenizer = std::fs::read_to_string(&path).unwrap();
            std::fs::write(&path, tokenizer.replace("\"id\": 258", "\"id\": 300")).unwrap();
        },
        expect![[r#"
            base: the tokenizer has 301 tokens, but the base model's embedding has 288 rows
            hint: the tokenizer files are of another model; fetch the base again"#]],
    );
    check(
        |place, options| {
            place.write_data("train.jsonl", &rows(0..9).replace("it is", &"long ".repeat(60)));
            options.data.max_seq_len = 4096;
        },
        expect![[r#"
            a row has 330 tokens, the model in base handles at most 256 positions
            hint: set `data.max_seq_len` to 256 or less, and shorten longer test rows"#]],
    );
}

#[test]
fn budgets_that_are_too_small() {
    let place = Workplace::new();
    let mut options = place.options("run");
    options.budget.memory_bytes = Some(2_000_000);
    options.budget.reserve_bytes = 999_000;
    let error = train(&options).0.unwrap_err();
    let Error::BudgetTooSmall { need_bytes, have_bytes: 1_001_000, .. } = &error else { panic!("{error}") };
    // The need is measured in part; what it says must be enough.
    let hint = format!(
        "set `budget.memory` to at least {}MB more than `budget.reserve`",
        need_bytes.div_ceil(1 << 20)
    );
    assert_eq!(error.hint().unwrap(), hint);
    assert!(!options.run_dir.exists());
}

#[test]
fn a_second_run_in_the_same_folder() {
    let place = Workplace::new();
    let options = place.options("run");
    train(&options).0.unwrap();
    let before = std::fs::read(place.path("run/run.json")).unwrap();
    let error = train(&options).0.unwrap_err();
    assert!(matches!(error, Error::RunExists { .. }), "{error}");
    assert_eq!(error.hint().unwrap(), "continue it with --resume, or give this run another name");
    assert_eq!(std::fs::read(place.path("run/run.json")).unwrap(), before);
}

#[test]
fn nothing_to_resume() {
    let place = Workplace::new();
    let options = Options { start: Start::Resume, ..place.options("run") };
    let error = train(&options).0.unwrap_err();
    assert!(matches!(error, Error::NothingToResume { .. }), "{error}");
    assert!(!options.run_dir.exists());
}

#[test]
fn a_second_writer_is_told_who_is_first() {
    let place = Workplace::new();
    let options = place.options("run");
    let mut refused = Vec::new();
    let cancel = std::sync::atomic::AtomicBool::new(false);
    let mut observer = |event: Event| {
        if matches!(&event, Event::Step(step) if step.step == 3) {
            for start in [Start::Fresh, Start::Resume] {
                refused.push(train(&Options { start, ..options.clone() }).0.unwrap_err());
            }
        }
    };
    trainer::train(&options, &mut observer, &cancel).unwrap();
    assert_eq!(refused.len(), 2);
    for error in refused {
        let Error::RunLocked { pid, .. } = &error else { panic!("{error}") };
        assert_eq!(*pid, std::process::id().to_string());
    }
}

/// Changes the bytes of the base's weights.
fn damage(place: &Workplace, change: impl FnOnce(&mut Vec<u8>)) {
    let path = place.base().join("model.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    change(&mut bytes);
    std::fs::write(&path, bytes).unwrap();
}

#[test]
fn weights_of_a_type_that_is_none() {
    check(
        |place, _| {
            damage(place, |bytes| {
                let at = bytes.windows(5).position(|part| part == b"\"F32\"").unwrap();
                bytes[at + 1] = b'I';
            });
        },
        expect![[r#"
            base/model.safetensors: tensor `model.embed_tokens.weight` has type I32, which this program does not read
            hint: weights are read as F32, F16 or BF16: take the model's repository that has them so"#]],
    );
}

#[test]
fn a_weight_that_is_no_number_is_found_before_the_first_step() {
    let place = Workplace::new();
    damage(&place, |bytes| {
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    let (outcome, events) = train(&place.options("run"));
    expect!["weight (0, 63) of `model.norm.weight` is NaN: the checkpoint is damaged, download it again"]
        .assert_eq(&outcome.unwrap_err().to_string());
    assert!(!events.iter().any(|event| matches!(event, Event::Step(_))));
}
