//! What a running pipeline tells: the terminal, `--json` and the web page are views of these events.

use serde::{Deserialize, Serialize};

use super::step::{ContextRule, StepKind};
use crate::engine::Finish;
use crate::memory::MemoryState;
use crate::residency::ResidencyEvent;

/// One event of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// The run begins, or goes on.
    RunStarted {
        /// The run's id, the name of its directory.
        run: String,
        /// The pipeline.
        pipeline: String,
        /// Names of the steps.
        steps: Vec<String>,
        /// Artefacts found from before.
        n_committed: usize,
    },
    /// A step begins.
    StepStarted {
        /// The step.
        step: String,
        /// What it does.
        kind: StepKind,
        /// Its experts, in the order in which it first asks them.
        experts: Vec<String>,
        /// How many items it has.
        n_items: usize,
    },
    /// The prompt of an item is being read.
    Prompt {
        /// The step.
        step: String,
        /// The item.
        item: usize,
        /// Tokens read.
        done_tokens: usize,
        /// Tokens in all.
        total_tokens: usize,
    },
    /// Text arrives.
    Text {
        /// The step.
        step: String,
        /// The item.
        item: usize,
        /// More of the answer.
        text: String,
    },
    /// An answer does not satisfy its schema and is asked for again.
    Repair {
        /// The step.
        step: String,
        /// The item.
        item: usize,
        /// Which attempt follows, from 2.
        attempt: u32,
        /// Why.
        objections: Vec<String>,
    },
    /// A prompt did not fit, and a part of it was cut or compressed.
    Cut {
        /// The step.
        step: String,
        /// The item.
        item: usize,
        /// What was done.
        cut: Cut,
    },
    /// A draft was verified.
    Verified {
        /// The step.
        step: String,
        /// The item.
        item: usize,
        /// The draft and what was said of it.
        round: Round,
    },
    /// An item is done and its artefact is on disk.
    ItemFinished(ItemResult),
    /// A step is done.
    StepFinished {
        /// The step.
        step: String,
        /// Items that were computed now.
        n_computed: usize,
        /// Items to which there are objections.
        n_objected: usize,
        /// Items it does not run for.
        n_skipped: usize,
        /// Items without a result.
        n_failed: usize,
        /// Wall time, loading excluded.
        ms: f64,
    },
    /// The run is done.
    RunFinished {
        /// The run's id.
        run: String,
        /// Wall time.
        ms: f64,
        /// Loads of an expert.
        n_loads: u64,
        /// Items to which there are objections, over all steps.
        n_objected: usize,
        /// Memory after.
        memory: MemoryState,
    },
    /// Loading and unloading.
    #[serde(untagged)]
    Residency(ResidencyEvent),
}

/// What came of an item.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// There is an output.
    #[default]
    Done,
    /// The step does not run for it: it was routed elsewhere, or what the step needs of it is not there.
    Skipped,
    /// It failed, and the step says that the run goes on then.
    Failed,
}

/// A part of a prompt that did not fit, and what was done with it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cut {
    /// The rule.
    pub rule: ContextRule,
    /// The part: `input`, `item` or a step's name.
    pub part: String,
    /// Tokens of the whole prompt before.
    pub before_tokens: usize,
    /// Tokens after.
    pub after_tokens: usize,
    /// Tokens that the context has for a prompt, beside the answer.
    pub room_tokens: usize,
    /// Bytes of the part before.
    pub before_bytes: usize,
    /// Bytes after.
    pub after_bytes: usize,
    /// The expert that compressed it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

/// A draft and what was said of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Round {
    /// Which, from 1.
    pub round: u32,
    /// Who wrote the draft.
    pub expert: String,
    /// The draft; the journal has the name of its artefact alone.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub draft: String,
    /// BLAKE3 of the artefact that holds it.
    pub artefact: String,
    /// Who judged it last: `rules`, or an expert.
    pub by: String,
    /// What is wrong with it; nothing, if it passed.
    pub objections: Vec<String>,
}

/// One item of one step, as the journal keeps it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ItemResult {
    /// The step.
    pub step: String,
    /// The item.
    pub item: usize,
    /// What the step does.
    pub kind: StepKind,
    /// What came of it.
    pub state: State,
    /// What the step gave.
    pub output: String,
    /// BLAKE3 of the artefact that holds it.
    pub artefact: String,
    /// The expert that gave it.
    pub expert: Option<String>,
    /// Why generation ended; absent where nothing was generated.
    pub finish: Option<Finish>,
    /// How often it was asked.
    pub attempts: u32,
    /// What a check or a verifier objects to.
    pub objections: Vec<String>,
    /// Why it was skipped, or failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// What of the prompt was cut.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cut: Option<Cut>,
    /// The drafts of a step that is verified.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub rounds: Vec<Round>,
    /// Where the passages of a search stand.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<String>,
    /// Tokens of the prompts.
    pub prompt_tokens: usize,
    /// Tokens generated.
    pub output_tokens: usize,
    /// Time to read the prompts.
    pub prompt_ms: f64,
    /// Time to generate.
    pub decode_ms: f64,
    /// Whether it was found from an earlier run rather than computed.
    pub resumed: bool,
}
