//! Where A and B begin when a method takes them from the weights; kept in the run's folder for every later start.
//!
//! The base is then held as q(W - shift) ([`model::lora::init`]), and what was learnt is s·(B·A - B₀·A₀): a plain LoRA
//! of twice the rank on the published weights, which is what a run results in. Source: Meng et al. 2024,
//! arXiv:2404.02948, appendix C.

use std::collections::HashMap;
use std::path::PathBuf;

use formats::adapter::{AdapterFiles, AdapterTensor, read_adapter_as_trained, write_adapter};
use formats::observe::Observer;
use model::base::LoadEvent;
use model::lora::init::{self, Shifted};
use model::{Adapter, Device, LoraOptions, ModelConfig, Quant};
use serde_json::{Map, Value};

use crate::adapter_files::adapter_config;
use crate::base_files::{BaseFiles, BaseWeights};
use crate::error::{Error, Result};
use crate::event::Event;
use crate::options::{Init, Options};
use crate::run_dir::RunDir;
use crate::session::Begin;

/// A and B at step 0, and the product that the base is held without.
pub struct Beginning {
    factors: Vec<AdapterTensor>,
    shift: Vec<AdapterTensor>,
}

/// Refuses a method that the base gives no hold.
///
/// # Errors
/// [`Error::Option`] names the reason.
pub fn check(options: &Options, base_files: &BaseFiles) -> Result<()> {
    let refuse = |reason: &str| Err(Error::Option { key: "adapter.init", reason: reason.into() });
    match &base_files.weights {
        _ if options.adapter.init == Init::Default => Ok(()),
        BaseWeights::Gguf(_) => refuse(
            "takes weights apart before they are quantised, and a GGUF has only its blocks: use \"default\", or a \
             folder as base",
        ),
        BaseWeights::Folder { quant: Quant::F32 | Quant::F16 | Quant::BF16, .. }
            if options.adapter.init == Init::LoftQ =>
        {
            refuse("makes up for what quantising loses, and `model.quant` loses nothing: use \"default\"")
        }
        BaseWeights::Folder { .. } => Ok(()),
    }
}

/// The beginning of a run: worked out and kept, or as it was kept when the run goes on; `None` for A at random.
///
/// # Errors
/// What reading, quantising and writing meet.
pub fn prepare(
    options: &Options,
    base_files: &BaseFiles,
    lora: &LoraOptions,
    run_dir: &RunDir,
    begin: &Begin,
    observer: &mut dyn Observer<Event>,
) -> Result<Option<Beginning>> {
    let (Some(method), BaseWeights::Folder { checkpoint, quant }) =
        (options.adapter.method(), &base_files.weights)
    else {
        return Ok(None);
    };
    if let Begin::Resumed(_) = begin {
        return Ok(Some(Beginning::read(run_dir)?));
    }
    let [factors_dir, shift_dir] = dirs(run_dir);
    let config = &base_files.config;
    let mut on_layer = |event: LoadEvent| {
        if let LoadEvent::Tensor { n_done: done, n_tensors: total, .. } = event {
            observer.observe(Event::Decomposing { done, total });
        }
    };
    let seed = options.train.seed;
    let found = init::decompose(method, config, checkpoint, *quant, lora, seed, &mut on_layer)?;
    let (lost_before, lost_after) = found.residual.relative();
    observer.observe(Event::Decomposed { init: options.adapter.init, lost_before, lost_after });
    for (dir, tensors) in [(&factors_dir, &found.factors), (&shift_dir, &found.shift)] {
        let config = adapter_config(&options.adapter, lora, config);
        write_adapter(dir, &AdapterFiles { config, tune: None, tensors: tensors.clone() })?;
    }
    Ok(Some(Beginning { factors: found.factors, shift: found.shift }))
}

fn dirs(run_dir: &RunDir) -> [PathBuf; 2] {
    ["factors", "shift"].map(|name| run_dir.init().join(name))
}

impl Beginning {
    /// What a run has kept.
    ///
    /// # Errors
    /// What reading meets.
    pub fn read(run_dir: &RunDir) -> Result<Beginning> {
        let [factors, shift] = dirs(run_dir);
        let read = |dir| Ok::<_, Error>(read_adapter_as_trained(dir)?.tensors);
        Ok(Beginning { factors: read(&factors)?, shift: read(&shift)? })
    }

    /// The weights that the base is to hold, from those of its files.
    pub fn shifted<'a>(
        &self,
        source: &'a dyn formats::TensorSource,
        config: &ModelConfig,
        lora: &LoraOptions,
    ) -> Shifted<'a> {
        Shifted::new(source, config, lora, &self.shift)
    }

    /// Sets an adapter to A and B at step 0.
    ///
    /// # Errors
    /// [`model::Error::InvalidAdapter`] when the folder holds another shape.
    pub fn set<D: Device>(&self, adapter: &mut Adapter<D>, config: &ModelConfig) -> Result<()> {
        Ok(adapter.set_tensors(config, &self.factors)?)
    }

    /// The half of a pair of [`Beginning::on_published_base`] that is the adapter as it was trained.
    pub fn as_trained(pair: &AdapterTensor) -> AdapterTensor {
        let r = pair.r / 2;
        let b = pair.b.chunks_exact(pair.r).flat_map(|row| row[..r].iter().copied());
        AdapterTensor { a: pair.a[..r * pair.in_features].to_vec(), b: b.collect(), r, ..pair.clone() }
    }

    /// What was learnt, as an adapter of the published weights: [B, -B₀]·[A; A₀], of twice the rank and the same scale.
    pub fn on_published_base(&self, trained: AdapterFiles) -> AdapterFiles {
        let mut files = trained;
        let first: HashMap<&str, &AdapterTensor> =
            self.factors.iter().map(|pair| (pair.module.as_str(), pair)).collect();
        for pair in &mut files.tensors {
            *pair = difference(pair, first[pair.module.as_str()]);
        }
        let config = &mut files.config;
        let alpha_factor = if config.use_rslora { f64::sqrt(2.0) } else { 2.0 };
        config.r *= 2;
        config.lora_alpha *= alpha_factor;
        scale_values(&mut config.rank_pattern, |rank| (rank.as_u64().unwrap_or(0) * 2).into());
        scale_values(&mut config.alpha_pattern, |alpha| {
            (alpha.as_f64().unwrap_or(0.0) * alpha_factor).into()
        });
        config.extra.insert("init_lora_weights".to_owned(), Value::Bool(true));
        files
    }
}

/// Takes from an adapter of the published weights what was trained: the inverse of [`Beginning::on_published_base`].
pub fn as_trained(tensors: &mut [AdapterTensor]) {
    for pair in tensors {
        let (both, r) = (pair.r, pair.r / 2);
        pair.a.truncate(r * pair.in_features);
        pair.b = pair.b.chunks_exact(both).flat_map(|row| &row[..r]).copied().collect();
        pair.r = r;
    }
}

fn scale_values(pattern: &mut Map<String, Value>, scale: impl Fn(&Value) -> Value) {
    pattern.values_mut().for_each(|value| *value = scale(value));
}

fn difference(trained: &AdapterTensor, first: &AdapterTensor) -> AdapterTensor {
    let rows = trained.b.chunks_exact(trained.r).zip(first.b.chunks_exact(first.r));
    let b = rows.flat_map(|(now, first)| now.iter().copied().chain(first.iter().map(|b| -b)));
    AdapterTensor {
        a: [trained.a.as_slice(), &first.a].concat(),
        b: b.collect(),
        r: trained.r + first.r,
        ..trained.clone()
    }
}
