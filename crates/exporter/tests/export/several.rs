//! Several adapters in one file, and several files in one pass.

use exporter::{AdapterSource, Error, Event, Request, export_each};
use formats::TensorSource;
use formats::adapter::AdapterFiles;
use formats::gguf::Reader;
use formats::observe::Silent;
use model::policy::Quant;

use crate::checkpoint::Tiny;
use crate::{FakeEngine, exported, refused, request};

/// A second adapter of another rank, beside the first.
fn with_two_adapters(tiny: &Tiny) -> [AdapterSource; 2] {
    let dirs = ["first", "second"].map(|name| tiny.dir.path().join(name));
    for (dir, factor) in dirs.iter().zip([1.0, -3.0]) {
        tiny.write_adapter(|files| {
            files.tune = None;
            for pair in &mut files.tensors {
                pair.b.iter_mut().for_each(|b| *b *= factor);
            }
        });
        std::fs::rename(tiny.adapter(), dir).unwrap();
    }
    let [first, second] = dirs;
    [AdapterSource { dir: first, weight: 0.75 }, AdapterSource { dir: second, weight: -0.5 }]
}

#[test]
fn adapters_are_added_each_with_its_weight() {
    let tiny = Tiny::qwen3();
    let adapters = with_two_adapters(&tiny);
    let read = |adapters: &[AdapterSource]| {
        let (receipt, _) = exported(&Request { adapters: adapters.to_vec(), ..request(&tiny, Quant::F32) });
        let file = Reader::open(&receipt.file).unwrap();
        let mut weights = Vec::new();
        file.read("blk.1.ffn_down.weight", &mut weights).unwrap();
        (weights, receipt)
    };
    let (base, _) = read(&[]);
    let (first, _) = read(&adapters[..1]);
    let (second, _) = read(&adapters[1..]);
    let (both, receipt) = read(&adapters);
    let mut moved = 0.0_f32;
    for (((both, first), second), base) in both.iter().zip(first).zip(second).zip(base) {
        let expected = f64::from(first) + f64::from(second) - f64::from(base);
        assert!((f64::from(*both) - expected).abs() < 1e-6, "{both} against {expected}");
        moved = moved.max((both - base).abs());
    }
    assert!(moved > 1e-3, "{moved}");
    let weights: Vec<f32> = receipt.sources.adapters.iter().map(|adapter| adapter.weight).collect();
    assert_eq!(weights, [0.75, -0.5]);
    assert_ne!(receipt.sources.adapter_blake3.unwrap(), receipt.sources.adapters[0].blake3);
}

#[test]
fn weights_of_which_there_is_no_sum_are_refused() {
    let tiny = Tiny::qwen3();
    let lengths = |files: &mut AdapterFiles| {
        files.config.use_dora = true;
        for pair in &mut files.tensors {
            pair.magnitude = Some(vec![1.0; pair.out_features]);
        }
    };
    tiny.write_adapter(lengths);
    let alone = request(&tiny, Quant::Q4KM);
    let halved = AdapterSource { weight: 0.5, ..alone.adapters[0].clone() };
    for adapters in [vec![halved], [&alone.adapters[..], &alone.adapters[..]].concat()] {
        let error = refused(&Request { adapters, ..alone.clone() }, &FakeEngine::sound());
        assert!(matches!(&error, Error::Weight { reason, .. } if reason.contains("DoRA")), "{error}");
    }
    exported(&alone);
    tiny.write_adapter(|_| {});
    for weight in [0.0, f32::NAN, f32::INFINITY] {
        let adapters = vec![AdapterSource { weight, ..alone.adapters[0].clone() }];
        let request = Request { adapters, output: tiny.dir.path().join("other"), ..alone.clone() };
        let error = refused(&request, &FakeEngine::sound());
        assert!(matches!(error, Error::Weight { .. }), "{error}");
    }
}

#[test]
fn files_of_one_pass_are_those_of_a_pass_each() {
    let tiny = Tiny::llama();
    tiny.write_adapter(|_| {});
    let quants = [Quant::Q4KM, Quant::IQ2XS, Quant::Q8_0, Quant::BF16];
    let of = |quant: Quant, dir: &str| Request {
        output: tiny.dir.path().join(dir).join(quant.name()),
        ..request(&tiny, quant)
    };
    let requests = quants.map(|quant| of(quant, "together"));
    let mut checked = Vec::new();
    let receipts = export_each(&requests, &FakeEngine::sound(), &mut |event| {
        if let Event::Checking { file } = event {
            checked.push(file);
        }
    });
    let receipts = receipts.unwrap();
    for (quant, receipt) in quants.into_iter().zip(&receipts) {
        match receipt {
            Ok(receipt) => {
                let (alone, _) = exported(&of(quant, "alone"));
                assert_eq!((&receipt.blake3, &receipt.gate), (&alone.blake3, &alone.gate), "{quant}");
                assert!(checked.contains(&receipt.file));
            }
            Err(error) => assert!(
                matches!(error, Error::NeedsMatrix { .. }) && quant == Quant::IQ2XS,
                "{quant}: {error}"
            ),
        }
    }
    assert_eq!(receipts.iter().filter(|receipt| receipt.is_err()).count(), 1);
}

/// 70,000 fits BF16, and neither halves nor blocks: those are given up, the others written.
#[test]
fn a_file_that_cannot_hold_a_weight_does_not_hold_up_the_others() {
    let tiny = Tiny::qwen3();
    tiny.write_adapter(|files| files.tensors[1].b[7] = 1e6);
    let of = |quant: Quant| Request {
        output: tiny.dir.path().join("x").join(quant.name()),
        limits: exporter::Limits::NONE,
        ..request(&tiny, quant)
    };
    let requests = [Quant::Q4KM, Quant::BF16, Quant::F16].map(of);
    let receipts = export_each(&requests, &FakeEngine::sound(), &mut Silent).unwrap();
    let [q4, bf16, f16] = &receipts[..] else { panic!("three results") };
    assert!(matches!(q4, Err(Error::OutOfRange { .. })) && matches!(f16, Err(Error::OutOfRange { .. })));
    assert_eq!(bf16.as_ref().unwrap().blake3, exported(&of(Quant::BF16)).0.blake3);
    assert_eq!(crate::names(&requests[0].output), Vec::<String>::new());
}
