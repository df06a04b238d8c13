//! The verifier cascade: drafts of all items, then verdicts on all of them, again for those that did not pass, and at
//! last another expert for what is left. Experts change with the rounds, not with the items.
//!
//! Every draft and every verdict is in the journal before the next is asked for, so that a run that was cut asks for
//! none of them twice.

use std::time::Instant;

use serde_json::{Map, Value, json};
use text::Message;

use super::super::check::{Generate, Judge, Verify};
use super::super::event::{Event, ItemResult, Round};
use super::super::journal::{Piece, PieceKind};
use super::super::rules;
use super::answer::Question;
use super::gate::Shortened;
use super::{Run, Stage, milliseconds};
use crate::engine::{Finish, Form, Generated, Loaded};
use crate::{Residency, Result};

/// Objections of a verdict.
const OBJECTIONS_MAX: usize = 8;

/// Characters of each.
const OBJECTION_CHARS: usize = 400;

/// Who judges by rules.
const RULES: &str = "rules";

/// An item that has not passed yet.
struct Open {
    item: usize,
    /// The step's own messages.
    task: Vec<Message>,
    result: ItemResult,
    draft: String,
    objections: Vec<String>,
    by: String,
}

impl Run<'_> {
    /// A step whose answers are verified.
    pub(super) fn verified(
        &mut self,
        stage: &mut Stage<'_>,
        work: &Generate,
        verify: &Verify,
        pending: Vec<usize>,
        residency: &mut Residency,
    ) -> Result<()> {
        let (pending, shortened) = self.fitting(stage, &work.ask, pending, residency)?;
        let mut open = Vec::new();
        for item in pending {
            match self.opened(stage, item, work, shortened.get(&item)) {
                Ok(one) => open.push(one),
                Err(error) => self.settle(stage, item, Err(error))?,
            }
        }
        let own = 1 + verify.retries;
        let last = own + u32::from(verify.escalate.is_some());
        for round in 1..=last {
            let writer = verify.escalate.as_ref().filter(|_| round > own).unwrap_or(&work.ask.expert);
            open = self.drafted(stage, work, verify, writer, round, open, residency)?;
            if let Some(judge) = &verify.judge {
                open = self.judged(stage, work, judge, round, open, residency)?;
            }
            let mut left = Vec::new();
            for one in open {
                let one = self.noted(stage, writer, round, one);
                if one.objections.is_empty() || round == last {
                    self.finish(stage, best(one.result))?;
                } else {
                    left.push(one);
                }
            }
            open = left;
            if open.is_empty() {
                break;
            }
        }
        Ok(())
    }

    fn opened(
        &self,
        stage: &Stage<'_>,
        item: usize,
        work: &Generate,
        shortened: Option<&Shortened>,
    ) -> Result<Open> {
        let task = self.messages(stage, item, &work.ask, shortened)?;
        let mut result = stage.result(item);
        result.cut = shortened.map(|shortened| shortened.cut.clone());
        let (draft, objections, by) = (String::new(), Vec::new(), RULES.to_owned());
        Ok(Open { item, task, result, draft, objections, by })
    }

    /// A draft of every item, and what the rules say of it.
    #[expect(clippy::too_many_arguments, reason = "one place calls it")]
    fn drafted(
        &mut self,
        stage: &mut Stage<'_>,
        work: &Generate,
        verify: &Verify,
        writer: &str,
        round: u32,
        open: Vec<Open>,
        residency: &mut Residency,
    ) -> Result<Vec<Open>> {
        let mut drafted = Vec::with_capacity(open.len());
        for mut one in open {
            self.stop_if_cancelled()?;
            let mut messages = one.task.clone();
            if round > 1 {
                // The last draft alone: all of them would outgrow the context.
                messages.push(Message::new("assistant", std::mem::take(&mut one.draft)));
                messages.push(Message::new("user", again(&one.objections)));
            }
            let question = Question { form: work.form(), ..Question::of(&work.ask, &messages) };
            let piece = self.piece(stage, one.item, round, PieceKind::Draft, writer, &question, residency);
            match piece {
                Ok(piece) => {
                    one.result.note_piece(&piece);
                    one.result.attempts += 1;
                    one.result.expert = Some(piece.expert.clone());
                    one.result.finish = Some(piece.finish);
                    one.objections = self.by_rules(stage, work, verify, &piece);
                    one.draft = piece.text;
                    RULES.clone_into(&mut one.by);
                    drafted.push(one);
                }
                Err(error) => self.settle(stage, one.item, Err(error))?,
            }
        }
        Ok(drafted)
    }

    fn by_rules(&self, stage: &Stage<'_>, work: &Generate, verify: &Verify, draft: &Piece) -> Vec<String> {
        let mut objections = work
            .schema
            .as_ref()
            .map_or_else(Vec::new, |schema| rules::objections(&draft.text, Some(schema), None));
        let source = verify.rules.values_in.map(|source| self.text(source, stage.index, draft.item));
        objections.extend(verify.rules.objections(&draft.text, source));
        if draft.finish == Finish::Length && !objections.is_empty() {
            objections.push(format!("the answer was cut after {} tokens", draft.output_tokens));
        }
        objections.dedup();
        objections
    }

    /// A verdict on every draft to which the rules do not object.
    fn judged(
        &mut self,
        stage: &mut Stage<'_>,
        work: &Generate,
        judge: &Judge,
        round: u32,
        open: Vec<Open>,
        residency: &mut Residency,
    ) -> Result<Vec<Open>> {
        let mut judged = Vec::with_capacity(open.len());
        for mut one in open {
            if !one.objections.is_empty() {
                judged.push(one);
                continue;
            }
            self.stop_if_cancelled()?;
            match self.verdict(stage, work, judge, round, &one, residency) {
                Ok(piece) => {
                    one.result.note_piece(&piece);
                    one.objections = objections_of(&piece);
                    one.by.clone_from(&judge.expert);
                    judged.push(one);
                }
                Err(error) => self.settle(stage, one.item, Err(error))?,
            }
        }
        Ok(judged)
    }

    fn verdict(
        &mut self,
        stage: &mut Stage<'_>,
        work: &Generate,
        judge: &Judge,
        round: u32,
        one: &Open,
        residency: &mut Residency,
    ) -> Result<Piece> {
        let task = one.task.last().map_or("", |message| message.content.as_str());
        let more = [("task", task), ("draft", one.draft.as_str())];
        let prompt = self.render(&judge.prompt, stage.index, one.item, None, &more);
        let prompt = prompt.map_err(|reason| stage.failed(one.item, reason))?;
        let messages = [Message::new("user", prompt)];
        let question = Question {
            messages: &messages,
            sampling: &judge.sampling,
            stop: &[],
            form: Form::Schema(verdict_schema()),
            timeout: work.ask.timeout,
            is_shown: false,
        };
        self.piece(stage, one.item, round, PieceKind::Verdict, &judge.expert, &question, residency)
    }

    /// What an expert answers, or has answered before the run was cut.
    #[expect(clippy::too_many_arguments, reason = "two places call it")]
    fn piece(
        &mut self,
        stage: &mut Stage<'_>,
        item: usize,
        round: u32,
        what: PieceKind,
        expert: &str,
        question: &Question<'_>,
        residency: &mut Residency,
    ) -> Result<Piece> {
        if let Some(piece) = self.record.piece(&stage.step.name, item, round, what) {
            return Ok(piece.clone());
        }
        let loaded: &mut dyn Loaded = self.load(expert, residency)?;
        let begun = Instant::now();
        let answer = self.generate(stage, item, loaded, question);
        stage.busy_ms += milliseconds(begun);
        let answer = answer?;
        let mut piece = Piece {
            step: stage.step.name.clone(),
            item,
            round,
            what,
            expert: expert.to_owned(),
            text: String::new(),
            artefact: String::new(),
            finish: answer.finish,
            prompt_tokens: 0,
            output_tokens: 0,
            prompt_ms: 0.0,
            decode_ms: 0.0,
        };
        piece.note_answer(&answer);
        piece.text = answer.text;
        self.record.commit_piece(&mut piece)?;
        Ok(piece)
    }

    /// Keeps a round in the item's result, and tells it.
    fn noted(&mut self, stage: &Stage<'_>, writer: &str, number: u32, mut one: Open) -> Open {
        let round = Round {
            round: number,
            expert: writer.to_owned(),
            draft: one.draft.clone(),
            artefact: formats::hash::blake3_bytes(one.draft.as_bytes()),
            by: one.by.clone(),
            objections: one.objections.clone(),
        };
        let (step, item) = (stage.step.name.clone(), one.item);
        self.observer.observe(Event::Verified { step, item, round: round.clone() });
        one.result.rounds.push(round);
        one
    }
}

impl Piece {
    /// Adds what an answer took.
    pub(super) fn note_answer(&mut self, answer: &Generated) {
        self.finish = answer.finish;
        self.prompt_tokens += answer.prompt_tokens;
        self.output_tokens += answer.output_tokens;
        self.prompt_ms += answer.prompt_ns as f64 / 1e6;
        self.decode_ms += answer.decode_ns as f64 / 1e6;
    }
}

impl ItemResult {
    fn note_piece(&mut self, piece: &Piece) {
        self.prompt_tokens += piece.prompt_tokens;
        self.output_tokens += piece.output_tokens;
        self.prompt_ms += piece.prompt_ms;
        self.decode_ms += piece.decode_ms;
    }
}

/// The result with the draft to which there are fewest objections, the latest of equals: the one that passed, if one did.
fn best(mut result: ItemResult) -> ItemResult {
    let best = result.rounds.iter().rev().min_by_key(|round| round.objections.len());
    if let Some(Round { draft, objections, expert, .. }) = best.cloned() {
        (result.output, result.objections, result.expert) = (draft, objections, Some(expert));
    }
    result
}

/// A verifier answers under this, and nothing it says is more than a text to the writer.
fn verdict_schema() -> Value {
    json!({
        "type": "object",
        "properties": {
            "ok": {"type": "boolean"},
            "objections": {
                "type": "array",
                "maxItems": OBJECTIONS_MAX,
                "items": {"type": "string", "maxLength": OBJECTION_CHARS},
            },
        },
        "required": ["ok", "objections"],
        "additionalProperties": false,
    })
}

/// What a verdict objects to; one that is not what was asked for has not let the draft pass.
fn objections_of(verdict: &Piece) -> Vec<String> {
    // Read as an object, key by key: serde would take `[true]` for a struct whose first field is true.
    let read: serde_json::Result<Map<String, Value>> = serde_json::from_str(verdict.text.trim());
    let said = match read {
        Ok(said) => said,
        Err(_) if verdict.finish == Finish::Length => {
            return vec![format!("the verdict was cut after {} tokens", verdict.output_tokens)];
        }
        Err(error) => return vec![format!("the verdict is not what was asked for: {error}")],
    };
    match said.get("ok") {
        Some(Value::Bool(true)) => Vec::new(),
        Some(Value::Bool(false)) => {
            let objections = said.get("objections").and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
            let short = |text: &str| text.chars().take(OBJECTION_CHARS).collect::<String>();
            let objections = objections.iter().filter_map(Value::as_str).map(short);
            let objections: Vec<String> = objections.take(OBJECTIONS_MAX).collect();
            match objections.is_empty() {
                true => vec!["the verifier rejects it without a reason".to_owned()],
                false => objections,
            }
        }
        _ => vec!["the verdict is not what was asked for: it has no `ok` that is true or false".to_owned()],
    }
}

fn again(objections: &[String]) -> String {
    format!("That answer is not good enough.\n- {}\nAnswer again.", objections.join("\n- "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn objections(text: &str, finish: Finish) -> String {
        let piece = Piece {
            step: String::new(),
            item: 0,
            round: 1,
            what: PieceKind::Verdict,
            expert: String::new(),
            text: text.to_owned(),
            artefact: String::new(),
            finish,
            prompt_tokens: 0,
            output_tokens: 7,
            prompt_ms: 0.0,
            decode_ms: 0.0,
        };
        objections_of(&piece).join(" | ")
    }

    #[test]
    fn where_nothing_passes_the_best_draft_is_kept() {
        let round = |draft: &str, n: usize| Round {
            draft: draft.to_owned(),
            objections: vec!["x".to_owned(); n],
            ..Round::default()
        };
        let kept = |rounds: Vec<Round>| best(ItemResult { rounds, ..ItemResult::default() });
        assert_eq!(kept(vec![round("a", 1), round("b", 5)]).output, "a");
        assert_eq!(kept(vec![round("a", 2), round("b", 2), round("c", 3)]).output, "b");
        assert!(kept(vec![round("a", 2), round("b", 0)]).objections.is_empty());
    }

    #[test]
    fn only_a_clear_yes_passes() {
        assert_eq!(objections(r#"{"ok": true, "objections": []}"#, Finish::Stop), "");
        assert_eq!(objections(r#"{"ok": false, "objections": ["a", "b"]}"#, Finish::Stop), "a | b");
        assert!(objections(r#"{"ok": false, "objections": []}"#, Finish::Stop).contains("without a reason"));
        assert!(objections(r#"{"ok": tr"#, Finish::Length).contains("cut after 7 tokens"));
        for hostile in ["", "yes", "{\"ok\": \"true\"}", "[true]", "{\"objections\": []}"] {
            assert!(objections(hostile, Finish::Stop).contains("not what was asked for"), "{hostile}");
        }
        let many = format!(r#"{{"ok": false, "objections": [{}"x"]}}"#, "\"y\",".repeat(50));
        assert_eq!(objections(&many, Finish::Stop).matches(" | ").count(), OBJECTIONS_MAX - 1);
    }
}
