//! The context gate: a prompt that does not fit, measured with the expert's own tokenizer, is cut or compressed in the
//! one part that the step names, and everybody is told.
//!
//! Over many items it goes in stages: all are measured, then all that are too long compressed, then measured again; so
//! that two experts take turns for all of them and not for each.

use std::collections::BTreeMap;

use text::Message;

use super::super::check::{Ask, Gate, Source};
use super::super::event::{Cut, Event};
use super::super::journal::{Piece, PieceKind};
use super::super::step::ContextRule;
use super::answer::Question;
use super::{Run, Stage};
use crate::card::Sampling;
use crate::engine::{Finish, Form, Loaded, Prompt};
use crate::{Residency, Result};

/// Tokens kept for the answer of a step without `max_tokens`, or a quarter of the context where that is less.
const ANSWER_TOKENS: usize = 512;

/// What stands where a part was cut.
const MARK: &str = "[…]";

/// How often a part is compressed before it counts as what can't be compressed.
const ROUNDS: u32 = 3;

/// The least that a part is compressed to.
const LEAST_TOKENS: usize = 8;

/// A part of a prompt that was cut or compressed.
pub(super) struct Shortened {
    pub part: Source,
    pub text: String,
    pub cut: Cut,
}

/// A prompt held against the context.
struct Measured {
    tokens: usize,
    room: usize,
}

type All = BTreeMap<usize, Shortened>;

impl Run<'_> {
    /// Makes prompts fit that do not, where the step has a rule for that. Gives the items that are left to do.
    pub(super) fn fitting(
        &mut self,
        stage: &mut Stage<'_>,
        ask: &Ask,
        pending: Vec<usize>,
        residency: &mut Residency,
    ) -> Result<(Vec<usize>, All)> {
        match &ask.gate {
            Gate::Refuse => Ok((pending, All::new())),
            Gate::Cut(rule, part) => self.cut_all(stage, ask, *rule, *part, pending, residency),
            Gate::Compress(by, part) => self.compress_all(stage, ask, by, *part, pending, residency),
        }
    }

    fn cut_all(
        &mut self,
        stage: &mut Stage<'_>,
        ask: &Ask,
        rule: ContextRule,
        part: Source,
        pending: Vec<usize>,
        residency: &mut Residency,
    ) -> Result<(Vec<usize>, All)> {
        let (mut left, mut all) = (Vec::new(), All::new());
        for item in pending {
            self.stop_if_cancelled()?;
            let expert = self.load(&ask.expert, residency)?;
            match self.cut_one(stage, item, ask, rule, part, expert) {
                Ok(shortened) => {
                    left.push(item);
                    all.extend(shortened.map(|shortened| (item, shortened)));
                }
                Err(error) => self.settle(stage, item, Err(error))?,
            }
        }
        Ok((left, all))
    }

    fn cut_one(
        &mut self,
        stage: &Stage<'_>,
        item: usize,
        ask: &Ask,
        rule: ContextRule,
        part: Source,
        expert: &dyn Loaded,
    ) -> Result<Option<Shortened>> {
        let whole = self.text(part, stage.index, item).to_owned();
        let before = self.measure(stage, item, ask, None, expert)?;
        if before.tokens <= before.room {
            return Ok(None);
        }
        let mut shortened =
            Shortened { part, text: String::new(), cut: self.cut(rule, part, &before, whole.len(), None) };
        let fits = |n: usize, shortened: &mut Shortened| -> Result<bool> {
            shortened.text = kept(&whole, n, rule);
            let after = self.measure(stage, item, ask, Some(shortened), expert)?;
            shortened.cut.after_tokens = after.tokens;
            Ok(after.tokens <= after.room)
        };
        let longest = longest(whole.len(), &mut |n| fits(n, &mut shortened))?;
        let Some(longest) = longest else {
            return Err(stage.failed(item, self.instructions_too_long(&shortened.cut)));
        };
        fits(longest, &mut shortened)?;
        shortened.cut.after_bytes = shortened.text.len();
        self.tell(stage, item, &shortened.cut);
        Ok(Some(shortened))
    }

    fn compress_all(
        &mut self,
        stage: &mut Stage<'_>,
        ask: &Ask,
        by: &str,
        part: Source,
        pending: Vec<usize>,
        residency: &mut Residency,
    ) -> Result<(Vec<usize>, All)> {
        let (mut fitting, mut all) = (Vec::new(), All::new());
        let mut open = pending;
        for round in 1..=ROUNDS + 1 {
            let mut too_long = Vec::new();
            for item in std::mem::take(&mut open) {
                self.stop_if_cancelled()?;
                let expert = self.load(&ask.expert, residency)?;
                match self.target(stage, item, ask, by, part, &mut all, expert) {
                    Ok(None) => fitting.push(item),
                    Ok(Some(target)) if round <= ROUNDS => too_long.push((item, target)),
                    Ok(Some(_)) => {
                        let reason = format!(
                            "after {ROUNDS} rounds of compression by `{by}` the prompt is still too long"
                        );
                        let failed = stage.failed(item, reason);
                        self.settle(stage, item, Err(failed))?;
                    }
                    Err(error) => self.settle(stage, item, Err(error))?,
                }
            }
            for (item, target) in too_long {
                self.stop_if_cancelled()?;
                let text = all.get(&item).map_or_else(
                    || self.text(part, stage.index, item).to_owned(),
                    |shortened| shortened.text.clone(),
                );
                match self.compress(stage, item, round, by, &text, target, ask, residency) {
                    Ok(text) => {
                        if let Some(shortened) = all.get_mut(&item) {
                            shortened.cut.after_bytes = text.len();
                            shortened.text = text;
                        }
                        open.push(item);
                    }
                    Err(error) => self.settle(stage, item, Err(error))?,
                }
            }
        }
        fitting.sort_unstable();
        for (&item, shortened) in &all {
            if fitting.contains(&item) {
                let cut = shortened.cut.clone();
                self.tell(stage, item, &cut);
            }
        }
        Ok((fitting, all))
    }

    /// How many tokens a part may have, if the prompt does not fit as it is.
    #[expect(clippy::too_many_arguments, reason = "one place calls it")]
    fn target(
        &mut self,
        stage: &Stage<'_>,
        item: usize,
        ask: &Ask,
        by: &str,
        part: Source,
        all: &mut All,
        expert: &dyn Loaded,
    ) -> Result<Option<usize>> {
        let now = self.measure(stage, item, ask, all.get(&item), expert)?;
        let text = self.text(part, stage.index, item);
        if let Some(shortened) = all.get_mut(&item) {
            shortened.cut.after_tokens = now.tokens;
        }
        if now.tokens <= now.room {
            return Ok(None);
        }
        let text = all.get(&item).map_or(text, |shortened| shortened.text.as_str());
        let tokens = expert.tokens(text).map_err(|error| stage.failed(item, error.to_string()))?;
        let target = now.room.saturating_sub(now.tokens.saturating_sub(tokens));
        let bytes = text.len();
        let cut = self.cut(ContextRule::Compress, part, &now, bytes, Some(by));
        if target < LEAST_TOKENS {
            return Err(stage.failed(item, self.instructions_too_long(&cut)));
        }
        all.entry(item).or_insert_with(|| Shortened { part, text: String::new(), cut });
        if let Some(shortened) = all.get_mut(&item)
            && shortened.text.is_empty()
        {
            shortened.text = self.text(part, stage.index, item).to_owned();
        }
        Ok(Some(target))
    }

    /// A part compressed to about so many tokens, piece by piece where it is longer than the compressor's context.
    #[expect(clippy::too_many_arguments, reason = "one place calls it")]
    fn compress(
        &mut self,
        stage: &Stage<'_>,
        item: usize,
        round: u32,
        by: &str,
        text: &str,
        target: usize,
        ask: &Ask,
        residency: &mut Residency,
    ) -> Result<String> {
        let name = stage.step.name.clone();
        if let Some(piece) = self.record.piece(&name, item, round, PieceKind::Compressed) {
            return Ok(piece.text.clone());
        }
        let mut piece = Piece {
            step: name,
            item,
            round,
            what: PieceKind::Compressed,
            expert: by.to_owned(),
            text: String::new(),
            artefact: String::new(),
            finish: Finish::Stop,
            prompt_tokens: 0,
            output_tokens: 0,
            prompt_ms: 0.0,
            decode_ms: 0.0,
        };
        let expert = self.load(by, residency)?;
        let failed = |error: crate::Error| stage.failed(item, error.to_string());
        let all_tokens = expert.tokens(text).map_err(failed)?.max(1);
        let card = expert.card().clone();
        let room = expert.context_tokens();
        let mut rest = text;
        while !rest.trim().is_empty() {
            let asked = |part: &str, n: usize| vec![Message::new("user", request(part, n))];
            // Half of the context at most for what is read: the other half is for the answer.
            let end = longest(rest.len(), &mut |n| {
                let part = &rest[..floor(rest, n)];
                let tokens = expert.prompt_tokens(&Prompt::Chat(asked(part, target))).map_err(failed)?;
                Ok(tokens <= room / 2)
            })?;
            let end = floor(rest, end.unwrap_or(0));
            if end == 0 {
                return Err(stage.failed(
                    item,
                    format!("the context of `{by}`, {room} tokens, is too small to compress in"),
                ));
            }
            let (part, after) = rest.split_at(end);
            rest = after;
            let tokens = expert.tokens(part).map_err(failed)?;
            // A fifth less than there is room for: the two experts may count differently.
            let share = (target * tokens * 4 / (all_tokens * 5)).clamp(LEAST_TOKENS, room / 2);
            let limit = u32::try_from(share).unwrap_or(u32::MAX);
            let sampling = Sampling { temperature: 0.0, max_tokens: Some(limit), ..card.sampling.clone() };
            let messages = asked(part, share * 3 / 4);
            let question = Question {
                messages: &messages,
                sampling: &sampling,
                stop: &[],
                form: Form::Text,
                timeout: ask.timeout,
                is_shown: false,
            };
            let answer = self.generate(stage, item, expert, &question)?;
            piece.note_answer(&answer);
            if !piece.text.is_empty() {
                piece.text.push('\n');
            }
            piece.text.push_str(answer.text.trim());
        }
        self.record.commit_piece(&mut piece)?;
        Ok(piece.text)
    }

    fn measure(
        &self,
        stage: &Stage<'_>,
        item: usize,
        ask: &Ask,
        shortened: Option<&Shortened>,
        expert: &dyn Loaded,
    ) -> Result<Measured> {
        let messages = self.messages(stage, item, ask, shortened)?;
        let tokens = expert.prompt_tokens(&Prompt::Chat(messages));
        let tokens = tokens.map_err(|error| stage.failed(item, error.to_string()))?;
        let context = expert.context_tokens();
        let answer = ask.sampling.max_tokens.map_or(ANSWER_TOKENS.min(context / 4), |n| n as usize);
        Ok(Measured { tokens, room: context.saturating_sub(answer.max(1)) })
    }

    fn cut(&self, rule: ContextRule, part: Source, before: &Measured, bytes: usize, by: Option<&str>) -> Cut {
        Cut {
            rule,
            part: match part {
                Source::Input => "input".to_owned(),
                Source::Item => "item".to_owned(),
                Source::Step(i) => self.pipeline.steps[i].name.clone(),
            },
            before_tokens: before.tokens,
            after_tokens: 0,
            room_tokens: before.room,
            before_bytes: bytes,
            after_bytes: 0,
            by: by.map(str::to_owned),
        }
    }

    fn instructions_too_long(&self, cut: &Cut) -> String {
        format!(
            "the prompt has {} tokens, the context has room for {} beside the answer, and what is not `{}` is too long for that alone",
            cut.before_tokens, cut.room_tokens, cut.part
        )
    }

    fn tell(&mut self, stage: &Stage<'_>, item: usize, cut: &Cut) {
        let step = stage.step.name.clone();
        self.observer.observe(Event::Cut { step, item, cut: cut.clone() });
    }
}

fn request(text: &str, words: usize) -> String {
    format!(
        "Shorten the text below to at most {} words. Keep every name, number, date and fact that you can; add nothing. Give the shortened text alone.\n\n{text}",
        words.max(1)
    )
}

/// `n` bytes of a text, or a few less, with a mark where the rest stood.
fn kept(text: &str, n: usize, rule: ContextRule) -> String {
    match rule {
        ContextRule::TruncateHead => {
            format!("{MARK} {}", &text[ceil(text, text.len() - n.min(text.len()))..])
        }
        ContextRule::TruncateMiddle => {
            let (head, tail) = (floor(text, n / 2), ceil(text, text.len() - (n - n / 2).min(text.len())));
            format!("{} {MARK} {}", &text[..head], &text[tail.max(head)..])
        }
        _ => format!("{} {MARK}", &text[..floor(text, n)]),
    }
}

fn floor(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

fn ceil(text: &str, at: usize) -> usize {
    let mut at = at.min(text.len());
    while !text.is_char_boundary(at) {
        at += 1;
    }
    at
}

/// The largest number up to `most` that fits, if 0 does: from small to large, so that what is measured is never much
/// longer than what fits.
fn longest(most: usize, fits: &mut dyn FnMut(usize) -> Result<bool>) -> Result<Option<usize>> {
    if !fits(0)? {
        return Ok(None);
    }
    let (mut low, mut high) = (0, 1024.min(most));
    while fits(high)? {
        low = high;
        if high == most {
            return Ok(Some(most));
        }
        high = (high * 2).min(most);
    }
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if fits(middle)? {
            low = middle;
        } else {
            high = middle;
        }
    }
    Ok(Some(low))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_that_fits_is_found_without_measuring_all() {
        for (most, limit) in [(0, 0), (5, 3), (5000, 3000), (5000, 9000), (1 << 20, 1500)] {
            let mut largest = 0;
            let found = longest(most, &mut |n| {
                largest = largest.max(n);
                Ok(n <= limit)
            });
            assert_eq!(found.unwrap(), Some(most.min(limit)));
            assert!(largest <= (2 * limit).max(1024), "{largest} was measured for {limit}");
        }
        assert_eq!(longest(10, &mut |_| Ok(false)).unwrap(), None);
    }

    #[test]
    fn what_is_cut_is_marked_and_characters_stay_whole() {
        let text = "äöü–abc–ÄÖÜ";
        for n in 0..=text.len() {
            for rule in [ContextRule::TruncateHead, ContextRule::TruncateMiddle, ContextRule::TruncateTail] {
                let kept = kept(text, n, rule);
                assert!(kept.contains(MARK) && kept.len() <= n + MARK.len() + 2, "{rule:?} {n} {kept}");
            }
        }
        assert_eq!(kept("abcdef", 2, ContextRule::TruncateHead), "[…] ef");
        assert_eq!(kept("abcdef", 2, ContextRule::TruncateTail), "ab […]");
        assert_eq!(kept("abcdef", 3, ContextRule::TruncateMiddle), "a […] ef");
    }
}
