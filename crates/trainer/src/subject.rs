//! What is asked questions: a base, and perhaps an adapter over it, opened from their files and brought into memory.

use std::path::Path;
use std::sync::Arc;

use formats::adapter::{AdapterTensor, Provenance, read_adapter};
use formats::observe::Observer;
use model::arena::Arena;
use model::base::Residence;
use model::device::Precision;
use model::device::cpu::best_precision;
use model::generate::Capacity;
use model::memory::{MemoryRow, Residents, plan_bytes};
use model::{Adapter, Base, Cpu, LoraOptions, ModelConfig};
use serde::Serialize;
use text::{ChatTemplate, Tokenizer};

use crate::adapter_files::{lora_of_files, lora_options};
use crate::base_cache::BaseCache;
use crate::base_files::BaseFiles;
use crate::beginning::Beginning;
use crate::error::{Error, Result};
use crate::event::{Event, Weights};
use crate::memory_use::Growth;
use crate::offload;
use crate::options::{Offload, Options};
use crate::record::{Inputs, RunRecord};
use crate::run_dir::RunDir;

/// A base and an adapter on disk, found to belong together.
pub struct Subject {
    pub(crate) options: Options,
    pub(crate) files: BaseFiles,
    trained: Option<Trained>,
    precision: Precision,
    growth: Growth,
}

/// An adapter's numbers.
struct Trained {
    lora: LoraOptions,
    tensors: Vec<AdapterTensor>,
    /// What the base is held without, and A and B that make it itself again, where the run began so.
    beginning: Option<Beginning>,
}

/// The memory that a subject will take, line by line.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Room {
    /// What takes memory, and bytes.
    pub rows: Vec<(String, u64)>,
    /// Sum of the rows; caps the device's allocator.
    pub total_bytes: u64,
    /// Bytes that may be used, where there is a limit.
    pub budget_bytes: Option<u64>,
    /// Sequences that decode side by side.
    pub n_sequences: usize,
    /// Tokens of each.
    pub n_tokens: usize,
}

impl Subject {
    /// Opens a base and an adapter over it; of the options model, budget, cache and data count.
    ///
    /// An adapter of a run whose beginning was taken from the weights is used as it was trained: over the base less that.
    ///
    /// # Errors
    /// Whatever is wrong with the files; [`Error::OtherBase`] for an adapter that was trained on another one.
    pub fn open(options: &Options, adapter: Option<&Path>) -> Result<Self> {
        let growth = Growth::start();
        let files = BaseFiles::open(&options.model, &options.data)?;
        // Without a run its folder would be the one that the program is started in.
        let record = match options.run_dir.as_os_str().is_empty() {
            true => None,
            false => RunRecord::read(&RunDir::new(&options.run_dir))?,
        };
        let trained = match adapter {
            Some(dir) => Some(Trained::read(dir, options, &files)?),
            None => None,
        };
        let chosen = record.map(|record| record.chosen.precision);
        let precision = options.model.compute.or(chosen).unwrap_or_else(best_precision);
        Ok(Self { options: options.clone(), files, trained, precision, growth })
    }

    /// Text to tokens.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.files.tokenizer
    }

    /// Conversations to text, where the base has a template.
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.files.template.as_ref()
    }

    /// All tokens at which an answer ends.
    pub fn stop(&self) -> &[u32] {
        &self.files.stop
    }

    /// Most tokens of prompt and answer that the base handles.
    pub fn max_positions(&self) -> usize {
        self.files.config.max_positions
    }

    /// Whether there is an adapter.
    pub fn has_adapter(&self) -> bool {
        self.trained.is_some()
    }

    /// Bytes that may be used, where there is a limit.
    pub fn budget_bytes(&self) -> Option<u64> {
        let budget = self.options.budget;
        budget.memory_bytes.map(|bytes| bytes.saturating_sub(budget.reserve_bytes))
    }

    /// Memory of base, adapter and a generator of some capacity.
    ///
    /// # Errors
    /// A tensor that is missing.
    pub fn room(&self, capacity: Capacity) -> Result<Room> {
        Ok(self.held(capacity)?.0)
    }

    /// The room, and which weights stay in it: all, unless it does not fit and they may pass.
    fn held(&self, capacity: Capacity) -> Result<(Room, Residence)> {
        let wish = offload::possible(&self.options, &self.files)?;
        let mut found = (self.room_with(capacity, Residence::All)?, Residence::All);
        if wish == Offload::None || wish == Offload::Auto && found.0.fits() {
            return Ok(found);
        }
        for resident_layers in 0..self.files.config.n_layers {
            let residence = Residence::Window { resident_layers };
            let room = self.room_with(capacity, residence)?;
            if resident_layers > 0 && !room.fits() {
                break;
            }
            found = (room, residence);
            if wish == Offload::Weights {
                break;
            }
        }
        Ok(found)
    }

    fn room_with(&self, capacity: Capacity, residence: Residence) -> Result<Room> {
        let config = &self.files.config;
        let (weights_bytes, window_bytes) = self.files.weights.sizes(config)?.held_bytes(residence);
        let mut table = plan_bytes(&Residents {
            config,
            precision: self.precision,
            weights_bytes,
            window_bytes,
            lora: self.trained.as_ref().map(|trained| &trained.lora),
            moments: self.options.train.moments,
            step: None,
            answers: Some(capacity),
        })?;
        if self.trained.as_ref().is_some_and(|trained| trained.beginning.is_some()) {
            table
                .rows
                .push(MemoryRow { name: "what the adapter began with", bytes: table.bytes_of("adapter") });
        }
        let beside = self.growth.sample().unwrap_or(0);
        let rows = table.rows.iter().map(|row| (row.name.to_owned(), row.bytes));
        Ok(Room {
            rows: rows.chain([("tokenizer, files, program".to_owned(), beside)]).collect(),
            total_bytes: table.total_bytes() + beside,
            budget_bytes: self.budget_bytes(),
            n_sequences: capacity.n_sequences,
            n_tokens: capacity.n_tokens,
        })
    }

    /// Brings base and adapter into memory, which is capped by what [`Subject::room`] says of this capacity.
    ///
    /// # Errors
    /// [`Error::BudgetTooSmall`]; what the device and reading meet.
    pub fn load(&self, capacity: Capacity, observer: &mut dyn Observer<Event>) -> Result<Loaded> {
        let (room, residence) = self.held(capacity)?;
        room.check()?;
        let beside = room.rows.last().map_or(0, |(_, bytes)| *bytes);
        let device = Cpu::with_precision(Arena::new(room.total_bytes - beside), self.precision)?;
        let (files, config) = (&self.files, &self.files.config);
        let cache = (&BaseCache::new(&self.options.cache), &self.growth);
        let trained = self.trained.as_ref();
        let beginning = trained.and_then(|trained| Some((trained.beginning.as_ref()?, &trained.lora)));
        let base = files.weights.load(&device, (config, residence), cache, beginning, observer)?;
        let adapter = match trained {
            Some(trained) => Some(trained.adapter(&device, config)?),
            None => None,
        };
        let start = match beginning {
            Some((beginning, lora)) => {
                let mut start = Adapter::zeros(&device, config, lora)?;
                beginning.set(&mut start, config)?;
                Some(start)
            }
            None => None,
        };
        Ok(Loaded { base: Arc::new(base), adapter, start })
    }
}

impl Room {
    /// Whether it is within the budget.
    pub fn fits(&self) -> bool {
        self.budget_bytes.is_none_or(|bytes| self.total_bytes <= bytes)
    }

    /// # Errors
    /// [`Error::BudgetTooSmall`].
    pub(crate) fn check(&self) -> Result<()> {
        if self.fits() {
            return Ok(());
        }
        let (need_bytes, have_bytes) = (self.total_bytes, self.budget_bytes.unwrap_or(0));
        let would_fit = format!("raise the budget, or ask for less than {} tokens of context", self.n_tokens);
        Err(Error::BudgetTooSmall { need_bytes, have_bytes, would_fit })
    }
}

impl Trained {
    fn read(dir: &Path, options: &Options, base: &BaseFiles) -> Result<Self> {
        let files = read_adapter(dir)?;
        if let Some(recorded) = &files.tune {
            check_base(dir, recorded, options, base)?;
        }
        let config = &base.config;
        let run_dir = RunDir::new(&options.run_dir);
        let is_of_run = dir == run_dir.adapter() && run_dir.init().is_dir();
        if is_of_run && options.adapter.method().is_some() {
            let beginning = Beginning::read(&run_dir)?;
            let lora = lora_options(&options.adapter, config)?;
            let tensors = files.tensors.iter().map(Beginning::as_trained).collect();
            return Ok(Self { lora, tensors, beginning: Some(beginning) });
        }
        let (lora, tensors) = lora_of_files(dir, files, config)?;
        Ok(Self { lora, tensors, beginning: None })
    }

    fn adapter(&self, device: &Cpu, config: &ModelConfig) -> Result<Adapter<Cpu>> {
        let mut adapter = Adapter::zeros(device, config, &self.lora)?;
        adapter.set_tensors(config, &self.tensors)?;
        Ok(adapter)
    }
}

/// An adapter over another base of the same shape would answer without complaint, and nonsense.
fn check_base(dir: &Path, recorded: &Provenance, options: &Options, base: &BaseFiles) -> Result<()> {
    let mut index = BaseCache::new(&options.cache).hash_index();
    let found: Inputs = base.hashes(index.as_mut())?;
    // An index that cannot be written costs the next start some seconds, no more.
    let _ = index.map(|mut index| index.save());
    let extra = |key: &str| recorded.extra.get(key).and_then(|hash| hash.as_str()).unwrap_or_default();
    let parts = [
        ("weights", recorded.base_blake3.as_str(), &found.base),
        ("configuration", extra("base_config_blake3"), &found.base_config),
        ("tokenizer", extra("tokenizer_blake3"), &found.tokenizer),
        ("chat template", &recorded.template_blake3, &found.template),
    ];
    match parts.into_iter().find(|(_, was, is)| !was.is_empty() && was != is) {
        Some((what, ..)) => Err(Error::OtherBase { adapter: dir.to_owned(), base: base.path.clone(), what }),
        None => Ok(()),
    }
}

/// A base and an adapter in memory.
pub struct Loaded {
    /// The frozen base.
    pub base: Arc<Base<Cpu>>,
    adapter: Option<Adapter<Cpu>>,
    /// Base and this together are the published base, where the adapter's beginning was taken from the weights.
    start: Option<Adapter<Cpu>>,
}

impl Loaded {
    /// What stands beside the base when these weights answer.
    pub fn adapter(&self, weights: Weights) -> Option<&Adapter<Cpu>> {
        match weights {
            Weights::Base => self.start.as_ref(),
            Weights::Adapter => self.adapter.as_ref(),
        }
    }

    /// The adapter's shape.
    pub fn lora(&self) -> Option<&LoraOptions> {
        self.adapter.as_ref().map(Adapter::options)
    }
}
