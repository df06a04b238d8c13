//! What a run's memory follows from, and the search for what fits a budget: how many tokens at once, which layers keep
//! their activations, which weights stay.

use model::base::Residence;
use model::device::Precision;
use model::device::cpu::best_precision;
use model::generate::Capacity;
use model::lora::Layout;
use model::memory::{MemoryRow, MemoryTable, Residents, plan_bytes};
use model::optimizer::{MomentForm, moments_bytes};
use model::step::{LayerInputs, StepPlan};
use model::{LoraOptions, ModelConfig};

use crate::base_files::{BaseFiles, Sizes};
use crate::error::{Error, Result};
use crate::evaluate::Examination;
use crate::offload::{self, Passing};
use crate::options::{Offload, Options};
use crate::record::Chosen;

/// What the plan is made for.
pub struct Shapes<'a> {
    /// The base.
    pub config: &'a ModelConfig,
    /// Of products with its weights.
    pub precision: Precision,
    /// Its weights in memory.
    pub weights: Sizes,
    /// What of them may pass through memory.
    pub offload: Offload,
    /// The adapter.
    pub lora: &'a LoraOptions,
    /// How its moments are held.
    pub moments: MomentForm,
    /// What decodes side by side in the evaluation.
    pub answers: Option<Capacity>,
    /// What decodes side by side at each evaluation, while the memory of training stays drawn.
    pub samples: Option<Capacity>,
}

impl<'a> Shapes<'a> {
    /// Those of a run, which may have chosen a precision before.
    ///
    /// # Errors
    /// A tensor that the base lacks; an offload that cannot be.
    pub fn of(
        options: &Options,
        base: &'a BaseFiles,
        lora: &'a LoraOptions,
        examination: &Examination<'_>,
        chosen: Option<Chosen>,
    ) -> Result<Self> {
        let fastest = || options.model.compute.unwrap_or_else(best_precision);
        Ok(Self {
            config: &base.config,
            precision: chosen.map_or_else(fastest, |chosen| chosen.precision),
            weights: base.weights.sizes(&base.config)?,
            offload: offload::possible(options, base)?,
            lora,
            moments: options.train.moments,
            answers: examination.capacity(),
            samples: examination.samples_capacity(),
        })
    }

    /// Training and answering take turns, so the larger of both counts; samples come in between and count beside training.
    pub(super) fn table(&self, step: &StepPlan, residence: Residence) -> Result<MemoryTable> {
        let Shapes { config, precision, moments, .. } = *self;
        let (weights_bytes, window_bytes) = self.weights.held_bytes(residence);
        let lora = Some(self.lora);
        let training = Residents {
            config,
            precision,
            weights_bytes,
            window_bytes,
            lora,
            moments,
            step: Some(step),
            answers: self.samples,
        };
        let mut table = plan_bytes(&training)?;
        let answering = plan_bytes(&Residents { step: None, answers: self.answers, ..training })?;
        let more = answering.total_bytes().saturating_sub(table.total_bytes());
        if more > 0 {
            table.rows.push(MemoryRow { name: "evaluation beyond training", bytes: more });
        }
        Ok(table)
    }

    pub(super) fn fits(&self, step: &StepPlan, residence: Residence, limit: Option<u64>) -> Result<bool> {
        Ok(match limit {
            Some(bytes) => self.table(step, residence)?.total_bytes() <= bytes,
            None => true,
        })
    }

    /// How the weights are held where they take the least.
    fn least(&self) -> Residence {
        match self.offload {
            Offload::None => Residence::All,
            Offload::Auto | Offload::Weights => Residence::Window { resident_layers: 0 },
        }
    }

    /// How the weights are held in a step: they pass where they are to, or where it does not fit otherwise.
    pub(super) fn residence(&self, step: &StepPlan, limit: Option<u64>) -> Result<Residence> {
        let stays = self.offload != Offload::Weights && self.fits(step, Residence::All, limit)?;
        Ok(if stays { Residence::All } else { self.least() })
    }

    /// As many tokens as fit, from one row to a whole micro-batch. Where not one row fits, layer inputs are kept in 16 bits;
    /// where that is not enough, weights pass, and layer inputs are whole again if there is room for them then.
    pub(super) fn largest_that_fits(
        &self,
        smallest: usize,
        whole: usize,
        limit: Option<u64>,
    ) -> Result<(StepPlan, Residence)> {
        let plan = |layer_inputs, tokens| StepPlan { layer_inputs, ..StepPlan::new(self.config, tokens) };
        let residence = self.residence(&plan(LayerInputs::BF16, smallest), limit)?;
        let one_row = plan(LayerInputs::F32, smallest);
        let layer_inputs =
            if self.fits(&one_row, residence, limit)? { LayerInputs::F32 } else { LayerInputs::BF16 };
        let plan = |tokens| plan(layer_inputs, tokens);
        if self.fits(&plan(whole), residence, limit)? {
            return Ok((plan(whole), residence));
        }
        // Bisected: the table grows with the tokens. When not even one row fits, the caller finds that out with the
        // figures for its message.
        let (mut largest, mut too_large) = (smallest, whole);
        while too_large - largest > 1 {
            let middle = largest + (too_large - largest) / 2;
            if self.fits(&plan(middle), residence, limit)? { largest = middle } else { too_large = middle }
        }
        Ok((plan(largest), residence))
    }

    /// Spends what is left of the budget on layers that need not pass, where only what must is to.
    pub(super) fn with_resident_layers(
        &self,
        step: &StepPlan,
        mut residence: Residence,
        limit: Option<u64>,
    ) -> Result<Residence> {
        if residence == Residence::All || self.offload != Offload::Auto {
            return Ok(residence);
        }
        for resident_layers in 1..=self.config.n_layers {
            let more = Residence::Window { resident_layers };
            if !self.fits(step, more, limit)? {
                break;
            }
            residence = more;
        }
        Ok(residence)
    }

    /// Spends what is left of the budget on layers that need not run again; the sums stay the same to the bit.
    pub(super) fn with_kept_layers(
        &self,
        mut step: StepPlan,
        residence: Residence,
        limit: Option<u64>,
    ) -> Result<StepPlan> {
        for kept_layers in 1..=self.config.n_layers {
            let more = StepPlan { kept_layers, ..step };
            if !self.fits(&more, residence, limit)? {
                break;
            }
            step = more;
        }
        Ok(step)
    }

    /// What a plan says of weights that pass.
    pub(super) fn passing(&self, residence: Residence) -> Option<Passing> {
        self.weights.passing(residence)
    }

    /// The error of a budget in which not one row fits, and what would.
    pub(super) fn too_small(&self, tokens: usize, have_bytes: u64, beside_bytes: u64) -> Result<Error> {
        let need = |tokens, residence| {
            let step = StepPlan { layer_inputs: LayerInputs::BF16, ..StepPlan::new(self.config, tokens) };
            Ok::<u64, Error>(self.table(&step, residence)?.total_bytes() + beside_bytes)
        };
        let least = self.least();
        let need_bytes = need(tokens, least)?;
        let mut shorter = tokens / 2;
        while shorter >= SHORTEST_ADVICE && need(shorter, least)? > have_bytes {
            shorter /= 2;
        }
        let passing = Residence::Window { resident_layers: 0 };
        let is_refused = self.offload == Offload::None && self.weights.can_pass();
        let mut ways = Vec::new();
        if is_refused && need(tokens, passing)? <= have_bytes {
            ways.push(
                "`budget.offload = \"auto\"` would fit, with weights that pass through memory".to_owned(),
            );
        }
        if shorter >= SHORTEST_ADVICE {
            ways.push(format!("rows of at most {shorter} tokens would fit: set `data.max_seq_len` to that"));
        }
        if ways.is_empty() {
            let need = need_bytes.div_ceil(1 << 20);
            ways.push(format!("set `budget.memory` to at least {need}MB more than `budget.reserve`"));
        }
        Ok(Error::BudgetTooSmall { need_bytes, have_bytes, would_fit: ways.join("; ") })
    }

    pub(super) fn trained_parameters(&self) -> u64 {
        Layout::new(self.config, self.lora).len() as u64
    }

    pub(super) fn moments_bytes(&self) -> u64 {
        moments_bytes(&Layout::new(self.config, self.lora), self.moments)
    }
}

/// No one trains on shorter rows.
const SHORTEST_ADVICE: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use model::Quant;
    use model::memory::weight_sizes;

    fn config() -> ModelConfig {
        ModelConfig {
            vocab_size: 1000,
            hidden: 256,
            intermediate: 512,
            n_layers: 24,
            n_heads: 4,
            n_kv_heads: 2,
            max_positions: 4096,
            ..ModelConfig::plain(model::Family::Llama, 64)
        }
    }

    fn shapes<'a>(config: &'a ModelConfig, lora: &'a LoraOptions, offload: Offload) -> Shapes<'a> {
        Shapes {
            config,
            precision: Precision::F32,
            weights: Sizes::Folder(weight_sizes(config, Quant::Q4KM).unwrap()),
            offload,
            lora,
            moments: MomentForm::F32,
            answers: None,
            samples: None,
        }
    }

    fn need(shapes: &Shapes<'_>, layer_inputs: LayerInputs, tokens: usize, residence: Residence) -> u64 {
        let step = StepPlan { layer_inputs, ..StepPlan::new(shapes.config, tokens) };
        shapes.table(&step, residence).unwrap().total_bytes()
    }

    #[test]
    fn layer_inputs_are_rounded_only_where_one_row_does_not_fit_otherwise() {
        let (config, lora) = (config(), LoraOptions::default());
        let shapes = shapes(&config, &lora, Offload::None);
        let need = |layer_inputs, tokens| need(&shapes, layer_inputs, tokens, Residence::All);
        let chosen = |limit| {
            let (step, residence) = shapes.largest_that_fits(512, 2048, Some(limit)).unwrap();
            assert_eq!(residence, Residence::All);
            (step.layer_inputs, step.max_tokens)
        };
        let (full, half) = (LayerInputs::F32, LayerInputs::BF16);
        assert!(need(half, 512) < need(full, 512));
        assert_eq!(chosen(need(full, 2048)), (full, 2048));
        assert_eq!(chosen(need(full, 1000)), (full, 1000));
        assert_eq!(chosen(need(full, 512)), (full, 512));
        assert_eq!(chosen(need(half, 512)), (half, 512));
        assert_eq!(chosen(need(full, 512) - 1).0, half);
    }

    #[test]
    fn weights_pass_only_where_one_row_does_not_fit_otherwise_and_no_more_than_must() {
        let (config, lora) = (config(), LoraOptions::default());
        let window = |resident_layers| Residence::Window { resident_layers };
        let (full, half) = (LayerInputs::F32, LayerInputs::BF16);
        let of = shapes(&config, &lora, Offload::Auto);
        let chosen = |shapes: &Shapes<'_>, limit| {
            let (step, residence) = shapes.largest_that_fits(512, 512, Some(limit)).unwrap();
            let residence = shapes.with_resident_layers(&step, residence, Some(limit)).unwrap();
            (shapes.fits(&step, residence, Some(limit)).unwrap(), step.layer_inputs, residence)
        };
        assert_eq!(chosen(&of, need(&of, half, 512, Residence::All)), (true, half, Residence::All));
        assert!(need(&of, half, 512, Residence::All) > need(&of, full, 512, window(4)));
        assert_eq!(chosen(&of, need(&of, full, 512, window(4))), (true, full, window(4)));
        assert_eq!(chosen(&of, need(&of, half, 512, window(0))), (true, half, window(0)));
        assert!(!chosen(&of, need(&of, half, 512, window(0)) - 1).0);

        let always = shapes(&config, &lora, Offload::Weights);
        assert_eq!(chosen(&always, u64::MAX), (true, full, window(0)));
        let never = shapes(&config, &lora, Offload::None);
        assert!(!chosen(&never, need(&of, half, 512, Residence::All) - 1).0);
        let have = need(&of, half, 512, window(0));
        let error = never.too_small(512, have, 0).unwrap();
        assert!(error.hint().unwrap().contains("`budget.offload = \"auto\"` would fit"), "{error:?}");
    }
}
