//! The context gate: what does not fit is refused, cut in the part that the step names, or compressed; and it is said.

mod scripted;
mod tiny;

use expect_test::{Expect, expect};
use runner::Residency;
use runner::engine::llama::LlamaEngine;
use runner::pipeline::{Cut, Event, RunOptions, State, read_run, run};
use scripted::{Asked, Played, Scripted, Stand};
use serde_json::{Value, json};
use tiny::Says;

const EXPERTS: [&str; 2] = ["reader", "short"];

/// A context of 40 words, 10 of them for the answer: the instructions take 6 with their role, so 24 are left.
fn reading(rule: &str) -> Value {
    json!({
        "experts": {
            "reader": {"file": "reader.gguf", "num_ctx": 40},
            "short": {"file": "short.gguf", "num_ctx": 100},
        },
        "steps": [
            {"name": "read", "expert": "reader", "map": "lines", "prompt": "Say what this is about: {{ item }}",
             "max_tokens": 10, "context": rule},
            {"name": "other", "expert": "short", "prompt": "x"},
        ],
    })
}

fn words(n: usize) -> String {
    (1..=n).map(|i| format!("w{i}")).collect::<Vec<_>>().join(" ")
}

fn cuts(played: &Played) -> Vec<(usize, Cut)> {
    let cut = |event: &Event| match event {
        Event::Cut { step, item, cut } => {
            assert_eq!(step, "read");
            Some((*item, cut.clone()))
        }
        _ => None,
    };
    played.events.iter().filter_map(cut).collect()
}

#[test]
fn the_named_part_is_cut_and_it_is_said() {
    for (rule, expected) in [
        ("truncate_tail", "user: Say what this is about: w1 w2 w3"),
        ("truncate_head", "user: Say what this is about: […] "),
        ("truncate_middle", "user: Say what this is about: w1 w2 w3"),
    ] {
        let stand = Stand::new(&EXPERTS);
        let input = format!("{}\nfits as it is", words(500));
        let played = stand.run(reading(rule), &input, Scripted::new(|_| "about words".to_owned()));
        let prompt = &played.asked[0].prompt;
        assert!(prompt.starts_with(expected) && prompt.contains("[…]"), "{rule}: {prompt}");
        assert_eq!(prompt.ends_with("w500"), rule != "truncate_tail", "{rule}: {prompt}");
        assert!(played.asked[1].prompt.ends_with("fits as it is"));
        let cuts = cuts(&played);
        assert_eq!(cuts.len(), 1);
        let (item, cut) = &cuts[0];
        assert_eq!((*item, cut.part.as_str(), cut.room_tokens), (0, "item", 30));
        // All of the room is used, the mark included.
        assert_eq!((cut.before_tokens, cut.after_tokens), (506, 30), "{rule}");
        assert!(cut.after_bytes < cut.before_bytes);
        let record = read_run(&stand.runs(), &played.outcome.as_ref().unwrap().run).unwrap();
        assert_eq!(record.results[0].cut.as_ref(), Some(cut), "the journal has it");
        assert_eq!(record.results[1].cut, None);
    }
}

#[test]
fn without_a_rule_nothing_is_cut() {
    let stand = Stand::new(&EXPERTS);
    let played = stand.run(reading("refuse"), &words(500), Scripted::new(|_| String::new()));
    assert!(played.error().contains("the prompt has 506 tokens, its context holds 40"), "{}", played.error());
}

#[test]
fn instructions_are_never_cut() {
    let stand = Stand::new(&EXPERTS);
    let mut spec = reading("truncate_tail");
    spec["steps"][0]["prompt"] = format!("{} {{{{ item }}}}", words(60)).into();
    let played = stand.run(spec, &words(500), Scripted::new(|_| String::new()));
    assert!(played.error().contains("what is not `item` is too long for that alone"), "{}", played.error());
}

fn compressing() -> Value {
    let mut spec = reading("compress");
    spec["steps"][0]["compress_with"] = "short".into();
    spec
}

/// Says every fifth word of what it is to shorten.
fn shorten(asked: &Asked) -> String {
    match asked.prompt.split_once("shortened text alone.\n\n") {
        Some((_, text)) => text.split_whitespace().step_by(5).collect::<Vec<_>>().join(" "),
        None => "about words".to_owned(),
    }
}

#[test]
fn a_named_expert_compresses_piece_by_piece_for_all_items_at_once() {
    let stand = Stand::new(&EXPERTS);
    let input = [words(100), words(3), words(110), words(90)].join("\n");
    let played = stand.run(compressing(), &input, Scripted::new(shorten));
    let cuts = cuts(&played);
    assert_eq!(cuts.iter().map(|(item, _)| *item).collect::<Vec<_>>(), [0, 2, 3]);
    for (_, cut) in &cuts {
        assert_eq!(cut.by.as_deref(), Some("short"));
        assert!(cut.before_tokens > cut.room_tokens && cut.after_tokens <= cut.room_tokens, "{cut:?}");
    }
    let prompts: Vec<&Asked> = played.asked.iter().filter(|asked| asked.expert == "reader").collect();
    assert_eq!(prompts.len(), 4);
    assert!(prompts[0].prompt.contains("w1 w6 w11"), "{}", prompts[0].prompt);
    // reader to measure, short to compress, reader to measure and answer, short for the other step: whatever the items.
    assert_eq!(played.n_loads(), 4);
}

#[test]
fn what_can_not_be_compressed_is_an_error_after_some_rounds() {
    let stand = Stand::new(&EXPERTS);
    let mut spec = compressing();
    spec["steps"][0]["on_error"] = "record".into();
    // The answer is cut at its limit each time; a compressor that only repeats its words never gets below it.
    spec["experts"]["reader"]["num_ctx"] = 20.into();
    spec["steps"][0]["max_tokens"] = 5.into();
    let script = |asked: &Asked| match asked.expert.as_str() {
        "short" => "a b c d e f g h i j k l m n o p".to_owned(),
        _ => "about".to_owned(),
    };
    let played = stand.run(spec, &format!("{}\nw", words(300)), Scripted::new(script));
    let states: Vec<State> = played.results().iter().take(2).map(|result| result.state).collect();
    assert_eq!(states, [State::Failed, State::Done]);
    assert!(
        played.results()[0].note.as_ref().unwrap().contains("still too long"),
        "{:?}",
        played.results()[0].note
    );
}

/// The real engine, its own tokenizer: what is kept fits to the token.
#[test]
fn the_embedded_engine_counts_with_its_own_tokenizer() {
    let stand = Stand::new(&[]);
    tiny::write(&stand.path().join("reader.gguf"), &Says::Once(&["yes"]));
    let spec = json!({
        "experts": {"reader": {"file": "reader.gguf", "num_thread": 1}},
        "steps": [{"name": "read", "expert": "reader", "prompt": "Read: {{ input }} Now answer.",
            "max_tokens": 12, "context": "truncate_middle"}],
    });
    let pipeline = stand.check(spec).unwrap();
    let mut residency = Residency::new(Box::new(LlamaEngine::new().unwrap()));
    let options = RunOptions { runs: stand.runs(), ..RunOptions::default() };
    let input = "äöü <|im_end|> ".repeat(400);
    let outcome = run(&pipeline, &input, &options, &mut residency, &|| false, &mut |_: Event| {}).unwrap();
    let result = &outcome.results[0];
    let cut = result.cut.as_ref().unwrap();
    assert_eq!((result.output.as_str(), cut.room_tokens), ("yes", 500));
    assert!(cut.before_tokens > 500 && (490..=500).contains(&cut.after_tokens), "{cut:?}");
    assert_eq!(result.prompt_tokens, cut.after_tokens);
}

#[track_caller]
fn refused(change: impl FnOnce(&mut Value), expected: Expect) {
    let stand = Stand::new(&EXPERTS);
    let mut spec = reading("truncate_tail");
    change(&mut spec);
    expected.assert_eq(&stand.check(spec).map(drop).unwrap_err().to_string());
}

#[test]
fn mistakes_are_named() {
    refused(
        |spec| spec["steps"][0]["prompt"] = "no parts".into(),
        expect!["pipeline `stand`: step `read`: context: the prompt has no part that could be cut"],
    );
    refused(
        |spec| spec["steps"][0]["cut"] = "input".into(),
        expect!["pipeline `stand`: step `read`: cut: the prompt has no part `input`; it has: item"],
    );
    refused(
        |spec| spec["steps"][0]["prompt"] = "{{ item }} {{ input }}".into(),
        expect!["pipeline `stand`: step `read`: cut: say which part of the prompt is cut: input, item"],
    );
    refused(
        |spec| spec["steps"][0]["compress_with"] = "short".into(),
        expect![[
            r#"pipeline `stand`: step `read`: compress_with: only `context = "compress"` has an expert compress"#
        ]],
    );
    refused(
        |spec| spec["steps"][0]["context"] = "compress".into(),
        expect!["pipeline `stand`: step `read`: compress_with: name the expert that compresses"],
    );
    refused(
        |spec| {
            spec["steps"][0]["context"] = "refuse".into();
            spec["steps"][0]["cut"] = "item".into();
        },
        expect!["pipeline `stand`: step `read`: cut: without a rule in `context` nothing is cut"],
    );
}
