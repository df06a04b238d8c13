//! DPO, ORPO and weighted targets through the whole step: TRL's losses and gradients, finite differences, packing.
//!
//! The goldens come from `scripts/golden/preference.py`, which names the versions it ran with.

mod hashed;
mod peft;

use std::collections::HashMap;
use std::sync::Arc;

use formats::observe::Silent;
use hashed::HashedCheckpoint;
use model::arena::Arena;
use model::lora::Gradients;
use model::preference::{Normalisers, Pair, PairSums, Preference};
use model::step::{Batch, IGNORE, LossSum, StepPlan};
use model::{Adapter, Base, Cpu, LoraOptions, ModelConfig, Quant, TrainStep};
use peft::{Gradient, check_gradients, read_config, relative};
use serde::Deserialize;

/// Relative error of losses and figures. Both sides sum in f32, in other orders.
const LOSS_TOLERANCE: f64 = 1e-5;
/// Relative error of a reward, a small difference of large sums.
const REWARD_TOLERANCE: f64 = 1e-3;
/// Relative error of each gradient's norm, sum and samples.
const GRADIENT_TOLERANCE: f64 = 1e-3;
/// The same sums in another order of blocks.
const ORDER_TOLERANCE: f64 = 2e-5;
/// Central differences of an f32 loss: its rounding, and the third derivative at the step.
const DIFFERENCE_TOLERANCE: f64 = 1e-3;

#[derive(Deserialize)]
struct Golden {
    config: serde_json::Value,
    cases: HashMap<String, Case>,
}

#[derive(Deserialize)]
struct Case {
    /// Prompt, chosen and rejected answer of each.
    pairs: Vec<[Vec<u32>; 3]>,
    #[serde(default)]
    beta: f64,
    #[serde(default)]
    label_smoothing: f64,
    #[serde(default)]
    rpo_alpha: f64,
    #[serde(default)]
    weights: Vec<f32>,
    loss: f64,
    metrics: HashMap<String, f64>,
    gradients: HashMap<String, Gradient>,
}

/// Sequences end to end.
#[derive(Default, Clone)]
struct Packed {
    tokens: Vec<u32>,
    targets: Vec<u32>,
    weights: Option<Vec<f32>>,
    positions: Vec<u32>,
    starts: Vec<usize>,
}

impl Packed {
    /// Lays a conversation down; the tokens of the answer are targets.
    fn push(&mut self, prompt: &[u32], answer: &[u32]) {
        let ids: Vec<u32> = prompt.iter().chain(answer).copied().collect();
        let n = ids.len() - 1;
        self.starts.push(self.tokens.len());
        self.tokens.extend(&ids[..n]);
        self.positions.extend(0..n as u32);
        self.targets.extend((0..n).map(|i| if i + 1 >= prompt.len() { ids[i + 1] } else { IGNORE }));
    }

    /// Chosen and rejected conversation of each pair, one after the other.
    fn of_pairs(pairs: &[[Vec<u32>; 3]]) -> Self {
        let mut packed = Self::default();
        for [prompt, chosen, rejected] in pairs {
            packed.push(prompt, chosen);
            packed.push(prompt, rejected);
        }
        packed
    }

    fn batch(&self) -> Batch<'_> {
        Batch {
            tokens: &self.tokens,
            targets: &self.targets,
            weights: self.weights.as_deref(),
            positions: &self.positions,
            sequence_starts: &self.starts,
        }
    }
}

/// A base, an adapter far from zero, and a step over both.
struct Bench {
    adapter: Adapter<Cpu>,
    step: TrainStep<Cpu>,
}

impl Bench {
    fn new(config: &ModelConfig, lora: &LoraOptions, quant: Quant, plan: StepPlan) -> Self {
        let device = Cpu::new(Arena::unlimited()).unwrap();
        let base = Base::load(&device, config, &HashedCheckpoint::new(config), quant, &mut Silent).unwrap();
        let mut adapter = Adapter::zeros(&device, config, lora).unwrap();
        adapter.set_tensors(config, &hashed::adapter(config, lora)).unwrap();
        let step = TrainStep::new(Arc::new(base), Some(lora), plan).unwrap();
        Self { adapter, step }
    }

    fn sums(&mut self, with_adapter: bool, packed: &Packed) -> Vec<LossSum> {
        let mut sums = Vec::new();
        let adapter = with_adapter.then_some(&self.adapter);
        self.step.evaluate_sequences(adapter, &packed.batch(), &mut sums).unwrap();
        sums
    }

    /// Loss, figures and gradient of a batch of pairs.
    fn run(&mut self, preference: Preference, packed: &Packed) -> (f64, PairSums, Vec<f32>) {
        let reference = self.sums(false, packed);
        let mut gradients = Gradients::new(&self.adapter).unwrap();
        let mut figures = PairSums::default();
        let normalisers = normalisers(&reference);
        let mut factors_of = |sums: &[LossSum], factors: &mut [f32]| {
            let pairs = pairs(sums, &reference).into_iter().zip(factors.chunks_exact_mut(2));
            pairs
                .for_each(|(pair, to)| to.copy_from_slice(&preference.add(&pair, normalisers, &mut figures)));
        };
        let batch = packed.batch();
        self.step.forward_backward_sequences(&self.adapter, &batch, &mut gradients, &mut factors_of).unwrap();
        (preference.loss(&figures), figures, gradients.download().unwrap())
    }
}

fn normalisers(sums: &[LossSum]) -> Normalisers {
    let chosen_weights = sums.iter().step_by(2).map(|sum| sum.sum_weights).sum();
    Normalisers { pairs: (sums.len() / 2) as f64, chosen_weights }
}

fn pairs(sums: &[LossSum], reference: &[LossSum]) -> Vec<Pair> {
    let pair = |(sums, reference): (&[LossSum], &[LossSum])| Pair {
        chosen: sums[0],
        rejected: sums[1],
        reference: [reference[0].sum_nll, reference[1].sum_nll],
    };
    sums.chunks_exact(2).zip(reference.chunks_exact(2)).map(pair).collect()
}

fn golden() -> (Golden, ModelConfig, LoraOptions) {
    let golden: Golden = peft::read("preference.json");
    let config = read_config(&golden.config);
    (golden, config, LoraOptions { rank: 8, alpha: 16.0, ..LoraOptions::default() })
}

fn check(name: &str, preference: impl Fn(&Case) -> Preference) {
    let (golden, config, lora) = golden();
    let case = &golden.cases[name];
    let packed = Packed::of_pairs(&case.pairs);
    // Tiles that begin and end inside sequences.
    let plan = StepPlan {
        loss_tile_tokens: 37,
        loss_tile_vocab: 77,
        mlp_tile_tokens: 50,
        ..StepPlan::new(&config, packed.tokens.len())
    };
    let mut bench = Bench::new(&config, &lora, Quant::F32, plan);
    let (loss, figures, gradient) = bench.run(preference(case), &packed);
    let error = relative(loss - case.loss, case.loss);
    assert!(error < LOSS_TOLERANCE, "{name}: loss {loss} against {}", case.loss);
    let n = figures.pairs as f64;
    let margin = case.metrics["rewards_margins"].abs();
    for (key, found, of, tolerance) in [
        ("rewards_chosen", figures.chosen_rewards / n, margin, REWARD_TOLERANCE),
        ("rewards_rejected", figures.rejected_rewards / n, margin, REWARD_TOLERANCE),
        ("rewards_accuracies", figures.correct as f64 / n, 1.0, LOSS_TOLERANCE),
        ("logps_chosen", figures.chosen_logps / n, figures.chosen_logps / n, LOSS_TOLERANCE),
        ("logps_rejected", figures.rejected_logps / n, figures.rejected_logps / n, LOSS_TOLERANCE),
    ] {
        let error = relative(found - case.metrics[key], of);
        assert!(error < tolerance, "{name}: {key} {found} against {}", case.metrics[key]);
    }
    if let Some(&nll) = case.metrics.get("nll_loss") {
        let found = figures.chosen.mean();
        assert!(relative(found - nll, nll) < LOSS_TOLERANCE, "{name}: NLL {found} against {nll}");
    }
    let worst =
        check_gradients(&config, &bench.adapter, &gradient, &case.gradients, name, GRADIENT_TOLERANCE);
    eprintln!("{name}: loss off by {error:.1e}, worst gradient by {worst:.1e}");
}

fn dpo(case: &Case) -> Preference {
    let Case { beta, label_smoothing, rpo_alpha, .. } = *case;
    Preference::Dpo { beta, label_smoothing, rpo_alpha }
}

fn orpo(case: &Case) -> Preference {
    Preference::Orpo { beta: case.beta }
}

#[test]
fn dpo_equals_trl() {
    check("dpo", dpo);
}

#[test]
fn dpo_with_the_chosen_answers_own_loss_equals_trl() {
    check("dpo_rpo", dpo);
}

#[test]
fn conservative_dpo_equals_trl() {
    check("dpo_conservative", dpo);
}

#[test]
fn orpo_equals_trl() {
    check("orpo", orpo);
    check("orpo_short_prompts", orpo);
}

#[test]
fn weighted_targets_equal_pytorch() {
    let (golden, config, lora) = golden();
    let case = &golden.cases["weighted"];
    let (mut packed, mut weights) = (Packed::default(), Vec::new());
    for [prompt, chosen, _] in &case.pairs {
        // The first token of the conversation is no target; each sequence goes on in the pattern after its last token.
        packed.push(&prompt[..1], &[&prompt[1..], &chosen[..]].concat());
        let n = packed.tokens.len() + packed.starts.len();
        let first = *packed.starts.last().unwrap() + packed.starts.len() - 1;
        weights.extend((first..n - 1).map(|place| case.weights[place % case.weights.len()]));
    }
    let zeros = weights.iter().filter(|&&weight| weight == 0.0).count();
    let sum: f32 = weights.iter().sum();
    packed.weights = Some(weights);
    let plan = StepPlan { loss_tile_tokens: 37, ..StepPlan::new(&config, packed.tokens.len()) };
    let mut bench = Bench::new(&config, &lora, Quant::F32, plan);
    let mut gradients = Gradients::new(&bench.adapter).unwrap();
    let batch = packed.batch();
    let loss = bench.step.forward_backward(&bench.adapter, &batch, &mut gradients, 1.0 / sum).unwrap();
    assert_eq!((loss.n_targets, loss.sum_weights as f32), (packed.tokens.len() - zeros, sum));
    let error = relative(loss.mean() - case.loss, case.loss);
    assert!(error < LOSS_TOLERANCE, "loss {} against {}", loss.mean(), case.loss);
    let gradients = gradients.download().unwrap();
    check_gradients(&config, &bench.adapter, &gradients, &case.gradients, "weighted", GRADIENT_TOLERANCE);

    // Of every sequence by itself, and added up.
    let sums = bench.sums(true, &packed);
    assert_eq!(sums.len(), 3);
    let total: f64 = sums.iter().map(|sum| sum.sum_nll).sum();
    assert!(relative(total - loss.sum_nll, loss.sum_nll) < 1e-9);
    assert_eq!(sums.iter().map(|sum| sum.n_targets).sum::<usize>(), loss.n_targets);
}

#[test]
fn weights_of_one_change_no_bit() {
    let (golden, config, lora) = golden();
    let packed = Packed::of_pairs(&golden.cases["dpo"].pairs);
    let mut bench = Bench::new(&config, &lora, Quant::Q8_0, StepPlan::new(&config, packed.tokens.len()));
    let mut run = |packed: &Packed| {
        let mut gradients = Gradients::new(&bench.adapter).unwrap();
        let batch = packed.batch();
        let loss = bench.step.forward_backward(&bench.adapter, &batch, &mut gradients, 0.01).unwrap();
        (loss, gradients.download().unwrap())
    };
    let plain = run(&packed);
    let ones = Packed { weights: Some(vec![1.0; packed.tokens.len()]), ..packed.clone() };
    assert!(run(&ones) == plain);
}

#[test]
fn weights_that_cannot_be_are_refused() {
    let (_, config, lora) = golden();
    let mut packed = Packed::default();
    packed.push(&[1, 2], &[3, 4]);
    let mut bench = Bench::new(&config, &lora, Quant::F32, StepPlan::new(&config, 8));
    let mut refused = |weights: Vec<f32>| {
        packed.weights = Some(weights);
        bench.step.evaluate(None, &packed.batch()).unwrap_err().to_string()
    };
    assert_eq!(refused(vec![1.0; 2]), "batch: number of weights is 2, expected 3");
    assert_eq!(refused(vec![1.0, f32::NAN, 1.0]), "batch: weight is NaN, expected a finite number");
}

/// The loss along the gradient of every factor changes as the gradient says, on 4-bit weights.
#[test]
fn gradients_of_pairs_equal_finite_differences() {
    let (golden, config, lora) = golden();
    let packed = Packed::of_pairs(&golden.cases["dpo"].pairs);
    let mut bench = Bench::new(&config, &lora, Quant::Q4KM, StepPlan::new(&config, packed.tokens.len()));
    for preference in [
        Preference::Dpo { beta: 0.5, label_smoothing: 0.1, rpo_alpha: 0.5 },
        Preference::Dpo { beta: 0.5, label_smoothing: 0.0, rpo_alpha: 0.0 },
        Preference::Orpo { beta: 2.0 },
    ] {
        let (_, _, gradient) = bench.run(preference, &packed);
        let at = bench.adapter.weights().unwrap();
        let members: Vec<_> = bench.adapter.layout().members().map(|(_, _, m)| m.clone()).collect();
        for member in members {
            for range in [member.a, member.b] {
                let slope =
                    gradient[range.clone()].iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt();
                let step = (0.02 / slope).min(0.05);
                let mut loss_at = |distance: f64| {
                    let mut moved = at.clone();
                    for i in range.clone() {
                        moved[i] += (distance * f64::from(gradient[i]) / slope) as f32;
                    }
                    bench.adapter.set_weights(&moved).unwrap();
                    let (reference, sums) = (bench.sums(false, &packed), bench.sums(true, &packed));
                    let mut figures = PairSums::default();
                    for pair in pairs(&sums, &reference) {
                        preference.add(&pair, normalisers(&sums), &mut figures);
                    }
                    preference.loss(&figures)
                };
                let difference = (loss_at(step) - loss_at(-step)) / (2.0 * step);
                let error = (difference / slope - 1.0).abs();
                assert!(error < DIFFERENCE_TOLERANCE, "{preference:?} {:?}: off by {error:e}", member.role);
            }
        }
        bench.adapter.set_weights(&at).unwrap();
    }
}

/// An adapter whose B is zero is the reference to the bit.
#[test]
fn dpo_begins_at_ln_2_with_zero_margin() {
    let (golden, config, lora) = golden();
    let packed = Packed::of_pairs(&golden.cases["dpo"].pairs);
    let mut bench = Bench::new(&config, &lora, Quant::Q4KM, StepPlan::new(&config, packed.tokens.len()));
    bench.adapter = Adapter::new(&bench.step.base().device, &config, &lora, 7).unwrap();
    let preference = Preference::Dpo { beta: 0.1, label_smoothing: 0.0, rpo_alpha: 0.0 };
    let (loss, figures, gradient) = bench.run(preference, &packed);
    assert_eq!(loss, std::f64::consts::LN_2);
    assert_eq!((figures.chosen_rewards, figures.rejected_rewards), (0.0, 0.0));
    assert!(gradient.iter().any(|&g| g != 0.0) && gradient.iter().all(|g| g.is_finite()));
}

/// Pairs of a step one by one, or all in one batch: the same loss and gradient.
#[test]
fn packed_pairs_equal_pairs_one_by_one() {
    let (golden, config, lora) = golden();
    let case = &golden.cases["dpo"];
    let packed = Packed::of_pairs(&case.pairs);
    let mut bench = Bench::new(&config, &lora, Quant::Q4KM, StepPlan::new(&config, packed.tokens.len()));
    for preference in [dpo(&golden.cases["dpo_rpo"]), Preference::Orpo { beta: 0.1 }] {
        let (together, _, expected) = bench.run(preference, &packed);
        let normalisers = normalisers(&bench.sums(false, &packed));
        let mut gradients = Gradients::new(&bench.adapter).unwrap();
        let mut figures = PairSums::default();
        for pair in &case.pairs {
            let alone = Packed::of_pairs(std::slice::from_ref(pair));
            let reference = bench.sums(false, &alone);
            let mut factors_of = |sums: &[LossSum], factors: &mut [f32]| {
                let pair = pairs(sums, &reference)[0];
                factors.copy_from_slice(&preference.add(&pair, normalisers, &mut figures));
            };
            let batch = alone.batch();
            bench
                .step
                .forward_backward_sequences(&bench.adapter, &batch, &mut gradients, &mut factors_of)
                .unwrap();
        }
        assert!(relative(preference.loss(&figures) - together, together) < ORDER_TOLERANCE);
        let found = gradients.download().unwrap();
        let norm = |values: &mut dyn Iterator<Item = f32>| {
            values.map(|x| f64::from(x) * f64::from(x)).sum::<f64>().sqrt()
        };
        let difference = norm(&mut found.iter().zip(&expected).map(|(a, b)| a - b));
        let error = difference / norm(&mut expected.iter().copied());
        assert!(error < 10.0 * ORDER_TOLERANCE, "{preference:?}: gradient off by {error:e}");
    }
}
