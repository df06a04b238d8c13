//! An expert that cannot fit is refused before it is loaded, with what would fit.

mod tiny;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use runner::budget::{Available, Place, Planned};
use runner::card::{CardOptions, Digests, ExpertCard, LoadOptions};
use runner::engine::llama::LlamaEngine;
use runner::engine::{Engine, Loaded};
use runner::memory::{DeviceMemory, MemoryState};
use runner::pipeline::{PipelineSpec, RunOptions, run};
use runner::residency::ResidencyEvent;
use runner::{Error, Registry, Residency, Result};
use serde_json::json;
use tiny::Says;

/// The real engine on a machine with less memory.
struct Narrow {
    engine: LlamaEngine,
    memory: MemoryState,
    place: Place,
}

impl Narrow {
    fn new(free_bytes: u64) -> Self {
        let memory =
            MemoryState { total_bytes: 64 << 30, free_bytes, resident_bytes: 0, devices: Vec::new() };
        Self { engine: LlamaEngine::new().unwrap(), memory, place: Place::Main }
    }
}

impl Engine for Narrow {
    fn name(&self) -> String {
        self.engine.name()
    }

    fn load(
        &mut self,
        card: &ExpertCard,
        progress: &mut dyn FnMut(f32) -> ControlFlow<()>,
    ) -> Result<Box<dyn Loaded>> {
        self.engine.load(card, progress)
    }

    fn place(&self) -> Place {
        self.place
    }

    fn memory(&self) -> MemoryState {
        self.memory.clone()
    }
}

fn file(directory: &Path, name: &str) -> PathBuf {
    let path = directory.join(format!("{name}.gguf"));
    tiny::write(&path, &Says::Once(&["Hello"]));
    path
}

fn card(directory: &Path, name: &str, num_ctx: u32) -> ExpertCard {
    let load = LoadOptions { num_ctx, num_thread: 1, num_batch: 512, ..LoadOptions::default() };
    let options = CardOptions { load, ..CardOptions::default() };
    ExpertCard::from_file(name, &file(directory, name), &options, Digests::Blake3).unwrap()
}

fn need(card: &ExpertCard) -> u64 {
    let planned = Planned::new(card, Place::Main, &Available::default(), None).unwrap();
    planned.budget.main.total_bytes()
}

#[test]
fn an_expert_is_loaded_where_its_budget_fits_and_refused_a_byte_below() {
    let directory = tempfile::tempdir().unwrap();
    let card = card(directory.path(), "hello", 512);
    let need = need(&card);
    let get = |free| {
        let mut events = Vec::new();
        let mut residency = Residency::new(Box::new(Narrow::new(free)));
        let got = residency
            .get(&card, &|| false, &mut |event: ResidencyEvent| events.push(event))
            .map(|(loaded, _)| loaded.memory());
        (got, events)
    };
    let (got, events) = get(need);
    assert!(got.is_ok());
    let ResidencyEvent::Loading { planned, .. } = &events[0] else { panic!("{events:?}") };
    assert_eq!(planned.main.total_bytes(), need);

    let (got, events) = get(need - 1);
    let error = got.unwrap_err();
    assert!(events.is_empty(), "nothing of it was loaded: {events:?}");
    let Error::DoesNotFit { ref remedies, free_bytes, share, place: Place::Main, .. } = error else {
        panic!("{error}")
    };
    assert_eq!((free_bytes, share.total_bytes()), (need - 1, need));
    assert!(!remedies.is_empty());
    assert!(error.to_string().starts_with("expert `hello` needs "), "{error}");
    let hint = error.hint().unwrap();
    assert!(hint.contains("num_batch = 128") && hint.contains("kv_type = \"q8_0\""), "{hint}");
}

#[test]
fn where_nothing_would_fit_the_hint_says_so() {
    let directory = tempfile::tempdir().unwrap();
    let card = card(directory.path(), "hello", 512);
    let mut residency = Residency::new(Box::new(Narrow::new(1 << 20)));
    let error = residency.get(&card, &|| false, &mut |_: ResidencyEvent| {}).map(drop).unwrap_err();
    assert_eq!(
        error.hint().unwrap(),
        "no shorter context and no smaller quantisation of it would fit either"
    );
}

#[test]
fn a_pipeline_names_the_fallback_that_its_expert_has() {
    let directory = tempfile::tempdir().unwrap();
    let (large, small) = (card(directory.path(), "large", 512), card(directory.path(), "small", 256));
    let free = need(&small);
    assert!(free < need(&large));
    let spec = |fallback: &str| {
        json!({
            "experts": {
                "large": {"file": "large.gguf", "num_ctx": 512, "num_thread": 1, "fallback": fallback},
                "small": {"file": "small.gguf", "num_ctx": 256, "num_thread": 1},
            },
            "steps": [{"name": "answer", "expert": "large", "prompt": "{{ input }}"}],
        })
    };
    let registry = Registry::at(directory.path().join("experts"));
    let check = |fallback: &str| {
        let spec: PipelineSpec = serde_json::from_value(spec(fallback)).unwrap();
        spec.check("p", directory.path(), &registry)
    };
    let pipeline = check("small").unwrap();
    assert_eq!(pipeline.fallback("large").unwrap().name, "small");
    let options = RunOptions { runs: directory.path().join("runs"), ..RunOptions::default() };
    let mut residency = Residency::new(Box::new(Narrow::new(free)));
    let error = run(&pipeline, "x", &options, &mut residency, &|| false, &mut |_| {}).map(drop).unwrap_err();
    let hint = error.hint().unwrap_or_else(|| panic!("{error}"));
    assert!(hint.contains("its fallback `small`"), "{hint}");

    let error = check("large").unwrap_err().to_string();
    assert!(error.contains("experts.large.fallback") && error.contains("itself"), "{error}");
    let error = check("smal").map(drop).unwrap_err().to_string();
    assert!(error.contains("large, small") && error.contains("smal"), "{error}");
}

/// Where there is a card, it is the card that must have room; main memory beside it too.
#[test]
fn both_memories_are_asked() {
    let directory = tempfile::tempdir().unwrap();
    let card = card(directory.path(), "hello", 512);
    let planned = |card_bytes, main_bytes| {
        let available = Available { card_bytes: Some(card_bytes), main_bytes: Some(main_bytes) };
        Planned::new(&card, Place::Card, &available, None).unwrap()
    };
    let whole = planned(64 << 30, 64 << 30);
    assert!(whole.short_of.is_none());
    let (on_card, beside) = (whole.budget.card.total_bytes(), whole.budget.main.total_bytes());
    assert_eq!(planned(on_card - 1, beside).short_of, Some((Place::Card, on_card - 1)));
    assert_eq!(planned(on_card, beside - 1).short_of, Some((Place::Main, beside - 1)));
    let error = planned(on_card - 1, beside).check("hello").unwrap_err().to_string();
    assert!(error.contains("on the graphics card"), "{error}");
    let state = MemoryState {
        total_bytes: 8,
        free_bytes: 5,
        resident_bytes: 1,
        devices: vec![DeviceMemory { name: "a".to_owned(), total_bytes: 9, free_bytes: 7 }],
    };
    assert_eq!(Available::now(&state), Available { card_bytes: Some(7), main_bytes: Some(5) });
    assert_eq!(Available::now(&MemoryState::default()), Available::default());
}
