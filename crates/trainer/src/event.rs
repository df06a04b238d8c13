//! What a run reports while it goes: one stream, of which terminal, JSON, report and web page are views.

use std::path::PathBuf;

use formats::observe::Observer;
use model::device::Precision;
use model::step::LayerInputs;
use serde::{Deserialize, Serialize};

use crate::offload::Passing;
use crate::options::{Init, ResultAdapter};

/// One thing that happened in a run.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// All data is read, tokenised and split.
    Data(DataSummary),
    /// The plan, before anything of it is allocated.
    Plan(PlanTable),
    /// The base is being loaded.
    Loading {
        /// Tensors that are loaded.
        done: usize,
        /// Tensors in all.
        total: usize,
    },
    /// The base was quantised and kept for the next start.
    BaseKept {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// The base was kept by an earlier start and is mapped.
    BaseMapped {
        /// The file.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// A and B are being taken from the weights.
    Decomposing {
        /// Linear layers that are done.
        done: usize,
        /// Linear layers in all.
        total: usize,
    },
    /// A and B were taken from the weights.
    Decomposed {
        /// By which method.
        init: Init,
        /// What quantising alone loses of the adapted weights: |W - q(W)| / |W|, Frobenius norms.
        lost_before: f64,
        /// What base and adapter together lack of them now.
        lost_after: f64,
    },
    /// Answers of preferences are being judged by the base, once a run.
    Reference {
        /// Pairs that are done.
        done: usize,
        /// Pairs in all.
        total: usize,
    },
    /// A checkpoint was found and is continued.
    Resumed {
        /// Its step.
        step: u64,
        /// Steps in all.
        total_steps: u64,
    },
    /// A checkpoint is damaged and was passed over.
    CheckpointDamaged {
        /// Its folder.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The run had ended before; nothing was done.
    AlreadyFinished(Outcome),
    /// One optimiser step is done.
    Step(StepReport),
    /// The step's loss or gradient was not finite; the adapter was left as it was.
    StepSkipped {
        /// The step.
        step: u64,
        /// How many were skipped so far.
        count: u32,
        /// What was not finite.
        what: String,
    },
    /// The step's loss or gradient was far beyond what was usual; the adapter was left as it was.
    SpikeSkipped {
        /// The step.
        step: u64,
        /// How many were skipped so far.
        count: u32,
        /// What was too large.
        what: String,
        /// Its value.
        value: f64,
        /// The median of the steps before.
        median: f64,
    },
    /// The validation loss has not fallen for so long that the run is over.
    StoppedEarly {
        /// Steps done.
        step: u64,
        /// Steps that the run would have had.
        total_steps: u64,
        /// Measurements since the lowest.
        evaluations: u64,
    },
    /// The validation loss was measured.
    Validation {
        /// Steps done before it; 0 is the base.
        step: u64,
        /// Mean negative log-likelihood of a target token, or of preferences the loss that is trained on.
        loss: f64,
        /// Lower than that of any adapter before in this run.
        is_best: bool,
        /// Of preferences.
        #[serde(skip_serializing_if = "Option::is_none")]
        preference: Option<PreferenceFigures>,
    },
    /// Exact match is being measured.
    Answering {
        /// Which weights answer.
        weights: Weights,
        /// Rows answered.
        done: usize,
        /// Rows in all.
        total: usize,
    },
    /// Exact match was measured.
    ExactMatch(ExactMatch),
    /// One held-out row and an answer to it.
    Sample {
        /// Steps done before it.
        step: u64,
        /// Which weights answered.
        weights: Weights,
        /// The last message before the answer.
        prompt: String,
        /// The reference.
        expected: String,
        /// The answer.
        answer: String,
    },
    /// A checkpoint is complete on disk.
    Checkpoint {
        /// Its step.
        step: u64,
        /// Its folder.
        path: PathBuf,
        /// Its size.
        bytes: u64,
    },
    /// The report of the run, as it stands when the run ends or stops.
    Report {
        /// The page.
        path: PathBuf,
    },
    /// Something that the user should know and that does not stop the run.
    Warning {
        /// One sentence.
        message: String,
    },
    /// The run is over.
    Finished(Outcome),
}

/// What became of the rows.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct DataSummary {
    /// Rows that are trained on.
    pub train_rows: usize,
    /// Rows of the validation loss.
    pub validation_rows: usize,
    /// Rows of exact match.
    pub test_rows: usize,
    /// Rows left out for their length.
    pub dropped_rows: usize,
    /// Rows cut for their length.
    pub truncated_rows: usize,
    /// Rows left out because something was wrong with them.
    #[serde(default)]
    pub bad_rows: u64,
    /// What is wrong with the first of them.
    #[serde(default)]
    pub named_bad_rows: Vec<String>,
    /// Rows that say what a row before them says.
    #[serde(default)]
    pub duplicate_rows: usize,
    /// Tokens of the training rows.
    pub train_tokens: u64,
    /// Tokens among these that are learned.
    pub target_tokens: u64,
    /// Longest row in tokens.
    pub longest_row_tokens: usize,
}

/// The memory that a run will use, line by line.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PlanTable {
    /// What takes memory, and bytes.
    pub rows: Vec<(String, u64)>,
    /// Sum of the rows; caps the device's allocator.
    pub total_bytes: u64,
    /// Bytes that may be used, where the recipe says.
    pub budget_bytes: Option<u64>,
    /// Tokens in the largest micro-batch.
    pub micro_batch_tokens: usize,
    /// Rows, or packs or pairs of them, in an optimiser step.
    pub rows_per_step: usize,
    /// What a step counts.
    #[serde(default)]
    pub unit: Unit,
    /// Optimiser steps in an epoch.
    pub steps_per_epoch: u64,
    /// Optimiser steps in all.
    pub total_steps: u64,
    /// How the input of each layer is kept: in 16 bits where not even one row fits otherwise.
    pub layer_inputs: LayerInputs,
    /// Precision of products with the base's weights.
    pub precision: Precision,
    /// Layers that keep their activations instead of running again in the backward pass.
    pub kept_layers: usize,
    /// Weights that pass through memory, where not all stay.
    #[serde(default)]
    pub passing: Option<Passing>,
    /// Numbers that are trained.
    pub trained_parameters: u64,
    /// Disk that checkpoints and adapter will take.
    pub disk_bytes: u64,
}

/// What the steps of a run count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Rows of the data.
    #[default]
    Rows,
    /// Rows that were put together.
    Packs,
    /// A better and a worse answer.
    Pairs,
}

impl std::fmt::Display for Unit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Rows => "rows",
            Self::Packs => "packs",
            Self::Pairs => "pairs",
        })
    }
}

/// Figures of one optimiser step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// The step, from 1.
    pub step: u64,
    /// Steps in all.
    pub total_steps: u64,
    /// The pass over the data that the step belongs to, from 0, with its fraction.
    pub epoch: f64,
    /// Mean negative log-likelihood of a target token in this step, or of preferences the loss that is trained on.
    pub loss: f64,
    /// Of preferences.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preference: Option<PreferenceFigures>,
    /// The newest validation loss.
    pub validation_loss: Option<f64>,
    /// Learning rate of this step.
    pub learning_rate: f64,
    /// Norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Tokens of this step.
    pub tokens: u64,
    /// Tokens among these that were learned.
    pub target_tokens: u64,
    /// Tokens a second, over the last few steps.
    pub tokens_per_second: f64,
    /// Highest memory of the process since the run began, less what it had before, and with what is resident of a
    /// mapped base; `None` where the system does not tell.
    pub memory_bytes: Option<u64>,
    /// Memory by the plan.
    pub planned_bytes: u64,
    /// Seconds until the last step.
    pub eta_seconds: f64,
}

/// How far an adapter prefers the better answers: means over pairs. A reward is what [`model::preference`] says.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PreferenceFigures {
    /// Share of the pairs whose better answer has the higher reward, 0 to 1.
    pub accuracy: f64,
    /// Reward of the better answer less that of the worse.
    pub margin: f64,
    /// Reward of the better answer.
    pub rewards_chosen: f64,
    /// Reward of the worse answer.
    pub rewards_rejected: f64,
    /// Log-likelihood of the better answer: of all its tokens in DPO, of one in ORPO.
    pub logps_chosen: f64,
    /// Log-likelihood of the worse answer.
    pub logps_rejected: f64,
    /// Mean negative log-likelihood of a token of the better answers.
    pub nll: f64,
}

/// Which weights answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weights {
    /// The base, the adapter switched off.
    Base,
    /// Base and adapter.
    Adapter,
}

/// One held-out row and an answer to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Which weights answered.
    pub weights: Weights,
    /// The last message before the answer.
    pub prompt: String,
    /// The reference.
    pub expected: String,
    /// The answer.
    pub answer: String,
}

impl Sample {
    /// Whether the answer is the reference, but for white space around them.
    pub fn is_match(&self) -> bool {
        self.answer.trim() == self.expected.trim()
    }

    /// What an event tells, if it tells of an answer.
    fn of(event: &Event) -> Option<Self> {
        let Event::Sample { weights, prompt, expected, answer, .. } = event else { return None };
        let (prompt, expected, answer) = (prompt.clone(), expected.clone(), answer.clone());
        Some(Self { weights: *weights, prompt, expected, answer })
    }
}

/// Passes events on and keeps the answers among them.
pub(crate) fn keeping_samples<'a>(
    samples: &'a mut Vec<Sample>,
    observer: &'a mut dyn Observer<Event>,
) -> impl FnMut(Event) + use<'a> {
    move |event| {
        samples.extend(Sample::of(&event));
        observer.observe(event);
    }
}

/// Greedy answers compared with the references.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ExactMatch {
    /// Which weights answered.
    pub weights: Weights,
    /// Answers equal to the reference but for white space around them.
    pub matched: usize,
    /// Rows asked.
    pub rows: usize,
    /// Time taken.
    pub seconds: f64,
}

impl ExactMatch {
    /// Share of the rows that matched, 0 to 1.
    pub fn share(&self) -> f64 {
        self.matched as f64 / self.rows.max(1) as f64
    }
}

/// Why a finished run is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// All steps are done.
    AllSteps,
    /// The validation loss had not fallen for as many measurements as the recipe says.
    EarlyStopping,
}

/// How a run ended, and its figures; also the body of `run.json`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Outcome {
    /// All steps are done and the adapter is written; otherwise the run was interrupted and can be resumed.
    pub is_finished: bool,
    /// Steps done.
    pub steps: u64,
    /// Steps in all.
    pub total_steps: u64,
    /// The adapter's folder, when finished.
    pub adapter_dir: Option<PathBuf>,
    /// Size of the adapter's folder.
    pub adapter_bytes: u64,
    /// Loss of the last step.
    pub train_loss: Option<f64>,
    /// Validation loss of the base.
    pub base_validation_loss: Option<f64>,
    /// Validation loss of the result, or of the last adapter while there is none.
    pub validation_loss: Option<f64>,
    /// Lowest validation loss of an adapter, and its step.
    pub best_validation_loss: Option<(f64, u64)>,
    /// Why the run is over, when finished.
    pub end: Option<End>,
    /// Which adapter is the result, when finished.
    pub result: Option<ResultAdapter>,
    /// The step that the result is of, when finished.
    pub result_step: Option<u64>,
    /// Exact match of the base.
    pub base_exact_match: Option<ExactMatch>,
    /// Exact match with the adapter at the end.
    pub adapter_exact_match: Option<ExactMatch>,
    /// Steps skipped because something was not finite.
    pub skipped_steps: u32,
    /// Steps skipped because loss or gradient was far beyond what was usual.
    pub skipped_spikes: u32,
    /// Seconds spent in all sittings of the run.
    pub seconds: f64,
    /// Memory by the plan.
    pub planned_bytes: u64,
    /// Highest memory that was measured.
    pub memory_bytes: Option<u64>,
    /// Most bytes of dense copies of base weights that were alive at once.
    pub dense_peak_bytes: u64,
    /// Bytes of dense copies of base weights that were alive after the last step: none may outlive its use.
    pub dense_live_bytes: u64,
}
