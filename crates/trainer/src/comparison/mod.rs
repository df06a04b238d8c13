//! Base, adapter and exported files side by side on held-out rows: the same tokens for each, and how sure the figures are.
//!
//! Every contender scores the tokens of each row that are learnt and answers its question greedily. What a contender is,
//! is its own matter: base and adapter decode here ([`Own`]), an exported file in the engine that serves it.

mod answers;
mod figures;
mod own;
mod rows;
mod statistics;

use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use formats::observe::Observer;
use serde::Serialize;
use text::Chat;

pub use answers::{JsonMarks, Marks, ObjectMarks};
pub use figures::{Difference, Figures, Group, Report};
pub use own::{Own, capacity};
pub use rows::{HeldOut, Rows};
pub use statistics::{Exchange, Mean, NOISE, Rate};

use crate::error::Result;

/// Who is measured.
pub trait Contender {
    /// Σ -ln p over the targets of a row; `None` when `tick` breaks off.
    ///
    /// # Errors
    /// What the engine meets.
    fn score(&mut self, row: &HeldOut, tick: &mut Tick<'_>) -> Result<Option<f64>>;

    /// Greedy answers, in the order of the prompts; `None` when `tick` breaks off.
    ///
    /// # Errors
    /// What the engine meets.
    fn answer(
        &mut self,
        prompts: &[&[u32]],
        max_new_tokens: usize,
        tick: &mut Tick<'_>,
    ) -> Result<Option<Vec<Answer>>>;

    /// The ids that it would make of a conversation by itself, where it has a tokenizer and template of its own.
    ///
    /// # Errors
    /// What the engine meets.
    fn own_prompt(&mut self, _chat: Chat<'_>) -> Result<Option<Vec<u32>>> {
        Ok(None)
    }
}

/// Asked as often as work can be broken off; with how many answers are done where that is known.
pub type Tick<'a> = dyn FnMut(Option<usize>) -> ControlFlow<()> + 'a;

/// A greedy answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its text without control tokens.
    pub text: String,
    /// Its tokens without the one that ended it.
    pub n_tokens: usize,
    /// Whether a token ended it, rather than the limit.
    pub ended: bool,
}

/// What happens while contenders are measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum ComparisonEvent {
    /// Rows are being scored or questions answered.
    Measuring {
        /// By whom.
        contender: String,
        /// Which of both.
        part: Part,
        /// Rows done.
        done: usize,
        /// Rows in all.
        total: usize,
    },
    /// A contender is done.
    Measured(Box<Figures>),
}

/// What of a contender is being measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Part {
    /// The likelihood of the expected answers.
    Loss,
    /// Its own answers.
    Answers,
}

/// A row's figures of one contender.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// Σ -ln p over the row's targets.
    pub sum_nll: f64,
    /// The answer and its marks, where there was a question.
    pub answer: Option<(Answer, Marks)>,
}

/// One contender's figures, row by row.
pub struct Column {
    /// What it is called.
    pub name: String,
    rows: Vec<Measured>,
    seconds: f64,
    n_other_prompts: usize,
}

/// Rows, and what contenders made of them so far.
pub struct Comparison {
    /// The rows.
    pub rows: Rows,
    max_new_tokens: usize,
    columns: Vec<Column>,
}

impl Comparison {
    /// Nothing is measured yet.
    pub fn new(rows: Rows, max_new_tokens: usize) -> Comparison {
        Comparison { rows, max_new_tokens, columns: Vec::new() }
    }

    /// Measures one contender on all rows; `Break` when cancelled.
    ///
    /// # Errors
    /// What the contender meets.
    pub fn measure(
        &mut self,
        name: &str,
        contender: &mut dyn Contender,
        observer: &mut dyn Observer<ComparisonEvent>,
        cancel: &AtomicBool,
    ) -> Result<ControlFlow<()>> {
        let started = Instant::now();
        let flow = || {
            if cancel.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let total = self.rows.rows.len();
        let event =
            |part, done, total| ComparisonEvent::Measuring { contender: name.to_owned(), part, done, total };
        let mut rows = Vec::with_capacity(total);
        for (done, row) in self.rows.rows.iter().enumerate() {
            observer.observe(event(Part::Loss, done, total));
            let Some(sum_nll) = contender.score(row, &mut |_| flow())? else {
                return Ok(ControlFlow::Break(()));
            };
            rows.push(Measured { sum_nll, answer: None });
        }
        let asked: Vec<usize> = (0..total).filter(|&row| self.rows.rows[row].question.is_some()).collect();
        let mut n_other_prompts = 0;
        for &row in &asked {
            let row = &self.rows.rows[row];
            let own = contender.own_prompt(row.before_answer())?;
            let differs =
                row.question.as_ref().zip(own).is_some_and(|(question, own)| question.prompt != own);
            n_other_prompts += usize::from(differs);
        }
        let questions = asked.iter().filter_map(|&row| self.rows.rows[row].question.as_ref());
        let prompts: Vec<&[u32]> = questions.map(|question| &question.prompt[..]).collect();
        let mut tick = |done: Option<usize>| {
            if let Some(done) = done {
                observer.observe(event(Part::Answers, done, prompts.len()));
            }
            flow()
        };
        let Some(answers) = contender.answer(&prompts, self.max_new_tokens, &mut tick)? else {
            return Ok(ControlFlow::Break(()));
        };
        for (row, answer) in asked.into_iter().zip(answers) {
            let expected = self.rows.rows[row].question.as_ref().map_or("", |question| &question.expected);
            let marks = Marks::of(&answer.text, expected, answer.ended);
            rows[row].answer = Some((answer, marks));
        }
        let seconds = started.elapsed().as_secs_f64();
        self.columns.push(Column { name: name.to_owned(), rows, seconds, n_other_prompts });
        let all: Vec<usize> = (0..total).collect();
        if let Some(column) = self.columns.last() {
            observer.observe(ComparisonEvent::Measured(Box::new(Figures::of(column, &self.rows, &all))));
        }
        Ok(ControlFlow::Continue(()))
    }

    /// All figures, and the differences between neighbours.
    pub fn report(&self) -> Report {
        figures::report(&self.rows, &self.columns)
    }

    /// Every answer and score as one JSON object a line, row by row.
    pub fn answers_jsonl(&self) -> String {
        let mut lines = String::new();
        for (index, row) in self.rows.rows.iter().enumerate() {
            for column in &self.columns {
                let measured = &column.rows[index];
                let mut line = serde_json::json!({
                    "path": row.path,
                    "line": row.line,
                    "contender": column.name,
                    "group": row.group,
                    "target_tokens": row.n_targets(),
                    "loss": measured.sum_nll / row.target_weight(),
                });
                if let (Some(question), Some((answer, marks)), Some(fields)) =
                    (&row.question, &measured.answer, line.as_object_mut())
                {
                    let more = serde_json::json!({
                        "asked": question.asked,
                        "expected": question.expected,
                        "answer": answer.text,
                        "answer_tokens": answer.n_tokens,
                        "marks": marks,
                    });
                    fields.extend(more.as_object().cloned().unwrap_or_default());
                }
                lines += &line.to_string();
                lines.push('\n');
            }
        }
        lines
    }
}
