//! What a run would be, without running it: how long its rows are for a base, and its plan.

use std::path::PathBuf;

use formats::observe::Observer;
use model::LoraOptions;
use serde::Serialize;

use crate::adapter_files::lora_options;
use crate::base_files::BaseFiles;
use crate::beginning;
use crate::data::batches::Batches;
use crate::data::corpus::Corpus;
use crate::data::dataset::Dataset;
use crate::data::encoder::RowEncoder;
use crate::data::rows::RowsWriter;
use crate::error::Result;
use crate::event::{DataSummary, Event, PlanTable};
use crate::memory_use::Growth;
use crate::options::{DataOptions, Options};
use crate::plan::{Plan, Shapes};
use crate::probe::{Estimate, Probe};
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
    let corpus = Corpus::read(&unlimited.train, &encoder, base.end_of_turn, RowsWriter::new(None)?)?;
    let mut tokens: Vec<usize> = (0..corpus.n_rows()).map(|row| corpus.ids(row).len()).collect();
    tokens.sort_unstable();
    let weights_bytes = base.weights.sizes(&base.config)?.total_bytes();
    Ok(Lengths { tokens, max_positions: base.config.max_positions, weights_bytes })
}

/// Reads and plans as [`crate::train()`] does before it allocates or writes anything.
///
/// # Errors
/// As [`crate::train()`] until then.
pub fn survey(options: &Options) -> Result<(DataSummary, PlanTable)> {
    let survey = Survey::open(options)?;
    Ok((survey.summary(), survey.plan()?))
}

/// Base and rows of a run that is not begun.
pub struct Survey<'a> {
    options: &'a Options,
    base: BaseFiles,
    dataset: Dataset,
    growth: Growth,
}

/// How long the examples that are trained on are, and how they are put together.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Statistics {
    /// Tokens of each training sequence, ascending.
    pub tokens: Vec<usize>,
    /// How full packs are, 0 to 1; `None` where rows are not put together.
    pub fill: Option<f64>,
}

/// One row as it is trained on.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Example {
    /// The file.
    pub path: PathBuf,
    /// The line that it begins at, from 1.
    pub line: u64,
    /// One sequence, or of preferences the better answer and the worse.
    pub sequences: Vec<Sequence>,
}

/// Tokens as the model is given them.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Sequence {
    /// All tokens up to the last that is learned.
    pub n_tokens: usize,
    /// Those that are learned.
    pub n_targets: usize,
    /// Stretches of which all tokens are learned alike, in order.
    pub pieces: Vec<Piece>,
}

/// Neighbouring tokens that are learned alike.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Piece {
    /// Their ids.
    pub ids: Vec<u32>,
    /// Their text, control tokens in full.
    pub text: String,
    /// How much they count; 0 for what is only given.
    pub weight: f32,
}

impl<'a> Survey<'a> {
    /// Opens the base and reads all rows.
    ///
    /// # Errors
    /// As [`crate::train()`] until there.
    pub fn open(options: &'a Options) -> Result<Self> {
        let growth = Growth::start();
        options.validate()?;
        let base = BaseFiles::open(&options.model, &options.data)?;
        beginning::check(options, &base)?;
        let dataset = Dataset::read(options, &base)?;
        Ok(Self { options, base, dataset, growth })
    }

    /// Figures of the data.
    pub fn summary(&self) -> DataSummary {
        self.dataset.summary()
    }

    /// The plan.
    ///
    /// # Errors
    /// [`crate::Error::BudgetTooSmall`], adapters that cannot be.
    pub fn plan(&self) -> Result<PlanTable> {
        Ok(self.planned(&self.lora()?)?.table)
    }

    /// How long the run will take, from some seconds of it.
    ///
    /// # Errors
    /// As [`Survey::plan`]; what loading the base and its step meet.
    pub fn probe(&self, observer: &mut dyn Observer<Event>) -> Result<Estimate> {
        let lora = self.lora()?;
        let plan = self.planned(&lora)?;
        let Self { options, base, dataset, growth } = self;
        Probe { options, base_files: base, dataset, plan: &plan, lora: &lora, growth }.run(observer)
    }

    fn lora(&self) -> Result<LoraOptions> {
        lora_options(&self.options.adapter, &self.base.config)
    }

    fn planned(&self, lora: &LoraOptions) -> Result<Plan> {
        let (options, base, dataset) = (self.options, &self.base, &self.dataset);
        let examination = examination(options, base, dataset, &self.growth);
        let shapes = Shapes::of(options, base, lora, &examination, None)?;
        Plan::new(options, &shapes, dataset, &self.growth, None)
    }

    /// Lengths of the training rows.
    pub fn statistics(&self) -> Statistics {
        let (corpus, examples) = (&self.dataset.corpus, &self.dataset.train_rows);
        let rows = corpus.rows_of(examples).into_iter();
        let mut tokens: Vec<usize> = rows.map(|row| corpus.ids(row).len()).collect();
        tokens.sort_unstable();
        Statistics { tokens, fill: Batches::new(corpus, examples, self.options).fill() }
    }

    /// The first examples that are trained on, in the order of the files.
    pub fn first(&self, n_examples: usize) -> Vec<Example> {
        self.dataset.train_rows.iter().take(n_examples).map(|&example| self.example(example)).collect()
    }

    /// The example at a line of a data file, if there is one that is kept.
    pub fn at(&self, line: u64) -> Option<Example> {
        let corpus = &self.dataset.corpus;
        (0..corpus.n_examples())
            .find(|&example| corpus.place(example).1 == line)
            .map(|example| self.example(example))
    }

    fn example(&self, example: usize) -> Example {
        let corpus = &self.dataset.corpus;
        let (source, line) = corpus.place(example);
        let sequences = corpus.rows_of(&[example]).into_iter().map(|row| self.sequence(row)).collect();
        Example { path: source.path.clone(), line, sequences }
    }

    fn sequence(&self, row: usize) -> Sequence {
        let corpus = &self.dataset.corpus;
        let (ids, is_target, weights) = (corpus.ids(row), corpus.is_target(row), corpus.weights(row));
        let weight = |at: usize| match (is_target[at], weights) {
            (false, _) => 0.0,
            (true, None) => 1.0,
            (true, Some(weights)) => weights[at],
        };
        let mut pieces: Vec<Piece> = Vec::new();
        for (at, &id) in ids.iter().enumerate() {
            match pieces.last_mut().filter(|piece| piece.weight == weight(at)) {
                Some(piece) => piece.ids.push(id),
                None => pieces.push(Piece { ids: vec![id], text: String::new(), weight: weight(at) }),
            }
        }
        for piece in &mut pieces {
            piece.text = self.base.tokenizer.decode_with_special(&piece.ids);
        }
        Sequence { n_tokens: ids.len(), n_targets: corpus.n_targets(row), pieces }
    }

    /// A token's text.
    pub fn token(&self, id: u32) -> String {
        self.base.tokenizer.decode_with_special(&[id])
    }
}
