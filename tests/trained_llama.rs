//! The really trained little Llama of the shared material: its rows are no multiple of 256, so export meets the
//! fallback types, its tokenizer is SentencePiece-style with byte fallback, and llama.cpp must continue a text as our
//! own forward does on the same blocks.

mod harness;

use formats::gguf::Reader;
use formats::observe::Silent;
use harness::{Folder, shared, tune};
use model::arena::Arena;
use model::generate::{Capacity, Generator, Request, SamplerOptions};
use model::{Base, Cpu};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

const STORY: &str = "Once upon a time, there was a little girl named Lily.";
/// Both sides compute the same sums in another order; a greedy text of this length tells blocks apart, not rounding.
const N_NEW: usize = 40;

#[test]
fn llama_cpp_continues_an_export_as_our_forward_does() {
    let Some(base) = shared("assets/lm/stories260K-hf") else { return };
    let folder = Folder::new();
    for quant in ["q4_k_m", "q8_0", "f16"] {
        let out = folder.text(quant);
        let exported = tune(&["export", &base.to_string_lossy(), "--quant", quant, "--out", &out])
            .output()
            .expect("tune");
        assert!(exported.status.success(), "{}", folder.shown(&exported));
        let file = folder.path(&format!("{quant}/stories260K-hf-{quant}.gguf"));
        assert_eq!(by_llama_cpp(&file), by_ourselves(&file), "{quant}");
    }
}

fn by_llama_cpp(file: &Path) -> Vec<u32> {
    let mut session = runner::engine::llama::Session::open(file, &Default::default()).expect("a session");
    let prompt = prompt(session.tokenizer());
    session.greedy(&prompt, &[], N_NEW).expect("a text")
}

fn prompt(tokenizer: &text::Tokenizer) -> Vec<u32> {
    tokenizer.bos().into_iter().chain(tokenizer.encode(STORY)).collect()
}

fn by_ourselves(file: &Path) -> Vec<u32> {
    let gguf = Reader::open(file).expect("a GGUF");
    let tokenizer = text::Tokenizer::from_gguf(gguf.metadata()).expect("a tokenizer");
    let device = Cpu::new(Arena::unlimited()).expect("a device");
    let base = Arc::new(Base::from_gguf(&device, &gguf, &mut Silent).expect("a base"));
    let capacity = Capacity { n_sequences: 1, n_tokens: 128 };
    let mut generator = Generator::new(base, None, capacity).expect("a generator");
    let request = Request { stop: &[], sampler: SamplerOptions::GREEDY, max_new_tokens: N_NEW };
    let generated =
        generator.generate(None, &prompt(&tokenizer), &request, &mut |_| ControlFlow::Continue(()));
    generated.expect("a text").ids
}
