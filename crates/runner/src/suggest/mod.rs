//! Which base, quantisation and context for a role and so much memory: by the rules of [`rules`], each answer with its
//! budget.
//!
//! 1. The first base of the role's rows that fits at all is taken: a larger base in four bits answers better than a
//!    smaller one in eight.
//! 2. It gets the context that the role wants, with keys and values in 16 bits; where that does not fit, in q8_0, which
//!    costs next to nothing; where that does not fit either, the least context of the role.
//! 3. What room is left goes into more bits for the weights.
//! 4. On a processor bases are passed over that would answer too slowly there.

mod bases;
pub mod rules;

use model::Quant;
use serde::{Deserialize, Serialize};

pub use bases::{BASES, Base};
pub use rules::{Demand, Role};

use crate::budget::{Available, Budget, Head, Place, budget, fits};
use crate::card::{KvType, LoadOptions};
use crate::{Error, Result};
use rules::{DEMANDS, MOST_BILLIONS_ON_A_PROCESSOR, QUANTS, RULES, Rule, SMALL_BILLIONS, SMALL_QUANT};

/// Most others that are named beside the one suggested.
const MOST_ALTERNATIVES: usize = 4;

/// A base for a role, and what it takes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Choice {
    /// Owner and name on the hub.
    pub base: String,
    /// Billions of parameters.
    pub billions: f64,
    /// Its licence.
    pub licence: String,
    /// As `tune export --quant` takes it.
    pub quant: String,
    /// Tokens of context.
    pub num_ctx: u32,
    /// Type of keys and values.
    pub kv_type: KvType,
    /// What it takes.
    pub budget: Budget,
    /// What that is in all, where it runs.
    pub need_bytes: u64,
    /// Why.
    pub reason: String,
}

/// What is suggested for a role.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Suggestion {
    /// The role.
    pub role: Role,
    /// Memory there is.
    pub available: Available,
    /// What the role's contexts rest on.
    pub context_reason: String,
    /// The one to take; nothing where nothing fits.
    pub choice: Option<Choice>,
    /// Others that fit.
    pub alternatives: Vec<Choice>,
    /// The next one up, that does not fit: with the least that it takes.
    pub next_up: Option<Choice>,
}

/// Suggests a base for a role.
///
/// # Errors
/// [`Error::Model`] if the table of bases and the rules contradict each other, which a test excludes.
pub fn suggest(role: Role, place: Place, available: &Available) -> Result<Suggestion> {
    let demand = DEMANDS.iter().find(|demand| demand.role == role).ok_or_else(|| unknown("demand"))?;
    let memory = Memory { place, available };
    let (mut fitting, mut next_up) = (Vec::<Choice>::new(), None::<Choice>);
    for rule in RULES.iter().filter(|rule| rule.role == role) {
        let base = Base::named(rule.base).ok_or_else(|| unknown(rule.base))?;
        if place == Place::Main && base.answering_billions() > MOST_BILLIONS_ON_A_PROCESSOR {
            continue;
        }
        match memory.best(base, rule, demand)? {
            Some(choice) => fitting.push(choice),
            // The nearest that does not fit: rows stand from the most to the least wanted.
            None if fitting.is_empty() => {
                let least = memory.least(base, rule, demand)?;
                let is_nearer = next_up.as_ref().is_none_or(|next| least.need_bytes < next.need_bytes);
                next_up = if is_nearer { Some(least) } else { next_up };
            }
            None => {}
        }
    }
    let choice = (!fitting.is_empty()).then(|| fitting.remove(0));
    let mut alternatives = Vec::new();
    if let Some(choice) = &choice {
        alternatives.extend(memory.longer(choice, demand)?);
    }
    alternatives.extend(fitting);
    alternatives.truncate(MOST_ALTERNATIVES);
    let context_reason = demand.reason.to_owned();
    Ok(Suggestion { role, available: *available, context_reason, choice, alternatives, next_up })
}

fn unknown(name: &str) -> Error {
    Error::UnknownExpert { name: name.to_owned(), known: "the table of bases".to_owned() }
}

struct Memory<'a> {
    place: Place,
    available: &'a Available,
}

impl Memory<'_> {
    /// The best form of a base that fits, by the rules.
    fn best(&self, base: &Base, rule: &Rule, demand: &Demand) -> Result<Option<Choice>> {
        for num_ctx in [demand.wanted_context, demand.least_context] {
            for kv_type in [KvType::F16, KvType::Q8_0] {
                for quant in quants(base) {
                    let choice = self.choice(base, rule.reason, quant, num_ctx, kv_type)?;
                    if fits(&choice.budget, self.available) {
                        return Ok(Some(choice));
                    }
                }
            }
        }
        Ok(None)
    }

    /// The smallest form of a base.
    fn least(&self, base: &Base, rule: &Rule, demand: &Demand) -> Result<Choice> {
        let quant = *quants(base).last().unwrap_or(&SMALL_QUANT);
        self.choice(base, rule.reason, quant, demand.least_context, KvType::Q8_0)
    }

    /// The same base with twice the context, where fewer bits of weights and cache make room for it.
    fn longer(&self, choice: &Choice, demand: &Demand) -> Result<Option<Choice>> {
        let base = Base::named(&choice.base).ok_or_else(|| unknown(&choice.base))?;
        let num_ctx = choice.num_ctx.max(demand.wanted_context / 2).saturating_mul(2);
        if base.config().max_positions < num_ctx as usize {
            return Ok(None);
        }
        for kv_type in [KvType::F16, KvType::Q8_0] {
            for quant in quants(base) {
                let reason = "the same base with twice the context";
                let longer = self.choice(base, reason, quant, num_ctx, kv_type)?;
                if fits(&longer.budget, self.available) {
                    return Ok(Some(longer));
                }
            }
        }
        Ok(None)
    }

    fn choice(
        &self,
        base: &Base,
        reason: &str,
        quant: &str,
        num_ctx: u32,
        kv_type: KvType,
    ) -> Result<Choice> {
        let load = LoadOptions { num_ctx, kv_type_k: kv_type, kv_type_v: kv_type, ..LoadOptions::default() };
        let head = Head::of_config(&base.config(), Quant::parse_for_file(quant)?)?;
        let budget = budget(&head, &load, self.place);
        Ok(Choice {
            base: base.name.to_owned(),
            billions: base.billions,
            licence: base.licence.to_owned(),
            quant: quant.to_owned(),
            num_ctx,
            kv_type,
            need_bytes: budget.share(self.place).total_bytes(),
            budget,
            reason: reason.to_owned(),
        })
    }
}

/// The quantisations in which a base is suggested, the best first.
fn quants(base: &Base) -> &'static [&'static str] {
    if base.billions < SMALL_BILLIONS {
        let floor = QUANTS.iter().position(|quant| *quant == SMALL_QUANT).unwrap_or(0);
        &QUANTS[..=floor]
    } else {
        &QUANTS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on_card(gib: f64) -> Available {
        Available { card_bytes: Some((gib * (1u64 << 30) as f64) as u64), main_bytes: None }
    }

    #[test]
    fn every_rule_names_a_base_and_every_role_has_rules_and_a_demand() {
        for rule in RULES {
            assert!(Base::named(rule.base).is_some(), "{}", rule.base);
        }
        for demand in DEMANDS {
            assert!(RULES.iter().any(|rule| rule.role == demand.role), "{:?}", demand.role);
            let answer = suggest(demand.role, Place::Card, &on_card(200.0)).unwrap();
            // With all the memory in the world the first row is taken, in its best form.
            let first = RULES.iter().find(|rule| rule.role == demand.role).unwrap();
            let choice = answer.choice.unwrap();
            assert_eq!((choice.base.as_str(), choice.quant.as_str()), (first.base, "q8_0"));
            assert_eq!(choice.num_ctx, demand.wanted_context);
            assert!(answer.next_up.is_none());
        }
    }

    #[test]
    fn what_is_suggested_fits_and_what_is_not_does_not() {
        for demand in DEMANDS {
            for gib in [1.0, 2.0, 3.2, 5.2, 7.2, 11.2, 15.2, 23.2] {
                let available = on_card(gib);
                let answer = suggest(demand.role, Place::Card, &available).unwrap();
                let fitting = answer.choice.iter().chain(&answer.alternatives);
                for choice in fitting {
                    assert!(choice.need_bytes <= available.card_bytes.unwrap(), "{gib} {choice:?}");
                    assert!(choice.num_ctx >= demand.least_context);
                }
                let next = answer.next_up.iter();
                next.for_each(|next| {
                    assert!(next.need_bytes > available.card_bytes.unwrap(), "{gib} {next:?}")
                });
            }
        }
    }

    #[test]
    fn a_processor_is_not_given_what_it_is_too_slow_for() {
        let available = Available { card_bytes: None, main_bytes: Some(200 << 30) };
        for demand in DEMANDS {
            let answer = suggest(demand.role, Place::Main, &available).unwrap();
            for choice in answer.choice.iter().chain(&answer.alternatives) {
                let base = Base::named(&choice.base).unwrap();
                assert!(base.answering_billions() <= MOST_BILLIONS_ON_A_PROCESSOR, "{choice:?}");
            }
        }
    }

    #[test]
    fn nothing_is_suggested_where_nothing_fits() {
        let answer = suggest(Role::Coding, Place::Card, &on_card(0.5)).unwrap();
        assert!(answer.choice.is_none() && answer.alternatives.is_empty());
        // The last row is named with what it would take.
        assert!(answer.next_up.is_some());
    }
}
