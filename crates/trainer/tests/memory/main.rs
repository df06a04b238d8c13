//! The plan against what the system measures, in a process of its own, since memory is measured by process.

#[allow(dead_code)]
#[path = "../train/tiny_base.rs"]
mod tiny_base;

use tiny_base::{Workplace, train};

#[test]
fn the_plan_holds() {
    let place = Workplace::new();
    let mut options = place.options("run");
    // Large enough that the planned workspace, not the fixed allowance, is most of it.
    options.adapter.rank = 256;
    options.train.batch_size = 40;
    options.train.gradient_accumulation_steps = 1;
    options.eval.exact_match_rows = 3;
    let outcome = train(&options).0.unwrap();
    let Some(measured) = outcome.memory_bytes else {
        println!("skipped: this system does not tell its memory");
        return;
    };
    assert!(measured <= outcome.planned_bytes, "{measured} measured, {} planned", outcome.planned_bytes);
    assert!(2 * measured > outcome.planned_bytes, "{measured} measured, {} planned", outcome.planned_bytes);
}
