//! Vectors of texts from the embedded engine, against llama.cpp's own and against what the weights must give.
#![allow(unsafe_code, reason = "the oracle is llama.cpp's own interface")]

mod tiny;

use std::ffi::CString;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use formats::gguf::Value;
use llama_cpp_sys_2 as sys;
use runner::card::{CardOptions, Digests, LoadOptions};
use runner::engine::llama::LlamaEngine;
use runner::{Engine, Error, ExpertCard, Loaded};
use tiny::{Says, Template};

/// Two sums of the same floats, in f32 by llama.cpp and in f64 by us.
const TOLERANCE: f32 = 1e-5;

const TEXTS: [&str; 4] = ["the lamp is blue", "blue lamps, in the inn", "<|im_end|> is text", "z"];

struct Place {
    _directory: tempfile::TempDir,
    path: PathBuf,
}

fn file(more: &[(&str, Value)]) -> Place {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("tiny.gguf");
    tiny::write_saying_more(&path, &Says::Once(&["Hello"]), &Template::Chat, more);
    Place { _directory: directory, path }
}

fn load(path: &Path, num_batch: u32) -> Box<dyn Loaded> {
    let load = LoadOptions { num_ctx: 256, num_batch, num_thread: 1, ..LoadOptions::default() };
    let options = CardOptions { load, ..CardOptions::default() };
    let card = ExpertCard::from_file("tiny", path, &options, Digests::Blake3).unwrap();
    LlamaEngine::new().unwrap().load(&card, &mut |_| ControlFlow::Continue(())).unwrap()
}

fn embed(expert: &mut dyn Loaded, texts: &[&str]) -> runner::Result<Vec<Vec<f32>>> {
    let texts: Vec<String> = texts.iter().map(|&text| text.to_owned()).collect();
    expert.embed(&texts, &mut |_| ControlFlow::Continue(()))
}

/// llama.cpp's own pooled vector of a text, brought to length 1.
fn oracle(path: &Path, text: &str, pooling: sys::llama_pooling_type) -> Vec<f32> {
    LlamaEngine::new().unwrap();
    let path = CString::new(path.to_str().unwrap()).unwrap();
    // SAFETY: every pointer is checked, used while its owner lives, and freed once; lengths are those of the slices.
    unsafe {
        let model = sys::llama_model_load_from_file(path.as_ptr(), sys::llama_model_default_params());
        assert!(!model.is_null());
        let mut params = sys::llama_context_default_params();
        (params.n_ctx, params.n_batch, params.n_ubatch) = (256, 256, 256);
        // More threads wait for one another by spinning.
        (params.n_threads, params.n_threads_batch) = (1, 1);
        (params.embeddings, params.pooling_type) = (true, pooling);
        let context = sys::llama_init_from_model(model, params);
        assert!(!context.is_null());
        let mut ids = vec![0; 256];
        let vocabulary = sys::llama_model_get_vocab(model);
        let (start, length) = (text.as_ptr().cast(), i32::try_from(text.len()).unwrap());
        let n = sys::llama_tokenize(vocabulary, start, length, ids.as_mut_ptr(), 256, true, false);
        assert_eq!(sys::llama_decode(context, sys::llama_batch_get_one(ids.as_mut_ptr(), n)), 0);
        let width = usize::try_from(sys::llama_model_n_embd_out(model)).unwrap();
        let row = sys::llama_get_embeddings_seq(context, 0);
        assert!(!row.is_null());
        let vector = std::slice::from_raw_parts(row, width).to_vec();
        sys::llama_free(context);
        sys::llama_model_free(model);
        let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
        vector.into_iter().map(|x| x / length).collect()
    }
}

fn farthest(ours: &[f32], theirs: &[f32]) -> f32 {
    assert_eq!(ours.len(), theirs.len());
    ours.iter().zip(theirs).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

#[test]
fn vectors_are_those_of_llama_cpp_for_each_pooling_and_piece() {
    let poolings = [
        (None, sys::LLAMA_POOLING_TYPE_MEAN),
        (Some(1), sys::LLAMA_POOLING_TYPE_MEAN),
        (Some(2), sys::LLAMA_POOLING_TYPE_CLS),
        (Some(3), sys::LLAMA_POOLING_TYPE_LAST),
    ];
    for (stated, pooling) in poolings {
        let stated: Vec<_> = stated.map(|n| ("qwen3.pooling_type", Value::U32(n))).into_iter().collect();
        let place = file(&stated);
        for num_batch in [1, 3, 512] {
            let mut expert = load(&place.path, num_batch);
            let vectors = embed(expert.as_mut(), &TEXTS).unwrap();
            for (text, vector) in TEXTS.iter().zip(&vectors) {
                let far = farthest(vector, &oracle(&place.path, text, pooling));
                assert!(far < TOLERANCE, "pooling {pooling}, pieces of {num_batch}, {text}: {far}");
                let length: f32 = vector.iter().map(|x| x * x).sum();
                assert!((length - 1.0).abs() < 1e-5, "{length}");
            }
        }
    }
}

/// The states of this model are its tokens, one-hot: the product of two means counts what two texts share.
#[test]
fn nearness_is_what_the_weights_say() {
    let place = file(&[]);
    let mut expert = load(&place.path, 512);
    let vectors = embed(expert.as_mut(), &["aab", "abb", "ccc"]).unwrap();
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    assert!((dot(&vectors[0], &vectors[1]) - 0.8).abs() < 1e-4, "{}", dot(&vectors[0], &vectors[1]));
    assert!(dot(&vectors[0], &vectors[2]).abs() < 1e-6);
}

#[test]
fn what_can_not_be_embedded_is_refused_and_a_break_is_obeyed() {
    let place = file(&[]);
    let mut expert = load(&place.path, 512);
    assert!(embed(expert.as_mut(), &[]).unwrap().is_empty());
    assert!(matches!(embed(expert.as_mut(), &["a", ""]), Err(Error::EmptyPrompt { .. })));
    let long = "x".repeat(257);
    match embed(expert.as_mut(), &["a", &long]) {
        Err(Error::PromptTooLong { prompt_tokens: 257, context_tokens: 256, .. }) => {}
        other => panic!("{other:?}"),
    }
    let mut told = Vec::new();
    let stopped = expert.embed(&TEXTS.map(str::to_owned), &mut |done| {
        told.push(done);
        if done == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    });
    assert!(matches!(stopped, Err(Error::Cancelled)));
    assert_eq!(told, [1, 2]);

    let ranker = file(&[("qwen3.pooling_type", Value::U32(4))]);
    let error = embed(load(&ranker.path, 512).as_mut(), &["a"]).unwrap_err().to_string();
    assert!(error.contains("it scores pairs of texts"), "{error}");
}

/// Answers come from another context: what was embedded before does not show in them, nor they in vectors.
#[test]
fn embedding_and_answering_do_not_meet() {
    let place = file(&[]);
    let mut expert = load(&place.path, 512);
    let before = embed(expert.as_mut(), &TEXTS).unwrap();
    let prompt = runner::engine::Prompt::Chat(vec![text::Message::new("user", "x")]);
    let request = runner::engine::Request::new(&expert.card().clone(), prompt);
    let answer = expert.generate(&request, &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(answer.text, "Hello");
    assert_eq!(embed(expert.as_mut(), &TEXTS).unwrap(), before);
}
