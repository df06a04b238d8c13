//! Our types and blocks are those of llama.cpp's own quantiser, given the same 32-bit weights.

use formats::gguf::Reader;
use model::policy::Quant;

use crate::checkpoint::Tiny;
use crate::{exported, request};

#[path = "../../examples/llama_cpp_peer/quantise.rs"]
mod quantise;

/// The file that llama.cpp makes of our F32 export must be our export, byte by byte.
fn check(tiny: &Tiny, quant: Quant) {
    let (exact, _) = exported(&request(tiny, Quant::F32));
    let (ours, _) = exported(&request(tiny, quant));
    let theirs = tiny.dir.path().join("llama_cpp.gguf");
    quantise::quantise(&exact.file, &theirs, quant.file_type().expect("a type of files"));
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
        for quant in Quant::FILES {
            check(&tiny, quant);
        }
    }
}
