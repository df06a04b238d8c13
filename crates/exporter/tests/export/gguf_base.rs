//! A GGUF for a base: quantised as llama.cpp does, merged as the folder is that it was made from.

use std::path::{Path, PathBuf};

use exporter::{Error, Request};
use formats::gguf::Reader;
use model::policy::Quant;
use serde_json::json;

use crate::checkpoint::Tiny;
use crate::families::config;
use crate::llama_cpp::quantise;
use crate::{exported, refused, request};

/// Base and tokenizer are this file.
fn of_gguf(tiny: &Tiny, file: &Path, quant: Quant) -> Request {
    Request { base: file.to_owned(), tokenizer: file.to_owned(), ..request(tiny, quant) }
}

/// The base as a GGUF beside the exports.
fn base(tiny: &Tiny, quant: Quant) -> PathBuf {
    let alone = Request { adapters: Vec::new(), ..request(tiny, quant) };
    let kept = tiny.dir.path().join(format!("base-{quant}.gguf"));
    std::fs::rename(exported(&alone).0.file, &kept).unwrap();
    std::fs::remove_dir_all(tiny.output()).unwrap();
    kept
}

#[test]
fn a_gguf_is_quantised_as_llama_quantize_does() {
    for tiny in [Tiny::qwen3(), Tiny::llama(), Tiny::deepseek2(6)] {
        for of in [Quant::F32, Quant::BF16] {
            let file = base(&tiny, of);
            for quant in [Quant::Q4KM, Quant::Q8_0, Quant::IQ4XS, Quant::F16] {
                let (ours, _) = exported(&of_gguf(&tiny, &file, quant));
                let theirs = tiny.dir.path().join("llama_cpp.gguf");
                quantise::quantise(&file, &theirs, quant.file_type().unwrap(), None, &[]);
                let whole = |path: &Path| std::fs::read(path).unwrap();
                assert!(whole(&ours.file) == whole(&theirs), "{quant} of {}", file.display());
            }
        }
    }
}

/// Weights are 16 bits and the update 32: what comes of them does not depend on where they were read.
#[test]
fn an_adapter_is_merged_into_a_gguf_as_into_the_folder() {
    let gemma = json!({"architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "head_dim": 64,
        "sliding_window": 16, "query_pre_attn_scalar": 64, "rope_local_base_freq": 10000.0, "hidden_act": null,
        "sliding_window_pattern": 6, "hidden_activation": "gelu_pytorch_tanh"});
    for tiny in [Tiny::qwen3(), Tiny::llama(), Tiny::deepseek2(6), Tiny::new(config(gemma))] {
        let file = base(&tiny, Quant::F32);
        tiny.write_adapter(|files| files.tune = None);
        let (of_folder, _) = exported(&request(&tiny, Quant::Q8_0));
        let kept = tiny.dir.path().join("of_folder.gguf");
        std::fs::rename(&of_folder.file, &kept).unwrap();
        let (of_file, _) = exported(&of_gguf(&tiny, &file, Quant::Q8_0));
        let (folder, merged) = (Reader::open(&kept).unwrap(), Reader::open(&of_file.file).unwrap());
        assert_eq!(folder.tensors(), merged.tensors());
        for tensor in folder.tensors() {
            let same = folder.data(tensor) == merged.data(tensor);
            assert!(same, "{} of {}", tensor.name, of_file.architecture);
        }
        assert_ne!(of_file.blake3, exported(&of_gguf(&tiny, &file, Quant::Q4KM)).0.blake3);
        let named = |reader: &Reader| reader.metadata().get_str("general.name").map(str::to_owned);
        assert_eq!(named(&merged).as_deref(), Some("tiny"));
        assert!(merged.metadata().get_str("tune.adapter_blake3").is_some());
    }
}

#[test]
fn what_is_rounded_already_is_not_rounded_again_unasked() {
    let tiny = Tiny::qwen3();
    let file = base(&tiny, Quant::Q8_0);
    let error = refused(&of_gguf(&tiny, &file, Quant::Q4KM), &crate::FakeEngine::sound());
    assert!(matches!(&error, Error::Requantising { type_name: "Q8_0", quant: "q4_k_m", .. }), "{error}");
    assert!(error.hint().unwrap().contains("--allow-requantize"));
    let asked = Request { allow_requantising: true, ..of_gguf(&tiny, &file, Quant::Q4KM) };
    let (once_more, _) = exported(&asked);
    let (at_once, _) =
        exported(&Request { output: tiny.dir.path().join("at_once"), ..request(&tiny, Quant::Q4KM) });
    assert_ne!(once_more.blake3, at_once.blake3);
}

/// A type that stays is not decoded and encoded: nothing is lost of it.
#[test]
fn blocks_of_the_type_that_is_asked_for_stay() {
    let tiny = Tiny::llama();
    let file = base(&tiny, Quant::Q4KM);
    let same = Request { allow_requantising: true, ..of_gguf(&tiny, &file, Quant::Q4KM) };
    let (again, _) = exported(&same);
    assert!(std::fs::read(&file).unwrap() == std::fs::read(&again.file).unwrap());
}

#[test]
fn one_of_several_files_is_refused_with_the_way_out() {
    let tiny = Tiny::qwen3();
    let file = base(&tiny, Quant::F32);
    let reader = Reader::open(&file).unwrap();
    let mut metadata = reader.metadata().clone();
    metadata.push("split.count", 3_u32);
    let part = tiny.dir.path().join("part.gguf");
    let planned: Vec<_> = reader
        .tensors()
        .iter()
        .map(|tensor| (tensor.name.clone(), tensor.shape.clone(), tensor.ty))
        .collect();
    let out = std::fs::File::create(&part).unwrap();
    let mut writer = formats::gguf::Writer::begin(out, &metadata, &planned).unwrap();
    for tensor in reader.tensors() {
        writer.write_tensor(reader.data(tensor)).unwrap();
    }
    writer.finish().unwrap();
    let error = refused(&of_gguf(&tiny, &part, Quant::Q4KM), &crate::FakeEngine::sound());
    assert!(matches!(error, Error::SplitGguf { n_files: 3, .. }), "{error}");
}
