//! Our types and blocks are those of llama.cpp's own quantiser, given the same 32-bit weights.

use std::path::{Path, PathBuf};

use exporter::{ImportanceSource, TypeOverride};
use formats::BlockType;
use formats::gguf::Reader;
use model::policy::Quant;

use crate::checkpoint::Tiny;
use crate::{exported, request};

#[path = "../../examples/llama_cpp_peer/quantise.rs"]
pub mod quantise;

/// Our export without loss.
fn exact(tiny: &Tiny) -> PathBuf {
    exported(&request(tiny, Quant::F32)).0.file
}

/// The file that llama.cpp makes of our F32 export must be our export, byte by byte.
fn check(tiny: &Tiny, exact: &Path, quant: Quant, matrix: Option<&Path>) {
    check_types(tiny, exact, quant, matrix, &[]);
}

/// The same with other types for some tensors.
fn check_types(tiny: &Tiny, exact: &Path, quant: Quant, matrix: Option<&Path>, types: &[(&str, BlockType)]) {
    let mut request = request(tiny, quant);
    request.importance =
        matrix.map_or(ImportanceSource::None, |path| ImportanceSource::File(path.to_owned()));
    request.types =
        types.iter().map(|&(pattern, ty)| TypeOverride { pattern: pattern.to_owned(), ty }).collect();
    let (ours, _) = exported(&request);
    let theirs = tiny.dir.path().join("llama_cpp.gguf");
    quantise::quantise(exact, &theirs, quant.file_type().expect("a type of files"), matrix, types);
    let (ours, theirs) = (Reader::open(&ours.file).unwrap(), Reader::open(&theirs).unwrap());
    assert_eq!(ours.metadata(), theirs.metadata(), "{quant}");
    assert_eq!(ours.tensors(), theirs.tensors(), "{quant}");
    for tensor in ours.tensors() {
        assert!(ours.data(tensor) == theirs.data(tensor), "{} as {quant}", tensor.name);
    }
    assert_eq!(std::fs::read(ours.path()).unwrap(), std::fs::read(theirs.path()).unwrap(), "{quant}");
}

#[test]
fn every_quantisation_equals_llama_quantize() {
    for tiny in [Tiny::qwen3(), Tiny::llama(), Tiny::deepseek2(6), Tiny::deepseek2(8)] {
        tiny.write_adapter(|_| {});
        let exact = exact(&tiny);
        for quant in Quant::FILES.into_iter().filter(|quant| !quant.needs_matrix()) {
            check(&tiny, &exact, quant, None);
        }
    }
}

#[test]
fn every_quantisation_with_an_importance_matrix_equals_llama_quantize() {
    for tiny in [Tiny::qwen3(), Tiny::llama()] {
        let exact = exact(&tiny);
        let matrix = tiny.dir.path().join("a matrix.gguf");
        tiny.importance(7).write(&matrix).unwrap();
        for quant in Quant::FILES {
            check(&tiny, &exact, quant, Some(&matrix));
        }
    }
}

/// Exceptions for the first layers, the outer ones and every third are seen only where there are enough of them.
#[test]
fn the_types_of_many_layers_equal_llama_quantize() {
    let of_many_layers = |tiny: Tiny| {
        tiny.change_config(|config| {
            config["num_hidden_layers"] = 17.into();
            config["intermediate_size"] = 256.into();
            config["moe_intermediate_size"] = 32.into();
        });
        tiny
    };
    for tiny in [Tiny::qwen3(), Tiny::deepseek2(8)].map(of_many_layers) {
        let exact = exact(&tiny);
        let matrix = tiny.dir.path().join("matrix.gguf");
        tiny.importance(9).write(&matrix).unwrap();
        for quant in [Quant::Q3KM, Quant::Q4KS, Quant::Q4KM, Quant::IQ3M, Quant::Q4_0, Quant::IQ4XS] {
            check(&tiny, &exact, quant, None);
            check(&tiny, &exact, quant, Some(&matrix));
        }
        for quant in [Quant::Q5_0, Quant::IQ3XS, Quant::IQ3XXS, Quant::IQ2S, Quant::IQ2XXS] {
            check(&tiny, &exact, quant, Some(&matrix));
        }
    }
}

/// The first pattern that matches counts; rows that do not fit fall back; norms, routers and vectors stay as they are.
#[test]
fn types_that_are_asked_for_equal_llama_quantize() {
    let types = [
        (r"blk\.1\.ffn_.*", BlockType::Q6K),
        ("ffn_down", BlockType::Q8_0),
        ("attn_[qk]", BlockType::IQ4NL),
        ("token_embd", BlockType::Q3K),
        ("norm", BlockType::Q4_0),
        ("ffn_gate", BlockType::BF16),
    ];
    for tiny in [Tiny::qwen3(), Tiny::llama(), Tiny::deepseek2(6)] {
        let exact = exact(&tiny);
        for quant in [Quant::Q4KM, Quant::Q8_0] {
            check_types(&tiny, &exact, quant, None, &types);
        }
    }
}
