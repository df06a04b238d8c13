//! How near exported files come to what they were made from, as the gate measures it.

use exporter::{Calibration, Divergence, Error, Event, ImportanceSource, Limits, Request};
use model::family::Role;
use model::policy::Quant;

use crate::checkpoint::Tiny;
use crate::engine::FakeEngine;
use crate::{exported, refused, request};

/// Nats. Products of the merged model are in 16 bits where the processor has them.
const NOISE: f64 = 1e-3;

fn comparing(tiny: &Tiny, quant: Quant) -> Request {
    Request { comparison_tokens: 400, ..request(tiny, quant) }
}

fn measured(tiny: &Tiny, quant: Quant) -> (Divergence, Divergence) {
    let (receipt, _) = exported(&comparing(tiny, quant));
    let fidelity = receipt.gate.fidelity.unwrap();
    (fidelity.held_out.unwrap(), fidelity.general.unwrap())
}

#[test]
fn more_bits_come_nearer() {
    for tiny in [Tiny::qwen3(), Tiny::llama(), Tiny::deepseek2(6)] {
        tiny.write_adapter(|_| {});
        let (exact, exact_text) = measured(&tiny, Quant::F32);
        for divergence in [&exact, &exact_text] {
            // One of eighteen tokens may have two likeliest ones, between which the last bit of a product decides.
            assert!(divergence.mean_kl.abs() < NOISE && divergence.top1_share > 0.9, "{divergence:?}");
            assert!((divergence.mean_nll - divergence.merged_nll).abs() < 0.01, "{divergence:?}");
        }
        let kl = |quant| measured(&tiny, quant).1.mean_kl;
        let (eight, four, two) = (kl(Quant::Q8_0), kl(Quant::Q4KM), kl(Quant::Q2K));
        assert!(exact_text.mean_kl < eight + NOISE && eight < four, "{eight} {four}");
        // Rows of 64 are held in five bits and four where those of 256 would have four and two.
        assert!(four < two, "{four} {two}");
    }
}

/// The adapter was made at random: what it does to the likelihood is measured with it and without it.
#[test]
fn the_base_is_measured_where_there_is_an_adapter() {
    let tiny = Tiny::qwen3();
    let (alone, _) = measured(&tiny, Quant::F32);
    assert_eq!(alone.base_nll, None);
    tiny.write_adapter(|_| {});
    let (adapted, _) = measured(&tiny, Quant::F32);
    assert!((adapted.base_nll.unwrap() - alone.merged_nll).abs() < 1e-3, "{alone:?} {adapted:?}");
    assert!((adapted.merged_nll - alone.merged_nll).abs() > 3e-3, "{alone:?} {adapted:?}");
}

#[test]
fn what_diverges_too_far_is_refused() {
    let tiny = Tiny::qwen3();
    let limits = Limits { max_kl: Some(1e-5), ..Limits::NONE };
    let request = Request { limits, ..comparing(&tiny, Quant::Q2K) };
    let error = refused(&request, &FakeEngine::sound());
    assert!(matches!(error, Error::Refused { .. }), "{error}");
    let message = error.to_string();
    assert!(message.starts_with("the gate refused the export: its predictions diverge by "), "{message}");
}

#[test]
fn nothing_is_compared_where_that_is_not_asked() {
    let tiny = Tiny::qwen3();
    let (receipt, _) = exported(&request(&tiny, Quant::Q4KM));
    assert!(receipt.gate.fidelity.is_none());
}

/// Columns differ in importance wherever one looks: the matrix must pay on other text too, at two bits and at four.
#[test]
fn a_measured_matrix_brings_a_file_nearer() {
    let tiny = Tiny::qwen3();
    tiny.write_adapter(|_| {});
    // Columns of very different importance, as trained models have them.
    tiny.write_changed(1, |spec, values| {
        if spec.role == Role::AttnNorm || spec.role == Role::FfnNorm {
            values.iter_mut().step_by(7).for_each(|gain| *gain *= 8.0);
        }
    });
    std::fs::remove_dir_all(tiny.adapter()).unwrap();
    let kl = |quant, importance| {
        let request = Request { importance, ..comparing(&tiny, quant) };
        let (receipt, events) = exported(&request);
        let measured = events.iter().find_map(|event| match event {
            Event::Measured { is_new, .. } => Some(*is_new),
            _ => None,
        });
        (receipt.gate.fidelity.unwrap().general.unwrap().mean_kl, measured, receipt.sources.imatrix_blake3)
    };
    let calibration = Calibration {
        dataset: "rows".into(),
        conversations: request(&tiny, Quant::Q2K).evaluation,
        texts: vec!["One text more.".into()],
        most_tokens: 1000,
    };
    let measured = || ImportanceSource::Measured(calibration.clone());
    let (plain, none, _) = kl(Quant::Q2K, ImportanceSource::None);
    let (weighted, is_new, first) = kl(Quant::Q2K, measured());
    assert_eq!((none, is_new), (None, Some(true)));
    assert!(weighted < 0.8 * plain, "{weighted} against {plain}");
    let (plain, ..) = kl(Quant::Q4KM, ImportanceSource::None);
    let (weighted, is_new, again) = kl(Quant::Q4KM, measured());
    assert!(weighted < plain, "{weighted} against {plain}");
    assert_eq!((is_new, first), (Some(false), again), "it is measured once");
    // Other weights are measured anew.
    tiny.write_weights(5);
    assert_eq!(kl(Quant::IQ2XXS, measured()).1, Some(true));
}
