//! Learning from pairs: DPO and ORPO from file to adapter, stopped and resumed, and what is refused.

use std::path::Path;

use expect_test::expect;
use serde_json::{Value, json};
use trainer::event::PreferenceFigures;
use trainer::metrics::{self, Metric};
use trainer::options::{DataOptions, EvalOptions, ModelOptions, TrainOptions};
use trainer::run_dir::RunDir;
use trainer::{Event, Init, Length, Method, Options, StepReport};

use crate::resume::{course, result, resumed, train_until};
use crate::tiny_base::{Workplace, rows, train};

/// The last bits of a pair's likelihoods differ with what shares a batch with it: a few roundings of sums of about 100.
const SAME_BASE_TOLERANCE: f64 = 1e-4;

/// The same sums in other micro-batches.
const ORDER_TOLERANCE: f64 = 1e-5;

fn pairs(numbers: std::ops::Range<u32>) -> String {
    let row = |n: u32| {
        json!({"prompt": format!("number {n}?"), "chosen": format!("it is {n}"), "rejected": format!("{n}, I think")})
            .to_string()
            + "\n"
    };
    numbers.map(row).collect()
}

pub fn place() -> Workplace {
    let place = Workplace::new();
    place.write_data("train.jsonl", &pairs(0..40));
    place
}

pub fn options(place: &Workplace, run: &str, method: Method) -> Options {
    let mut options = place.options(run);
    options.train.method = method;
    options
}

/// The steps of a run.
fn steps(options: &Options) -> Vec<StepReport> {
    let lines = metrics::read(&RunDir::new(&options.run_dir).metrics()).unwrap();
    lines
        .into_iter()
        .filter_map(|line| if let Metric::Step(step) = line { Some(step) } else { None })
        .collect()
}

fn figures(step: &StepReport) -> PreferenceFigures {
    step.preference.unwrap()
}

#[test]
fn dpo_begins_at_ln_2_and_learns_which_answer_is_better() {
    let place = place();
    let options = options(&place, "dpo", Method::Dpo);
    let (outcome, events) = train(&options);
    let outcome = outcome.unwrap();
    let ln_2 = std::f64::consts::LN_2;
    assert!((outcome.base_validation_loss.unwrap() - ln_2).abs() < SAME_BASE_TOLERANCE);
    let steps = steps(&options);
    assert!((steps[0].loss - ln_2).abs() < SAME_BASE_TOLERANCE, "{}", steps[0].loss);
    assert!(figures(&steps[0]).margin.abs() < SAME_BASE_TOLERANCE);
    let last = figures(steps.last().unwrap());
    assert!(last.accuracy == 1.0 && last.margin > 0.5, "{last:?}");
    assert!((last.rewards_chosen - last.rewards_rejected - last.margin).abs() < 1e-9);
    assert!(outcome.validation_loss.unwrap() < 0.5, "{:?}", outcome.validation_loss);
    let judged: Vec<_> = events
        .iter()
        .filter_map(
            |event| if let Event::Reference { done, total } = event { Some((*done, *total)) } else { None },
        )
        .collect();
    assert_eq!(judged.last(), Some(&(40, 40)), "every pair once: {judged:?}");
}

#[test]
fn orpo_learns_the_better_answer_without_a_reference() {
    let place = place();
    let options = options(&place, "orpo", Method::Orpo);
    let (outcome, events) = train(&options);
    outcome.unwrap();
    let steps = steps(&options);
    let (first, last) = (figures(&steps[0]), figures(steps.last().unwrap()));
    assert!(last.nll < first.nll - 0.5 && last.margin > first.margin, "{first:?} {last:?}");
    assert!(!events.iter().any(|event| matches!(event, Event::Reference { .. })));
    assert!(!RunDir::new(&options.run_dir).reference().exists());
}

/// However a step's pairs are cut into micro-batches, loss and gradient are those of their mean.
#[test]
fn accumulated_pairs_are_one_batch() {
    let place = place();
    for method in [Method::Dpo, Method::Orpo] {
        let first = |name: &str, batch_size: usize, accumulation: usize| {
            let mut options = options(&place, &format!("{}-{name}", method.name()), method);
            options.train.length = Length::MaxSteps(3);
            (options.train.batch_size, options.train.gradient_accumulation_steps) =
                (batch_size, accumulation);
            train(&options).0.unwrap();
            steps(&options)
        };
        let (together, accumulated) = (first("together", 4, 1), first("accumulated", 1, 4));
        let near = |one: f64, other: f64| (one / other - 1.0).abs() < ORDER_TOLERANCE;
        let (one, other) = (&together[0], &accumulated[0]);
        assert!(near(one.loss, other.loss), "{} {}", one.loss, other.loss);
        assert!(near(one.grad_norm, other.grad_norm), "{} {}", one.grad_norm, other.grad_norm);
        assert_eq!((one.tokens, one.target_tokens), (other.tokens, other.target_tokens));
    }
}

#[test]
fn stopped_and_resumed_the_end_is_the_same_to_the_bit() {
    let place = place();
    for (name, method, init) in [
        ("dpo", Method::Dpo, Init::Default),
        ("orpo", Method::Orpo, Init::Default),
        ("pissa", Method::Dpo, Init::Pissa),
    ] {
        let variant = |run: &str| {
            let mut options = options(&place, &format!("{name}-{run}"), method);
            options.adapter.init = init;
            options.adapter.dropout = 0.1;
            options
        };
        let (whole, stopped) = (variant("whole"), variant("stopped"));
        train(&whole).0.unwrap();
        for stop in [1, 5] {
            let next = if stop == 1 { stopped.clone() } else { resumed(&stopped) };
            let at = |event: &Event| matches!(event, Event::Step(step) if step.step == stop);
            assert_eq!(train_until(&next, at).0.unwrap().steps, stop);
            let reference = RunDir::new(&stopped.run_dir).reference();
            match (method, stop) {
                // What is lost or damaged is measured again, to the same bits.
                (Method::Dpo, 1) => std::fs::remove_file(reference).unwrap(),
                (Method::Dpo, _) => damage(&reference),
                _ => {}
            }
        }
        train(&resumed(&stopped)).0.unwrap();
        assert_eq!(result(&stopped), result(&whole), "{name}");
        assert_eq!(course(&stopped), course(&whole), "{name}");
    }
}

fn damage(path: &std::path::Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn stopped_while_the_base_judges_nothing_is_lost() {
    let place = place();
    let options = options(&place, "early", Method::Dpo);
    let outcome =
        train_until(&options, |event| matches!(event, Event::Reference { done: 1.., .. })).0.unwrap();
    assert_eq!((outcome.steps, outcome.is_finished), (0, false));
    let (outcome, events) = train(&resumed(&options));
    assert!(outcome.unwrap().is_finished);
    let first = events.iter().find_map(|event| match event {
        Event::Reference { done, .. } => Some(*done),
        _ => None,
    });
    assert!(first.unwrap() > 0, "what was judged before is not judged again");
}

#[test]
fn methods_and_rows_must_be_of_one_kind() {
    let place = place();
    let refused = |change: &dyn Fn(&mut Options)| {
        let mut options = options(&place, "refused", Method::Dpo);
        change(&mut options);
        let error = train(&options).0.unwrap_err().to_string();
        assert!(!options.run_dir.exists(), "something was written");
        error
    };
    expect![[r#"`train.method` is "sft", and the rows are preferences, from which "dpo" and "orpo" learn"#]]
        .assert_eq(&refused(&|options| options.train.method = Method::Sft));
    place.write_data("chat.jsonl", &rows(0..40));
    expect![[r#"`train.method` is "dpo", which learns from `chosen` and `rejected`, and the rows are of kind `messages`"#]]
        .assert_eq(&refused(&|options| options.data.train = vec![place.path("chat.jsonl").into()]));
    expect![[r#"`train.method` is "dpo", which learns from `chosen` and `rejected`, and the rows are of kind `messages`"#]]
        .assert_eq(&refused(&|options| options.data.validation = vec![place.path("chat.jsonl").into()]));
    expect![[r#"`train.beta` must be a number above 0"#]]
        .assert_eq(&refused(&|options| options.train.beta = Some(0.0)));
    expect![[r#"`train.label_smoothing` is of `train.method = "dpo"` alone"#]].assert_eq(&refused(
        &|options| {
            (options.train.method, options.train.label_smoothing) = (Method::Orpo, Some(0.1));
        },
    ));
    expect![[r#"`train.beta` is of `train.method = "dpo"` and `"orpo"`, and the method is `"sft"`"#]]
        .assert_eq(&refused(&|options| {
            (options.train.method, options.train.beta) = (Method::Sft, Some(0.1))
        }));
}

/// Rows of a quickstart file as the base knows them: what is asked, and the answer with values in quotes and without.
fn name_and_city(file: &str, n: usize) -> Vec<[String; 3]> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../datasets/quickstart").join(file);
    let text = std::fs::read_to_string(path).unwrap();
    let row = |line: &str| {
        let row: Value = serde_json::from_str(line).unwrap();
        let [asked, answer] = [0, 1].map(|message| row["messages"][message]["content"].as_str().unwrap());
        let record: Value = serde_json::from_str(answer).unwrap();
        let [name, city] = ["name", "city"].map(|key| record[key].as_str().unwrap());
        [
            format!("Get name, city: {}", asked.strip_prefix("Record: ").unwrap()),
            format!("name: \"{name}\"\ncity: \"{city}\""),
            format!("name: {name}\ncity: {city}"),
        ]
    };
    text.lines().take(n).map(row).collect()
}

/// The small base that ships answers without quotes unless it is asked for them; pairs teach it that they are liked.
#[test]
fn the_style_that_is_preferred_is_answered() {
    let place = Workplace::new();
    let pair = |[prompt, chosen, rejected]: [String; 3]| {
        json!({"prompt": prompt, "chosen": chosen, "rejected": rejected}).to_string() + "\n"
    };
    let chat = |[prompt, chosen, _]: [String; 3]| {
        let messages =
            [json!({"role": "user", "content": prompt}), json!({"role": "assistant", "content": chosen})];
        json!({"messages": messages}).to_string() + "\n"
    };
    place.write_data(
        "pairs.jsonl",
        &name_and_city("train.jsonl", 320).into_iter().map(pair).collect::<String>(),
    );
    place.write_data(
        "asked.jsonl",
        &name_and_city("test.jsonl", 40).into_iter().map(chat).collect::<String>(),
    );
    for (method, learning_rate) in [(Method::Dpo, 5e-4), (Method::Orpo, 1e-3)] {
        let options = Options {
            run_dir: place.path(method.name()),
            model: ModelOptions {
                base: Path::new(env!("CARGO_MANIFEST_DIR")).join("../../recipes/pocket"),
                ..ModelOptions::default()
            },
            data: DataOptions {
                train: vec![place.path("pairs.jsonl").into()],
                test: vec![place.path("asked.jsonl").into()],
                ..DataOptions::default()
            },
            train: TrainOptions {
                method,
                learning_rate,
                batch_size: 8,
                eval_every: 20,
                ..TrainOptions::default()
            },
            eval: EvalOptions {
                exact_match_rows: 40,
                samples: 0,
                max_new_tokens: 64,
                ..EvalOptions::default()
            },
            ..Options::default()
        };
        let (outcome, events) = train(&options);
        let outcome = outcome.unwrap();
        let shares =
            [outcome.base_exact_match, outcome.adapter_exact_match].map(|found| found.unwrap().share());
        assert!(shares[0] == 0.0 && shares[1] > 0.8, "{method:?}: {shares:?}");
        let held_out: Vec<PreferenceFigures> = events
            .iter()
            .filter_map(|event| match event {
                Event::Validation { preference, .. } => *preference,
                _ => None,
            })
            .collect();
        let (first, last) = (held_out[0], held_out[held_out.len() - 1]);
        eprintln!(
            "{}: exact match {shares:?} in {:.1} s, held-out pairs {first:?} then {last:?}",
            method.name(),
            outcome.seconds
        );
        assert!(first.margin < 1e-3 && last.accuracy > 0.95, "{method:?}: {first:?} {last:?}");
    }
}
