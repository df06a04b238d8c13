//! What a run writes down beside its result: samples, data, plan, report, TensorBoard's events; each once, however
//! often the run was stopped.

use std::path::Path;

use formats::tensorboard::Content;
use trainer::metrics::{self, Metric};
use trainer::record::RunRecord;
use trainer::run_dir::RunDir;
use trainer::runs::{self, Standing};
use trainer::{Event, Options, Weights};

use crate::resume::{resumed, train_until};
use crate::tiny_base::{Workplace, train};

fn options(place: &Workplace, run: &str) -> Options {
    let mut options = place.options(run);
    options.data.test = vec![place.path("test.jsonl").into()];
    (options.eval.exact_match_rows, options.eval.samples) = (4, 2);
    options.train.tensorboard = true;
    options
}

/// Stops at the event that is named so: `killed`, by a panic; otherwise as by Ctrl-C.
fn stop_at(options: &Options, wanted: &str, killed: bool) {
    let name = |event: &Event| match event {
        Event::Step(step) => format!("step {}", step.step),
        Event::ExactMatch(figures) => format!("{:?} examined", figures.weights),
        Event::Report { .. } => "report".into(),
        _ => String::new(),
    };
    let run = || {
        train_until(options, |event| {
            let is_it = name(event) == wanted;
            if is_it && killed {
                std::panic::resume_unwind(Box::new("killed"));
            }
            is_it
        })
    };
    let ended = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
    match ended {
        Ok((outcome, _)) => assert!(!killed && outcome.is_ok(), "{wanted}: {outcome:?}"),
        Err(_) => assert!(killed, "{wanted}"),
    }
}

/// Tags and steps of all figures, in the order in which TensorBoard reads them.
fn figures(dir: &Path) -> Vec<(String, u64, f32)> {
    let mut paths: Vec<_> = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let events = paths.iter().flat_map(|path| formats::tensorboard::read(path).unwrap());
    let mut figures = Vec::new();
    for event in events {
        if let Content::Scalars(scalars) = event.content {
            figures.extend(scalars.into_iter().map(|(tag, value)| (tag, event.step, value)));
        }
    }
    figures
}

#[test]
fn samples_data_and_plan_are_kept_once_however_often_a_run_is_stopped() {
    let place = Workplace::new();
    for (index, stops) in [
        &[][..],
        &[("step 1", true), ("step 5", false), ("step 9", true)],
        &[("Base examined", true), ("Adapter examined", true), ("report", true)],
    ]
    .into_iter()
    .enumerate()
    {
        let options = options(&place, &format!("run-{index}"));
        let mut next = options.clone();
        for &(stop, killed) in stops {
            stop_at(&next, stop, killed);
            next = resumed(&options);
        }
        let (outcome, _) = train(&next);
        assert!(outcome.unwrap().is_finished);

        let run_dir = RunDir::new(&options.run_dir);
        let record = RunRecord::read(&run_dir).unwrap().unwrap();
        assert_eq!(record.base_samples.len(), 2);
        assert!(record.base_samples.iter().all(|sample| sample.weights == Weights::Base));
        let (data, plan) = (record.data.unwrap(), record.plan.unwrap());
        assert_eq!((data.train_rows, data.validation_rows, data.test_rows), (36, 4, 4));
        assert_eq!((plan.total_steps, plan.total_bytes), (12, record.outcome.planned_bytes));
        assert!(record.program.is_some() && record.started_at.is_some());

        let lines = metrics::read(&run_dir.metrics()).unwrap();
        let count = |kind: &dyn Fn(&Metric) -> bool| lines.iter().filter(|line| kind(line)).count();
        assert_eq!(count(&|line| matches!(line, Metric::Sample { step: 12, .. })), 2, "{stops:?}");
        assert_eq!(count(&|line| matches!(line, Metric::ExactMatch { .. })), 2, "{stops:?}");
        assert_eq!(count(&|line| matches!(line, Metric::Step(_))), 12);
        assert_eq!(count(&|line| matches!(line, Metric::Resumed { .. })) > 0, !stops.is_empty());

        let page = std::fs::read_to_string(run_dir.report()).unwrap();
        assert_eq!(page.matches("<figure").count(), 5);
        assert!(page.contains("number 100?") && page.contains("it is 100"), "the samples");
        std::fs::remove_file(run_dir.report()).unwrap();
        trainer::report::write(&run_dir).unwrap();
        assert_eq!(std::fs::read_to_string(run_dir.report()).unwrap(), page, "made anew from the files");
    }
}

#[test]
fn tensorboard_has_each_step_once_and_the_figures_of_the_metrics() {
    let place = Workplace::new();
    let options = options(&place, "run");
    stop_at(&options, "step 5", true);
    stop_at(&resumed(&options), "step 9", false);
    train(&resumed(&options)).0.unwrap();

    let run_dir = RunDir::new(&options.run_dir);
    let figures = figures(&run_dir.tensorboard());
    let of = |tag: &str| -> Vec<(u64, f32)> {
        let tagged = figures.iter().filter(|(other, ..)| other == tag);
        tagged.map(|(_, step, value)| (*step, *value)).collect()
    };
    let lines = metrics::read(&run_dir.metrics()).unwrap();
    let steps =
        || lines.iter().filter_map(|line| if let Metric::Step(step) = line { Some(step) } else { None });
    assert_eq!(of("train/loss"), steps().map(|step| (step.step, step.loss as f32)).collect::<Vec<_>>());
    let rates: Vec<_> = steps().map(|step| (step.step, step.learning_rate as f32)).collect();
    assert_eq!(of("train/learning_rate"), rates);
    assert_eq!(of("train/grad_norm").len(), 12);
    assert_eq!(of("train/tokens_per_second").len(), 12);
    let validations: Vec<u64> = of("eval/loss").into_iter().map(|(step, _)| step).collect();
    assert_eq!(validations, [0, 3, 6, 9, 12]);
    let matches: Vec<u64> = of("eval/exact_match").into_iter().map(|(step, _)| step).collect();
    assert_eq!(matches, [0, 12]);
    assert_eq!(std::fs::read_dir(run_dir.tensorboard()).unwrap().count(), 3, "one file a sitting");
}

#[test]
fn a_run_on_disk_says_how_it_stands() {
    let place = Workplace::new();
    let options = options(&place, "runs/a");
    let run_dir = RunDir::new(&options.run_dir);
    let mut while_running = None;
    train_until(&options, |event| match event {
        Event::Step(step) if step.step == 5 => {
            while_running = Some(runs::summary(&run_dir).unwrap());
            true
        }
        _ => false,
    })
    .0
    .unwrap();
    let while_running = while_running.unwrap();
    let pid = std::process::id().to_string();
    assert_eq!(while_running.standing, Standing::Running { pid });
    assert_eq!((while_running.steps, while_running.total_steps), (5, 12));

    let stopped = runs::summary(&run_dir).unwrap();
    assert_eq!(stopped.standing, Standing::Interrupted { checkpoint: 5 });
    assert!(stopped.base_validation_loss > stopped.validation_loss && stopped.validation_loss.is_some());
    assert!(stopped.seconds > 0.0 && stopped.bytes > 10_000);

    let outcome = train(&resumed(&options)).0.unwrap();
    let found = runs::find(&place.path("runs")).unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(found[0], run_dir);
    let finished = runs::summary(&run_dir).unwrap();
    assert_eq!((finished.name.as_str(), &finished.standing), ("a", &Standing::Finished));
    assert_eq!(finished.steps, 12);
    assert_eq!(finished.validation_loss, outcome.validation_loss);
    assert_eq!(finished.best_validation_loss, outcome.best_validation_loss);
    assert_eq!(finished.adapter_exact_match, outcome.adapter_exact_match);
}

/// A run that is stopped by its own numbers leaves a report that shows them.
#[test]
fn a_run_that_fails_has_a_report() {
    let place = Workplace::new();
    let mut options = place.options("run");
    // Far beyond any sense: the loss is no number after a few steps.
    (options.train.learning_rate, options.train.clip) = (1e30, 0.0);
    let failed = train(&options).0;
    assert!(failed.is_err(), "{failed:?}");
    let page = std::fs::read_to_string(RunDir::new(&options.run_dir).report()).unwrap();
    assert!(page.contains("not finished") && page.contains("<figure"), "{page}");
}
