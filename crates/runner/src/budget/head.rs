//! The head of a model file: keys and tensors without their data, of a file or of a published configuration.

use std::collections::HashMap;
use std::path::Path;

use formats::config::HfConfig;
use formats::gguf::{self, Array, Metadata, Planned, Value};
use formats::{BlockType, TensorSource};
use model::family::{Naming, TensorSpec};
use model::{ModelConfig, Quant, family, policy};

use crate::{Error, Result};

/// Architectures whose cache and graph are known by name: those of llama.cpp's that this module's arithmetic was
/// compared with. Others are taken for plain decoders, which is an estimate.
const KNOWN: [&str; 9] =
    ["llama", "qwen2", "qwen3", "phi3", "gemma3", "gemma2", "starcoder2", "mamba2", "deepseek2"];

/// Longest list of numbers, one a layer, that is believed.
const MAX_LAYERS: u64 = 4096;

/// One tensor of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeadTensor {
    /// Name in a GGUF, such as `blk.3.ffn_up.weight`.
    pub name: String,
    /// Shape in ggml's order: the length of a row first.
    pub shape: Vec<u64>,
    /// How its values are stored.
    pub ty: BlockType,
    /// Bytes, without padding.
    pub bytes: u64,
}

impl HeadTensor {
    /// The layer it belongs to, if it does.
    pub fn layer(&self) -> Option<u64> {
        self.name.strip_prefix("blk.")?.split_once('.')?.0.parse().ok()
    }

    /// Rows: everything but the length of a row.
    pub fn rows(&self) -> u64 {
        self.shape.iter().skip(1).product()
    }
}

/// Everything that decides what a model takes in memory.
#[derive(Debug, Clone)]
pub struct Head {
    architecture: String,
    /// The architecture's keys alone: the vocabulary of a large file is most of its head.
    keys: Metadata,
    tensors: Vec<HeadTensor>,
    by_name: HashMap<String, usize>,
    /// Pairs of adapters, by the matrix that they are set over.
    pairs: HashMap<String, Vec<Pair>>,
    config: Option<ModelConfig>,
    vocabulary_tokens: u64,
}

/// The pair of an adapter.
#[derive(Debug, Clone, Copy)]
struct Pair {
    rank: u64,
    bytes: u64,
}

impl Head {
    /// The head of a GGUF file.
    pub fn of_file(file: &gguf::Reader) -> Self {
        let metadata = file.metadata();
        let architecture = metadata.get_str("general.architecture").unwrap_or_default().to_owned();
        let prefix = format!("{architecture}.");
        let keys = metadata.entries().iter().filter(|(key, _)| key.starts_with(&prefix)).cloned().collect();
        let tensor = |info: &gguf::TensorInfo| HeadTensor {
            name: info.name.clone(),
            shape: info.shape.clone(),
            ty: info.ty,
            bytes: info.bytes,
        };
        let listed = metadata.get_strings("tokenizer.ggml.tokens").map(|tokens| tokens.len() as u64);
        let tensors: Vec<HeadTensor> = file.tensors().iter().map(tensor).collect();
        let mut head = Self {
            architecture,
            keys,
            by_name: index(&tensors),
            tensors,
            pairs: HashMap::new(),
            config: ModelConfig::from_gguf(metadata, file as &dyn TensorSource).ok(),
            vocabulary_tokens: 0,
        };
        head.vocabulary_tokens = listed.unwrap_or_else(|| head.logit_rows());
        head
    }

    /// The head that an export of a base would have, from its `config.json` alone.
    ///
    /// # Errors
    /// [`Error::Format`] and [`Error::Model`] if the configuration can't be read or is of no known family.
    pub fn of_folder(folder: &Path, quant: Quant) -> Result<Self> {
        Self::of_config(&ModelConfig::from_hf(&HfConfig::from_dir(folder)?)?, quant)
    }

    /// The same, from hyper-parameters.
    ///
    /// # Errors
    /// [`Error::Format`] if rows can't have the type.
    pub fn of_config(config: &ModelConfig, quant: Quant) -> Result<Self> {
        let mut specs = family::tensors(config);
        family::sort_for_gguf(&mut specs);
        let types = policy::block_types(quant, false, config, &specs);
        let mut tensors = Vec::with_capacity(specs.len() + 2);
        for (spec, ty) in specs.iter().zip(types) {
            tensors.push(of_spec(spec, ty)?);
        }
        for (name, factors) in config.rope.gguf_tensors() {
            let n = factors.len() as u64;
            tensors.push(HeadTensor {
                name: name.to_owned(),
                shape: vec![n],
                ty: BlockType::F32,
                bytes: 4 * n,
            });
        }
        Ok(Self {
            architecture: config.family.gguf_architecture().to_owned(),
            keys: model::config::gguf_metadata(config).into_iter().collect(),
            by_name: index(&tensors),
            tensors,
            pairs: HashMap::new(),
            vocabulary_tokens: config.vocab_size as u64,
            config: Some(config.clone()),
        })
    }

    /// The same model in another quantisation, if its family is one that we export.
    pub fn requantised(&self, quant: Quant) -> Option<Self> {
        let other = Self::of_config(self.config.as_ref()?, quant).ok()?;
        Some(Self { vocabulary_tokens: self.vocabulary_tokens, pairs: self.pairs.clone(), ..other })
    }

    /// Sets an adapter over it.
    pub fn add_adapter(&mut self, adapter: &gguf::Reader) {
        for tensor in adapter.tensors() {
            let Some(name) = tensor.name.strip_suffix(".lora_b") else { continue };
            let a = adapter.tensor(&format!("{name}.lora_a")).map_or(0, |a| padded(a.bytes));
            let pair = Pair {
                rank: tensor.shape.first().copied().unwrap_or(0),
                bytes: padded(tensor.bytes).saturating_add(a),
            };
            self.pairs.entry(name.to_owned()).or_default().push(pair);
        }
    }

    /// Bytes of the pairs set over a matrix.
    pub(super) fn pair_bytes(&self, name: &str) -> u64 {
        self.pairs.get(name).map_or(0, |pairs| pairs.iter().map(|pair| pair.bytes).sum())
    }

    /// Ranks of the pairs set over a matrix.
    pub(super) fn ranks(&self, name: &str) -> Vec<u64> {
        self.pairs.get(name).map_or_else(Vec::new, |pairs| pairs.iter().map(|pair| pair.rank).collect())
    }

    /// `general.architecture`.
    pub fn architecture(&self) -> &str {
        &self.architecture
    }

    /// The tensors, in the order of the file.
    pub fn tensors(&self) -> &[HeadTensor] {
        &self.tensors
    }

    /// Keys and tensors as a writer takes them: with a vocabulary, a file of that head.
    pub fn planned(&self) -> (Metadata, Vec<Planned>) {
        let mut metadata = Metadata::new();
        metadata.push("general.architecture", self.architecture.as_str());
        metadata.extend(self.keys.entries().iter().cloned());
        let tensors = self.tensors.iter();
        (metadata, tensors.map(|tensor| (tensor.name.clone(), tensor.shape.clone(), tensor.ty)).collect())
    }

    /// Whether the arithmetic was compared with what llama.cpp allocates for this architecture.
    pub fn is_known(&self) -> bool {
        KNOWN.contains(&self.architecture.as_str())
    }

    /// Tokens of context the model was trained on.
    pub fn trained_context_tokens(&self) -> Option<u32> {
        self.number("context_length").and_then(|n| u32::try_from(n).ok())
    }

    /// Weights of all tensors.
    pub fn n_parameters(&self) -> u64 {
        self.tensors.iter().map(|tensor| tensor.shape.iter().product::<u64>()).sum()
    }

    /// Bytes of all tensors, as a file holds them.
    pub fn tensor_bytes(&self) -> u64 {
        self.tensors.iter().fold(0, |sum: u64, tensor| sum.saturating_add(tensor.bytes))
    }

    /// Tokens of the vocabulary.
    pub fn vocabulary_tokens(&self) -> u64 {
        self.vocabulary_tokens
    }

    pub(super) fn tensor(&self, name: &str) -> Option<&HeadTensor> {
        self.by_name.get(name).map(|&i| &self.tensors[i])
    }

    /// Logits of one position.
    pub(super) fn logit_rows(&self) -> u64 {
        let head = self.tensor("output.weight").or_else(|| self.tensor("token_embd.weight"));
        head.map_or(0, HeadTensor::rows)
    }

    /// A number of the architecture: `<architecture>.<key>`.
    pub(super) fn number(&self, key: &str) -> Option<u64> {
        self.keys.get_u64(&format!("{}.{key}", self.architecture))
    }

    /// Whether the architecture's file has a key.
    pub(super) fn has_key(&self, key: &str) -> bool {
        self.keys.get(&format!("{}.{key}", self.architecture)).is_some()
    }

    /// Whether a factor changes nothing.
    pub(super) fn is_one(&self, key: &str) -> bool {
        self.keys.get_f32(&format!("{}.{key}", self.architecture)).is_some_and(|factor| factor == 1.0)
    }

    /// A number that may differ from layer to layer.
    pub(super) fn of_layer(&self, key: &str, layer: u64) -> Option<u64> {
        self.number(key).or_else(|| {
            let list = self.keys.get_array(&format!("{}.{key}", self.architecture))?;
            let at = usize::try_from(layer).ok()?;
            match list {
                Array::U32(list) => list.get(at).map(|&n| u64::from(n)),
                Array::I32(list) => list.get(at).and_then(|&n| u64::try_from(n).ok()),
                _ => None,
            }
        })
    }

    /// A flag that differs from layer to layer.
    pub(super) fn flag_of_layer(&self, key: &str, layer: u64) -> Option<bool> {
        let list = self.keys.get(&format!("{}.{key}", self.architecture))?;
        let at = usize::try_from(layer).ok()?;
        match list {
            Value::Array(Array::Bool(list)) => list.get(at).copied(),
            _ => None,
        }
    }

    /// Layers.
    pub(super) fn layers(&self) -> u64 {
        self.number("block_count").unwrap_or(0).min(MAX_LAYERS)
    }
}

/// A tensor as a buffer holds it.
fn padded(bytes: u64) -> u64 {
    bytes.next_multiple_of(gguf::DEFAULT_ALIGNMENT)
}

fn index(tensors: &[HeadTensor]) -> HashMap<String, usize> {
    tensors.iter().enumerate().map(|(i, tensor)| (tensor.name.clone(), i)).collect()
}

fn of_spec(spec: &TensorSpec, ty: BlockType) -> Result<HeadTensor> {
    let bytes = (spec.rows as u64).saturating_mul(ty.row_bytes(spec.cols).map_err(Error::from)? as u64);
    let shape = spec.shape(Naming::Gguf).iter().rev().map(|&n| n as u64).collect();
    Ok(HeadTensor { name: spec.gguf.clone(), shape, ty, bytes })
}
