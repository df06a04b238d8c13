//! Losses over pairs of answers to one prompt, of which the first is preferred: DPO and ORPO.
//!
//! Each is a function of the answers' log-likelihoods alone, so that its whole gradient is two numbers a pair: what
//! each answer's own loss is multiplied with ([`crate::TrainStep::forward_backward_sequences`]). w is the chosen answer,
//! l the rejected one, log p the log-likelihood of an answer's targets, n their number, σ the logistic function.
//!
//! ```text
//! DPO    m = β · ((log p_w - log q_w) - (log p_l - log q_l))          q: the reference, that is the base without adapter
//!        loss = -(1 - ε) ln σ(m) - ε ln σ(-m) + α · NLL
//! ORPO   o = logit(exp(log p_w / n_w)) - logit(exp(log p_l / n_l))
//!        loss = -β ln σ(o) + NLL
//! ```
//!
//! The first terms are means over pairs, NLL is the mean over the target tokens of all chosen answers.
//! Sources: Rafailov et al. 2023, arXiv:2305.18290, eq. 7; ε is the conservative DPO of its first author's note of 2023;
//! α that of iterative RPO, arXiv:2404.19733, eq. 1, but over tokens, as TRL has it; Hong et al. 2024, arXiv:2403.07691,
//! eq. 6 and 7. TRL's ORPO takes NLL over the prompt too; here it is over what is trained, as in the paper.

use crate::step::LossSum;

/// Which loss, and its numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Preference {
    /// Direct preference optimisation, against a reference.
    Dpo {
        /// β: how dear it is to leave the reference.
        beta: f64,
        /// ε: the share of pairs that are taken to be the wrong way round.
        label_smoothing: f64,
        /// α: the weight of the chosen answers' own loss.
        rpo_alpha: f64,
    },
    /// Odds-ratio preference optimisation, without a reference.
    Orpo {
        /// β, in the paper λ: the weight of the odds ratio.
        beta: f64,
    },
}

/// The log-likelihoods of a pair.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pair {
    /// Of the chosen answer.
    pub chosen: LossSum,
    /// Of the rejected answer.
    pub rejected: LossSum,
    /// Σ w · -ln q(target) of both under the reference; no part of ORPO.
    pub reference: [f64; 2],
}

/// What an answer's loss is divided by where pairs are added up: those of a step, or of an evaluation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Normalisers {
    /// How many pairs.
    pub pairs: f64,
    /// Σ w over the targets of the chosen answers.
    pub chosen_weights: f64,
}

/// Figures of some pairs, added up.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PairSums {
    /// How many pairs.
    pub pairs: u64,
    /// Σ of the loss of the pair, without NLL.
    pub preference: f64,
    /// The chosen answers' own loss.
    pub chosen: LossSum,
    /// The rejected answers' own loss.
    pub rejected: LossSum,
    /// Σ of the chosen answers' rewards.
    pub chosen_rewards: f64,
    /// Σ of the rejected answers' rewards.
    pub rejected_rewards: f64,
    /// Pairs whose chosen answer has the higher reward.
    pub correct: u64,
    /// Σ log p of the chosen answers: of all targets in DPO, the mean over an answer's targets in ORPO.
    pub chosen_logps: f64,
    /// The same of the rejected answers.
    pub rejected_logps: f64,
}

/// One pair under a loss.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Judged {
    /// Of the pair alone, without NLL.
    loss: f64,
    /// d loss / d Σ nll of each answer.
    slopes: [f64; 2],
    rewards: [f64; 2],
    logps: [f64; 2],
}

/// A mean log-likelihood nearer to 0 than a softmax in f32 can tell from it, where the odds have no end.
const LEAST_NLL: f64 = f32::EPSILON as f64;

impl Preference {
    /// Whether the loss needs the log-likelihoods of the reference.
    pub fn has_reference(&self) -> bool {
        matches!(self, Self::Dpo { .. })
    }

    /// The weight of the chosen answers' own loss.
    pub fn nll_weight(&self) -> f64 {
        match *self {
            Self::Dpo { rpo_alpha, .. } => rpo_alpha,
            Self::Orpo { .. } => 1.0,
        }
    }

    /// Adds a pair to `sums`; returns the derivatives of the normalised loss by the Σ nll of both answers.
    pub fn add(&self, pair: &Pair, normalisers: Normalisers, sums: &mut PairSums) -> [f32; 2] {
        let judged = self.judge(pair);
        sums.pairs += 1;
        sums.preference += judged.loss;
        sums.chosen += pair.chosen;
        sums.rejected += pair.rejected;
        sums.chosen_rewards += judged.rewards[0];
        sums.rejected_rewards += judged.rewards[1];
        sums.correct += u64::from(judged.rewards[0] > judged.rewards[1]);
        sums.chosen_logps += judged.logps[0];
        sums.rejected_logps += judged.logps[1];
        let [chosen, rejected] = judged.slopes.map(|slope| slope / normalisers.pairs);
        [(chosen + self.nll_weight() / normalisers.chosen_weights) as f32, rejected as f32]
    }

    /// The loss of the pairs that were added up.
    pub fn loss(&self, sums: &PairSums) -> f64 {
        let nll = if self.nll_weight() == 0.0 { 0.0 } else { self.nll_weight() * sums.chosen.mean() };
        sums.preference / sums.pairs as f64 + nll
    }

    fn judge(&self, pair: &Pair) -> Judged {
        let nll = [pair.chosen.sum_nll, pair.rejected.sum_nll];
        match *self {
            Self::Dpo { beta, label_smoothing, .. } => {
                let rewards = [0, 1].map(|side| beta * (pair.reference[side] - nll[side]));
                let margin = rewards[0] - rewards[1];
                let loss =
                    -(1.0 - label_smoothing) * ln_sigmoid(margin) - label_smoothing * ln_sigmoid(-margin);
                // d loss / d margin; a larger nll of the chosen answer is a smaller margin.
                let slope = -(1.0 - label_smoothing) * sigmoid(-margin) + label_smoothing * sigmoid(margin);
                Judged { loss, slopes: [-beta * slope, beta * slope], rewards, logps: nll.map(|nll| -nll) }
            }
            Self::Orpo { beta } => {
                let weights = [pair.chosen.sum_weights, pair.rejected.sum_weights];
                let logps = [0, 1].map(|side| -nll[side] / weights[side]);
                let log_odds = logps.map(log_odds);
                let ratio = log_odds[0].0 - log_odds[1].0;
                let slope = -beta * sigmoid(-ratio);
                let slopes = [-slope * log_odds[0].1 / weights[0], slope * log_odds[1].1 / weights[1]];
                let rewards = logps.map(|logp| beta * logp);
                Judged { loss: -beta * ln_sigmoid(ratio), slopes, rewards, logps }
            }
        }
    }
}

/// ln(p / (1 - p)) of p = exp(logp), and its derivative 1 / (1 - p) by logp.
fn log_odds(logp: f64) -> (f64, f64) {
    let logp = logp.min(-LEAST_NLL);
    // ln(1 - p) by Mächler 2012, "Accurately computing log(1 - exp(-|a|))".
    let ln_rest = if logp > -std::f64::consts::LN_2 { (-logp.exp_m1()).ln() } else { (-logp.exp()).ln_1p() };
    (logp - ln_rest, -1.0 / logp.exp_m1())
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// ln σ(x), without the overflow of its exponential.
fn ln_sigmoid(x: f64) -> f64 {
    x.min(0.0) - (-x.abs()).exp().ln_1p()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of a central difference in f64: its rounding, and the third derivative at the step.
    const DIFFERENCE_TOLERANCE: f64 = 1e-6;

    const DPO: Preference = Preference::Dpo { beta: 0.1, label_smoothing: 0.0, rpo_alpha: 0.0 };

    fn pair(chosen: f64, rejected: f64, reference: [f64; 2]) -> Pair {
        Pair {
            chosen: LossSum::unweighted(chosen, 7),
            rejected: LossSum::unweighted(rejected, 11),
            reference,
        }
    }

    fn losses() -> Vec<Preference> {
        let dpo = |beta, label_smoothing, rpo_alpha| Preference::Dpo { beta, label_smoothing, rpo_alpha };
        vec![DPO, dpo(0.5, 0.2, 0.0), dpo(0.3, 0.0, 1.5), Preference::Orpo { beta: 0.1 }]
    }

    #[test]
    fn slopes_equal_finite_differences() {
        let normalisers = Normalisers { pairs: 3.0, chosen_weights: 20.0 };
        let likelihoods = [(9.0, 8.0), (0.3, 40.0), (60.0, 0.2), (1e-3, 2e-3)];
        for (preference, (chosen, rejected)) in
            losses().into_iter().flat_map(|p| likelihoods.map(|pair| (p, pair)))
        {
            let loss = |chosen: f64, rejected: f64| {
                let mut sums = PairSums::default();
                let pair = pair(chosen, rejected, [10.0, 9.0]);
                preference.add(&pair, normalisers, &mut sums);
                sums.preference / normalisers.pairs
                    + preference.nll_weight() * sums.chosen.sum_nll / normalisers.chosen_weights
            };
            let at = pair(chosen, rejected, [10.0, 9.0]);
            let slopes = preference.add(&at, normalisers, &mut PairSums::default());
            for (slope, (left, right)) in slopes.into_iter().zip([(1.0, 0.0), (0.0, 1.0)]) {
                let step = 1e-4 * (left * chosen + right * rejected);
                let difference = loss(chosen + left * step, rejected + right * step)
                    - loss(chosen - left * step, rejected - right * step);
                let error = (difference / (2.0 * step) - f64::from(slope)).abs();
                let tolerance = DIFFERENCE_TOLERANCE * f64::from(slope).abs().max(1.0);
                assert!(error < tolerance, "{preference:?} at {chosen}, {rejected}: off by {error:e}");
            }
        }
    }

    #[test]
    fn dpo_begins_at_ln_2_without_margin() {
        let mut sums = PairSums::default();
        let normalisers = Normalisers { pairs: 1.0, chosen_weights: 7.0 };
        let slopes = DPO.add(&pair(12.5, 8.25, [12.5, 8.25]), normalisers, &mut sums);
        assert_eq!(DPO.loss(&sums), std::f64::consts::LN_2);
        assert_eq!((sums.chosen_rewards, sums.rejected_rewards, sums.correct), (0.0, 0.0, 0));
        // Half of β: the chosen answer's loss is to fall, the rejected one's to rise.
        assert_eq!(slopes, [0.05, -0.05]);
    }

    #[test]
    fn extremes_stay_finite() {
        let normalisers = Normalisers { pairs: 1.0, chosen_weights: 7.0 };
        for preference in losses() {
            for (chosen, rejected) in [(0.0, 1e5), (1e5, 0.0), (0.0, 0.0), (1e5, 1e5), (-1e-9, 3.0)] {
                let mut sums = PairSums::default();
                let slopes = preference.add(&pair(chosen, rejected, [50.0, 50.0]), normalisers, &mut sums);
                let found = (preference.loss(&sums), slopes);
                let is_finite = found.0.is_finite() && slopes.iter().all(|slope| slope.is_finite());
                assert!(is_finite, "{preference:?} at {chosen}, {rejected}: {found:?}");
            }
        }
    }
}
