//! A contender's figures with their intervals, and whether it differs from the one before.

use std::collections::BTreeSet;

use serde::Serialize;

use super::answers::{JsonMarks, Marks};
use super::rows::Rows;
use super::statistics::{Exchange, Mean, Rate};
use super::{Column, Measured};

/// All figures.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Rows.
    pub rows: usize,
    /// One a contender, in the order in which they were measured.
    pub figures: Vec<Figures>,
    /// Of each contender but the first from the one before.
    pub differences: Vec<Difference>,
    /// The figures of each group of rows, where rows say which they are of.
    pub groups: Vec<Group>,
}

/// One contender on some rows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Figures {
    /// The contender.
    pub name: String,
    /// Mean negative log-likelihood of a target token, in nats.
    pub loss: Option<Mean>,
    /// exp of it.
    pub perplexity: Option<Mean>,
    /// Answers equal to the reference.
    pub exact_match: Option<Rate>,
    /// Answers that are JSON, where the reference is a JSON object or list.
    pub valid_json: Option<Rate>,
    /// Answers whose value is the reference's.
    pub equal_json: Option<Rate>,
    /// Answers with the reference's keys, where it is an object.
    pub same_keys: Option<Rate>,
    /// Fields of the references that answers have right, as a share.
    pub right_fields: Option<Mean>,
    /// Answers that ended by themselves.
    pub ended: Option<Rate>,
    /// Tokens of an answer.
    pub answer_tokens: Option<Mean>,
    /// Target tokens.
    pub target_tokens: usize,
    /// Time for all rows; 0 of a group.
    pub seconds: f64,
    /// Prompts that the contender by itself would have read as other tokens.
    pub other_prompts: usize,
}

/// What changed from one contender to the next on the same rows.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// The later one.
    pub name: String,
    /// The one before.
    pub from: String,
    /// Loss less that of the one before.
    pub loss: Option<Mean>,
    /// Chance of such a difference of the loss between equals.
    pub loss_p: Option<f64>,
    /// Exact matches.
    pub exact_match: Option<Exchange>,
    /// Answers of the reference's JSON value.
    pub equal_json: Option<Exchange>,
}

/// Rows of one task.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Group {
    /// Its name.
    pub name: String,
    /// Rows.
    pub rows: usize,
    /// One a contender.
    pub figures: Vec<Figures>,
}

pub(super) fn report(rows: &Rows, columns: &[Column]) -> Report {
    let all: Vec<usize> = (0..rows.rows.len()).collect();
    let names: BTreeSet<&String> = rows.rows.iter().filter_map(|row| row.group.as_ref()).collect();
    let group = |name: &String| {
        let of_group: Vec<usize> =
            all.iter().copied().filter(|&row| rows.rows[row].group.as_ref() == Some(name)).collect();
        let figures =
            columns.iter().map(|column| Figures { seconds: 0.0, ..Figures::of(column, rows, &of_group) });
        Group { name: name.clone(), rows: of_group.len(), figures: figures.collect() }
    };
    Report {
        rows: all.len(),
        figures: columns.iter().map(|column| Figures::of(column, rows, &all)).collect(),
        differences: columns.windows(2).map(|pair| difference(&pair[0], &pair[1], rows)).collect(),
        groups: names.into_iter().map(group).collect(),
    }
}

impl Figures {
    /// Of the rows with these numbers.
    pub(super) fn of(column: &Column, rows: &Rows, numbers: &[usize]) -> Figures {
        let measured = || numbers.iter().map(|&row| &column.rows[row]);
        let losses: Vec<(f64, f64)> =
            numbers.iter().map(|&row| (column.rows[row].sum_nll, rows.rows[row].target_weight())).collect();
        let marks = || measured().filter_map(|row| Some(&row.answer.as_ref()?.1));
        let json = || marks().filter_map(|marks| marks.json);
        let objects = || json().filter_map(|json| json.object);
        let fields: Vec<_> =
            objects().map(|object| (object.right_fields as f64, object.fields as f64)).collect();
        let lengths: Vec<_> =
            measured().filter_map(|row| Some((row.answer.as_ref()?.0.n_tokens as f64, 1.0))).collect();
        let loss = Mean::of(&losses);
        Figures {
            name: column.name.clone(),
            loss,
            perplexity: loss.map(|loss| loss.map(f64::exp)),
            exact_match: Rate::of(marks().map(|marks| marks.exact)),
            valid_json: Rate::of(json().map(|json| json.valid)),
            equal_json: Rate::of(json().map(|json| json.equal)),
            same_keys: Rate::of(objects().map(|object| object.same_keys)),
            right_fields: Mean::of(&fields).map(|share| share.map(|share| share.clamp(0.0, 1.0))),
            ended: Rate::of(marks().map(|marks| marks.ended)),
            answer_tokens: Mean::of(&lengths),
            target_tokens: numbers.iter().map(|&row| rows.rows[row].n_targets()).sum(),
            seconds: column.seconds,
            other_prompts: column.n_other_prompts,
        }
    }
}

fn difference(before: &Column, now: &Column, rows: &Rows) -> Difference {
    let pairs = || before.rows.iter().zip(&now.rows);
    let losses: Vec<(f64, f64)> = pairs()
        .zip(&rows.rows)
        .map(|((before, now), row)| (now.sum_nll - before.sum_nll, row.target_weight()))
        .collect();
    let both = |mark: fn(&Marks) -> Option<bool>| {
        let of = move |row: &Measured| mark(&row.answer.as_ref()?.1);
        Exchange::of(pairs().filter_map(move |(before, now)| of(before).zip(of(now))))
    };
    let loss = Mean::of(&losses);
    Difference {
        name: now.name.clone(),
        from: before.name.clone(),
        loss,
        loss_p: loss.and_then(|loss| loss.p),
        exact_match: both(|marks| Some(marks.exact)),
        equal_json: both(|marks| marks.json.map(|JsonMarks { equal, .. }| equal)),
    }
}
