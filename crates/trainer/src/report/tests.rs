//! The page as a whole: what stands on it, and that nothing on it can act.

use std::path::PathBuf;

use super::*;
use crate::event::{
    DataSummary, End, ExactMatch, Outcome, PlanTable, PreferenceFigures, Sample, StepReport, Weights,
};
use crate::metrics::{Metric, MetricsLog};

/// What a data set, a model or a folder's name may hold.
const HOSTILE: &str = "</pre></script><script>alert(1)</script><img src=x onerror=alert(2)>\" onload=\"alert(3)' ' \x1b]0;x\x07 &lt;b&gt;";

fn step(step: u64) -> Metric {
    Metric::Step(StepReport {
        step,
        total_steps: 100,
        epoch: step as f64 / 50.0,
        loss: 2.0 / step as f64,
        preference: None,
        validation_loss: None,
        learning_rate: 1e-4,
        grad_norm: 0.5,
        tokens: 1000,
        target_tokens: 500,
        tokens_per_second: 8800.0,
        memory_bytes: Some(190 << 20),
        planned_bytes: 210 << 20,
        eta_seconds: 1.0,
    })
}

fn sample(weights: Weights, answer: &str) -> Sample {
    Sample { weights, prompt: HOSTILE.into(), expected: format!("{HOSTILE} yes"), answer: answer.into() }
}

fn record() -> RunRecord {
    let mut record = RunRecord {
        outcome: Outcome { total_steps: 100, planned_bytes: 210 << 20, seconds: 61.0, ..Outcome::default() },
        data: Some(DataSummary {
            train_rows: 1900,
            target_tokens: 10,
            train_tokens: 20,
            ..DataSummary::default()
        }),
        plan: Some(PlanTable {
            rows: vec![("weights".into(), 150 << 20), ("adapter".into(), 60 << 20)],
            total_bytes: 210 << 20,
            ..PlanTable::default()
        }),
        program: Some("0.1.0".into()),
        started_at: Some(1_795_224_600),
        base_samples: vec![sample(Weights::Base, HOSTILE)],
        ..RunRecord::default()
    };
    record.options.model.base = PathBuf::from(HOSTILE);
    record.options.data.train = vec![PathBuf::from(HOSTILE).into()];
    record
}

fn course() -> Course {
    let mut course = Course::default();
    course.add(Metric::Validation { step: 0, loss: 2.5, preference: None });
    (1..=60).map(step).for_each(|metric| course.add(metric));
    course.add(Metric::Validation { step: 60, loss: 0.25, preference: None });
    course.add(Metric::Skipped { step: 61, what: HOSTILE.into() });
    course.add(Metric::Resumed { step: 40, at: 1_795_228_200 });
    course.add(Metric::Sample { step: 60, sample: sample(Weights::Adapter, &format!("{HOSTILE} yes")) });
    let exact_match = ExactMatch { weights: Weights::Adapter, matched: 3, rows: 4, seconds: 0.1 };
    course.add(Metric::ExactMatch { step: 60, exact_match });
    course
}

/// The page's text without markup, as a reader sees it.
fn text(page: &str) -> String {
    let body = page.split_once("<body>").unwrap().1.split("<script>").next().unwrap();
    let mut text = String::new();
    for part in body.split('<').skip(1) {
        let shown = part.split_once('>').unwrap().1;
        text += shown;
        text.push(' ');
    }
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[test]
fn the_figures_of_a_run_stand_on_its_page() {
    let page = page("quick", &record(), &course());
    let text = text(&page);
    for shown in [
        "quick not finished: step 61 of 100",
        "begun 2026-11-21 01:30 UTC · tune 0.1.0",
        "Validation loss 2.5000 → 0.2500 lowest 0.2500 at step 60",
        "Exact match 75.0 % of 4 held-out rows",
        "Steps 61 of 100 1.20 passes over the data",
        "Time 61.0 s in two sittings",
        "Memory 190.0 MiB 210.0 MiB planned",
        "tokens learnt 10 (50.0 %)",
        "weights 150.0 MiB",
        "resumed after step 40 2026-11-21 02:30 UTC",
        "step 61 skipped",
        "train.learning_rate 0.0002",
        "train.max_grad_norm 1.0",
    ] {
        assert!(text.contains(shown), "{shown} is not in {text}");
    }
    for title in ["Loss", "Learning rate", "Gradient norm", "Speed", "Memory"] {
        assert!(page.contains(&format!("<figcaption><b>{title}</b>")), "{title}");
    }
    assert_eq!(page.matches("<figure").count(), 5);
    assert!(page.contains("class=\"match\"") && page.contains("class=\"other\""));
}

#[test]
fn preferences_and_early_stops_show() {
    let (mut record, mut course) = (record(), course());
    let figures = PreferenceFigures {
        accuracy: 0.75,
        margin: 1.5,
        rewards_chosen: 1.0,
        rewards_rejected: -0.5,
        logps_chosen: -3.0,
        logps_rejected: -4.0,
        nll: 0.5,
    };
    course.steps.iter_mut().for_each(|point| point.preference = Some(figures));
    course.add(Metric::Spike { step: 62, what: "gradient".into(), value: 80.0, median: 1.0 });
    let outcome = &mut record.outcome;
    (outcome.is_finished, outcome.end, outcome.result_step) = (true, Some(End::EarlyStopping), Some(30));
    let page = page("pairs", &record, &course);
    for title in ["Better answer preferred", "Margin of the rewards", "Rewards", "Loss of the better answers"]
    {
        assert!(page.contains(&format!("<figcaption><b>{title}</b>")), "{title}");
    }
    assert_eq!(page.matches("<figure").count(), 9);
    let text = text(&page);
    for shown in [
        "finished, stopped early after step 62",
        "the result is the adapter of step 30",
        "Better answer preferred · % of the pairs",
        "step 62 skipped gradient was 80.0000, 1.0000 being usual",
    ] {
        assert!(text.contains(shown), "{shown} is not in {text}");
    }
}

/// One script, the page's own, whose hash the policy names; no tag and no attribute that came from outside.
#[test]
fn hostile_text_is_inert() {
    for page in [
        page(HOSTILE, &record(), &course()),
        comparison(
            &[Compared { name: HOSTILE, record: &record(), course: &course() }],
            &[(HOSTILE.into(), vec![HOSTILE.into()])],
        ),
    ] {
        assert_eq!(page.matches("<script").count(), 1);
        assert_eq!(page.matches("</script").count(), 1);
        assert!(!page.contains("<img") && !page.contains('\x1b') && !page.contains('\x07'));
        assert!(page.contains("&lt;script&gt;alert(1)&lt;/script&gt;"));
        for tag in page.split('<').skip(1).map(|part| part.split('>').next().unwrap()) {
            let bare: String = tag.split('"').step_by(2).collect();
            assert!(!bare.contains("onload") && !bare.contains("onerror"), "<{tag}>");
        }
        assert!(page.contains("default-src &#39;none&#39;") && page.contains("script-src &#39;sha256-"));
        assert!(!page.contains("http://") && !page.contains("https://"), "nothing is fetched");
    }
}

#[test]
fn a_run_from_before_all_this_and_one_that_has_just_begun_have_a_page() {
    let dir = tempfile::tempdir().unwrap();
    let run_dir = RunDir::new(dir.path().join("old"));
    assert!(matches!(write(&run_dir), Err(Error::NothingToResume { .. })));
    std::fs::create_dir_all(run_dir.path()).unwrap();
    // As it was written before data, plan and samples were part of it.
    let old = r#"{"version": 1, "options": {}, "inputs": {"recipe":"r","base":"b","base_config":"c","dataset":"d",
        "validation":"","test":"","tokenizer":"t","template":""}, "chosen": {"micro_batch_tokens": 7, "host_bytes": 1},
        "outcome": {"is_finished": true, "steps": 3, "total_steps": 3, "validation_loss": 0.5}}"#;
    std::fs::write(run_dir.run_json(), old).unwrap();
    let page = std::fs::read_to_string(write(&run_dir).unwrap()).unwrap();
    assert_eq!(page.matches("not recorded").count(), 2);
    assert!(page.contains("finished") && !page.contains("<figure"));

    let mut log = MetricsLog::open(&run_dir.metrics(), None).unwrap();
    log.append(&step(1)).unwrap();
    let first = std::fs::read(write(&run_dir).unwrap()).unwrap();
    assert!(String::from_utf8_lossy(&first).contains("<figure"));
    assert_eq!(
        std::fs::read(write(&run_dir).unwrap()).unwrap(),
        first,
        "the page depends on the files alone"
    );
}
