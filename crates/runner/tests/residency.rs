//! What is loaded and what is not: an expert that cannot fit is refused before it is loaded, with what would fit;
//! several are kept where they fit; the next one's file is read ahead.

mod tiny;

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use runner::budget::{Available, Place, Planned};
use runner::card::{CardOptions, Digests, ExpertCard, LoadOptions};
use runner::engine::llama::LlamaEngine;
use runner::engine::{Engine, Loaded};
use runner::memory::{DeviceMemory, MemoryState};
use runner::pipeline::{Event, PipelineSpec, RunOptions, run};
use runner::residency::{Comes, Keeping, PlannedExpert, ReadAheadLimits, ResidencyEvent, forecast};
use runner::{Error, Registry, Residency, Result};
use serde_json::json;
use tiny::Says;

/// The memory of that machine, of which a sixteenth is left to others where several experts are kept.
const TOTAL: u64 = 64 << 20;
const LEFT_TO_OTHERS: u64 = TOTAL / 16;

/// What llama.cpp's log has, to a hundredth of a MiB, and what lies between two tensors.
const LOG_BYTES: u64 = 16 << 10;

/// The real engine on a machine with less memory; what is free there does not change.
struct Narrow {
    engine: LlamaEngine,
    memory: MemoryState,
    place: Place,
}

impl Narrow {
    fn new(free_bytes: u64) -> Self {
        let memory = MemoryState { total_bytes: TOTAL, free_bytes, resident_bytes: 0, devices: Vec::new() };
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

/// What comes and goes when these are asked for in turn, each with what is foreseen from there on.
fn swaps(residency: &mut Residency, order: &[&ExpertCard], foreseen: bool) -> Vec<String> {
    let mut seen = Vec::new();
    for (i, card) in order.iter().enumerate() {
        if foreseen {
            residency.foresee(order[i..].iter().map(|&card| card.clone()).collect());
        }
        let mut observe = |event: ResidencyEvent| match event {
            ResidencyEvent::Loaded { expert, .. } => seen.push(format!("+{expert}")),
            ResidencyEvent::Unloaded { expert, .. } => seen.push(format!("-{expert}")),
            _ => {}
        };
        let (loaded, _) = residency.get(card, &|| false, &mut observe).unwrap();
        assert_eq!(loaded.card().name, card.name);
    }
    seen
}

fn mapped(card: &ExpertCard) -> u64 {
    let mut engine = LlamaEngine::new().unwrap();
    let loaded = engine.load(card, &mut |_| ControlFlow::Continue(())).unwrap();
    let (mapped, weights) = (loaded.mapped_bytes(), loaded.memory().weights_bytes);
    assert!(mapped.abs_diff(weights) < LOG_BYTES, "{mapped} {weights}");
    loaded.mapped_bytes()
}

#[test]
fn experts_are_kept_where_they_fit_to_the_byte() {
    let directory = tempfile::tempdir().unwrap();
    let (a, b) = (card(directory.path(), "a", 512), card(directory.path(), "b", 512));
    let fits_both = need(&b) + mapped(&a) + LEFT_TO_OTHERS;
    let on = |free| Residency::new(Box::new(Narrow::new(free)));
    assert_eq!(swaps(&mut on(fits_both), &[&a, &b, &a, &b], false), ["+a", "+b"]);
    assert_eq!(swaps(&mut on(fits_both - 1), &[&a, &b, &a], false), ["+a", "-a", "+b", "-b", "+a"]);
    let mut one = on(fits_both).keeping(Keeping::One);
    assert_eq!(swaps(&mut one, &[&a, &b, &a], false), ["+a", "-a", "+b", "-b", "+a"]);
    let mut both = on(fits_both);
    swaps(&mut both, &[&a, &b], false);
    let names: Vec<&str> = both.residents().map(|resident| resident.card().name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    both.clear(&mut formats::observe::Silent).unwrap();
    assert!(both.resident().is_none());
}

#[test]
fn what_is_needed_latest_goes_first() {
    let directory = tempfile::tempdir().unwrap();
    let [a, b, c] = ["a", "b", "c"].map(|name| card(directory.path(), name, 512));
    // All three are alike: with two of them there is no room for a third.
    let free = need(&c) + mapped(&a) + LEFT_TO_OTHERS;
    let on = || Residency::new(Box::new(Narrow::new(free)));
    let order = [&a, &b, &c, &b, &a];
    assert_eq!(swaps(&mut on(), &order, true), ["+a", "+b", "-a", "+c", "-c", "+a"]);
    // Nobody knows what comes: the one asked for longest ago goes.
    assert_eq!(swaps(&mut on(), &order, false), ["+a", "+b", "-a", "+c", "-c", "+a"].map(str::to_owned));
    let order = [&a, &b, &c, &a, &b];
    assert_eq!(swaps(&mut on(), &order, true), ["+a", "+b", "-b", "+c", "-c", "+b"]);
    assert_eq!(swaps(&mut on(), &order, false), ["+a", "+b", "-a", "+c", "-b", "+a", "-c", "+b"]);
}

#[test]
fn three_experts_over_twenty_items_are_loaded_three_times() {
    let directory = tempfile::tempdir().unwrap();
    for name in ["a", "b", "c"] {
        file(directory.path(), name);
    }
    let expert = |name: &str| json!({"file": format!("{name}.gguf"), "num_ctx": 512, "num_thread": 1});
    let spec: PipelineSpec = serde_json::from_value(json!({
        "experts": {"a": expert("a"), "b": expert("b"), "c": expert("c")},
        "steps": [
            {"name": "one", "expert": "a", "map": "lines", "prompt": "{{ item }}"},
            {"name": "two", "expert": "b", "prompt": "{{ steps.one.output }}"},
            {"name": "three", "expert": "c", "prompt": "{{ steps.two.output }}"},
        ],
    }))
    .unwrap();
    let pipeline =
        spec.check("p", directory.path(), &Registry::at(directory.path().join("experts"))).unwrap();
    let input: Vec<String> = (0..20).map(|item| format!("item {item}")).collect();
    for keeping in [Keeping::One, Keeping::WhereTheyFit] {
        let options = RunOptions { runs: directory.path().join("runs"), ..RunOptions::default() };
        let mut residency = Residency::new(Box::new(LlamaEngine::new().unwrap())).keeping(keeping);
        let mut loads = Vec::new();
        let outcome = run(&pipeline, &input.join("\n"), &options, &mut residency, &|| false, &mut |event| {
            if let Event::Residency(ResidencyEvent::Loaded { expert, .. }) = event {
                loads.push(expert);
            }
        });
        let outcome = outcome.unwrap();
        assert_eq!((outcome.n_loads, outcome.results.len()), (3, 60), "{keeping:?}");
        assert_eq!(loads, ["a", "b", "c"], "{keeping:?}");
        assert!(outcome.results.iter().all(|result| result.output == "Hello"), "{keeping:?}");
    }
}

#[test]
fn the_next_file_is_read_ahead_and_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let [a, b] = ["a", "b"].map(|name| card(directory.path(), name, 512));
    let longer = ExpertCard { load: LoadOptions { num_ctx: 256, ..a.load.clone() }, ..a.clone() };
    let limits = ReadAheadLimits { least_available: 0.0, most_pressure: 1.0, ..ReadAheadLimits::default() };
    let on =
        |free| Residency::new(Box::new(Narrow::new(free))).keeping(Keeping::One).reading_ahead(Some(limits));
    let get = |residency: &mut Residency, card: &ExpertCard| {
        residency.get(card, &|| false, &mut formats::observe::Silent).map(drop).unwrap();
    };
    let mut residency = on(TOTAL);
    // Nobody said what comes.
    get(&mut residency, &a);
    assert!(residency.read_ahead().is_none());
    // The same file under other load options is in memory.
    residency.foresee(vec![a.clone(), longer, b.clone()]);
    get(&mut residency, &a);
    assert!(residency.read_ahead().is_none());
    residency.foresee(vec![a.clone(), b.clone()]);
    get(&mut residency, &a);
    let file = b.file().unwrap();
    let ahead = residency.read_ahead().unwrap();
    assert_eq!(ahead.path(), file.file);
    while !ahead.is_done() {
        std::thread::yield_now();
    }
    assert_eq!(ahead.read_bytes(), file.file_bytes);
    // It is not read twice, and is forgotten once it is loaded or no longer wanted.
    get(&mut residency, &a);
    assert!(residency.read_ahead().is_some_and(|ahead| ahead.is_done()));
    get(&mut residency, &b);
    assert!(residency.read_ahead().is_none());
    residency.foresee(vec![b.clone(), a.clone()]);
    get(&mut residency, &b);
    assert!(residency.read_ahead().is_some());
    residency.foresee(Vec::new());
    assert!(residency.read_ahead().is_none());
    // Neither where that is not wanted, nor where there is no room for it.
    let crowded = ReadAheadLimits { share_of_spare: 0.001, ..limits };
    for mut residency in [on(TOTAL).reading_ahead(None), on(TOTAL).reading_ahead(Some(crowded))] {
        residency.foresee(vec![a.clone(), b.clone()]);
        get(&mut residency, &a);
        assert!(residency.read_ahead().is_none());
    }
}

/// What comes and goes by plan alone.
fn planned_swaps(cards: &[&ExpertCard], steps: &[usize], main_bytes: u64, keeping: Keeping) -> Vec<String> {
    let budgets: Vec<_> = cards
        .iter()
        .map(|card| Planned::new(card, Place::Main, &Available::default(), None).unwrap().budget)
        .collect();
    let experts: Vec<PlannedExpert<'_>> =
        cards.iter().zip(&budgets).map(|(card, budget)| PlannedExpert { card, budget }).collect();
    let available = Available { card_bytes: None, main_bytes: Some(main_bytes) };
    let steps: Vec<Option<usize>> = steps.iter().map(|&step| Some(step)).collect();
    let mut seen = Vec::new();
    for (step, forecast) in steps.iter().zip(forecast(&experts, &steps, &available, TOTAL, keeping)) {
        seen.extend(forecast.unloads.iter().map(|&index| format!("-{}", cards[index].name)));
        assert_eq!(forecast.residents.last(), step.as_ref());
        let name = &cards[step.unwrap()].name;
        match forecast.comes {
            Comes::Loads => seen.push(format!("+{name}")),
            Comes::Switches => seen.push(format!("~{name}")),
            Comes::Stays | Comes::None => {}
        }
    }
    seen
}

#[test]
fn a_plan_foretells_the_swaps() {
    let directory = tempfile::tempdir().unwrap();
    let [a, b, c] = ["a", "b", "c"].map(|name| card(directory.path(), name, 512));
    let role = ExpertCard { name: "role".to_owned(), system: Some("Be brief.".to_owned()), ..a.clone() };
    let cards = [&a, &b, &c, &role];
    let two = 2 * need(&a) + LEFT_TO_OTHERS;
    let keeping = Keeping::WhereTheyFit;
    assert_eq!(planned_swaps(&cards, &[0, 1, 2, 1, 0], two, keeping), ["+a", "+b", "-a", "+c", "-c", "+a"]);
    assert_eq!(planned_swaps(&cards, &[0, 1, 2, 0, 1], two, keeping), ["+a", "+b", "-b", "+c", "-c", "+b"]);
    assert_eq!(planned_swaps(&cards, &[0, 1, 0], two - 1, keeping), ["+a", "-a", "+b", "-b", "+a"]);
    assert_eq!(planned_swaps(&cards, &[0, 1, 0], two, Keeping::One), ["+a", "-a", "+b", "-b", "+a"]);
    assert_eq!(planned_swaps(&cards, &[0, 3, 0, 1], two, keeping), ["+a", "~role", "~a", "+b"]);
}
