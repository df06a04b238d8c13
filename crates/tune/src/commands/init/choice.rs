//! What suits so many rows of such lengths: epochs, rows of a step, rates, lengths.

use crate::cli::Goal;

/// What the choices follow from.
#[derive(Debug, Clone, Copy)]
pub struct Facts {
    pub goal: Goal,
    /// Rows that are trained on and set aside together.
    pub rows: u64,
    /// Tokens of a row, in the mean and at most.
    pub mean_tokens: usize,
    pub longest_tokens: usize,
    /// Most tokens that the base handles, where it is here.
    pub max_positions: Option<usize>,
    /// Bytes of the base in four bits, where it is here.
    pub weights_bytes: Option<u64>,
}

/// Values of a recipe.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    pub rank: u64,
    pub val_split: f64,
    pub max_seq_len: usize,
    pub batch_size: u64,
    pub epochs: u64,
    pub learning_rate: f64,
    /// Steps of the run.
    pub steps: u64,
    /// Steps between two evaluations.
    pub eval_every: u64,
    pub num_ctx: u64,
}

/// A longer context is asked for by hand: it is paid by every row.
const LONGEST: usize = 4096;

pub fn choose(facts: &Facts) -> Choice {
    let val_split = val_split(facts.rows);
    let rows = (facts.rows as f64 * (1.0 - val_split)).round().max(1.0) as u64;
    let batch_size = batch_size(rows, facts.mean_tokens);
    let steps_of_epoch = rows.div_ceil(batch_size);
    let epochs = epochs(facts.goal, steps_of_epoch);
    let steps = steps_of_epoch * epochs;
    let max_seq_len = max_seq_len(facts);
    Choice {
        rank: match facts.goal {
            Goal::Style => 8,
            Goal::Task => 16,
            Goal::Text => 32,
        },
        val_split,
        max_seq_len,
        batch_size,
        epochs,
        learning_rate: learning_rate(facts),
        steps,
        // Ten looks at a run tell a curve, and three without a fall an end; a long one is looked at more often.
        eval_every: (steps / 10).clamp(1, 500),
        num_ctx: (2 * max_seq_len as u64).next_power_of_two().clamp(512, 32_768),
    }
}

/// A twentieth, but neither so few rows that they tell nothing nor more than tell any better.
fn val_split(rows: u64) -> f64 {
    let rows = rows as f64;
    let share = (0.05f64).max(8.0 / rows).min(500.0 / rows).min(0.2);
    (1000.0 * share).ceil() / 1000.0
}

/// As many as leave thirty steps an epoch; fewer of long rows.
fn batch_size(rows: u64, mean_tokens: usize) -> u64 {
    let most = if mean_tokens > 1024 { 8 } else { 16 };
    [16, 8, 4].into_iter().find(|&size| size <= most && rows / size >= 30).unwrap_or(2)
}

/// So many that there are some hundred steps, within what a row can be repeated before it is learnt by heart.
fn epochs(goal: Goal, steps_of_epoch: u64) -> u64 {
    let (wanted_steps, most) = match goal {
        Goal::Task => (300, 5),
        Goal::Style => (150, 2),
        Goal::Text => (300, 3),
    };
    (wanted_steps as u64).div_ceil(steps_of_epoch).clamp(1, most)
}

/// Small models take, and need, larger rates.
fn learning_rate(facts: &Facts) -> f64 {
    const MIB: u64 = 1 << 20;
    let rate = match facts.weights_bytes {
        Some(bytes) if bytes < 64 * MIB => 2e-3,
        Some(bytes) if bytes < 600 * MIB => 4e-4,
        _ => 2e-4,
    };
    if facts.goal == Goal::Style { rate / 2.0 } else { rate }
}

/// The longest row, rounded up, within what base and custom allow.
fn max_seq_len(facts: &Facts) -> usize {
    let most = facts.max_positions.map_or(LONGEST, |positions| positions.min(LONGEST));
    facts.longest_tokens.next_multiple_of(64).max(128).min(most)
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn check(goal: Goal, rows: u64, mean_tokens: usize, mib: Option<u64>, expected: Expect) {
        let facts = Facts {
            goal,
            rows,
            mean_tokens,
            longest_tokens: 3 * mean_tokens,
            max_positions: Some(8192),
            weights_bytes: mib.map(|mib| mib << 20),
        };
        let c = choose(&facts);
        expected.assert_eq(&format!(
            "rank {} · val {} · length {} · {} epochs of {} rows a step = {} steps · lr {} · check every {} · ctx {}",
            c.rank, c.val_split, c.max_seq_len, c.epochs, c.batch_size, c.steps, c.learning_rate, c.eval_every, c.num_ctx
        ));
    }

    #[test]
    fn choices_follow_rows_lengths_and_base() {
        check(
            Goal::Task,
            2000,
            60,
            Some(3),
            expect![
                "rank 16 · val 0.05 · length 192 · 3 epochs of 16 rows a step = 357 steps · lr 0.002 · check every 35 · ctx 512"
            ],
        );
        check(
            Goal::Task,
            12,
            100,
            Some(2400),
            expect![
                "rank 16 · val 0.2 · length 320 · 5 epochs of 2 rows a step = 25 steps · lr 0.0002 · check every 2 · ctx 1024"
            ],
        );
        check(
            Goal::Task,
            300,
            400,
            None,
            expect![
                "rank 16 · val 0.05 · length 1216 · 5 epochs of 8 rows a step = 180 steps · lr 0.0002 · check every 18 · ctx 4096"
            ],
        );
        check(
            Goal::Style,
            5000,
            300,
            Some(400),
            expect![
                "rank 8 · val 0.05 · length 960 · 1 epochs of 16 rows a step = 297 steps · lr 0.0002 · check every 29 · ctx 2048"
            ],
        );
        check(
            Goal::Text,
            1_000_000,
            2000,
            Some(4700),
            expect![
                "rank 32 · val 0.001 · length 4096 · 1 epochs of 8 rows a step = 124875 steps · lr 0.0002 · check every 500 · ctx 8192"
            ],
        );
        check(
            Goal::Task,
            1,
            5,
            None,
            expect![
                "rank 16 · val 0.2 · length 128 · 5 epochs of 2 rows a step = 5 steps · lr 0.0002 · check every 1 · ctx 512"
            ],
        );
    }
}
