//! What a run leaves behind and reports.

use std::path::Path;

use model::device::Precision;
use model::device::cpu::{ProductKernel, best_precision};
use trainer::metrics::{self, Metric};
use trainer::record::RunRecord;
use trainer::run_dir::RunDir;
use trainer::{Event, Init, Length, OnTooLong, Options, Weights};

use crate::tiny_base::{Workplace, rows, train, write_base};

/// Sums of the same numbers in another grouping; f32 sums over a few hundred terms.
const REGROUPED_TOLERANCE: f64 = 1e-5;

fn losses(events: &[Event]) -> Vec<f64> {
    events
        .iter()
        .filter_map(|event| if let Event::Step(step) = event { Some(step.loss) } else { None })
        .collect()
}

#[test]
fn a_run_learns_and_writes_adapter_record_and_metrics() {
    let place = Workplace::new();
    let mut options = place.options("run");
    options.data.test = vec![place.path("test.jsonl").into()];
    options.eval.exact_match_rows = 4;
    options.eval.samples = 2;
    let (outcome, events) = train(&options);
    let outcome = outcome.unwrap();

    assert!(outcome.is_finished);
    assert_eq!((outcome.steps, outcome.total_steps, outcome.skipped_steps), (12, 12, 0));
    let (before, after) = (outcome.base_validation_loss.unwrap(), outcome.validation_loss.unwrap());
    assert!(after < before - 0.5, "{before} -> {after}");
    assert_eq!(outcome.base_exact_match.unwrap().rows, 4);
    assert_eq!(outcome.adapter_exact_match.unwrap().weights, Weights::Adapter);

    let run_dir = RunDir::new(&options.run_dir);
    assert_eq!(run_dir.outcome().unwrap(), outcome);
    let adapter = formats::adapter::read_adapter(&run_dir.adapter()).unwrap();
    assert_eq!(adapter.tensors.len(), 14);
    let provenance = adapter.tune.unwrap();
    assert_eq!((provenance.steps, provenance.base_blake3.len()), (12, 64));
    assert!(run_dir.best().join("adapter_model.safetensors").is_file());
    assert_eq!(outcome.adapter_dir.as_deref(), Some(run_dir.adapter().as_path()));

    // One validation before step 1, then every third step; the plan comes before everything else but the data.
    let validations: Vec<u64> = events
        .iter()
        .filter_map(|event| if let Event::Validation { step, .. } = event { Some(*step) } else { None })
        .collect();
    assert_eq!(validations, [0, 3, 6, 9, 12]);
    assert!(matches!((&events[0], &events[1]), (Event::Data(_), Event::Plan(_))));
    assert!(matches!(events.last(), Some(Event::Finished(_))));
    assert_eq!(events.iter().filter(|event| matches!(event, Event::Sample { .. })).count(), 4);

    let lines = metrics::read(&run_dir.metrics()).unwrap();
    let steps: Vec<u64> =
        lines.iter().filter(|line| matches!(line, Metric::Step(_))).map(Metric::step).collect();
    assert_eq!(steps, (1..=12).collect::<Vec<_>>());
}

/// Rank 4 with alpha 8 has the scale 2; rank-stabilised it is alpha 4 that has: the same numbers, recorded as they are.
#[test]
fn rank_stabilised_is_another_scale_and_is_recorded() {
    let place = Workplace::new();
    let plain = place.options("plain");
    let mut stabilised = place.options("stabilised");
    (stabilised.adapter.rslora, stabilised.adapter.alpha) = (true, 4.0);
    let runs = [plain, stabilised].map(|options| {
        let (outcome, events) = train(&options);
        assert!(outcome.unwrap().is_finished);
        let adapter = formats::adapter::read_adapter(&RunDir::new(&options.run_dir).adapter()).unwrap();
        (losses(&events), adapter)
    });
    let [(plain_losses, plain), (stabilised_losses, stabilised)] = runs;
    assert_eq!(stabilised_losses, plain_losses);
    assert_eq!(stabilised.tensors, plain.tensors);
    assert_eq!((plain.config.use_rslora, plain.config.lora_alpha), (false, 8.0));
    assert_eq!((stabilised.config.use_rslora, stabilised.config.lora_alpha), (true, 4.0));
}

#[test]
fn variants_of_the_adapter_learn_and_are_recorded() {
    let place = Workplace::new();
    let mut options = place.options("variants");
    options.adapter.dora = true;
    options.adapter.dropout = 0.1;
    options.adapter.ranks = vec![("down_proj".into(), 3)];
    options.adapter.alphas = vec![(r"layers\.0\.mlp\.up_proj".into(), 2.0)];
    options.train.lora_plus_ratio = 4.0;
    let (outcome, _) = train(&options);
    let outcome = outcome.unwrap();
    let (before, after) = (outcome.base_validation_loss.unwrap(), outcome.validation_loss.unwrap());
    assert!(outcome.is_finished && after < before - 0.1, "{before} became {after}");
    let adapter = formats::adapter::read_adapter(&RunDir::new(&options.run_dir).adapter()).unwrap();
    assert!(adapter.config.use_dora && adapter.config.lora_dropout == f64::from(0.1f32));
    for pair in &adapter.tensors {
        let rank = if pair.module.ends_with("down_proj") { 3 } else { 4 };
        assert_eq!((pair.r, pair.magnitude.as_ref().map(Vec::len)), (rank, Some(pair.out_features)));
    }
    let shapes = adapter.config.shapes(std::path::Path::new("adapter_config.json")).unwrap();
    let scales = ["layers.0.mlp.up_proj", "layers.1.mlp.up_proj", "layers.1.mlp.down_proj"]
        .map(|module| shapes.scale(&format!("model.{module}")));
    assert_eq!(scales, [0.5, 2.0, 8.0 / 3.0]);
}

/// An adapter that began in the weights: the base is itself at step 0, and the result is a plain LoRA of twice the rank.
#[test]
fn adapters_that_begin_in_the_weights_learn_and_are_plain_lora() {
    let place = Workplace::new();
    let plain = train(&place.options("plain")).0.unwrap();
    for (init, quant) in [(Init::Pissa, "q8_0"), (Init::LoftQ, "q4_0"), (Init::Pissa, "f32")] {
        let mut options = place.options(&format!("{init:?}-{quant}"));
        (options.adapter.init, options.model.quant) = (init, Some(quant.into()));
        let (outcome, events) = train(&options);
        let outcome = outcome.unwrap();
        let (before, after) = (outcome.base_validation_loss.unwrap(), outcome.validation_loss.unwrap());
        assert!(after < before - 0.1, "{init:?}: {before} became {after}");
        assert!(
            (before / plain.base_validation_loss.unwrap() - 1.0).abs() < 0.02,
            "{init:?} begins as the base"
        );
        let lost = events.iter().find_map(|event| match event {
            Event::Decomposed { lost_before, lost_after, .. } => Some((*lost_before, *lost_after)),
            _ => None,
        });
        let (lost_before, lost_after) = lost.unwrap();
        // PiSSA takes away what is largest; whether that helps the blocks depends on the weights.
        let lowers = lost_after <= lost_before.max(1e-6);
        assert!(lowers || init == Init::Pissa, "{lost_before} became {lost_after}");
        let adapter = formats::adapter::read_adapter(&RunDir::new(&options.run_dir).adapter()).unwrap();
        assert_eq!((adapter.config.r, adapter.config.lora_alpha, adapter.tensors[0].r), (8, 16.0, 8));
    }
}

#[test]
fn a_base_trains_in_every_form_it_can_be_held_in() {
    let place = Workplace::new();
    for quant in
        model::Quant::FILES.into_iter().chain(model::Quant::MEMORY).filter(|quant| !quant.needs_matrix())
    {
        let mut options = place.options(quant.name());
        options.model.quant = Some(quant.name().into());
        let outcome = train(&options).0.unwrap();
        let (before, after) = (outcome.base_validation_loss.unwrap(), outcome.validation_loss.unwrap());
        assert!(outcome.is_finished && after < before - 0.1, "{quant}: {before} became {after}");
    }
}

#[test]
fn no_dense_copy_of_a_base_weight_outlives_its_use() {
    let place = Workplace::new();
    let outcome = train(&place.options("run")).0.unwrap();
    let whole_base = std::fs::metadata(place.base().join("model.safetensors")).unwrap().len();
    let peak = outcome.dense_peak_bytes;
    assert!(peak > 0 && peak < whole_base / 2, "{peak} of {whole_base}");
    assert_eq!(outcome.dense_live_bytes, 0);
}

#[test]
fn the_plan_holds_and_is_reported_beside_what_was_measured() {
    let place = Workplace::new();
    let (outcome, events) = train(&place.options("run"));
    let outcome = outcome.unwrap();
    let plan = events
        .iter()
        .find_map(|event| if let Event::Plan(plan) = event { Some(plan) } else { None })
        .unwrap();
    assert_eq!(plan.total_bytes, plan.rows.iter().map(|(_, bytes)| bytes).sum::<u64>());
    assert_eq!((plan.rows_per_step, plan.steps_per_epoch, plan.total_steps), (4, 9, 12));
    assert_eq!(outcome.planned_bytes, plan.total_bytes);
    assert!(outcome.memory_bytes.is_some() || !Path::new("/proc/self/status").exists());
}

/// The adapter can learn one fixed answer by heart, which the base cannot give.
#[test]
fn exact_match_tells_base_and_adapter_apart() {
    let place = Workplace::new();
    let row = r#"{"messages":[{"role":"user","content":"Q"},{"role":"assistant","content":"ok!"}]}"#;
    place.write_data("train.jsonl", &format!("{row}\n").repeat(8));
    let mut options = place.options("run");
    options.train.length = Length::MaxSteps(60);
    options.train.learning_rate = 1e-2;
    options.eval.exact_match_rows = 1;
    let outcome = train(&options).0.unwrap();
    assert_eq!(outcome.base_exact_match.unwrap().matched, 0);
    assert_eq!(outcome.adapter_exact_match.unwrap().matched, 1, "{outcome:?}");
}

#[test]
fn accumulated_split_and_whole_batches_are_the_same_run() {
    let place = Workplace::new();
    // One in ten rows is much longer, so that dividing by rows or micro-batches would show.
    let long = |n: u32| if n.is_multiple_of(10) { "very ".repeat(20) } else { String::new() };
    let data: String = (0..40)
        .map(|n| {
            let answer = format!("{}{n}", long(n));
            format!(
                "{{\"messages\":[{{\"role\":\"user\",\"content\":\"{n}\"}},{{\"role\":\"assistant\",\"content\":\"{answer}\"}}]}}\n"
            )
        })
        .collect();
    place.write_data("train.jsonl", &data);
    let run = |name: &str, batch_size, accumulation| {
        let mut options = place.options(name);
        options.train.batch_size = batch_size;
        options.train.gradient_accumulation_steps = accumulation;
        losses(&train(&options).1)
    };
    let whole = run("whole", 4, 1);
    assert_eq!(whole.len(), 12);
    for other in [run("accumulated", 1, 4), run("halves", 2, 2)] {
        for (a, b) in whole.iter().zip(&other) {
            assert!((a - b).abs() <= REGROUPED_TOLERANCE * a, "{a} and {b}");
        }
    }
}

#[test]
fn a_small_budget_splits_micro_batches_and_changes_nothing_else() {
    let place = Workplace::new();
    let run = |name: &str, memory_bytes| {
        let mut options = place.options(name);
        options.train.batch_size = 16;
        options.train.length = Length::MaxSteps(3);
        options.budget.memory_bytes = memory_bytes;
        let events = train(&options).1;
        let plan = events
            .iter()
            .find_map(|event| if let Event::Plan(plan) = event { Some(plan.clone()) } else { None });
        (plan, losses(&events))
    };
    let (whole, free) = run("free", None);
    let whole = whole.unwrap();
    let tight = (1..80).find_map(|step| {
        let (plan, losses) = run(&format!("tight-{step}"), Some(whole.total_bytes * (80 - step) / 80));
        plan.filter(|plan| plan.micro_batch_tokens < whole.micro_batch_tokens).map(|plan| (plan, losses))
    });
    let (plan, tight) = tight.expect("some budget between one row and a whole batch");
    assert!(plan.total_bytes <= plan.budget_bytes.unwrap());
    assert_eq!((plan.kept_layers, tight.len()), (0, free.len()));
    for (a, b) in free.iter().zip(&tight) {
        assert!((a - b).abs() <= REGROUPED_TOLERANCE * a, "{a} and {b}");
    }
}

#[test]
fn plain_text_is_learned_whole() {
    let place = Workplace::new();
    place.write_data("train.jsonl", &"{\"text\":\"once upon a time\"}\n".repeat(20));
    let (outcome, events) = train(&place.options("run"));
    let outcome = outcome.unwrap();
    assert!(outcome.validation_loss.unwrap() < outcome.base_validation_loss.unwrap());
    let Event::Data(data) = &events[0] else { panic!("{:?}", events[0]) };
    // 16 bytes a row; each but the first is a target.
    assert_eq!((data.train_tokens, data.target_tokens), (18 * 16, 18 * 15));
}

#[test]
fn long_rows_are_dropped_or_cut_and_counted() {
    let place = Workplace::new();
    let long = rows(0..1).replace("it is 0", &"long ".repeat(40));
    place.write_data("train.jsonl", &(rows(1..30) + &long));
    let run = |policy, name: &str| {
        let mut options: Options = place.options(name);
        options.data.max_seq_len = 80;
        options.data.on_too_long = policy;
        let events = train(&options).1;
        let Event::Data(data) = &events[0] else { panic!("{:?}", events[0]) };
        (data.dropped_rows, data.truncated_rows, data.train_rows + data.validation_rows)
    };
    assert_eq!(run(OnTooLong::Drop, "drop"), (1, 0, 29));
    assert_eq!(run(OnTooLong::Truncate, "cut"), (0, 1, 30));
}

#[test]
fn numbers_that_are_not_finite_end_the_run_and_are_never_saved() {
    let place = Workplace::new();
    let mut options = place.options("run");
    options.train.learning_rate = 1e30;
    options.train.checkpoint_every = 1;
    let (outcome, events) = train(&options);
    let error = outcome.unwrap_err();
    assert!(
        matches!(error, trainer::Error::NotFinite { count: 3, .. } | trainer::Error::BrokenAdapter { .. }),
        "{error}"
    );
    assert!(!RunDir::new(&options.run_dir).adapter().exists());
    for entry in std::fs::read_dir(RunDir::new(&options.run_dir).checkpoints()).unwrap() {
        let adapter = formats::adapter::read_adapter(&entry.unwrap().path().join("adapter")).unwrap();
        let mut weights = adapter.tensors.iter().flat_map(|tensor| tensor.a.iter().chain(&tensor.b));
        assert!(weights.all(|weight| weight.is_finite()));
    }
    assert!(events.iter().all(|event| !matches!(event, Event::Finished(_))));
}

#[test]
fn steps_with_a_loss_that_is_not_finite_are_skipped_three_times() {
    let place = Workplace::new();
    // Weights so large that the very first logits overflow.
    write_base(&place.base(), 1e30);
    let (outcome, events) = train(&place.options("run"));
    assert!(matches!(outcome, Err(trainer::Error::NotFinite { step: 3, count: 3 })), "{outcome:?}");
    assert_eq!(events.iter().filter(|event| matches!(event, Event::StepSkipped { .. })).count(), 3);
}

/// Factors of eight bits, averaged in each sum, grown over twelve steps; another learning rate shows as 0.1.
const PRECISION_TOLERANCE: f64 = 1e-2;

#[test]
fn products_of_every_precision_change_little_and_are_recorded() {
    let place = Workplace::new();
    let exact = losses(&train(&place.options("exact")).1);
    for compute in [None, Some(Precision::BF16), Some(Precision::Int16), Some(Precision::Int8)] {
        let precision = compute.unwrap_or_else(best_precision);
        let mut options = place.options(&format!("{compute:?}"));
        options.model.compute = compute;
        if ProductKernel::best(precision).is_none() {
            let (outcome, _) = train(&options);
            assert!(outcome.unwrap_err().to_string().contains(precision.instructions()));
            continue;
        }
        let found = losses(&train(&options).1);
        let record = RunRecord::read(&RunDir::new(&options.run_dir)).unwrap().unwrap();
        assert_eq!(record.chosen.precision, precision);
        assert_eq!(found == exact, precision == Precision::F32, "{precision}");
        for (found, exact) in found.iter().zip(&exact) {
            assert!((found - exact).abs() < PRECISION_TOLERANCE * exact, "{precision}: {found} for {exact}");
        }
    }
}

/// Sums in another order, on processors with wider or narrower registers, grown over six steps.
const PROCESSOR_TOLERANCE: f64 = 1e-4;

#[test]
fn the_course_of_a_run_is_pinned() {
    const LOSSES: [f64; 6] = [6.127756, 5.731652, 5.272247, 4.779296, 4.669967, 4.339742];
    let place = Workplace::new();
    let mut options = place.options("run");
    options.train.length = Length::MaxSteps(6);
    let found = losses(&train(&options).1);
    assert_eq!(found.len(), LOSSES.len(), "{found:?}");
    for (found, pinned) in found.iter().zip(LOSSES) {
        assert!((found - pinned).abs() < PROCESSOR_TOLERANCE, "{found} instead of {pinned}");
    }
}

/// An epoch in one step has the same rows packed and single, in micro-batches of other sizes and another order.
#[test]
fn packed_and_single_rows_are_the_same_step() {
    let place = Workplace::new();
    let step = |name: &str, packing: bool, batch_size: usize, accumulation: usize| {
        let mut options = place.options(name);
        (options.data.packing, options.data.max_seq_len) = (packing, 128);
        options.train.batch_size = batch_size;
        options.train.gradient_accumulation_steps = accumulation;
        options.train.length = Length::MaxSteps(1);
        let events = train(&options).1;
        let step =
            events.iter().find_map(|event| if let Event::Step(step) = event { Some(step) } else { None });
        step.unwrap().clone()
    };
    let single = step("single", false, 64, 1);
    for (name, batch_size, accumulation) in [("packed", 64, 1), ("packed in parts", 1, 64)] {
        let packed = step(name, true, batch_size, accumulation);
        assert_eq!((packed.tokens, packed.target_tokens), (single.tokens, single.target_tokens));
        for (a, b) in [(packed.loss, single.loss), (packed.grad_norm, single.grad_norm)] {
            assert!((a / b - 1.0).abs() <= REGROUPED_TOLERANCE, "{name}: {a} and {b}");
        }
    }
}
