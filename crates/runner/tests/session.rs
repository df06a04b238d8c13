//! The engine at token level, on a model made here.

mod tiny;

use std::ops::ControlFlow;

use runner::Error;
use runner::card::{KvType, LoadOptions};
use runner::engine::llama::{Session, SessionOptions};
use tiny::{Says, Template};

fn open(says: &Says<'_>, mut load: LoadOptions) -> Session {
    // llama.cpp's threads wait for each other by spinning, which starves tests that run side by side.
    load.num_thread = 1;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tiny.gguf");
    tiny::write_with(&path, says, &Template::None);
    Session::open(&path, &SessionOptions { load, check_tensors: true, all_logits: true }).unwrap()
}

const HELLO: Says<'static> = Says::Once(&["Hello", ", world", "!!"]);

#[test]
fn greedy_says_what_the_weights_say() {
    let mut session = open(&HELLO, LoadOptions::default());
    let prompt = session.tokenizer().encode("say it\n");
    let stop = session.stop_ids().to_vec();
    for _ in 0..2 {
        let ids = session.greedy(&prompt, &stop, 50).unwrap();
        assert_eq!(session.tokenizer().decode(&ids), "Hello, world!!");
    }
    assert_eq!(session.greedy(&prompt, &stop, 2).unwrap().len(), 2);
}

#[test]
fn a_prompt_in_pieces_gives_the_same_as_in_one() {
    for num_batch in [1, 3, 7, 8, 512] {
        let mut session = open(&HELLO, LoadOptions { num_batch, ..LoadOptions::default() });
        let prompt = session.tokenizer().encode("12345\n");
        let stop = session.stop_ids().to_vec();
        let ids = session.greedy(&prompt, &stop, 50).unwrap();
        assert_eq!(session.tokenizer().decode(&ids), "Hello, world!!", "num_batch {num_batch}");
        assert_eq!(session.log_probs(&prompt).unwrap().len(), prompt.len() - 1);
    }
}

#[test]
fn quantised_caches_work() {
    for kv in [KvType::Q8_0, KvType::Q4_0, KvType::F32, KvType::Bf16] {
        let load = LoadOptions { kv_type_k: kv, kv_type_v: kv, ..LoadOptions::default() };
        let mut session = open(&HELLO, load);
        let prompt = session.tokenizer().encode("\n");
        assert_eq!(session.greedy(&prompt, &[], 1).unwrap().len(), 1, "{kv:?}");
    }
}

#[test]
fn a_prompt_that_does_not_fit_is_refused_with_both_numbers() {
    let mut session = open(&HELLO, LoadOptions { num_ctx: 256, ..LoadOptions::default() });
    assert_eq!(session.context_tokens(), 256);
    let prompt = session.tokenizer().encode(&"x".repeat(300));
    let error = session.greedy(&prompt, &[], 5).unwrap_err();
    let Error::PromptTooLong { prompt_tokens: 300, context_tokens: 256, .. } = error else {
        panic!("{error}")
    };
    assert!(matches!(session.greedy(&[], &[], 5), Err(Error::EmptyPrompt { .. })));
    assert!(matches!(session.greedy(&[1_000_000], &[], 5), Err(Error::Decode { .. })));
    // A full context ends generation; nothing is shifted out.
    let mut session =
        open(&Says::Forever(&["tick ", "tock "]), LoadOptions { num_ctx: 256, ..LoadOptions::default() });
    let prompt = session.tokenizer().encode("\n");
    assert_eq!(session.greedy(&prompt, &[], usize::MAX).unwrap().len(), 255);
}

/// All logits of the model are 0 but one of sqrt(width) (one-hot input, RMS-normed to that length); f32 rounding.
const LOG_PROB_TOLERANCE: f64 = 1e-4;

#[test]
fn log_probs_are_those_of_the_weights() {
    let mut session = open(&HELLO, LoadOptions::default());
    let prompt = session.tokenizer().encode("x\n");
    let hello = session.greedy(&prompt, &[], 1).unwrap()[0];
    let log_probs = session.log_probs(&[prompt[0], prompt[1], hello]).unwrap();
    let rows = session.vocabulary_rows() as f64;
    let peak = (session.vocabulary_rows().next_multiple_of(64) as f64).sqrt();
    let right = peak - (peak.exp() + rows - 1.0).ln();
    assert!((log_probs[1] - right).abs() < LOG_PROB_TOLERANCE, "{log_probs:?} {right}");
    // After "x" the model knows nothing: every token is as likely as any.
    assert!((log_probs[0] + rows.ln()).abs() < LOG_PROB_TOLERANCE, "{log_probs:?}");
}

#[test]
fn logits_come_in_order_and_can_be_broken_off() {
    let mut session = open(&HELLO, LoadOptions { num_batch: 4, ..LoadOptions::default() });
    let ids = session.tokenizer().encode("0123456789");
    let mut seen = Vec::new();
    let mut each = |i: usize, logits: &[f32]| {
        assert!(logits.iter().all(|logit| logit.is_finite()));
        seen.push(i);
        if i == 6 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    session.decode_logits(&ids, &mut each).unwrap();
    assert_eq!(seen, [0, 1, 2, 3, 4, 5, 6]);
}

#[test]
fn both_tokenizers_agree() {
    let session = open(&HELLO, LoadOptions::default());
    for text in ["the inn then", "  two  spaces\n\n", "naïve 日本語 🦀", "a<|im_end|>b 123 4567"] {
        assert_eq!(session.tokenizer().encode(text), session.engine_tokenize(text, false), "{text:?}");
        assert_eq!(
            session.tokenizer().encode_template(text),
            session.engine_tokenize(text, true),
            "{text:?}"
        );
    }
}

/// The last vocabulary is kept, for files that have the very same.
#[test]
fn each_file_is_read_by_its_own_vocabulary_and_template() {
    let directory = tempfile::tempdir().unwrap();
    let open = |says: &Says<'_>, template: &Template| {
        let path = directory.path().join("one.gguf");
        tiny::write_with(&path, says, template);
        Session::open(&path, &SessionOptions::default()).unwrap()
    };
    let hello = Says::Once(&["Hello"]);
    let chat = [text::Message::new("user", "Hello")];
    let with = open(&hello, &Template::Chat);
    let ids = with.chat_ids(&chat).unwrap();
    for _ in 0..2 {
        assert_eq!(open(&hello, &Template::Chat).chat_ids(&chat).unwrap(), ids);
        assert!(open(&hello, &Template::None).template().is_none());
        let other = open(&Says::Once(&["Other"]), &Template::Chat);
        // The first token after the bytes and three merges is the piece that the model says.
        assert_eq!(
            (with.tokenizer().decode(&[259]), other.tokenizer().decode(&[259])),
            ("Hello".into(), "Other".into())
        );
    }
}

#[test]
fn a_vocabulary_with_a_token_twice_is_refused_before_it_stops_the_process() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("twice.gguf");
    tiny::write_with(&path, &Says::Once(&["same", "same"]), &Template::None);
    let error = Session::open(&path, &SessionOptions::default()).map(drop).unwrap_err().to_string();
    assert!(error.contains("`same`"), "{error}");
}

#[test]
fn a_file_the_engine_can_not_use_is_refused_with_its_words() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("broken.gguf");
    tiny::write_with(&path, &HELLO, &Template::None);
    let mut bytes = std::fs::read(&path).unwrap();
    // Another architecture's name of the same length: the file is sound, llama.cpp does not know it.
    let at = bytes.windows(5).position(|window| window == b"qwen3").unwrap();
    bytes[at..at + 5].copy_from_slice(b"qwenX");
    std::fs::write(&path, &bytes).unwrap();
    let error = Session::open(&path, &SessionOptions::default()).map(drop).unwrap_err().to_string();
    assert!(error.contains("broken.gguf") && error.contains("qwenX"), "{error}");
    std::fs::write(&path, &bytes[..bytes.len() - 4096]).unwrap();
    assert!(matches!(Session::open(&path, &SessionOptions::default()), Err(Error::Format(_))));
    assert!(Session::open(&directory.path().join("none.gguf"), &SessionOptions::default()).is_err());
}
