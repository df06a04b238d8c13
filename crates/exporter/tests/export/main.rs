//! Exports of tiny models that the tests make: the files, every refusal, kills.

mod checkpoint;
mod damage;
mod engine;
mod families;
mod fidelity;
mod files;
mod forms;
mod forward;
mod gguf_base;
mod kills;
mod llama_cpp;
mod refusals;
#[cfg(unix)]
mod resume;
mod several;

use checkpoint::Tiny;
use engine::FakeEngine;
use exporter::{
    AdapterSource, Error, Event, Figures, ImportanceSource, Limits, Provenance, Receipt, Reference, Request,
    Template, export,
};
use model::policy::Quant;
use text::Message;

/// A request for the adapter of `tiny` where it has one, with two held-out rows that the sound engine answers.
fn request(tiny: &Tiny, quant: Quant) -> Request {
    let row =
        |question: &str| vec![Message::new("user", question), Message::new("assistant", "{\"n\": 5}")].into();
    let adapter = Figures { n_rows: 2, n_exact: 2 };
    let base = Figures { n_rows: 2, n_exact: 0 };
    Request {
        base: tiny.base(),
        adapters: tiny.adapter().exists().then(|| AdapterSource::whole(tiny.adapter())).into_iter().collect(),
        allow_requantising: false,
        quant,
        types: Vec::new(),
        importance: ImportanceSource::None,
        output: tiny.output(),
        matrix_dir: tiny.output(),
        name: "tiny".into(),
        tokenizer: tiny.base(),
        template: Template::FromTokenizer,
        num_ctx: 128,
        system: None,
        evaluation: vec![row("five apples"), row("a five")],
        comparison_tokens: 0,
        reference: Reference { base: Some(base), adapter: Some(adapter) },
        limits: Limits::default(),
        provenance: Provenance { base_name: Some("made/tiny".into()), ..Provenance::default() },
    }
}

/// Exports with an engine that finds no fault.
fn exported(request: &Request) -> (Receipt, Vec<Event>) {
    let mut events = Vec::new();
    let receipt = export(request, &FakeEngine::sound(), &mut |event| events.push(event)).unwrap();
    (receipt, events)
}

/// The error of an export; nothing may stand in the output directory after it.
fn refused(request: &Request, engine: &FakeEngine) -> Error {
    let error = export(request, engine, &mut formats::observe::Silent).unwrap_err();
    assert_eq!(names(&request.output), Vec::<String>::new(), "left after: {error}");
    error
}

/// What stands in a directory, sorted; nothing where it does not exist.
fn names(dir: &std::path::Path) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}
