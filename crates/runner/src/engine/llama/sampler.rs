//! The choice of the next token: greedy or drawn, and held to a grammar where a form is asked for.
//!
//! The grammar is first tried on the one token chosen without it; only if it objects are all candidates put
//! through it. Checking 150,000 candidates a token would cost more than decoding a small model.

use std::sync::Arc;

use super::ffi::{Candidate, Model, Sampler};
use crate::card::Sampling;
use crate::engine::Form;
use crate::{Error, Result};

/// Chooses tokens for one generation.
pub(super) struct Chooser {
    grammar: Option<Sampler>,
    penalties: Option<Sampler>,
    // Empty: greedy.
    chain: Vec<Sampler>,
    candidates: Vec<Candidate>,
}

impl Chooser {
    /// A chooser for these settings.
    ///
    /// # Errors
    /// [`Error::Schema`] if llama.cpp can't make a grammar of the form.
    pub(super) fn new(model: &Arc<Model>, sampling: &Sampling, form: &Form) -> Result<Self> {
        sampling.check().map_err(|reason| Error::Sampling { reason })?;
        let refused = |name: &str| Error::Sampling { reason: format!("the engine refused `{name}`") };
        let grammar = match grammar_text(form)? {
            None => None,
            Some(text) => Some(Sampler::grammar(model, &text).ok_or_else(|| Error::Schema {
                reason: "the engine can't make a grammar of it".to_owned(),
            })?),
        };
        let penalises = sampling.repeat_last_n > 0 && (sampling.repeat_penalty - 1.0).abs() > f32::EPSILON;
        let rows = model.vocabulary_rows();
        let penalties = penalises
            .then(|| {
                Sampler::penalties(rows, sampling.repeat_last_n, sampling.repeat_penalty)
                    .ok_or_else(|| refused("repeat_penalty"))
            })
            .transpose()?;
        let mut chain = Vec::new();
        if sampling.temperature > 0.0 {
            if sampling.top_k > 0 {
                chain.push(Sampler::top_k(sampling.top_k).ok_or_else(|| refused("top_k"))?);
            }
            if sampling.top_p < 1.0 {
                chain.push(Sampler::top_p(sampling.top_p).ok_or_else(|| refused("top_p"))?);
            }
            if sampling.min_p > 0.0 {
                chain.push(Sampler::min_p(sampling.min_p).ok_or_else(|| refused("min_p"))?);
            }
            chain.push(Sampler::temperature(sampling.temperature).ok_or_else(|| refused("temperature"))?);
            chain.push(Sampler::draw(sampling.seed).ok_or_else(|| refused("seed"))?);
        }
        Ok(Self { grammar, penalties, chain, candidates: Vec::with_capacity(rows) })
    }

    /// The next token; its choice is not final before [`Chooser::accept`].
    ///
    /// # Errors
    /// The reason, if no token is admitted or the logits are not finite.
    pub(super) fn choose(&mut self, logits: &[f32]) -> std::result::Result<u32, String> {
        let id = self.choose_freely(logits)?;
        if self.grammar.is_none() {
            return Ok(id);
        }
        let mut one = vec![candidate(id, 0.0)];
        self.through_grammar(&mut one);
        if one.first().is_some_and(|candidate| candidate.logit.is_finite()) {
            return Ok(id);
        }
        self.choose_under_grammar(logits)
    }

    /// Makes a choice known to the grammar and the penalties.
    pub(super) fn accept(&mut self, id: u32) -> std::result::Result<(), String> {
        if let Some(grammar) = &mut self.grammar {
            grammar.accept(id)?;
        }
        if let Some(penalties) = &mut self.penalties {
            penalties.accept(id)?;
        }
        Ok(())
    }

    fn choose_freely(&mut self, logits: &[f32]) -> std::result::Result<u32, String> {
        if self.chain.is_empty() && self.penalties.is_none() {
            return argmax(logits);
        }
        self.fill(logits)?;
        self.penalise();
        self.draw()
    }

    fn choose_under_grammar(&mut self, logits: &[f32]) -> std::result::Result<u32, String> {
        self.fill(logits)?;
        let mut candidates = std::mem::take(&mut self.candidates);
        self.through_grammar(&mut candidates);
        candidates.retain(|candidate| candidate.logit.is_finite());
        self.candidates = candidates;
        if self.candidates.is_empty() {
            return Err("the grammar admits no token".to_owned());
        }
        self.penalise();
        self.draw()
    }

    fn through_grammar(&mut self, candidates: &mut Vec<Candidate>) {
        if let Some(grammar) = &mut self.grammar {
            grammar.apply(candidates);
        }
    }

    fn penalise(&mut self) {
        if let Some(penalties) = &mut self.penalties {
            penalties.apply(&mut self.candidates);
        }
    }

    fn fill(&mut self, logits: &[f32]) -> std::result::Result<(), String> {
        argmax(logits)?;
        self.candidates.clear();
        self.candidates.extend((0..).zip(logits).map(|(id, &logit)| candidate(id, logit)));
        Ok(())
    }

    fn draw(&mut self) -> std::result::Result<u32, String> {
        let mut drawn = None;
        for sampler in &mut self.chain {
            drawn = sampler.apply(&mut self.candidates);
        }
        let best = || {
            let best =
                self.candidates.iter().reduce(|best, next| if next.logit > best.logit { next } else { best });
            best.map(|candidate| candidate.id)
        };
        let id = drawn.and_then(|i| self.candidates.get(i)).map(|candidate| candidate.id).or_else(best);
        id.and_then(|id| u32::try_from(id).ok()).ok_or_else(|| "no token was drawn".to_owned())
    }
}

/// The most likely token, the lowest id where several are.
///
/// # Errors
/// A logit is NaN, or all are minus infinity: the weights are broken.
pub(super) fn argmax(logits: &[f32]) -> std::result::Result<u32, String> {
    let mut best = (0, f32::NEG_INFINITY);
    for (id, &logit) in (0..).zip(logits) {
        if logit.is_nan() {
            return Err(format!("the logit of token {id} is not a number"));
        }
        if logit > best.1 {
            best = (id, logit);
        }
    }
    if best.1.is_finite() { Ok(best.0) } else { Err("no logit is finite".to_owned()) }
}

fn candidate(id: u32, logit: f32) -> Candidate {
    // Vocabularies are far below 2^31 rows.
    Candidate { id: i32::try_from(id).unwrap_or(i32::MAX), logit, p: 0.0 }
}

/// Checks that llama.cpp can hold an answer to a schema.
///
/// # Errors
/// [`Error::Schema`].
pub(crate) fn check_schema(schema: &serde_json::Value) -> Result<()> {
    grammar_text(&Form::Schema(schema.clone())).map(|_| ())
}

/// Schemas over this are refused: a grammar grows with them.
const SCHEMA_BYTES: usize = 256 * 1024;

fn grammar_text(form: &Form) -> Result<Option<String>> {
    let schema = match form {
        Form::Text => return Ok(None),
        Form::Json => r#"{"type":"object"}"#.to_owned(),
        Form::Schema(schema) => schema.to_string(),
    };
    if schema.len() > SCHEMA_BYTES {
        let reason = format!("it has {} bytes, at most {SCHEMA_BYTES} are accepted", schema.len());
        return Err(Error::Schema { reason });
    }
    let grammar = llama_cpp_2::json_schema_to_grammar(&schema);
    grammar.map(Some).map_err(|error| Error::Schema { reason: error.to_string() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn argmax_takes_the_first_of_equals_and_refuses_broken_logits() {
        assert_eq!(argmax(&[0.5, 2.0, 2.0, -1.0]), Ok(1));
        assert!(argmax(&[0.5, f32::NAN]).unwrap_err().contains("token 1"));
        assert!(argmax(&[f32::NEG_INFINITY; 3]).is_err());
    }

    #[test]
    fn a_schema_becomes_a_grammar_and_nonsense_does_not() {
        let schema = serde_json::json!({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]});
        let text = grammar_text(&Form::Schema(schema)).unwrap().unwrap();
        assert!(text.contains("root ::="), "{text}");
        let error = grammar_text(&Form::Schema(serde_json::json!({"type": "nonsense"}))).unwrap_err();
        assert!(matches!(error, Error::Schema { .. }));
    }
}
