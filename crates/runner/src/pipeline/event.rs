//! What a running pipeline tells: the terminal, `--json` and the web page are views of these events.

use serde::{Deserialize, Serialize};

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
        /// Its expert, if it has one.
        expert: Option<String>,
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
    /// An item is done and its artefact is on disk.
    ItemFinished(ItemResult),
    /// A step is done.
    StepFinished {
        /// The step.
        step: String,
        /// Items that were computed now.
        n_computed: usize,
        /// Items a check objected to.
        n_objected: usize,
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
        /// Items a check objected to, over all steps.
        n_objected: usize,
        /// Memory after.
        memory: MemoryState,
    },
    /// Loading and unloading.
    #[serde(untagged)]
    Residency(ResidencyEvent),
}

/// One item of one step, as the journal keeps it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct ItemResult {
    /// The step.
    pub step: String,
    /// The item.
    pub item: usize,
    /// What the step gave.
    pub output: String,
    /// BLAKE3 of the artefact that holds it.
    pub artefact: String,
    /// Why generation ended; absent for a check.
    pub finish: Option<Finish>,
    /// How often it was asked.
    pub attempts: u32,
    /// What a check objects to.
    pub objections: Vec<String>,
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated.
    pub output_tokens: usize,
    /// Time to read the prompt.
    pub prompt_ms: f64,
    /// Time to generate.
    pub decode_ms: f64,
    /// Whether it was found from an earlier run rather than computed.
    pub resumed: bool,
}
