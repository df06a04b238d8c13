//! The gate: what an exported file must do in the engine that will serve it.
//!
//! It must load; the engine's own template and tokenizer must give the ids of training; answers must end by the
//! end-of-turn token; and on the held-out rows it must be about as good as the adapter was before quantisation.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use formats::Observer;
use text::{Chat, ChatTemplate, Conversation, Message, TrainOn};

use crate::fidelity::{Divergence, Yardstick};
use crate::merged::Merged;
use crate::plan::Plan;
use crate::{Error, Event, GateFigures, Limits, Reference, Request, Result};

/// Why an engine could not do something.
pub type EngineError = Box<dyn std::error::Error + Send + Sync>;

/// An engine that loads exported files. Implemented where exporter and runner meet.
pub trait Verifier {
    /// What the engine is and its version, for the receipt.
    fn engine(&self) -> String;

    /// Memory that can be had; `None` where nobody knows.
    fn free_bytes(&self) -> Option<u64>;

    /// Loads a file for a context of `num_ctx` tokens.
    ///
    /// # Errors
    /// When the engine refuses it.
    fn load(&self, file: &Path, num_ctx: usize) -> Result<Box<dyn LoadedModel>, EngineError>;
}

/// A model that an engine has loaded. Every call starts from an empty context.
pub trait LoadedModel {
    /// The ids which the engine computes for a conversation up to where the assistant is to answer, by the
    /// template and the tokenizer of the loaded file.
    ///
    /// # Errors
    /// When the engine fails.
    fn prompt_ids(&mut self, chat: Chat<'_>) -> Result<Vec<u32>, EngineError>;

    /// Continues `prompt` greedily until a token that ends generation or `max_new_tokens`.
    ///
    /// # Errors
    /// When the engine fails.
    fn generate(&mut self, prompt: &[u32], max_new_tokens: usize) -> Result<Generation, EngineError>;

    /// The summed negative log-likelihood (nats) of the tokens `i` of `ids` for which `is_target[i]`.
    ///
    /// # Errors
    /// When the engine fails.
    fn sum_nll(&mut self, ids: &[u32], is_target: &[bool]) -> Result<f64, EngineError>;

    /// Bytes that the loaded model takes, with its context; `None` where the engine does not tell.
    fn memory_bytes(&self) -> Option<u64>;

    /// The logits (V) after each token of a sequence, in order; `each` gets its place and may end it.
    ///
    /// # Errors
    /// When the engine fails.
    fn logits(
        &mut self,
        ids: &[u32],
        each: &mut dyn FnMut(usize, &[f32]) -> ControlFlow<()>,
    ) -> Result<(), EngineError>;
}

/// What a greedy generation gave.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Generation {
    /// The new tokens, the one that ended it included.
    pub ids: Vec<u32>,
    /// Their text without control tokens.
    pub text: String,
}

/// An answer may take so many times the expected tokens, and so many more, before it counts as endless.
const MAX_ANSWER: (usize, usize) = (2, 32);

/// Text that every model has seen the like of; its likelihood must be a number.
const PLAIN_TEXT: &str = "Once upon a time, there was a little house at the edge of the forest.";

/// Loads the file at `path` and measures it.
///
/// # Errors
/// [`Error::Refused`] with the figure that failed, [`Error::Engine`] when the engine cannot use the file.
pub(crate) fn pass(
    plan: &Plan<'_>,
    request: &Request,
    path: &Path,
    yardstick: &mut Yardstick<'_>,
    verifier: &dyn Verifier,
    observer: &mut dyn Observer<Event>,
) -> Result<GateFigures> {
    let started = Instant::now();
    let model = verifier.load(path, request.num_ctx).map_err(engine("load"))?;
    observer.observe(Event::Loaded { seconds: started.elapsed().as_secs_f64() });
    let figures = GateFigures {
        engine: verifier.engine(),
        memory_bytes: model.memory_bytes(),
        ..GateFigures::default()
    };
    let mut gate = Gate { merged: plan.merged, num_ctx: request.num_ctx, model, figures, sum_nll: 0.0 };
    match &plan.merged.template {
        Some(template) => gate.measure(template, request, observer)?,
        None => gate.plain_text()?,
    }
    gate.figures.fidelity = yardstick.measure(&mut *gate.model, observer)?;
    let figures = gate.finish();
    observer.observe(Event::Gate { figures: figures.clone(), adapter: request.reference.adapter });
    judge(&figures, &request.reference, &request.limits)?;
    Ok(figures)
}

struct Gate<'a> {
    merged: &'a Merged,
    num_ctx: usize,
    model: Box<dyn LoadedModel>,
    figures: GateFigures,
    sum_nll: f64,
}

impl Gate<'_> {
    fn measure(
        &mut self,
        template: &ChatTemplate,
        request: &Request,
        observer: &mut dyn Observer<Event>,
    ) -> Result<()> {
        self.figures.end_of_turn = Some(text::end_of_turn(&self.merged.tokenizer, template)?);
        if request.evaluation.is_empty() {
            self.prompt(template, Chat::from(&[Message::new("user", "Hello! What is 2 + 3?")]))?;
            return self.plain_text();
        }
        for (index, conversation) in request.evaluation.iter().enumerate() {
            let n_rows = request.evaluation.len();
            let (is_exact, stopped) = self.row(template, index, conversation)?;
            observer.observe(Event::GateRow { index, n_rows, is_exact, stopped });
        }
        Ok(())
    }

    /// Answers one row and scores the expected answer.
    fn row(
        &mut self,
        template: &ChatTemplate,
        index: usize,
        conversation: &Conversation,
    ) -> Result<(bool, bool)> {
        let (answer, before) = conversation.messages.split_last().expect("the plan refuses empty rows");
        let prompt = self.prompt(template, conversation.first(before.len()))?;
        let encoded =
            text::encode_conversation(&self.merged.tokenizer, template, conversation, TrainOn::Last)?;
        let n_targets = encoded.is_target.iter().filter(|&&is_target| is_target).count();
        let room = self.num_ctx.saturating_sub(prompt.len().max(encoded.ids.len()));
        if room == 0 {
            let reason = format!("it has {} tokens, num_ctx is {}", encoded.ids.len(), self.num_ctx);
            return Err(Error::EvaluationRow { row: index, reason });
        }
        let room = self.num_ctx - prompt.len();
        let max_new_tokens = room.min(n_targets * MAX_ANSWER.0 + MAX_ANSWER.1);
        let generation = self.model.generate(&prompt, max_new_tokens).map_err(engine("generate with"))?;
        let stopped = generation.ids.last() == self.figures.end_of_turn.as_ref();
        let is_exact = generation.text.trim() == answer.content.trim();
        self.figures.n_rows += 1;
        self.figures.n_exact += usize::from(is_exact);
        self.figures.n_stopped += usize::from(stopped);
        self.score(&encoded.ids, &encoded.is_target)?;
        Ok((is_exact, stopped))
    }

    /// The ids of a prompt; the engine's must be the same.
    fn prompt(&mut self, template: &ChatTemplate, chat: Chat<'_>) -> Result<Vec<u32>> {
        let expected = text::encode_prompt(&self.merged.tokenizer, template, chat)?;
        let found = self.model.prompt_ids(chat).map_err(engine("render and tokenise with"))?;
        if found == expected {
            return Ok(expected);
        }
        let at = expected.iter().zip(&found).take_while(|(a, b)| a == b).count();
        let around = |ids: &[u32]| format!("{:?}", &ids[at.min(ids.len())..(at + 4).min(ids.len())]);
        Err(Error::Refused {
            reason: format!(
                "the engine's ids of a chat differ from those of training from token {at} on: {} against {}",
                around(&found),
                around(&expected),
            ),
            remedy: None,
        })
    }

    /// Without a chat: the likelihood of plain text must at least be a number.
    fn plain_text(&mut self) -> Result<()> {
        let tokenizer = &self.merged.tokenizer;
        let mut ids: Vec<u32> = tokenizer.bos().filter(|_| tokenizer.adds_bos()).into_iter().collect();
        ids.extend(tokenizer.encode(PLAIN_TEXT));
        ids.truncate(self.num_ctx);
        let mut is_target = vec![true; ids.len()];
        is_target.iter_mut().take(1).for_each(|first| *first = false);
        self.score(&ids, &is_target)
    }

    fn score(&mut self, ids: &[u32], is_target: &[bool]) -> Result<()> {
        let sum = self.model.sum_nll(ids, is_target).map_err(engine("score with"))?;
        if !sum.is_finite() {
            return Err(Error::Refused {
                reason: format!("the likelihood of {} tokens is {sum}", ids.len()),
                remedy: None,
            });
        }
        self.sum_nll += sum;
        self.figures.n_target_tokens += is_target.iter().filter(|&&is_target| is_target).count();
        Ok(())
    }

    fn finish(mut self) -> GateFigures {
        let n = self.figures.n_target_tokens;
        self.figures.mean_nll = (n > 0).then(|| self.sum_nll / n as f64);
        self.figures
    }
}

fn judge(figures: &GateFigures, reference: &Reference, limits: &Limits) -> Result<()> {
    let refuse = |reason, remedy| Err(Error::Refused { reason, remedy: Some(remedy) });
    let share = |n: usize| n as f64 / figures.n_rows as f64;
    let (n_exact, n_rows) = (figures.n_exact, figures.n_rows);
    let adapter = reference.adapter.and_then(|adapter| adapter.exact_share());
    if let (Some(limit), Some(adapter), 1..) = (limits.max_exact_drop_points, adapter, n_rows) {
        let drop = 100.0 * (adapter - share(n_exact));
        // Shares are quotients: 2 points exactly may come out a hair above.
        if drop > limit + 1e-9 {
            let reason = format!(
                "exact match {:.1} % ({n_exact} of {n_rows}) is {drop:.1} points below the adapter's {:.1} %, \
                 allowed are {limit}",
                100.0 * share(n_exact),
                100.0 * adapter,
            );
            return refuse(
                reason,
                "keep more bits (q5_k_m, q6_k, q8_0), or raise `export.max_exact_match_drop` in the recipe",
            );
        }
    }
    if let (Some(least), 1..) = (limits.min_stopped_share, n_rows)
        && share(figures.n_stopped) < least
    {
        let reason = format!(
            "{} of {n_rows} answers end by the end-of-turn token, at least {:.0} % must",
            figures.n_stopped,
            100.0 * least,
        );
        return refuse(
            reason,
            "train longer; raise `eval.max_new_tokens` where answers are longer; or lower `export.min_ended_answers` in \
             the recipe",
        );
    }
    let Some(fidelity) = &figures.fidelity else { return Ok(()) };
    let held_out = fidelity.held_out.as_ref();
    if let (Some(least), Some(retained)) = (limits.min_retained, held_out.and_then(Divergence::retained))
        && retained < least
    {
        let reason = format!(
            "{:.1} % of the adapter's gain is retained, at least {:.1} % must be",
            100.0 * retained,
            100.0 * least,
        );
        return refuse(
            reason,
            "keep more bits (q5_k_m, q6_k, q8_0), or lower `export.min_retained` in the recipe",
        );
    }
    if let (Some(most), Some(divergence)) = (limits.max_kl, held_out.or(fidelity.general.as_ref()))
        && divergence.mean_kl > most
    {
        let (kl, n) = (divergence.mean_kl, divergence.n_tokens);
        let reason = format!(
            "its predictions diverge by {kl:.4} nats from the merged model's (a mean over {n} tokens), allowed are {most}"
        );
        return refuse(
            reason,
            "keep more bits (q5_k_m, q6_k, q8_0), give an importance matrix, or raise `export.max_kl` in the recipe",
        );
    }
    Ok(())
}

pub(crate) fn engine(action: &'static str) -> impl FnOnce(EngineError) -> Error {
    move |source| Error::Engine { action, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Fidelity, Figures};

    fn judged(exact: usize, stopped: usize, adapter_exact: usize, limits: Limits) -> String {
        let figures =
            GateFigures { n_rows: 200, n_exact: exact, n_stopped: stopped, ..GateFigures::default() };
        let adapter = Figures { n_rows: 200, n_exact: adapter_exact };
        let reference = Reference { base: None, adapter: Some(adapter) };
        judge(&figures, &reference, &limits).map_or_else(|error| error.to_string(), |()| "passed".to_owned())
    }

    #[test]
    fn the_limits_are_inclusive() {
        assert_eq!(judged(180, 200, 180, Limits::default()), "passed");
        assert_eq!(judged(176, 200, 180, Limits::default()), "passed");
        assert_eq!(judged(190, 180, 180, Limits::default()), "passed");
        assert_eq!(judged(0, 0, 200, Limits::NONE), "passed");
    }

    #[test]
    fn a_refusal_names_the_figure() {
        let too_few = judged(175, 200, 180, Limits::default());
        assert_eq!(
            too_few,
            "the gate refused the export: exact match 87.5 % (175 of 200) is 2.5 points below the adapter's \
             90.0 %, allowed are 2"
        );
        let endless = judged(180, 179, 180, Limits::default());
        assert_eq!(
            endless,
            "the gate refused the export: 179 of 200 answers end by the end-of-turn token, at least 90 % must"
        );
    }

    #[test]
    fn what_is_lost_against_the_merged_model_is_refused_by_its_figure() {
        let judged = |limits| {
            let held_out = Divergence {
                n_tokens: 40,
                mean_kl: 0.25,
                mean_nll: 1.5,
                merged_nll: 1.0,
                base_nll: Some(2.0),
                ..Divergence::default()
            };
            let fidelity = Some(Fidelity { held_out: Some(held_out), general: None });
            let figures = GateFigures { n_rows: 1, fidelity, ..GateFigures::default() };
            judge(&figures, &Reference::default(), &limits)
                .map_or_else(|error| error.to_string(), |()| "passed".to_owned())
        };
        assert_eq!(
            judged(Limits { min_retained: Some(0.8), ..Limits::NONE }),
            "the gate refused the export: 50.0 % of the adapter's gain is retained, at least 80.0 % must be"
        );
        assert_eq!(
            judged(Limits { max_kl: Some(0.2), ..Limits::NONE }),
            "the gate refused the export: its predictions diverge by 0.2500 nats from the merged model's (a mean over \
             40 tokens), allowed are 0.2"
        );
        let enough = Limits { min_retained: Some(0.5), max_kl: Some(0.25), ..Limits::NONE };
        assert_eq!(judged(enough), "passed");
    }
}
