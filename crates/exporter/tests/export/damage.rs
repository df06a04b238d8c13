//! Single bits that flip in base and adapter: an export with them is refused, and nothing appears.

use exporter::export;
use formats::observe::Silent;
use model::policy::Quant;

use crate::checkpoint::{Random, Tiny};
use crate::engine::FakeEngine;
use crate::{names, request};

/// Flips of each file.
const N_FLIPS: usize = 40;

#[test]
fn a_bit_that_flips_is_never_exported() {
    let tiny = Tiny::qwen3();
    tiny.write_adapter(|_| {});
    let request = request(&tiny, Quant::Q4KM);
    let mut random = Random(11);
    let files = [
        tiny.base().join("model.safetensors"),
        tiny.base().join("config.json"),
        tiny.base().join("tokenizer.json"),
        tiny.base().join("tokenizer_config.json"),
        tiny.adapter().join("adapter_model.safetensors"),
        tiny.adapter().join("adapter_config.json"),
    ];
    for path in files {
        let sound = std::fs::read(&path).unwrap();
        for _ in 0..N_FLIPS {
            let (at, bit) = (random.next() as usize % sound.len(), random.next() % 8);
            let mut damaged = sound.clone();
            damaged[at] ^= 1 << bit;
            std::fs::write(&path, &damaged).unwrap();
            let result = export(&request, &FakeEngine::sound(), &mut Silent);
            let error = result.expect_err(&format!("bit {bit} of byte {at} of {}", path.display()));
            assert!(!error.to_string().is_empty());
            assert_eq!(names(&tiny.output()), Vec::<String>::new(), "left after: {error}");
        }
        std::fs::write(&path, &sound).unwrap();
    }
    export(&request, &FakeEngine::sound(), &mut Silent).unwrap();
}
