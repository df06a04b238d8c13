//! What a run would be, without running it: how long its rows are for a base, and its plan.

use model::device::cpu::best_precision;

use crate::adapter_files::lora_options;
use crate::base_files::BaseFiles;
use crate::beginning;
use crate::data::corpus::Corpus;
use crate::data::dataset::Dataset;
use crate::data::encoder::RowEncoder;
use crate::error::Result;
use crate::event::{DataSummary, PlanTable};
use crate::memory_use::Growth;
use crate::options::{DataOptions, Options};
use crate::plan::{Plan, Shapes};
use crate::train::examination;

/// Rows as a base's tokenizer and template see them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lengths {
    /// Tokens of each row, ascending.
    pub tokens: Vec<usize>,
    /// Most tokens that the base handles.
    pub max_positions: usize,
    /// Bytes of the base's weights as the run would hold them.
    pub weights_bytes: u64,
}

/// Encodes all training rows at whatever length they have.
///
/// # Errors
/// What is wrong with base or rows.
pub fn lengths(options: &Options) -> Result<Lengths> {
    let base = BaseFiles::open(&options.model, &options.data)?;
    let unlimited = DataOptions { max_seq_len: usize::MAX, ..options.data.clone() };
    let encoder = RowEncoder::new(&base.tokenizer, base.template.as_ref(), &unlimited);
    let corpus = Corpus::read(&unlimited.train, &encoder, base.end_of_turn)?;
    let mut tokens: Vec<usize> = (0..corpus.n_rows()).map(|row| corpus.ids(row).len()).collect();
    tokens.sort_unstable();
    let weights_bytes = base.weights.bytes(&base.config)?;
    Ok(Lengths { tokens, max_positions: base.config.max_positions, weights_bytes })
}

/// Reads and plans as [`crate::train()`] does before it allocates or writes anything.
///
/// # Errors
/// As [`crate::train()`] until then.
pub fn survey(options: &Options) -> Result<(DataSummary, PlanTable)> {
    let growth = Growth::start();
    options.validate()?;
    let base = BaseFiles::open(&options.model, &options.data)?;
    let lora = lora_options(&options.adapter, &base.config)?;
    beginning::check(options, &base)?;
    let dataset = Dataset::read(options, &base)?;
    let examination = examination(options, &base, &dataset, &growth);
    let shapes = Shapes {
        config: &base.config,
        precision: options.model.compute.unwrap_or_else(best_precision),
        weights_bytes: base.weights.bytes(&base.config)?,
        lora: &lora,
        moments: options.train.moments,
        answers: examination.capacity(),
        samples: examination.samples_capacity(),
    };
    let plan = Plan::new(options, &shapes, &dataset, &growth, None)?;
    Ok((dataset.summary(), plan.table))
}
